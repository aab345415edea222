// T^2 KL(p || q) of a sparse teacher row p against q = softmax(z / T), and dz += w d loss / d z.
// A row stores ids and log-probabilities on its support K; M = sum over K of p (+ tail P for GHOST) brings the stored
// masses to sum 1. Q = the student's mass off K, from a log-sum-exp over those columns alone: 1 - sum would cancel.
//   GHOST: value T^2 (sum over K of p log(p / q) + P log(P / Q))
//          gradient T (q - p) on K, T (Q - P) exp(z / T - lse_off) off K
//   else:  value T^2 sum over K of p log(p / q), gradient T (q - p) everywhere (p = 0 off K)
// One workgroup a row: mass; off-K log-sum-exp; value; then, in `gradient`, one more pass over the columns.
// A lane owns every 256th column and steps over its members of K. Groups are numbered linearly over x and y.

const GHOST: bool = true;
const LOWEST: f32 = -3.4e38;
const UNUSED: f32 = -1e38;
const NONE: u32 = 0xffffffffu;

struct Params {
    rows: u32,
    stride: u32,
    vocab: u32,
    first_row: u32,
    k: u32,
    temperature: f32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> loss_rows: array<f32>;
@group(0) @binding(2) var<storage, read> z: array<f32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> ids: array<u32>;
@group(0) @binding(5) var<storage, read> log_probs: array<f32>;
@group(0) @binding(6) var<storage, read> tails: array<f32>;
@group(0) @binding(7) var<storage, read> weights: array<f32>;
@group(0) @binding(8) var<storage, read_write> dz: array<f32>;

var<workgroup> scratch: array<f32, 256>;
var<workgroup> maxima: array<f32, 256>;

// What the gradient needs of a row.
struct Row {
    counts: bool,
    log_mass: f32,
    tail: f32,
    off_mass: f32,
    off_lse: f32,
}

fn exp_of(x: f32) -> f32 {
    return exp(max(x, -87.0));
}

fn used(slot: u32) -> bool {
    return ids[slot] < p.vocab && log_probs[slot] > UNUSED;
}

// The lane's first column not before `first` that is in K; NONE if there is no other.
fn next_member(slots: u32, lane: u32, first: u32) -> u32 {
    var next = NONE;
    for (var i = 0u; i < p.k; i += 1u) {
        let id = ids[slots + i];
        if id % 256u == lane && id >= first && id < next && used(slots + i) {
            next = id;
        }
    }
    return next;
}

fn sum_over_lanes(lane: u32, x: f32) -> f32 {
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

fn log_sum_exp_over_lanes(lane: u32, high: f32, sum: f32) -> f32 {
    workgroupBarrier();
    maxima[lane] = high;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half >>= 1u) {
        if lane < half {
            maxima[lane] = max(maxima[lane], maxima[lane + half]);
        }
        workgroupBarrier();
    }
    let top = maxima[0];
    let total = sum_over_lanes(lane, sum * exp_of(high - top));
    return select(LOWEST, top + log(max(total, 1e-37)), top > UNUSED);
}

// Log-sum-exp of the lane's columns off K, as a maximum and a sum relative to it.
fn off_support(row: u32, slots: u32, lane: u32) -> vec2<f32> {
    var high = LOWEST;
    var sum = 0.0;
    var member = next_member(slots, lane, 0u);
    for (var j = lane; j < p.vocab; j += 256u) {
        if j == member {
            member = next_member(slots, lane, j + 1u);
            continue;
        }
        let x = p.scale * z[row * p.stride + j];
        if x > high {
            sum = sum * exp_of(high - x) + 1.0;
            high = x;
        } else {
            sum += exp_of(x - high);
        }
    }
    return vec2<f32>(high, sum);
}

// Computes and stores the row's loss.
fn loss(row: u32, lane: u32) -> Row {
    let n = p.first_row + row;
    let slots = n * p.k;
    var found = Row(false, 0.0, 0.0, 0.0, LOWEST);
    var live = false;
    if row < p.rows {
        live = weights[n] != 0.0;
    }

    var mass = 0.0;
    if live {
        for (var i = lane; i < p.k; i += 256u) {
            if used(slots + i) {
                mass += exp_of(log_probs[slots + i]);
            }
        }
    }
    mass = sum_over_lanes(lane, mass);

    var off = vec2<f32>(LOWEST, 0.0);
    if GHOST && live {
        off = off_support(row, slots, lane);
        found.tail = max(tails[n], 0.0);
    }
    found.off_lse = log_sum_exp_over_lanes(lane, off.x, off.y);
    if found.off_lse == LOWEST {
        found.tail = 0.0;
    }
    mass += found.tail;
    found.counts = live && mass > 0.0;
    if found.counts {
        found.log_mass = log(mass);
        found.tail /= mass;
    }

    var value = 0.0;
    if found.counts {
        for (var i = lane; i < p.k; i += 256u) {
            if used(slots + i) {
                let log_p = log_probs[slots + i] - found.log_mass;
                let log_q = p.scale * z[row * p.stride + ids[slots + i]] - lse[row];
                value += exp_of(log_p) * (log_p - log_q);
            }
        }
    }
    value = sum_over_lanes(lane, value);
    if found.counts && found.off_lse != LOWEST {
        let log_off = found.off_lse - lse[row];
        found.off_mass = exp_of(log_off);
        if found.tail > 0.0 {
            value += found.tail * (log(found.tail) - log_off);
        }
    }
    if lane == 0u && row < p.rows {
        loss_rows[n] = p.temperature * p.temperature * value;
    }
    return found;
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
    if !found.counts {
        return;
    }
    let start = row * p.stride;
    let slots = (p.first_row + row) * p.k;
    let factor = p.temperature * weights[p.first_row + row];
    let shift = select(lse[row], found.off_lse, GHOST);
    let off_factor = select(factor, factor * (found.off_mass - found.tail), GHOST);
    var member = next_member(slots, lane, 0u);
    for (var j = lane; j < p.vocab; j += 256u) {
        if j == member {
            member = next_member(slots, lane, j + 1u);
        } else {
            dz[start + j] += off_factor * exp_of(p.scale * z[start + j] - shift);
        }
    }
    // The columns of K, which no lane touched above.
    for (var i = lane; i < p.k; i += 256u) {
        if used(slots + i) {
            let j = start + ids[slots + i];
            let q = exp_of(p.scale * z[j] - lse[row]);
            dz[j] += factor * (q - exp_of(log_probs[slots + i] - found.log_mass));
        }
    }
}
