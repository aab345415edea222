// C = A * B for row-major matrices, in three layouts and in batches:
//   NN: A [M, K], B [K, N]      NT: A [M, K], B [N, K]      TN: A [K, M], B [K, N]
// then, as `flags` say, C += the old C, + bias[column], + residual at C's place.
//
// `tiles`: a workgroup of SIDE x SIDE invocations computes a square of 4*SIDE x 4*SIDE elements, 4 x 4 in each
// invocation's registers. It walks K in steps of DEPTH: loads a strip of A and of B into workgroup memory, both
// laid out [k][4 neighbours], then adds DEPTH outer products. One vec4 in workgroup memory has one writer. Groups are
// numbered linearly over x and y: batch, then tile row, then tile column.
// `few_rows`: NT with M <= 4, where the time is that of reading B once: 8 columns a workgroup, 32 invocations
// share a column's sum over K. Groups: batch, then block of columns.

const LAYOUT: u32 = 0u;
const NN: u32 = 0u;
const NT: u32 = 1u;
const TN: u32 = 2u;
const SIDE: u32 = 16u;
const DEPTH: u32 = 16u;
const THREADS: u32 = SIDE * SIDE;
/// One vec4 more than needed: stores along k then fall into different banks.
const PITCH: u32 = SIDE + 1u;

const ACCUMULATE: u32 = 1u;
const BIAS: u32 = 2u;
const RESIDUAL: u32 = 4u;

struct Matrix {
    offset: u32,
    batch_stride: u32,
    stride: u32,
    /// Structs in a uniform block start at multiples of 16 bytes.
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
@group(0) @binding(1) var<storage, read_write> c: array<f32>;
@group(0) @binding(2) var<storage, read> a: array<f32>;
@group(0) @binding(3) var<storage, read> b: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> residual: array<f32>;

var<workgroup> strip_a: array<vec4<f32>, DEPTH * PITCH>;
var<workgroup> strip_b: array<vec4<f32>, DEPTH * PITCH>;

fn store(base: u32, row: u32, column: u32, value: f32) {
    let at = base + row * p.c.stride + column;
    var sum = value;
    if (p.flags & ACCUMULATE) != 0u {
        sum += c[at];
    }
    if (p.flags & BIAS) != 0u {
        sum += bias[p.bias_offset + column];
    }
    if (p.flags & RESIDUAL) != 0u {
        sum += residual[at];
    }
    c[at] = sum;
}

// Four elements of a row-major matrix at element `at`, `step` apart, zero where `i + 0..4` reaches `limit`.
fn four_of_a(at: u32, step: u32, i: u32, limit: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    if i + 3u < limit {
        v = vec4<f32>(a[at], a[at + step], a[at + 2u * step], a[at + 3u * step]);
    } else {
        if i < limit {
            v.x = a[at];
        }
        if i + 1u < limit {
            v.y = a[at + step];
        }
        if i + 2u < limit {
            v.z = a[at + 2u * step];
        }
    }
    return v;
}

fn four_of_b(at: u32, step: u32, i: u32, limit: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    if i + 3u < limit {
        v = vec4<f32>(b[at], b[at + step], b[at + 2u * step], b[at + 3u * step]);
    } else {
        if i < limit {
            v.x = b[at];
        }
        if i + 1u < limit {
            v.y = b[at + step];
        }
        if i + 2u < limit {
            v.z = b[at + 2u * step];
        }
    }
    return v;
}

// Rows m0.. of A (its columns for TN) and k0.. as strip_a[k][row / 4]; the same of B's columns.
fn load_strips(lane: u32, base_a: u32, base_b: u32, m0: u32, n0: u32, k0: u32) {
    for (var i = lane; i < DEPTH * SIDE; i += THREADS) {
        // Neighbouring invocations read neighbouring elements: along k, or along the row where that is contiguous.
        let along_k = vec2<u32>(i % DEPTH, i / DEPTH);
        let along_row = vec2<u32>(i / SIDE, i % SIDE);

        let at_a = select(along_k, along_row, LAYOUT == TN);
        let m = m0 + at_a.y * 4u;
        let ka = k0 + at_a.x;
        var from_a = vec4<f32>(0.0);
        if ka < p.k {
            if LAYOUT == TN {
                from_a = four_of_a(base_a + ka * p.a.stride + m, 1u, m, p.m);
            } else {
                from_a = four_of_a(base_a + m * p.a.stride + ka, p.a.stride, m, p.m);
            }
        }
        strip_a[at_a.x * PITCH + at_a.y] = from_a;

        let at_b = select(along_row, along_k, LAYOUT == NT);
        let n = n0 + at_b.y * 4u;
        let kb = k0 + at_b.x;
        var from_b = vec4<f32>(0.0);
        if kb < p.k {
            if LAYOUT == NT {
                from_b = four_of_b(base_b + n * p.b.stride + kb, p.b.stride, n, p.n);
            } else {
                from_b = four_of_b(base_b + kb * p.b.stride + n, 1u, n, p.n);
            }
        }
        strip_b[at_b.x * PITCH + at_b.y] = from_b;
    }
}

fn store_row(base: u32, row: u32, column: u32, values: vec4<f32>) {
    if row < p.m {
        for (var j = 0u; j < 4u; j++) {
            if column + j < p.n {
                store(base, row, column + j, values[j]);
            }
        }
    }
}

fn tile(number: u32, lane: u32) {
    let across = (p.n + 4u * SIDE - 1u) / (4u * SIDE);
    let down = (p.m + 4u * SIDE - 1u) / (4u * SIDE);
    let batch = number / (across * down);
    let within = number % (across * down);
    let m0 = within / across * 4u * SIDE;
    let n0 = within % across * 4u * SIDE;
    let base_a = p.a.offset + batch * p.a.batch_stride;
    let base_b = p.b.offset + batch * p.b.batch_stride;

    let down4 = lane / SIDE;
    let across4 = lane % SIDE;
    var sum0 = vec4<f32>(0.0);
    var sum1 = vec4<f32>(0.0);
    var sum2 = vec4<f32>(0.0);
    var sum3 = vec4<f32>(0.0);
    for (var k0 = 0u; k0 < p.k; k0 += DEPTH) {
        load_strips(lane, base_a, base_b, m0, n0, k0);
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let x = strip_a[k * PITCH + down4];
            let y = strip_b[k * PITCH + across4];
            sum0 += x.x * y;
            sum1 += x.y * y;
            sum2 += x.z * y;
            sum3 += x.w * y;
        }
        workgroupBarrier();
    }

    let base = p.c.offset + batch * p.c.batch_stride;
    let row = m0 + down4 * 4u;
    let column = n0 + across4 * 4u;
    store_row(base, row, column, sum0);
    store_row(base, row + 1u, column, sum1);
    store_row(base, row + 2u, column, sum2);
    store_row(base, row + 3u, column, sum3);
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

const COLUMNS: u32 = 8u;
const SHARE: u32 = 32u;
var<workgroup> sums: array<vec4<f32>, COLUMNS * SHARE>;

fn columns(number: u32, lane: u32) {
    let blocks = (p.n + COLUMNS - 1u) / COLUMNS;
    let batch = number / blocks;
    let n = number % blocks * COLUMNS + lane / SHARE;
    let base_a = p.a.offset + batch * p.a.batch_stride;
    let base_b = p.b.offset + batch * p.b.batch_stride + n * p.b.stride;
    var sum = vec4<f32>(0.0);
    if n < p.n {
        for (var k = lane % SHARE; k < p.k; k += SHARE) {
            sum += b[base_b + k] * four_of_a(base_a + k, p.a.stride, 0u, p.m);
        }
    }
    sums[lane] = sum;
    for (var half = SHARE / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % SHARE < half {
            sum += sums[lane + half];
            sums[lane] = sum;
        }
    }
    if n < p.n && lane % SHARE == 0u {
        let base = p.c.offset + batch * p.c.batch_stride;
        for (var m = 0u; m < p.m; m++) {
            store(base, m, n, sum[m]);
        }
    }
}

@compute @workgroup_size(256)
fn few_rows(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = wid.y * groups.x + wid.x;
    if number < p.count {
        columns(number, lane);
    }
}
