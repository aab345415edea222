//! The number types of the CPU twins, f32 to work and f64 as the oracle, with the few loops that must be fast.

use super::bf16;
use super::fast::*;
use super::gemm::{Layout, gemm};
use std::cell::Cell;
use std::fmt::{Debug, Display};
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// f32 or f64.
pub trait Real:
    Copy
    + Send
    + Sync
    + Default
    + Debug
    + Display
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The finite stand-in for minus infinity, as in the shaders.
    const LOWEST: Self;
    /// Nearest value.
    fn of(value: f64) -> Self;
    /// Widened.
    fn f64(self) -> f64;
    /// e^self.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// The larger; NaN if `self` is.
    fn larger(self, other: Self) -> Self {
        if other > self { other } else { self }
    }

    /// The largest element, `LOWEST` of none.
    fn max_of(row: &[Self]) -> Self {
        row.iter().fold(Self::LOWEST, |best, &x| best.larger(x))
    }
    /// Sum of the elements.
    fn sum_of(row: &[Self]) -> Self {
        row.iter().fold(Self::ZERO, |sum, &x| sum + x)
    }
    /// Each x becomes 1 / (1 + e^-x).
    fn sigmoid(values: &mut [Self]) {
        values.iter_mut().for_each(|x| *x = Self::ONE / (Self::ONE + (-*x).exp()));
    }
    /// Each x becomes the standard normal distribution's P(X <= x).
    fn normal_cdf(values: &mut [Self]);
    /// Sum over i of exp(scale * row[i] - shift).
    fn sum_exp(row: &[Self], scale: Self, shift: Self) -> Self {
        row.iter().map(|&x| (scale * x - shift).exp()).fold(Self::ZERO, |a, b| a + b)
    }
    /// out[i] = factor * exp(scale * row[i] - shift); returns nothing.
    fn exp_into(out: &mut [Self], row: &[Self], factor: Self, scale: Self, shift: Self) {
        out.iter_mut().zip(row).for_each(|(o, &x)| *o = factor * (scale * x - shift).exp());
    }
    /// out[i] += factor * exp(scale * row[i] - shift).
    fn add_exp(out: &mut [Self], row: &[Self], factor: Self, scale: Self, shift: Self) {
        out.iter_mut().zip(row).for_each(|(o, &x)| *o += factor * (scale * x - shift).exp());
    }
    /// row[i] = exp(scale * row[i] - shift); returns their sum.
    fn exp_in_place(row: &mut [Self], scale: Self, shift: Self) -> Self {
        row.iter_mut().fold(Self::ZERO, |sum, x| {
            *x = (scale * *x - shift).exp();
            sum + *x
        })
    }
    /// y[i] = factor * a[i] * (y[i] - shift): the softmax gradient of weights a, given y = d loss / d a.
    fn softmax_grad(y: &mut [Self], a: &[Self], shift: Self, factor: Self) {
        y.iter_mut().zip(a).for_each(|(y, &a)| *y = factor * a * (*y - shift));
    }
    /// Sum of a[i] * b[i].
    fn dot(a: &[Self], b: &[Self]) -> Self {
        a.iter().zip(b).fold(Self::ZERO, |sum, (&x, &y)| sum + x * y)
    }
    /// [`gemm`] with factors rounded to bfloat16, where `C`'s rows are contiguous; f64, the oracle, does not round.
    #[allow(clippy::too_many_arguments)]
    fn gemm_bf16(
        size: (usize, usize, usize),
        c: &mut [Self],
        lc: Layout,
        accumulate: bool,
        a: &[Self],
        la: Layout,
        b: &[Self],
        lb: Layout,
        parallel: bool,
    ) {
        gemm(size, c, lc, accumulate, a, la, b, lb, parallel);
    }
    /// y[i] += a * x[i].
    fn axpy(y: &mut [Self], a: Self, x: &[Self]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y += a * x);
    }
    /// Sets `out` to the f32 values that `fill` writes.
    fn filled(out: &mut [Self], fill: impl FnOnce(&mut [f32])) {
        let mut narrow = vec![0.0; out.len()];
        fill(&mut narrow);
        out.iter_mut().zip(narrow).for_each(|(out, x)| *out = Self::of(f64::from(x)));
    }
    /// Gives `work` a slice of `len` values, whatever they are.
    fn with_scratch(len: usize, work: impl FnOnce(&mut [Self])) {
        work(&mut vec![Self::ZERO; len]);
    }
}

thread_local! {
    /// This thread's scratch in f32, kept: a steady state allocates nothing.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const LOWEST: f64 = -3.4e38;
    fn of(value: f64) -> f64 {
        value
    }
    fn f64(self) -> f64 {
        self
    }
    fn exp(self) -> f64 {
        f64::exp(self)
    }
    fn ln(self) -> f64 {
        f64::ln(self)
    }
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    fn tanh(self) -> f64 {
        f64::tanh(self)
    }
    fn abs(self) -> f64 {
        f64::abs(self)
    }
    fn normal_cdf(values: &mut [f64]) {
        values.iter_mut().for_each(|x| *x = normal_cdf_f64(*x));
    }
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const LOWEST: f32 = -3.4e38;
    fn of(value: f64) -> f32 {
        value as f32
    }
    fn f64(self) -> f64 {
        self as f64
    }
    fn exp(self) -> f32 {
        exp_f32(self)
    }
    fn ln(self) -> f32 {
        f32::ln(self)
    }
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    fn tanh(self) -> f32 {
        f32::tanh(self)
    }
    fn abs(self) -> f32 {
        f32::abs(self)
    }
    fn max_of(row: &[f32]) -> f32 {
        max_of_f32(row)
    }
    fn sum_of(row: &[f32]) -> f32 {
        sum_of_f32(row)
    }
    fn sigmoid(values: &mut [f32]) {
        sigmoid_f32(values);
    }
    fn normal_cdf(values: &mut [f32]) {
        normal_cdf_f32(values);
    }
    fn sum_exp(row: &[f32], scale: f32, shift: f32) -> f32 {
        sum_exp_f32(row, scale, shift)
    }
    fn exp_into(out: &mut [f32], row: &[f32], factor: f32, scale: f32, shift: f32) {
        exp_into_f32(out, row, factor, scale, shift);
    }
    fn add_exp(out: &mut [f32], row: &[f32], factor: f32, scale: f32, shift: f32) {
        add_exp_f32(out, row, factor, scale, shift);
    }
    fn exp_in_place(row: &mut [f32], scale: f32, shift: f32) -> f32 {
        exp_in_place_f32(row, scale, shift)
    }
    fn softmax_grad(y: &mut [f32], a: &[f32], shift: f32, factor: f32) {
        softmax_grad_f32(y, a, shift, factor);
    }
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        dot_f32(a, b)
    }
    fn gemm_bf16(
        size: (usize, usize, usize),
        c: &mut [f32],
        lc: Layout,
        accumulate: bool,
        a: &[f32],
        la: Layout,
        b: &[f32],
        lb: Layout,
        parallel: bool,
    ) {
        bf16::gemm(size, c, lc, accumulate, a, la, b, lb, parallel);
    }
    fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
        axpy_f32(y, a, x);
    }
    fn filled(out: &mut [f32], fill: impl FnOnce(&mut [f32])) {
        fill(out);
    }
    fn with_scratch(len: usize, work: impl FnOnce(&mut [f32])) {
        // Taken, not borrowed: work that waits for other threads may run another op's here.
        let mut scratch = SCRATCH.take();
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        work(&mut scratch[..len]);
        SCRATCH.set(scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_over_its_range_and_keeps_nan() {
        let mut worst = 0f64;
        for i in -870_000..883_000 {
            let x = i as f32 * 1e-4;
            let exact = (x as f64).exp();
            worst = worst.max((exp_f32(x) as f64 - exact).abs() / exact);
        }
        assert!(worst < 2.0 * f32::EPSILON as f64, "{worst}");
        assert!(exp_f32(f32::NAN).is_nan());
        assert!(exp_f32(1e30).is_finite() && exp_f32(-1e30) < 1.3e-38);
    }

    #[test]
    fn the_fast_loops_agree_with_the_plain_ones() {
        let row: Vec<f32> = (0..1003).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let wide: Vec<f64> = row.iter().map(|&x| x as f64).collect();
        let close = |a: f32, b: f64| assert!((a as f64 - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} {b}");
        close(f32::max_of(&row), f64::max_of(&wide));
        close(f32::sum_exp(&row, 0.7, 3.0), f64::sum_exp(&wide, 0.7, 3.0));
        let (mut narrow, mut twin) = (row.clone(), wide.clone());
        close(f32::exp_in_place(&mut narrow, 0.7, 3.0), f64::exp_in_place(&mut twin, 0.7, 3.0));
        f32::softmax_grad(&mut narrow, &row, 0.3, 1.7);
        f64::softmax_grad(&mut twin, &wide, 0.3, 1.7);
        narrow.iter().zip(&twin).for_each(|(&a, &b)| close(a, b));
        close(f32::dot(&row, &row), f64::dot(&wide, &wide));
        close(f32::sum_of(&row), f64::sum_of(&wide));
    }

    #[test]
    fn the_normal_distribution_agrees_with_published_digits() {
        // erfc(-x / sqrt 2) / 2 by the C library's erfc.
        let known = [
            (0.0, 0.5),
            (1.0, 0.841_344_746_068_542_9),
            (-1.0, 0.158_655_253_931_457_1),
            (-3.5, 2.326_290_790_355_250_4e-4),
        ];
        for (x, p) in known {
            let (mut wide, mut narrow) = ([x], [x as f32]);
            f64::normal_cdf(&mut wide);
            f32::normal_cdf(&mut narrow);
            assert!((wide[0] - p).abs() < 1e-15, "{x}: {wide:?}");
            assert!((narrow[0] as f64 - p).abs() < 1.5e-7, "{x}: {narrow:?}");
        }
        let (mut ends, mut nan) = ([-50.0, 50.0], [f64::NAN]);
        f64::normal_cdf(&mut ends);
        f64::normal_cdf(&mut nan);
        assert!(ends == [0.0, 1.0] && nan[0].is_nan());
        let (mut ends, mut nan) = ([-50f32, 50.0], [f32::NAN]);
        f32::normal_cdf(&mut ends);
        f32::normal_cdf(&mut nan);
        assert!(ends[0] < 1e-37 && ends[1] == 1.0 && nan[0].is_nan(), "{ends:?}");
    }

    #[test]
    fn the_sigmoid_saturates_and_keeps_nan() {
        let mut values = [0.0f32, 200.0, -200.0, 2.0, f32::NAN];
        f32::sigmoid(&mut values);
        assert!(values[..2] == [0.5, 1.0] && values[2] < 1e-37 && values[4].is_nan(), "{values:?}");
        assert!((values[3] as f64 - 0.880_797_077_977_882_4).abs() < 6e-8);
    }
}
