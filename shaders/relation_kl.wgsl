// The divergence of two relations of a batch's rows: with s = a . a' / sqrt(d) between a row and each row it sees,
// of the student (a) and the teacher (b), loss = mean over heads of KL(softmax(s_b) || softmax(s_a)).
//   a, b [n, heads * D]   query [n, 2]: first row seen, one past the last   key [n, 2]: the same of rows that see it
//   kl [n, heads]   lse [n, heads, 2]: the student's and the teacher's log-sum-exp
// Gradient, with G = dy/heads * (softmax(s_a) - softmax(s_b)) / sqrt(d):  da_i = sum_j G_ij a_j + sum_k G_ki a_k.
// forward: one workgroup a row and head walks over the rows seen, keeping maxima and sums (online softmax).
// rows:    one invocation a row: the mean over heads.
// gradient: one workgroup a row and head; LANES rows' G at a time, then a lane a channel.
// Groups are numbered linearly over x and y, the head fastest.

const LANES: u32 = 64u;
const A_DIM: u32 = 16u; // channels of a student's head
const B_DIM: u32 = 16u; // of a teacher's
const OWN: u32 = 1u; // channels of a lane: A_DIM / LANES, rounded up
const LOWEST: f32 = -3.4e38;

struct Params {
    n: u32,
    heads: u32,
    a_scale: f32,
    b_scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> query: array<u32>;
@group(0) @binding(4) var<storage, read_write> kl: array<f32>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

@group(0) @binding(1) var<storage, read_write> kl_of_heads: array<f32>;
@group(0) @binding(2) var<storage, read_write> loss_rows: array<f32>;

@group(0) @binding(4) var<storage, read> key: array<u32>;
@group(0) @binding(5) var<storage, read> given_lse: array<f32>;
@group(0) @binding(6) var<storage, read> dy: array<f32>;
@group(0) @binding(7) var<storage, read_write> da: array<f32>;

var<workgroup> best: array<vec2<f32>, LANES>;
var<workgroup> sums: array<vec3<f32>, LANES>;
var<workgroup> factors: array<f32, LANES>;

// Scores of rows i and j: the student's, the teacher's.
fn scores(i: u32, j: u32, head: u32) -> vec2<f32> {
    var s = vec2(0.0);
    let a_i = (i * p.heads + head) * A_DIM;
    let a_j = (j * p.heads + head) * A_DIM;
    for (var c = 0u; c < A_DIM; c++) {
        s.x += a[a_i + c] * a[a_j + c];
    }
    let b_i = (i * p.heads + head) * B_DIM;
    let b_j = (j * p.heads + head) * B_DIM;
    for (var c = 0u; c < B_DIM; c++) {
        s.y += b[b_i + c] * b[b_j + c];
    }
    return s * vec2(p.a_scale, p.b_scale);
}

fn weight(s: vec2<f32>, top: vec2<f32>) -> vec2<f32> {
    return exp(clamp(s - top, vec2(-87.0), vec2(87.0)));
}

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = wid.y * groups.x + wid.x;
    if group >= p.n * p.heads {
        return;
    }
    let row = group / p.heads;
    let head = group % p.heads;
    let end = min(query[2u * row + 1u], p.n);

    // Of this lane's rows: the maxima; sums of exp(s_a), exp(s_b), exp(s_b) (s_b - s_a) relative to them.
    var top = vec2(LOWEST);
    var sum = vec3(0.0);
    for (var j = query[2u * row] + lane; j < end; j += LANES) {
        let s = scores(row, j, head);
        let new_top = max(top, s);
        let kept = weight(top, new_top);
        let w = weight(s, new_top);
        sum = sum * vec3(kept.x, kept.y, kept.y) + vec3(w.x, w.y, w.y * (s.y - s.x));
        top = new_top;
    }
    best[lane] = top;
    sums[lane] = sum;
    workgroupBarrier();
    for (var reach = LANES / 2u; reach > 0u; reach /= 2u) {
        if lane < reach {
            let other = best[lane + reach];
            let both = max(best[lane], other);
            let mine = weight(best[lane], both);
            let theirs = weight(other, both);
            sums[lane] = sums[lane] * vec3(mine.x, mine.y, mine.y)
                + sums[lane + reach] * vec3(theirs.x, theirs.y, theirs.y);
            best[lane] = both;
        }
        workgroupBarrier();
    }
    if lane == 0u {
        let total = sums[0];
        var result = vec2(0.0);
        var divergence = 0.0;
        if total.x > 0.0 && total.y > 0.0 {
            result = best[0] + log(total.xy);
            divergence = total.z / total.y + result.x - result.y;
        }
        lse[2u * group] = result.x;
        lse[2u * group + 1u] = result.y;
        kl[group] = divergence;
    }
}

@compute @workgroup_size(LANES)
fn rows(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (wid.y * groups.x + wid.x) * LANES + lane;
    if row >= p.n {
        return;
    }
    var sum = 0.0;
    for (var head = 0u; head < p.heads; head++) {
        sum += kl_of_heads[row * p.heads + head];
    }
    loss_rows[row] = sum / f32(p.heads);
}

// G of a query row i and a row j that it sees.
fn slope(i: u32, j: u32, head: u32) -> f32 {
    let at = 2u * (i * p.heads + head);
    let probabilities = weight(scores(i, j, head), vec2(given_lse[at], given_lse[at + 1u]));
    return dy[i] / f32(p.heads) * (probabilities.x - probabilities.y) * p.a_scale;
}

@compute @workgroup_size(LANES)
fn gradient(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = wid.y * groups.x + wid.x;
    if group >= p.n * p.heads {
        return;
    }
    let row = group / p.heads;
    let head = group % p.heads;
    var own: array<f32, OWN>;
    // First the rows that this one sees, then those that see it.
    for (var side = 0u; side < 2u; side++) {
        var first = query[2u * row];
        var end = min(query[2u * row + 1u], p.n);
        if side == 1u {
            first = key[2u * row];
            end = min(key[2u * row + 1u], p.n);
        }
        for (var start = first; start < end; start += LANES) {
            let other = start + lane;
            var factor = 0.0;
            if other < end {
                if side == 0u {
                    factor = slope(row, other, head);
                } else {
                    factor = slope(other, row, head);
                }
            }
            factors[lane] = factor;
            workgroupBarrier();
            for (var i = 0u; i < OWN; i++) {
                let c = lane + LANES * i;
                if c < A_DIM {
                    for (var j = 0u; j < min(LANES, end - start); j++) {
                        own[i] += factors[j] * a[((start + j) * p.heads + head) * A_DIM + c];
                    }
                }
            }
            workgroupBarrier();
        }
    }
    for (var i = 0u; i < OWN; i++) {
        let c = lane + LANES * i;
        if c < A_DIM {
            da[(row * p.heads + head) * A_DIM + c] = own[i];
        }
    }
}
