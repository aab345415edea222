//! The surface for JavaScript where it needs no network: files that were put in, a run that is paused, stored, found
//! again and saved, and a device that is lost.

use crate::training::put_files_of;
use js_sys::{Array, Object, Reflect, Uint8Array};
use potstill::web::{Trainer, clear_storage, create_trainer, open_shards, storage_info};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use wasm_bindgen_test::wasm_bindgen_test;

fn get(object: &JsValue, path: &str) -> JsValue {
    path.split('.').fold(object.clone(), |object, name| Reflect::get(&object, &name.into()).unwrap())
}

fn number(object: &JsValue, path: &str) -> f64 {
    get(object, path).as_f64().unwrap_or_else(|| panic!("{path} of {object:?}"))
}

async fn trainer(device: &str, name: &str) -> Result<Trainer, JsValue> {
    let recipe = js_sys::JSON::parse(&put_files_of(device)).unwrap();
    let options = Object::new();
    Reflect::set(&options, &"name".into(), &name.into()).unwrap();
    Ok(create_trainer(recipe, Some(options.unchecked_into())).await?)
}

async fn losses(trainer: &Trainer, count: f64) -> Vec<f64> {
    let reports: Array = trainer.step(Some(count), None).await.ok().unwrap().unchecked_into();
    reports.iter().map(|report| number(&report, "loss")).collect()
}

#[wasm_bindgen_test]
async fn a_run_goes_on_where_its_last_checkpoint_is() {
    clear_storage(None).await;
    let whole = losses(&trainer("cpu", "whole").await.unwrap(), 8.0).await;
    assert_eq!(whole.len(), 8);
    let first = trainer("cpu", "parted").await.unwrap();
    let mut parted = losses(&first, 5.0).await;
    first.checkpoint().await.ok().unwrap();
    drop(first);
    let runs = get(&storage_info().await, "checkpoints");
    assert!(Array::from(&runs).includes(&"parted".into(), 0), "{runs:?}");
    let second = trainer("cpu", "parted").await.unwrap();
    assert_eq!(second.steps_done(), 5.0);
    parted.extend(losses(&second, 3.0).await);
    // The arrays are kept bit for bit, and the CPU adds in the same order.
    assert_eq!(whole, parted);
    clear_storage(None).await;
    assert_eq!(Array::from(&get(&storage_info().await, "checkpoints")).length(), 0);
}

#[wasm_bindgen_test]
async fn a_lost_device_is_replaced_and_the_steps_since_the_checkpoint_are_taken_again() {
    let expected = losses(&trainer("gpu", "kept").await.unwrap(), 6.0).await;
    let trainer = trainer("gpu", "lost").await.unwrap();
    let mut found = losses(&trainer, 2.0).await;
    trainer.checkpoint().await.ok().unwrap();
    found.extend(losses(&trainer, 2.0).await);
    trainer.lose_device().await;
    // Steps 3 and 4 were lost with it: they are taken, and told of, once more before the two that were asked for.
    let again = losses(&trainer, 2.0).await;
    assert_eq!((again.len(), trainer.steps_done()), (4, 6.0));
    found.truncate(2);
    found.extend(again);
    let worst = expected.iter().zip(&found).map(|(e, f)| (e - f).abs() / e).fold(0.0, f64::max);
    assert!(worst < 1e-6, "{expected:?}\n{found:?}");
    clear_storage(None).await;
}

#[wasm_bindgen_test]
async fn a_student_is_saved_measured_and_speaks() {
    let trainer = trainer("cpu", "speaks").await.unwrap();
    let steps = losses(&trainer, 2.0).await;
    assert!(steps.iter().all(|loss| loss.is_finite()) && trainer.total_steps() == 20.0);
    let said = trainer.generate("Call me", None).await.ok().unwrap();
    let zip = trainer.save(None).await.ok().unwrap();
    let bytes = Uint8Array::new(&JsFuture::from(zip.array_buffer()).await.unwrap()).to_vec();
    let names = ["config.json", "model.safetensors", "tokenizer.json"];
    assert!(bytes.starts_with(b"PK") && names.iter().all(|name| contains(&bytes, name.as_bytes())));
    assert_eq!(said, trainer.generate("Call me", None).await.ok().unwrap());
    let info = open_shards("shards", None).await.ok().unwrap();
    assert_eq!((number(&info, "shards"), number(&info, "vocabulary")), (1.0, 340.0));
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[wasm_bindgen_test]
async fn mistakes_are_told_as_natively_and_by_kind() {
    let recipe = js_sys::JSON::parse(r#"{"sequence_lenght": 32}"#).unwrap();
    let Err(failure) = create_trainer(recipe, None).await else { panic!("opened") };
    let error: JsValue = failure.into();
    let message = get(&error, "message").as_string().unwrap();
    assert!(message.contains("sequence_lenght") && message.contains("did you mean `sequence_length`"), "{message}");
    assert_eq!(get(&error, "kind"), "input");
    assert_eq!(get(&error, "name"), "PotstillError");
}
