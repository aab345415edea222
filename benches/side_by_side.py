#!/usr/bin/env python3
"""The quickstart student's training step here and in PyTorch, on the same machine in the same run.

    cargo run --release -- quickstart                          # once: leaves the shards that this reads
    python3 benches/side_by_side.py [--rounds 2] [--steps 12]  # needs torch

Alternates `potstill distill` on the quickstart's shards with benches/torch_step.py, both f32 on two threads, 512 tokens a
step, and prints the best of each with their ratios as JSON. Load on the machine hurts whoever runs at that moment: the best
of several rounds is the fairest figure there is.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def potstill(binary: str, steps: int) -> tuple[float, float]:
    """Tokens a second and peak bytes of a training run of its own, in a process of its own."""
    recipe = (ROOT / ".cache/quickstart/distilled.yaml").read_text()
    recipe = re.sub(r"max_steps: \d+", f"max_steps: {steps}", recipe)
    recipe = re.sub(r"logging_steps: \d+", f"logging_steps: {steps}", recipe)
    with tempfile.TemporaryDirectory() as folder:
        recipe = re.sub(r"output_path: .*", f"output_path: {folder}/student", recipe)
        # The measurement of held-out text is no part of the step.
        recipe = re.sub(r"holdout:\s*\n?\s*\{?\s*sequences: (\d+)\s*\}?", r"holdout: { sequences: 1 }", recipe)
        path = Path(folder) / "recipe.yaml"
        path.write_text(recipe)
        out = subprocess.run(
            [binary, "distill", str(path), "--device", "cpu"], cwd=ROOT, check=True, capture_output=True, text=True,
            env={**os.environ, "RAYON_NUM_THREADS": "2"},
        ).stdout
    speed = float(re.search(r"speed: ([\d.]+)", out)[1])
    amount, unit = re.search(r"peak memory: ([\d.]+) (\w+)", out).groups()
    return speed, float(amount) * {"MiB": 2**20, "GiB": 2**30}[unit]


def torch(steps: int) -> tuple[float, float]:
    out = subprocess.run(
        [sys.executable, str(ROOT / "benches/torch_step.py"), "--steps", str(steps)], check=True, capture_output=True, text=True
    ).stdout
    result = json.loads(out.strip().splitlines()[-1])
    return result["tokens_per_second"], result["peak_memory_bytes"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--potstill", default=str(ROOT / "target/release/potstill"))
    args = parser.parse_args()
    ours, theirs = [], []
    for _ in range(args.rounds):
        ours.append(potstill(args.potstill, args.steps))
        theirs.append(torch(args.steps))
    best = {
        name: {"tokens_per_second": max(s for s, _ in runs), "peak_memory_bytes": min(m for _, m in runs)}
        for name, runs in (("potstill", ours), ("torch", theirs))
    }
    print(json.dumps({
        **best,
        "speed_ratio": best["potstill"]["tokens_per_second"] / best["torch"]["tokens_per_second"],
        "memory_ratio": best["potstill"]["peak_memory_bytes"] / best["torch"]["peak_memory_bytes"],
    }, indent=2))


if __name__ == "__main__":
    main()
