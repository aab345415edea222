#!/usr/bin/env python3
"""A product of two square matrices in PyTorch on CUDA, in f32 (without TF32) or bfloat16.

    python3 benches/peers/torch_product.py [--precision bf16] [--side 4096]

Prints one JSON object; gflops is the median over twenty runs of ten products.
"""

import argparse
import json
import statistics
import time

import torch


def main():
    parser = argparse.ArgumentParser(description="PyTorch peer of a large matrix product")
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    a = torch.rand(args.side, args.side, device=args.device, dtype=dtype)
    b = torch.rand(args.side, args.side, device=args.device, dtype=dtype)
    seconds = []
    for _ in range(3 + args.steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / 10)
    print(json.dumps({"gflops": 2e-9 * args.side**3 / statistics.median(seconds[3:]), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
