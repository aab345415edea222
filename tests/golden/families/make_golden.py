#!/usr/bin/env python3
"""Makes the tiny folders and golden tensors of the model families beside Llama.

    python3 tests/golden/families/make_golden.py        # needs torch and transformers; CPU, about ten seconds

Every case is a folder beside this script that `transformers` itself can load, with random weights from a fixed seed and
a config.json that spells its options as published checkpoints do. golden.safetensors and packed.safetensors hold what
make_llama_golden.py says of its own, without the optimiser steps; all in f32 with eager attention on one thread.

packed.safetensors is one sequence of two documents that must not see each other. It is computed from each document
alone, with one loss over both, so that no mask of transformers' is involved. Every sliding window is shorter than the
documents, and every soft-cap low enough to bend. golden.safetensors also has
    greedy           [20]       how the first 10 tokens of the first sequence go on
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import make_llama_golden as llama  # noqa: E402

SEED = 71104
DOCUMENTS = [9, 15]
PROMPT, GREEDY = 10, 20

SIZES = {
    "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "torch_dtype": "float32",
}
GEMMA = SIZES | {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 12, "pad_token_id": 0, "rms_norm_eps": 1e-6}
CASES = {
    "mistral": SIZES | {
        "model_type": "mistral", "sliding_window": 7, "head_dim": 12, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "hidden_act": "silu",
    },
    "qwen2": SIZES | {
        "model_type": "qwen2", "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 6,
        "max_window_layers": 1, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True,
        "hidden_act": "silu",
    },
    "qwen3": SIZES | {
        "model_type": "qwen3", "head_dim": 10, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu",
        "attention_bias": True, "use_sliding_window": True, "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    "stablelm": SIZES | {
        "model_type": "stablelm", "hidden_size": 64, "layer_norm_eps": 1e-5, "rope_theta": 10000.0,
        "use_qkv_bias": True, "tie_word_embeddings": False, "hidden_act": "silu",
    },
    "stablelm_parallel": SIZES | {
        "model_type": "stablelm", "num_key_value_heads": 4, "layer_norm_eps": 1e-6, "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5, "use_parallel_residual": True, "tie_word_embeddings": True, "hidden_act": "silu",
    },
    "gpt2": {
        "model_type": "gpt2", "n_embd": 36, "n_layer": 2, "n_head": 3, "n_positions": 40, "vocab_size": 89,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "attn_pdrop": 0.0, "embd_pdrop": 0.0,
        "resid_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 1, "torch_dtype": "float32",
    },
    "gemma": GEMMA | {
        "model_type": "gemma", "hidden_act": "gelu", "num_key_value_heads": 1, "rope_theta": 10000.0,
    },
    "gemma2": GEMMA | {
        "model_type": "gemma2", "num_hidden_layers": 3, "sliding_window": 6, "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "gemma3_text": GEMMA | {
        "model_type": "gemma3_text", "num_hidden_layers": 4, "sliding_window": 6, "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 12, "rope_theta": 1000.0, "rope_local_base_freq": 10.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}


def random_weights(model, generator):
    """As llama.random_weights; Gemma's norms multiply by 1 + weight."""
    llama.random_weights(model, generator)
    if model.config.model_type.startswith("gemma"):
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data -= 1.0


def make_folder(name, config, generator):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    random_weights(model, generator)
    tied = model.config.tie_word_embeddings
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if tied:
        del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return folder, model.train()


def gradients(model):
    return {f"grad.{name}": p.grad.clone() for name, p in model.named_parameters()}


def make_packed(folder, model, generator):
    tokens = sum(DOCUMENTS)
    ids = torch.randint(3, model.config.vocab_size, (1, tokens), generator=generator)
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(DOCUMENTS)])
    positions = torch.cat([torch.arange(n) for n in DOCUMENTS])
    labels = torch.full_like(ids, llama.IGNORE)
    labels[0, :-1] = torch.where(documents[1:] == documents[:-1], ids[0, 1:], llama.IGNORE)
    model.zero_grad(set_to_none=True)
    logits = torch.cat([model(input_ids=part, use_cache=False).logits for part in ids.split(DOCUMENTS, dim=1)], dim=1)
    loss = llama.mean_loss(logits, labels)
    loss.backward()
    inputs = {"input_ids": ids, "labels": labels, "position_ids": positions[None], "document_ids": documents[None]}
    out = {"logits": logits.detach(), "loss": loss.detach().reshape(1)} | gradients(model)
    llama.save_golden(folder / "packed.safetensors", inputs | out)


def greedy(model, prompt):
    """Each time the whole text again, so that no cache is involved."""
    ids = prompt
    with torch.no_grad():
        for _ in range(GREEDY):
            best = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, best], dim=1)
    return ids[0, prompt.shape[1] :]


def make_case(name, config, generator):
    folder, model = make_folder(name, config, generator)
    ids, labels = llama.make_batch(model.config.vocab_size, generator)
    out = llama.forward_backward(model, ids, labels)
    inputs = {"input_ids": ids, "labels": labels, "greedy": greedy(model, ids[:1, :PROMPT])}
    llama.save_golden(folder / "golden.safetensors", inputs | out)
    make_packed(folder, model, generator)
    print(f"{name:18} loss {out['loss'].item():.4f}, logits sd {out['logits'].std().item():.2f}")


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for number, (name, config) in enumerate(CASES.items()):
        make_case(name, config, torch.Generator().manual_seed(SEED + number))


if __name__ == "__main__":
    main()
