// The gradient of buckets: dz[id_i] += d[i] on a row's stored tokens, dz[j] += d[K] exp(z_j / T - lse_off) off them, with
// d the gradient by the student's K + 1 buckets, which are T times logarithms; those at EMPTY or below hold nothing.
// One workgroup a row; a lane owns every 256th column and steps over its members of K.
// Groups are numbered linearly over x and y.

const UNUSED: f32 = -1e38;
const EMPTY: f32 = -1e29;
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
@group(0) @binding(1) var<storage, read_write> dz: array<f32>;
@group(0) @binding(2) var<storage, read> buckets: array<f32>;
@group(0) @binding(3) var<storage, read> gradient: array<f32>;
@group(0) @binding(4) var<storage, read> z: array<f32>;
@group(0) @binding(5) var<storage, read> ids: array<u32>;
@group(0) @binding(6) var<storage, read> log_probs: array<f32>;

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

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    if row >= p.rows {
        return;
    }
    let slots = (p.first_row + row) * p.k;
    let start = row * p.stride;
    let own = row * (p.k + 1u);
    let rest = buckets[own + p.k];
    let factor = gradient[own + p.k];
    if rest > EMPTY && factor != 0.0 {
        var member = next_member(slots, lane, 0u);
        for (var j = lane; j < p.vocab; j += 256u) {
            if j == member {
                member = next_member(slots, lane, j + 1u);
            } else {
                dz[start + j] += factor * exp_of(p.scale * (z[start + j] - rest));
            }
        }
    }
    // The columns of K, which no lane touched above.
    for (var i = lane; i < p.k; i += 256u) {
        if buckets[own + i] > EMPTY {
            dz[start + ids[slots + i]] += gradient[own + i];
        }
    }
}
