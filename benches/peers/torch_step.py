#!/usr/bin/env python3
"""The training step that benches/speed measures, written in plain PyTorch.

    python3 benches/peers/torch_step.py [--losses top-k] [--precision bf16] [--compile] [--device cuda] [--steps 6] [--threads 2]

The student is a Llama of SmolLM2-135M's shape with six of its layers (random weights: the work is the same), one step is
512 tokens: forward, losses, backward, clipping to norm 1, AdamW. `--losses`:

  sft         cross-entropy
  top-k       0.1 cross-entropy + 0.9 forward KL against 64 stored tokens and a ghost bucket, as one would write it by
              hand: log_softmax of all logits, gather
  distillkit  the same loss as DistillKit's sparse losses go about it: the log-partition of all logits, then only the stored
              tokens' own
  dense       the KL over the whole vocabulary of a live SmolLM2-135M

`--precision bf16` is autocast: f32 weights and moments, bfloat16 products. Prints one JSON object; tokens_per_second is the
median over the steps after the warm-up, peak_memory the process's largest resident set in bytes, with `--device cuda` the most
that PyTorch had allocated there.
"""

import argparse
import contextlib
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


def make_model(layers):
    config = transformers.LlamaConfig(num_hidden_layers=layers, **SMOLLM2_135M)
    config._attn_implementation = "sdpa"
    return transformers.LlamaForCausalLM(config)


def make_batch(args, vocabulary):
    """Random tokens; a teacher whose best guess is the true next token, so that the loss has somewhere to go."""
    ids = torch.randint(vocabulary, (1, args.tokens))
    labels = ids.roll(-1, dims=1)
    labels[:, -1] = -100
    top_ids = torch.randint(vocabulary, (1, args.tokens, args.top_k))
    top_ids[..., 0] = ids.roll(-1, dims=1)
    scores = torch.randn(1, args.tokens, args.top_k + 1).sort(descending=True).values * 2.0
    log_probs = scores.log_softmax(-1)
    return ids, labels, top_ids, log_probs[..., :-1], log_probs[..., -1]


def sparse_kl(top_log_q, top_log_probs, tail_log_prob, valid):
    tail_log_q = torch.log1p(-top_log_q.exp().sum(-1).clamp(max=1 - 1e-6))
    kl = (top_log_probs.exp() * (top_log_probs - top_log_q)).sum(-1)
    kl = kl + tail_log_prob.exp() * (tail_log_prob - tail_log_q)
    return kl[valid].mean()


def loss_of(args, logits, labels, top_ids, top_log_probs, tail_log_prob, teacher_logits):
    valid = labels != -100
    if args.losses == "sft":
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
    if args.losses == "distillkit":
        cross_entropy = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
        top_log_q = logits.gather(-1, top_ids).float() - logits.float().logsumexp(-1, keepdim=True)
        return 0.1 * cross_entropy + 0.9 * sparse_kl(top_log_q, top_log_probs, tail_log_prob, valid)
    log_q = logits.float().log_softmax(-1)
    cross_entropy = F.nll_loss(log_q.flatten(0, 1), labels.flatten(), ignore_index=-100)
    if args.losses == "dense":
        kl = F.kl_div(log_q, teacher_logits.float().log_softmax(-1), reduction="none", log_target=True).sum(-1)
        return 0.1 * cross_entropy + 0.9 * kl[valid].mean()
    return 0.1 * cross_entropy + 0.9 * sparse_kl(log_q.gather(-1, top_ids), top_log_probs, tail_log_prob, valid)


def peak_memory(device="cpu"):
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def parse_arguments():
    parser = argparse.ArgumentParser(description="PyTorch peer of a training step")
    parser.add_argument("--losses", default="top-k", choices=["sft", "top-k", "distillkit", "dense"])
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6, help="measured steps")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    student = make_model(args.layers).train().to(args.device)
    teacher = make_model(30).eval().to(args.device) if args.losses == "dense" else None
    matrices = [p for p in student.parameters() if p.dim() >= 2]
    vectors = [p for p in student.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.95), eps=1e-8)
    ids, *target = (tensor.to(args.device) for tensor in make_batch(args, SMOLLM2_135M["vocab_size"]))
    mixed = args.precision == "bf16"
    precision = lambda: torch.autocast(args.device, dtype=torch.bfloat16) if mixed else contextlib.nullcontext()

    def losses():
        with precision():
            with torch.no_grad():
                teacher_logits = teacher(input_ids=ids, use_cache=False).logits if teacher else None
            return loss_of(args, student(input_ids=ids, use_cache=False).logits, *target, teacher_logits)

    step = torch.compile(losses) if args.compile else losses
    found, seconds = [], []
    for _ in range(args.warm_up + args.steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = step()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        found.append(loss.item())
        seconds.append(time.perf_counter() - start)
    print(json.dumps({
        "tokens_per_second": args.tokens / statistics.median(seconds[args.warm_up :]),
        "peak_memory": peak_memory(args.device),
        "parameters": sum(p.numel() for p in student.parameters()),
        "torch": torch.__version__,
        "losses": [round(loss, 5) for loss in found],
    }))


if __name__ == "__main__":
    main()
