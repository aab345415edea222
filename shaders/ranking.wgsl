// loss[n] = mean over a row's pairs (a, b) of stored tokens with l_a > l_b of c(s_a - s_b), dz += w d loss / d z.
//   HINGE: s = softmax(z), c(x) = max(0, margin - x);   dz_j += w q_j (g_j - sum q g), g = d loss / d s, 0 off K
//   else:  s = z, c(x) = log(1 + e^-x);                 dz_j += w g_j
// One workgroup a row; a lane owns every 256th slot with all its pairs for the value, every 256th column for the gradient.
// Groups are numbered linearly over x and y.

const HINGE: bool = true;
const UNUSED: f32 = -1e38;

struct Params {
    rows: u32,
    stride: u32,
    vocab: u32,
    first_row: u32,
    k: u32,
    margin: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> loss_rows: array<f32>;
@group(0) @binding(2) var<storage, read> z: array<f32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> ids: array<u32>;
@group(0) @binding(5) var<storage, read> log_probs: array<f32>;
@group(0) @binding(6) var<storage, read> weights: array<f32>;
@group(0) @binding(7) var<storage, read_write> dz: array<f32>;

var<workgroup> scratch: array<vec3<f32>, 256>;

fn sum_over_lanes(lane: u32, x: vec3<f32>) -> vec3<f32> {
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

fn used(slot: u32) -> bool {
    return ids[slot] < p.vocab && log_probs[slot] > UNUSED;
}

fn score(row: u32, slot: u32) -> f32 {
    let x = z[row * p.stride + ids[slot]];
    if HINGE {
        return exp(max(x - lse[row], -87.0));
    }
    return x;
}

// A pair's cost and its derivative by the difference of the scores.
fn pair(x: f32) -> vec2<f32> {
    if HINGE {
        return select(vec2<f32>(0.0, 0.0), vec2<f32>(p.margin - x, -1.0), p.margin > x);
    }
    let small = exp(max(-abs(x), -87.0));
    let near = small / (1.0 + small);
    return vec2<f32>(log(1.0 + small) + max(-x, 0.0), select(near - 1.0, -near, x > 0.0));
}

// Of the pairs that a slot leads: their cost and number; and the slope by its score of all its pairs.
fn pairs_of(row: u32, slots: u32, i: u32) -> vec3<f32> {
    var found = vec3<f32>(0.0, 0.0, 0.0);
    let own = score(row, slots + i);
    let log_own = log_probs[slots + i];
    for (var other = 0u; other < p.k; other += 1u) {
        if !used(slots + other) {
            continue;
        }
        let log_other = log_probs[slots + other];
        let theirs = score(row, slots + other);
        if log_own > log_other {
            let at = pair(own - theirs);
            found += vec3<f32>(at.x, 1.0, at.y);
        } else if log_own < log_other {
            found.z -= pair(theirs - own).y;
        }
    }
    return found;
}

// Computes and stores the row's loss; returns 1 / its number of pairs (0 where nothing counts) and the sum of q g.
fn loss(row: u32, lane: u32) -> vec2<f32> {
    let n = p.first_row + row;
    let slots = n * p.k;
    var live = false;
    if row < p.rows {
        live = weights[n] != 0.0;
    }
    // Cost, pairs, and slope times score.
    var sums = vec3<f32>(0.0, 0.0, 0.0);
    if live {
        for (var i = lane; i < p.k; i += 256u) {
            if used(slots + i) {
                let found = pairs_of(row, slots, i);
                sums += vec3<f32>(found.xy, found.z * score(row, slots + i));
            }
        }
    }
    sums = sum_over_lanes(lane, sums);
    let share = select(0.0, 1.0 / max(sums.y, 1.0), sums.y > 0.0);
    if lane == 0u && row < p.rows {
        loss_rows[n] = share * sums.x;
    }
    return vec2<f32>(share, share * sums.z);
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
    if found.x == 0.0 {
        return;
    }
    let slots = (p.first_row + row) * p.k;
    let start = row * p.stride;
    let weight = weights[p.first_row + row];
    if HINGE && found.y != 0.0 {
        for (var j = lane; j < p.vocab; j += 256u) {
            dz[start + j] -= weight * found.y * exp(max(z[start + j] - lse[row], -87.0));
        }
    }
    // The lane that owns a column does both, so that no other waits for it.
    for (var i = 0u; i < p.k; i += 1u) {
        if ids[slots + i] % 256u == lane && used(slots + i) {
            let slope = weight * found.x * pairs_of(row, slots, i).z;
            dz[start + ids[slots + i]] += select(slope, slope * score(row, slots + i), HINGE);
        }
    }
}
