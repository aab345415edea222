// dtable[token] += scale * sum of dy[n] over the rows n whose id is `token`, rows of COLS elements. The host sorted
// the rows by id: segment s is rows order[starts[s]] .. order[starts[s + 1] - 1], all of token tokens[s], so that each
// row of dtable has one writer and a fixed order of adding. Unused segments name a token past the vocabulary.
// A table too large for one binding comes in pieces: a dispatch sees rows first .. first + rows.
// clear: dtable = 0, `count` elements.     scatter: `count` elements of as many segments as dy has rows.
// One invocation an element; groups are numbered linearly over x and y.

const COLS: u32 = 1u;

struct Params {
    count: u32,
    first: u32,
    rows: u32,
    tokens: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> dtable: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read> order: array<u32>;
@group(0) @binding(4) var<storage, read> starts: array<u32>;
@group(0) @binding(5) var<storage, read> tokens: array<u32>;

fn element(wid: vec3<u32>, groups: vec3<u32>, lane: u32) -> u32 {
    return (wid.y * groups.x + wid.x) * 256u + lane;
}

@compute @workgroup_size(256)
fn clear(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element(wid, groups, lane);
    if i < p.count {
        dtable[i] = 0.0;
    }
}

@compute @workgroup_size(256)
fn scatter(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element(wid, groups, lane);
    if i >= p.count {
        return;
    }
    let segment = i / COLS;
    let column = i % COLS;
    let token = tokens[segment];
    if token < p.first || token - p.first >= p.rows {
        return;
    }
    let end = min(starts[segment + 1u], p.tokens);
    var sum = 0.0;
    for (var k = starts[segment]; k < end; k += 1u) {
        sum += dy[min(order[k], p.tokens - 1u) * COLS + column];
    }
    dtable[(token - p.first) * COLS + column] += p.scale * sum;
}
