// Sums, each in a fixed order.
//
// `columns`: y[part, column] (+)= sum of x over the rows of that part; x [rows, cols] row-major. One invocation
// sums `rows_per_part` rows of one column; groups are numbered linearly over x and y: part, then 64 columns.
// `total`: y[column] (+)= sum over parts of parts[part, column]: the second dispatch for a tall x.
// `weighted`: y[0] += sum over i of x[i] * w[i], in one workgroup.

struct Params {
    rows: u32,
    cols: u32,
    rows_per_part: u32,
    /// Workgroups with work.
    count: u32,
    /// 1: add to what y holds.
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> w: array<f32>;
// What `columns` wrote, an output of the op, so bound for writing.
@group(0) @binding(2) var<storage, read_write> parts: array<f32>;

fn store(at: u32, sum: f32) {
    if p.accumulate == 1u {
        y[at] += sum;
    } else {
        y[at] = sum;
    }
}

@compute @workgroup_size(64)
fn columns(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = wid.y * groups.x + wid.x;
    let blocks = (p.cols + 63u) / 64u;
    let part = number / blocks;
    let column = number % blocks * 64u + lane;
    if number >= p.count || column >= p.cols {
        return;
    }
    let first = part * p.rows_per_part;
    let end = min(first + p.rows_per_part, p.rows);
    var sum = 0.0;
    for (var row = first; row < end; row++) {
        sum += x[row * p.cols + column];
    }
    store(part * p.cols + column, sum);
}

@compute @workgroup_size(64)
fn total(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let column = (wid.y * groups.x + wid.x) * 64u + lane;
    if column >= p.cols {
        return;
    }
    var sum = 0.0;
    for (var part = 0u; part < p.rows; part++) {
        sum += parts[part * p.cols + column];
    }
    store(column, sum);
}

var<workgroup> sums: array<f32, 256>;

@compute @workgroup_size(256)
fn weighted(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var i = lane; i < p.rows; i += 256u) {
        sum += x[i] * w[i];
    }
    sums[lane] = sum;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sum += sums[lane + half];
            sums[lane] = sum;
        }
    }
    if lane == 0u {
        y[0] += sum;
    }
}
