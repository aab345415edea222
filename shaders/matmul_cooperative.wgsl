// matmul_aligned.wgsl's product by cooperative matrices: a subgroup multiplies blocks of EDGE x EDGE of f16 at once and adds
// them up in f32. For native drivers only; browsers have none.
//
// A workgroup computes PANELS_DOWN x PANELS_ACROSS panels, each a subgroup's: 2 x 4 blocks. There are never fewer subgroups;
// if the driver makes more, they do the last one's work beside it, for what they do together must not branch. Strips of A
// and B, DEPTH of K at a time, lie in workgroup memory as they lie in the matrix, rounded to f16, with eight elements
// between lines, so that blocks' lines start in different banks. With `HALVES`, B lies in memory in 16 bits a number.
// `SCALED` factors are multiplied by scale[0] on their way there and the product by scale[1] (`f16_scale.wgsl`). At the end
// each subgroup puts one block at a time into workgroup memory, from where all invocations write it.
// Groups are numbered linearly over x and y: batch, then tile row, then tile column.
enable f16;
enable wgpu_cooperative_matrix;

const LAYOUT: u32 = 0u;
const EDGE: u32 = 16u;
const PANELS_DOWN: u32 = 4u;
const PANELS_ACROSS: u32 = 2u;
const DEPTH: u32 = 32u;
const THREADS: u32 = 256u;
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;

/// Which factor is scaled: none, A, or B.
const SCALED: u32 = 0u;
/// What B is in memory: f32, f16, or bfloat16.
const HALVES: u32 = 0u;

const PANELS: u32 = PANELS_DOWN * PANELS_ACROSS;
const TILE_M: u32 = PANELS_DOWN * 2u * EDGE;
const TILE_N: u32 = PANELS_ACROSS * 4u * EDGE;
/// Layout TN has the lines of A, and NT those of B, along the other axis.
const TURNED_A: u32 = LAYOUT / 2u;
const TURNED_B: u32 = LAYOUT % 2u;
const LINES_A: u32 = TURNED_A * DEPTH + (1u - TURNED_A) * TILE_M;
const LINES_B: u32 = TURNED_B * TILE_N + (1u - TURNED_B) * DEPTH;
const LENGTH_A: u32 = TURNED_A * TILE_M + (1u - TURNED_A) * DEPTH;
const LENGTH_B: u32 = TURNED_B * DEPTH + (1u - TURNED_B) * TILE_N;
const PITCH_A: u32 = LENGTH_A + 8u;
const PITCH_B: u32 = LENGTH_B + 8u;

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

var<workgroup> strip_a: array<f16, LINES_A * PITCH_A>;
var<workgroup> strip_b: array<f16, LINES_B * PITCH_B>;
var<workgroup> blocks: array<f32, PANELS * EDGE * EDGE>;

/// f16 ends at 65504: what is larger stays finite.
fn narrow(x: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(x, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
}

/// Four elements of B from element `at` on.
fn four_b(at: u32) -> vec4<f32> {
    if HALVES == 0u {
        return bitcast<vec4<f32>>(b[at / 4u]);
    }
    let eight = b[at / 8u];
    let pairs = select(eight.xy, eight.zw, (at & 4u) != 0u);
    if HALVES == 1u {
        return vec4<f32>(unpack2x16float(pairs.x), unpack2x16float(pairs.y));
    }
    return bitcast<vec4<f32>>(vec4<u32>(pairs.x << 16u, pairs.x & 0xffff0000u, pairs.y << 16u, pairs.y & 0xffff0000u));
}

fn load_strips(lane: u32, base_a: u32, base_b: u32, m0: u32, n0: u32, k0: u32) {
    for (var i = lane; i < LINES_A * LENGTH_A / 4u; i += THREADS) {
        let line = i / (LENGTH_A / 4u);
        let along = i % (LENGTH_A / 4u) * 4u;
        let m = m0 + TURNED_A * along + (1u - TURNED_A) * line;
        let k = k0 + TURNED_A * line + (1u - TURNED_A) * along;
        var x = vec4<f32>(0.0);
        if m < p.m && k < p.k {
            x = a[(base_a + (TURNED_A * k + (1u - TURNED_A) * m) * p.a.stride + TURNED_A * m + (1u - TURNED_A) * k) / 4u];
        }
        if SCALED == 1u {
            x *= scale[0];
        }
        let short = narrow(x);
        let to = line * PITCH_A + along;
        strip_a[to] = short.x;
        strip_a[to + 1u] = short.y;
        strip_a[to + 2u] = short.z;
        strip_a[to + 3u] = short.w;
    }
    for (var i = lane; i < LINES_B * LENGTH_B / 4u; i += THREADS) {
        let line = i / (LENGTH_B / 4u);
        let along = i % (LENGTH_B / 4u) * 4u;
        let n = n0 + TURNED_B * line + (1u - TURNED_B) * along;
        let k = k0 + TURNED_B * along + (1u - TURNED_B) * line;
        var x = vec4<f32>(0.0);
        if n < p.n && k < p.k {
            x = four_b(base_b + (TURNED_B * n + (1u - TURNED_B) * k) * p.b.stride + TURNED_B * k + (1u - TURNED_B) * n);
        }
        if SCALED == 2u {
            x *= scale[0];
        }
        let short = narrow(x);
        let to = line * PITCH_B + along;
        strip_b[to] = short.x;
        strip_b[to + 1u] = short.y;
        strip_b[to + 2u] = short.z;
        strip_b[to + 3u] = short.w;
    }
}

/// Writes the block that each panel has put into workgroup memory: the one at (`down`, `across`) of its panel.
fn write_blocks(lane: u32, base: u32, m0: u32, n0: u32, down: u32, across: u32) {
    workgroupBarrier();
    for (var i = lane * 4u; i < PANELS * EDGE * EDGE; i += THREADS * 4u) {
        let panel = i / (EDGE * EDGE);
        let row = m0 + (panel / PANELS_ACROSS * 2u + down) * EDGE + i / EDGE % EDGE;
        let column = n0 + (panel % PANELS_ACROSS * 4u + across) * EDGE + i % EDGE;
        if row < p.m && column < p.n {
            let at = (base + row * p.c.stride + column) / 4u;
            var sum = vec4<f32>(blocks[i], blocks[i + 1u], blocks[i + 2u], blocks[i + 3u]);
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
    workgroupBarrier();
}

/// Where a block of A at (`row`, `k`) of the strip starts.
fn at_a(row: u32, k: u32) -> u32 {
    return TURNED_A * (k * PITCH_A + row) + (1u - TURNED_A) * (row * PITCH_A + k);
}

fn at_b(column: u32, k: u32) -> u32 {
    return TURNED_B * (column * PITCH_B + k) + (1u - TURNED_B) * (k * PITCH_B + column);
}

fn tile(number: u32, lane: u32, panel: u32) {
    let across = (p.n + TILE_N - 1u) / TILE_N;
    let down = (p.m + TILE_M - 1u) / TILE_M;
    let batch = number / (across * down);
    let within = number % (across * down);
    let m0 = within / across * TILE_M;
    let n0 = within % across * TILE_N;
    let base_a = p.a.offset + batch * p.a.batch_stride;
    let base_b = p.b.offset + batch * p.b.batch_stride;
    let row = panel / PANELS_ACROSS * 2u * EDGE;
    let column = panel % PANELS_ACROSS * 4u * EDGE;

    var c00 = Sum();
    var c01 = Sum();
    var c02 = Sum();
    var c03 = Sum();
    var c10 = Sum();
    var c11 = Sum();
    var c12 = Sum();
    var c13 = Sum();
    for (var k0 = 0u; k0 < p.k; k0 += DEPTH) {
        load_strips(lane, base_a, base_b, m0, n0, k0);
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k += EDGE) {
            var a0 = Left();
            var a1 = Left();
            if TURNED_A == 1u {
                a0 = coopLoad<Left>(&strip_a[at_a(row, k)], PITCH_A);
                a1 = coopLoad<Left>(&strip_a[at_a(row + EDGE, k)], PITCH_A);
            } else {
                a0 = coopLoadT<Left>(&strip_a[at_a(row, k)], PITCH_A);
                a1 = coopLoadT<Left>(&strip_a[at_a(row + EDGE, k)], PITCH_A);
            }
            var b0 = Right();
            var b1 = Right();
            var b2 = Right();
            var b3 = Right();
            if TURNED_B == 1u {
                b0 = coopLoad<Right>(&strip_b[at_b(column, k)], PITCH_B);
                b1 = coopLoad<Right>(&strip_b[at_b(column + EDGE, k)], PITCH_B);
                b2 = coopLoad<Right>(&strip_b[at_b(column + 2u * EDGE, k)], PITCH_B);
                b3 = coopLoad<Right>(&strip_b[at_b(column + 3u * EDGE, k)], PITCH_B);
            } else {
                b0 = coopLoadT<Right>(&strip_b[at_b(column, k)], PITCH_B);
                b1 = coopLoadT<Right>(&strip_b[at_b(column + EDGE, k)], PITCH_B);
                b2 = coopLoadT<Right>(&strip_b[at_b(column + 2u * EDGE, k)], PITCH_B);
                b3 = coopLoadT<Right>(&strip_b[at_b(column + 3u * EDGE, k)], PITCH_B);
            }
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c02 = coopMultiplyAdd(a0, b2, c02);
            c03 = coopMultiplyAdd(a0, b3, c03);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            c12 = coopMultiplyAdd(a1, b2, c12);
            c13 = coopMultiplyAdd(a1, b3, c13);
        }
        workgroupBarrier();
    }

    let base = p.c.offset + batch * p.c.batch_stride;
    let own = panel * EDGE * EDGE;
    coopStoreT(c00, &blocks[own], EDGE);
    write_blocks(lane, base, m0, n0, 0u, 0u);
    coopStoreT(c01, &blocks[own], EDGE);
    write_blocks(lane, base, m0, n0, 0u, 1u);
    coopStoreT(c02, &blocks[own], EDGE);
    write_blocks(lane, base, m0, n0, 0u, 2u);
    coopStoreT(c03, &blocks[own], EDGE);
    write_blocks(lane, base, m0, n0, 0u, 3u);
    coopStoreT(c10, &blocks[own], EDGE);
    write_blocks(lane, base, m0, n0, 1u, 0u);
    coopStoreT(c11, &blocks[own], EDGE);
    write_blocks(lane, base, m0, n0, 1u, 1u);
    coopStoreT(c12, &blocks[own], EDGE);
    write_blocks(lane, base, m0, n0, 1u, 2u);
    coopStoreT(c13, &blocks[own], EDGE);
    write_blocks(lane, base, m0, n0, 1u, 3u);
}

@compute @workgroup_size(THREADS)
fn tiles(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let number = wid.y * groups.x + wid.x;
    if number < p.count {
        tile(number, lane, min(subgroup, PANELS - 1u));
    }
}
