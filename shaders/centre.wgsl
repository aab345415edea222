// Columns centred over the rows that count, those of weight other than 0; the other rows become 0.
//   forward:  y = (x - mean) * inv, inv = 1 / the Frobenius norm of all centred rows (0 if there is nothing)
//   gradient: y = (x - mean) * inv with the inv that is given: what flows back through a loss that no scale changes
// columns: one workgroup for LANES columns writes each one's mean and sum of squared deviations into `stats` [cols, 2].
// total:   one workgroup adds up the squares and writes inv.
// rows:    one invocation an element writes y.
// Groups are numbered linearly over x and y.

const LANES: u32 = 64u;

struct Params {
    rows: u32,
    cols: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read_write> stats: array<f32>;
@group(0) @binding(4) var<storage, read_write> inv: array<f32>;
@group(0) @binding(4) var<storage, read> given_inv: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

var<workgroup> sums: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn columns(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let c = (wid.y * groups.x + wid.x) * LANES + lane;
    if c >= p.cols {
        return;
    }
    var count = 0.0;
    var sum = 0.0;
    for (var row = 0u; row < p.rows; row++) {
        if weights[row] != 0.0 {
            count += 1.0;
            sum += x[row * p.cols + c];
        }
    }
    let mean = sum / max(count, 1.0);
    var squares = 0.0;
    for (var row = 0u; row < p.rows; row++) {
        if weights[row] != 0.0 {
            let d = x[row * p.cols + c] - mean;
            squares += d * d;
        }
    }
    stats[2u * c] = mean;
    stats[2u * c + 1u] = squares;
}

@compute @workgroup_size(LANES)
fn total(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var c = lane; c < p.cols; c += LANES) {
        sum += stats[2u * c + 1u];
    }
    sums[lane] = sum;
    for (var reach = LANES / 2u; reach > 0u; reach /= 2u) {
        workgroupBarrier();
        if lane < reach {
            sums[lane] += sums[lane + reach];
        }
    }
    workgroupBarrier();
    if lane == 0u {
        inv[0] = select(0.0, 1.0 / sqrt(max(sums[0], 1e-30)), sums[0] >= 1e-30);
    }
}

fn centred(i: u32, scale: f32) -> f32 {
    if weights[i / p.cols] == 0.0 {
        return 0.0;
    }
    return (x[i] - stats[2u * (i % p.cols)]) * scale;
}

fn element(wid: vec3<u32>, groups: vec3<u32>, lane: u32) -> u32 {
    return (wid.y * groups.x + wid.x) * LANES + lane;
}

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element(wid, groups, lane);
    if i < p.rows * p.cols {
        y[i] = centred(i, inv[0]);
    }
}

@compute @workgroup_size(LANES)
fn gradient(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element(wid, groups, lane);
    if i < p.rows * p.cols {
        y[i] = centred(i, given_inv[0]);
    }
}
