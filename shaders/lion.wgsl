// One step of Lion (arXiv:2302.06675, Program 1), element by element, g = clip factor * gradient:
//   x = x (1 - lr * decay) - lr * sign(beta1 m + (1 - beta1) g)        m = beta2 m + (1 - beta2) g
// and the gradient becomes 0. A clip factor of 0 (a gradient that is not finite) only clears the gradient.
// One invocation handles one element; groups are numbered linearly over x and y.

struct Params {
    count: u32,
    /// 1: weight decay applies.
    decay: u32,
}

/// The block of adamw.wgsl; eps and the corrections are not used.
struct Step {
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    correction1: f32,
    correction2: f32,
    unused: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> grad: array<f32>;
@group(0) @binding(3) var<storage, read_write> m: array<f32>;
@group(0) @binding(4) var<storage, read> norm_and_clip: array<f32, 2>;
@group(0) @binding(5) var<storage, read> step: Step;

@compute @workgroup_size(256)
fn update(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if i >= p.count {
        return;
    }
    let factor = norm_and_clip[1];
    if factor > 0.0 {
        let g = factor * grad[i];
        var kept = x[i];
        if p.decay == 1u {
            kept *= 1.0 - step.lr * step.weight_decay;
        }
        x[i] = kept - step.lr * sign(step.beta1 * m[i] + (1.0 - step.beta1) * g);
        m[i] = step.beta2 * m[i] + (1.0 - step.beta2) * g;
    }
    grad[i] = 0.0;
}
