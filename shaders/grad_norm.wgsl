// norm = sqrt(sum of x^2 over all pages), out = [norm, factor] with factor = min(1, max_norm / (norm + 1e-6)).
//
// `squares`: partials[first + group] = the sum of one page's squares over 4,096 elements, or -1 if one of them is not
// finite or larger than 1e14 (so that no sum of the others can overflow). The elements are read as bits: floats that
// are not finite need not survive arithmetic in WGSL. Groups are numbered linearly over x and y.
// `finish`: one workgroup adds the partial sums. A bad one gives out = [3.4e38, 0].

const PART: u32 = 4096u;
/// The bits of 1e14; larger bits are larger magnitudes, infinities and NaN.
const HUGE: u32 = 0x56b5e621u;

struct Params {
    /// Elements in this piece, or partial sums.
    count: u32,
    first: u32,
    max_norm: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> partials: array<f32>;
@group(0) @binding(2) var<storage, read> page: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

var<workgroup> sums: array<f32, 256>;

fn join(a: f32, b: f32) -> f32 {
    return select(a + b, -1.0, a < 0.0 || b < 0.0);
}

// The sum over the workgroup, valid in invocation 0.
fn reduce(lane: u32, value: f32) -> f32 {
    var sum = value;
    sums[lane] = sum;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sum = join(sum, sums[lane + half]);
            sums[lane] = sum;
        }
    }
    return sum;
}

@compute @workgroup_size(256)
fn squares(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = wid.y * groups.x + wid.x;
    let start = number * PART;
    let end = min(start + PART, p.count);
    var sum = 0.0;
    for (var i = start + lane; i < end; i += 256u) {
        let bits = page[i] & 0x7fffffffu;
        if bits > HUGE {
            sum = -1.0;
        } else {
            let x = bitcast<f32>(bits);
            sum = join(sum, x * x);
        }
    }
    let total = reduce(lane, sum);
    if lane == 0u && start < p.count {
        partials[p.first + number] = total;
    }
}

@compute @workgroup_size(256)
fn finish(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var i = lane; i < p.count; i += 256u) {
        sum = join(sum, partials[i]);
    }
    let total = reduce(lane, sum);
    if lane == 0u {
        var norm = 3.4e38;
        var factor = 0.0;
        if total >= 0.0 {
            norm = sqrt(total);
            factor = 1.0;
            if p.max_norm > 0.0 {
                factor = min(1.0, p.max_norm / (norm + 1e-6));
            }
        }
        out[0] = norm;
        out[1] = factor;
    }
}
