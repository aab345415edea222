// y = weight * (x - mean) / sqrt(variance + eps) + bias, row by row.
//   RMSNorm (CENTER = false): mean is taken as 0, so variance is the mean square; no bias.
//   Gemma's RMSNorm (PLUS_ONE): 1 + weight in the weight's place.
//   LayerNorm (CENTER = true): mean and variance of the row; bias if BIAS (else any tensor may be bound there).
// One workgroup a row, each lane every LANES-th column: a pass for the mean, one for the variance, one to write.
// Workgroups are numbered linearly over x and y.

const LANES: u32 = 128u;
const CENTER: bool = false;
const PLUS_ONE: bool = false;
const BIAS: bool = false;

struct Params {
    rows: u32,
    cols: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;

var<workgroup> sums: array<f32, LANES>;

// The sum of all lanes' values, by a tree of fixed order.
fn over_lanes(lane: u32, value: f32) -> f32 {
    sums[lane] = value;
    for (var reach = LANES / 2u; reach > 0u; reach /= 2u) {
        workgroupBarrier();
        if lane < reach {
            sums[lane] += sums[lane + reach];
        }
    }
    workgroupBarrier();
    let sum = sums[0];
    workgroupBarrier();
    return sum;
}

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    if row >= p.rows {
        return;
    }
    let start = row * p.cols;
    let n = f32(p.cols);

    var mean = 0.0;
    if CENTER {
        var sum = 0.0;
        for (var c = lane; c < p.cols; c += LANES) {
            sum += x[start + c];
        }
        mean = over_lanes(lane, sum) / n;
    }

    var squares = 0.0;
    for (var c = lane; c < p.cols; c += LANES) {
        let centred = x[start + c] - mean;
        squares += centred * centred;
    }
    let inv = 1.0 / sqrt(over_lanes(lane, squares) / n + p.eps);

    for (var c = lane; c < p.cols; c += LANES) {
        var value = (x[start + c] - mean) * inv * (weight[c] + select(0.0, 1.0, PLUS_ONE));
        if BIAS {
            value += bias[c];
        }
        y[start + c] = value;
    }
}
