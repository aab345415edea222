#!/usr/bin/env bash
# The tests of the page (web/), of its proxy and of the npm package: as visitors use them, in a headless Chromium.
#
#   tests/page.sh [ARGUMENTS OF node --test]       all tests
#   tests/page.sh --numbers                        a table instead: speed, latency, size
#
# Builds what is missing: the package (web/package.sh), the demo's assets (web/demo.sh), the `potstill` command that
# downloads are checked with. Needs Node.js 20 with npm, and Chromium: CHROMIUM names its binary; on Debian it is
# installed, as root or through sudo. Without a GPU, Chromium's own software driver (SwiftShader) computes. Pictures of the page
# go to .cache/screens/. REBUILD=1 builds the package though it is there.

set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
command -v npm >/dev/null || missing+=("Node.js 20 or later, with npm")
command -v python3 >/dev/null || missing+=("Python 3, which unzips what was downloaded")

export CHROMIUM="${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}"
if [[ -z "$CHROMIUM" ]] && command -v apt-get >/dev/null && ! grep -q '^ID=ubuntu' /etc/os-release; then
    sudo=()
    [[ "$(id -u)" == 0 ]] || sudo=(sudo)
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends chromium >/dev/null || true
    CHROMIUM=$(command -v chromium || true)
fi
[[ -n "$CHROMIUM" ]] || missing+=("Chromium or Chrome (Debian: chromium; or set CHROMIUM)")

if ((${#missing[@]})); then
    printf 'page: still missing, please install:\n' >&2
    printf '  - %s\n' "${missing[@]}" >&2
    exit 1
fi

(cd web && { [[ -d node_modules/playwright-core ]] || npm ci --silent --ignore-scripts; })
if [[ -n "${REBUILD:-}" || ! -f web/pkg/potstill_bg.wasm || ! -f pkg/potstill_bg.wasm ]]; then
    web/demo.sh
else
    # Page and proxy are cheap to renew.
    WITHOUT_PACKAGE=1 web/demo.sh
    cp web/proxy/*.js web/proxy/client.d.ts pkg/
    cp web/proxy/*.js web/proxy/client.d.ts web/pkg/
fi
if [[ -z "${POTSTILL:-}" ]]; then
    cargo build --release --quiet --bin potstill
    export POTSTILL="${CARGO_TARGET_DIR:-target}/release/potstill"
    [[ "$POTSTILL" == /* ]] || POTSTILL="$PWD/$POTSTILL"
fi
if [[ -z "${POTSTILL_SWIFTSHADER_ICD:-}" ]] && icd=$(tests/setup.sh --swiftshader-icd); then
    export POTSTILL_SWIFTSHADER_ICD="$icd"
fi

if [[ "${1:-}" == --numbers ]]; then
    node tests/page/numbers.mjs
else
    # One file at a time: browsers that compute slow each other down.
    node --test --test-concurrency=1 --test-reporter=spec "$@" tests/page/*.test.mjs
fi
