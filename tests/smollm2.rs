//! A real model, SmolLM2-135M-Instruct in Q4_1, which tests/setup.sh fetches.
//! Reference ids and counts were made with transformers from the same file.

use potstill::device::Device;
use potstill::distill::corpus::chat_template;
use potstill::formats::{ModelFolder, Tensors};
use potstill::generate::{Generator, Sampling};
use potstill::score::Scorer;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::ops::ControlFlow;

const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const LINE: &str = "Distillation separates a mixture by boiling and condensing: the lighter part rises first, \
                    and what is heavy stays behind in the still.";
const IDS: [u32; 27] = [
    16535, 20075, 24506, 253, 8196, 411, 16891, 284, 9560, 12689, 42, 260, 13603, 599, 13685, 808, 28, 284, 732, 314,
    4591, 13895, 2893, 281, 260, 1361, 30,
];

/// The file, checked to be the one the numbers were made from.
fn model() -> ModelFolder {
    let path = crate::common::smollm2();
    let sum = Sha256::digest(std::fs::read(&path).unwrap());
    assert_eq!(sum.iter().map(|b| format!("{b:02x}")).collect::<String>(), SHA256);
    ModelFolder::open(path).unwrap()
}

#[test]
fn the_tokenizer_gives_the_reference_ids_and_the_text_back() {
    let model = model();
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!(tokenizer.encode("Hello world 123", true).unwrap(), [19556, 905, 216, 33, 34, 35]);
    assert_eq!(tokenizer.encode(LINE, true).unwrap(), IDS);
    assert_eq!(tokenizer.decode(&IDS, true).unwrap(), LINE);
    assert_eq!(IDS.iter().map(|id| tokenizer.token_bytes(*id)).sum::<usize>(), LINE.len());
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
    assert_eq!(model.eos_ids(), [2]);
    assert_eq!(tokenizer.encode("<|im_start|>user\n", false).unwrap()[0], 1);
    assert_eq!(tokenizer.token_bytes(1), 0);
    assert!(tokenizer.chat_template().unwrap().contains("You are a helpful AI assistant named SmolLM"));
}

#[test]
fn all_272_tensors_have_the_shapes_that_the_config_says() {
    let model = model();
    let config = &model.config;
    let expected = json!({"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "head_dim": 64,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "rope_scaling": null, "tie_word_embeddings": true,
        "attention_bias": false, "mlp_bias": false, "bos_token_id": 1, "eos_token_id": 2});
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&config[key], value, "{key}");
    }
    let tensors = &model.tensors;
    let mut count = 0;
    let mut expect = |name: &str, shape: &[usize]| {
        tensors.expect_shape(name, shape).unwrap();
        count += 1;
    };
    expect("model.embed_tokens.weight", &[49152, 576]);
    expect("model.norm.weight", &[576]);
    for layer in 0..30 {
        let mut expect = |part: &str, shape: &[usize]| expect(&format!("model.layers.{layer}.{part}.weight"), shape);
        expect("input_layernorm", &[576]);
        expect("post_attention_layernorm", &[576]);
        expect("self_attn.q_proj", &[576, 576]);
        expect("self_attn.k_proj", &[192, 576]);
        expect("self_attn.v_proj", &[192, 576]);
        expect("self_attn.o_proj", &[576, 576]);
        expect("mlp.gate_proj", &[1536, 576]);
        expect("mlp.up_proj", &[1536, 576]);
        expect("mlp.down_proj", &[576, 1536]);
    }
    assert_eq!((count, tensors.names().count(), tensors.parameter_count()), (272, 272, 134_515_008));
    assert_eq!(tensors.digest(), tensors.digest());
    read_everything(tensors);
}

/// Every weight decodes to a finite number.
fn read_everything(tensors: &Tensors) {
    for name in tensors.names() {
        assert!(tensors.read_f32(name).unwrap().iter().all(|v| v.is_finite()), "{name}");
    }
}

/// Asks for the capital of France through the model's chat template, greedily.
fn capital_of_france(device: &Device) -> String {
    let model = model();
    let tokenizer = model.tokenizer().unwrap();
    let template = chat_template(&tokenizer, 0).unwrap().unwrap();
    let question = json!({ "role": "user", "content": "What is the capital of France?" });
    let messages = [question.as_object().unwrap().clone()];
    let text = template.render(&messages, &serde_json::Value::Null, true, &"the test").unwrap();
    let prompt = tokenizer.encode(&text, false).unwrap();
    let mut generator = Generator::new(device, &model, prompt.len() + 16, tokenizer.vocab_size()).unwrap();
    let sampling = Sampling { max_tokens: 16, stop: model.eos_ids(), ..Sampling::default() };
    let new = pollster::block_on(generator.generate(&prompt, &sampling, &mut |_| ControlFlow::Continue(()))).unwrap();
    tokenizer.decode(&new, false).unwrap()
}

const ANSWER: &str = "The capital of France is Paris.<|im_end|>";

#[test]
fn the_cpu_knows_the_capital_of_france() {
    assert_eq!(capital_of_france(&Device::cpu()), ANSWER);
}

#[test]
fn every_gpu_knows_the_capital_of_france() {
    for gpu in crate::common::gpus() {
        assert_eq!(capital_of_france(&gpu), ANSWER, "{}", gpu.name());
    }
}

/// transformers with weights rounded to f16 gives a mean of 5.1491 and these single values; exact f32 dequantisation,
/// as here, moves single logits by up to 0.04.
#[test]
fn the_reference_line_has_the_reference_log_probabilities() {
    let model = model();
    let mut scorer = Scorer::new(&Device::cpu(), &model, 49_152, 3).unwrap();
    // The last row's best tokens are those of the position behind the line: any further token makes it visible.
    let tokens: Vec<u32> = IDS.iter().copied().chain([198]).collect();
    let scored = scorer.score(&tokens).unwrap();
    let nll: Vec<f32> = scored.log_probs[1..27].iter().map(|x| -x.unwrap()).collect();
    assert_eq!(scored.log_probs[0], None);
    let mean = nll.iter().sum::<f32>() / 26.0;
    assert!((mean - 5.1491).abs() < 0.04, "{mean}");
    for (found, expected) in nll.iter().zip([18.4735, 11.0334, 2.6960, 7.0819, 5.2034, 5.1235]) {
        assert!((found - expected).abs() < 0.04, "{found} {expected}");
    }
    assert_eq!(scored.top[27].iter().map(|(id, _)| *id).collect::<Vec<_>>(), [198, 669, 533]);
}
