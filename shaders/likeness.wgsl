// How alike two vectors a and b of n numbers are: their cosine, or with OVERLAP sum_j min(|a_j|, |b_j|); and dy times
// its gradient by a. One workgroup for all of it: a pass for the sums, a tree sum, and for the gradient a second pass.

const OVERLAP: bool = false;

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> a: array<f32>;
@group(0) @binding(3) var<storage, read> b: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;

var<workgroup> sums: array<vec3<f32>, 256>;

/// (a b, a a, b b) of this lane's numbers; with OVERLAP the first is the overlap.
fn own_sums(lane: u32) -> vec3<f32> {
    var own = vec3<f32>(0.0, 0.0, 0.0);
    for (var j = lane; j < p.count; j += 256u) {
        let u = a[j];
        let v = b[j];
        if OVERLAP {
            own.x += min(abs(u), abs(v));
        } else {
            own += vec3<f32>(u * v, u * u, v * v);
        }
    }
    return own;
}

@compute @workgroup_size(256)
fn value(@builtin(local_invocation_index) lane: u32) {
    sums[lane] = own_sums(lane);
    for (var half = 128u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    if lane == 0u {
        let totals = sums[0];
        if OVERLAP {
            y[0] = totals.x;
        } else if min(totals.y, totals.z) < 1e-24 {
            y[0] = 0.0;
        } else {
            y[0] = totals.x / (sqrt(totals.y) * sqrt(totals.z));
        }
    }
}

@compute @workgroup_size(256)
fn gradient(@builtin(local_invocation_index) lane: u32) {
    sums[lane] = own_sums(lane);
    for (var half = 128u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    workgroupBarrier();
    let totals = sums[0];
    let seed = dy[0];
    for (var j = lane; j < p.count; j += 256u) {
        let u = a[j];
        let v = b[j];
        var slope = 0.0;
        if OVERLAP {
            // Where both are as large, each has half of the change.
            slope = sign(u) * (0.5 + 0.5 * sign(abs(v) - abs(u)));
        } else if min(totals.y, totals.z) >= 1e-24 {
            slope = (v - u * (totals.x / totals.y)) / (sqrt(totals.y) * sqrt(totals.z));
        }
        y[j] = seed * slope;
    }
}
