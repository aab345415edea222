#!/usr/bin/env bash
# The quickstart with three orders of the text: how sure the distilled student's lead is. About ten minutes on two cores.
#
#   benches/three_seeds.sh [ARGUMENTS OF potstill quickstart]
#
# Prints a line of JSON for each seed, then mean and standard deviation of each difference (distilled minus plain SFT).

set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp)
trap 'rm -f "$scratch"' EXIT
for seed in 42 43 44; do
    cargo run --release --quiet -- quickstart --seed "$seed" --json "$@" | tr -d '\n' | tee -a "$scratch"
    echo | tee -a "$scratch"
done
python3 - "$scratch" <<'PYTHON'
import json, statistics, sys

rows = [json.loads(line) for line in open(sys.argv[1])]
for name in ("nll", "bits_per_byte", "kld", "top1_agreement"):
    differences = [row["distilled"][name] - row["sft"][name] for row in rows]
    print(f"{name}: {statistics.mean(differences):+.4f} +- {statistics.stdev(differences):.4f}")
PYTHON
