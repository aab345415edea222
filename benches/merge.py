"""Merging, measured beside mergekit in one run: wall and processor time, peak memory, and the disk's own copy rate.

    python benches/merge.py --potstill target/release/potstill --mergekit mergekit-yaml --work DIR [ties] [linear]

`ties` merges three variants of a 135M-parameter model (SmolLM2's shape), `linear` three of a 1.1B-parameter one
(TinyLlama's). The weights are random, in bfloat16: what a merge costs does not depend on them. Without --mergekit only
potstill runs. Needs numpy.
"""

import argparse
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np

SHAPES = {
    "135m": dict(hidden=576, inner=1536, layers=30, kv=192, vocab=49152, heads=9, kv_heads=3, tied=True),
    "1.1b": dict(hidden=2048, inner=5632, layers=22, kv=256, vocab=32000, heads=32, kv_heads=4, tied=False),
}
WEIGHTS = {"base": None, "a": 0.6, "b": 0.4, "c": 0.5}


def tensors(shape):
    hidden, inner, kv, vocab = shape["hidden"], shape["inner"], shape["kv"], shape["vocab"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(shape["layers"]):
        name = f"model.layers.{layer}."
        yield name + "input_layernorm.weight", (hidden,)
        yield name + "mlp.down_proj.weight", (hidden, inner)
        yield name + "mlp.gate_proj.weight", (inner, hidden)
        yield name + "mlp.up_proj.weight", (inner, hidden)
        yield name + "post_attention_layernorm.weight", (hidden,)
        yield name + "self_attn.k_proj.weight", (kv, hidden)
        yield name + "self_attn.o_proj.weight", (hidden, hidden)
        yield name + "self_attn.q_proj.weight", (hidden, hidden)
        yield name + "self_attn.v_proj.weight", (kv, hidden)
    yield "model.norm.weight", (hidden,)
    if not shape["tied"]:
        yield "lm_head.weight", (vocab, hidden)


def write_model(folder, shape, seed):
    """Values of a normal distribution; the fine-tunes are the base plus a tenth of another one."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pools = [np.random.default_rng(s).standard_normal(1 << 22, dtype=np.float32) for s in (0, seed)]
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, size in tensors(shape):
        end = offset + 2 * int(np.prod(size))
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for i, (_, size) in enumerate(tensors(shape)):
            start, left = i * 7919, int(np.prod(size))
            while left:
                count = min(left, 1 << 22)
                base, change = (np.roll(pool[:count], start) for pool in pools)
                values = 0.02 * base + (0.002 * change if seed else 0)
                bits = values.astype(np.float32).view(np.uint32)
                file.write(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes())
                start, left = start + 104729, left - count
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", hidden_size=shape["hidden"],
        intermediate_size=shape["inner"], num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"], rms_norm_eps=1e-5, rope_theta=10000.0, vocab_size=shape["vocab"],
        max_position_embeddings=2048, tie_word_embeddings=shape["tied"], torch_dtype="bfloat16",
        bos_token_id=0, eos_token_id=0,
    )
    (folder / "config.json").write_text(json.dumps(config))


def forget(folder):
    """Lets the system drop the folder's files from its cache, so that they are read from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(command):
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command}: {errors[-2000:]}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def copy_rate(source, target):
    """Bytes read and written a second when a file is copied and synced."""
    forget(source.parent)
    start = time.perf_counter()
    shutil.copyfile(source, target)
    with open(target, "rb+") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    size = source.stat().st_size
    target.unlink()
    return 2 * size / seconds, size


def compare(method, size, options, cold):
    work = Path(options.work)
    models = work / size
    for seed, name in enumerate(WEIGHTS):
        if name != "base" or method == "ties":
            write_model(models / name, SHAPES[size], seed)
    config = work / f"{method}.yaml"
    density = ", density: 0.5" if method == "ties" else ""
    entries = [f"- {{model: {models / n}, parameters: {{weight: {w}{density}}}}}" for n, w in WEIGHTS.items() if w]
    base = f"base_model: {models / 'base'}\n" if method == "ties" else ""
    config.write_text(f"merge_method: {method}\n{base}dtype: bfloat16\nmodels:\n" + "\n".join(entries) + "\n")
    out = work / "out"
    commands = {"potstill": [options.potstill, "merge", str(config), str(out)]}
    if options.mergekit:
        commands["mergekit"] = [options.mergekit, str(config), str(out)]
    rows, rate = {name: [] for name in commands}, 0.0
    for _ in range(options.runs):
        if cold:
            bytes_per_second, one = copy_rate(models / "a" / "model.safetensors", work / "copy")
            rate = max(rate, bytes_per_second)
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            if cold:
                forget(models)
            rows[name].append(measured(command))
    shutil.rmtree(out, ignore_errors=True)
    print(f"{method}, three models of {size}, best of {options.runs}:")
    for name, runs in rows.items():
        wall, processor, memory = (min(column) for column in zip(*runs))
        line = f"  {name:9} {wall:7.2f} s wall, {processor:7.2f} s processor, {memory:6.0f} MiB peak"
        if cold:
            line += f", {4 * one / wall / rate:.0%} of the disk's copy rate ({rate / 1e6:.0f} MB/s read and written)"
        print(line)
    if options.mergekit:
        ours, theirs = ([min(column) for column in zip(*rows[name])] for name in ("potstill", "mergekit"))
        print("  ratios    " + ", ".join(f"{t / o:.1f}" for o, t in zip(ours, theirs)), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--potstill", default="target/release/potstill")
    parser.add_argument("--mergekit")
    parser.add_argument("--work", required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("what", nargs="*", choices=["ties", "linear"])
    options = parser.parse_args()
    for what in options.what or ["ties", "linear"]:
        compare(what, {"ties": "135m", "linear": "1.1b"}[what], options, cold=what == "linear")


if __name__ == "__main__":
    main()
