#!/usr/bin/env bash
# The npm package: pkg/, ready for `npm publish`.
#
#   web/package.sh
#
# What wasm-pack makes of the library (potstill.js, its types, the module), the proxy beside it (client.js, worker.js),
# README and licences, and a package.json that exports them. Installs into .cache/tools what it lacks: wasm-pack, and
# wasm-bindgen in the version of Cargo.lock. Needs npm, for binaryen. Prints the module's size, and fails where it is above
# the limit.

set -euo pipefail
cd "$(dirname "$0")/.."

# Bytes of the module, gzipped.
limit=1500000
target=wasm32-unknown-unknown

command -v npm >/dev/null || { echo "package: needs Node.js 20 or later, with npm" >&2; exit 1; }
[[ -d "$(rustc --print sysroot)/lib/rustlib/$target" ]] || rustup target add "$target"

version=$(sed -n '/^name = "wasm-bindgen"$/{n;s/version = "\(.*\)"/\1/p}' Cargo.lock)
export PATH="$PWD/.cache/tools/bin:$PATH"
if [[ "$(wasm-bindgen --version 2>/dev/null)" != *" $version" ]]; then
    echo "package: building wasm-bindgen-cli $version, once"
    # Without --locked: the newest compatible dependencies do as well.
    cargo install --quiet wasm-bindgen-cli --version "$version" --root .cache/tools
fi
if ! wasm-pack --version >/dev/null 2>&1; then
    echo "package: building wasm-pack, once"
    cargo install --quiet wasm-pack --locked --root .cache/tools
fi

# Messages name source files, and their folders are the builder's own business. These flags replace those of
# .cargo/config.toml.
library=$(rustc --print sysroot)/lib/rustlib/src/rust
flags=(-C target-feature=+simd128)
for folder in "${CARGO_HOME:-$HOME/.cargo}/registry/src" "$library" "$PWD"; do
    flags+=("--remap-path-prefix=$folder/=")
done
CARGO_ENCODED_RUSTFLAGS=$(printf '%s\x1f' "${flags[@]}")
export CARGO_ENCODED_RUSTFLAGS="${CARGO_ENCODED_RUSTFLAGS%$'\x1f'}"

# The profile is Cargo.toml's; no-install: wasm-bindgen is there.
wasm-pack --quiet build --mode no-install --target web --profile web --no-opt . --no-default-features

(cd web && npm ci --silent --ignore-scripts)
# Functions in the order of their names: what a library's code became for one type stands beside what it became for
# others, where gzip sees how alike they are. Then the names, a quarter of the module, go. Not wasm-opt's -Os or -Oz: they
# take two minutes, and what they leave is larger, gzipped.
passes=(--duplicate-function-elimination --remove-unused-module-elements --reorder-functions-by-name --strip-debug
    --strip-producers)
features=(--enable-simd --enable-bulk-memory --enable-nontrapping-float-to-int --enable-sign-ext
    --enable-mutable-globals --enable-reference-types --enable-multivalue)
node web/node_modules/binaryen/bin/wasm-opt "${features[@]}" "${passes[@]}" pkg/potstill_bg.wasm -o pkg/smaller.tmp
mv pkg/smaller.tmp pkg/potstill_bg.wasm

# The module's raw exports are nobody's business, and typed as `any`.
sed -i.tmp '/^export interface InitOutput {/,/^}/{/^export\|^}\|memory/!d;}' pkg/potstill.d.ts
rm -f pkg/*.tmp pkg/potstill_bg.wasm.d.ts

cp web/proxy/client.js web/proxy/client.d.ts web/proxy/worker.js pkg/
cp web/npm.md pkg/README.md
cp LICENSE-MIT LICENSE-APACHE pkg/
rm -f pkg/.gitignore

field() { sed -n "s/^$1 = \"\(.*\)\"/\1/p" Cargo.toml | head -n 1; }
cat >pkg/package.json <<JSON
{
  "name": "$(field name)",
  "version": "$(field version)",
  "description": "$(field description)",
  "license": "$(field license)",
  "keywords": ["distillation", "llm", "webgpu", "training", "wasm"],
  "type": "module",
  "main": "potstill.js",
  "types": "potstill.d.ts",
  "exports": {
    ".": { "types": "./potstill.d.ts", "default": "./potstill.js" },
    "./client": { "types": "./client.d.ts", "default": "./client.js" },
    "./worker": "./worker.js",
    "./potstill_bg.wasm": "./potstill_bg.wasm"
  },
  "files": [
    "potstill.js", "potstill.d.ts", "potstill_bg.wasm",
    "client.js", "client.d.ts", "worker.js", "LICENSE-MIT", "LICENSE-APACHE"
  ],
  "sideEffects": ["./worker.js"]
}
JSON

size=$(gzip -9 -c pkg/potstill_bg.wasm | wc -c)
if ((size > limit)); then
    echo "package: the module has $size bytes gzipped, above the limit of $limit: see docs/browser.md, Size" >&2
    exit 1
fi
echo "package: pkg/ is ready; the module has $(wc -c <pkg/potstill_bg.wasm) bytes, $size gzipped (the limit is $limit)"
