#!/usr/bin/env bash
# Fuzzes the readers of files from elsewhere with libFuzzer: coverage-guided, on stable Rust.
#
#   tests/fuzz.sh TARGET [SECONDS]      one of tests/fuzz/fuzz_targets, 60 seconds unless said
#   tests/fuzz.sh all [SECONDS]         each of them
#
# Seeds are the golden files. What crashes is left in target/fuzz/TARGET and is the beginning of a regression test.

set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:?TARGET or all}
seconds=${2:-60}
host=$(rustc -vV | sed -n 's/^host: //p')

# What cargo-fuzz passes on nightly; these flags themselves are stable.
sancov="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
for option in inline-8bit-counters pc-table trace-compares; do
    sancov="$sancov -Cllvm-args=-sanitizer-coverage-$option"
done
export RUSTFLAGS="--cfg fuzzing $sancov"
# With --target, build scripts and macros are not instrumented.
cargo build --release --manifest-path tests/fuzz/Cargo.toml --target-dir target/fuzz --target "$host"

seeds() {
    case $1 in
    arrow) for file in tests/golden/distillkit/saved/*/*.arrow tests/golden/distillkit/saved/*/*/*.arrow; do
        cp "$file" "$2/${file//\//-}"
    done ;;
    gguf) cp tests/golden/{smallest,tiny_llama,quants,llama-bpe,qwen2,spm}.gguf "$2" ;;
    safetensors) cp tests/golden/{tiny_llama,quants}.safetensors "$2" ;;
    tokenizer) cp tests/golden/smollm_tokenizer.json "$2" ;;
    recipe) cp examples/recipe.yaml "$2" ;;
    spectrum) echo '{"a.0.b": {"snr": Infinity, "type": "b"}, "a.1.b": {"snr": -0.5e3, "type": "b"}}' >"$2/scores" ;;
    rows | chat | manifest) find tests/golden src/shards/tests -name '*.json' -size -8k -exec cp {} "$2" \; ;;
    esac
}

names=$target
[[ $target == all ]] && names=$(basename -s .rs -a tests/fuzz/fuzz_targets/*.rs)
for name in $names; do
    corpus=target/fuzz/corpus/$name found=target/fuzz/$name
    mkdir -p "$corpus" "$found"
    seeds "$name" "$corpus"
    echo "== $name"
    "target/fuzz/$host/release/$name" -max_total_time="$seconds" -rss_limit_mb=4096 -timeout=20 -verbosity=0 \
        -print_final_stats=1 -artifact_prefix="$found/" "$corpus"
done
echo "== nothing found"
