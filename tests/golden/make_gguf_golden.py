"""Writes the GGUF fixtures of tests/formats.rs, each with what an independent reader makes of it.

    python tests/golden/make_gguf_golden.py

needs numpy, gguf, safetensors, tokenizers, sentencepiece. Everything is seeded; running it again changes nothing.

families/qwen2/model.gguf, .../qwen3/...  the folders beside them, as llama.cpp names and lays out these families
quants.gguf / quants.safetensors          one tensor a type, random blocks; the gguf package's dequantisation
tiny_llama.gguf / tiny_llama.safetensors  one layer, every optional tensor; weights in transformers' layout
smallest.gguf                             the least that opens, for truncations and bit flips
spm.gguf / tokenizers.json                a SentencePiece BPE; texts with their ids by sentencepiece and by tokenizers
gpt-2.gguf, llama-bpe.gguf, qwen2.gguf    byte-level BPE under three pre-tokenizers, for the same texts
smollm_tokenizer.json                     the tokenizer of tiny_llama.gguf as a tokenizer.json

llama_cpp.json is not made here: its ids are llama.cpp's (through node-llama-cpp 3.22) for gpt-2.gguf's vocabulary with
`tokenizer.ggml.pre` set to `default`.
"""

import io
import json
import math
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import tokenizers
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
TYPES = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K".split()
# Byte offsets of the f16 scales in a block, made finite; any other byte may be anything.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
TEXTS = ["Hello world 123", "It's the o'clock, isn't IT'S?  two  spaces\n\nand\tlines\r\n",
         "naïve café — 你好 🙂 3.14159",
         " leading and trailing ", "x", "don't STOP!!! (a+b)^2 <= 1000000 | $5 ~ ok"]
CORPUS = ["the still separates the lighter part from the heavy part and the rest stays behind in the still",
          "it's a world of hello and of numbers 123 456 7890 and it isn't the only one",
          "leading spaces and trailing lines",
          "distillation by boiling and condensing: two spaces, two lines, two worlds"] * 4


def write(path, fill, architecture="llama"):
    writer = gguf.GGUFWriter(HERE / path, architecture)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_blocks(rng, name):
    """Two rows of 256 values in random bytes, scales finite."""
    kind = gguf.GGMLQuantizationType[name]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (2, 256 // values, size), dtype=np.uint8)
    for at in SCALES.get(name, []):
        scale = rng.normal(0, 0.1, (2, 256 // values)).astype(np.float16)
        data[:, :, at:at + 2] = scale[..., None].view(np.uint8)
    if name in ("F32", "F16", "BF16"):
        floats = rng.normal(0, 1, (2, 256)).astype(np.float32)
        data = gguf.quants.quantize(floats, kind).view(np.uint8)
    return kind, data.reshape(2, -1)


def quants():
    rng = np.random.default_rng(1)
    expected = {}

    def fill(writer):
        for name in TYPES:
            kind, data = random_blocks(rng, name)
            expected[name] = np.ascontiguousarray(gguf.quants.dequantize(data, kind)).reshape(2, 256)
            if name in ("F32", "F16"):
                data = data.view({"F32": np.float32, "F16": np.float16}[name])
                writer.add_tensor(name, data)
            else:
                writer.add_tensor(name, data, raw_dtype=kind)

    write("quants.gguf", fill)
    save_file(expected, HERE / "quants.safetensors")


def permute(weights, heads):
    """llama.cpp's order of q and k rows: rotary pairs side by side."""
    rows = weights.shape[0]
    return weights.reshape(heads, 2, rows // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def llama3_factors(head_dim, theta, factor, low, high, length):
    """transformers' _compute_llama3_parameters: by what each rotary frequency is divided."""
    out = []
    for i in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * i / head_dim)
        if wavelength < length / high:
            out.append(1.0)
        elif wavelength > length / low:
            out.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, dtype=np.float32)


def byte_bpe(kind):
    """A small byte-level BPE with the pre-tokenizer that a `tokenizer.ggml.pre` stands for."""
    from tokenizers import Regex, normalizers, pre_tokenizers as pre
    contractions = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    bytes_only = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    split = lambda regex: pre.Sequence([pre.Split(Regex(regex), "isolated"), bytes_only])
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=kind == "llama-bpe"))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.pre_tokenizer = {
        "gpt-2": pre.ByteLevel(add_prefix_space=False),
        "smollm": pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]),
        "llama-bpe": split(contractions + r"\p{N}{1,3}" + rest),
        "qwen2": split(contractions + r"\p{N}" + rest),
    }[kind]
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=340, special_tokens=["<|end|>"], show_progress=False,
                                             initial_alphabet=pre.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def add_byte_bpe(writer, tokenizer, kind, padded=0):
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    types = [3 if t == "<|end|>" else 1 for t in tokens] + [5] * padded
    tokens += [f"[PAD{len(tokens) + i}]" for i in range(padded)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_eos_token_id(vocab["<|end|>"])
    writer.add_bos_token_id(vocab["<|end|>"])
    writer.add_add_bos_token(False)


def tiny_llama():
    rng = np.random.default_rng(2)
    hidden, ffn, heads, kv, dim = 32, 24, 4, 2, 12
    tokenizer = byte_bpe("smollm")
    vocab = tokenizer.get_vocab_size() + 4
    layer = "model.layers.0."
    shapes = {"model.embed_tokens": (vocab, hidden), "model.norm": (hidden,), "lm_head": (vocab, hidden),
              layer + "input_layernorm": (hidden,), layer + "post_attention_layernorm": (hidden,),
              layer + "self_attn.q_proj": (heads * dim, hidden), layer + "self_attn.k_proj": (kv * dim, hidden),
              layer + "self_attn.v_proj": (kv * dim, hidden), layer + "self_attn.o_proj": (hidden, heads * dim),
              layer + "mlp.gate_proj": (ffn, hidden), layer + "mlp.up_proj": (ffn, hidden),
              layer + "mlp.down_proj": (hidden, ffn)}
    weights = {name + ".weight": rng.normal(0, 0.1, shape).astype(np.float16) for name, shape in shapes.items()}
    for part in "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj".split():
        weights[layer + part + ".bias"] = rng.normal(0, 0.1, shapes[layer + part][0]).astype(np.float32)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)

    def fill(writer):
        writer.add_block_count(1)
        writer.add_context_length(131072)
        writer.add_embedding_length(hidden)
        writer.add_feed_forward_length(ffn)
        writer.add_head_count(heads)
        writer.add_head_count_kv(kv)
        writer.add_key_length(dim)
        writer.add_rope_dimension_count(dim)
        writer.add_rope_freq_base(500000.0)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_chat_template("{{ messages[0]['content'] }}")
        add_byte_bpe(writer, tokenizer, "smollm", padded=4)
        writer.add_tensor("rope_freqs.weight", llama3_factors(dim, 500000.0, 32.0, 1.0, 4.0, 8192))
        for name in sorted(weights):
            data = weights[name]
            if "q_proj" in name or "k_proj" in name:
                data = permute(data, heads if "q_proj" in name else kv)
            quantised = name == "model.layers.0.self_attn.k_proj.weight"
            kind = gguf.GGMLQuantizationType.Q8_0
            if quantised:
                data = gguf.quants.quantize(data.astype(np.float32), kind)
                back = gguf.quants.dequantize(data, kind).reshape(kv, dim // 2, 2, hidden)
                weights[name] = np.ascontiguousarray(back.swapaxes(1, 2)).reshape(kv * dim, hidden)
            short = names.get_name(name, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(short, data, raw_dtype=kind if quantised else None)

    write("tiny_llama.gguf", fill)
    save_file(weights, HERE / "tiny_llama.safetensors")
    return tokenizer


def qwen(family, architecture):
    """The family's golden folder; what llama.cpp does not export, its sliding windows, is not in it."""
    folder = HERE / "families" / family
    config = json.loads((folder / "config.json").read_text())
    layers = config["num_hidden_layers"]
    names = gguf.get_tensor_name_map(architecture, layers)

    def fill(writer):
        writer.add_block_count(layers)
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        if "head_dim" in config:
            writer.add_key_length(config["head_dim"])
            writer.add_value_length(config["head_dim"])
        writer.add_rope_freq_base(1000000.0)
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        for name, data in sorted(load_file(folder / "model.safetensors").items()):
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), data)

    write(f"families/{family}/model.gguf", fill, gguf.MODEL_ARCH_NAMES[architecture])


def smallest():
    def fill(writer):
        writer.add_block_count(1)
        writer.add_context_length(8)
        writer.add_embedding_length(4)
        writer.add_feed_forward_length(4)
        writer.add_head_count(2)
        writer.add_head_count_kv(1)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(["a", "b", "ab", "<e>"])
        writer.add_token_types([1, 1, 1, 3])
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(3)
        writer.add_tensor("token_embd.weight", np.ones((4, 4), np.float32))
        writer.add_tensor("blk.0.attn_q.weight", np.ones((4, 4), np.float16))
        writer.add_tensor("blk.0.attn_k.weight", np.ones((2, 4), np.float16))

    write("smallest.gguf", fill)


def sentence_piece():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", vocab_size=400, byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        minloglevel=2)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kind = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1
    kinds = [kind(i) for i in range(sp.vocab_size())]

    def fill(writer):
        writer.add_tokenizer_model("llama")
        writer.add_token_list([sp.id_to_piece(i) for i in range(sp.vocab_size())])
        writer.add_token_scores([sp.get_score(i) for i in range(sp.vocab_size())])
        writer.add_token_types(kinds)
        writer.add_bos_token_id(sp.bos_id())
        writer.add_eos_token_id(sp.eos_id())
        writer.add_unk_token_id(sp.unk_id())

    write("spm.gguf", fill)
    return [sp.encode(text) for text in TEXTS], sp.bos_id()


def main():
    quants()
    smallest()
    qwen("qwen2", gguf.MODEL_ARCH.QWEN2)
    qwen("qwen3", gguf.MODEL_ARCH.QWEN3)
    smollm = tiny_llama()
    spm, bos = sentence_piece()
    out = {"texts": TEXTS, "spm": spm, "spm_bos": bos, "tokenizers": {},
           "smollm": [smollm.encode(t).ids for t in TEXTS]}
    for kind in ["gpt-2", "llama-bpe", "qwen2"]:
        tokenizer = byte_bpe(kind)
        out["tokenizers"][kind] = [tokenizer.encode(t).ids for t in TEXTS]
        write(f"{kind}.gguf", lambda writer: add_byte_bpe(writer, tokenizer, kind))
    smollm.save(str(HERE / "smollm_tokenizer.json"), pretty=False)
    (HERE / "tokenizers.json").write_text(json.dumps(out, ensure_ascii=False) + "\n")


main()
