#!/usr/bin/env python3
"""The quickstart's training step written in plain PyTorch: the peer that our own step is measured beside.

    python3 benches/torch_step.py [--steps 10] [--threads 2]      # needs torch and transformers; about 2.3 GB; CPU, f32

The student is a Llama of SmolLM2-135M's shape with only the chosen layers (random weights: the work is the same). One
step is forward, 0.1 cross-entropy + 0.9 forward KL against a stored top-k teacher with a ghost bucket, backward,
clipping to norm 1 and AdamW, on 512 tokens. It is what one would write by hand: whole logits, log_softmax, gather.
Prints one JSON object; tokens_per_second is the median over the steps after the warm-up, peak_memory_bytes the
process's largest resident set.
"""

import argparse
import json
import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F
import transformers

SMOLLM2_135M = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}


def make_student(layers, attention):
    config = transformers.LlamaConfig(num_hidden_layers=len(layers), **SMOLLM2_135M)
    config._attn_implementation = attention
    return transformers.LlamaForCausalLM(config).train()


def make_batch(args, vocabulary):
    """Random tokens; a teacher whose best guess is the true next token, so that the loss has somewhere to go."""
    ids = torch.randint(vocabulary, (args.batch, args.tokens))
    labels = ids.roll(-1, dims=1)
    labels[:, -1] = -100
    top_ids = torch.randint(vocabulary, (args.batch, args.tokens, args.top_k))
    top_ids[..., 0] = ids.roll(-1, dims=1)
    scores = torch.randn(args.batch, args.tokens, args.top_k + 1).sort(descending=True).values * 2.0
    log_probs = scores.log_softmax(-1)
    return ids, labels, top_ids, log_probs[..., :-1], log_probs[..., -1]


def loss_of(logits, labels, top_ids, top_log_probs, tail_log_prob):
    valid = labels != -100
    log_q = logits.log_softmax(-1)
    cross_entropy = F.nll_loss(log_q.flatten(0, 1), labels.flatten(), ignore_index=-100)
    top_log_q = log_q.gather(-1, top_ids)
    tail_log_q = torch.log1p(-top_log_q.exp().sum(-1).clamp(max=1 - 1e-6))
    kl = (top_log_probs.exp() * (top_log_probs - top_log_q)).sum(-1)
    kl = kl + tail_log_prob.exp() * (tail_log_prob - tail_log_q)
    return 0.1 * cross_entropy + 0.9 * kl[valid].mean()


def peak_memory_bytes():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def parse_arguments():
    parser = argparse.ArgumentParser(description="PyTorch peer of the quickstart's training step")
    layers = "0,1,5,10,15,20,25,28,29"
    parser.add_argument("--layers", default=layers, help="layers of the teacher; only their number matters")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="measured steps")
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    return parser.parse_args()


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    student = make_student(args.layers.split(","), args.attention)
    matrices = [p for p in student.parameters() if p.dim() >= 2]
    vectors = [p for p in student.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.95), eps=1e-8)
    ids, *target = make_batch(args, SMOLLM2_135M["vocab_size"])

    losses, seconds = [], []
    for _ in range(args.warm_up + args.steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(student(input_ids=ids, use_cache=False).logits, *target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)

    median = statistics.median(seconds[args.warm_up :])
    result = {
        "tokens_per_second": round(args.batch * args.tokens / median, 1),
        "seconds_per_step": round(median, 4),
        "peak_memory_bytes": peak_memory_bytes(),
        "parameters": sum(p.numel() for p in student.parameters()),
        "tokens_per_step": args.batch * args.tokens,
        "layers": len(args.layers.split(",")),
        "threads": torch.get_num_threads(),
        "attention": args.attention,
        "torch": torch.__version__,
        "step_losses": [round(loss, 5) for loss in losses],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
