// Gradients of y = weight * h + bias with h = (x - mean) * inv, inv = 1 / sqrt(variance + eps); see norm.wgsl.
// With g = dy * weight (dy * (1 + weight) if PLUS_ONE) and means over the row:
//   dx = inv * (g - mean(g) - h * mean(g * h))      (RMSNorm: without mean(g))
//   dweight = sum over rows of dy * h
// by_row:    one workgroup a row writes dx (adds, if ACCUMULATE) and the row's mean and inv into `stats`.
// by_column: one invocation a column and block of rows writes the block's share of dweight; sum_rows adds them up.
// Workgroups are numbered linearly over x and y.

const LANES: u32 = 128u;
const CENTER: bool = false;
const PLUS_ONE: bool = false;
const ACCUMULATE: bool = false;

struct Params {
    rows: u32,
    cols: u32,
    eps: f32,
    block_rows: u32,
    blocks: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> dx: array<f32>;
@group(0) @binding(2) var<storage, read_write> stats: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read> x: array<f32>;
@group(0) @binding(5) var<storage, read> weight: array<f32>;
@group(0) @binding(6) var<storage, read_write> shares: array<f32>;

var<workgroup> sums: array<vec3<f32>, LANES>;

// What column c is multiplied by.
fn factor(c: u32) -> f32 {
    return weight[c] + select(0.0, 1.0, PLUS_ONE);
}

// The sums of all lanes' values, by a tree of fixed order.
fn over_lanes(lane: u32, value: vec3<f32>) -> vec3<f32> {
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
fn by_row(
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
        mean = over_lanes(lane, vec3(sum, 0.0, 0.0)).x / n;
    }

    // Squares of the centred x, g, g * centred x.
    var sum = vec3(0.0);
    for (var c = lane; c < p.cols; c += LANES) {
        let centred = x[start + c] - mean;
        let g = dy[start + c] * factor(c);
        sum += vec3(centred * centred, g, g * centred);
    }
    let means = over_lanes(lane, sum) / n;
    let inv = 1.0 / sqrt(means.x + p.eps);
    let mean_g = select(0.0, means.y, CENTER);
    let along_h = means.z * inv * inv;

    for (var c = lane; c < p.cols; c += LANES) {
        let centred = x[start + c] - mean;
        let value = inv * (dy[start + c] * factor(c) - mean_g - centred * along_h);
        if ACCUMULATE {
            dx[start + c] += value;
        } else {
            dx[start + c] = value;
        }
    }
    if lane == 0u {
        stats[2u * row] = mean;
        stats[2u * row + 1u] = inv;
    }
}

@compute @workgroup_size(LANES)
fn by_column(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = wid.y * groups.x + wid.x;
    let groups_a_block = (p.cols + LANES - 1u) / LANES;
    let block = group / groups_a_block;
    let c = (group - block * groups_a_block) * LANES + lane;
    if block >= p.blocks || c >= p.cols {
        return;
    }
    let end = min((block + 1u) * p.block_rows, p.rows);
    var share = 0.0;
    for (var row = block * p.block_rows; row < end; row += 1u) {
        let h = (x[row * p.cols + c] - stats[2u * row]) * stats[2u * row + 1u];
        share += dy[row * p.cols + c] * h;
    }
    shares[block * p.cols + c] = share;
}
