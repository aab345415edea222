// out = [s, 1/s]: the power of two that brings the largest magnitude of x into [2^14, 2^15), the upper end of f16's range.
// Rows of zeros have s = 2^126; where x is not finite, s is 1 and 1/s so large that what it multiplies is noticed.
//
// `parts`: parts[first + group] = the largest bits of 4,096 elements without their signs: floats order as their bits do.
// Groups are numbered linearly over x and y.
// `finish`: one workgroup takes the largest of the parts.

const PART: u32 = 4096u;

struct Params {
    /// Elements in this piece, or parts.
    count: u32,
    first: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> parts: array<u32>;
@group(0) @binding(2) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

var<workgroup> shared_bits: array<u32, 256>;

// The largest in the workgroup, valid in invocation 0.
fn reduce(lane: u32, value: u32) -> u32 {
    var largest = value;
    shared_bits[lane] = largest;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            largest = max(largest, shared_bits[lane + half]);
            shared_bits[lane] = largest;
        }
    }
    return largest;
}

@compute @workgroup_size(256)
fn parts_of(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = wid.y * groups.x + wid.x;
    let start = number * PART;
    let end = min(start + PART, p.count);
    var largest = 0u;
    for (var i = start + lane; i < end; i += 256u) {
        largest = max(largest, x[i] & 0x7fffffffu);
    }
    largest = reduce(lane, largest);
    if lane == 0u && start < p.count {
        parts[p.first + number] = largest;
    }
}

@compute @workgroup_size(256)
fn finish(@builtin(local_invocation_index) lane: u32) {
    var largest = 0u;
    for (var i = lane; i < p.count; i += 256u) {
        largest = max(largest, parts[i]);
    }
    largest = reduce(lane, largest);
    if lane == 0u {
        let exponent = largest >> 23u;
        if exponent == 255u {
            out[0] = 1.0;
            out[1] = 3.4e38;
        } else {
            // 2^14 has the exponent 141, so the scale has 127 + 141 - exponent; its inverse 254 less that.
            let power = min(268u - exponent, 253u);
            out[0] = bitcast<f32>(power << 23u);
            out[1] = bitcast<f32>((254u - power) << 23u);
        }
    }
}
