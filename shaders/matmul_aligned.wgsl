// matmul.wgsl's product, for matrices whose rows start at multiples of four elements and whose contiguous axis is a
// multiple of four long: everything is loaded and stored as vec4, and an invocation may keep 8 x 8 sums.
//
// A workgroup of SIDE x SIDE invocations computes a square of 4*GROUPS x 4*GROUPS elements, GROUPS = SIDE * BLOCK; each
// invocation has BLOCK x BLOCK blocks of 4 x 4 of it, SIDE groups of four apart, so that neighbours read neighbouring
// vec4s. Strips of A and B, DEPTH of K at a time, lie in workgroup memory as [k][4 neighbours], as they are or rounded to
// f16 (`Strip`). With `HALVES`, B lies in memory in 16 bits a number. `SCALED` factors are multiplied by scale[0] on their
// way there and the product by scale[1] (`f16_scale.wgsl`).
// Groups are numbered linearly over x and y: batch, then tile row, then tile column.

const LAYOUT: u32 = 0u;
const NN: u32 = 0u;
const NT: u32 = 1u;
const TN: u32 = 2u;
const SIDE: u32 = 16u;
const BLOCK: u32 = 2u;
const DEPTH: u32 = 16u;
const GROUPS: u32 = SIDE * BLOCK;
const THREADS: u32 = SIDE * SIDE;
alias Strip = vec4<f32>;
/// 1: `Strip` is f16.
const NARROW: u32 = 0u;

/// Which factor is scaled: none, A, or B.
const SCALED: u32 = 0u;
/// What B is in memory: f32, f16, or bfloat16.
const HALVES: u32 = 0u;

const ACCUMULATE: u32 = 1u;
const BIAS: u32 = 2u;
const RESIDUAL: u32 = 4u;

struct Matrix {
    offset: u32,
    batch_stride: u32,
    stride: u32,
    unused: u32,
}

struct Params {
    m: u32,
    n: u32,
    k: u32,
    /// Workgroups with work.
    count: u32,
    a: Matrix,
    b: Matrix,
    c: Matrix,
    flags: u32,
    bias_offset: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> c: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> b: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> scale: array<f32>;

var<workgroup> strip_a: array<Strip, DEPTH * GROUPS>;
var<workgroup> strip_b: array<Strip, DEPTH * GROUPS>;

/// f16 ends at 65504: what is larger stays finite.
fn strip_of(x: vec4<f32>) -> Strip {
    if NARROW == 1u {
        return Strip(clamp(x, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
    }
    return Strip(x);
}

/// Four elements of A at element `at`, zero where there is none.
fn of_a(at: u32, inside: bool) -> vec4<f32> {
    if !inside {
        return vec4<f32>(0.0);
    }
    if SCALED == 1u {
        return a[at / 4u] * scale[0];
    }
    return a[at / 4u];
}

/// The f16 in the low half of a word, widened by hand: numbers below the normal range must not become zero.
fn half(word: u32) -> f32 {
    let bits = word & 0x7fffu;
    var magnitude = f32(bits) * 5.9604644775390625e-8;
    if bits >= 0x400u {
        magnitude = bitcast<f32>((bits << 13u) + (112u << 23u));
    }
    return select(magnitude, -magnitude, (word & 0x8000u) != 0u);
}

/// Four elements of B from element `at` on.
fn four_b(at: u32) -> vec4<f32> {
    if HALVES == 0u {
        return bitcast<vec4<f32>>(b[at / 4u]);
    }
    let eight = b[at / 8u];
    let pairs = select(eight.xy, eight.zw, (at & 4u) != 0u);
    if HALVES == 1u {
        return vec4<f32>(half(pairs.x), half(pairs.x >> 16u), half(pairs.y), half(pairs.y >> 16u));
    }
    return bitcast<vec4<f32>>(vec4<u32>(pairs.x << 16u, pairs.x & 0xffff0000u, pairs.y << 16u, pairs.y & 0xffff0000u));
}

fn of_b(at: u32, inside: bool) -> vec4<f32> {
    if !inside {
        return vec4<f32>(0.0);
    }
    if SCALED == 2u {
        return four_b(at) * scale[0];
    }
    return four_b(at);
}

// K lies along a row of the matrix: a block of four rows and four of K is turned round on its way. Neighbouring invocations
// take two blocks of a row, then the next four rows: whole sectors of memory, and few writes into one bank.
fn block_of(i: u32) -> vec2<u32> {
    return vec2<u32>((i & 1u) + 2u * (i / (2u * GROUPS)), i / 2u % GROUPS);
}

fn load_a(lane: u32, base: u32, m0: u32, k0: u32) {
    if LAYOUT == TN {
        for (var i = lane; i < DEPTH * GROUPS; i += THREADS) {
            let k = k0 + i / GROUPS;
            let m = m0 + i % GROUPS * 4u;
            strip_a[i] = strip_of(of_a(base + k * p.a.stride + m, k < p.k && m < p.m));
        }
    } else {
        for (var i = lane; i < DEPTH / 4u * GROUPS; i += THREADS) {
            let block = block_of(i);
            let k = k0 + block.x * 4u;
            let m = m0 + block.y * 4u;
            let at = base + m * p.a.stride + k;
            let x = of_a(at, k < p.k && m < p.m);
            let y = of_a(at + p.a.stride, k < p.k && m + 1u < p.m);
            let z = of_a(at + 2u * p.a.stride, k < p.k && m + 2u < p.m);
            let w = of_a(at + 3u * p.a.stride, k < p.k && m + 3u < p.m);
            let to = block.x * 4u * GROUPS + block.y;
            strip_a[to] = strip_of(vec4<f32>(x.x, y.x, z.x, w.x));
            strip_a[to + GROUPS] = strip_of(vec4<f32>(x.y, y.y, z.y, w.y));
            strip_a[to + 2u * GROUPS] = strip_of(vec4<f32>(x.z, y.z, z.z, w.z));
            strip_a[to + 3u * GROUPS] = strip_of(vec4<f32>(x.w, y.w, z.w, w.w));
        }
    }
}

fn load_b(lane: u32, base: u32, n0: u32, k0: u32) {
    if LAYOUT == NT {
        for (var i = lane; i < DEPTH / 4u * GROUPS; i += THREADS) {
            let block = block_of(i);
            let k = k0 + block.x * 4u;
            let n = n0 + block.y * 4u;
            let at = base + n * p.b.stride + k;
            let x = of_b(at, k < p.k && n < p.n);
            let y = of_b(at + p.b.stride, k < p.k && n + 1u < p.n);
            let z = of_b(at + 2u * p.b.stride, k < p.k && n + 2u < p.n);
            let w = of_b(at + 3u * p.b.stride, k < p.k && n + 3u < p.n);
            let to = block.x * 4u * GROUPS + block.y;
            strip_b[to] = strip_of(vec4<f32>(x.x, y.x, z.x, w.x));
            strip_b[to + GROUPS] = strip_of(vec4<f32>(x.y, y.y, z.y, w.y));
            strip_b[to + 2u * GROUPS] = strip_of(vec4<f32>(x.z, y.z, z.z, w.z));
            strip_b[to + 3u * GROUPS] = strip_of(vec4<f32>(x.w, y.w, z.w, w.w));
        }
    } else {
        for (var i = lane; i < DEPTH * GROUPS; i += THREADS) {
            let k = k0 + i / GROUPS;
            let n = n0 + i % GROUPS * 4u;
            strip_b[i] = strip_of(of_b(base + k * p.b.stride + n, k < p.k && n < p.n));
        }
    }
}

/// Row i of the result is x[i] * y.
fn outer(x: Strip, y: Strip) -> mat4x4<f32> {
    let wide = vec4<f32>(y);
    return mat4x4<f32>(f32(x.x) * wide, f32(x.y) * wide, f32(x.z) * wide, f32(x.w) * wide);
}

fn store(base: u32, row: u32, column: u32, rows: mat4x4<f32>) {
    if column >= p.n {
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        if row + i < p.m {
            let at = (base + (row + i) * p.c.stride + column) / 4u;
            var sum = rows[i];
            if SCALED != 0u {
                sum *= scale[1];
            }
            if (p.flags & ACCUMULATE) != 0u {
                sum += c[at];
            }
            if (p.flags & BIAS) != 0u {
                sum += bias[(p.bias_offset + column) / 4u];
            }
            if (p.flags & RESIDUAL) != 0u {
                sum += residual[at];
            }
            c[at] = sum;
        }
    }
}

fn tile(number: u32, lane: u32) {
    let across = (p.n + 4u * GROUPS - 1u) / (4u * GROUPS);
    let down = (p.m + 4u * GROUPS - 1u) / (4u * GROUPS);
    let batch = number / (across * down);
    let within = number % (across * down);
    let m0 = within / across * 4u * GROUPS;
    let n0 = within % across * 4u * GROUPS;
    let base_a = p.a.offset + batch * p.a.batch_stride;
    let base_b = p.b.offset + batch * p.b.batch_stride;

    let y4 = lane / SIDE;
    let x4 = lane % SIDE;
    var near = mat4x4<f32>();
    var right = mat4x4<f32>();
    var below = mat4x4<f32>();
    var far = mat4x4<f32>();
    for (var k0 = 0u; k0 < p.k; k0 += DEPTH) {
        load_a(lane, base_a, m0, k0);
        load_b(lane, base_b, n0, k0);
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let u = strip_a[k * GROUPS + y4];
            let v = strip_b[k * GROUPS + x4];
            near += outer(u, v);
            if BLOCK == 2u {
                let s = strip_a[k * GROUPS + (BLOCK - 1u) * SIDE + y4];
                let t = strip_b[k * GROUPS + (BLOCK - 1u) * SIDE + x4];
                right += outer(u, t);
                below += outer(s, v);
                far += outer(s, t);
            }
        }
        workgroupBarrier();
    }

    let base = p.c.offset + batch * p.c.batch_stride;
    let row = m0 + y4 * 4u;
    let column = n0 + x4 * 4u;
    store(base, row, column, near);
    if BLOCK == 2u {
        store(base, row, column + 4u * SIDE, right);
        store(base, row + 4u * SIDE, column, below);
        store(base, row + 4u * SIDE, column + 4u * SIDE, far);
    }
}

@compute @workgroup_size(THREADS)
fn tiles(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = wid.y * groups.x + wid.x;
    if number < p.count {
        tile(number, lane);
    }
}
