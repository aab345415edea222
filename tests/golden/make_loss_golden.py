#!/usr/bin/env python3
"""Makes losses.safetensors: values and gradients of the losses on a few rows, by torch autograd in f64.

    python3 tests/golden/make_loss_golden.py          # needs torch and safetensors; a second

R = 5 rows, V = 37 tokens, k = 5. z are the student's logits, y the teacher's. Rows: 0 and 1 ordinary, 2 student equal
to teacher, 3 large student logits (up to 30), 4 a sharp teacher whose tail mass is about 1e-6. f64; ids and labels i32.

Inputs
    logits, teacher_logits       [R, V]
    labels                       [R]
    topk_ids, topk_log_probs     [R, k]   the teacher's k best tokens, best first, and l = log softmax(y) there (T = 1)
    tail_mass                    [R]      1 - sum exp(l), summed over the other tokens
    log_partition.t<T>           [R]      log sum over all V of exp(log softmax(y) / T); 0 at T = 1
    tail_mass.t<T>               [R]      tail mass of softmax(y / T)
    sample_ids.t<T>, sample_counts.t<T>   [R, N]  distinct tokens of N = 16 draws from softmax(y / T), rising, and how
                                          often each came; unused places hold id 0 with count 0
Outputs, for T = 1 and T = 1.7 (`t1`, `t1.7`): `<loss>.t<T>.value` [R] and `<loss>.t<T>.grad` [R, V], the gradient of
each row's own value by that row's logits (no mean over rows). All but cross_entropy carry the factor T^2.
With q = softmax(z / T), p = softmax(y / T), K = topk_ids:
    cross_entropy       -log softmax(z)[label]                            (t1 only)
    kl_dense            sum p (log p - log q)
    kl_ghost            sum_K p (log p - log q) + P (log P - log Q), P and Q the masses outside K; p on K is exact,
                        p_i = exp(l_i / T - log_partition)
    kl_zero             sum_K r (log r - log q), r = p renormalised over K; q over the whole vocabulary
    kl_sampled          sum t (log t - log q), t = counts / N
    sampled_ce          -sum t log q
DistillKit's sparse losses, as its trainer computes them for one row (eps = 1e-8), same names with `distillkit.` before
and `_zero` or `_symmetric_uniform` behind: kl, jsd, tvd. They differ from the ones above where T is not 1 and the tail
is kept: its tail is r^(1/T) with r the mass left over at T = 1, and the sum is renormalised. `jsd_dense` and
`tvd_dense` are the same for a whole teacher row. The file's metadata has one entry, `golden` (JSON: the settings).
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
ROWS, VOCABULARY, K, DRAWS = 5, 37, 5, 16
TEMPERATURES = {"t1": 1.0, "t1.7": 1.7}
EPS = 1e-8


def make_logits(generator):
    teacher = 2.0 * torch.randn(ROWS, VOCABULARY, generator=generator, dtype=torch.float64)
    student = teacher + torch.randn(ROWS, VOCABULARY, generator=generator, dtype=torch.float64)
    student[2] = teacher[2]
    student[3] = (torch.rand(VOCABULARY, generator=generator, dtype=torch.float64) * 60.0) - 30.0
    teacher[4] = teacher[4].clamp(max=1.0)
    teacher[4, torch.tensor([30, 2, 17, 9, 21])] = torch.tensor([17.0, 16.0, 15.5, 14.0, 13.5], dtype=torch.float64)
    return student, teacher


def outside(probabilities, ids):
    """Mass off the given ids, summed over those tokens: 1 - sum would lose a small tail."""
    return probabilities.scatter(-1, ids, 0.0).sum(-1)


def kl(p, log_p, log_q):
    return (p * (log_p - log_q)).sum(-1)


def cross_entropy(z, labels):
    return -z.log_softmax(-1).gather(-1, labels[:, None])[:, 0]


def kl_dense(z, y, t):
    log_p = (y / t).log_softmax(-1)
    return t * t * kl(log_p.exp(), log_p, (z / t).log_softmax(-1))


def kl_ghost(z, ids, log_p, tail, t):
    log_q = (z / t).log_softmax(-1)
    on_support = kl(log_p.exp(), log_p, log_q.gather(-1, ids))
    return t * t * (on_support + tail * (tail.log() - outside(log_q.exp(), ids).log()))


def kl_zero(z, ids, log_p, t):
    log_r = log_p.log_softmax(-1)
    return t * t * kl(log_r.exp(), log_r, (z / t).log_softmax(-1).gather(-1, ids))


def sampled(z, ids, counts, t):
    target = counts / counts.sum(-1, keepdim=True)
    log_q = (z / t).log_softmax(-1).gather(-1, ids)
    entropy = -torch.where(target > 0, target * target.clamp(min=EPS).log(), 0.0).sum(-1)
    ce = -(target * log_q).sum(-1)
    return t * t * (ce - entropy), t * t * ce


def distillkit_teacher(top_log_probs, t, symmetric):
    scaled = top_log_probs / t
    if not symmetric:
        return scaled.log_softmax(-1)
    if t == 1.0:
        return top_log_probs
    rest = (1.0 - top_log_probs.exp().sum(-1, keepdim=True)).clamp(0.0, 1.0)
    return scaled - (scaled.exp().sum(-1, keepdim=True) + rest ** (1.0 / t)).log()


def missing(probabilities):
    return 1.0 - probabilities.sum(-1).clamp(EPS, 1.0 - EPS)


def half_jsd(a, log_a, log_m):
    return torch.where(a > EPS, a * (log_a - log_m), 0.0)


def distillkit_sparse(z, ids, top_log_probs, t, symmetric):
    log_p = distillkit_teacher(top_log_probs, t, symmetric)
    log_q = (z / t).log_softmax(-1).gather(-1, ids)
    p, q = log_p.exp(), log_q.exp()
    tail_p, tail_q = missing(p), missing(q)
    log_m = ((p + q) / 2).clamp(min=EPS).log()
    kl_value = kl(p, log_p, log_q)
    jsd_value = 0.5 * (half_jsd(p, log_p, log_m) + half_jsd(q, log_q, log_m)).sum(-1)
    tvd_value = 0.5 * (p - q).abs().sum(-1)
    if symmetric:
        log_m_tail = ((tail_p + tail_q) / 2).clamp(min=EPS).log()
        halves = half_jsd(tail_p, tail_p.log(), log_m_tail) + half_jsd(tail_q, tail_q.log(), log_m_tail)
        kl_value = kl_value + tail_p * (tail_p.log() - tail_q.log())
        jsd_value = jsd_value + 0.5 * halves
        tvd_value = tvd_value + 0.5 * (tail_p - tail_q).abs()
    else:
        off = (1.0 - q.sum(-1)).clamp(min=0.0)
        jsd_value = jsd_value + 0.5 * torch.log(torch.tensor(2.0, dtype=z.dtype)) * off
        tvd_value = tvd_value + 0.5 * off
    return {"kl": t * t * kl_value, "jsd": t * t * jsd_value, "tvd": t * t * tvd_value}


def dense_jsd_tvd(z, y, t):
    log_p, log_q = (y / t).log_softmax(-1), (z / t).log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0, dtype=z.dtype))
    jsd = 0.5 * (kl(log_p.exp(), log_p, log_m) + kl(log_q.exp(), log_q, log_m))
    return {"jsd_dense": t * t * jsd, "tvd_dense": t * t * 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)}


def draw(y, t, generator):
    ids = torch.zeros(ROWS, DRAWS, dtype=torch.int64)
    counts = torch.zeros(ROWS, DRAWS, dtype=torch.float64)
    draws = torch.multinomial((y / t).softmax(-1), DRAWS, replacement=True, generator=generator)
    for row in range(ROWS):
        found, number = draws[row].unique(return_counts=True)
        ids[row, : len(found)] = found
        counts[row, : len(found)] = number.double()
    return ids, counts


def check_against_published_rows():
    """Values measured with DistillKit's own code: z = [2, 1, 0, -1], teacher 0.6 and 0.3 on tokens 0 and 1."""
    z = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    ids, top = torch.tensor([[0, 1]]), torch.tensor([[0.6, 0.3]], dtype=torch.float64).log()
    expected = {
        (1.0, False): (0.137009, 0.045510, 0.119203), (1.0, True): (0.010918, 0.002668, 0.063117),
        (2.0, False): (1.264360, 0.417159, 1.075766), (2.0, True): (0.072013, 0.018453, 0.303795),
    }
    for (t, symmetric), values in expected.items():
        found = distillkit_sparse(z, ids, top, t, symmetric)
        for name, value in zip(("kl", "jsd", "tvd"), values):
            assert abs(found[name].item() - value) < 1e-6, (t, symmetric, name, found[name].item(), value)
    y = torch.tensor([[0.6, 0.3, 0.06, 0.04]], dtype=torch.float64).log()
    for t, values in {1.0: (0.014943, 0.003725, 0.071059), 2.0: (0.022368, 0.005625, 0.182218)}.items():
        found = {"kl": kl_dense(z, y, t)} | dense_jsd_tvd(z, y, t)
        for value, expected_value in zip(found.values(), values):
            assert abs(value.item() - expected_value) < 1e-6, (t, value.item(), expected_value)


def main():
    check_against_published_rows()
    generator = torch.Generator().manual_seed(77)
    student, teacher = make_logits(generator)
    labels = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    log_teacher = teacher.log_softmax(-1)
    top, ids = log_teacher.topk(K, dim=-1)
    out = {
        "logits": student, "teacher_logits": teacher, "labels": labels,
        "topk_ids": ids, "topk_log_probs": top, "tail_mass": outside(log_teacher.exp(), ids),
    }
    z = student.clone().requires_grad_()

    def record(name, values):
        (grad,) = torch.autograd.grad(values.sum(), z, retain_graph=True)
        # Every loss is blind to a constant added to a row's logits.
        assert grad.sum(-1).abs().max() < 1e-10, name
        out[f"{name}.value"], out[f"{name}.grad"] = values.detach(), grad

    record("cross_entropy.t1", cross_entropy(z, labels))
    for suffix, t in TEMPERATURES.items():
        log_partition = (log_teacher / t).logsumexp(-1)
        tail = outside((teacher / t).softmax(-1), ids)
        log_p = top / t - log_partition[:, None]
        sample_ids, counts = draw(teacher, t, generator)
        out |= {f"log_partition.{suffix}": log_partition, f"tail_mass.{suffix}": tail}
        out |= {f"sample_ids.{suffix}": sample_ids, f"sample_counts.{suffix}": counts}
        sampled_kl, sampled_ce = sampled(z, sample_ids, counts, t)
        record(f"kl_dense.{suffix}", kl_dense(z, teacher, t))
        record(f"kl_ghost.{suffix}", kl_ghost(z, ids, log_p, tail, t))
        record(f"kl_zero.{suffix}", kl_zero(z, ids, log_p, t))
        record(f"kl_sampled.{suffix}", sampled_kl)
        record(f"sampled_ce.{suffix}", sampled_ce)
        for name, values in dense_jsd_tvd(z, teacher, t).items():
            record(f"{name}.{suffix}", values)
        for mode in ("zero", "symmetric_uniform"):
            for name, values in distillkit_sparse(z, ids, top, t, mode == "symmetric_uniform").items():
                record(f"distillkit.{name}_{mode}.{suffix}", values)

    tensors = {k: (v if v.is_floating_point() else v.to(torch.int32)).contiguous() for k, v in out.items()}
    settings = {"temperatures": TEMPERATURES, "k": K, "draws": DRAWS, "eps": EPS, "torch": torch.__version__}
    save_file(tensors, HERE / "losses.safetensors", metadata={"golden": json.dumps(settings)})
    for name, tensor in tensors.items():
        if name.endswith(".value"):
            print(f"{name:44}", " ".join(f"{value:.6g}" for value in tensor.tolist()))
    print("tail mass", out["tail_mass"].tolist())


if __name__ == "__main__":
    main()
