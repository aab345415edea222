//! The loops in WebAssembly's vectors of four. What they compute for each element is what portable.rs computes.

use super::{exp_f32, normal_cdf_of_f32};
use crate::device::Real;
use std::arch::wasm32::*;

type Four = [f32; 4];

#[inline(always)]
fn load(values: &Four) -> v128 {
    // SAFETY: the array has the 16 bytes that are read; a load needs no alignment.
    unsafe { v128_load(values.as_ptr().cast()) }
}

#[inline(always)]
fn store(values: &mut Four, vector: v128) {
    // SAFETY: the array has the 16 bytes that are written; a store needs no alignment.
    unsafe { v128_store(values.as_mut_ptr().cast(), vector) }
}

#[inline(always)]
fn lanes(vector: v128) -> Four {
    let mut values = [0.0; 4];
    store(&mut values, vector);
    values
}

#[inline(always)]
fn sum(vector: v128) -> f32 {
    let [a, b, c, d] = lanes(vector);
    (a + b) + (c + d)
}

/// a b + c.
#[inline(always)]
fn times_plus(a: v128, b: v128, c: f32) -> v128 {
    f32x4_add(f32x4_mul(a, b), f32x4_splat(c))
}

/// [`exp_f32`] of four.
#[inline(always)]
fn exp(x: v128) -> v128 {
    // These keep NaN, as the comparisons there do.
    let x = f32x4_pmax(f32x4_pmin(x, f32x4_splat(88.37)), f32x4_splat(-87.33));
    let round = f32x4_splat(12_582_912.0);
    let shifted = f32x4_add(f32x4_mul(x, f32x4_splat(std::f32::consts::LOG2_E)), round);
    let n = f32x4_sub(shifted, round);
    let r = f32x4_sub(x, f32x4_mul(n, f32x4_splat(0.693_359_4)));
    let r = f32x4_sub(r, f32x4_mul(n, f32x4_splat(-2.121_944_4e-4)));
    let p = times_plus(f32x4_splat(1.987_569_1e-4), r, 1.398_199_9e-3);
    let p = times_plus(p, r, 8.333_452e-3);
    let p = times_plus(p, r, 4.166_579_6e-2);
    let p = times_plus(p, r, 1.666_666_5e-1);
    let p = times_plus(p, r, 0.5);
    let y = f32x4_add(f32x4_add(f32x4_mul(p, f32x4_mul(r, r)), r), f32x4_splat(1.0));
    let exponent = i32x4_add(i32x4_shl(shifted, 23), i32x4_splat(127 << 23));
    f32x4_mul(y, exponent)
}

/// exp(scale * x - shift).
#[inline(always)]
fn shifted_exp(x: v128, scale: f32, shift: f32) -> v128 {
    exp(f32x4_sub(f32x4_mul(f32x4_splat(scale), x), f32x4_splat(shift)))
}

/// y = f(y, x), by fours and then by ones.
#[inline(always)]
fn each(y: &mut [f32], x: &[f32], four: impl Fn(v128, v128) -> v128, one: impl Fn(f32, f32) -> f32) {
    let n = y.len().min(x.len());
    let ((y, y_rest), (x, x_rest)) = (y[..n].as_chunks_mut(), x[..n].as_chunks());
    for (y, x) in y.iter_mut().zip(x) {
        let result = four(load(y), load(x));
        store(y, result);
    }
    for (y, &x) in y_rest.iter_mut().zip(x_rest) {
        *y = one(*y, x);
    }
}

/// x = f(x), by fours and then by ones.
#[inline(always)]
fn each_in_place(x: &mut [f32], mut four: impl FnMut(v128) -> v128, mut one: impl FnMut(f32) -> f32) {
    let (fours, rest) = x.as_chunks_mut();
    for x in fours {
        let result = four(load(x));
        store(x, result);
    }
    for x in rest {
        *x = one(*x);
    }
}

/// Folds the fours; the rest is the caller's.
#[inline(always)]
fn fold(x: &[f32], start: v128, f: impl Fn(v128, v128) -> v128) -> (v128, &[f32]) {
    let (fours, rest) = x.as_chunks();
    (fours.iter().fold(start, |sum, x| f(sum, load(x))), rest)
}

pub fn max_of_f32(row: &[f32]) -> f32 {
    let (best, rest) = fold(row, f32x4_splat(f32::LOWEST), |best, x| f32x4_pmax(best, x));
    lanes(best).iter().chain(rest).fold(f32::LOWEST, |a, &b| if b > a { b } else { a })
}

pub fn sum_of_f32(row: &[f32]) -> f32 {
    let (sums, rest) = fold(row, f32x4_splat(0.0), |sum, x| f32x4_add(sum, x));
    sum(sums) + rest.iter().sum::<f32>()
}

pub fn sigmoid_f32(values: &mut [f32]) {
    let one = f32x4_splat(1.0);
    let four = |x| f32x4_div(one, f32x4_add(one, exp(f32x4_neg(x))));
    each_in_place(values, four, |x| 1.0 / (1.0 + exp_f32(-x)));
}

// Rarely used: vectors are not worth their bytes.
pub fn normal_cdf_f32(values: &mut [f32]) {
    values.iter_mut().for_each(|x| *x = normal_cdf_of_f32(*x));
}

pub fn sum_exp_f32(row: &[f32], scale: f32, shift: f32) -> f32 {
    let (sums, rest) = fold(row, f32x4_splat(0.0), |sum, x| f32x4_add(sum, shifted_exp(x, scale, shift)));
    sum(sums) + rest.iter().map(|&x| exp_f32(scale * x - shift)).sum::<f32>()
}

pub fn exp_into_f32(out: &mut [f32], row: &[f32], factor: f32, scale: f32, shift: f32) {
    let four = |_, x| f32x4_mul(f32x4_splat(factor), shifted_exp(x, scale, shift));
    each(out, row, four, |_, x| factor * exp_f32(scale * x - shift));
}

pub fn add_exp_f32(out: &mut [f32], row: &[f32], factor: f32, scale: f32, shift: f32) {
    let four = |y, x| f32x4_add(y, f32x4_mul(f32x4_splat(factor), shifted_exp(x, scale, shift)));
    each(out, row, four, |y, x| y + factor * exp_f32(scale * x - shift));
}

pub fn exp_in_place_f32(row: &mut [f32], scale: f32, shift: f32) -> f32 {
    let (mut sums, mut rest) = (f32x4_splat(0.0), 0.0);
    let four = |x| {
        let y = shifted_exp(x, scale, shift);
        sums = f32x4_add(sums, y);
        y
    };
    let one = |x| {
        let y = exp_f32(scale * x - shift);
        rest += y;
        y
    };
    each_in_place(row, four, one);
    sum(sums) + rest
}

pub fn softmax_grad_f32(y: &mut [f32], a: &[f32], shift: f32, factor: f32) {
    let four = |y, a| f32x4_mul(f32x4_mul(f32x4_splat(factor), a), f32x4_sub(y, f32x4_splat(shift)));
    each(y, a, four, |y, a| factor * a * (y - shift));
}

pub fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let ((a, a_rest), (b, b_rest)) = (a[..n].as_chunks::<4>(), b[..n].as_chunks::<4>());
    // Two sums, so that one addition need not wait for the other.
    let (mut even, mut odd) = (f32x4_splat(0.0), f32x4_splat(0.0));
    for (a, b) in a.chunks(2).zip(b.chunks(2)) {
        even = f32x4_add(even, f32x4_mul(load(&a[0]), load(&b[0])));
        if let ([_, a], [_, b]) = (a, b) {
            odd = f32x4_add(odd, f32x4_mul(load(a), load(b)));
        }
    }
    sum(f32x4_add(even, odd)) + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

pub fn axpy_f32(y: &mut [f32], a: f32, x: &[f32]) {
    each(y, x, |y, x| f32x4_add(y, f32x4_mul(f32x4_splat(a), x)), |y, x| y + a * x);
}
