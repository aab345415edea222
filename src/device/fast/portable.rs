//! The loops in plain Rust that compilers turn into vector code, compiled for several instruction sets and chosen at run
//! time.

use super::{exp_f32, normal_cdf_of_f32};
use crate::device::Real;

/// Partial sums side by side: the compiler keeps them in vector registers, and the error grows more slowly.
const LANES: usize = 32;

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn max_of_f32(row: &[f32]) -> f32 {
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
pub fn sum_of_f32(row: &[f32]) -> f32 {
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
pub fn sigmoid_f32(values: &mut [f32]) {
    values.iter_mut().for_each(|x| *x = 1.0 / (1.0 + exp_f32(-*x)));
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn normal_cdf_f32(values: &mut [f32]) {
    values.iter_mut().for_each(|x| *x = normal_cdf_of_f32(*x));
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn sum_exp_f32(row: &[f32], scale: f32, shift: f32) -> f32 {
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
pub fn exp_into_f32(out: &mut [f32], row: &[f32], factor: f32, scale: f32, shift: f32) {
    out.iter_mut().zip(row).for_each(|(o, &x)| *o = factor * exp_f32(scale * x - shift));
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn add_exp_f32(out: &mut [f32], row: &[f32], factor: f32, scale: f32, shift: f32) {
    out.iter_mut().zip(row).for_each(|(o, &x)| *o += factor * exp_f32(scale * x - shift));
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn exp_in_place_f32(row: &mut [f32], scale: f32, shift: f32) -> f32 {
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
pub fn softmax_grad_f32(y: &mut [f32], a: &[f32], shift: f32, factor: f32) {
    y.iter_mut().zip(a).for_each(|(y, &a)| *y = factor * a * (*y - shift));
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
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
pub fn axpy_f32(y: &mut [f32], a: f32, x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y += a * x);
}
