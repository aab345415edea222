#!/usr/bin/env python3
"""Makes the tiny Llama folders and golden tensors that the Rust models are tested against.

    python3 tests/golden/make_llama_golden.py        # needs torch and transformers; CPU, about ten seconds

Every case is a folder beside this script that `transformers` itself can load (`config.json` and safetensors with
random weights from a fixed seed), plus `golden.safetensors`. The golden tensors are computed from the folder as it was
saved, so rounding to bf16 or f16 on disk is part of the input, in f32 with eager attention on one thread.

golden.safetensors holds (B = 2 sequences, T = 24 tokens, V = vocabulary; all f32 but the ids and labels, i32):
    input_ids        [B, T]
    labels           [B, T]     target of row t, that is token t + 1; -100 = not counted. The last row never counts.
    logits           [B, T, V]
    loss             [1]        mean cross-entropy over the rows whose label counts
    grad.<name>      as <name>  d loss / d parameter, for every parameter; a tied embedding's has the head's part in it
    step_losses      [10]       that loss before each of ten optimiser steps on this same batch; the first equals `loss`
    step_grad_norms  [10]       global L2 norm of all gradients before clipping, at the same ten points
The file's metadata has one entry, `golden`: JSON with the hyper-parameters (`optimizer`), torch's and transformers'
versions, and `f32_noise`, how far this f32 run is from the same run in f64: max |difference| / max |value| of the
logits and of the worst gradient tensor, and the largest relative difference of a step loss. It is the floor under any
tolerance a test may ask for. (Adam's first step is lr * sign(g), so a gradient element that is only rounding noise
moves its parameter by a full lr either way; that is what sets the floor of the step losses.)

gqa_untied/packed.safetensors is one sequence of two documents (B = 1) that must not see each other: attention is causal
within a document and positions restart at 0. Besides the tensors above (without the steps) it has
    position_ids     [1, T]
    document_ids     [1, T]     0 for the first document's tokens, 1 for the second's
and the label of the last token of each document is -100.
"""

import copy
import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaForCausalLM
from transformers.models.llama import modeling_llama

HERE = Path(__file__).resolve().parent
SEED = 20462
BATCH, TOKENS, STEPS = 2, 24, 10
IGNORE = -100
OPTIMIZER = {
    "name": "AdamW", "lr": 5e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1,
    "weight_decay_on": "every tensor with two or more dimensions, embeddings and head included; no norm, no bias",
    "max_grad_norm": 1.0,
    "clip": "grads *= min(1, max_grad_norm / (norm + 1e-6))",
    "update": "m=b1*m+(1-b1)*g; v=b2*v+(1-b2)*g*g; p*=1-lr*wd; p-=lr/(1-b1^t)*m/(sqrt(v)/sqrt(1-b2^t)+eps), t from 1",
}

BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 97, "tie_word_embeddings": True,
    "attention_bias": False, "mlp_bias": False, "torch_dtype": "float32",
}
# Both spellings of the rotary settings occur: `rope_theta` with `rope_scaling` (up to transformers 4) and the newer
# `rope_parameters`.
CASES = {
    "mha_tied": {"num_key_value_heads": 4, "rope_theta": 10000.0},
    "gqa_untied": {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6, "vocab_size": 131,
        "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "head_dim": {"hidden_size": 40, "head_dim": 16, "vocab_size": 101, "rope_theta": 10000.0},
    "biases": {
        "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False,
        "vocab_size": 103, "rope_theta": 10000.0,
    },
    # Wave lengths at this theta run from 6 to 2600 tokens: some below 64/4, some between, some above 64/1.
    "rope_llama3": {
        "head_dim": 16, "rope_theta": 1000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "rope_linear": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "rope_yarn": {
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1000.0,
        },
    },
    "stored_bf16": {"torch_dtype": "bfloat16", "rope_theta": 10000.0},
    "stored_f16": {"torch_dtype": "float16", "rope_theta": 10000.0},
    "two_shards": {"tie_word_embeddings": False, "rope_theta": 10000.0},
}


def random_weights(model, generator):
    """Spread out, so that no weight is idle; the library's own start leaves biases at 0 and norms at 1."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() >= 2:
            parameter.data = 0.15 * noise
        elif name.endswith("bias"):
            parameter.data = 0.1 * noise
        else:
            parameter.data = 1.0 + 0.2 * noise


def save_weights(folder, model, dtype):
    tied = model.config.tie_word_embeddings
    state = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    if tied:
        del state["lm_head.weight"]
    if folder.name != "two_shards":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(state)
    halves = {1: names[: len(names) // 2], 2: names[len(names) // 2 :]}
    weight_map = {}
    for number, part in halves.items():
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= {name: file for name in part}
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def make_folder(name, changes, generator):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = BASE | changes
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    model = LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(folder))
    random_weights(model, generator)
    save_weights(folder, model, getattr(torch, config["torch_dtype"]))
    return folder


def load(folder):
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.train()


def make_batch(vocabulary, generator):
    ids = torch.randint(3, vocabulary, (BATCH, TOKENS), generator=generator)
    labels = torch.full_like(ids, IGNORE)
    labels[:, :-1] = ids[:, 1:]
    labels[0, :5] = IGNORE  # a prompt that is not trained on
    labels[1, 17:] = IGNORE  # padding at the end
    return ids, labels


def mean_loss(logits, labels):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)


def forward_backward(model, ids, labels, **inputs):
    model.zero_grad(set_to_none=True)
    logits = model(input_ids=ids, use_cache=False, **inputs).logits
    loss = mean_loss(logits, labels)
    loss.backward()
    out = {"logits": logits.detach(), "loss": loss.detach().reshape(1)}
    return out | {f"grad.{name}": p.grad.clone() for name, p in model.named_parameters()}


def train(model, ids, labels):
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": OPTIMIZER["weight_decay"]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    settings = {"lr": OPTIMIZER["lr"], "betas": tuple(OPTIMIZER["betas"]), "eps": OPTIMIZER["eps"]}
    optimizer = torch.optim.AdamW(groups, **settings)
    losses, norms = [], []
    for _ in range(STEPS):
        losses.append(forward_backward(model, ids, labels)["loss"])
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER["max_grad_norm"]).reshape(1))
        optimizer.step()
    return {"step_losses": torch.cat(losses), "step_grad_norms": torch.cat(norms)}


def rms_norm_any_dtype(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def attention_any_dtype(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    repeats = module.num_key_value_groups
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    weights = (query @ key.transpose(2, 3) * scaling + attention_mask).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def in_f64(model, ids, labels):
    """The same run in f64: transformers' norm and softmax always compute in f32, so both are replaced meanwhile."""
    norm, attention = modeling_llama.LlamaRMSNorm.forward, modeling_llama.eager_attention_forward
    modeling_llama.LlamaRMSNorm.forward = rms_norm_any_dtype
    modeling_llama.eager_attention_forward = attention_any_dtype
    try:
        model = copy.deepcopy(model).double()
        return forward_backward(model, ids, labels) | train(model, ids, labels)
    finally:
        modeling_llama.LlamaRMSNorm.forward = norm
        modeling_llama.eager_attention_forward = attention


def noise(single, double):
    def error(name):
        return ((single[name].double() - double[name]).abs().max() / double[name].abs().max()).item()

    worst = max((n for n in single if n.startswith("grad.")), key=error)
    losses = ((single["step_losses"].double() - double["step_losses"]) / double["step_losses"]).abs().max().item()
    found = {"logits": error("logits"), "gradients": error(worst), "step_losses": losses}
    return {key: float(f"{value:.2g}") for key, value in found.items()}


def save_golden(path, tensors, **metadata):
    out = {}
    for name, tensor in tensors.items():
        out[name] = tensor.to(torch.int32 if not tensor.is_floating_point() else torch.float32).contiguous()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "ignore_index": IGNORE}
    # One entry only: the writer orders several at random, and the files would differ from run to run.
    save_file(out, path, metadata={"golden": json.dumps(versions | metadata)})


def make_case(name, changes, generator):
    folder = make_folder(name, changes, generator)
    model = load(folder)
    ids, labels = make_batch(model.config.vocab_size, generator)
    double = in_f64(model, ids, labels)
    single = forward_backward(model, ids, labels)

    # transformers' own loss shifts labels that lie on the tokens themselves.
    unshifted = torch.cat([torch.full_like(labels[:, :1], IGNORE), labels[:, :-1]], dim=1)
    torch.testing.assert_close(model(input_ids=ids, labels=unshifted).loss.detach(), single["loss"][0])

    single |= train(model, ids, labels)
    found = noise(single, double)
    tensors = {"input_ids": ids, "labels": labels} | single
    save_golden(folder / "golden.safetensors", tensors, optimizer=OPTIMIZER, f32_noise=found)
    losses = single["step_losses"]
    spread = single["logits"].std().item()
    print(f"{name:12} loss {losses[0]:.4f} -> {losses[-1]:.4f}, logits sd {spread:.2f}, f32 noise {found}")


def make_packed(name, generator):
    folder = HERE / name
    model = load(folder)
    lengths = [9, TOKENS - 9]
    ids = torch.randint(3, model.config.vocab_size, (1, TOKENS), generator=generator)
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    positions = torch.cat([torch.arange(n) for n in lengths])
    labels = torch.full_like(ids, IGNORE)
    labels[0, :-1] = torch.where(documents[1:] == documents[:-1], ids[0, 1:], IGNORE)

    visible = (documents[:, None] == documents[None, :]) & torch.ones(TOKENS, TOKENS).tril().bool()
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
    out = forward_backward(model, ids, labels, attention_mask=mask, position_ids=positions[None])

    alone = [model(input_ids=part).logits for part in ids.split(lengths, dim=1)]
    torch.testing.assert_close(torch.cat(alone, dim=1).detach(), out["logits"], rtol=1e-5, atol=1e-5)

    inputs = {"input_ids": ids, "labels": labels, "position_ids": positions[None], "document_ids": documents[None]}
    save_golden(folder / "packed.safetensors", inputs | out)
    print(f"{name}/packed loss {out['loss'].item():.4f}, equal to the documents one by one")


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for number, (name, changes) in enumerate(CASES.items()):
        make_case(name, changes, torch.Generator().manual_seed(SEED + number))
    make_packed("gqa_untied", torch.Generator().manual_seed(SEED - 1))


if __name__ == "__main__":
    main()
