// A row over K + 1 buckets: its stored tokens, and the rest of the vocabulary as one.
// GHOST:  student[i] = z[id_i],    teacher[i] = T (l_i - log M), M = sum over K of e^l + tail
//         student[K] = T lse_off,  teacher[K] = T (log tail - log M)
// else:   the same on K with M = sum over K of e^l; no last bucket.
// lse_off is the log-sum-exp of z / T off K: 1 - the sum on K would cancel. A stand-in for log 0 marks what holds
// nothing. One workgroup a row; a lane owns every 256th column and steps over its members of K.
// Groups are numbered linearly over x and y.

const GHOST: bool = true;
const LOWEST: f32 = -3.4e38;
const UNUSED: f32 = -1e38;
const NEVER: f32 = -1e30;
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
@group(0) @binding(1) var<storage, read_write> student: array<f32>;
@group(0) @binding(2) var<storage, read_write> teacher: array<f32>;
@group(0) @binding(3) var<storage, read> z: array<f32>;
@group(0) @binding(4) var<storage, read> ids: array<u32>;
@group(0) @binding(5) var<storage, read> log_probs: array<f32>;
@group(0) @binding(6) var<storage, read> tails: array<f32>;

var<workgroup> scratch: array<vec2<f32>, 256>;

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

// Log-sum-exp of the lanes' pairs of a maximum and a sum relative to it; LOWEST of nothing.
fn log_sum_exp_over_lanes(lane: u32, x: vec2<f32>) -> f32 {
    workgroupBarrier();
    scratch[lane] = x;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half >>= 1u) {
        if lane < half {
            let a = scratch[lane];
            let b = scratch[lane + half];
            let top = max(a.x, b.x);
            scratch[lane] = vec2<f32>(top, a.y * exp_of(a.x - top) + b.y * exp_of(b.x - top));
        }
        workgroupBarrier();
    }
    let total = scratch[0];
    return select(LOWEST, total.x + log(max(total.y, 1e-37)), total.x > UNUSED);
}

fn off_support(row: u32, slots: u32, lane: u32) -> vec2<f32> {
    var found = vec2<f32>(LOWEST, 0.0);
    var member = next_member(slots, lane, 0u);
    for (var j = lane; j < p.vocab; j += 256u) {
        if j == member {
            member = next_member(slots, lane, j + 1u);
            continue;
        }
        let x = p.scale * z[row * p.stride + j];
        if x > found.x {
            found = vec2<f32>(x, found.y * exp_of(found.x - x) + 1.0);
        } else {
            found.y += exp_of(x - found.x);
        }
    }
    return found;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    let slots = (p.first_row + row) * p.k;
    let live = row < p.rows;
    var off = vec2<f32>(LOWEST, 0.0);
    if GHOST && live {
        off = off_support(row, slots, lane);
    }
    let off_lse = log_sum_exp_over_lanes(lane, off);
    // Mass and number of the stored tokens.
    var stored = vec2<f32>(0.0, 0.0);
    if live {
        for (var i = lane; i < p.k; i += 256u) {
            if used(slots + i) {
                stored += vec2<f32>(exp_of(log_probs[slots + i]), 1.0);
            }
        }
    }
    stored = sum_over_lanes(lane, stored);
    if !live {
        return;
    }
    var tail = 0.0;
    if GHOST && off_lse > UNUSED {
        tail = max(tails[p.first_row + row], 1e-30);
    }
    let log_mass = log(max(stored.x + tail, 1e-37));
    let start = row * (p.k + 1u);
    if lane == 0u {
        var last = vec2<f32>(NEVER, NEVER);
        if tail > 0.0 {
            last = p.temperature * vec2<f32>(off_lse, log(tail) - log_mass);
        } else if !GHOST && stored.y == 0.0 {
            last = vec2<f32>(0.0, 0.0);
        }
        student[start + p.k] = last.x;
        teacher[start + p.k] = last.y;
    }
    for (var i = lane; i < p.k; i += 256u) {
        var own = vec2<f32>(NEVER, NEVER);
        if used(slots + i) {
            own = vec2<f32>(z[row * p.stride + ids[slots + i]], p.temperature * (log_probs[slots + i] - log_mass));
        }
        student[start + i] = own.x;
        teacher[start + i] = own.y;
    }
}
