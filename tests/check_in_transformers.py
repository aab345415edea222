#!/usr/bin/env python3
"""Checks that a model folder means the same to transformers as to potstill: the same log-probabilities and greedy text.

    python3 tests/check_in_transformers.py FOLDER [LINES.jsonl] [--potstill target/release/potstill]

FOLDER is a Hugging Face folder (a student that `potstill distill` wrote, say). LINES.jsonl holds lines with `text` or
`input_ids`; without it a few built-in texts are used (a folder without a tokenizer takes only `input_ids`).
`potstill score --top 5` must give the same token ids, every log-probability and top-5 log-probability within 1e-4
(absolute) of transformers in f32, and the same best token wherever transformers' first and second lie further apart
than that. `potstill generate` must continue the first texts with the greedy text of transformers. Prints PASS or FAIL
with the numbers; leaves with 1 on FAIL. Needs torch and transformers; CPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-4
TOP = 5
TEXTS = [
    "Distillation separates a mixture by boiling and condensing: the lighter part rises first.",
    "My fellow citizens, the state of our Union is",
    "Call me Ishmael. Some years ago, never mind how long precisely,",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Hello world 123 \u2014 na\u00efve caf\u00e9, \u65e5\u672c.",
]


def parse_arguments():
    parser = argparse.ArgumentParser(description="Compare a model folder between transformers and potstill")
    parser.add_argument("folder", type=Path)
    parser.add_argument("lines", type=Path, nargs="?", help="JSON lines with `text` or `input_ids`")
    default = Path(__file__).resolve().parent.parent / "target" / "release" / "potstill"
    parser.add_argument("--potstill", type=Path, default=default, help="the command to compare with")
    parser.add_argument("--device", default="cpu", help="potstill's device")
    parser.add_argument("--max-tokens", type=int, default=32, help="length of the greedy texts")
    parser.add_argument("--texts", type=int, default=3, help="how many of the lines with `text` are continued")
    return parser.parse_args()


def run_potstill(args, *words):
    command = [str(args.potstill), *map(str, words), "--device", args.device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"FAIL: {' '.join(command)} left with {done.returncode}:\n{done.stderr}")
    return done.stdout


def potstill_scores(args, lines):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.flush()
        out = run_potstill(args, "score", args.folder, file.name, "--top", TOP)
    scores = [json.loads(line) for line in out.splitlines() if line.strip()]
    if len(scores) != len(lines):
        sys.exit(f"FAIL: {len(lines)} lines given to potstill score, {len(scores)} came back")
    return scores


class Comparison:
    """Collects the largest difference and every complaint."""

    def __init__(self):
        self.largest, self.numbers, self.complaints = 0.0, 0, []

    def number(self, where, ours, theirs):
        difference = abs(ours - theirs)
        self.numbers += 1
        self.largest = max(self.largest, difference)
        if not difference <= TOLERANCE:
            self.complain(f"{where}: potstill {ours:.6f}, transformers {theirs:.6f}, difference {difference:.2e}")

    def same(self, where, ours, theirs):
        if ours != theirs:
            self.complain(f"{where}: potstill {ours!r}, transformers {theirs!r}")

    def complain(self, message):
        self.complaints.append(message)


def token_ids(tokenizer, line):
    return line["input_ids"] if "input_ids" in line else tokenizer(line["text"])["input_ids"]


def log_probs(model, ids):
    """Row t is the distribution of token t + 1."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def compare_line(found, number, ids, rows, score):
    where = f"line {number}"
    found.same(f"{where}, first log-prob", score["logprobs"][0], None)
    for t in range(1, len(ids)):
        found.number(f"{where}, token {t}", score["logprobs"][t], rows[t - 1, ids[t]].item())


def compare_top(found, number, rows, score):
    """`top_logprobs` lies beside `logprobs`: entry t is about token t, and the first says nothing."""
    tops = score["top_logprobs"]
    for t in range(1, len(tops)):
        where = f"line {number}, token {t}, top {TOP}"
        found.same(f"{where}, number of entries", len(tops[t]), TOP)
        best = rows[t - 1].topk(TOP)
        for rank, (token, value) in enumerate(tops[t][:TOP]):
            found.number(f"{where}, id {token}", value, rows[t - 1, token].item())
            found.number(f"{where}, rank {rank}", value, best.values[rank].item())
        if best.values[0] - best.values[1] > TOLERANCE:
            found.same(f"{where}, best token", tops[t][0][0], best.indices[0].item())


def greedy(model, tokenizer, text, length):
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=length, do_sample=False, pad_token_id=0)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def compare_scores(found, args, model, tokenizer, lines):
    for number, (line, score) in enumerate(zip(lines, potstill_scores(args, lines)), 1):
        ids = token_ids(tokenizer, line)
        ours = (score["input_ids"], len(score["logprobs"]), len(score["top_logprobs"]))
        theirs = (ids, len(ids), len(ids))
        if ours != theirs:
            found.same(f"line {number}: input_ids, numbers of logprobs and of top_logprobs", ours, theirs)
            continue
        rows = log_probs(model, ids)
        compare_line(found, number, ids, rows, score)
        compare_top(found, number, rows, score)


def compare_texts(found, args, model, tokenizer, texts):
    for text in texts:
        words = ["generate", args.folder, "--prompt", text, "--max-tokens", args.max_tokens]
        ours = run_potstill(args, *words).removeprefix(text)
        theirs = greedy(model, tokenizer, text, args.max_tokens)
        found.same(f"continuation of {text[:30]!r}", ours.strip(), theirs.strip())


def main():
    args = parse_arguments()
    torch.set_num_threads(2)
    if args.lines:
        lines = [json.loads(line) for line in args.lines.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        lines = [{"text": text} for text in TEXTS]
    texts = [line["text"] for line in lines if "text" in line][: args.texts]
    tokenizer = AutoTokenizer.from_pretrained(args.folder) if texts else None
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32, attn_implementation="eager").eval()

    found = Comparison()
    compare_scores(found, args, model, tokenizer, lines)
    compare_texts(found, args, model, tokenizer, texts)
    for complaint in found.complaints[:20]:
        print(complaint)
    verdict = "FAIL" if found.complaints else "PASS"
    print(
        f"{verdict}: {len(lines)} lines, {found.numbers} log-probs, largest difference {found.largest:.2e} "
        f"(allowed {TOLERANCE:.0e}), {len(texts)} greedy texts, {len(found.complaints)} complaints"
    )
    return 1 if found.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
