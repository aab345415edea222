// H[r] = sum over j < vocab of q (lse - z), q = exp(z - lse): the entropy of softmax(z) in nats.
// One workgroup a row, one pass, a tree sum. Groups are numbered linearly over x and y.

struct Params {
    rows: u32,
    stride: u32,
    vocab: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> entropy: array<f32>;
@group(0) @binding(2) var<storage, read> z: array<f32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;

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
        for (var j = lane; j < p.vocab; j += 256u) {
            let log_q = max(z[row * p.stride + j] - lse[row], -87.0);
            sum -= exp(log_q) * log_q;
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
        entropy[row] = scratch[0];
    }
}
