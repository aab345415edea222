// loss[n] = T^2 KL(p || q), dz += w T (q - p), with p = softmax(zt / T) of the teacher and q = softmax(z / T) of the
// student, both over the first `vocab` columns. One workgroup a row, one pass over both rows, then a tree sum.
// Groups are numbered linearly over x and y.

struct Params {
    rows: u32,
    stride: u32,
    vocab: u32,
    first_row: u32,
    teacher_stride: u32,
    temperature: f32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> loss_rows: array<f32>;
@group(0) @binding(2) var<storage, read> z: array<f32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> teacher_z: array<f32>;
@group(0) @binding(5) var<storage, read> teacher_lse: array<f32>;
@group(0) @binding(6) var<storage, read> weights: array<f32>;
@group(0) @binding(7) var<storage, read_write> dz: array<f32>;

var<workgroup> scratch: array<f32, 256>;

// The teacher's probability and the log of teacher over student at one column.
fn column(row: u32, j: u32) -> vec2<f32> {
    let log_p = p.scale * teacher_z[row * p.teacher_stride + j] - teacher_lse[row];
    let log_q = p.scale * z[row * p.stride + j] - lse[row];
    return vec2<f32>(exp(max(log_p, -87.0)), log_p - log_q);
}

fn store_loss(row: u32, lane: u32, sum: f32) {
    scratch[lane] = sum;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half >>= 1u) {
        if lane < half {
            scratch[lane] += scratch[lane + half];
        }
        workgroupBarrier();
    }
    if lane == 0u && row < p.rows {
        loss_rows[p.first_row + row] = p.temperature * p.temperature * scratch[0];
    }
}

fn weight_of(row: u32) -> f32 {
    if row >= p.rows {
        return 0.0;
    }
    return weights[p.first_row + row];
}

@compute @workgroup_size(256)
fn value(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    var sum = 0.0;
    if weight_of(row) != 0.0 {
        for (var j = lane; j < p.vocab; j += 256u) {
            let at = column(row, j);
            sum += at.x * at.y;
        }
    }
    store_loss(row, lane, sum);
}

@compute @workgroup_size(256)
fn gradient(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    let factor = p.temperature * weight_of(row);
    var sum = 0.0;
    if factor != 0.0 {
        for (var j = lane; j < p.vocab; j += 256u) {
            let at = column(row, j);
            sum += at.x * at.y;
            let q = exp(max(p.scale * z[row * p.stride + j] - lse[row], -87.0));
            dz[row * p.stride + j] += factor * (q - at.x);
        }
    }
    store_loss(row, lane, sum);
}
