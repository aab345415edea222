//! The model card.

use std::path::Path;

use potstill::distill::card::{CardData, Corpus, Origin, license_in, markdown};
use potstill::distill::metrics::Evaluation;
use potstill::distill::recipe::Recipe;

const RECIPE: &str = "
output_path: out
sequence_length: 256
model: { layers_of: t, layers: [0, 29] }
teacher: { kind: shards, path: s }
dataset: { train: a.txt, holdout: { fraction: 0.05 } }
loss_functions:
  - { function: kl, weight: 0.9, temperature: 1 }
  - { function: cross_entropy, weight: 0.1 }
training_args: { max_steps: 400, warmup_ratio: 0.1, learning_rate: 5e-4, lr_scheduler_type: cosine }
";

fn origin(name: &str, digest: Option<&str>) -> Origin {
    Origin { name: name.into(), digest: digest.map(String::from) }
}

#[test]
fn the_card_of_a_distilled_student_is_the_golden_one() {
    let recipe = Recipe::parse(RECIPE, Path::new("r")).unwrap();
    let evaluation = |nll: f64, kld: f64, top1: f64| Evaluation {
        nll,
        bits_per_byte: None,
        kld: Some(kld),
        top1_agreement: Some(top1),
        tokens: 6144,
    };
    let card = CardData {
        name: "smol-two-layers".into(),
        license: Some("apache-2.0".into()),
        base_models: vec!["HuggingFaceTB/SmolLM2-135M-Instruct".into()],
        student: origin("layers 0 and 29 of the teacher", Some("aa11")),
        teachers: vec![origin("SmolLM2-135M-Instruct | Q4_1", Some("bb22"))],
        shards: vec![origin("top-64 with tail mass", Some("cc33"))],
        data: vec![
            Corpus { name: "a.txt".into(), role: "training".into(), tokens: 1_234_567, digest: "dd44".into() },
            Corpus { name: "a.txt".into(), role: "held out".into(), tokens: 6144, digest: "ee55".into() },
        ],
        evaluations: vec![
            ("Teacher".into(), evaluation(3.9312, 0.0, 1.0)),
            ("Student before".into(), evaluation(7.8931, 4.71, 0.081)),
            ("Student after".into(), evaluation(5.3367, 1.986, 0.322)),
        ],
        recipe: &recipe,
        steps: 400,
        tokens: 817_200,
        device: "the CPU, 2 threads".into(),
    };
    let expected = include_str!("golden/card.md").replace("VERSION", env!("CARGO_PKG_VERSION"));
    assert_eq!(markdown(&card), expected);
}

#[test]
fn a_plain_student_has_neither_teacher_nor_unknown_licence() {
    let text = RECIPE.replace("teacher: { kind: shards, path: s }\n", "");
    let text = text.replace("  - { function: kl, weight: 0.9, temperature: 1 }\n", "");
    let recipe = Recipe::parse(&text, Path::new("r")).unwrap();
    let card = CardData {
        name: "x".into(),
        license: None,
        base_models: vec![],
        student: origin("random weights", None),
        teachers: Vec::new(),
        shards: Vec::new(),
        data: vec![],
        evaluations: vec![],
        recipe: &recipe,
        steps: 1,
        tokens: 1,
        device: "cpu".into(),
    };
    let card = markdown(&card);
    for absent in ["license", "base_model", "distil", "Teacher", "Evaluation", "KL("] {
        assert!(!card.contains(absent), "{absent} in {card}");
    }
}

#[test]
fn a_licence_is_found_in_front_matter_alone() {
    assert_eq!(license_in("---\ntags:\n- a\nlicense: apache-2.0\n---\n# x").as_deref(), Some("apache-2.0"));
    assert_eq!(license_in("---\r\nlicense: \"mit\"\r\n---\r\n").as_deref(), Some("mit"));
    assert_eq!(license_in("# x\nlicense: mit"), None);
    assert_eq!(license_in("---\ntags: [a]\n---\nlicense: mit\n"), None);
    assert_eq!(license_in(""), None);
}
