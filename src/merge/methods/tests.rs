//! What golden values of eight numbers cannot show: tensors of many blocks, ties, chance, edges.

use super::select::{borders, magnitude};
use super::*;
use crate::device::Device;
use crate::random::SplitMix64;
use inputs::Cut;

/// Settings of a model with this weight.
pub(super) fn model(weight: f64) -> PerModel {
    PerModel { weight, ..PerModel::default() }
}

/// What is merged.
pub(super) struct Given<'a> {
    pub shape: &'a [usize],
    pub base: Option<&'a [f32]>,
    pub models: &'a [Vec<f32>],
    pub per_model: &'a [PerModel],
}

/// The result of a method. The ops that devices run give the same, within their f32 sums.
pub(super) fn merged(method: &Method, given: &Given) -> Vec<f32> {
    let found = in_bands(method, given, usize::MAX / 2, None).unwrap();
    let device = in_bands(method, given, usize::MAX / 2, Some(&Device::cpu())).unwrap();
    let most = found.iter().fold(0f32, |most, x| most.max(x.abs()));
    assert_eq!(found.len(), device.len());
    for (i, (found, device)) in found.iter().zip(&device).enumerate() {
        assert!((found - device).abs() <= 1e-5 * most, "{method:?}[{i}]: {device} on a device, not {found}");
    }
    found
}

/// The same in bands of `band` values, on the processor or a device.
fn in_bands(method: &Method, given: &Given, band: usize, device: Option<&Device>) -> Result<Vec<f32>> {
    let reader = |values: Vec<f32>| {
        move |start: usize, out: &mut [f32]| {
            out.copy_from_slice(&values[start..start + out.len()]);
            Ok(())
        }
    };
    let base = given.base.map(|values| reader(values.to_vec()));
    let readers: Vec<_> = given.models.iter().map(|values| reader(values.clone())).collect();
    let inputs = Inputs {
        shape: given.shape,
        base: base.as_ref().map(|read| read as &Read),
        models: readers.iter().map(|read| read as &Read).collect(),
        device,
    };
    let kernel = pollster::block_on(method.prepare(&inputs, given.per_model, random_key(42, "a.weight")))?;
    let mut out = Vec::new();
    pollster::block_on(inputs.compute(
        &kernel,
        band,
        |_, values| Ok(values.to_vec()),
        |parts, range| {
            assert_eq!(out.len(), range.start);
            parts.into_iter().for_each(|part| out.extend(part));
            assert_eq!(out.len(), range.end);
            Ok(())
        },
    ))?;
    Ok(out)
}

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut random = SplitMix64::new(seed);
    (0..count).map(|_| random.normal() as f32).collect()
}

fn task(sparsify: Sparsify, rescale: Rescale) -> Method {
    Method::Task(Task { sparsify, vote: Vote::Nothing, normalize: false, rescale, lambda: 1.0 })
}

/// Task vectors that are kept of one model over a base of zeros.
fn kept(sparsify: Sparsify, rescale: Rescale, shape: &[usize], values: &[f32], settings: PerModel) -> Vec<f32> {
    let base = vec![0.0; values.len()];
    merged(
        &task(sparsify, rescale),
        &Given { shape, base: Some(&base), models: &[values.to_vec()], per_model: &[settings] },
    )
}

#[test]
fn borders_are_those_of_a_stable_sort() {
    let mut random = SplitMix64::new(5);
    for n in [1usize, 7, 16_384, 40_001] {
        // Few distinct values: almost every border runs through ties, also of different blocks.
        let values: Vec<f32> = (0..n).map(|_| (random.bits() % 9) as f32 - 4.0).collect();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()).then(b.cmp(a)));
        let read = |start: usize, out: &mut [f32]| {
            out.copy_from_slice(&values[start..start + out.len()]);
            Ok(())
        };
        let inputs = Inputs { shape: &[n], base: None, models: vec![&read], device: None };
        let cut = Cut { unit: 1, deltas: false };
        let positions = vec![0, 1, n as u64 / 3, n as u64 / 2, n as u64];
        let keys = |block: &Block, lane: usize, out: &mut Vec<u32>| {
            out.extend(block.models[lane].iter().map(|x| magnitude(*x)));
        };
        let found = borders(&inputs, cut, std::slice::from_ref(&positions), keys).unwrap();
        for (position, border) in positions.iter().zip(&found[0]) {
            let mut before = vec![false; n];
            let length = inputs.block_length(1);
            for (index, block) in values.chunks(length).enumerate() {
                let mut walk = border.walk(index);
                block.iter().enumerate().for_each(|(i, x)| before[index * length + i] = walk.next(magnitude(*x)));
            }
            let mut expected = vec![false; n];
            order[..*position as usize].iter().for_each(|i| expected[*i] = true);
            assert_eq!(before, expected, "{n} values, position {position}");
        }
    }
}

#[test]
fn a_window_holds_the_right_ranks_and_never_nothing() {
    let values: Vec<f32> = (1..=10).map(|i| i as f32).collect();
    let of = |sparsify, density, gamma| {
        kept(sparsify, Rescale::Nothing, &[10], &values, PerModel { density, gamma, ..PerModel::default() })
    };
    let expect = |range: std::ops::RangeInclusive<i32>| {
        (1..=10).map(|i| if range.contains(&i) { i as f32 } else { 0.0 }).collect::<Vec<f32>>()
    };
    assert_eq!(of(Sparsify::Magnitude, 0.35, 0.0), expect(8..=10));
    // mergekit stops with an assertion here, and loses the whole task vector below.
    assert_eq!(of(Sparsify::Magnitude, 0.05, 0.0), expect(10..=10));
    assert_eq!(of(Sparsify::Magnitude, 0.0, 0.0), vec![0.0; 10]);
    assert_eq!(of(Sparsify::Outliers, 0.5, 0.01), expect(6..=10));
    assert_eq!(of(Sparsify::Outliers, 0.5, 0.2), expect(4..=8));
    assert_eq!(of(Sparsify::Outliers, 0.9, 0.3), expect(1..=9));
}

#[test]
fn results_depend_on_neither_bands_nor_threads() {
    let (rows, columns) = (130, 257);
    let count = rows * columns;
    let base = random(count, 1);
    let models: Vec<Vec<f32>> = (2..5).map(|seed| random(count, seed)).collect();
    let settings = [0.6, 0.4, 0.5].map(|w| PerModel { density: 0.5, epsilon: 0.1, ..model(w) });
    let ties = |sparsify, rescale| {
        Method::Task(Task { sparsify, vote: Vote::Weighted, normalize: true, rescale, lambda: 1.0 })
    };
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for method in [
        ties(Sparsify::Magnitude, Rescale::Nothing),
        ties(Sparsify::Bernoulli, Rescale::Norm),
        ties(Sparsify::Outliers, Rescale::Nothing),
        ties(Sparsify::Ranked, Rescale::Norm),
        Method::Sce { select_topk: 0.3 },
        Method::ModelStock { filter_wise: true },
        Method::ModelStock { filter_wise: false },
        Method::Ram { epsilon: 1.0, plus: Some((0.1, 0.2)) },
    ] {
        let given = Given { shape: &[rows, columns], base: Some(&base), models: &models, per_model: &settings };
        merged(&method, &given);
        let of = |band| in_bands(&method, &given, if band == 0 { usize::MAX / 2 } else { band }, None).unwrap();
        let whole = of(0);
        assert_eq!(whole, of(20_000), "{method:?}");
        assert_eq!(whole, one.install(|| of(0)), "{method:?}");
    }
}

#[test]
fn chance_keeps_the_share_it_should() {
    let n = 40_000;
    let values = random(n, 9);
    let settings = PerModel { density: 0.3, ..PerModel::default() };
    let thin = kept(Sparsify::Bernoulli, Rescale::Nothing, &[n], &values, settings);
    let count = thin.iter().filter(|x| **x != 0.0).count() as f64;
    // Four standard deviations of a binomial count.
    assert!((count - 0.3 * n as f64).abs() < 4.0 * (n as f64 * 0.3 * 0.7).sqrt(), "{count}");
    let scaled = kept(Sparsify::Bernoulli, Rescale::Norm, &[n], &values, settings);
    let norm = |values: &[f32]| values.iter().map(|x| f64::from(x.abs())).sum::<f64>();
    assert!((norm(&scaled) / norm(&values) - 1.0).abs() < 1e-6);
    assert!(scaled.iter().zip(&thin).all(|(a, b)| (*a == 0.0) == (*b == 0.0)));
    // The papers' rule: over the probability to be kept.
    let divided = kept(Sparsify::Bernoulli, Rescale::Chance, &[n], &values, settings);
    assert!(divided.iter().zip(&thin).all(|(a, b)| (a - b / 0.3).abs() <= 1e-6 * b.abs()));
}

#[test]
fn della_keeps_by_rank_in_the_row() {
    // 20,000 rows of the example whose probabilities are known: .4, .1, .2, .3 with density .5 and epsilon .2.
    let rows = 20_000;
    let values: Vec<f32> = [0.4, -0.1, 0.2, -0.3].repeat(rows);
    let settings = PerModel { density: 0.5, epsilon: 0.2, ..PerModel::default() };
    let found = kept(Sparsify::Ranked, Rescale::Nothing, &[rows, 4], &values, settings);
    for (column, expected) in [0.7, 0.3, 0.4333, 0.5667].into_iter().enumerate() {
        let count = found.iter().skip(column).step_by(4).filter(|x| **x != 0.0).count();
        let share = count as f64 / rows as f64;
        // Four standard errors.
        assert!((share - expected).abs() < 4.0 * (0.25 / rows as f64).sqrt(), "{column}: {share}");
    }
    let divided = kept(Sparsify::Ranked, Rescale::Chance, &[rows, 4], &values, settings);
    for (i, (x, whole)) in divided.iter().zip(&found).enumerate() {
        let expected = f64::from(*whole) / [0.7, 0.3, 0.5 - 0.2 + 0.4 / 3.0, 0.5 - 0.2 + 0.8 / 3.0][i % 4];
        assert!((f64::from(*x) - expected).abs() < 1e-6, "{i}: {x} {expected}");
    }
    // A row of one value is kept with probability `density`; mergekit's is NaN.
    let single = kept(Sparsify::Ranked, Rescale::Nothing, &[rows, 1], &vec![1.0; rows], settings);
    let share = single.iter().sum::<f32>() / rows as f32;
    assert!((share - 0.5).abs() < 0.015, "{share}");
}

#[test]
fn degenerate_tensors_give_finite_values() {
    let zeros = vec![0.0; 6];
    let models = vec![zeros.clone(), zeros.clone()];
    let settings = [PerModel { density: 0.5, ..model(0.5) }; 2];
    for method in [
        Method::Slerp { t: 0.3 },
        Method::NuSlerp { flatten: true, row_wise: false },
        Method::NuSlerp { flatten: false, row_wise: true },
        Method::MultiSlerp { normalize_weights: true, eps: 1e-8 },
        Method::Karcher { max_iter: 10, tol: 1e-5 },
    ] {
        assert_eq!(
            merged(&method, &Given { shape: &[2, 3], base: None, models: &models, per_model: &settings }),
            zeros,
            "{method:?}"
        );
    }
    for method in [
        task(Sparsify::Magnitude, Rescale::Norm),
        Method::ModelStock { filter_wise: true },
        Method::Sce { select_topk: 0.5 },
        Method::Ram { epsilon: 1e-5, plus: Some((0.1, 0.2)) },
    ] {
        assert_eq!(
            merged(&method, &Given { shape: &[2, 3], base: Some(&zeros), models: &models, per_model: &settings }),
            zeros,
            "{method:?}"
        );
    }
    // Scalars and empty tensors.
    let linear = Method::Linear { normalize: true };
    assert_eq!(
        merged(&linear, &Given { shape: &[], base: None, models: &[vec![1.0], vec![3.0]], per_model: &settings }),
        [2.0]
    );
    assert!(
        merged(&linear, &Given { shape: &[0, 4], base: None, models: &[vec![], vec![]], per_model: &settings })
            .is_empty()
    );
    let against = [model(1.0), model(-1.0)];
    let error = in_bands(&linear, &Given { shape: &[6], base: None, models: &models, per_model: &against }, 6, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("do not sum to 0") && error.contains("normalize: false"), "{error}");
}
