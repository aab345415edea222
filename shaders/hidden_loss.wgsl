// A loss of each row of the student's hidden states h against the teacher's t, both [rows, cols].
//   MSE:    loss = mean of (h - t)^2                    dh = dy * 2 (h - t) / cols
//   cosine: loss = 1 - cos(h, t) = |h/|h| - t/|t||^2/2   dh = dy * (e - loss * h/|h|) / |h|, e = h/|h| - t/|t|
// The second form of the cosine does not cancel where h and t nearly agree. A row with |h| or |t| below SMALLEST has no
// direction: its loss is 1 and its gradient 0.
// value: one workgroup a row writes loss. gradient: one workgroup a row writes dh. Groups are numbered over x and y.

const LANES: u32 = 128u;
const COSINE: bool = false;
const SMALLEST: f32 = 1e-12;

struct Params {
    rows: u32,
    cols: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> h: array<f32>;
@group(0) @binding(2) var<storage, read> t: array<f32>;
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;
@group(0) @binding(3) var<storage, read> loss_rows: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
@group(0) @binding(5) var<storage, read_write> dh: array<f32>;

var<workgroup> sums: array<vec2<f32>, LANES>;

// The sums of all lanes' values, by a tree of fixed order.
fn over_lanes(lane: u32, value: vec2<f32>) -> vec2<f32> {
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

// 1/|h| and 1/|t| of the row that begins at `start`; both 0 if one of them is too short.
fn inverse_norms(lane: u32, start: u32) -> vec2<f32> {
    var squares = vec2(0.0);
    for (var c = lane; c < p.cols; c += LANES) {
        squares += vec2(h[start + c] * h[start + c], t[start + c] * t[start + c]);
    }
    let norms = sqrt(over_lanes(lane, squares));
    let long = min(norms.x, norms.y) >= SMALLEST;
    return select(vec2(0.0), 1.0 / max(norms, vec2(SMALLEST)), long);
}

@compute @workgroup_size(LANES)
fn value(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    if row >= p.rows {
        return;
    }
    let start = row * p.cols;
    var inverse = vec2(1.0);
    if COSINE {
        inverse = inverse_norms(lane, start);
    }
    var sum = 0.0;
    for (var c = lane; c < p.cols; c += LANES) {
        let e = inverse.x * h[start + c] - inverse.y * t[start + c];
        sum += e * e;
    }
    let total = over_lanes(lane, vec2(sum, 0.0)).x;
    if lane == 0u {
        if COSINE {
            loss[row] = select(0.5 * total, 1.0, inverse.x == 0.0);
        } else {
            loss[row] = total / f32(p.cols);
        }
    }
}

@compute @workgroup_size(LANES)
fn gradient(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    if row >= p.rows {
        return;
    }
    let start = row * p.cols;
    if COSINE {
        let inverse = inverse_norms(lane, start);
        let factor = dy[row] * inverse.x;
        let along = 1.0 - loss_rows[row];
        for (var c = lane; c < p.cols; c += LANES) {
            dh[start + c] = factor * (along * inverse.x * h[start + c] - inverse.y * t[start + c]);
        }
    } else {
        let factor = dy[row] * 2.0 / f32(p.cols);
        for (var c = lane; c < p.cols; c += LANES) {
            dh[start + c] = factor * (h[start + c] - t[start + c]);
        }
    }
}
