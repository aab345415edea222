#!/usr/bin/env python3
"""The quickstart student's training step here and in PyTorch, on the same machine in the same run.

    cargo run --release -- quickstart                          # once: leaves the shards that this reads
    python3 benches/side_by_side.py [--rounds 2] [--steps 12]  # needs torch

Alternates benches/step.rs on the quickstart's shards with benches/torch_step.py, both f32 on two threads, 512 tokens a
step, and prints the best of each with their ratios as JSON. Load on the machine hurts whoever runs at that moment: the best
of several rounds is the fairest figure there is.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def potstill(steps: int) -> tuple[float, float]:
    """Tokens a second and peak bytes of the training step, in a process of its own."""
    out = subprocess.run(
        ["cargo", "bench", "--quiet", "--bench", "step", "--", str(ROOT / ".cache/quickstart/distilled.yaml"), str(steps)],
        cwd=ROOT, check=True, capture_output=True, text=True, env={**os.environ, "RAYON_NUM_THREADS": "2"},
    ).stdout
    result = json.loads(out.strip().splitlines()[-1])
    return result["tokens_per_second"], result["peak_memory_bytes"]


def torch(steps: int) -> tuple[float, float]:
    out = subprocess.run(
        [sys.executable, str(ROOT / "benches/torch_step.py"), "--steps", str(steps)], check=True, capture_output=True, text=True
    ).stdout
    result = json.loads(out[out.index("{"):])
    return result["tokens_per_second"], result["peak_memory_bytes"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    ours, theirs = [], []
    for _ in range(args.rounds):
        ours.append(potstill(args.steps))
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
