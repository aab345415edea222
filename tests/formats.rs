//! Model files against what other readers make of them. The fixtures come from `golden/make_gguf_golden.py`.

use potstill::formats::{
    Bytes, Dtype, GgufHeader, MetaValue, ModelFolder, TensorSpec, Tensors, Tokenizer, claim_output_dir, write_configs,
    write_json, write_safetensors,
};
use potstill::models;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[test]
fn a_gguf_model_has_the_names_layout_and_config_of_transformers() {
    let model = ModelFolder::open(golden("tiny_llama.gguf")).unwrap();
    let expected = Tensors::open_safetensors(&[golden("tiny_llama.safetensors")]).unwrap();
    assert_eq!(model.tensors.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>());
    for name in expected.names() {
        model.tensors.expect_shape(name, expected.shape(name).unwrap()).unwrap();
        assert_eq!(model.tensors.read_f32(name).unwrap(), expected.read_f32(name).unwrap(), "{name}");
    }
    let end = 0;
    assert_eq!(
        model.config,
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 24,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
            "vocab_size": 344, "max_position_embeddings": 131072, "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192},
            "attention_bias": true, "mlp_bias": false, "tie_word_embeddings": false,
            "bos_token_id": end, "eos_token_id": end, "pad_token_id": null
        })
    );
    assert_eq!(model.eos_ids(), [end]);
}

#[test]
fn gguf_files_of_qwen_are_the_folders_they_were_made_of() {
    for family in ["families/qwen2", "families/qwen3"] {
        let (file, folder) = (golden(family).join("model.gguf"), golden(family));
        let (model, expected) = (ModelFolder::open(file).unwrap(), ModelFolder::open(folder).unwrap());
        let names: Vec<_> = expected.tensors.names().collect();
        assert_eq!(model.tensors.names().collect::<Vec<_>>(), names);
        for name in names {
            assert_eq!(model.tensors.read_f32(name).unwrap(), expected.tensors.read_f32(name).unwrap(), "{name}");
        }
        // All but the sliding windows, which llama.cpp does not export.
        let described = |model: &ModelFolder| {
            let mut config = models::from_config(model.path(), &model.config).unwrap().config;
            (config.source, config.layers) = (Value::Null, Vec::new());
            format!("{config:?}")
        };
        assert_eq!(described(&model), described(&expected));
    }
}

#[test]
fn one_tokenizer_read_from_gguf_and_from_json_is_the_same() {
    let gguf = ModelFolder::open(golden("tiny_llama.gguf")).unwrap().tokenizer().unwrap();
    let json = Tokenizer::from_file(&golden("smollm_tokenizer.json")).unwrap();
    assert_eq!(gguf.vocab_size(), 340, "the four padding tokens are not tokens");
    assert_eq!(gguf.digest(), json.digest());
    assert_ne!(gguf.digest(), spm().digest());
    let texts: Vec<String> = serde_json::from_value(cases()["texts"].clone()).unwrap();
    assert_eq!(gguf.encode_batch(&texts, true).unwrap(), ids(&cases()["smollm"]));
    assert_eq!(gguf.chat_template(), Some("{{ messages[0]['content'] }}"));
    assert_eq!((gguf.special_token("eos_token"), gguf.eos_id()), (Some("<|end|>"), Some(0)));
}

fn cases() -> Value {
    serde_json::from_slice(&fs::read(golden("tokenizers.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn tokenizer(name: &str) -> Tokenizer {
    let bytes = fs::read(golden(name)).unwrap();
    Tokenizer::from_gguf(&GgufHeader::parse(Path::new(name), &bytes).unwrap()).unwrap()
}

fn spm() -> Tokenizer {
    tokenizer("spm.gguf")
}

#[test]
fn byte_level_pre_tokenizers_split_as_their_models_do() {
    let texts: Vec<String> = serde_json::from_value(cases()["texts"].clone()).unwrap();
    for kind in ["gpt-2", "llama-bpe", "qwen2"] {
        let tokenizer = tokenizer(&format!("{kind}.gguf"));
        assert_eq!(tokenizer.encode_batch(&texts, true).unwrap(), ids(&cases()["tokenizers"][kind]), "{kind}");
    }
}

/// llama.cpp's own splitting where a file names no other; its ids (node-llama-cpp 3.22) with the gpt-2 vocabulary.
#[test]
fn the_default_pre_tokenizer_splits_as_llama_cpp_does() {
    let bytes = fs::read(golden("gpt-2.gguf")).unwrap();
    let mut header = GgufHeader::parse(Path::new("gpt-2.gguf"), &bytes).unwrap();
    let pre = |name: &str| MetaValue::String(name.to_string());
    header.metadata.insert("tokenizer.ggml.pre".into(), pre("default"));
    let cases: Value = serde_json::from_slice(&fs::read(golden("llama_cpp.json")).unwrap()).unwrap();
    let texts: Vec<String> = serde_json::from_value(cases["texts"].clone()).unwrap();
    let tokenizer = Tokenizer::from_gguf(&header).unwrap();
    assert_eq!(tokenizer.encode_batch(&texts, false).unwrap(), ids(&cases["default"]));
    header.metadata.insert("tokenizer.ggml.pre".into(), pre("bloom"));
    assert!(Tokenizer::from_gguf(&header).unwrap_err().to_string().contains("found bloom"));
}

#[test]
fn sentencepiece_ids_equal_those_of_sentencepiece() {
    let texts: Vec<String> = serde_json::from_value(cases()["texts"].clone()).unwrap();
    let tokenizer = spm();
    assert_eq!(tokenizer.encode_batch(&texts, false).unwrap(), ids(&cases()["spm"]));
    let bos = cases()["spm_bos"].as_u64().unwrap() as u32;
    assert_eq!(tokenizer.encode("x", true).unwrap()[0], bos);
    assert_eq!(tokenizer.bos_id(), Some(bos));
}

#[test]
fn decoding_whole_or_streamed_gives_the_text_back_and_bytes_add_up() {
    let texts: Vec<String> = serde_json::from_value(cases()["texts"].clone()).unwrap();
    for (tokenizer, prefix) in [(tokenizer("gpt-2.gguf"), 0), (spm(), 1)] {
        for text in &texts {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), *text);
            let bytes: usize = ids.iter().map(|id| tokenizer.token_bytes(*id)).sum();
            assert_eq!(bytes, text.len() + prefix);
            let mut stream = tokenizer.decode_stream(&[], true).unwrap();
            let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
            assert_eq!(pieces.concat() + &stream.finish().unwrap(), *text);
            assert!(!pieces.concat().contains('\u{FFFD}'));
        }
    }
    // After a prompt the first word keeps its space; half a character comes out only at the end.
    let spm = spm();
    let two = spm.encode("hello world", false).unwrap();
    let at = two.iter().position(|id| spm.id_to_token(*id).unwrap().starts_with("▁w")).unwrap();
    let mut stream = spm.decode_stream(&two[..at], true).unwrap();
    let rest: String = two[at..].iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(rest, " world");
    let mut stream = spm.decode_stream(&two, true).unwrap();
    assert_eq!(stream.push(spm.token_to_id("<0xE4>").unwrap()).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
    assert!(spm.decode(&[1_000_000], true).is_err());
    assert_eq!(spm.token_bytes(1_000_000), 0);
}

#[test]
fn a_saved_tokenizer_opens_again_and_templates_are_found_where_transformers_puts_them() {
    let dir = tempfile::tempdir().unwrap();
    let first = ModelFolder::open(golden("tiny_llama.gguf")).unwrap().tokenizer().unwrap();
    fs::write(dir.path().join("chat_template.jinja"), "stale").unwrap();
    first.save(dir.path()).unwrap();
    let again = Tokenizer::from_folder(dir.path()).unwrap();
    assert_eq!((again.digest(), again.chat_template()), (first.digest(), first.chat_template()));
    assert_eq!(again.eos_id(), first.eos_id());
    let config = dir.path().join("tokenizer_config.json");
    let named = json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]);
    write_json(&config, &json!({"chat_template": named, "eos_token": {"content": "<|end|>"}})).unwrap();
    let listed = Tokenizer::from_folder(dir.path()).unwrap();
    assert_eq!((listed.chat_template(), listed.eos_id()), (Some("D"), Some(0)));
    fs::write(dir.path().join("chat_template.jinja"), "J").unwrap();
    assert_eq!(Tokenizer::from_folder(dir.path()).unwrap().chat_template(), Some("J"));
}

fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.to_string(), dtype, shape: shape.to_vec() }
}

fn write_small(path: &Path, specs: &[TensorSpec]) {
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let fill = async |spec: &TensorSpec| {
        let count: usize = spec.shape.iter().product();
        Ok(Cow::Owned((0..count).map(|i| i as f32 * 0.5 - 1.0).collect()))
    };
    pollster::block_on(write_safetensors(path, specs, &metadata, fill)).unwrap();
}

#[test]
fn written_safetensors_follow_the_format_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write_small(&path, &[spec("b", Dtype::Bf16, &[3]), spec("a", Dtype::F32, &[1, 2]), spec("h", Dtype::F16, &[1])]);
    let mut header =
        br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"#.to_vec();
    header.extend(br#""b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},"#);
    header.extend(br#""h":{"dtype":"F16","shape":[1],"data_offsets":[14,16]}}"#);
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut expected = (header.len() as u64).to_le_bytes().to_vec();
    expected.extend(header);
    // -1, -0.5 in f32; -1, -0.5, 0 in bf16; -1 in f16.
    expected.extend([0, 0, 0x80, 0xbf, 0, 0, 0, 0xbf, 0x80, 0xbf, 0, 0xbf, 0, 0, 0, 0xbc]);
    assert_eq!(fs::read(&path).unwrap(), expected);
    let tensors = Tensors::open_folder(dir.path()).unwrap();
    assert_eq!(tensors.metadata("format"), Some("pt"));
    assert_eq!(tensors.read_f32("b").unwrap(), [-1.0, -0.5, 0.0]);
    assert_eq!((tensors.parameter_count(), tensors.stored_bytes()), (6, 16));
}

#[test]
fn a_wrong_number_of_values_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let specs = [spec("a", Dtype::F32, &[2])];
    let fill = async |_: &TensorSpec| Ok(Cow::Borrowed(&[1.0][..]));
    let result = pollster::block_on(write_safetensors(&path, &specs, &BTreeMap::new(), fill));
    assert_eq!(result.unwrap_err().to_string(), format!("{}: a: expected 2 values: found 1 values", path.display()));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn shards_open_as_one_and_every_lack_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let shard = |i: u32| dir.path().join(format!("model-0000{i}-of-00002.safetensors"));
    write_small(&shard(1), &[spec("model.norm.weight", Dtype::F32, &[2])]);
    write_small(&shard(2), &[spec("lm_head.weight", Dtype::F32, &[2])]);
    let one = "model-00001-of-00002.safetensors";
    let two = "model-00002-of-00002.safetensors";
    let index = dir.path().join("model.safetensors.index.json");
    let map = |extra: &[(&str, &str)]| {
        let mut map = Map::new();
        for (tensor, file) in [("model.norm.weight", one), ("lm_head.weight", two)].iter().chain(extra) {
            map.insert(tensor.to_string(), json!(file));
        }
        write_json(&index, &json!({"weight_map": map})).unwrap();
        Tensors::open_folder(dir.path())
    };
    let tensors = map(&[]).unwrap();
    assert_eq!(tensors.names().collect::<Vec<_>>(), ["lm_head.weight", "model.norm.weight"]);
    let message = tensors.read_f32("model.norm.weigth").unwrap_err().to_string();
    assert!(message.contains(one) && message.contains("`model.norm.weigth`"), "{message}");
    assert!(message.ends_with("the nearest name is `model.norm.weight`"), "{message}");
    let message = tensors.expect_shape("lm_head.weight", &[3]).unwrap_err().to_string();
    assert!(message.contains(two) && message.contains("expected shape [3]: found [2]; config.json and"), "{message}");
    assert!(map(&[("a", one)]).unwrap_err().to_string().contains("tensor `a`"));
    assert!(map(&[("a", "../a.safetensors")]).is_err());
    assert!(map(&[("a", "model-3.safetensors")]).unwrap_err().to_string().contains("model-3.safetensors"));
    let doubled = Tensors::open_safetensors(&[shard(1), shard(1)]);
    assert!(doubled.unwrap_err().to_string().contains("model.norm.weight"));
}

#[test]
fn a_folder_opens_with_its_configs_and_its_digest_sees_every_bit() {
    let dir = tempfile::tempdir().unwrap();
    claim_output_dir(dir.path(), false).unwrap();
    assert!(ModelFolder::open(dir.path()).unwrap_err().to_string().contains("config.json"));
    write_configs(dir.path(), &json!({"eos_token_id": 7}), &json!({})).unwrap();
    let message = ModelFolder::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("model.safetensors"), "{message}");
    let path = dir.path().join("model.safetensors");
    write_small(&path, &[spec("a", Dtype::F32, &[2]), spec("b", Dtype::F32, &[1])]);
    let model = ModelFolder::open(dir.path()).unwrap();
    assert_eq!(model.eos_ids(), [7]);
    assert!(model.tokenizer().unwrap_err().to_string().contains("tokenizer.json"));
    // The documented text, hashed by Python's hashlib.
    assert_eq!(model.digest(), "7af6e55368639079c1564e23b277c916139857ab95cdefcbe9c0ee8f2ec05252");
    write_configs(dir.path(), &json!({"eos_token_id": 7}), &json!({"eos_token_id": [7, 8]})).unwrap();
    assert_eq!(ModelFolder::open(dir.path()).unwrap().eos_ids(), [7, 8]);
}

/// Runs `read` on every truncation and every single-bit flip of `bytes`: any answer will do, a panic will not.
fn damage(bytes: &[u8], read: impl Fn(Vec<u8>)) {
    for length in 0..bytes.len() {
        read(bytes[..length].to_vec());
    }
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        read(flipped);
    }
}

fn read_all(tensors: &Tensors) {
    for name in tensors.names() {
        let _ = tensors.read_f32(name);
    }
    tensors.digest();
}

#[test]
fn a_damaged_gguf_is_an_error_or_readable_never_a_panic() {
    let bytes = fs::read(golden("smallest.gguf")).unwrap();
    let path = Path::new("smallest.gguf");
    let whole = ModelFolder::from_gguf(path, Bytes::Owned(bytes.clone())).unwrap();
    assert_eq!(whole.tokenizer().unwrap().encode("ab<e>b", true).unwrap(), [2, 3, 1]);
    // The file ends on 16 bytes of padding, which nobody misses.
    for length in 0..bytes.len() - 16 {
        assert!(ModelFolder::from_gguf(path, Bytes::Owned(bytes[..length].to_vec())).is_err(), "{length} bytes");
    }
    damage(&bytes, |bytes| {
        if let Ok(model) = ModelFolder::from_gguf(path, Bytes::Owned(bytes)) {
            read_all(&model.tensors);
            if let Ok(tokenizer) = model.tokenizer() {
                let _ = tokenizer.encode("ab<e>b", true).map(|ids| tokenizer.decode(&ids, true));
            }
        }
    });
}

#[test]
fn a_damaged_safetensors_is_an_error_or_readable_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write_small(
        &path,
        &[spec("a", Dtype::F32, &[16, 3]), spec("b", Dtype::Bf16, &[5]), spec("c", Dtype::F16, &[0, 4])],
    );
    let bytes = fs::read(&path).unwrap();
    let open = |bytes| Tensors::from_safetensors(vec![(path.clone(), Bytes::Owned(bytes))]);
    for length in 0..bytes.len() {
        assert!(open(bytes[..length].to_vec()).is_err(), "{length} bytes");
    }
    damage(&bytes, |bytes| drop(open(bytes).map(|tensors| read_all(&tensors))));
}

#[test]
fn a_damaged_tokenizer_json_is_an_error_or_readable_never_a_panic() {
    let merges = json!([["a", "b"], ["ab", "ab"]]);
    let model = json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "abab": 3}, "merges": merges});
    let added = json!([{"id": 4, "content": "<e>", "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": false, "special": true}]);
    let decoder = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let json = json!({"version": "1.0", "added_tokens": added, "pre_tokenizer": decoder, "decoder": decoder,
                      "normalizer": null, "post_processor": null, "model": model});
    let open = |json| Tokenizer::from_json(Path::new("tokenizer.json"), json, Map::new());
    let bytes = serde_json::to_vec(&json).unwrap();
    assert_eq!(open(bytes.clone()).unwrap().encode("ababa<e>", true).unwrap(), [3, 0, 4]);
    damage(&bytes, |bytes| {
        if let Ok(tokenizer) = open(bytes) {
            let _ = tokenizer.encode("ababa<e>", true).map(|ids| tokenizer.decode(&ids, true));
        }
    });
    for broken in [json!([["a", "abab"]]), json!(["a"]), json!([["a", 1]])] {
        let mut json = json.clone();
        json["model"]["merges"] = broken;
        assert!(open(serde_json::to_vec(&json).unwrap()).unwrap_err().to_string().contains("merge 0"));
    }
}
