//! Files in memory behave as on a disk.

use potstill::data::documents::{Split, open};
use potstill::formats::{read_json, read_json_if_present, write_json};
use potstill::platform::fs;
use std::io::{Read, Write};
use std::path::Path;
use wasm_bindgen_test::wasm_bindgen_test;

#[wasm_bindgen_test]
fn a_tree_is_listed_read_and_taken_away() {
    for (name, text) in
        [("tree/b.txt", "two"), ("tree/a.txt", "one"), ("tree/deep/c.txt", "three"), ("trees", "not in it")]
    {
        fs::write(name, text.into());
    }
    let tree = Path::new("tree");
    assert!(fs::exists(tree) && fs::is_dir(tree) && !fs::is_file(tree) && fs::is_file(Path::new("trees")));
    assert_eq!(fs::list(tree).unwrap(), ["tree/a.txt", "tree/b.txt", "tree/deep"].map(Path::new));
    let documents = open(&[tree], Split::File).unwrap();
    let places: Vec<_> = documents.map(|source| source.unwrap().place.file).collect();
    assert_eq!(places, ["tree/a.txt", "tree/b.txt", "tree/deep/c.txt"].map(Path::new));
    // Who has a file open keeps what it held.
    let mut old = fs::open(Path::new("tree/a.txt")).unwrap();
    fs::write("tree/a.txt", b"new".to_vec());
    let mut text = String::new();
    old.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), fs::read_to_string("tree/a.txt").unwrap().as_str()), ("one", "new"));
    fs::remove("tree");
    assert!(!fs::exists(tree) && fs::exists(Path::new("trees")));
    assert!(open(&[tree], Split::File).err().unwrap().to_string().contains("nothing of this name"));
}

#[wasm_bindgen_test]
fn a_file_takes_its_place_when_it_is_whole() {
    let path = Path::new("place/a.json");
    write_json(path, &serde_json::json!({ "a": 1 })).unwrap();
    let mut half = fs::AtomicFile::create(path).unwrap();
    half.writer.write_all(b"half").unwrap();
    drop(half);
    assert_eq!(read_json(path).unwrap(), serde_json::json!({ "a": 1 }));
    assert!(read_json_if_present(Path::new("place/b.json")).unwrap().is_none());
    assert!(read_json(Path::new("place/b.json")).unwrap_err().to_string().contains("place/b.json"));
}
