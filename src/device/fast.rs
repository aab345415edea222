//! The loops over f32 that must be fast: plain Rust that compilers turn into vector code, compiled for several
//! instruction sets and chosen at run time.

use super::Real;

/// e^x to about 1 ulp, in operations that compilers turn into vector code (the polynomial is Cephes' expf).
/// Saturates at both ends of f32's range; NaN stays NaN.
#[inline(always)]
pub fn exp_f32(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let x = if x > 88.37 { 88.37 } else { x };
    let x = if x < -87.33 { -87.33 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4 * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    let exponent = (shifted.to_bits() << 23).wrapping_add(127 << 23);
    y * f32::from_bits(exponent)
}

/// P(X <= x) to a few 1e-16, by the series of Marsaglia (2004): 1/2 + phi(x) (x + x^3/3 + x^5/(3*5) + ...), whose
/// terms all have one sign.
pub(super) fn normal_cdf_f64(x: f64) -> f64 {
    // Beyond this, 1 - P is below f64's resolution of 1.
    if x.abs() > 9.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut sum, mut term, mut odd) = (x, x, 1.0);
    loop {
        odd += 2.0;
        term *= x * x / odd;
        let next = sum + term;
        // Not `next == sum`: that never holds for NaN.
        if next.is_nan() || next == sum {
            return 0.5 + next * (-0.5 * x * x).exp() * 0.398_942_280_401_432_7;
        }
        sum = next;
    }
}

/// Partial sums side by side: the compiler keeps them in vector registers, and the error grows more slowly.
const LANES: usize = 32;

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn max_of_f32(row: &[f32]) -> f32 {
    let mut best = [f32::LOWEST; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (b, &x) in best.iter_mut().zip(chunk) {
            *b = if x > *b { x } else { *b };
        }
    }
    best.iter().chain(rest).fold(f32::LOWEST, |a, &b| if b > a { b } else { a })
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn sum_of_f32(row: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn sigmoid_f32(values: &mut [f32]) {
    values.iter_mut().for_each(|x| *x = 1.0 / (1.0 + exp_f32(-*x)));
}

// erfc by Abramowitz & Stegun 7.1.26: P is off by 7.5e-8 at most, about one rounding of 1.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn normal_cdf_f32(values: &mut [f32]) {
    for x in values {
        let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
        let p = 1.061_405_4 * t - 1.453_152;
        let p = p * t + 1.421_413_7;
        let p = p * t - 0.284_496_74;
        let p = (p * t + 0.254_829_6) * t;
        let tail = 0.5 * p * exp_f32(-0.5 * *x * *x);
        *x = if *x < 0.0 { tail } else { 1.0 - tail };
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn sum_exp_f32(row: &[f32], scale: f32, shift: f32) -> f32 {
    let mut sums = [0f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += exp_f32(scale * x - shift);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|&x| exp_f32(scale * x - shift)).sum::<f32>()
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn exp_into_f32(out: &mut [f32], row: &[f32], factor: f32, scale: f32, shift: f32) {
    out.iter_mut().zip(row).for_each(|(o, &x)| *o = factor * exp_f32(scale * x - shift));
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn add_exp_f32(out: &mut [f32], row: &[f32], factor: f32, scale: f32, shift: f32) {
    out.iter_mut().zip(row).for_each(|(o, &x)| *o += factor * exp_f32(scale * x - shift));
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn exp_in_place_f32(row: &mut [f32], scale: f32, shift: f32) -> f32 {
    let mut sums = [0f32; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *x = exp_f32(scale * *x - shift);
            *sum += *x;
        }
    }
    rest.iter_mut().for_each(|x| *x = exp_f32(scale * *x - shift));
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn softmax_grad_f32(y: &mut [f32], a: &[f32], shift: f32, factor: f32) {
    y.iter_mut().zip(a).for_each(|(y, &a)| *y = factor * a * (*y - shift));
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let n = a.len().min(b.len());
    let ((ac, ar), (bc, br)) = (a[..n].as_chunks::<LANES>(), b[..n].as_chunks::<LANES>());
    for (x, y) in ac.iter().zip(bc) {
        for i in 0..LANES {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f32>() + ar.iter().zip(br).map(|(x, y)| x * y).sum::<f32>()
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn axpy_f32(y: &mut [f32], a: f32, x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y += a * x);
}
