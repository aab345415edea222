// y[b, c] = sum of x[r, c] over the rows r of block b (added to y if ACCUMULATE).
// A workgroup handles 32 columns of one block: 8 lanes a column share the rows, then a tree of fixed order adds
// them up. Workgroups are numbered linearly over x and y.

const ACCUMULATE: bool = false;

struct Params {
    rows: u32,
    cols: u32,
    block_rows: u32,
    blocks: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;

var<workgroup> sums: array<f32, 256>;

@compute @workgroup_size(256)
fn sum_rows(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = wid.y * groups.x + wid.x;
    let groups_a_block = (p.cols + 31u) / 32u;
    let block = group / groups_a_block;
    if block >= p.blocks {
        return;
    }
    let c = (group - block * groups_a_block) * 32u + lane % 32u;
    let end = min((block + 1u) * p.block_rows, p.rows);

    var sum = 0.0;
    if c < p.cols {
        for (var row = block * p.block_rows + lane / 32u; row < end; row += 8u) {
            sum += x[row * p.cols + c];
        }
    }
    sums[lane] = sum;
    for (var reach = 128u; reach >= 32u; reach /= 2u) {
        workgroupBarrier();
        if lane < reach {
            sums[lane] += sums[lane + reach];
        }
    }
    if lane < 32u && c < p.cols {
        if ACCUMULATE {
            y[block * p.cols + c] += sums[lane];
        } else {
            y[block * p.cols + c] = sums[lane];
        }
    }
}
