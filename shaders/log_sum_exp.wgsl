// lse[r] = log(sum over j < vocab of exp(scale * z[r, j])), scale = 1 / temperature.
// One workgroup a row, one pass: each lane keeps a running maximum and a sum relative to it over every 256th
// column, then the lanes' pairs are combined by a tree. Groups are numbered linearly over x and y.

const LOWEST: f32 = -3.4e38;

struct Params {
    rows: u32,
    stride: u32,
    vocab: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> lse: array<f32>;
@group(0) @binding(2) var<storage, read> z: array<f32>;

var<workgroup> maxima: array<f32, 256>;
var<workgroup> sums: array<f32, 256>;

fn exp_of(x: f32) -> f32 {
    return exp(max(x, -87.0));
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    var high = LOWEST;
    var sum = 0.0;
    if row < p.rows {
        let start = row * p.stride;
        for (var j = lane; j < p.vocab; j += 256u) {
            let x = p.scale * z[start + j];
            if x > high {
                sum = sum * exp_of(high - x) + 1.0;
                high = x;
            } else {
                sum += exp_of(x - high);
            }
        }
    }
    maxima[lane] = high;
    sums[lane] = sum;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half >>= 1u) {
        if lane < half {
            let other = maxima[lane + half];
            let top = max(high, other);
            sum = sum * exp_of(high - top) + sums[lane + half] * exp_of(other - top);
            high = top;
            maxima[lane] = high;
            sums[lane] = sum;
        }
        workgroupBarrier();
    }
    if lane == 0u && row < p.rows {
        lse[row] = high + log(sum);
    }
}
