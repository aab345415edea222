#!/usr/bin/env python3
"""Makes tests/golden/lora: adapters of a tiny Llama as PEFT computes and saves them.

    python3 tests/golden/make_lora_golden.py        # needs torch, transformers and peft; CPU, a few seconds

The model is the folder `biases` of make_llama_golden.py (untied, biases everywhere). Each adapter is a folder that PEFT
saved (adapter_config.json, adapter_model.safetensors) with A, B and the magnitudes random from a fixed seed, plus
golden.safetensors, computed in f32 with eager attention on one thread over the batch of biases/golden.safetensors:
    logits         [B, T, V]
    loss           [1]        mean cross-entropy over the rows whose label counts
    grad.<name>    d loss / d parameter, for every trained parameter, under its name in adapter_model.safetensors
"""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

HERE = Path(__file__).resolve().parent
BASE = HERE / "biases"
CASES = {
    "lora": {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"},
    "rslora": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "use_dora": True,
             "modules_to_save": ["lm_head", "embed_tokens"]},
}


def stored(name):
    """The name in adapter_model.safetensors of a parameter of the wrapped model."""
    name = name.replace(".modules_to_save.default", "").replace(".default", "")
    return name.removesuffix(".weight") if "magnitude" in name else name


def main():
    torch.set_num_threads(1)
    with safe_open(BASE / "golden.safetensors", "pt") as golden:
        ids, labels = golden.get_tensor("input_ids").long(), golden.get_tensor("labels").long()
    shutil.rmtree(HERE / "lora", ignore_errors=True)
    for case, (name, settings) in enumerate(CASES.items()):
        generator = torch.Generator().manual_seed(20462 + case)
        model = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="eager")
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings)).train()
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for parameter_name, parameter in sorted(trained.items()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "magnitude" in parameter_name:
                parameter.data *= 1 + 0.2 * noise
            else:
                parameter.data = 0.2 * noise
        folder = HERE / "lora" / name
        # The model lies beside the adapters wherever the repository is.
        model.peft_config["default"].base_model_name_or_path = "biases"
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss.backward()
        out = {"logits": logits.detach(), "loss": loss.detach().reshape(1)}
        out |= {f"grad.{stored(n)}": p.grad.clone() for n, p in trained.items()}
        save_file(out, folder / "golden.safetensors")
        with safe_open(folder / "adapter_model.safetensors", "pt") as saved:
            assert set(saved.keys()) == {stored(n) for n in trained}, name
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
