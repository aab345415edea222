"""Writes spectrum.json: singular values and scores of awkward matrices by numpy and torch, and of a real model's layers.

Run: python tests/golden/spectrum.py   (needs numpy, torch, gguf and the model that tests/setup.sh fetches)
"""

import json
import math
import pathlib
import re

import gguf
import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
MASK = (1 << 64) - 1

# rows, columns, what is in it
CASES = [
    (1, 7, "noise"),
    (7, 1, "noise"),
    (2, 2, "noise"),
    (3, 13, "noise"),
    (13, 3, "noise"),
    (5, 5, "spiked"),
    (37, 101, "noise"),
    (101, 37, "spiked"),
    (64, 64, "noise"),
    (256, 257, "spiked"),
    (300, 19, "noise"),
    (19, 600, "spiked"),
    (192, 576, "noise"),
]


def entries(seed):
    """SplitMix64: sums of four uniform numbers in [-1, 1), each a multiple of 2^-23."""
    state = seed
    while True:
        total = 0.0
        for _ in range(4):
            state = (state + 0x9E3779B97F4A7C15) & MASK
            z = state
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
            total += ((z ^ (z >> 31)) >> 40) / 2**23 - 1
        yield total


def matrix(rows, columns, content, seed):
    source = entries(seed)
    w = np.array([[next(source) for _ in range(columns)] for _ in range(rows)])
    if content == "spiked":
        # A strong direction: row i times column j, both growing.
        w = w * 0.25 + np.outer(np.arange(1, rows + 1), np.arange(1, columns + 1)) / (rows * columns)
    return w.astype(np.float32)


def mp_median(beta):
    """Median eigenvalue, by the density of its square root, which is bounded."""
    low, high = abs(1 - math.sqrt(beta)), 1 + math.sqrt(beta)
    edges = np.linspace(low, high, 4_000_001)
    u = (edges[1:] + edges[:-1]) / 2
    density = np.sqrt(np.maximum((high**2 - u**2) * (u**2 - low**2), 0)) / (math.pi * beta * u)
    mass = np.concatenate([[0], np.cumsum(density) * (edges[1] - edges[0])])
    return float(np.interp(0.5 * mass[-1], mass, edges)) ** 2


def ratio(s, border):
    signal, noise = s[s > border].sum(), s[s <= border].sum()
    return float(signal / (noise if noise != 0 else 1.0) / s[0])


def case(rows, columns, content, seed):
    s = np.linalg.svd(matrix(rows, columns, content, seed).astype(np.float64), compute_uv=False)
    beta = min(rows, columns) / max(rows, columns)
    q25, q50, q75 = np.quantile(s, [0.25, 0.5, 0.75])
    threshold = (q75 - q25) / 1.349 * (1 + math.sqrt(beta))
    deviation = q50 / math.sqrt(max(rows, columns) * mp_median(beta))
    edge = deviation * (math.sqrt(rows) + math.sqrt(columns))
    return {
        "rows": rows,
        "columns": columns,
        "content": content,
        "seed": seed,
        "singular": [float(x) for x in s[:: max(1, len(s) // 8)]],
        "threshold": float(threshold),
        "snr": ratio(s, threshold),
        "mp_median": mp_median(beta),
        "mp_edge": float(edge),
        "mp_snr": ratio(s, edge),
    }


def spectrums(weight):
    """Spectrum's arithmetic: f32 throughout."""
    s = torch.linalg.svdvals(torch.from_numpy(weight))
    sigma = (torch.quantile(s, 0.75) - torch.quantile(s, 0.25)) / 1.349
    beta = min(weight.shape) / max(weight.shape)
    above = s > sigma * np.sqrt((1 + np.sqrt(beta)) ** 2)
    noise = s[~above].sum() if (~above).any() else torch.tensor(1.0)
    return (s[above].sum() / noise / s[0]).item()


def model(path):
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    scores = {}
    for tensor in gguf.GGUFReader(path).tensors:
        found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        if found and found[2] in names:
            # llama.cpp's order of q and k rows is a permutation, which leaves singular values alone.
            weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            scores[f"model.layers.{found[1]}.{names[found[2]]}"] = spectrums(weight)
    return scores


if __name__ == "__main__":
    golden = {
        "cases": [case(*shape, seed) for seed, shape in enumerate(CASES)],
        "smollm2": model(HERE.parents[1] / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"),
    }
    (HERE / "spectrum.json").write_text(json.dumps(golden, indent=1) + "\n")
