// o = softmax(s) v, s = scale * q . k over the keys that the query's range names; cap * tanh(s / cap) if cap > 0.
//   q, o [n, h, D]   k, v [m, hkv, D]   ranges [n, 2]: first key, one past the last; never decreasing
//   lse [n, h]: log of the sum of exp(s), for the gradient. A query that sees nothing has o = 0 and lse = 0.
// tiles: a group handles TILE queries of one head and walks over tiles of keys, keeping each row's maximum and sum
//   (online softmax). Scores: a thread has 4 queries x COLS keys. Output: a thread has 8 queries x 4 channels.
//   Groups: ceil(n / TILE) * h, the head fastest.
// few: a group handles one query of one head; its threads share acc the keys. For decoding. Groups: n * h.

const D: u32 = 64u; // channels of a head, at most THREADS
const THREADS: u32 = 64u; // 64, 128 or 256
const TILE: u32 = 32u;
const COLS: u32 = 256u / THREADS;
const LANES: u32 = THREADS / 8u; // threads side by side along the keys
const LINE: u32 = 9u; // vec4s from one staged row to the next: 8, and 1 to spread the memory banks
const RIGHT: u32 = TILE * LINE; // where the staged keys begin, behind the queries
const QUADS: u32 = THREADS / 4u; // threads side by side along the channels, 4 each
const SLICE: u32 = 2048u / THREADS; // value rows staged at a time
const FEW: u32 = 256u; // threads of `few`, and keys it handles at a time
const LOWEST: f32 = -3.4e38;

struct Params {
    n: u32,
    m: u32,
    h: u32,
    hkv: u32,
    scale: f32,
    softcap: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> ranges: array<u32>;
@group(0) @binding(5) var<storage, read_write> o: array<f32>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;

var<workgroup> staged: array<vec4f, 576>; // queries and keys, 32 channels of them; later rows of v
var<workgroup> weights: array<vec4f, 288>; // of 4 queries for a key: [key][query / 4], LINE a key
var<workgroup> factors: array<vec4f, 8>; // of each query, for its output
var<workgroup> scores: array<f32, FEW>;
var<workgroup> bests: array<f32, 16>;

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

fn load_k(row: u32, kv: u32, c: u32) -> vec4f {
    if row >= p.m || c >= D {
        return vec4f();
    }
    let at = (row * p.hkv + kv) * D + channels(c);
    return select(vec4f(), vec4f(k[at.x], k[at.y], k[at.z], k[at.w]), within(c));
}

// 0 from row `end` on: what a cache holds there may be no number, and 0 times that is none either.
fn load_v(row: u32, end: u32, kv: u32, c: u32) -> vec4f {
    if row >= end || c >= D {
        return vec4f();
    }
    let at = (row * p.hkv + kv) * D + channels(c);
    return select(vec4f(), vec4f(v[at.x], v[at.y], v[at.z], v[at.w]), within(c));
}

fn store_o(row: u32, head: u32, c: u32, value: vec4f) {
    if row >= p.n {
        return;
    }
    for (var i = 0u; i < min(4u, D - min(D, c)); i++) {
        o[(row * p.h + head) * D + c + i] = value[i];
    }
}

fn capped(s: vec4f) -> vec4f {
    if p.softcap == 0.0 {
        return s;
    }
    return p.softcap * tanh(clamp(s / p.softcap, vec4f(-30.0), vec4f(30.0)));
}

fn weight(s: vec4f, top: vec4f) -> vec4f {
    return exp(max(s - top, vec4f(-87.0)));
}

@compute @workgroup_size(THREADS)
fn tiles(
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

    // This thread's queries for the scores, and where their keys begin and end.
    let quad = lane / LANES;
    let column = lane % LANES;
    var first = vec4u();
    var end = vec4u();
    for (var i = 0u; i < 4u; i++) {
        let row = row0 + 4u * quad + i;
        if row < p.n {
            first[i] = ranges[2u * row];
            end[i] = min(ranges[2u * row + 1u], p.m);
        }
    }
    // Its queries and channels of the output.
    let eight = lane / QUADS;
    let channel = 4u * (lane % QUADS);

    var top = vec4f(LOWEST);
    var sum = vec4f();
    var acc: array<vec4f, 8>;
    for (var key0 = first_key; key0 < end_key; key0 += TILE) {
        var s = array<vec4f, COLS>();
        for (var c = 0u; c < D; c += 32u) {
            for (var i = lane; i < TILE * 8u; i += THREADS) {
                let at = i / 8u * LINE + i % 8u;
                staged[at] = load_q(row0 + i / 8u, head, c + 4u * (i % 8u));
                staged[RIGHT + at] = load_k(key0 + i / 8u, kv, c + 4u * (i % 8u));
            }
            workgroupBarrier();
            for (var i = 0u; i < 8u; i++) {
                let a = 4u * quad * LINE + i;
                let a0 = staged[a];
                let a1 = staged[a + LINE];
                let a2 = staged[a + 2u * LINE];
                let a3 = staged[a + 3u * LINE];
                for (var j = 0u; j < COLS; j++) {
                    let b = staged[RIGHT + (column + LANES * j) * LINE + i];
                    s[j] += vec4f(dot(a0, b), dot(a1, b), dot(a2, b), dot(a3, b));
                }
            }
            workgroupBarrier();
        }

        // The rows' maxima: each thread's own, then over the threads of a row.
        var best = vec4f(LOWEST);
        for (var j = 0u; j < COLS; j++) {
            let key = vec4u(key0 + column + LANES * j);
            s[j] = select(vec4f(LOWEST), capped(s[j] * p.scale), (key >= first) & (key < end));
            best = max(best, s[j]);
        }
        weights[lane] = best;
        workgroupBarrier();
        var new_top = top;
        for (var i = 0u; i < LANES; i++) {
            new_top = max(new_top, weights[quad * LANES + i]);
        }
        let kept = weight(top, new_top);
        top = new_top;
        workgroupBarrier();
        sum *= kept;
        for (var j = 0u; j < COLS; j++) {
            let key = vec4u(key0 + column + LANES * j);
            let w = select(vec4f(), weight(s[j], top), (key >= first) & (key < end));
            sum += w;
            weights[(column + LANES * j) * LINE + quad] = w;
        }
        if column == 0u {
            factors[quad] = kept;
        }
        workgroupBarrier();

        let f0 = factors[2u * eight];
        let f1 = factors[2u * eight + 1u];
        acc[0] *= f0.x;
        acc[1] *= f0.y;
        acc[2] *= f0.z;
        acc[3] *= f0.w;
        acc[4] *= f1.x;
        acc[5] *= f1.y;
        acc[6] *= f1.z;
        acc[7] *= f1.w;
        for (var slice = 0u; slice < TILE; slice += SLICE) {
            for (var i = lane / QUADS; i < SLICE; i += 4u) {
                staged[i * QUADS + lane % QUADS] = load_v(key0 + slice + i, end_key, kv, channel);
            }
            workgroupBarrier();
            for (var i = 0u; i < SLICE; i++) {
                let w0 = weights[(slice + i) * LINE + 2u * eight];
                let w1 = weights[(slice + i) * LINE + 2u * eight + 1u];
                let x = staged[i * QUADS + lane % QUADS];
                acc[0] += w0.x * x;
                acc[1] += w0.y * x;
                acc[2] += w0.z * x;
                acc[3] += w0.w * x;
                acc[4] += w1.x * x;
                acc[5] += w1.y * x;
                acc[6] += w1.z * x;
                acc[7] += w1.w * x;
            }
            workgroupBarrier();
        }
    }

    weights[lane] = sum;
    workgroupBarrier();
    if column == 0u {
        for (var i = 1u; i < LANES; i++) {
            sum += weights[lane + i];
        }
        let seen = sum > vec4f();
        factors[quad] = select(vec4f(), 1.0 / max(sum, vec4f(1e-30)), seen);
        let result = select(vec4f(), top + log(max(sum, vec4f(1e-30))), seen);
        for (var i = 0u; i < 4u; i++) {
            let row = row0 + 4u * quad + i;
            if row < p.n {
                lse[row * p.h + head] = result[i];
            }
        }
    }
    workgroupBarrier();
    for (var i = 0u; i < 8u; i++) {
        store_o(row0 + 8u * eight + i, head, channel, acc[i] * factors[2u * eight + i / 4u][i % 4u]);
    }
}

// The largest of all threads' values. Uniform barriers; every thread gets the result.
fn largest(lane: u32, value: f32) -> f32 {
    scores[lane] = value;
    workgroupBarrier();
    if lane < 16u {
        var best = scores[lane];
        for (var i = lane; i < FEW; i += 16u) {
            best = max(best, scores[i]);
        }
        bests[lane] = best;
    }
    workgroupBarrier();
    var best = bests[0];
    for (var i = 1u; i < 16u; i++) {
        best = max(best, bests[i]);
    }
    return best;
}

fn total(lane: u32, value: f32) -> f32 {
    scores[lane] = value;
    workgroupBarrier();
    if lane < 16u {
        var sum = 0.0;
        for (var i = lane; i < FEW; i += 16u) {
            sum += scores[i];
        }
        bests[lane] = sum;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < 16u; i++) {
        sum += bests[i];
    }
    return sum;
}

@compute @workgroup_size(FEW)
fn few(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = wid.y * groups.x + wid.x;
    let head = group % p.h;
    let kv = head / (p.h / p.hkv);
    let row = group / p.h;
    if row >= p.n {
        return;
    }
    let end = min(ranges[2u * row + 1u], p.m);
    // For the output a thread has 4 channels and every PARTS-th key.
    let parts = FEW / QUADS;
    let channel = 4u * (lane % QUADS);
    if lane < QUADS {
        weights[lane] = load_q(row, head, channel);
    }
    workgroupBarrier();

    var top = LOWEST;
    var sum = 0.0;
    var acc = vec4f();
    for (var key0 = ranges[2u * row]; key0 < end; key0 += FEW) {
        let key = key0 + lane;
        var s = 0.0;
        for (var c = 0u; c < D; c += 4u) {
            s += dot(weights[c / 4u], load_k(key, kv, c));
        }
        s = select(LOWEST, capped(vec4f(s * p.scale)).x, key < end);
        let new_top = max(top, largest(lane, s));
        let kept = weight(vec4f(top), vec4f(new_top)).x;
        top = new_top;
        let w = select(0.0, weight(vec4f(s), vec4f(top)).x, key < end);
        sum = sum * kept + w;
        acc *= kept;
        scores[lane] = w;
        workgroupBarrier();
        for (var i = lane / QUADS; i < min(FEW, end - key0); i += parts) {
            acc += scores[i] * load_v(key0 + i, end, kv, channel);
        }
        workgroupBarrier();
    }
    sum = total(lane, sum);
    staged[lane] = acc;
    workgroupBarrier();
    if lane < QUADS {
        for (var i = 1u; i < parts; i++) {
            acc += staged[lane + i * QUADS];
        }
        let seen = sum > 0.0;
        store_o(row, head, channel, select(vec4f(), acc / max(sum, 1e-30), seen));
        if lane == 0u {
            lse[row * p.h + head] = select(0.0, top + log(max(sum, 1e-30)), seen);
        }
    }
}
