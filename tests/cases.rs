//! The case table on every device: shaders validate without a GPU, the CPU twins and every adapter agree with the
//! f64 oracle, gradients agree with central differences.

use crate::common::gpus;
use potstill::device::{Bind, Caps, Cooperative, Device, Tiles};
use potstill::formats::{Dtype, Quant};
use potstill::ops::{self, Layout};
use potstill::selftest::{Case, cases, check_gradients, check_on, kernels_of};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Runs `check` over all rows (of the ops whose name contains POTSTILL_TEST_OP, if it is set) and reports every
/// failure at once.
fn over_all(check: impl Fn(&Case) -> potstill::Result<()>) {
    let only = std::env::var("POTSTILL_TEST_OP").unwrap_or_default();
    let chosen = cases::all().into_iter().filter(|case| case.op.contains(&only));
    let failures: Vec<String> = chosen.filter_map(|case| check(&case).err().map(|e| e.to_string())).collect();
    assert!(failures.is_empty(), "{} rows fail:\n{}", failures.len(), failures.join("\n"));
}

/// What devices offer beyond the baseline, each with kernels of its own.
fn beyond() -> Vec<Caps> {
    let narrow = Caps { f16: true, ..Caps::webgpu() };
    let cooperative = |edge, subgroup| {
        let cooperative = Some(Cooperative::new(edge, subgroup));
        Caps { cooperative, workgroup_memory: 32 << 10, ..narrow.clone() }
    };
    let tiled = |middle_from, large_from| {
        let tiles = Tiles { middle_from, large_from, ..Tiles::default() };
        Caps { tiles, ..Caps::webgpu() }
    };
    let single = Caps { tiles: Tiles { fours: false, ..Tiles::default() }, ..Caps::webgpu() };
    let never = usize::MAX;
    let tiled = [tiled(never, never), tiled(0, never), tiled(0, 0), single];
    let cooperative = [(16, 32), (16, 64), (16, 128), (8, 32), (8, 8), (8, 256)].map(|(e, s)| cooperative(e, s));
    tiled.into_iter().chain([narrow]).chain(cooperative).collect()
}

/// Whether an op has kernels that need more than the baseline.
fn has_more(case: &Case) -> bool {
    ["matmul", "packed"].contains(&case.op)
}

#[test]
fn every_shader_validates_with_the_constants_the_rows_use() {
    over_all(|case| validate(case, &Caps::webgpu(), naga::valid::Capabilities::empty()));
}

#[test]
fn kernels_beyond_the_baseline_validate() {
    use naga::valid::Capabilities;
    let half = Capabilities::SHADER_FLOAT16 | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let wanted = half | Capabilities::COOPERATIVE_MATRIX | Capabilities::SUBGROUP;
    for caps in beyond() {
        over_all(|case| if has_more(case) { validate(case, &caps, wanted) } else { Ok(()) });
    }
}

fn validate(case: &Case, caps: &Caps, capabilities: naga::valid::Capabilities) -> potstill::Result<()> {
    {
        for dispatch in kernels_of(case, caps)? {
            let text = dispatch.shader.specialise(&dispatch.constants).map_err(potstill::Error::internal)?;
            let module = naga::front::wgsl::parse_str(&text)
                .map_err(|e| potstill::Error::internal(e.emit_to_string_with_path(&text, dispatch.shader.name)))?;
            let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities);
            validator
                .validate(&module)
                .map_err(|e| potstill::Error::internal(e.emit_to_string_with_path(&text, dispatch.shader.name)))?;
            let entry = module.entry_points.iter().find(|e| e.name == dispatch.entry);
            let entry = entry.ok_or_else(|| potstill::Error::internal(format!("no entry {}", dispatch.entry)))?;
            assert!(entry.workgroup_size.iter().product::<u32>() <= caps.max_invocations, "{}", dispatch.shader.name);
            assert!(dispatch.groups.iter().all(|&n| n <= caps.max_workgroups), "{}", dispatch.shader.name);
            assert!(dispatch.binds.len() <= caps.max_storage_buffers as usize, "{}", dispatch.shader.name);
            let shared: u32 = module
                .global_variables
                .iter()
                .filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup)
                .map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx()))
                .sum();
            assert!(shared <= caps.workgroup_memory, "{} uses {shared} B of workgroup memory", dispatch.shader.name);
        }
        Ok(())
    }
}

#[test]
fn every_shader_file_is_exercised_by_some_row() {
    let mut unused: BTreeSet<&str> = potstill::ops::shaders().iter().map(|s| s.name).collect();
    for case in cases::all() {
        let beyond = if has_more(&case) { beyond() } else { Vec::new() };
        for dispatch in [Caps::webgpu()].iter().chain(&beyond).flat_map(|caps| kernels_of(&case, caps).unwrap()) {
            unused.remove(dispatch.shader.name);
        }
    }
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn gradients_agree_with_central_differences() {
    over_all(|case| if case.heavy { Ok(()) } else { check_gradients(case) });
}

#[test]
fn the_cpu_agrees_with_the_oracle() {
    let cpu = Device::cpu();
    over_all(|case| pollster::block_on(check_on(&cpu, case)).map(drop));
}

#[test]
fn every_gpu_agrees_with_the_oracle() {
    for gpu in gpus() {
        println!("on {}", gpu.name());
        over_all(|case| pollster::block_on(check_on(&gpu, case)).map(drop));
    }
}

/// Bytes of a binding, where kernels are to be cut.
const LIMIT: u64 = 4096;

/// Products whose matrices are each several times what a binding may hold, in every layout, so that the kernels are
/// cut along every axis.
#[test]
fn every_gpu_cuts_products_larger_than_a_binding() {
    let product = |layout: Layout| {
        Case::new("matmul", format!("{layout:?} in pieces"), move |s| {
            let (m, n, k) = (70, 90, 50);
            let a = s.float(if layout == Layout::TN { [2, k, m] } else { [2, m, k] });
            let b = s.float(if layout == Layout::NT { [2, n, k] } else { [2, k, n] });
            let c = ops::matmul(&mut s.graph, layout, a, b);
            s.result(c);
            Ok(())
        })
    };
    let mut rows = Vec::from([Layout::NN, Layout::NT, Layout::TN].map(product));
    for [n, m, k] in [[66, 130, 70], [1, 2000, 3], [3, 5, 2000]] {
        rows.push(Case::new("matmul", format!("linear {n}x{m}x{k} in pieces"), move |s| {
            let (x, w) = (s.float([n, k]), s.float([m, k]));
            let (bias, residual) = (s.fixed([m]), s.float([n, m]));
            let y = ops::linear(&mut s.graph, x, w, (m < 1000).then_some(bias), Some(residual));
            s.result(y);
            Ok(())
        }));
    }
    check_pieces(&rows);
}

/// Frozen matrices that are larger than a binding, and products with them of which another tensor is.
#[test]
fn every_gpu_cuts_packed_matrices_larger_than_a_binding() {
    let mut rows = Vec::new();
    for (stored, [m, n, k]) in [
        (Dtype::Quant(Quant::Q8_0), [5, 200, 64]),
        (Dtype::Quant(Quant::Q4_1), [66, 128, 96]),
        (Dtype::Quant(Quant::Q4_K), [3, 300, 256]),
        (Dtype::Bf16, [70, 64, 128]),
    ] {
        rows.push(Case::new("packed", format!("{stored} {m}x{n}x{k} in pieces"), move |s| {
            let (x, w) = (s.fixed([m, k]), s.packed([n, k], stored));
            let (bias, residual) = (s.fixed([n]), s.fixed([m, n]));
            let y = ops::packed_linear(&mut s.graph, x, w, Some(bias), Some(residual));
            s.result(y);
            let ids = s.ints([3], vec![n as u32 - 1, 7, n as u32]);
            let y = ops::packed_rows(&mut s.graph, ids, w, 2.0);
            s.result(y);
            Ok(())
        }));
    }
    check_pieces(&rows);
}

/// Checks rows whose tensors are several times what a binding may hold.
fn check_pieces(rows: &[Case]) {
    let small = Caps { max_binding: LIMIT, ..Caps::webgpu() };
    for case in rows {
        let kernels = kernels_of(case, &small).unwrap();
        let ranges = kernels.iter().flat_map(|kernel| &kernel.binds).filter_map(|bind| match *bind {
            Bind::InRange(_, start, bytes) | Bind::OutRange(_, start, bytes) => Some((start, bytes)),
            _ => None,
        });
        let ranges: Vec<_> = ranges.collect();
        assert!(ranges.len() > 4 && ranges.iter().all(|&(start, bytes)| start % 256 == 0 && bytes <= LIMIT));
    }
    check_with(|caps| caps.max_binding = LIMIT, rows);
}

/// The optimiser's pages when they are several times what a binding may hold, or what one row of workgroups covers.
#[test]
fn every_gpu_cuts_pages_larger_than_a_binding() {
    let of_pages = |case: &Case| ["grad_norm", "adamw"].contains(&case.op);
    let rows: Vec<Case> = cases::all().into_iter().filter(of_pages).collect();
    assert!(rows.len() > 10);
    let change = |caps: &mut Caps| (caps.max_binding, caps.max_workgroups) = (64 << 10, 3);
    check_with(change, &rows);
}

/// Every kind of tile, on every adapter; cooperative matrices where the adapter has them.
#[test]
fn every_gpu_agrees_with_the_oracle_in_every_kind_of_tile() {
    let rows: Vec<Case> = cases::all().into_iter().filter(|case| has_more(case) && !case.heavy).collect();
    for tiles in beyond().into_iter().filter(|caps| !caps.f16).map(|caps| caps.tiles) {
        check_with(|caps| (caps.tiles, caps.cooperative) = (tiles, None), &rows);
    }
}

/// Checks rows on every adapter under tighter limits.
fn check_with(change: impl Fn(&mut Caps), rows: &[Case]) {
    for gpu in gpus() {
        let Device::Gpu(gpu) = gpu else { unreachable!("gpus() opens GPUs") };
        let gpu = Device::Gpu(Arc::new(Arc::into_inner(gpu).expect("just opened").with_caps(&change)));
        for case in rows {
            pollster::block_on(check_on(&gpu, case)).unwrap();
        }
    }
}

/// Chromium's compiler zeroes such a variable once a call, not once an iteration.
#[test]
fn every_variable_inside_a_block_of_a_shader_begins_with_a_value() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let inside = line.starts_with("        ") && line.trim_start().starts_with("var ");
            assert!(!inside || line.contains('='), "{}:{}: {line}", path.display(), number + 1);
        }
    }
}
