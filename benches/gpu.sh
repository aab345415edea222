#!/usr/bin/env bash
# Everything there is to measure on a GPU, in one go: every kernel checked in every kind of tile, then kernels, products, training
# steps and captures timed, beside PyTorch on CUDA where that is there.
#
#   benches/gpu.sh [ADAPTER] [OUT]
#
# ADAPTER is part of the adapter's name (`potstill doctor` lists them; default: the best), OUT the folder for the results (default
# .cache/gpu). PEERS=PYTHON names a Python with benches/peers/requirements.txt and CUDA. Needs the network once, for the
# reference model and the text, unless .cache has them. About ten minutes on a large card, most of them for compiling.

set -euo pipefail
cd "$(dirname "$0")/.."

adapter=${1:-}
out=${2:-.cache/gpu}
device=gpu${adapter:+:$adapter}
mkdir -p "$out"

cargo build --release
potstill=target/release/potstill
[[ -f .cache/models/SmolLM2-135M-Instruct.Q4_1.gguf && -f .cache/text/moby-dick.txt ]] || "$potstill" quickstart --device cpu --tokens 4096

check() {
    echo "== self-test: $1"
    shift
    env "$@" "$potstill" doctor --device "$device" | tee -a "$out/doctor.txt"
}
: >"$out/doctor.txt"
check "as it runs" POTSTILL_TUNE=1
check "without cooperative matrices" POTSTILL_COOPERATIVE=0
for tiles in single 32 64 128; do
    check "tiles: $tiles" "POTSTILL_TILES=$tiles" POTSTILL_COOPERATIVE=0
done
check "with bounds checks" POTSTILL_CHECKED=1

echo "== speed"
peers=()
[[ -z "${PEERS:-}" ]] || peers=(--peers "$PEERS" --cuda)
cargo bench --bench speed -- --devices "$device" --rounds 3 --steps 20 --out "$out" "${peers[@]}"
echo "== all in $out: doctor.txt, and the tables of the last step"
