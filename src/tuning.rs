//! Which tiles a GPU multiplies matrices in, found by trying once and kept for the next run. It takes less than a second and
//! changes no result beyond the order of sums; without it the rule of [`Tiles::default`] holds.

use crate::device::{Device, Gpu, Tiles};
use crate::formats::{read_json_if_present, write_json};
use crate::graph::{DType, Graph, Plan, Runner, Store};
use crate::ops::{self, Layout};
use crate::platform::cache;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows, columns and depth of the products that are timed.
const SIZES: [usize; 3] = [512, 1024, 2048];
/// Runs of each kind of tile, in turn, and products in a run at most.
const ROUNDS: usize = 5;
const PRODUCTS: f64 = 4.0;
/// A size whose runs would not end within this is left out, with those after it.
const BUDGET: Duration = Duration::from_millis(700);
/// A kind of tile is the faster one if its slowest run is faster than the other's fastest by this much.
const MARGIN: f64 = 0.95;
const NEVER: usize = usize::MAX;
/// What is kept holds for kernels of this version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Seconds of each run at one size, for tiles of 32, 64 and 128.
type Times = [Vec<f64>; 3];

/// The device with the tiles that are fastest on it. A CPU, a software rasteriser and a GPU whose measurement fails stay as they
/// are, as does every GPU with POTSTILL_TUNE=0; POTSTILL_TUNE=1 measures rasterisers too, and anew.
pub fn tuned(device: Device) -> Device {
    let wish = std::env::var("POTSTILL_TUNE").unwrap_or_default();
    let Device::Gpu(gpu) = &device else { return device };
    let forced = std::env::var_os("POTSTILL_TILES").is_some();
    if forced || wish == "0" || (gpu.caps.software && wish != "1") {
        return device;
    }
    let file = cache::folder().map(|folder| folder.join("tiles.json"));
    let key = format!("{}, potstill {VERSION}", gpu.summary());
    let known = file.as_deref().filter(|_| wish != "1").and_then(|file| recall(file, &key));
    let tiles = known.or_else(|| {
        let found = measure(gpu).inspect_err(|error| log::warn!("tiles are not measured: {error}")).ok()?;
        if let Some(Err(error)) = file.map(|file| keep(&file, &key, found)) {
            log::debug!("tiles are not kept: {error}");
        }
        Some(found)
    });
    tiles.map_or(device.clone(), |tiles| Device::Gpu(Arc::new(gpu.with_tiles(tiles))))
}

/// What an earlier run found. A file that is not ours says nothing.
fn recall(file: &Path, key: &str) -> Option<Tiles> {
    let known = read_json_if_present(file).ok()??;
    serde_json::from_value(known.get(key)?.clone()).ok()
}

fn keep(file: &Path, key: &str, tiles: Tiles) -> Result<()> {
    let mut all = match read_json_if_present(file) {
        Ok(Some(Value::Object(all))) => all,
        _ => serde_json::Map::new(),
    };
    all.insert(key.to_owned(), json!(tiles));
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    write_json(file, &Value::Object(all))
}

/// Times products of every size with every kind of tile, as far as the time reaches.
fn measure(gpu: &Arc<Gpu>) -> Result<Tiles> {
    let start = Instant::now();
    let mut seen: Vec<(usize, Times)> = Vec::new();
    for size in SIZES {
        let Some(times) = times(gpu, size, start)? else { break };
        seen.push((size, times));
    }
    let tiles = choose(&seen);
    log::info!("{}: {tiles:?}, found in {:.2} s", gpu.summary(), start.elapsed().as_secs_f64());
    Ok(tiles)
}

/// Times products of one size, unless that takes longer than there is time.
fn times(gpu: &Arc<Gpu>, size: usize, start: Instant) -> Result<Option<Times>> {
    let kinds = [(NEVER, NEVER), (0, NEVER), (0, 0)];
    let mut runners = Vec::new();
    for (middle_from, large_from) in kinds {
        let tiles = Tiles { fours: true, middle_from, large_from };
        runners.push(product(&Device::Gpu(Arc::new(gpu.with_tiles(tiles))), size)?);
    }
    // The first run compiles, the second finds how to cut its submissions.
    let mut round = 0.0;
    for runner in &mut runners {
        time(runner, 1)?;
        round += time(runner, 1)?;
        if start.elapsed() > BUDGET {
            return Ok(None);
        }
    }
    let left = BUDGET.saturating_sub(start.elapsed()).as_secs_f64();
    let products = (left / (round * ROUNDS as f64)).min(PRODUCTS) as u32;
    if products == 0 {
        return Ok(None);
    }
    let mut times = Times::default();
    for _ in 0..ROUNDS {
        for (runner, times) in runners.iter_mut().zip(&mut times) {
            times.push(time(runner, products)?);
        }
    }
    Ok(Some(times))
}

/// A product of two square matrices, one number of which is read back.
fn product(device: &Device, size: usize) -> Result<Runner> {
    let mut graph = Graph::new();
    let a = graph.external("a", [size, size], DType::F32);
    let b = graph.external("b", [size, size], DType::F32);
    let c = ops::matmul(&mut graph, Layout::NT, a, b);
    let corner = ops::columns(&mut graph, c, 0..1);
    graph.output("corner", corner);
    let mut store = Store::new(device);
    store.add("a", a.shape, DType::F32)?;
    store.add("b", b.shape, DType::F32)?;
    Runner::new(Plan::new(&graph)?, &store, &mut Vec::new())
}

/// Seconds of a product.
fn time(runner: &mut Runner, products: u32) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..products {
        runner.run()?;
    }
    pollster::block_on(runner.read_f32("corner"))?;
    Ok(start.elapsed().as_secs_f64() / f64::from(products))
}

/// The rule that the times speak for: the default's, moved where one kind of tile was faster beyond doubt.
fn choose(seen: &[(usize, Times)]) -> Tiles {
    let default = Tiles::default();
    let counts = |side: usize| seen.iter().map(move |(size, _)| size.div_ceil(side).pow(2));
    let pairs = |small: usize| seen.iter().map(move |(_, times)| [&times[small], &times[small + 1]]);
    Tiles {
        fours: true,
        middle_from: threshold(default.middle_from, counts(64).zip(pairs(0))),
        large_from: threshold(default.large_from, counts(128).zip(pairs(1))),
    }
}

/// From how many large tiles on they are taken, given times of small and large ones at rising numbers of large tiles.
fn threshold<'a>(default: usize, seen: impl Iterator<Item = (usize, [&'a Vec<f64>; 2])>) -> usize {
    let mut from = default;
    let mut lowered = false;
    for (count, [small, large]) in seen {
        if beats(small, large) {
            // Small tiles win here: the large ones must wait for more, if ever.
            (from, lowered) = (from.max(count + 1), false);
            if count >= default {
                from = NEVER;
            }
        } else if beats(large, small) && (count < from) && !lowered {
            (from, lowered) = (count, true);
        }
    }
    from
}

/// Whether every run of `a` was faster than every run of `b`, by a margin.
fn beats(a: &[f64], b: &[f64]) -> bool {
    let slowest = a.iter().copied().fold(0.0, f64::max);
    let fastest = b.iter().copied().fold(f64::INFINITY, f64::min);
    slowest < MARGIN * fastest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times that a GPU would give on which tiles of 32, 64 and 128 take so long.
    fn times(each: [f64; 3]) -> Times {
        each.map(|time| vec![time, 1.01 * time, 0.99 * time])
    }

    #[test]
    fn what_is_not_beyond_doubt_changes_nothing() {
        assert_eq!(choose(&[]), Tiles::default());
        let close: Vec<_> = SIZES.iter().map(|&size| (size, times([1.0, 0.97, 1.02]))).collect();
        assert_eq!(choose(&close), Tiles::default());
        // A single slow run, a single fast one.
        let noisy = [vec![1.0, 1.0, 0.4], vec![0.5, 0.5, 0.5], vec![0.5, 0.5, 3.0]];
        assert_eq!(choose(&[(512, noisy.clone()), (1024, noisy)]), Tiles::default());
    }

    #[test]
    fn the_faster_kind_is_taken_from_where_it_is_faster() {
        // 64 wins from 16 x 16 = 256 tiles down to 64 of them, 128 never does.
        let seen = SIZES.map(|size| (size, times([1.0, 0.5, 0.8])));
        assert_eq!(choose(&seen), Tiles { fours: true, middle_from: 64, large_from: NEVER });
        // 128 wins from 8 x 8 tiles on, not at 4 x 4.
        let seen = [(512, times([1.0, 0.5, 0.9])), (1024, times([1.0, 0.5, 0.3])), (2048, times([1.0, 0.5, 0.3]))];
        assert_eq!(choose(&seen), Tiles { fours: true, middle_from: 64, large_from: 64 });
        // Small tiles always win.
        let seen = SIZES.map(|size| (size, times([0.2, 0.5, 0.9])));
        assert_eq!(choose(&seen), Tiles { fours: true, middle_from: NEVER, large_from: NEVER });
    }

    #[test]
    fn what_was_found_is_kept_and_rubbish_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deeper/tiles.json");
        assert_eq!(recall(&file, "a card"), None);
        let tiles = Tiles { fours: true, middle_from: 64, large_from: NEVER };
        keep(&file, "a card", tiles).unwrap();
        keep(&file, "another", Tiles::default()).unwrap();
        assert_eq!(recall(&file, "a card"), Some(tiles));
        assert_eq!(recall(&file, "another"), Some(Tiles::default()));
        assert_eq!(recall(&file, "a third"), None);
        std::fs::write(&file, "[1").unwrap();
        assert_eq!(recall(&file, "a card"), None);
        keep(&file, "a card", tiles).unwrap();
        assert_eq!(recall(&file, "a card"), Some(tiles));
    }
}
