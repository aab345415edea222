"""Writes the golden values of DistillKit's stored forms: golden.json, the .parquet files and the folders in saved/.

An independent implementation of docs/distillkit.md in numpy (double precision, numpy.linalg.lstsq); the files are written
by pyarrow, the same tables in saved/ by `Dataset.save_to_disk`. Needs numpy, pyarrow and datasets:
python tests/golden/distillkit/make.py
"""

import json
import math
import struct
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
RNG = np.random.default_rng(7)


def to_bytes(x, kind):
    if kind == "float16":
        return np.float16(x).tobytes()
    if kind == "float32":
        return np.float32(x).tobytes()
    if kind == "float64":
        return np.float64(x).tobytes()
    word = int(np.float32(x).view(np.uint32))
    word += 0x7FFF + ((word >> 16) & 1)
    return struct.pack("<H", word >> 16)


def from_bytes(raw, kind):
    if kind == "bfloat16":
        return float(np.uint32(struct.unpack("<H", raw)[0] << 16).view(np.float32))
    return float(np.frombuffer(raw, {"float16": "<f2", "float32": "<f4", "float64": "<f8"}[kind])[0])


def rounded(x, kind):
    return from_bytes(to_bytes(x, kind), kind)


def bit_string(values, width):
    bits = "".join(format(int(v), "b").zfill(width) for v in values)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def basis(config, m):
    t = np.linspace(0, 1, m) if config["normalize_t"] else np.arange(m, dtype=np.float64)
    functions = {"sqrt": np.sqrt, "exp": np.exp}
    return np.stack([functions[i](t) if isinstance(i, str) else t**i for i in config["polynomial_terms"]], -1)


def encode(config, ids, log_probs):
    """Bytes of both columns, and the values that decoding must return."""
    lp = np.asarray(log_probs, np.float32)
    v = lp.copy()
    if config["delta_encoding"]:
        v[1:] = lp[1:] - lp[:-1]
    v = v.astype(np.float64)
    head = v[: config["exact_k"]]
    tail = v[config["exact_k"] :]
    out = b"".join(to_bytes(x, config["exact_dtype"]) for x in head)
    decoded = [rounded(x, config["exact_dtype"]) for x in head]
    fit = np.zeros(len(tail))
    if config["polynomial_terms"] and len(tail):
        kind = config["term_dtype"]
        x = basis(config, len(tail))
        coefficients = np.linalg.lstsq(x, tail, rcond=None)[0]
        out += b"".join(to_bytes(c, kind) for c in coefficients)
        c = [rounded(c, kind) for c in coefficients]
        fit = np.array(
            [rounded(sum(rounded(rounded(x, kind) * c, kind) for x, c in zip(row, c)), kind) for row in x]
        )
    residual = tail - fit
    back = np.zeros(len(tail))
    at, carried = 0, 0.0
    for b in config["residual_bins"]:
        n, bits = b["num_elements"], b["element_bits"]
        r = residual[at : at + n]
        wanted = np.abs(r).mean() if bits == 1 else np.abs(r).max() / 2 ** (bits - 1)
        scale = rounded(wanted, b["scale_dtype"]) or 1.0
        out += to_bytes(scale, b["scale_dtype"])
        codes = []
        for i, x in enumerate(r):
            x = x + carried
            if bits == 1:
                code = int(x >= 0)
                level = 2 * code - 1
            else:
                level = min(max(round(x / scale), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
                code = level + 2 ** (bits - 1)
            if config["error_diffusion"]:
                carried = x - level * scale
            codes.append(code)
            back[at + i] = level * scale
        out += bit_string(codes, bits)
        at += n
    decoded = np.array(decoded + list(fit + back))
    if config["delta_encoding"]:
        decoded = np.cumsum(decoded)
    width = math.ceil(math.log2(config["d"]))
    return out, bit_string(ids, width), decoded


def distribution(d, k, sharpness=1.0, allowed=None):
    """k ids and falling log-probabilities of a random distribution over d ids."""
    logits = RNG.normal(size=d) * 2.5 * sharpness
    if allowed is not None:
        logits[allowed:] = -60
    lp = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    order = np.argsort(-lp)[:k]
    return order.tolist(), lp[order].astype(np.float32).tolist()


def config(d, k, exact_k, exact, terms, term, bins, delta=False, diffusion=False, normalise=False):
    bins = [dict(scale_dtype=s, element_bits=b, num_elements=n) for s, b, n in bins]
    return dict(
        d=d,
        k=k,
        exact_k=exact_k,
        exact_dtype=exact,
        polynomial_terms=terms,
        term_dtype=term,
        residual_bins=bins,
        delta_encoding=delta,
        error_diffusion=diffusion,
        normalize_t=normalise,
    )


F16, BF16, F32, F64 = "float16", "bfloat16", "float32", "float64"
CONFIGS = {
    "recommended, t from 0 to 1": config(151936, 64, 16, BF16, [0, 1, 2, 3, 4, "sqrt"], F32, [], normalise=True),
    "recommended as it stands": config(128256, 64, 16, BF16, [0, 1, 2, 3, 4, "sqrt"], F32, []),
    "budget": config(50257, 50, 1, BF16, [0, 1, "sqrt"], F32, []),
    "deltas": config(151936, 64, 32, F32, [0, 1, 2], F32, [], delta=True),
    "ids and exact values": config(129280, 32, 32, BF16, [], F32, []),
    "half precision, three bins": config(
        1000, 40, 4, F16, [0, 1, "sqrt"], F32, [(F16, 8, 8), (BF16, 5, 12), (F32, 3, 7)]
    ),
    "exp": config(1000, 24, 2, F64, [0, 1, "exp"], F64, [(F64, 16, 10)], normalise=True),
    "coefficients in half precision": config(
        1000, 24, 4, F32, [0, 1, 2, "sqrt"], F16, [(F32, 12, 20)], normalise=True
    ),
    "coefficients in bfloat16": config(1000, 24, 4, F32, [0, "sqrt"], BF16, [(F32, 6, 9), (F16, 2, 11)], normalise=True),
    "bins without a polynomial": config(1000, 20, 3, F32, [], F32, [(F32, 9, 17)]),
    "one bit": config(1000, 20, 3, F32, [0, 1], F32, [(F16, 1, 17)]),
    "one bit and deltas": config(1000, 20, 3, F32, [0, 1], F32, [(F32, 1, 9), (F32, 4, 8)], delta=True),
    "error diffusion": config(
        1000, 24, 4, F16, [0, 1, "sqrt"], F32, [(F32, 4, 8), (F16, 3, 12)], delta=True, diffusion=True
    ),
    "wide": config(65537, 12, 0, F32, [], F32, [(F64, 16, 6), (F32, 13, 6)]),
}


def codecs():
    cases = []
    for name, c in CONFIGS.items():
        for sharpness in (0.6, 1.6):
            ids, lp = distribution(c["d"], c["k"], sharpness)
            values, indices, decoded = encode(c, ids, lp)
            cases.append(
                dict(
                    name=name,
                    config=c,
                    ids=ids,
                    log_probs=lp,
                    compressed_logprobs=values.hex(),
                    bytepacked_indices=indices.hex(),
                    decoded=[float(f"{x:.9g}") for x in decoded],
                )
            )
    return cases


def words(ids, width):
    per = 64 // width
    padded = ids + [0] * (-len(ids) % per)
    return [sum(id << (width * i) for i, id in enumerate(padded[at : at + per])) for at in range(0, len(padded), per)]


LEGACIES = {
    "inverted": dict(k=20, exact_k=6, polynomial_degree=5, vocab_size=1000),
    "square root": dict(k=20, exact_k=4, polynomial_degree=2, vocab_size=340, with_sqrt_term=True),
    "positive powers in bfloat16": dict(
        k=9, exact_k=3, polynomial_degree=1, vocab_size=340, invert_polynomial=False, term_dtype="bfloat16"
    ),
    "nothing but exact": dict(k=7, exact_k=7, polynomial_degree=0, vocab_size=129280),
}


def legacy_position(c, ids, logits):
    m = c["k"] - c["exact_k"]
    a = np.arange(1, m + 1, dtype=np.float64)
    sign = -1 if c.get("invert_polynomial", True) else 1
    columns = [a ** (sign * i) for i in range(c["polynomial_degree"] + 1)]
    if c.get("with_sqrt_term"):
        columns.append(np.sqrt(a))
    exact = [float(np.float16(x)) for x in logits[: c["exact_k"]]]
    coefficients, fit = [], []
    if m:
        x = np.stack(columns, -1)
        kind = c.get("term_dtype", "float32")
        coefficients = [rounded(v, kind) for v in np.linalg.lstsq(x, np.array(logits[c["exact_k"] :]), rcond=None)[0]]
        fit = (x @ np.array(coefficients)).tolist()
    return words(ids, math.ceil(math.log2(c["vocab_size"]))), exact, coefficients, exact + fit


def centred(d, k, allowed=None):
    ids, lp = distribution(d, k, 1.0, allowed)
    return ids, [x + 9.0 for x in lp]


def legacies():
    cases = []
    for name, c in LEGACIES.items():
        for _ in range(2):
            ids, logits = centred(c["vocab_size"], c["k"])
            packed, exact, coefficients, decoded = legacy_position(c, ids, logits)
            cases.append(
                dict(
                    name=name,
                    config=c,
                    ids=ids,
                    packed_indices=[str(w) for w in packed],
                    exact_values=exact,
                    coeffs=coefficients,
                    decoded=[float(f"{x:.9g}") for x in decoded],
                )
            )
    return cases


TABLE_NEW = config(384, 16, 4, F16, [0, 1, "sqrt"], F32, [(F16, 8, 10)], normalise=True)
TABLE_LEGACY = dict(k=10, exact_k=4, polynomial_degree=3, vocab_size=340)
VOCABULARY = 340


def tokens(n):
    return RNG.integers(1, VOCABULARY, n).tolist()


def save(table, name, **how):
    datasets.Dataset(table).save_to_disk(HERE / "saved" / name, **how)


def tables():
    """The three forms as files, each with another compression, page version and shape of lists."""
    expected = {}

    # New: as captured, one record less than tokens; one row has as many as tokens; one is a single token.
    rows = []
    for n, m in ((9, 8), (5, 5), (1, 0), (12, 11)):
        made = [distribution(384, 16, 1.2, VOCABULARY) for _ in range(m)]
        coded = [encode(TABLE_NEW, ids, lp) for ids, lp in made]
        rows.append((tokens(n), [(ids, c[2].tolist()) for (ids, _), c in zip(made, coded)], coded))
    table = pa.table(
        {
            "input_ids": pa.array([r[0] for r in rows], pa.list_(pa.uint64())),
            "compressed_logprobs": pa.array([[list(c[0]) for c in r[2]] for r in rows], pa.list_(pa.list_(pa.uint8()))),
            "bytepacked_indices": pa.array([[list(c[1]) for c in r[2]] for r in rows], pa.list_(pa.list_(pa.uint8()))),
        }
    )
    pq.write_table(table, HERE / "new.parquet", compression="snappy", row_group_size=2)
    save(table, "new", num_shards=3)
    expected["new"] = dict(
        config=TABLE_NEW, rows=[dict(input_ids=r[0], documents=[[0, len(r[0])]], records=r[1]) for r in rows]
    )

    # Legacy: packed, three documents and padding in a row.
    rows = []
    for mask in ([1, 1, 1, 1, 2, 2, 3, 3, 3, 3], [1] * 7 + [0] * 3):
        made = [centred(VOCABULARY, 10) for _ in mask]
        rows.append((tokens(len(mask)), mask, [(ids, legacy_position(TABLE_LEGACY, ids, v)) for ids, v in made]))
    table = pa.table(
        {
            "input_ids": pa.array([r[0] for r in rows], pa.large_list(pa.int32())),
            "attention_mask": pa.array([r[1] for r in rows], pa.list_(pa.int8())),
            "packed_indices": pa.array([[p[1][0] for p in r[2]] for r in rows], pa.list_(pa.list_(pa.uint64()))),
            "exact_values": pa.array([[p[1][1] for p in r[2]] for r in rows], pa.list_(pa.list_(pa.float32()))),
            "coeffs": pa.array([[p[1][2] for p in r[2]] for r in rows], pa.list_(pa.list_(pa.float32()))),
            "source": pa.array(["a", "b"]),
        }
    )
    pq.write_table(table, HERE / "legacy.parquet", compression="zstd", data_page_version="2.0")
    # A column to pass over stands first, and the data set is one of a dictionary.
    table = table.select([5, 0, 1, 2, 3, 4])
    datasets.DatasetDict(train=datasets.Dataset(table)).save_to_disk(HERE / "saved/legacy")
    expected["legacy"] = dict(
        config=TABLE_LEGACY,
        rows=[
            dict(input_ids=rows[0][0], documents=[[0, 4], [4, 6], [6, 10]]),
            dict(input_ids=rows[1][0], documents=[[0, 7]]),
        ],
    )
    for out, row in zip(expected["legacy"]["rows"], rows):
        out["records"] = [(p[0], p[1][3]) for p in row[2]]

    # Raw: logits in half precision, labels, small pages.
    rows = []
    for n in (6, 8):
        made = [centred(VOCABULARY, 6) for _ in range(n)]
        made = [(ids, [float(np.float16(x)) for x in values]) for ids, values in made]
        ids = tokens(n)
        rows.append((ids, [-100 if i < 2 else id for i, id in enumerate(ids)], made))
    table = pa.table(
        {
            "input_ids": pa.array([r[0] for r in rows], pa.list_(pa.int64())),
            "labels": pa.array([r[1] for r in rows], pa.list_(pa.int64())),
            "token_ids": pa.array([[p[0] for p in r[2]] for r in rows], pa.list_(pa.list_(pa.int32()))),
            "top_values": pa.array(
                [[np.array(p[1], np.float16) for p in r[2]] for r in rows], pa.list_(pa.list_(pa.float16()))
            ),
        }
    )
    pq.write_table(table, HERE / "raw.parquet", compression="gzip", data_page_size=64, use_dictionary=False)
    save(table, "raw")
    expected["raw"] = dict(
        rows=[dict(input_ids=r[0], labels=r[1], documents=[[0, len(r[0])]], records=r[2]) for r in rows]
    )

    # Raw log-probabilities, the rows' last position included or not.
    rows = []
    for n, m in ((4, 4), (3, 2)):
        rows.append((tokens(n), [distribution(VOCABULARY, 5, 1.3) for _ in range(m)]))
    table = pa.table(
        {
            "top_values": pa.array([[p[1] for p in r[1]] for r in rows], pa.list_(pa.list_(pa.float32()))),
            "token_ids": pa.array([[p[0] for p in r[1]] for r in rows], pa.large_list(pa.list_(pa.uint16()))),
            "input_ids": pa.array([r[0] for r in rows], pa.list_(pa.uint16())),
        }
    )
    pq.write_table(table, HERE / "raw_log_probs.parquet", compression="lz4")
    fixed = table["top_values"].cast(pa.list_(pa.list_(pa.float32(), 5)))
    save(table.set_column(0, "top_values", fixed), "raw_log_probs")
    expected["raw_log_probs"] = dict(
        rows=[dict(input_ids=r[0], documents=[[0, len(r[0])]], records=r[1]) for r in rows]
    )
    return expected


golden = dict(codecs=codecs(), legacies=legacies(), tables=tables())
(HERE / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
