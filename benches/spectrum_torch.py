"""The same scan by Spectrum's arithmetic in PyTorch (torch.linalg.svdvals in f32), side by side with potstill's.

Run: python benches/spectrum_torch.py target/release/potstill   (needs what tests/golden/spectrum.py needs)

Prints seconds, peak memory and the worst relative difference of a score. Only the scan of the weights is timed for torch;
for potstill the whole command, from start to written report.
"""

import importlib.util
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODEL = ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"

spec = importlib.util.spec_from_file_location("golden", ROOT / "tests/golden/spectrum.py")
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)


def mib(who):
    return resource.getrusage(who).ru_maxrss / 1024


with tempfile.TemporaryDirectory() as folder:
    begin = time.perf_counter()
    command = [sys.argv[1], "spectrum", MODEL, "-o", folder, "--json"]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    ours = time.perf_counter() - begin
    scores = json.loads(pathlib.Path(report["files"]["scores"]).read_text())
begin = time.perf_counter()
known = golden.model(MODEL)
torch = time.perf_counter() - begin
worst = max(abs(scores[name]["snr"] / snr - 1) for name, snr in known.items())
print(f"potstill {ours:.1f} s, {mib(resource.RUSAGE_CHILDREN):.0f} MiB; torch {torch:.1f} s, {mib(resource.RUSAGE_SELF):.0f} MiB")
print(f"{len(known)} scores, {torch / ours:.1f} times as fast, worst relative difference {worst:.1e}")
