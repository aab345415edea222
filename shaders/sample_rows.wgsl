// ids[r, d]: the d-th draw, with replacement, from softmax(scale * z[r, ..vocab]).
// One workgroup a row. A lane owns every 256th column and adds up its probabilities; a draw picks a lane by a first
// random number and, independently, one of the lane's columns by a second, walking the lane's running sum. So a draw
// resolves probabilities far below the 2^-23 of one random number.
// Random numbers: Philox4x32-10 (Salmon et al., SC 2011), keyed by the seed, with draw and batch-independent row number
// in the counter; key = seed low, seed high, number of the batch's first row low, high. Groups are linear over x and y.

const STREAM: u32 = 2u;

struct Params {
    rows: u32,
    stride: u32,
    vocab: u32,
    first_row: u32,
    draws: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> ids: array<u32>;
@group(0) @binding(2) var<storage, read> z: array<f32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> key: array<u32>;

// sums[l]: mass of lane l's columns; ends[l]: mass of the lanes up to and including l.
var<workgroup> sums: array<f32, 256>;
var<workgroup> ends: array<f32, 256>;

// High and low word of a product.
fn wide_product(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let first = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let second = (a & 0xffffu) * (b >> 16u) + (first & 0xffffu);
    return vec2<u32>((a >> 16u) * (b >> 16u) + (first >> 16u) + (second >> 16u), a * b);
}

fn philox(start: vec4<u32>, seed: vec2<u32>) -> vec4<u32> {
    var counter = start;
    var round_key = seed;
    for (var i = 0u; i < 10u; i += 1u) {
        let a = wide_product(0xd2511f53u, counter.x);
        let b = wide_product(0xcd9e8d57u, counter.z);
        counter = vec4<u32>(b.x ^ counter.y ^ round_key.x, b.y, a.x ^ counter.w ^ round_key.y, a.y);
        round_key += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return counter;
}

// In (0, 1), a multiple of 2^-24 that f32 holds exactly.
fn uniform_of(word: u32) -> f32 {
    return (f32(word >> 9u) + 0.5) * 1.1920928955078125e-7;
}

fn probability(row: u32, column: u32) -> f32 {
    return exp(max(p.scale * z[row * p.stride + column] - lse[row], -87.0));
}

fn draw(row: u32, number: u32) -> u32 {
    let offset = p.first_row + row;
    let low = key[2] + offset;
    let high = key[3] + select(0u, 1u, low < offset);
    let random = philox(vec4<u32>(number, STREAM, low, high), vec2<u32>(key[0], key[1]));

    // The first lane whose end lies beyond the target.
    let target_mass = uniform_of(random.x) * ends[255];
    var chosen = 0u;
    for (var step = 128u; step > 0u; step >>= 1u) {
        if ends[chosen + step - 1u] <= target_mass {
            chosen += step;
        }
    }
    let within = uniform_of(random.y) * sums[chosen];
    var column = chosen;
    var sum = probability(row, column);
    while sum <= within && column + 256u < p.vocab {
        column += 256u;
        sum += probability(row, column);
    }
    return column;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = wid.y * groups.x + wid.x;
    var sum = 0.0;
    if row < p.rows {
        for (var j = lane; j < p.vocab; j += 256u) {
            sum += probability(row, j);
        }
    }
    sums[lane] = sum;
    workgroupBarrier();
    if lane == 0u {
        var end = 0.0;
        for (var i = 0u; i < 256u; i += 1u) {
            end += sums[i];
            ends[i] = end;
        }
    }
    workgroupBarrier();
    if row < p.rows {
        for (var d = lane; d < p.draws; d += 256u) {
            ids[row * p.draws + d] = draw(row, d);
        }
    }
}
