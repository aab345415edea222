#!/usr/bin/env bash
# Everything that the page of web/ shows, in one command:
#
#   web/demo.sh
#   cd web && python3 -m http.server        # then http://localhost:8000
#
# The package (web/package.sh) as web/pkg, the chart library as web/vendor, and in web/assets a teacher of 1.2 million
# parameters, trained here on public-domain text (two minutes on two CPU cores), with its text and its shards. What is
# there already stays: remove web/assets to make it anew. WITHOUT_PACKAGE=1 leaves web/pkg as it is.

set -euo pipefail
cd "$(dirname "$0")/.."

(cd web && { [[ -d node_modules/uplot ]] || npm ci --silent --ignore-scripts; })
mkdir -p web/vendor
cp web/node_modules/uplot/dist/uPlot.esm.js web/node_modules/uplot/dist/uPlot.min.css web/vendor/
cp web/node_modules/uplot/LICENSE web/vendor/uPlot.LICENSE

if [[ ! -f web/assets/shards/manifest.json ]]; then
    [[ -d .cache/text/sotu ]] || tests/setup.sh
    cargo run --release --example page_assets -- .cache/text/sotu .cache/page web/assets
fi

if [[ -z "${WITHOUT_PACKAGE:-}" ]]; then
    web/package.sh
    rm -rf web/pkg
    cp -r pkg web/pkg
fi
echo "demo: ready; cd web && python3 -m http.server, then http://localhost:8000"
