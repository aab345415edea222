"""Writes the three example sets of docs/shards.md with nothing but the standard library, as a second opinion on the
format. Prints each file's SHA-256 and the hex of its rows; the tests compare both with what the crate writes."""

import hashlib
import json
import math
import struct

F32 = lambda x: struct.unpack("<f", struct.pack("<f", x))[0]
NANO = lambda x: math.floor(F32(x) * 1e9 + 0.5)


def spec(record, temperatures, entropy=True):
    return {
        "teacher": {"name": "example/teacher", "digest": "7ea"},
        "tokenizer_digest": "70c",
        "vocab_size": 1000,
        "real_vocab_size": 990,
        "record": record,
        "temperatures": temperatures,
        "corpus_digest": "c09",
        "context_length": 8,
        "rows": 2,
        "rows_per_shard": 16384,
        "entropy": entropy,
    }


def pack(values, width):
    """A little-endian bit stream in whole words."""
    stream = sum(v << (i * width) for i, v in enumerate(values))
    return stream.to_bytes(-(-len(values) * width // 32) * 4, "little")


# Row 0: document start, context start, valid; its next token, 4, has probability 1/4. Row 1: the document's end.
TOKENS, FLAGS, NLL, ENTROPY = [17, 4], [7, 0], [-math.log(0.25), 0.0], [1.75, 0.5]
HEADS = [struct.pack("<If", t | f << 24, n) for t, f, n in zip(TOKENS, FLAGS, NLL)]
TOP_K = [  # (id, probability) by falling probability; the one other token with any has `tail`
    ([(512, 1 / 2), (4, 1 / 4), (985, 1 / 8), (3, 1 / 16)], 1 / 16),
    ([(256, 3 / 4), (77, 1 / 8), (640, 1 / 16), (17, 1 / 32)], 1 / 32),
]
SAMPLED = [[(4, 1), (512, 3), (985, 1)], [(256, 5), (0, 0), (0, 0)]]


def top_k_row(head, entries, tail):
    total = sum(math.sqrt(p) for _, p in entries) + math.sqrt(tail)  # T = 2: powers 1/2
    pairs = struct.pack("<4f", tail, 0.0, math.sqrt(tail) / total, math.log(total))
    codes = [math.floor(F32(math.log(p)) / -48.0 * 65535 + 0.5) for _, p in entries]
    return head + pairs + pack([i for i, _ in entries], 10) + pack(codes, 16)


def sampled_row(head, entries):
    return head + pack([i for i, _ in entries], 10) + pack([c for _, c in entries], 3)


def hidden_row(head, states):
    return head + struct.pack("<8e", *states)


def write(name, spec, layout, kind, rows, mean_tail, mean_unique, sums, version=1):
    compact = json.dumps(spec, separators=(",", ":")).encode()
    set_id = hashlib.sha256(compact).digest()
    stride = layout["stride_words"]
    header = b"potshard" + struct.pack("<IIIIQ", version, kind, stride, len(rows), 0) + set_id
    shard = header + b"".join(rows)
    assert all(len(r) == 4 * stride for r in rows)
    manifest = {
        "format": "potstill-shards", "version": version, "set_id": set_id.hex(), "shift": 1, "spec": spec, "layout": layout,
        "statistics": {"rows": 2, "valid_rows": 1, "documents": 1, "mean_nll": NANO(NLL[0]) / 1 * 1e-9,
                       "mean_entropy": NANO(1.75) / 1 * 1e-9 if spec["entropy"] else None,
                       "mean_tail_mass": mean_tail, "mean_unique": mean_unique},
        "shards": [{"file": "00000.shard", "first_row": 0, "rows": 2, "bytes": len(shard),
                    "sha256": hashlib.sha256(shard).hexdigest(), "sums": sums}],
    }
    body = json.dumps(manifest, indent=2)[:-2] + ",\n"
    text = body + '  "manifest_sha256": "' + hashlib.sha256(body.encode()).hexdigest() + '"\n}\n'
    print(name, "manifest.json", hashlib.sha256(text.encode()).hexdigest())
    print(name, "00000.shard", hashlib.sha256(shard).hexdigest())
    for part in [header] + rows:
        print("   ", part.hex(" ", 4))


def layout(stride, temperatures, entries, ids_at, values_at, value_bits, values, floor):
    return {"stride_words": stride, "temperatures_at": 2, "temperatures": temperatures, "entries": entries,
            "ids_at": ids_at, "id_bits": 10, "values_at": values_at, "value_bits": value_bits, "values": values,
            "floor": floor}


def sums(tail, unique):
    return {"valid_rows": 1, "documents": 1, "nll": NANO(NLL[0]), "entropy": NANO(1.75), "tail_mass": tail,
            "unique": unique}


write("top_k", spec({"kind": "top_k", "k": 4, "log_probs": "unorm16"}, [1.0, 2.0]),
      layout(10, 2, 4, 6, 8, 16, "unorm", -48.0), 0, [top_k_row(h, *r) for h, r in zip(HEADS, TOP_K)],
      62500000 / 1 * 1e-9, None, sums(62500000, 0))
write("sampled", spec({"kind": "sampled", "draws": 5, "max_unique": 3, "seed": 9}, [1.0]),
      layout(4, 0, 3, 2, 3, 3, "count", 0.0), 1, [sampled_row(h, r) for h, r in zip(HEADS, SAMPLED)],
      None, 3.0, sums(0, 3))
STATES = [[0.1, 3.0, -2.0, 1000.0, 1.0, -0.5, 65504.0, 2.0**-24], list(range(8))]
write("hidden", spec({"kind": "hidden", "states": "f16", "hidden_size": 4, "layers": [1, 3]}, [], False),
      {**layout(6, 0, 8, 2, 2, 16, "f16", 0.0), "id_bits": 0}, 2, [hidden_row(h, s) for h, s in zip(HEADS, STATES)],
      None, None, {**sums(0, 0), "entropy": 0}, version=2)
