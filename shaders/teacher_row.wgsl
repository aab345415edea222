// out[r, j] = T log p_j of a sparse teacher row over all `vocab` columns: T (l - log M) for a stored token, with M the
// stored mass (and tail P for UNIFORM); off them T log(P / M / how many) for UNIFORM, else a stand-in for log 0.
// A row that stores no token is a copy of the student's logits.
// One workgroup a row: mass and count by a tree sum, then the columns, of which a lane owns every 256th.
// Groups are numbered linearly over x and y.

const UNIFORM: bool = false;
const UNUSED: f32 = -1e38;
const NEVER: f32 = -1e6;

struct Params {
    rows: u32,
    stride: u32,
    vocab: u32,
    first_row: u32,
    k: u32,
    temperature: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> z: array<f32>;
@group(0) @binding(3) var<storage, read> ids: array<u32>;
@group(0) @binding(4) var<storage, read> log_probs: array<f32>;
@group(0) @binding(5) var<storage, read> tails: array<f32>;

var<workgroup> scratch: array<vec2<f32>, 256>;

fn used(slot: u32) -> bool {
    return ids[slot] < p.vocab && log_probs[slot] > UNUSED;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    let slots = (p.first_row + row) * p.k;
    // Mass and number of the stored tokens.
    var stored = vec2<f32>(0.0, 0.0);
    if row < p.rows {
        for (var i = lane; i < p.k; i += 256u) {
            if used(slots + i) {
                stored += vec2<f32>(exp(max(log_probs[slots + i], -87.0)), 1.0);
            }
        }
    }
    scratch[lane] = stored;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half >>= 1u) {
        if lane < half {
            scratch[lane] += scratch[lane + half];
        }
        workgroupBarrier();
    }
    if row >= p.rows {
        return;
    }
    stored = scratch[0];
    let off = f32(p.vocab) - stored.y;
    var tail = 0.0;
    if UNIFORM && off > 0.0 {
        tail = max(tails[p.first_row + row], 1e-30);
    }
    let log_mass = log(max(stored.x + tail, 1e-37));
    var rest = p.temperature * NEVER;
    if tail > 0.0 {
        rest = p.temperature * (log(tail) - log_mass - log(off));
    }
    let start = row * p.vocab;
    for (var j = lane; j < p.vocab; j += 256u) {
        if stored.y == 0.0 {
            out[start + j] = z[row * p.stride + j];
        } else {
            out[start + j] = rest;
        }
    }
    for (var i = 0u; i < p.k; i += 1u) {
        let id = ids[slots + i];
        if id % 256u == lane && used(slots + i) {
            out[start + id] = p.temperature * (log_probs[slots + i] - log_mass);
        }
    }
}
