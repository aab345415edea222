#!/usr/bin/env bash
# All tests: sets up what they need, then runs the suite three times over.
#
#   tests/run.sh [ARGUMENTS OF cargo test]
#
# 1. everything, on the CPU and on every GPU adapter that is found (on Linux always at least Mesa's llvmpipe);
# 2. the GPU tests with SwiftShader as the only Vulkan driver: a second, independent compiler for every shader (Linux);
# 3. everything again with POTSTILL_CHECKED=1: shaders with bounds checks and zeroed workgroup memory;
# then the tests that run in a browser (tests/browser.sh) and, where mounting is permitted, a run on a disk that is full.
# A GPU test is one with `gpu` in its path. With arguments, each of the three takes those instead, and nothing follows.

set -euo pipefail
cd "$(dirname "$0")/.."

tests/setup.sh

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Without one, Vulkan and GL loaders print a warning for every device they open.
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-$scratch}"
# Compiled kernels are kept in the user's cache folder, but not the tests'.
export POTSTILL_CACHE="$scratch/cache"

gpu_tests() {
    if (($# > 0)); then
        cargo test --release "$@"
        return
    fi
    cargo test --release -- gpu | tee "$scratch/log"
    # A filter that fits nothing would be a green run of no test.
    if ! grep -Eq '^test result: ok\. [1-9]' "$scratch/log"; then
        echo "tests/run.sh: no GPU test ran" >&2
        return 1
    fi
}

echo "== 1/3: CPU and every GPU adapter"
cargo test --release "$@"

if [[ "$(uname)" == Linux ]]; then
    icd=$(tests/setup.sh --swiftshader-icd)
    echo "== 2/3: GPU tests on SwiftShader ($icd)"
    # The older of the two names is for loaders before 1.3.207.
    VK_DRIVER_FILES="$icd" VK_ICD_FILENAMES="$icd" gpu_tests "$@"
fi

echo "== 3/3: everything with checked shaders"
POTSTILL_CHECKED=1 cargo test --release "$@"

if (($# == 0)); then
    echo "== in a browser"
    tests/browser.sh
fi

if (($# == 0)) && [[ "$(id -u)" == 0 ]] && unshare --mount true 2>/dev/null; then
    echo "== a full disk"
    cargo test --release --test suite -- --ignored a_full_disk
elif (($# == 0)); then
    echo "== NOT RUN, for mounting is not permitted here: errors::disk::a_full_disk_is_named_and_the_same_command_goes_on_later"
fi
echo "== all passed"
