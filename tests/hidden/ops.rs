//! Values and gradients of the hidden losses against their formulas, written out independently in f64.

use potstill::graph::{DType, Graph, Shape, Tensor, Values, evaluate};
use potstill::ops::{Ranges, cka, hidden_cosine, hidden_mse, relation_kl};
use potstill::random::SplitMix64;
use std::collections::HashMap;

type Matrix = Vec<Vec<f64>>;

fn random(seed: u64, rows: usize, cols: usize) -> Matrix {
    let mut random = SplitMix64::new(seed);
    (0..rows).map(|_| (0..cols).map(|_| random.normal()).collect()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Loss rows and the gradient of their sum weighted by `dy`, as the crate computes them in f64.
fn run(
    x: &Matrix,
    y: &Matrix,
    dy: &[f64],
    ints: &[(&str, Vec<u32>)],
    loss: impl Fn(&mut Graph, Tensor, Tensor) -> Tensor,
) -> (Vec<f64>, Matrix) {
    let mut g = Graph::new();
    let shape = |m: &Matrix| Shape::from([m.len(), m[0].len()]);
    let tx = g.external("x", shape(x), DType::F32);
    g.require_grad(tx);
    let ty = g.external("y", shape(y), DType::F32);
    let rows = loss(&mut g, tx, ty);
    let seed = g.external("dy", [dy.len()], DType::F32);
    g.backward(&[(rows, seed)]).unwrap();
    let dx = g.grad(tx).unwrap();
    let mut values = HashMap::from([
        ("x".to_owned(), Values::F(x.concat())),
        ("y".to_owned(), Values::F(y.concat())),
        ("dy".to_owned(), Values::F(dy.to_vec())),
    ]);
    values.extend(ints.iter().map(|(name, v)| ((*name).to_owned(), Values::U(v.clone()))));
    let found = evaluate(&g, &mut values, &[rows, dx]).unwrap();
    let gradient = found[1].floats().chunks(x[0].len()).map(<[f64]>::to_vec).collect();
    (found[0].floats().to_vec(), gradient)
}

/// Relative to the largest of what is expected: sums of some hundred f64 products.
fn assert_near(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3f64, |a, b| a.max(b.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() < 1e-10 * largest, "{what}[{i}]: {f} for {e}");
    }
}

#[test]
fn squared_error_and_cosine_follow_their_formulas() {
    let (h, t, dy) = (random(1, 5, 7), random(2, 5, 7), random(3, 1, 5).concat());
    let (loss, gradient) = run(&h, &t, &dy, &[], hidden_mse);
    let difference = |r: usize| h[r].iter().zip(&t[r]).map(|(h, t)| h - t).collect::<Vec<_>>();
    let expected: Vec<f64> = (0..5).map(|r| dot(&difference(r), &difference(r)) / 7.0).collect();
    assert_near(&loss, &expected, "squared error");
    let expected: Matrix = (0..5).map(|r| difference(r).iter().map(|d| dy[r] * 2.0 * d / 7.0).collect()).collect();
    assert_near(&gradient.concat(), &expected.concat(), "its gradient");

    let (loss, gradient) = run(&h, &t, &dy, &[], hidden_cosine);
    let norm = |v: &[f64]| dot(v, v).sqrt();
    let cos = |r: usize| dot(&h[r], &t[r]) / norm(&h[r]) / norm(&t[r]);
    assert_near(&loss, &(0..5).map(|r| 1.0 - cos(r)).collect::<Vec<_>>(), "cosine");
    // -(t/|t| - cos h/|h|) / |h|
    let row = |r: usize| -> Vec<f64> {
        let (nh, nt) = (norm(&h[r]), norm(&t[r]));
        h[r].iter().zip(&t[r]).map(|(h, t)| -dy[r] * (t / nt - cos(r) * h / nh) / nh).collect()
    };
    assert_near(&gradient.concat(), &(0..5).map(row).collect::<Matrix>().concat(), "its gradient");
}

#[test]
fn equal_states_have_loss_and_gradient_zero_and_lengths_do_not_matter_to_the_cosine() {
    let h = random(4, 3, 8);
    for loss in [hidden_mse, hidden_cosine] {
        let (rows, gradient) = run(&h, &h, &[1.0; 3], &[], loss);
        assert_eq!((rows, gradient.concat()), (vec![0.0; 3], vec![0.0; 24]));
    }
    let longer: Matrix = h.iter().map(|row| row.iter().map(|x| 4.0 * x).collect()).collect();
    let (rows, _) = run(&h, &longer, &[1.0; 3], &[], hidden_cosine);
    assert_near(&rows, &[0.0; 3], "a cosine of parallel rows");
    let opposite: Matrix = h.iter().map(|row| row.iter().map(|x| -x).collect()).collect();
    let (rows, gradient) = run(&h, &opposite, &[1.0; 3], &[], hidden_cosine);
    assert_near(&rows, &[2.0; 3], "a cosine of opposite rows");
    assert_near(&gradient.concat(), &[0.0; 24], "its gradient");
    let (rows, gradient) = run(&h, &vec![vec![0.0; 8]; 3], &[1.0; 3], &[], hidden_cosine);
    assert_eq!((rows, gradient.concat()), (vec![1.0; 3], vec![0.0; 24]));
}

/// The rows of weight other than 0, their columns centred.
fn centred(x: &Matrix, counted: &[usize]) -> Matrix {
    let mean = |c: usize| counted.iter().map(|&r| x[r][c]).sum::<f64>() / counted.len() as f64;
    let means: Vec<f64> = (0..x[0].len()).map(mean).collect();
    counted.iter().map(|&r| x[r].iter().zip(&means).map(|(x, m)| x - m).collect()).collect()
}

/// a^T b.
fn cross(a: &Matrix, b: &Matrix) -> Matrix {
    let at = |i: usize, j: usize| a.iter().zip(b).map(|(a, b)| a[i] * b[j]).sum();
    (0..a[0].len()).map(|i| (0..b[0].len()).map(|j| at(i, j)).collect()).collect()
}

#[test]
fn cka_follows_its_formula_and_sees_no_scale_and_no_rotation() {
    let (x, y) = (random(5, 9, 4), random(6, 9, 6));
    let counted = [0, 1, 3, 4, 6, 7];
    let weights: Vec<f64> = (0..9).map(|r| if counted.contains(&r) { 0.2 } else { 0.0 }).collect();
    let of = |g: &mut Graph, x: Tensor, y: Tensor| {
        let weights = g.external("dy", [9], DType::F32);
        cka(g, x, y, weights)
    };
    let (rows, gradient) = run(&x, &y, &weights, &[], of);
    let (xc, yc) = (centred(&x, &counted), centred(&y, &counted));
    let (c, a, b) = (cross(&yc, &xc), cross(&xc, &xc), cross(&yc, &yc));
    let square = |m: &Matrix| dot(&m.concat(), &m.concat());
    let (n, a_norm, b_norm) = (square(&c), square(&a).sqrt(), square(&b).sqrt());
    assert_near(&rows, &[1.0 - n / (a_norm * b_norm); 9], "cka");
    // -(2 Y (Y^T X) / (ab) - 2 N X (X^T X) / (a^3 b)), its columns centred again, times the sum of the weights.
    let raw = |r: usize, j: usize| {
        let (y, x) = (&yc[r], &xc[r]);
        let yc: f64 = (0..6).map(|i| y[i] * c[i][j]).sum();
        let xa: f64 = (0..4).map(|i| x[i] * a[i][j]).sum();
        -2.0 * yc / (a_norm * b_norm) + 2.0 * n * xa / (a_norm.powi(3) * b_norm)
    };
    let total: f64 = weights.iter().sum();
    let mut expected = vec![vec![0.0; 4]; 9];
    let means: Vec<f64> = (0..4).map(|j| (0..6).map(|r| raw(r, j)).sum::<f64>() / 6.0).collect();
    for (r, &row) in counted.iter().enumerate() {
        expected[row] = means.iter().enumerate().map(|(j, mean)| total * (raw(r, j) - mean)).collect();
    }
    assert_near(&gradient.concat(), &expected.concat(), "its gradient");

    // Turned by a quarter in the first two columns, scaled and moved: the same states to CKA.
    let turned: Matrix = x.iter().map(|r| [r[1], -r[0], r[2], r[3]].map(|x| 3.0 * x + 5.0).to_vec()).collect();
    let (rows, gradient) = run(&x, &turned, &weights, &[], of);
    assert_near(&rows, &[0.0; 9], "cka of the same states");
    assert!(gradient.concat().iter().all(|g| g.abs() < 1e-12));
    let (rows, gradient) = run(&x, &vec![vec![2.0; 3]; 9], &weights, &[], of);
    assert_eq!((rows, gradient.concat()), (vec![1.0; 9], vec![0.0; 36]));
}

#[test]
fn relations_follow_their_formula_within_documents_and_heads() {
    let (heads, da, db) = (2, 3, 5);
    let (a, b, dy) = (random(7, 7, heads * da), random(8, 7, heads * db), random(9, 1, 7).concat());
    // Documents of 4 and 3 rows.
    let seen = |i: usize| if i < 4 { 0..i + 1 } else { 4..i + 1 };
    let query = (0..7).flat_map(|i| [seen(i).start as u32, seen(i).end as u32]).collect::<Vec<_>>();
    let key = (0..7).flat_map(|i| [i, if i < 4 { 4 } else { 7 }]).map(|x| x as u32).collect::<Vec<_>>();
    let ints = [("query", query), ("key", key)];
    let of = |g: &mut Graph, x: Tensor, y: Tensor| {
        let [query, key] = ["query", "key"].map(|name| g.external(name, [7, 2], DType::U32));
        relation_kl(g, x, y, Ranges { query, key: Some(key) }, heads)
    };
    let (rows, gradient) = run(&a, &b, &dy, &ints, of);

    let mut expected_rows = vec![0.0; 7];
    let mut expected = vec![vec![0.0; heads * da]; 7];
    for i in 0..7 {
        for head in 0..heads {
            let softmax = |m: &Matrix, d: usize| -> Vec<f64> {
                let at = |r: usize| &m[r][head * d..(head + 1) * d];
                let e: Vec<f64> = seen(i).map(|j| (dot(at(i), at(j)) / (d as f64).sqrt()).exp()).collect();
                let sum: f64 = e.iter().sum();
                e.iter().map(|e| e / sum).collect()
            };
            let (q, p) = (softmax(&a, da), softmax(&b, db));
            expected_rows[i] += p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>() / heads as f64;
            for ((j, q), p) in seen(i).zip(q).zip(p) {
                // d loss / d score, and the score is a_i . a_j / sqrt(d).
                let slope = dy[i] / heads as f64 * (q - p) / (da as f64).sqrt();
                for c in head * da..(head + 1) * da {
                    expected[i][c] += slope * a[j][c];
                    expected[j][c] += slope * a[i][c];
                }
            }
        }
    }
    // The heads' scales are rounded to f32, as the shader has them.
    let near = |found: &[f64], expected: &[f64]| found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6);
    assert!(near(&rows, &expected_rows), "{rows:?} for {expected_rows:?}");
    assert!(near(&gradient.concat(), &expected.concat()), "{gradient:?} for {expected:?}");
    let (rows, gradient) = run(&a, &a, &dy, &ints, of);
    assert_eq!((rows, gradient.concat()), (vec![0.0; 7], vec![0.0; 7 * heads * da]));
}
