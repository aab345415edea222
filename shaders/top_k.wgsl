// The k largest of each row's first `vocab` logits, best first, equal ones by lower column; k <= 256. Slots that the
// vocabulary does not fill hold id 0xffffffff and value -3.4e38.
// One workgroup a row. The k-th best key is found by a radix select: 8 bits a pass from the top, a histogram of the
// digit among the keys that match so far. A key is the logit's bits in an order-preserving form; where several logits
// equal the k-th, three more passes do the same to their columns. Then exactly k columns qualify; they are gathered in
// whatever order the lanes come and each is written at the place that its rank gives it.
// The integer atomics in workgroup memory count; no result depends on their order. Groups are linear over x and y.

const LOWEST: f32 = -3.4e38;
const NONE: u32 = 0xffffffffu;

struct Params {
    rows: u32,
    stride: u32,
    vocab: u32,
    k: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> values: array<f32>;
@group(0) @binding(3) var<storage, read> z: array<f32>;

var<workgroup> histogram: array<atomic<u32>, 256>;
var<workgroup> above: array<u32, 257>;
var<workgroup> digit: u32;
var<workgroup> wanted: u32;
var<workgroup> matching: u32;
var<workgroup> gathered: atomic<u32>;
var<workgroup> best_keys: array<u32, 256>;
var<workgroup> best_columns: array<u32, 256>;

// Larger logit, larger key; both zeros have one key.
fn key_of(x: f32) -> u32 {
    let bits = bitcast<u32>(select(x, 0.0, x == 0.0));
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

// Lower column, larger number: ties go to the lower column. Columns stay below 2^24.
fn rank_of(column: u32) -> u32 {
    return 0xffffffu - column;
}

// With the digits counted in `histogram`: the digit in which the `wanted`-th largest falls, how many are wanted
// among those that have it, and how many have it.
fn choose_digit(lane: u32) {
    workgroupBarrier();
    let count = atomicLoad(&histogram[lane]);
    above[lane] = count;
    if lane == 0u {
        above[256] = 0u;
    }
    workgroupBarrier();
    // above[d] becomes the number of keys with digit d or more.
    for (var step = 1u; step < 256u; step <<= 1u) {
        var sum = above[lane];
        if lane + step < 256u {
            sum += above[lane + step];
        }
        workgroupBarrier();
        above[lane] = sum;
        workgroupBarrier();
    }
    let need = wanted;
    workgroupBarrier();
    if above[lane] >= need && above[lane + 1u] < need {
        digit = lane;
        wanted = need - above[lane + 1u];
        matching = count;
    }
    atomicStore(&histogram[lane], 0u);
    workgroupBarrier();
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    let start = row * p.stride;
    let columns = select(0u, p.vocab, row < p.rows);
    let k = min(p.k, p.vocab);
    atomicStore(&histogram[lane], 0u);
    if lane == 0u {
        wanted = k;
        matching = 0u;
        atomicStore(&gathered, 0u);
    }
    workgroupBarrier();

    var least_key = 0u;
    for (var pass_shift = 32u; pass_shift > 0u; pass_shift -= 8u) {
        let shift = pass_shift - 8u;
        for (var j = lane; j < columns; j += 256u) {
            let key = key_of(z[start + j]);
            // The digits above this one, all of them in the first pass.
            if pass_shift == 32u || (key >> (pass_shift & 31u)) == (least_key >> (pass_shift & 31u)) {
                atomicAdd(&histogram[(key >> shift) & 255u], 1u);
            }
        }
        choose_digit(lane);
        least_key |= digit << shift;
    }

    // Among the columns whose key equals the k-th best: which are still wanted.
    var least_rank = 0u;
    for (var pass_shift = 24u; pass_shift > 0u; pass_shift -= 8u) {
        let shift = pass_shift - 8u;
        if matching > wanted {
            for (var j = lane; j < columns; j += 256u) {
                let rank = rank_of(j);
                if key_of(z[start + j]) == least_key && (rank >> pass_shift) == (least_rank >> pass_shift) {
                    atomicAdd(&histogram[(rank >> shift) & 255u], 1u);
                }
            }
        }
        let more = matching > wanted;
        choose_digit(lane);
        if more {
            least_rank |= digit << shift;
        }
    }

    for (var j = lane; j < columns; j += 256u) {
        let key = key_of(z[start + j]);
        if key > least_key || (key == least_key && rank_of(j) >= least_rank) {
            let slot = atomicAdd(&gathered, 1u);
            if slot < 256u {
                best_keys[slot] = key;
                best_columns[slot] = j;
            }
        }
    }
    workgroupBarrier();
    if row >= p.rows || lane >= p.k {
        return;
    }
    if lane >= k {
        ids[row * p.k + lane] = NONE;
        values[row * p.k + lane] = LOWEST;
        return;
    }
    let key = best_keys[lane];
    let column = best_columns[lane];
    var place = 0u;
    for (var i = 0u; i < k; i += 1u) {
        if best_keys[i] > key || (best_keys[i] == key && best_columns[i] < column) {
            place += 1u;
        }
    }
    ids[row * p.k + place] = column;
    values[row * p.k + place] = z[start + column];
}
