// loss[n] = lse - z[y], dz += w (softmax(z) - e_y): cross-entropy at temperature 1 of the labels y and its gradient
// by the logits, times the row's weight w. A row counts if w is not 0 and its label is a token; else its loss is 0.
// `value`: one lane a row. `gradient`: one workgroup a row, one pass over its columns.
// `smoothed_*`, one workgroup a row, with label smoothing e and z-loss c:
//   loss[n] = lse - (1 - e) z[y] - e mean z + c lse^2, dz += w ((1 + 2 c lse) softmax(z) - (1 - e) e_y - e / V);
// a pass and a tree sum for the mean before the gradient's.
// Groups are numbered linearly over x and y.

struct Params {
    rows: u32,
    stride: u32,
    vocab: u32,
    first_row: u32,
    smoothing: f32,
    z_loss: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> loss_rows: array<f32>;
@group(0) @binding(2) var<storage, read> z: array<f32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> labels: array<u32>;
@group(0) @binding(5) var<storage, read> weights: array<f32>;
@group(0) @binding(6) var<storage, read_write> dz: array<f32>;

fn counts(row: u32) -> bool {
    return labels[p.first_row + row] < p.vocab && weights[p.first_row + row] != 0.0;
}

fn loss(row: u32) -> f32 {
    if !counts(row) {
        return 0.0;
    }
    return lse[row] - z[row * p.stride + labels[p.first_row + row]];
}

@compute @workgroup_size(256)
fn value(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (wid.y * groups.x + wid.x) * 256u + lane;
    if row < p.rows {
        loss_rows[p.first_row + row] = loss(row);
    }
}

@compute @workgroup_size(256)
fn gradient(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    if row >= p.rows {
        return;
    }
    if lane == 0u {
        loss_rows[p.first_row + row] = loss(row);
    }
    if !counts(row) {
        return;
    }
    let start = row * p.stride;
    let label = labels[p.first_row + row];
    let weight = weights[p.first_row + row];
    let normaliser = lse[row];
    for (var j = lane; j < p.vocab; j += 256u) {
        let q = exp(max(z[start + j] - normaliser, -87.0));
        dz[start + j] += weight * select(q, q - 1.0, j == label);
    }
}

var<workgroup> scratch: array<f32, 256>;

fn smoothed_loss(row: u32, lane: u32) {
    var live = false;
    if row < p.rows {
        live = counts(row);
    }
    var sum = 0.0;
    if live {
        let best = z[row * p.stride + labels[p.first_row + row]];
        for (var j = lane; j < p.vocab; j += 256u) {
            sum += best - z[row * p.stride + j];
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
        var value = 0.0;
        if live {
            value = loss(row) + p.smoothing * scratch[0] / f32(p.vocab) + p.z_loss * lse[row] * lse[row];
        }
        loss_rows[p.first_row + row] = value;
    }
}

@compute @workgroup_size(256)
fn smoothed_value(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    smoothed_loss(wid.y * groups.x + wid.x, lane);
}

@compute @workgroup_size(256)
fn smoothed_gradient(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    smoothed_loss(row, lane);
    if row >= p.rows {
        return;
    }
    if !counts(row) {
        return;
    }
    let start = row * p.stride;
    let label = labels[p.first_row + row];
    let weight = weights[p.first_row + row];
    let normaliser = lse[row];
    let factor = 1.0 + 2.0 * p.z_loss * normaliser;
    let each = p.smoothing / f32(p.vocab);
    for (var j = lane; j < p.vocab; j += 256u) {
        let q = exp(max(z[start + j] - normaliser, -87.0));
        dz[start + j] += weight * (factor * q - each - select(0.0, 1.0 - p.smoothing, j == label));
    }
}
