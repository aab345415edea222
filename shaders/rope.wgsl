// Rotary positions (Su et al. 2021) in the "rotate half" layout: in every head, element i < HALF and element i + HALF
// are turned by the angle of (position, i); elements from 2 * HALF on are copied.
//   y[i]        = x[i] * cos - x[i + HALF] * sin
//   y[i + HALF] = x[i + HALF] * cos + x[i] * sin
// The gradient is the same with sin negated (direction = -1). `table` holds, for each position, HALF cosines, then
// HALF sines. A position past the table takes its last row.
// One invocation a pair or copied element; groups are numbered linearly over x and y.

const HEADS: u32 = 1u;
const DIM: u32 = 2u;
const HALF: u32 = 1u;
// Pairs and copied elements of a head.
const ITEMS: u32 = DIM - HALF;

struct Params {
    count: u32,
    positions: u32,
    direction: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> position: array<u32>;
@group(0) @binding(4) var<storage, read> table: array<f32>;

@compute @workgroup_size(256)
fn rope(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if i >= p.count {
        return;
    }
    let head = i / ITEMS;
    let item = i % ITEMS;
    let at = head * DIM + item;
    if item >= HALF {
        y[at + HALF] = x[at + HALF];
        return;
    }
    let angle = min(position[head / HEADS], p.positions - 1u) * 2u * HALF + item;
    let c = table[angle];
    let s = p.direction * table[angle + HALF];
    let a = x[at];
    let b = x[at + HALF];
    y[at] = a * c - b * s;
    y[at + HALF] = b * c + a * s;
}
