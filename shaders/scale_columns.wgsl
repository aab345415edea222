// y = factors * x (+ bias) (+ residual), the factors and the bias by column.
// One invocation handles one element; groups are numbered linearly over x and y.

const BIAS: bool = false;
const RESIDUAL: bool = false;

struct Params {
    count: u32,
    cols: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> factors: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> residual: array<f32>;

@compute @workgroup_size(256)
fn scale(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if i >= p.count {
        return;
    }
    let column = i % p.cols;
    var value = factors[column] * x[i];
    if BIAS {
        value += bias[column];
    }
    if RESIDUAL {
        value += residual[i];
    }
    y[i] = value;
}
