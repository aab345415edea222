// 1 - N / (a b) with N = |C|^2, a = |A|, b = |B| (Frobenius norms of the cross-covariance and both covariances), once a
// row; 1 where a or b is 0. Gradients for an upstream gradient of u = sum of dy:
//   dC = -2 u C / (a b)    dA = u N A / (a^3 b)
// squares: group g sums its share of the squares of one matrix into parts[first + g].
// value:   one workgroup adds up the parts of C, A, B, writes N, a, b into stats and the value into every row.
// factors: one workgroup sums dy and writes both factors.
// scale:   y = factors[which] * matrix, one invocation an element. Groups are numbered linearly over x and y.

const LANES: u32 = 256u;
const PARTS: u32 = 64u;

struct Params {
    count: u32,
    first: u32, // squares: where its parts begin; scale: which factor
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> matrix: array<f32>;
@group(0) @binding(2) var<storage, read_write> parts: array<f32>;

@group(0) @binding(1) var<storage, read_write> loss_rows: array<f32>;
@group(0) @binding(3) var<storage, read_write> stats: array<f32>;

@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read> given_stats: array<f32>;
@group(0) @binding(3) var<storage, read_write> new_factors: array<f32>;

@group(0) @binding(2) var<storage, read_write> y: array<f32>;

var<workgroup> sums: array<f32, LANES>;

fn over_lanes(lane: u32, value: f32) -> f32 {
    sums[lane] = value;
    for (var reach = LANES / 2u; reach > 0u; reach /= 2u) {
        workgroupBarrier();
        if lane < reach {
            sums[lane] += sums[lane + reach];
        }
    }
    workgroupBarrier();
    let sum = sums[0];
    workgroupBarrier();
    return sum;
}

@compute @workgroup_size(LANES)
fn squares(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    var sum = 0.0;
    for (var i = wid.x * LANES + lane; i < p.count; i += PARTS * LANES) {
        sum += matrix[i] * matrix[i];
    }
    let total = over_lanes(lane, sum);
    if lane == 0u {
        parts[p.first + wid.x] = total;
    }
}

@compute @workgroup_size(LANES)
fn value(@builtin(local_invocation_index) lane: u32) {
    var part = vec3(0.0);
    if lane < PARTS {
        part = vec3(parts[lane], parts[PARTS + lane], parts[2u * PARTS + lane]);
    }
    let n = over_lanes(lane, part.x);
    let a = sqrt(over_lanes(lane, part.y));
    let b = sqrt(over_lanes(lane, part.z));
    var loss = 1.0;
    if a > 0.0 && b > 0.0 {
        loss = 1.0 - n / (a * b);
    }
    for (var row = lane; row < p.count; row += LANES) {
        loss_rows[row] = loss;
    }
    if lane == 0u {
        stats[0] = n;
        stats[1] = a;
        stats[2] = b;
    }
}

@compute @workgroup_size(LANES)
fn factors(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var row = lane; row < p.count; row += LANES) {
        sum += dy[row];
    }
    let u = over_lanes(lane, sum);
    if lane == 0u {
        let a = given_stats[1];
        let b = given_stats[2];
        var both = vec2(0.0);
        if a > 0.0 && b > 0.0 {
            both = vec2(-2.0 * u / (a * b), u * given_stats[0] / (a * a * a * b));
        }
        new_factors[0] = both.x;
        new_factors[1] = both.y;
    }
}

@compute @workgroup_size(LANES)
fn scale(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (wid.y * groups.x + wid.x) * LANES + lane;
    if i < p.count {
        y[i] = new_factors[p.first] * matrix[i];
    }
}
