//! What the machine can do at best: the rate of a large matrix product, and of copying.

use potstill::Result;
use potstill::device::{Device, Precision};
use potstill::graph::{DType, Graph, Plan, Runner, Store};
use potstill::ops::{self, Layout};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::time::Instant;

/// Seconds of the fastest of `repeats` calls: a ceiling is what was reached once.
fn best(repeats: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..repeats {
        let start = Instant::now();
        work()?;
        least = least.min(start.elapsed().as_secs_f64());
    }
    Ok(least)
}

/// `gflops`: on the CPU the `gemm` crate at 2048^3, on a GPU our own product, the best that runs there. `gbps`: bytes read and
/// written by a copy of 256 MiB (on the CPU by all threads, on a GPU by the driver).
pub fn measure(device: &Device) -> Result<Value> {
    let software = device.caps().software;
    let (side, bytes, repeats) = if software { (512, 32 << 20, 3) } else { (2048, 256 << 20, 8) };
    let flops = 2.0 * (side as f64).powi(3);
    let (seconds, copy) = match device {
        Device::Cpu(_) => (cpu_product(side, repeats)?, cpu_copy(bytes, repeats)?),
        Device::Gpu(_) => {
            (gpu_product(device, side, Precision::F32, repeats)?, gpu_copy(device, bytes as u64, repeats)?)
        }
    };
    Ok(json!({
        "name": device.name(), "gflops": flops / seconds * 1e-9, "gbps": 2.0 * bytes as f64 / copy * 1e-9,
        "side": side, "copied": bytes,
    }))
}

fn cpu_product(side: usize, repeats: usize) -> Result<f64> {
    let (a, b) = (vec![0.5f32; side * side], vec![0.25f32; side * side]);
    let mut c = vec![0f32; side * side];
    let row = side as isize;
    best(repeats, || {
        // SAFETY: three matrices of side x side.
        unsafe {
            let (c, a, b) = (c.as_mut_ptr(), a.as_ptr(), b.as_ptr());
            let all = gemm::Parallelism::Rayon(0);
            gemm::gemm(side, side, side, c, 1, row, false, a, 1, row, b, 1, row, 0.0, 1.0, false, false, false, all);
        }
        Ok(())
    })
}

fn cpu_copy(bytes: usize, repeats: usize) -> Result<f64> {
    let (from, mut to) = (vec![1u8; bytes], vec![0u8; bytes]);
    let part = bytes.div_ceil(rayon::current_num_threads());
    best(repeats, || {
        to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
        Ok(())
    })
}

/// `gflops` of a product of 4096^3 in a precision, the median of eight runs of four.
pub fn product(device: &Device, precision: Precision) -> Result<Value> {
    let side = if device.caps().software { 256 } else { 4096 };
    let mut seconds = (0..8).map(|_| gpu_product(device, side, precision, 1)).collect::<Result<Vec<f64>>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(json!({ "gflops": 2e-9 * (side as f64).powi(3) / seconds[4], "side": side }))
}

fn gpu_product(device: &Device, side: usize, precision: Precision, repeats: usize) -> Result<f64> {
    let mut g = Graph::new();
    g.set_precision(precision);
    let mut store = Store::new(device);
    let [a, b] = ["a", "b"].map(|name| g.external(name, [side, side], DType::F32));
    let c = ops::matmul(&mut g, Layout::NN, a, b);
    g.output("c", c);
    for name in ["a", "b"] {
        store.add(name, [side, side], DType::F32)?;
    }
    let mut runner = Runner::new(Plan::new(&g)?, &store, &mut Vec::new())?;
    let wait = |device: &Device| {
        let small = device.alloc("fence", 4)?;
        pollster::block_on(device.read_u32(&small.whole())).map(drop)
    };
    // Several in a row: what it takes to be told of the end is divided among them.
    let each = 4;
    let seconds = best(repeats + 1, || {
        (0..each).try_for_each(|_| runner.run())?;
        wait(device)
    })?;
    Ok(seconds / f64::from(each))
}

fn gpu_copy(device: &Device, bytes: u64, repeats: usize) -> Result<f64> {
    let (from, to) = (device.alloc("from", bytes)?, device.alloc("to", bytes)?);
    best(repeats + 1, || {
        device.copy(&from.whole(), &to.whole())?;
        let first = potstill::device::Slice { bytes: 4, ..to.whole() };
        pollster::block_on(device.read_u32(&first)).map(drop)
    })
}
