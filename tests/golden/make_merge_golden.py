#!/usr/bin/env python3
"""Makes tests/golden/merge: four tiny Llamas and what mergekit makes of them.

    python3 tests/golden/make_merge_golden.py       # needs torch, transformers and mergekit 0.1.5; CPU, a minute

base, a, b and c are model folders (a, b and c are base plus noise; tied embeddings). golden.safetensors holds every
tensor of every case as CASE/NAME, and the configurations under `golden` in its metadata, with {a} for a's folder.
Everything is computed in f32. Methods with random masks are compared where nothing is masked.
"""

import json
import tempfile
from pathlib import Path

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent / "merge"
SHAPE = dict(vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=3, num_attention_heads=2,
             num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True)


def models(names, **parameters):
    """The `models` of a configuration: weights differ from model to model."""
    weights = {"a": 0.6, "b": 0.4, "c": 0.5}
    return [{"model": "{%s}" % n, "parameters": {"weight": weights[n], **parameters}} for n in names]


def plain(names):
    return [{"model": "{%s}" % n} for n in names]


def case(method, models, base=True, **more):
    document = {"merge_method": method, "models": models, "dtype": "float32", **more}
    return {**document, "base_model": "{base}"} if base else document


def stack(model, start, end, **parameters):
    source = {"model": "{%s}" % model, "layer_range": [start, end]}
    return {"sources": [{**source, "parameters": parameters} if parameters else source]}


GRADIENT = [{"filter": "self_attn", "value": [0, 0.5, 0.3, 1]}, {"filter": "mlp", "value": [1, 0.2]}, {"value": 0.5}]
CASES = {
    "linear": case("linear", models("abc"), base=False),
    "linear_sum": case("linear", models("abc"), base=False, parameters={"normalize": False}),
    "slerp": case("slerp", plain("a"), parameters={"t": 0.35}),
    "slerp_gradient": {
        "merge_method": "slerp", "base_model": "{a}", "dtype": "float32", "parameters": {"t": GRADIENT},
        "slices": [{"sources": [{"model": "{a}", "layer_range": [0, 3]}, {"model": "{b}", "layer_range": [0, 3]}]}],
    },
    "nuslerp": case("nuslerp", models("ab"), base=False),
    "nuslerp_base": case("nuslerp", models("ab")),
    "nuslerp_rows": case("nuslerp", models("ab"), base=False, parameters={"nuslerp_flatten": False}),
    "multislerp": case("multislerp", models("abc"), base=False),
    "multislerp_base": case("multislerp", models("abc")),
    "karcher": case("karcher", plain("abc"), base=False),
    "task_arithmetic": case("task_arithmetic", models("abc"), parameters={"lambda": 0.7}),
    "ties": case("ties", models("abc", density=0.4)),
    "ties_gradient": case("ties", models("abc", density=[1, 0.3]), parameters={"normalize": False}),
    "dare_linear": case("dare_linear", models("abc")),
    "dare_ties": case("dare_ties", models("abc")),
    "breadcrumbs": case("breadcrumbs", models("abc", density=0.6, gamma=0.2)),
    "breadcrumbs_ties": case("breadcrumbs_ties", models("abc", density=0.6, gamma=0.2)),
    "della": case("della", models("abc")),
    "della_linear": case("della_linear", models("abc")),
    "model_stock": case("model_stock", plain("abc")),
    "model_stock_rows": case("model_stock", plain("abc"), parameters={"filter_wise": True}),
    "arcee_fusion": case("arcee_fusion", plain("a")),
    "nearswap": case("nearswap", plain("a"), parameters={"t": 0.02}),
    "ram": case("ram", plain("abc"), parameters={"epsilon": 0.02}),
    "ramplus_tl": case("ramplus_tl", plain("abc"), parameters={"epsilon": 0.02, "r": 0.3, "alpha": 0.9}),
    "sce": case("sce", plain("abc"), parameters={"select_topk": 0.6}),
    "passthrough": {
        "merge_method": "passthrough", "dtype": "float32",
        "slices": [stack("a", 0, 2), stack("b", 1, 3, scale=[{"filter": "o_proj", "value": 0.5}, {"value": 1.0}])],
    },
}


def make_models():
    torch.manual_seed(20)
    base = LlamaForCausalLM(LlamaConfig(**SHAPE, initializer_range=0.2))
    for name, scale in [("base", 0.0), ("a", 0.03), ("b", 0.04), ("c", 0.05)]:
        model = LlamaForCausalLM(base.config)
        model.load_state_dict(base.state_dict())
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * scale)
        model.save_pretrained(HERE / name)
        for extra in ["generation_config.json"]:
            (HERE / name / extra).unlink(missing_ok=True)


def main():
    torch.set_num_threads(1)
    make_models()
    places = {name: str(HERE / name) for name in ["base", "a", "b", "c"]}
    golden = {}
    for name, document in CASES.items():
        text = yaml.safe_dump(document)
        for key, path in places.items():
            text = text.replace("{%s}" % key, path)
        with tempfile.TemporaryDirectory() as out:
            options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
            run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), out, options)
            for tensor, values in load_file(Path(out) / "model.safetensors").items():
                golden[f"{name}/{tensor}"] = values.float().contiguous()
    metadata = {"golden": json.dumps({name: yaml.safe_dump(document) for name, document in CASES.items()})}
    save_file(golden, HERE / "golden.safetensors", metadata)


if __name__ == "__main__":
    main()
