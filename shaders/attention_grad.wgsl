// The gradient of attention: P = exp(s - lse) again from the scores, dP = dO v^T, dS = P * (dP - delta), then
//   dQ = scale * dS k,  dK = scale * dS^T q,  dV = P^T dO; a capped score's dS has the factor 1 - (s / cap)^2.
//   q, dO, dQ [n, h, D]   k, v, dK, dV [m, hkv, D]   ranges: as in attention.wgsl   stats [n, h, 2]: lse, delta
// delta: a thread handles one query of one head: delta = sum of dO * o. Groups: ceil(n * h / 64).
// queries: a group keeps TILE queries of one head and walks over the keys they see. Groups: ceil(n / TILE) * h.
// keys: a group keeps TILE keys of one key/value head and walks over the queries that see them, for every query
//   head that reads it. `ranges` are the keys'. Groups: ceil(m / TILE) * hkv.
// Below, `left` are the rows that a group keeps, `right` those it walks over. Products of both: a thread has 4 left
// rows x COLS right rows. Gradients: a thread has 8 left rows x 4 channels.

const D: u32 = 64u; // channels of a head, at most THREADS
const THREADS: u32 = 64u; // 64, 128 or 256
const TILE: u32 = 32u;
const COLS: u32 = 256u / THREADS;
const LANES: u32 = THREADS / 8u; // threads side by side along the right rows
const LINE: u32 = 9u; // vec4s from one staged row to the next: 8, and 1 to spread the memory banks
const RIGHT: u32 = TILE * LINE; // where the staged right rows begin, behind the left
const QUADS: u32 = THREADS / 4u; // threads side by side along the channels, 4 each
const SLICE: u32 = 2048u / THREADS; // whole right rows staged at a time

struct Params {
    n: u32,
    m: u32,
    h: u32,
    hkv: u32,
    scale: f32,
    softcap: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read> o: array<f32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> new_stats: array<f32>;

@group(0) @binding(2) var<storage, read> q: array<f32>;
@group(0) @binding(3) var<storage, read> k: array<f32>;
@group(0) @binding(4) var<storage, read> v: array<f32>;
@group(0) @binding(5) var<storage, read> ranges: array<u32>;
@group(0) @binding(6) var<storage, read_write> stats: array<f32>;
@group(0) @binding(7) var<storage, read_write> dq: array<f32>;
@group(0) @binding(7) var<storage, read_write> dk: array<f32>;
@group(0) @binding(8) var<storage, read_write> dv: array<f32>;

var<workgroup> staged: array<vec4f, 576>; // left and right rows, 32 channels of them; or whole right rows
var<workgroup> factors: array<vec4f, 288>; // P or dS of 4 left rows and a right one: [right][left / 4], LINE a row

// The four channels from c on; those past the head's end are read as its last and then dropped.
fn channels(c: u32) -> vec4u {
    return min(vec4u(c, c + 1u, c + 2u, c + 3u), vec4u(D - 1u));
}

fn within(c: u32) -> vec4<bool> {
    return vec4u(c, c + 1u, c + 2u, c + 3u) < vec4u(D);
}

fn load_q(row: u32, head: u32, c: u32) -> vec4f {
    if row >= p.n || c >= D {
        return vec4f();
    }
    let at = (row * p.h + head) * D + channels(c);
    return select(vec4f(), vec4f(q[at.x], q[at.y], q[at.z], q[at.w]), within(c));
}

fn load_dy(row: u32, head: u32, c: u32) -> vec4f {
    if row >= p.n || c >= D {
        return vec4f();
    }
    let at = (row * p.h + head) * D + channels(c);
    return select(vec4f(), vec4f(dy[at.x], dy[at.y], dy[at.z], dy[at.w]), within(c));
}

fn load_k(row: u32, kv: u32, c: u32) -> vec4f {
    if row >= p.m || c >= D {
        return vec4f();
    }
    let at = (row * p.hkv + kv) * D + channels(c);
    return select(vec4f(), vec4f(k[at.x], k[at.y], k[at.z], k[at.w]), within(c));
}

fn load_v(row: u32, kv: u32, c: u32) -> vec4f {
    if row >= p.m || c >= D {
        return vec4f();
    }
    let at = (row * p.hkv + kv) * D + channels(c);
    return select(vec4f(), vec4f(v[at.x], v[at.y], v[at.z], v[at.w]), within(c));
}

alias Products = array<vec4f, COLS>;
alias Sums = array<vec4f, 8>;

// x += left rows . right rows, over the staged channels.
fn multiply(x: ptr<function, Products>, lane: u32) {
    for (var i = 0u; i < 8u; i++) {
        let a = lane / LANES * 4u * LINE + i;
        let a0 = staged[a];
        let a1 = staged[a + LINE];
        let a2 = staged[a + 2u * LINE];
        let a3 = staged[a + 3u * LINE];
        for (var j = 0u; j < COLS; j++) {
            let b = staged[RIGHT + (lane % LANES + LANES * j) * LINE + i];
            (*x)[j] += vec4f(dot(a0, b), dot(a1, b), dot(a2, b), dot(a3, b));
        }
    }
}

// sums += factors * right rows, over the staged slice.
fn accumulate(sums: ptr<function, Sums>, lane: u32, slice: u32) {
    let eight = lane / QUADS;
    for (var i = 0u; i < SLICE; i++) {
        let f0 = factors[(slice + i) * LINE + 2u * eight];
        let f1 = factors[(slice + i) * LINE + 2u * eight + 1u];
        let x = staged[i * QUADS + lane % QUADS];
        (*sums)[0] += f0.x * x;
        (*sums)[1] += f0.y * x;
        (*sums)[2] += f0.z * x;
        (*sums)[3] += f0.w * x;
        (*sums)[4] += f1.x * x;
        (*sums)[5] += f1.y * x;
        (*sums)[6] += f1.z * x;
        (*sums)[7] += f1.w * x;
    }
}

struct Weights {
    p: vec4f,
    ds: vec4f,
}

// P and scale * dS from q . k and dP.
fn weigh(product: vec4f, dp: vec4f, lse: vec4f, delta: vec4f, seen: vec4<bool>) -> Weights {
    var s = product * p.scale;
    var slope = vec4f(p.scale);
    if p.softcap > 0.0 {
        let t = tanh(clamp(s / p.softcap, vec4f(-30.0), vec4f(30.0)));
        s = p.softcap * t;
        slope *= 1.0 - t * t;
    }
    let weight = select(vec4f(), exp(clamp(s - lse, vec4f(-87.0), vec4f(80.0))), seen);
    return Weights(weight, weight * (dp - delta) * slope);
}

@compute @workgroup_size(64)
fn delta(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = (wid.y * groups.x + wid.x) * 64u + lane;
    if at >= p.n * p.h {
        return;
    }
    var sum = 0.0;
    for (var i = at * D; i < at * D + D; i++) {
        sum += dy[i] * o[i];
    }
    new_stats[2u * at] = lse[at];
    new_stats[2u * at + 1u] = sum;
}

@compute @workgroup_size(THREADS)
fn queries(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = wid.y * groups.x + wid.x;
    let head = group % p.h;
    let kv = head / (p.h / p.hkv);
    let row0 = group / p.h * TILE;
    if row0 >= p.n {
        return;
    }
    let first_key = ranges[2u * row0];
    let end_key = min(ranges[2u * min(row0 + TILE, p.n) - 1u], p.m);

    // This thread's rows for the products.
    let quad = lane / LANES;
    let column = lane % LANES;
    var first = vec4u();
    var end = vec4u();
    var row_lse = vec4f();
    var row_delta = vec4f();
    for (var i = 0u; i < 4u; i++) {
        let row = row0 + 4u * quad + i;
        if row < p.n {
            first[i] = ranges[2u * row];
            end[i] = ranges[2u * row + 1u];
            row_lse[i] = stats[2u * (row * p.h + head)];
            row_delta[i] = stats[2u * (row * p.h + head) + 1u];
        }
    }
    let channel = 4u * (lane % QUADS);

    var sums: Sums;
    for (var key0 = first_key; key0 < end_key; key0 += TILE) {
        var s = Products();
        var dp = Products();
        for (var c = 0u; c < D; c += 32u) {
            for (var i = lane; i < TILE * 8u; i += THREADS) {
                let at = i / 8u * LINE + i % 8u;
                staged[at] = load_q(row0 + i / 8u, head, c + 4u * (i % 8u));
                staged[RIGHT + at] = load_k(key0 + i / 8u, kv, c + 4u * (i % 8u));
            }
            workgroupBarrier();
            multiply(&s, lane);
            workgroupBarrier();
            for (var i = lane; i < TILE * 8u; i += THREADS) {
                let at = i / 8u * LINE + i % 8u;
                staged[at] = load_dy(row0 + i / 8u, head, c + 4u * (i % 8u));
                staged[RIGHT + at] = load_v(key0 + i / 8u, kv, c + 4u * (i % 8u));
            }
            workgroupBarrier();
            multiply(&dp, lane);
            workgroupBarrier();
        }
        for (var j = 0u; j < COLS; j++) {
            let key = key0 + column + LANES * j;
            let seen = (vec4u(key) >= first) & (vec4u(key) < end) & vec4<bool>(key < end_key);
            factors[(column + LANES * j) * LINE + quad] = weigh(s[j], dp[j], row_lse, row_delta, seen).ds;
        }
        for (var slice = 0u; slice < TILE; slice += SLICE) {
            for (var i = lane / QUADS; i < SLICE; i += 4u) {
                staged[i * QUADS + lane % QUADS] = load_k(key0 + slice + i, kv, channel);
            }
            workgroupBarrier();
            accumulate(&sums, lane, slice);
            workgroupBarrier();
        }
    }
    for (var i = 0u; i < 8u; i++) {
        let row = row0 + 8u * (lane / QUADS) + i;
        if row < p.n {
            for (var c = channel; c < min(channel + 4u, D); c++) {
                dq[(row * p.h + head) * D + c] = sums[i][c - channel];
            }
        }
    }
}

@compute @workgroup_size(THREADS)
fn keys(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = wid.y * groups.x + wid.x;
    let kv = group % p.hkv;
    let key0 = group / p.hkv * TILE;
    if key0 >= p.m {
        return;
    }
    let first_row = ranges[2u * key0];
    let end_row = min(ranges[2u * min(key0 + TILE, p.m) - 1u], p.n);

    let quad = lane / LANES;
    let column = lane % LANES;
    var first = vec4u();
    var end = vec4u();
    for (var i = 0u; i < 4u; i++) {
        let key = key0 + 4u * quad + i;
        if key < p.m {
            first[i] = ranges[2u * key];
            end[i] = ranges[2u * key + 1u];
        }
    }
    let channel = 4u * (lane % QUADS);

    var dk_sums: Sums;
    var dv_sums: Sums;
    let share = p.h / p.hkv;
    for (var head = kv * share; head < kv * share + share; head++) {
        for (var row0 = first_row; row0 < end_row; row0 += TILE) {
            var s = Products();
            var dp = Products();
            for (var c = 0u; c < D; c += 32u) {
                for (var i = lane; i < TILE * 8u; i += THREADS) {
                    let at = i / 8u * LINE + i % 8u;
                    staged[at] = load_k(key0 + i / 8u, kv, c + 4u * (i % 8u));
                    staged[RIGHT + at] = load_q(row0 + i / 8u, head, c + 4u * (i % 8u));
                }
                workgroupBarrier();
                multiply(&s, lane);
                workgroupBarrier();
                for (var i = lane; i < TILE * 8u; i += THREADS) {
                    let at = i / 8u * LINE + i % 8u;
                    staged[at] = load_v(key0 + i / 8u, kv, c + 4u * (i % 8u));
                    staged[RIGHT + at] = load_dy(row0 + i / 8u, head, c + 4u * (i % 8u));
                }
                workgroupBarrier();
                multiply(&dp, lane);
                workgroupBarrier();
            }
            for (var j = 0u; j < COLS; j++) {
                let row = row0 + column + LANES * j;
                let at = 2u * (min(row, p.n - 1u) * p.h + head);
                let seen = (vec4u(row) >= first) & (vec4u(row) < end) & vec4<bool>(row < end_row);
                let both = weigh(s[j], dp[j], vec4f(stats[at]), vec4f(stats[at + 1u]), seen);
                factors[(column + LANES * j) * LINE + quad] = both.p;
                dp[j] = both.ds;
            }
            for (var slice = 0u; slice < TILE; slice += SLICE) {
                for (var i = lane / QUADS; i < SLICE; i += 4u) {
                    staged[i * QUADS + lane % QUADS] = load_dy(row0 + slice + i, head, channel);
                }
                workgroupBarrier();
                accumulate(&dv_sums, lane, slice);
                workgroupBarrier();
            }
            for (var j = 0u; j < COLS; j++) {
                factors[(column + LANES * j) * LINE + quad] = dp[j];
            }
            for (var slice = 0u; slice < TILE; slice += SLICE) {
                for (var i = lane / QUADS; i < SLICE; i += 4u) {
                    staged[i * QUADS + lane % QUADS] = load_q(row0 + slice + i, head, channel);
                }
                workgroupBarrier();
                accumulate(&dk_sums, lane, slice);
                workgroupBarrier();
            }
        }
    }
    for (var i = 0u; i < 8u; i++) {
        let key = key0 + 8u * (lane / QUADS) + i;
        if key < p.m {
            for (var c = channel; c < min(channel + 4u, D); c++) {
                dk[(key * p.hkv + kv) * D + c] = dk_sums[i][c - channel];
                dv[(key * p.hkv + kv) * D + c] = dv_sums[i][c - channel];
            }
        }
    }
}
