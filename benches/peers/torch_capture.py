#!/usr/bin/env python3
"""What a capture computes, in plain PyTorch: the teacher's forward pass, its top-k log-probabilities and the tail's.

    python3 benches/peers/torch_capture.py [--precision bf16] [--device cuda] [--steps 8] [--threads 2]

SmolLM2-135M's shape with random weights (the work is the same), two sequences of 512 tokens at a time, top 64. With bf16 the whole
model is bfloat16, as a teacher is loaded for that. Prints one JSON object; tokens_per_second is the median over the
batches after a warm-up, peak_memory the process's largest resident set in bytes, with `--device cuda` the most that PyTorch had
allocated there.
"""

import argparse
import json
import statistics
import time

import torch
import transformers

from torch_step import SMOLLM2_135M, peak_memory


def main():
    parser = argparse.ArgumentParser(description="PyTorch peer of a capture")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="measured batches")
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(num_hidden_layers=30, **SMOLLM2_135M)
    config._attn_implementation = "sdpa"
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    teacher = transformers.LlamaForCausalLM(config).eval().to(args.device, dtype)
    seconds = []
    with torch.inference_mode():
        for _ in range(2 + args.steps):
            ids = torch.randint(config.vocab_size, (args.batch, args.tokens)).to(args.device)
            start = time.perf_counter()
            logits = teacher(input_ids=ids, use_cache=False).logits.float()
            top = logits.topk(args.top_k, dim=-1)
            log_probs = top.values - logits.logsumexp(-1, keepdim=True)
            tail = torch.log1p(-log_probs.exp().sum(-1).clamp(max=1 - 1e-6))
            tail.cpu().numpy(), log_probs.cpu().numpy(), top.indices.cpu().numpy()
            seconds.append(time.perf_counter() - start)
    print(json.dumps({
        "tokens_per_second": args.batch * args.tokens / statistics.median(seconds[2:]),
        "peak_memory": peak_memory(args.device),
        "torch": torch.__version__,
    }))


if __name__ == "__main__":
    main()
