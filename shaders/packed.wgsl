// Products with a matrix W [N, K] that stays in the blocks of its file's type, and rows of one.
// A row of W is ROW_WORDS words: its blocks in order, each padded to whole words; F16 and BF16 two numbers a word. `four`
// decodes neighbours k .. k + 3 of a row, k a multiple of 4. The formulas are those of src/formats/quants.rs, taken in the
// same order; scales that are f16 are widened by hand, for f16 numbers below the normal range must not become zero.
//
// `tiles`: y = x * W^T (+ bias) (+ residual), x [M, K]. A workgroup of SIDE x SIDE invocations computes a square of
// 4*SIDE x 4*SIDE elements, 4 x 4 in each invocation's registers. It walks K in steps of DEPTH: decodes a strip of W into
// workgroup memory beside one of x, both laid out [k][4 neighbours], then adds DEPTH outer products. One vec4 in
// workgroup memory has one writer. Groups are numbered linearly over x and y: tile row, then tile column.
// `few_rows`: the same for M <= 4: 8 columns a workgroup, 32 invocations share a column's sum over K.
// `rows`: y[i] = scale * W[ids[i]]. A table too large for one binding comes in pieces, a dispatch each: this one sees
// rows first .. first + rows of `vocabulary`. Ids past the vocabulary give rows of zeros, written with the first piece.
// One invocation four elements.
// `halves`: W's values as f16, two a word, four to an invocation.

const FORMAT: u32 = 0u;
const F16: u32 = 0u;
const BF16: u32 = 1u;
const Q4_0: u32 = 2u;
const Q4_1: u32 = 3u;
const Q5_0: u32 = 4u;
const Q5_1: u32 = 5u;
const Q8_0: u32 = 6u;
const Q2_K: u32 = 7u;
const Q3_K: u32 = 8u;
const Q4_K: u32 = 9u;
const Q5_K: u32 = 10u;
const Q6_K: u32 = 11u;

/// Values in a block, words in a block, words in a row.
const VALUES: u32 = 4u;
const WORDS: u32 = 2u;
const ROW_WORDS: u32 = 2u;
const SIDE: u32 = 16u;
const DEPTH: u32 = 16u;
const THREADS: u32 = SIDE * SIDE;
/// One vec4 more than needed: stores along k then fall into different banks.
const PITCH: u32 = SIDE + 1u;

const BIAS: u32 = 1u;
const RESIDUAL: u32 = 2u;

struct Params {
    m: u32,
    n: u32,
    k: u32,
    /// Workgroups with work.
    count: u32,
    x_offset: u32,
    x_stride: u32,
    y_stride: u32,
    /// The column of y that W's first row here gives.
    first: u32,
    flags: u32,
}

struct RowParams {
    count: u32,
    rows: u32,
    cols: u32,
    vocabulary: u32,
    first: u32,
    scale: f32,
}

// `tiles` and `few_rows` bind p, y, x, w, bias, residual; `rows` binds r, y, ids, w; `halves` binds r, short, -, w.
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<uniform> r: RowParams;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read_write> short: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read> w: array<u32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> residual: array<f32>;

// An f16 in the low half of a word.
fn half(word: u32) -> f32 {
    let bits = word & 0x7fffu;
    var magnitude = f32(bits) * 5.9604644775390625e-8;
    if bits >= 0x400u {
        magnitude = bitcast<f32>((bits << 13u) + (112u << 23u));
    }
    return select(magnitude, -magnitude, (word & 0x8000u) != 0u);
}

// What lies from an even byte on of the block at word `base`: a half, four bytes, one byte.
fn half_at(base: u32, byte: u32) -> f32 {
    return half(w[base + byte / 4u] >> ((byte & 2u) * 8u));
}

fn word_at(base: u32, byte: u32) -> u32 {
    let at = base + byte / 4u;
    var word = w[at];
    if (byte & 2u) != 0u {
        word = (word >> 16u) | (w[at + 1u] << 16u);
    }
    return word;
}

fn byte_at(base: u32, byte: u32) -> u32 {
    return (w[base + byte / 4u] >> ((byte & 3u) * 8u)) & 255u;
}

// The four bytes of a word.
fn bytes(word: u32) -> vec4<u32> {
    return vec4<u32>(word & 255u, (word >> 8u) & 255u, (word >> 16u) & 255u, word >> 24u);
}

fn signed(byte: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(vec4<i32>(byte << vec4<u32>(24u)) >> vec4<u32>(24u));
}

// Nibbles i .. i + 3 of 32 whose 16 bytes start at `byte`: low halves first.
fn nibbles(base: u32, byte: u32, i: u32) -> vec4<u32> {
    return bytes((word_at(base, byte + i % 16u) >> (i / 16u * 4u)) & 0x0f0f0f0fu);
}

// The fifth bits of values i .. i + 3.
fn fifths(base: u32, byte: u32, i: u32) -> vec4<u32> {
    let high = word_at(base, byte) >> i;
    return vec4<u32>(high << 4u, high << 3u, high << 2u, high << 1u) & vec4<u32>(16u);
}

// The 6-bit scale and min of sub-block `sub` of a Q4_K or Q5_K block.
fn six_bit_pair(base: u32, sub: u32) -> vec2<f32> {
    if sub < 4u {
        return vec2<f32>(f32(byte_at(base, 4u + sub) & 63u), f32(byte_at(base, 8u + sub) & 63u));
    }
    let low = byte_at(base, 8u + sub);
    let scale = (low & 15u) | ((byte_at(base, sub) >> 6u) << 4u);
    let minimum = (low >> 4u) | ((byte_at(base, 4u + sub) >> 6u) << 4u);
    return vec2<f32>(f32(scale), f32(minimum));
}

// Values i .. i + 3 of the block of 32 at word `base`.
fn four_of_32(base: u32, i: u32) -> vec4<f32> {
    let d = half_at(base, 0u);
    switch FORMAT {
        case Q4_0: { return d * (vec4<f32>(nibbles(base, 2u, i)) - 8.0); }
        case Q4_1: { return d * vec4<f32>(nibbles(base, 4u, i)) + half_at(base, 2u); }
        case Q5_0: { return d * (vec4<f32>(nibbles(base, 6u, i) | fifths(base, 2u, i)) - 16.0); }
        case Q5_1: { return d * vec4<f32>(nibbles(base, 8u, i) | fifths(base, 4u, i)) + half_at(base, 2u); }
        default: { return signed(bytes(word_at(base, 2u + i))) * d; }
    }
}

fn q2_k(base: u32, i: u32) -> vec4<f32> {
    let sub = byte_at(base, i / 16u);
    let q = bytes((w[base + 4u + i / 128u * 8u + i % 32u / 4u] >> (i % 128u / 32u * 2u)) & 0x03030303u);
    return half_at(base, 80u) * f32(sub & 15u) * vec4<f32>(q) - half_at(base, 82u) * f32(sub >> 4u);
}

fn q3_k(base: u32, i: u32) -> vec4<f32> {
    let s = i / 16u;
    let low = (byte_at(base, 96u + s % 8u) >> (s / 8u * 4u)) & 15u;
    let high = (byte_at(base, 104u + s % 4u) >> (s / 4u * 2u)) & 3u;
    let scale = half_at(base, 108u) * (f32(low | (high << 4u)) - 32.0);
    let q = bytes((w[base + 8u + i / 128u * 8u + i % 32u / 4u] >> (i % 128u / 32u * 2u)) & 0x03030303u);
    let mask = bytes((w[base + i % 32u / 4u] >> (i / 32u)) & 0x01010101u);
    return scale * (vec4<f32>(q) + 4.0 * vec4<f32>(mask) - 4.0);
}

fn q4_or_5_k(base: u32, i: u32) -> vec4<f32> {
    let sub = i / 32u;
    let within = i % 32u / 4u;
    let pair = six_bit_pair(base, sub);
    let start = base + select(4u, 12u, FORMAT == Q5_K);
    var q = bytes((w[start + sub / 2u * 8u + within] >> (sub % 2u * 4u)) & 0x0f0f0f0fu);
    if FORMAT == Q5_K {
        q |= bytes((w[base + 4u + within] >> sub) & 0x01010101u) << vec4<u32>(4u);
    }
    return half_at(base, 0u) * pair.x * vec4<f32>(q) - half_at(base, 2u) * pair.y;
}

fn q6_k(base: u32, i: u32) -> vec4<f32> {
    let run = i / 128u;
    let within = i % 128u;
    let low = (w[base + run * 16u + within % 64u / 4u] >> (within / 64u * 4u)) & 0x0f0f0f0fu;
    let two = (w[base + 32u + run * 8u + within % 32u / 4u] >> (within / 32u * 2u)) & 0x03030303u;
    let scale = half_at(base, 208u) * signed(vec4<u32>(byte_at(base, 192u + i / 16u))).x;
    return scale * (vec4<f32>(bytes(low | (two << 4u))) - 32.0);
}

// Elements k .. k + 3 of the row that starts at word `row`.
fn four(row: u32, k: u32) -> vec4<f32> {
    let base = row + k / VALUES * WORDS;
    let i = k % VALUES;
    switch FORMAT {
        case F16: {
            let words = vec2<u32>(w[base], w[base + 1u]);
            return vec4<f32>(half(words.x), half(words.x >> 16u), half(words.y), half(words.y >> 16u));
        }
        case BF16: {
            let words = vec4<u32>(w[base] << 16u, w[base], w[base + 1u] << 16u, w[base + 1u]);
            return bitcast<vec4<f32>>(words & vec4<u32>(0xffff0000u));
        }
        case Q2_K: { return q2_k(base, i); }
        case Q3_K: { return q3_k(base, i); }
        case Q4_K, Q5_K: { return q4_or_5_k(base, i); }
        case Q6_K: { return q6_k(base, i); }
        default: { return four_of_32(base, i); }
    }
}

var<workgroup> strip_x: array<vec4<f32>, DEPTH * PITCH>;
var<workgroup> strip_w: array<vec4<f32>, DEPTH * PITCH>;

fn store(row: u32, column: u32, value: f32) {
    let at = row * p.y_stride + p.first + column;
    var sum = value;
    if (p.flags & BIAS) != 0u {
        sum += bias[p.first + column];
    }
    if (p.flags & RESIDUAL) != 0u {
        sum += residual[at];
    }
    y[at] = sum;
}

// Element k of rows m .. m + 3 of x; zero past the last row.
fn four_rows(m: u32, k: u32) -> vec4<f32> {
    let at = p.x_offset + m * p.x_stride + k;
    var v = vec4<f32>(0.0);
    if m < p.m {
        v.x = x[at];
    }
    if m + 1u < p.m {
        v.y = x[at + p.x_stride];
    }
    if m + 2u < p.m {
        v.z = x[at + 2u * p.x_stride];
    }
    if m + 3u < p.m {
        v.w = x[at + 3u * p.x_stride];
    }
    return v;
}

// Neighbours k .. k + 3 of row n of W; zero past the matrix.
fn decoded(n: u32, k: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    if n < p.n && k < p.k {
        v = four(n * ROW_WORDS, k);
    }
    return v;
}

// Rows m0.. of x and n0.. of W from k0 on, as strip[k][row / 4].
fn load_strips(lane: u32, m0: u32, n0: u32, k0: u32) {
    for (var i = lane; i < DEPTH * SIDE; i += THREADS) {
        // Neighbouring invocations read neighbouring elements.
        let k = i % DEPTH;
        var of_x = vec4<f32>(0.0);
        if k0 + k < p.k {
            of_x = four_rows(m0 + i / DEPTH * 4u, k0 + k);
        }
        strip_x[k * PITCH + i / DEPTH] = of_x;
    }
    // Four rows of W by four neighbours, turned.
    for (var i = lane; i < DEPTH / 4u * SIDE; i += THREADS) {
        let k = i % (DEPTH / 4u) * 4u;
        let across = i / (DEPTH / 4u);
        let n = n0 + across * 4u;
        let a = decoded(n, k0 + k);
        let b = decoded(n + 1u, k0 + k);
        let c = decoded(n + 2u, k0 + k);
        let d = decoded(n + 3u, k0 + k);
        let at = k * PITCH + across;
        strip_w[at] = vec4<f32>(a.x, b.x, c.x, d.x);
        strip_w[at + PITCH] = vec4<f32>(a.y, b.y, c.y, d.y);
        strip_w[at + 2u * PITCH] = vec4<f32>(a.z, b.z, c.z, d.z);
        strip_w[at + 3u * PITCH] = vec4<f32>(a.w, b.w, c.w, d.w);
    }
}

fn store_row(row: u32, column: u32, values: vec4<f32>) {
    if row < p.m {
        for (var j = 0u; j < 4u; j++) {
            if column + j < p.n {
                store(row, column + j, values[j]);
            }
        }
    }
}

fn tile(number: u32, lane: u32) {
    let tiles_across = (p.n + 4u * SIDE - 1u) / (4u * SIDE);
    let m0 = number / tiles_across * 4u * SIDE;
    let n0 = number % tiles_across * 4u * SIDE;
    let down = lane / SIDE;
    let across = lane % SIDE;
    var sum0 = vec4<f32>(0.0);
    var sum1 = vec4<f32>(0.0);
    var sum2 = vec4<f32>(0.0);
    var sum3 = vec4<f32>(0.0);
    for (var k0 = 0u; k0 < p.k; k0 += DEPTH) {
        load_strips(lane, m0, n0, k0);
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let a = strip_x[k * PITCH + down];
            let b = strip_w[k * PITCH + across];
            sum0 += a.x * b;
            sum1 += a.y * b;
            sum2 += a.z * b;
            sum3 += a.w * b;
        }
        workgroupBarrier();
    }
    let row = m0 + down * 4u;
    let column = n0 + across * 4u;
    store_row(row, column, sum0);
    store_row(row + 1u, column, sum1);
    store_row(row + 2u, column, sum2);
    store_row(row + 3u, column, sum3);
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
    let n = number * COLUMNS + lane / SHARE;
    var sum = vec4<f32>(0.0);
    if n < p.n {
        for (var k = lane % SHARE * 4u; k < p.k; k += SHARE * 4u) {
            let b = four(n * ROW_WORDS, k);
            sum += b.x * four_rows(0u, k) + b.y * four_rows(0u, k + 1u);
            sum += b.z * four_rows(0u, k + 2u) + b.w * four_rows(0u, k + 3u);
        }
    }
    sums[lane] = sum;
    for (var reach = SHARE / 2u; reach > 0u; reach /= 2u) {
        workgroupBarrier();
        if lane % SHARE < reach {
            sum += sums[lane + reach];
            sums[lane] = sum;
        }
    }
    if n < p.n && lane % SHARE == 0u {
        for (var m = 0u; m < p.m; m++) {
            store(m, n, sum[m]);
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

@compute @workgroup_size(256)
fn rows(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = ((wid.y * groups.x + wid.x) * 256u + lane) * 4u;
    if at >= r.count * r.cols {
        return;
    }
    let id = ids[at / r.cols];
    var values = vec4<f32>(0.0);
    if id >= r.vocabulary {
        if r.first != 0u {
            return;
        }
    } else if id >= r.first && id - r.first < r.rows {
        values = r.scale * four((id - r.first) * ROW_WORDS, at % r.cols);
    } else {
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        y[at + i] = values[i];
    }
}

// The bits of the f16 nearest to x; f16 ends at 65504: what is larger stays finite. By hand, for packing is no device's duty.
fn half_of(x: f32) -> u32 {
    let magnitude = min(abs(x), 65504.0);
    var bits = u32(round(magnitude * 16777216.0));
    if magnitude >= 6.103515625e-5 {
        let exact = bitcast<u32>(magnitude);
        bits = (exact + 0xfffu + ((exact >> 13u) & 1u) - (112u << 23u)) >> 13u;
    }
    return bits | select(0u, 0x8000u, x < 0.0);
}

@compute @workgroup_size(256)
fn halves(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = (wid.y * groups.x + wid.x) * 256u + lane;
    if at * 4u < r.rows * r.cols {
        let values = four(at * 4u / r.cols * ROW_WORDS, at * 4u % r.cols);
        let bits = vec4<u32>(half_of(values.x), half_of(values.y), half_of(values.z), half_of(values.w));
        short[at] = bits.xz | (bits.yw << vec2<u32>(16u));
    }
}
