// loss[n] = T^2 D(p, q), dz += w T q (f - E_q f), f = dD/dq, with p = softmax(zt / T) of the teacher and
// q = softmax(z / T) of the student, both over the first `vocab` columns; which D, KIND says. `term` has each column's
// part of D and q f (up to a constant times q, which f - E_q f loses).
// One workgroup a row: a first pass sums both, a second writes the gradient. ADAPTIVE_KL finds before them the least
// probability of the head by bisection on the bits of a float, which order as the floats do; LOGIT_MSE the mean.
// Groups are numbered linearly over x and y.

const KIND: u32 = 0u;
const REVERSE_KL: u32 = 1u;
const JEFFREYS: u32 = 2u;
const JSD: u32 = 3u;
const SCALED_JSD: u32 = 4u;
const SKEW_KL: u32 = 5u;
const SKEW_REVERSE_KL: u32 = 6u;
const TVD: u32 = 7u;
const ADAPTIVE_KL: u32 = 8u;
const ALPHA_BETA: u32 = 9u;
const LOGIT_MSE: u32 = 10u;
const PARAMETERS: bool = KIND == JSD || KIND == SCALED_JSD || KIND == SKEW_KL || KIND == SKEW_REVERSE_KL
    || KIND == ADAPTIVE_KL || KIND == ALPHA_BETA;

struct Params {
    rows: u32,
    stride: u32,
    vocab: u32,
    first_row: u32,
    teacher_stride: u32,
    temperature: f32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> loss_rows: array<f32>;
@group(0) @binding(2) var<storage, read> z: array<f32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> teacher_z: array<f32>;
@group(0) @binding(5) var<storage, read> teacher_lse: array<f32>;
@group(0) @binding(6) var<storage, read> weights: array<f32>;
@group(0) @binding(7) var<storage, read> parameters: array<f32>;
@group(0) @binding(8) var<storage, read_write> dz: array<f32>;

var<workgroup> scratch: array<vec2<f32>, 256>;

fn sum_over_lanes(lane: u32, x: vec2<f32>) -> vec2<f32> {
    workgroupBarrier();
    scratch[lane] = x;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half >>= 1u) {
        if lane < half {
            scratch[lane] += scratch[lane + half];
        }
        workgroupBarrier();
    }
    return scratch[0];
}

fn max_over_lanes(lane: u32, x: vec2<f32>) -> vec2<f32> {
    workgroupBarrier();
    scratch[lane] = x;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half >>= 1u) {
        if lane < half {
            scratch[lane] = max(scratch[lane], scratch[lane + half]);
        }
        workgroupBarrier();
    }
    return scratch[0];
}

// e^x; 0 where the least normal float comes near, so that 0 times a sentinel is 0.
fn probability(x: f32) -> f32 {
    return select(exp(clamp(x, -87.0, 80.0)), 0.0, x < -87.0);
}

fn log_p(row: u32, j: u32) -> f32 {
    return p.scale * teacher_z[row * p.teacher_stride + j] - teacher_lse[row];
}

fn log_q(row: u32, j: u32) -> f32 {
    return p.scale * z[row * p.stride + j] - lse[row];
}

fn log_1p(x: f32) -> f32 {
    if abs(x) < 0.05 {
        return x * (1.0 - x * (0.5 - x * (0.33333333 - x * (0.25 - x * (0.2 - x * 0.16666667)))));
    }
    return log(max(1.0 + x, 1e-37));
}

fn exp_m1(x: f32) -> f32 {
    if abs(x) < 0.05 {
        return x * (1.0 + x * (0.5 + x * (0.16666667 + x * (0.041666667 + x * 0.0083333333))));
    }
    return exp(max(x, -87.0)) - 1.0;
}

// log m - log p and log m - log q of m = a p + (1 - a) q, from d = log p - log q; each by itself, for one from the other
// by adding d would cancel where m is near p or q.
fn mixture(d: f32, a: f32) -> vec2<f32> {
    if d > 20.0 {
        let to_p = log_1p((1.0 - a) * exp_m1(-d));
        return vec2<f32>(to_p, to_p + d);
    }
    let to_q = log_1p(a * exp_m1(d));
    if d < -20.0 {
        return vec2<f32>(to_q - d, to_q);
    }
    return vec2<f32>(log_1p((1.0 - a) * exp_m1(-d)), to_q);
}

fn quotient(a: f32, b: f32) -> f32 {
    return select(0.0, a / max(b, 1e-37), b > 0.0);
}

// A column's part of D and q f.
fn term(lp: f32, lq: f32, a: f32, b: f32) -> vec2<f32> {
    let d = lp - lq;
    let tp = probability(lp);
    let q = probability(lq);
    let forward = vec2<f32>(tp * d, -tp);
    let reverse = vec2<f32>(-q * d, -q * d);
    if KIND == REVERSE_KL {
        return reverse;
    }
    if KIND == JEFFREYS {
        return forward + reverse;
    }
    if KIND == JSD {
        let m = mixture(d, a);
        return vec2<f32>(-a * tp * m.x - (1.0 - a) * q * m.y, (a - 1.0) * q * m.y);
    }
    if KIND == SCALED_JSD {
        if a >= 1.0 {
            return reverse;
        }
        if a > 0.0 {
            let m = mixture(d, a);
            return vec2<f32>(-tp * m.x / (1.0 - a) - q * m.y / a, -q * m.y / a);
        }
        return forward;
    }
    if KIND == SKEW_KL {
        let ratio = quotient(tp, a * tp + (1.0 - a) * q);
        return vec2<f32>(-tp * mixture(d, a).x, (a - 1.0) * q * ratio);
    }
    if KIND == SKEW_REVERSE_KL {
        let to_q = mixture(d, 1.0 - a).y;
        let ratio = quotient(q, (1.0 - a) * tp + a * q);
        return vec2<f32>(-q * to_q, -q * (to_q + a * ratio));
    }
    if KIND == TVD {
        // What differs by rounding alone has no sign.
        return 0.5 * vec2<f32>(abs(q - tp), select(q * sign(q - tp), 0.0, abs(d) <= 1e-5));
    }
    if KIND == ADAPTIVE_KL {
        return a * forward + (1.0 - a) * reverse;
    }
    if KIND == ALPHA_BETA {
        let both = probability(a * lp + b * lq);
        let all_q = probability((a + b) * lq);
        let value = (a * probability((a + b) * lp) + b * all_q) / (a + b) - both;
        return vec2<f32>(value / (a * b), (all_q - both) / a);
    }
    return forward;
}

fn weight_of(row: u32) -> f32 {
    if row >= p.rows {
        return 0.0;
    }
    return weights[p.first_row + row];
}

// The share of sum |p - q| that falls on the head, whose probability is at most `mass`.
fn head_share(row: u32, lane: u32, live: bool, mass: f32) -> f32 {
    var low = 0u;
    var high = 0x3f800001u;
    for (var turn = 0u; turn < 30u; turn += 1u) {
        let middle = (low + high) / 2u;
        var sum = 0.0;
        if live {
            for (var j = lane; j < p.vocab; j += 256u) {
                let tp = probability(log_p(row, j));
                sum += select(0.0, tp, tp >= bitcast<f32>(middle));
            }
        }
        if sum_over_lanes(lane, vec2<f32>(sum, 0.0)).x <= mass {
            high = middle;
        } else {
            low = middle;
        }
    }
    // Halfway between the least of the head and the next below it, which rounding cannot confuse.
    let border = bitcast<f32>(high);
    var best = vec2<f32>(0.0, -2.0);
    if live {
        for (var j = lane; j < p.vocab; j += 256u) {
            let tp = probability(log_p(row, j));
            best = max(best, vec2<f32>(tp, select(-2.0, -tp, tp >= border)));
        }
    }
    best = max_over_lanes(lane, best);
    let least = min(0.5 * (border - best.y), best.x * (1.0 - 1e-6));
    var parts = vec2<f32>(0.0, 0.0);
    if live {
        for (var j = lane; j < p.vocab; j += 256u) {
            let tp = probability(log_p(row, j));
            let gap = abs(tp - probability(log_q(row, j)));
            parts += select(vec2<f32>(0.0, gap), vec2<f32>(gap, 0.0), tp >= least);
        }
    }
    parts = sum_over_lanes(lane, parts);
    let whole = parts.x + parts.y;
    return select(0.5, parts.x / max(whole, 1e-37), whole > 0.0);
}

// The mean difference of the logits.
fn mean_difference(row: u32, lane: u32, live: bool) -> f32 {
    var sum = 0.0;
    if live {
        for (var j = lane; j < p.vocab; j += 256u) {
            sum += z[row * p.stride + j] - teacher_z[row * p.teacher_stride + j];
        }
    }
    return sum_over_lanes(lane, vec2<f32>(sum, 0.0)).x / f32(p.vocab);
}

// A column's part of the loss and of its slope; `a` is what the row or the caller has for it.
fn column(row: u32, j: u32, a: f32, b: f32) -> vec2<f32> {
    if KIND == LOGIT_MSE {
        let c = z[row * p.stride + j] - teacher_z[row * p.teacher_stride + j] - a;
        return vec2<f32>(c * c, 2.0 * c) / f32(p.vocab);
    }
    return term(log_p(row, j), log_q(row, j), a, b);
}

// Computes and stores the row's loss; returns E_q f and both parameters.
fn loss(row: u32, lane: u32) -> vec3<f32> {
    let live = weight_of(row) != 0.0;
    var a = 0.0;
    var b = 0.0;
    if PARAMETERS {
        a = parameters[0];
        b = parameters[1];
    }
    if KIND == ADAPTIVE_KL {
        a = head_share(row, lane, live, a);
    }
    if KIND == LOGIT_MSE {
        a = mean_difference(row, lane, live);
    }
    var sums = vec2<f32>(0.0, 0.0);
    if live {
        for (var j = lane; j < p.vocab; j += 256u) {
            sums += column(row, j, a, b);
        }
    }
    sums = sum_over_lanes(lane, sums);
    if lane == 0u && row < p.rows {
        loss_rows[p.first_row + row] = p.temperature * p.temperature * sums.x;
    }
    // Logits are no distribution: nothing to project.
    return vec3<f32>(select(sums.y, 0.0, KIND == LOGIT_MSE), a, b);
}

@compute @workgroup_size(256)
fn value(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    loss(wid.y * groups.x + wid.x, lane);
}

@compute @workgroup_size(256)
fn gradient(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    let found = loss(row, lane);
    let factor = p.temperature * weight_of(row);
    if factor == 0.0 {
        return;
    }
    for (var j = lane; j < p.vocab; j += 256u) {
        let slope = column(row, j, found.y, found.z).y;
        dz[row * p.stride + j] += factor * (slope - probability(log_q(row, j)) * found.x);
    }
}
