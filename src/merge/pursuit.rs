//! Orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad 1993): vectors as combinations of a few given ones.

use crate::device::gemm::{Layout, gemm};
use rayon::prelude::*;

/// Targets whose products with all atoms are in memory at a time.
pub(super) const BATCH: usize = 128;
/// A residual this short, or an atom that adds as little, ends a pursuit; of the target's or the atom's length.
const NOTHING: f64 = 1e-6;

/// A target on its way.
struct Pursuit {
    residual: Vec<f32>,
    length: f64,
    chosen: Vec<usize>,
    /// Orthonormal directions of the chosen atoms, one after the other.
    basis: Vec<Vec<f64>>,
    /// The chosen atoms in that basis: column j has j + 1 values.
    columns: Vec<Vec<f64>>,
    /// The target in that basis.
    inside: Vec<f64>,
    done: bool,
}

/// For each of the `targets` ([n, width]) at most `k` of the `atoms` ([s, width]) with their factors: greedily the atom
/// with the largest product with what is left, then the best factors of all that were taken. `hear` is called for
/// every so many targets with how many there were.
pub(super) fn pursue<E>(
    atoms: &[f32],
    targets: &[f32],
    width: usize,
    k: usize,
    mut hear: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<Vec<(usize, f64)>>, E> {
    let count = atoms.len() / width.max(1);
    let mut found = Vec::new();
    for targets in targets.chunks(BATCH * width.max(1)) {
        let mut batch: Vec<Pursuit> = targets.chunks(width.max(1)).map(Pursuit::new).collect();
        let mut products = vec![0.0; batch.len() * count];
        for _ in 0..k.min(count).min(width) {
            if batch.iter().all(|pursuit| pursuit.done) {
                break;
            }
            let residuals: Vec<f32> = batch.iter().flat_map(|pursuit| pursuit.residual.iter().copied()).collect();
            let rows = |columns: usize| Layout { offset: 0, row: columns, col: 1 };
            let transposed = Layout { offset: 0, row: 1, col: width };
            let size = (batch.len(), width, count);
            gemm(size, &mut products, rows(count), false, &residuals, rows(width), atoms, transposed, true);
            let steps = batch.par_iter_mut().zip(products.par_chunks_mut(count));
            steps.for_each(|(pursuit, products)| pursuit.step(atoms, products));
        }
        hear(batch.len())?;
        found.extend(batch.into_iter().map(Pursuit::factors));
    }
    Ok(found)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Pursuit {
    fn new(target: &[f32]) -> Pursuit {
        let length = target.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        Pursuit {
            residual: target.to_vec(),
            length,
            chosen: Vec::new(),
            basis: Vec::new(),
            columns: Vec::new(),
            inside: Vec::new(),
            done: length == 0.0,
        }
    }

    /// Takes one more atom; `products` are those of all atoms with the residual.
    fn step(&mut self, atoms: &[f32], products: &mut [f32]) {
        if self.done {
            return;
        }
        self.chosen.iter().for_each(|atom| products[*atom] = 0.0);
        let best = products.iter().enumerate().fold((0, 0.0f32), |best, (i, product)| match product.abs() > best.1 {
            true => (i, product.abs()),
            false => best,
        });
        let width = self.residual.len();
        let atom: Vec<f64> = atoms[best.0 * width..][..width].iter().map(|x| f64::from(*x)).collect();
        let (mut direction, mut column) = (atom.clone(), vec![0.0; self.basis.len()]);
        // Twice: once leaves an error of the size of the projection's rounding.
        for _ in 0..2 {
            for (q, entry) in self.basis.iter().zip(&mut column) {
                let along = dot(q, &direction);
                *entry += along;
                direction.iter_mut().zip(q).for_each(|(x, q)| *x -= along * q);
            }
        }
        let left = dot(&direction, &direction).sqrt();
        if best.1 == 0.0 || left <= NOTHING * dot(&atom, &atom).sqrt() {
            self.done = true;
            return;
        }
        direction.iter_mut().for_each(|x| *x /= left);
        column.push(left);
        let along: f64 = direction.iter().zip(&self.residual).map(|(q, x)| q * f64::from(*x)).sum();
        self.residual.iter_mut().zip(&direction).for_each(|(x, q)| *x = (f64::from(*x) - along * q) as f32);
        self.chosen.push(best.0);
        self.basis.push(direction);
        self.columns.push(column);
        self.inside.push(along);
        let residual = self.residual.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        self.done = residual <= NOTHING * self.length;
    }

    /// Solves the triangular system for the factors.
    fn factors(self) -> Vec<(usize, f64)> {
        let mut factors = self.inside;
        for j in (0..factors.len()).rev() {
            factors[j] /= self.columns[j][j];
            let factor = factors[j];
            let (before, _) = factors.split_at_mut(j);
            before.iter_mut().zip(&self.columns[j]).for_each(|(x, entry)| *x -= factor * entry);
        }
        self.chosen.into_iter().zip(factors).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    #[test]
    fn combinations_of_few_atoms_are_found_and_what_is_left_is_orthogonal() {
        let (width, count) = (48, 120);
        let mut random = SplitMix64::new(5);
        let mut values = |n: usize| (0..n).map(|_| random.uniform() as f32 - 0.5).collect::<Vec<f32>>();
        let atoms = values(count * width);
        let atom = |i: usize| &atoms[i * width..][..width];
        let mixed: Vec<f32> = (0..width).map(|j| 2.0 * atom(7)[j] - 1.5 * atom(90)[j]).collect();
        let targets = [mixed, vec![0.0; width], atom(33).to_vec(), values(width)].concat();
        let found = pursue(&atoms, &targets, width, 12, |_| Ok::<(), ()>(())).unwrap();
        let mut two = found[0].clone();
        two.sort_by_key(|(atom, _)| *atom);
        assert_eq!(two.iter().map(|(atom, _)| *atom).collect::<Vec<_>>(), [7, 90]);
        assert!((two[0].1 - 2.0).abs() < 1e-5 && (two[1].1 + 1.5).abs() < 1e-5, "{two:?}");
        assert!(found[1].is_empty());
        assert!(found[2].len() == 1 && found[2][0].0 == 33 && (found[2][0].1 - 1.0).abs() < 1e-6, "{:?}", found[2]);
        // The best factors of those taken: what is left is orthogonal to each.
        assert_eq!(found[3].len(), 12);
        let left: Vec<f64> = (0..width)
            .map(|j| {
                let sum: f64 = found[3].iter().map(|(i, factor)| factor * f64::from(atom(*i)[j])).sum();
                f64::from(targets[3 * width + j]) - sum
            })
            .collect();
        for (i, _) in &found[3] {
            let along: f64 = atom(*i).iter().zip(&left).map(|(a, x)| f64::from(*a) * x).sum();
            assert!(along.abs() < 1e-6, "atom {i}: {along}");
        }
    }
}
