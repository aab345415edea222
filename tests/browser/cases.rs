//! The case table on WebGPU and on the CPU of a browser, results and gradients against the f64 oracle. It launches
//! every shader, so that each passes the browser's compiler.

use potstill::device::{Choice, Device};
use potstill::selftest::{Case, cases, check_on};
use wasm_bindgen_test::wasm_bindgen_test;

/// Checks every row but the heavy ones; `open` gives a device again after one is spoilt by a row.
async fn check_all(open: impl AsyncFn() -> Device) {
    let (mut device, mut failures) = (open().await, Vec::new());
    let rows: Vec<Case> = cases::all().into_iter().filter(|case| !case.heavy).collect();
    assert!(rows.len() > 100);
    for case in &rows {
        if let Err(error) = check_on(&device, case).await {
            failures.push(error.to_string());
            device = open().await;
        }
    }
    assert!(failures.is_empty(), "{} rows fail on {}:\n{}", failures.len(), device.name(), failures.join("\n"));
}

#[wasm_bindgen_test]
async fn webgpu_agrees_with_the_oracle() {
    check_all(async || Choice::Gpu(String::new()).open().await.unwrap()).await;
}

#[wasm_bindgen_test]
async fn the_cpu_agrees_with_the_oracle() {
    check_all(async || Device::cpu()).await;
}
