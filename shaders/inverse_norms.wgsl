// y[o] = 1 / |W_o + scale (B A)_o|, the squared norm being |W_o|^2 + sum_j b_oj (2 scale wa_oj + scale^2 baa_oj) with
// wa = W A^T and baa = B (A A^T). One workgroup a row; groups are numbered linearly over x and y.

struct Params {
    /// Of this binding's rows of W; the other tensors are bound whole.
    first: u32,
    rows: u32,
    cols: u32,
    rank: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<f32>;
@group(0) @binding(3) var<storage, read> b: array<f32>;
@group(0) @binding(4) var<storage, read> wa: array<f32>;
@group(0) @binding(5) var<storage, read> baa: array<f32>;

var<workgroup> sums: array<f32, 128>;

@compute @workgroup_size(128)
fn rows(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    var sum = 0.0;
    if row < p.rows {
        for (var k = lane; k < p.cols; k += 128u) {
            let x = w[row * p.cols + k];
            sum += x * x;
        }
        for (var j = lane; j < p.rank; j += 128u) {
            let at = (p.first + row) * p.rank + j;
            sum += b[at] * p.scale * (2.0 * wa[at] + p.scale * baa[at]);
        }
    }
    sums[lane] = sum;
    for (var half = 64u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    if lane == 0u && row < p.rows {
        y[p.first + row] = 1.0 / sqrt(max(sums[0], 1e-30));
    }
}
