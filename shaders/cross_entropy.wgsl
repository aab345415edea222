// loss[n] = lse - z[y], dz += w (softmax(z) - e_y): cross-entropy at temperature 1 of the labels y and its gradient
// by the logits, times the row's weight w. A row counts if w is not 0 and its label is a token; else its loss is 0.
// `value`: one lane a row. `gradient`: one workgroup a row, one pass over its columns.
// Groups are numbered linearly over x and y.

struct Params {
    rows: u32,
    stride: u32,
    vocab: u32,
    first_row: u32,
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
