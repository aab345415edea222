// y = x * P(x), P being the normal distribution's P(X <= x) (Hendrycks & Gimpel 2016), element by element, and its
// gradient dx = dy * (P(x) + x * P'(x)).
//   TANH = false: P by Abramowitz & Stegun 7.1.26 (off by 7.5e-8 at most), P' exactly.
//   TANH = true: P(x) = (1 + tanh(u)) / 2 with u = sqrt(2/pi) * (x + 0.044715 x^3), which is 1 / (1 + e^-2u).
// One invocation an element; groups are numbered linearly over x and y.

const TANH: bool = false;

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;

// P(a) and P'(a).
fn normal(a: f32) -> vec2<f32> {
    // Beyond 9, P is 0 or 1 to every digit; clamped, exp and the cube stay finite.
    let z = clamp(a, -9.0, 9.0);
    if TANH {
        let s = 1.0 / (1.0 + exp(-1.5957691 * (z + 0.044715 * z * z * z)));
        return vec2(s, s * (1.0 - s) * 1.5957691 * (1.0 + 0.134145 * z * z));
    }
    let density = exp(-0.5 * z * z);
    let t = 1.0 / (1.0 + 0.23164188 * abs(z));
    let poly = ((((1.0614054 * t - 1.4531520) * t + 1.4214137) * t - 0.28449674) * t + 0.2548296) * t;
    let tail = 0.5 * poly * density;
    return vec2(select(1.0 - tail, tail, z < 0.0), 0.3989423 * density);
}

fn element(wid: vec3<u32>, groups: vec3<u32>, lane: u32) -> u32 {
    return (wid.y * groups.x + wid.x) * 256u + lane;
}

@compute @workgroup_size(256)
fn forward(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element(wid, groups, lane);
    if i >= p.count {
        return;
    }
    out[i] = x[i] * normal(x[i]).x;
}

@compute @workgroup_size(256)
fn backward(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element(wid, groups, lane);
    if i >= p.count {
        return;
    }
    let both = normal(x[i]);
    out[i] = dy[i] * (both.x + x[i] * both.y);
}
