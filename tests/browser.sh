#!/usr/bin/env bash
# The tests that run in a browser: tests/browser/, in a dedicated worker of a headless Chromium, on WebGPU.
#
#   tests/browser.sh [ARGUMENTS OF the test runner]
#
# Brings what it needs and lacks: rustup's wasm32-unknown-unknown, wasm-bindgen's test runner in the version of
# Cargo.lock (into .cache/tools), and on Debian, as root or through sudo, Chromium with its driver. CHROMEDRIVER names
# another driver. Without a GPU, Chromium's own software driver (SwiftShader) computes. Leaves with 1, and a list, when
# something is missing.

set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
target=wasm32-unknown-unknown

have_target() { [[ -d "$(rustc --print sysroot)/lib/rustlib/$target" ]]; }
have_target || rustup target add "$target" || true
have_target || missing+=("Rust's standard library for $target (rustup target add $target)")

version=$(sed -n '/^name = "wasm-bindgen"$/{n;s/version = "\(.*\)"/\1/p}' Cargo.lock)
export PATH="$PWD/.cache/tools/bin:$PATH"
have_runner() { [[ "$(wasm-bindgen-test-runner --version 2>/dev/null)" == *" $version" ]]; }
if ! have_runner; then
    echo "browser: building wasm-bindgen-cli $version, once"
    # Without --locked: the newest compatible dependencies do as well.
    cargo install --quiet wasm-bindgen-cli --version "$version" --root .cache/tools || true
fi
have_runner || missing+=("wasm-bindgen-test-runner $version (cargo install wasm-bindgen-cli --version $version)")

export CHROMEDRIVER="${CHROMEDRIVER:-$(command -v chromedriver || true)}"
if [[ -z "$CHROMEDRIVER" ]] && command -v apt-get >/dev/null && ! grep -q '^ID=ubuntu' /etc/os-release; then
    sudo=()
    [[ "$(id -u)" == 0 ]] || sudo=(sudo)
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends \
        chromium chromium-driver >/dev/null || true
    CHROMEDRIVER=$(command -v chromedriver || true)
fi
[[ -n "$CHROMEDRIVER" ]] || missing+=("Chromium with chromedriver (Debian: chromium-driver; or set CHROMEDRIVER)")

if ((${#missing[@]})); then
    printf 'browser: still missing, please install:\n' >&2
    printf '  - %s\n' "${missing[@]}" >&2
    exit 1
fi

tests/setup.sh
# The training's data, and its losses on this machine's CPU.
assets=$(mktemp -d)
trap 'rm -rf "$assets"' EXIT
export POTSTILL_BROWSER_ASSETS="$assets"
cargo test --release --test suite -- --quiet --ignored assets_for_the_browser

export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER=wasm-bindgen-test-runner
# Seconds for all of them: a software driver compiles some hundred kernels.
export WASM_BINDGEN_TEST_TIMEOUT=1800
cargo test --release --target "$target" --no-default-features --features oracle --test browser "$@"
