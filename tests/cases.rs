//! The case table on every device: shaders validate without a GPU, the CPU twins and every adapter agree with the
//! f64 oracle, gradients agree with central differences.

use potstill::device::{Caps, Choice, Device, adapters};
use potstill::selftest::{Case, cases, check_gradients, check_on, kernels_of};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Runs `check` over all rows (of the ops whose name contains POTSTILL_TEST_OP, if it is set) and reports every
/// failure at once.
fn over_all(check: impl Fn(&Case) -> potstill::Result<()>) {
    let only = std::env::var("POTSTILL_TEST_OP").unwrap_or_default();
    let cases = cases::all().into_iter().filter(|case| case.op.contains(&only));
    let failures: Vec<String> = cases.filter_map(|case| check(&case).err().map(|e| e.to_string())).collect();
    assert!(failures.is_empty(), "{} rows fail:\n{}", failures.len(), failures.join("\n"));
}

/// The adapters to test on: all found, but only those named by POTSTILL_TEST_ADAPTER if it is set. None is an
/// error unless POTSTILL_TEST_ADAPTER is `none`.
fn gpus() -> Vec<Device> {
    let only = std::env::var("POTSTILL_TEST_ADAPTER").unwrap_or_default().to_lowercase();
    if only == "none" {
        return Vec::new();
    }
    let found = pollster::block_on(adapters());
    let names: BTreeSet<String> = found.iter().map(|a| a.name.to_lowercase()).filter(|n| n.contains(&only)).collect();
    assert!(!names.is_empty(), "no GPU adapter matches `{only}`; tests/setup.sh installs a software driver");
    let open = |name: &String| pollster::block_on(Choice::Gpu(name.clone()).open()).expect("the adapter opens");
    names.iter().map(open).collect()
}

#[test]
fn every_shader_validates_with_the_constants_the_rows_use() {
    over_all(|case| {
        for dispatch in kernels_of(case, &Caps::webgpu())? {
            let text = dispatch.shader.specialise(&dispatch.constants).map_err(potstill::Error::internal)?;
            let module = naga::front::wgsl::parse_str(&text)
                .map_err(|e| potstill::Error::internal(e.emit_to_string_with_path(&text, dispatch.shader.name)))?;
            let mut validator =
                naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::empty());
            validator
                .validate(&module)
                .map_err(|e| potstill::Error::internal(e.emit_to_string_with_path(&text, dispatch.shader.name)))?;
            let entry = module.entry_points.iter().find(|e| e.name == dispatch.entry);
            let entry = entry.ok_or_else(|| potstill::Error::internal(format!("no entry {}", dispatch.entry)))?;
            let caps = Caps::webgpu();
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
    });
}

#[test]
fn every_shader_file_is_exercised_by_some_row() {
    let mut unused: BTreeSet<&str> = potstill::ops::shaders().iter().map(|s| s.name).collect();
    for case in cases::all() {
        for dispatch in kernels_of(&case, &Caps::webgpu()).unwrap() {
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
    over_all(|case| check_on(&cpu, case).map(drop));
}

#[test]
fn every_gpu_agrees_with_the_oracle() {
    for gpu in gpus() {
        println!("on {}", gpu.name());
        over_all(|case| check_on(&gpu, case).map(drop));
    }
}

/// Rows whose name says "in pieces", with bindings of 16 KiB: each of their large tensors needs several.
#[test]
fn every_gpu_splits_what_one_binding_cannot_hold() {
    for gpu in gpus() {
        let Device::Gpu(gpu) = gpu else { panic!("a GPU was asked for") };
        let gpu = Arc::into_inner(gpu).expect("nothing else holds it").with_caps(|caps| caps.max_binding = 16 << 10);
        let gpu = Device::Gpu(Arc::new(gpu));
        over_all(|case| match case.what.contains("in pieces") {
            true => check_on(&gpu, case).map(drop),
            false => Ok(()),
        });
    }
}
