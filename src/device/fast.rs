//! The arithmetic over f32 that must be fast.

// A browser's module is compiled for size, and compilers make no vector code then: there the vectors are spelt out.
#[cfg_attr(not(all(target_arch = "wasm32", target_feature = "simd128")), path = "fast/portable.rs")]
#[cfg_attr(all(target_arch = "wasm32", target_feature = "simd128"), path = "fast/simd128.rs")]
mod loops;

pub(super) use loops::*;

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

/// The standard normal distribution's P(X <= x): erfc by Abramowitz & Stegun 7.1.26, off by 7.5e-8 at most, about one
/// rounding of 1.
#[inline(always)]
fn normal_cdf_of_f32(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let p = 1.061_405_4 * t - 1.453_152;
    let p = p * t + 1.421_413_7;
    let p = p * t - 0.284_496_74;
    let p = (p * t + 0.254_829_6) * t;
    let tail = 0.5 * p * exp_f32(-0.5 * x * x);
    if x < 0.0 { tail } else { 1.0 - tail }
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
