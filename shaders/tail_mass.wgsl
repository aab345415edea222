// tail[r] = sum of exp(scale * z[r, j] - lse[r]) over the columns j < vocab that rank after the row's k-th id: smaller
// logit, or the same and a higher id. Summed directly: 1 - the mass of the first k would cancel.
// One workgroup a row, one pass, a tree sum. Groups are numbered linearly over x and y.

struct Params {
    rows: u32,
    stride: u32,
    vocab: u32,
    k: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> tail: array<f32>;
@group(0) @binding(2) var<storage, read> z: array<f32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> ids: array<u32>;

var<workgroup> scratch: array<f32, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    var sum = 0.0;
    if row < p.rows {
        let start = row * p.stride;
        let last = ids[row * p.k + p.k - 1u];
        if last < p.vocab {
            let least = z[start + last];
            for (var j = lane; j < p.vocab; j += 256u) {
                let x = z[start + j];
                if x < least || (x == least && j > last) {
                    sum += exp(max(p.scale * x - lse[row], -87.0));
                }
            }
        }
    }
    scratch[lane] = sum;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half >>= 1u) {
        if lane < half {
            scratch[lane] += scratch[lane + half];
        }
        workgroupBarrier();
    }
    if lane == 0u && row < p.rows {
        tail[row] = scratch[0];
    }
}
