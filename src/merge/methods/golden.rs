//! Every method against the values that mergekit 0.1.4 computes in f32 for a base and three models of 2 x 4 values
//! (six decimals). DELLA's masks are random: its rule is tested in `tests.rs`.

use super::tests::{Given, merged, model};
use super::{Method, PerModel, Rescale, Sparsify, Task, Vote};

const BASE: [f32; 8] = [0.10, -0.20, 0.30, 0.40, 0.50, -0.60, 0.70, -0.80];
const CHANGES: [[f32; 8]; 3] = [
    [0.05, -0.01, 0.0, 0.20, -0.30, 0.02, 0.10, 0.04],
    [-0.04, -0.03, 0.10, 0.10, 0.25, -0.02, 0.20, 0.0],
    [0.06, 0.02, -0.05, 0.0, 0.10, 0.30, -0.10, 0.01],
];
const ORTHOGONAL: [[f32; 4]; 2] = [[1.0, 0.0, 0.0, 2.0], [0.0, 1.0, -3.0, 0.0]];
const WEIGHTS: [f64; 3] = [0.6, 0.4, 0.5];

fn models(count: usize) -> Vec<Vec<f32>> {
    CHANGES[..count].iter().map(|change| BASE.iter().zip(change).map(|(b, c)| b + c).collect()).collect()
}

/// Two or three of the models, with or without the base.
fn check(what: &str, method: Method, count: usize, base: bool, per_model: &[PerModel], expected: [f32; 8]) {
    let found =
        merged(&method, &Given { shape: &[2, 4], base: base.then_some(&BASE[..]), models: &models(count), per_model });
    close(what, &found, &expected);
}

fn close(what: &str, found: &[f32], expected: &[f32]) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        // Half a unit of the sixth decimal, and f32's own error.
        assert!((found - expected).abs() <= 1e-6, "{what}[{i}]: {found} is not {expected}");
    }
}

fn weighted(count: usize) -> Vec<PerModel> {
    WEIGHTS[..count].iter().map(|w| model(*w)).collect()
}

fn dense(change: impl Fn(PerModel) -> PerModel) -> Vec<PerModel> {
    weighted(3).into_iter().map(change).collect()
}

fn task(sparsify: Sparsify, consensus: bool, normalize: bool, lambda: f64) -> Method {
    let vote = if consensus { Vote::Weighted } else { Vote::Nothing };
    Method::Task(Task { sparsify, vote, normalize, rescale: Rescale::Nothing, lambda })
}

#[test]
fn sums() {
    let expected = [0.114, -0.218, 0.34, 0.56, 0.42, -0.596, 0.84, -0.776];
    check("linear", Method::Linear { normalize: true }, 2, false, &weighted(2), expected);
    let expected = [0.194, -0.308, 0.465, 0.76, 0.72, -0.746, 1.14, -1.171];
    check("linear, as they are", Method::Linear { normalize: false }, 3, false, &weighted(3), expected);
    let scaled = [PerModel { scale: 0.5, ..PerModel::default() }];
    let expected = models(1)[0].iter().map(|x| 0.5 * x).collect::<Vec<f32>>();
    let found =
        merged(&Method::Passthrough, &Given { shape: &[2, 4], base: None, models: &models(1), per_model: &scaled });
    close("passthrough", &found, &expected);
}

#[test]
fn spheres_of_two() {
    let expected = [0.119985, -0.219972, 0.339682, 0.572531, 0.398576, -0.602115, 0.846467, -0.784558];
    check("slerp", Method::Slerp { t: 0.35 }, 2, false, &weighted(2), expected);
    let turned = [0.92388, 0.382683, -1.14805, 1.847759];
    let orthogonal = ORTHOGONAL.map(|values| values.to_vec());
    let found = merged(
        &Method::Slerp { t: 0.25 },
        &Given { shape: &[2, 2], base: None, models: &orthogonal, per_model: &weighted(2) },
    );
    close("slerp, orthogonal", &found, &turned);
    let nu = |flatten, row_wise| Method::NuSlerp { flatten, row_wise };
    let found = merged(
        &nu(true, false),
        &Given { shape: &[2, 2], base: None, models: &orthogonal, per_model: &[model(0.75), model(0.25)] },
    );
    close("nuslerp, orthogonal", &found, &turned);
    let expected = [0.115546, -0.22114, 0.344964, 0.567922, 0.426541, -0.604572, 0.852122, -0.787149];
    check("nuslerp", nu(true, false), 2, false, &weighted(2), expected);
    let expected = [0.114726, -0.219475, 0.342331, 0.563721, 0.426716, -0.604801, 0.852448, -0.787448];
    check("nuslerp by row", nu(false, false), 2, false, &weighted(2), expected);
    let expected = [0.118255, -0.218002, 0.340147, 0.5608, 0.438019, -0.596004, 0.840359, -0.777126];
    check("nuslerp by column", nu(false, true), 2, false, &weighted(2), expected);
    let expected = [0.11853, -0.23036, 0.370141, 0.656489, 0.395831, -0.595393, 0.933456, -0.76273];
    check("nuslerp of task vectors", nu(true, false), 2, true, &weighted(2), expected);
}

#[test]
fn spheres_of_several() {
    let multi = || Method::MultiSlerp { normalize_weights: true, eps: 1e-8 };
    let expected = [0.137019, -0.20951, 0.313435, 0.517937, 0.488249, -0.499887, 0.771073, -0.803416];
    check("multislerp", multi(), 3, false, &weighted(3), expected);
    let expected = [0.164197, -0.210762, 0.320988, 0.626297, 0.47648, -0.36329, 0.825299, -0.758938];
    check("multislerp of task vectors", multi(), 3, true, &weighted(3), expected);
    let units = [vec![1.0, 0.0, 0.0, 1.0], vec![0.0, 1.0, -1.0, 0.0]];
    let found =
        merged(&multi(), &Given { shape: &[2, 2], base: None, models: &units, per_model: &[model(0.75), model(0.25)] });
    close("multislerp, orthogonal", &found, &[0.948683, 0.316228, -0.316228, 0.948683]);
    let expected = [0.131631, -0.210728, 0.319513, 0.511406, 0.523388, -0.50161, 0.776859, -0.806345];
    check("karcher", Method::Karcher { max_iter: 10, tol: 1e-5 }, 3, false, &weighted(3), expected);
}

#[test]
fn task_vectors() {
    let nothing = |normalize, lambda| task(Sparsify::Nothing, false, normalize, lambda);
    let sum = [0.144, -0.208, 0.315, 0.56, 0.47, -0.446, 0.79, -0.771];
    check("task_arithmetic", nothing(false, 1.0), 3, true, &weighted(3), sum);
    let expected = [0.114667, -0.202667, 0.305, 0.453333, 0.49, -0.548667, 0.73, -0.790333];
    check("task_arithmetic, normalised", nothing(true, 0.5), 3, true, &weighted(3), expected);
    let half = dense(|m| PerModel { density: 0.5, ..m });
    let ties = |normalize| task(Sparsify::Magnitude, true, normalize, 1.0);
    let expected = [0.154545, -0.2, 0.4, 0.56, 0.2, -0.3, 0.84, -0.8];
    check("ties", ties(true), 3, true, &half, expected);
    let expected = [0.16, -0.2, 0.34, 0.56, 0.32, -0.45, 0.84, -0.8];
    check("ties, not normalised", ties(false), 3, true, &half, expected);
    // By hand: in the fifth place -.3, .25 and .1 vote, of which the weights .6, .4 and .5 would elect the other sign.
    let equal = Task {
        sparsify: Sparsify::Magnitude,
        vote: Vote::Equal,
        normalize: true,
        rescale: Rescale::Nothing,
        lambda: 1.0,
    };
    let expected = [0.154545, -0.2, 0.4, 0.56, 0.666667, -0.3, 0.84, -0.8];
    check("ties, equal votes", Method::Task(equal), 3, true, &half, expected);
    let crumbs = dense(|m| PerModel { density: 0.5, gamma: 0.25, ..m });
    let expected = [0.144, -0.202, 0.315, 0.44, 0.55, -0.588, 0.76, -0.776];
    check("breadcrumbs", task(Sparsify::Outliers, false, false, 1.0), 3, true, &crumbs, expected);
    let expected = [0.16, -0.212, 0.34, 0.44, 0.55, -0.588, 0.76, -0.776];
    check("breadcrumbs_ties", task(Sparsify::Outliers, true, false, 1.0), 3, true, &crumbs, expected);
    let expected = [0.16, -0.218, 0.34, 0.56, 0.32, -0.438, 0.84, -0.771];
    check("dare_ties", task(Sparsify::Bernoulli, true, false, 1.0), 3, true, &weighted(3), expected);
    check("dare_linear", task(Sparsify::Bernoulli, false, false, 1.0), 3, true, &weighted(3), sum);
    check("della_linear", task(Sparsify::Ranked, false, false, 1.0), 3, true, &weighted(3), sum);
}

#[test]
fn statistics_of_task_vectors() {
    let expected = [0.154464, -0.219289, 0.4, 0.553556, 0.677727, -0.455008, 0.846444, -0.773392];
    check("sce", Method::Sce { select_topk: 1.0 }, 3, true, &weighted(3), expected);
    let expected = [0.1, -0.2, 0.3, 0.555428, 0.675976, -0.456997, 0.844572, -0.8];
    check("sce, half", Method::Sce { select_topk: 0.5 }, 3, true, &weighted(3), expected);
    let expected = [0.077488, -0.193568, 0.28392, 0.303521, 0.48392, -0.696479, 0.635681, -0.81608];
    check("model_stock", Method::ModelStock { filter_wise: false }, 3, true, &weighted(3), expected);
    let expected = [0.102143, -0.200612, 0.301531, 0.409185, 0.465738, -0.805571, 0.562953, -0.834262];
    check("model_stock by row", Method::ModelStock { filter_wise: true }, 3, true, &weighted(3), expected);
}

#[test]
fn value_by_value() {
    let expected = [0.1, -0.2, 0.3, 0.4, 0.2, -0.6, 0.8, -0.8];
    check("arcee_fusion", Method::ArceeFusion, 1, true, &weighted(1), expected);
    let expected = [0.15, -0.21, 0.3, 0.45, 0.45, -0.58, 0.75, -0.76];
    check("nearswap", Method::NearSwap { t: 0.05 }, 1, true, &weighted(1), expected);
    let expected = [0.123333, -0.205, 0.325, 0.55, 0.516667, -0.5, 0.766667, -0.76];
    check("ram", Method::Ram { epsilon: 0.015, plus: None }, 3, true, &weighted(3), expected);
    let expected = [0.123333, -0.205, 0.325, 0.55, 0.516667, -0.5, 0.766667, -0.7592];
    let plus = Some((0.1, 0.2));
    check("ramplus_tl", Method::Ram { epsilon: 0.015, plus }, 3, true, &weighted(3), expected);
}

/// By numpy: A diag(c) + B diag(d), diag(c) A + diag(d) B, and multiples of the whole.
#[test]
fn columns_have_coefficients() {
    let columns = |coefficients: [&[f32]; 2], every| {
        let coefficients = coefficients.map(<[f32]>::to_vec).to_vec();
        merged(
            &Method::Columns { coefficients, every },
            &Given { shape: &[2, 4], base: None, models: &models(2), per_model: &weighted(2) },
        )
    };
    let found = columns([&[0.5, 0.25, 1.25, 0.0], &[0.5, 1.0, -0.25, 0.75]], 1);
    close("columns", &found, &[0.105, -0.2825, 0.275, 0.375, 0.475, -0.765, 0.775, -0.6]);
    let found = columns([&[0.5, -1.5], &[0.75, 2.0]], 4);
    close("rows", &found, &[0.12, -0.2775, 0.45, 0.675, 1.2, -0.37, 0.6, -0.46]);
    let found = columns([&[0.25], &[2.0]], 1);
    close("all of it", &found, &[0.1575, -0.5125, 0.875, 1.15, 1.55, -1.385, 2.0, -1.79]);
}
