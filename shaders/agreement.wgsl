// same[r] = 1 if rows r of a and b have their largest value in the same one of the first `vocab` columns (the lowest
// such column counts), else 0. One workgroup a row: each lane finds its best of every 256th column, then a tree.
// Groups are numbered linearly over x and y.

const LOWEST: f32 = -3.4e38;

struct Params {
    rows: u32,
    stride_a: u32,
    stride_b: u32,
    vocab: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> same: array<f32>;
@group(0) @binding(2) var<storage, read> a: array<f32>;
@group(0) @binding(3) var<storage, read> b: array<f32>;

var<workgroup> values: array<f32, 256>;
var<workgroup> columns: array<u32, 256>;

fn best_over_lanes(lane: u32, value: f32, column: u32) -> u32 {
    workgroupBarrier();
    values[lane] = value;
    columns[lane] = column;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half >>= 1u) {
        if lane < half {
            let other = values[lane + half];
            let its_column = columns[lane + half];
            if other > values[lane] || (other == values[lane] && its_column < columns[lane]) {
                values[lane] = other;
                columns[lane] = its_column;
            }
        }
        workgroupBarrier();
    }
    return columns[0];
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    var best_a = LOWEST;
    var best_b = LOWEST;
    var column_a = 0xffffffffu;
    var column_b = 0xffffffffu;
    if row < p.rows {
        for (var j = lane; j < p.vocab; j += 256u) {
            let x = a[row * p.stride_a + j];
            let y = b[row * p.stride_b + j];
            if x > best_a {
                best_a = x;
                column_a = j;
            }
            if y > best_b {
                best_b = y;
                column_b = j;
            }
        }
    }
    let first = best_over_lanes(lane, best_a, column_a);
    let second = best_over_lanes(lane, best_b, column_b);
    if lane == 0u && row < p.rows {
        same[row] = select(0.0, 1.0, first == second);
    }
}
