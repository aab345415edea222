// One step of AdamW as adamw.wgsl, with both moments kept in 8 bits (blockwise dynamic quantisation,
// arXiv:2110.02861): moment = scale of its block * map[code]. A block is 256 elements and one workgroup, an invocation
// an element; groups are numbered linearly over x and y. After the update the scale becomes the block's largest
// magnitude and each moment the nearest value of its map; a second moment above 0 never becomes 0. Codes of the first
// moment are stored relative to that of 0, so that zeroed memory holds moments of 0.

struct Params {
    count: u32,
    /// 1: weight decay applies.
    decay: u32,
}

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
/// A block: 64 words of the first moment's codes, 64 of the second's.
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;
/// A block: the first moment's scale, the second's.
@group(0) @binding(4) var<storage, read_write> scales: array<f32>;
@group(0) @binding(5) var<storage, read> norm_and_clip: array<f32, 2>;
@group(0) @binding(6) var<storage, read> step: Step;
/// 256 signed values ascending, 256 unsigned ones ascending.
@group(0) @binding(7) var<storage, read> maps: array<f32, 512>;

const ZERO: u32 = 127u;

var<workgroup> largest: array<vec2<f32>, 256>;
var<workgroup> coded: array<vec2<u32>, 256>;

// Which of 256 ascending values from `base` on is nearest; of two, the lower.
fn nearest(base: u32, value: f32) -> u32 {
    var low = 0u;
    for (var half = 128u; half > 0u; half /= 2u) {
        if maps[base + low + half] <= value {
            low += half;
        }
    }
    if low < 255u {
        if maps[base + low + 1u] - value < value - maps[base + low] {
            low += 1u;
        }
    }
    return low;
}

@compute @workgroup_size(256)
fn update(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = wid.y * groups.x + wid.x;
    let i = block * 256u + lane;
    let inside = i < p.count;
    let factor = norm_and_clip[1];
    var moments = vec2<f32>(0.0);
    if inside && factor > 0.0 {
        let g = factor * grad[i];
        let word = block * 128u + lane / 4u;
        let shift = 8u * (lane % 4u);
        let code1 = ((codes[word] >> shift) + ZERO) & 255u;
        let code2 = (codes[word + 64u] >> shift) & 255u;
        let m = step.beta1 * (scales[2u * block] * maps[code1]) + (1.0 - step.beta1) * g;
        let v = step.beta2 * (scales[2u * block + 1u] * maps[256u + code2]) + (1.0 - step.beta2) * g * g;
        var kept = x[i];
        if p.decay == 1u {
            kept *= 1.0 - step.lr * step.weight_decay;
        }
        x[i] = kept - step.lr * (m / step.correction1) / (sqrt(v / step.correction2) + step.eps);
        moments = vec2<f32>(m, v);
    }
    if inside {
        grad[i] = 0.0;
    }
    largest[lane] = abs(moments);
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            largest[lane] = max(largest[lane], largest[lane + half]);
        }
    }
    workgroupBarrier();
    let scale = largest[0];
    let units = select(vec2<f32>(0.0), moments / max(scale, vec2<f32>(1e-38)), scale > vec2<f32>(0.0));
    let second = max(nearest(256u, units.y), select(0u, 1u, moments.y > 0.0));
    coded[lane] = vec2<u32>((nearest(0u, units.x) + 256u - ZERO) & 255u, second);
    workgroupBarrier();
    if factor > 0.0 && block * 256u < p.count {
        if lane < 128u {
            let which = lane / 64u;
            let first = 4u * (lane % 64u);
            var word = 0u;
            for (var k = 0u; k < 4u; k += 1u) {
                // The moment by a condition: indexing a vector by a variable is slow on some drivers.
                let pair = coded[first + k];
                word |= select(pair.x, pair.y, which == 1u) << (8u * k);
            }
            codes[block * 128u + lane] = word;
        }
        if lane == 0u {
            scales[2u * block] = scale.x;
            scales[2u * block + 1u] = scale.y;
        }
    }
}
