// Several vectors x_i of n values, perhaps with a base b, become one: with t_i = x_i - b (x_i with DIFFERENCES), 0
// where |t_i| is below the vector's threshold, the sum of f_i t_i; with ELECT only of those t_i that have the sign of
// the votes' sum (0 counts as positive), where t_i votes with f_i t_i, or EQUAL as it is; with NORMALIZE over the sum
// of the f_i that counted; and out = b + lambda times that. One invocation an element; groups are numbered linearly
// over x and y.

const BASE: bool = false;
const DIFFERENCES: bool = false;
const ELECT: bool = false;
const EQUAL: bool = false;
const NORMALIZE: bool = false;

struct Params {
    count: u32,
    models: u32,
    lambda: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
/// The f_i, then the thresholds.
@group(0) @binding(3) var<storage, read> rules: array<f32>;
@group(0) @binding(4) var<storage, read> base: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let j = (wid.y * groups.x + wid.x) * 256u + lane;
    if j >= p.count {
        return;
    }
    var b = 0.0;
    if BASE {
        b = base[j];
    }
    // What is taken from each x.
    var origin = b;
    if DIFFERENCES {
        origin = 0.0;
    }
    var elected = 0.0;
    var sum = 0.0;
    var divisor = 0.0;
    for (var i = 0u; i < p.models; i++) {
        let t = x[i * p.count + j] - origin;
        if abs(t) >= rules[p.models + i] {
            elected += select(rules[i] * t, t, EQUAL);
            sum += rules[i] * t;
        }
        divisor += rules[i];
    }
    if ELECT {
        sum = 0.0;
        divisor = 0.0;
        for (var i = 0u; i < p.models; i++) {
            let t = x[i * p.count + j] - origin;
            var vote = rules[i] * t;
            if EQUAL {
                vote = t;
            }
            let agrees = (vote > 0.0 && elected >= 0.0) || (vote < 0.0 && elected < 0.0);
            if agrees && abs(t) >= rules[p.models + i] {
                sum += rules[i] * t;
                divisor += rules[i];
            }
        }
    }
    if NORMALIZE {
        // Weights that cancel are used as they are; after a vote they are those of one side.
        let least = select(1e-8, 1.2e-38, ELECT);
        if abs(divisor) >= least {
            sum /= divisor;
        }
    }
    out[j] = b + p.lambda * sum;
}
