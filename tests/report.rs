//! The report of a run: complete, self-contained, escaped.

use std::collections::BTreeMap;

use potstill::distill::metrics::{Eval, Evaluation, Record, Train};
use potstill::distill::report::{Facts, ReportData, Sample, html};

fn evaluation(nll: f64, kld: f64, agreement: f64) -> Evaluation {
    let bits = nll / std::f64::consts::LN_2 / 3.9;
    Evaluation { nll, bits_per_byte: Some(bits), kld: Some(kld), top1_agreement: Some(agreement), tokens: 6144 }
}

/// A run of 400 steps as it might be: losses fall exponentially with noise from a linear congruential generator.
fn data() -> ReportData {
    let mut seed = 1u64;
    let mut noise = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    };
    let (start, end) = (evaluation(7.8931, 4.71, 0.081), evaluation(5.3367, 1.986, 0.322));
    let at = |step: u64| (-(step as f64) / 110.0).exp();
    let mut records = Vec::new();
    for step in 0..=400u64 {
        let fade = at(step);
        if step > 0 {
            let kl = 1.95 + 2.7 * fade + 0.35 * noise();
            let cross_entropy = 5.3 + 2.5 * fade + 0.5 * noise();
            let losses = BTreeMap::from([("kl".to_string(), kl), ("cross_entropy".to_string(), cross_entropy)]);
            let rate = if step <= 40 {
                step as f64 / 40.0
            } else {
                0.5 + 0.5 * ((step - 40) as f64 / 360.0 * std::f64::consts::PI).cos()
            };
            records.push(Record::Train(Train {
                step,
                epoch: step as f64 / 160.0,
                loss: kl + 0.1 * cross_entropy,
                losses,
                scheduled: BTreeMap::new(),
                learning_rate: 5e-4 * rate,
                grad_norm: 0.9 + 4.0 * fade + 0.6 * noise().abs(),
                tokens: 510 * step,
                seconds: step as f64 * 0.53,
                tokens_per_second: 965.0 + 60.0 * noise(),
            }));
        }
        if step % 50 == 0 {
            let mix = |a: Option<f64>, b: Option<f64>| b.unwrap() + (a.unwrap() - b.unwrap()) * fade;
            let evaluation = Evaluation {
                nll: end.nll + (start.nll - end.nll) * fade,
                bits_per_byte: Some(mix(start.bits_per_byte, end.bits_per_byte)),
                kld: Some(mix(start.kld, end.kld)),
                top1_agreement: Some(mix(start.top1_agreement, end.top1_agreement)),
                tokens: 6144,
            };
            records.push(Record::Eval(Eval { step, evaluation, seconds: step as f64 * 0.53 }));
        }
    }
    let rows = |rows: &[(&str, &str)]| rows.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    ReportData {
        title: "State of the Union, nine layers".into(),
        subtitle: "SmolLM2-135M-Instruct distilled into 9 of its own 30 layers: 400 steps of 512 tokens in 3 min 32 s \
                   on the CPU."
            .into(),
        teacher: Some(evaluation(3.9312, 0.0, 1.0)),
        before: Some(start),
        after: Some(end),
        others: vec![("Twin on text alone".into(), evaluation(5.3820, 2.274, 0.275))],
        records,
        samples: vec![
            Sample {
                prompt: "The state of our union is".into(),
                before: " the the of, , and the of the\u{a0}of and of of the, the to the of and , the".into(),
                after: " strong, and we are ready to work. We have a new plan for the American people, and we will \
                        keep it."
                    .into(),
                teacher: Some(
                    " strong. Tonight I ask this Congress to join me in a renewed commitment to the families \
                               who built this country."
                        .into(),
                ),
            },
            Sample {
                prompt: "User: What is <b>bold</b> & true?\nAssistant:".into(),
                before: "\"quoted\" <script>alert(1)</script>".into(),
                after: " The American people.".into(),
                teacher: None,
            },
        ],
        warnings: vec!["the teacher's records leave out 11% of the probability on average".into()],
        facts: vec![
            Facts {
                title: "Lineage".into(),
                rows: rows(&[
                    ("Teacher", "SmolLM2-135M-Instruct, Q4_1 (sha256 5f0c1e7a9b2d)"),
                    ("Student", "layers 0, 1, 5, 10, 15, 20, 25, 28, 29 of the teacher; 60.2 million parameters"),
                    ("Records", "top-64 with tail mass, 412,160 positions (sha256 91ab77c02e4f)"),
                    ("Text", "sotu.jsonl, 418,304 tokens, 6,144 held out (sha256 c0ffee90210a)"),
                ]),
            },
            Facts {
                title: "Device and time".into(),
                rows: rows(&[
                    ("Device", "CPU, 2 threads"),
                    ("Training", "3 min 32 s, 965 tokens a second"),
                    ("Evaluation", "21 s"),
                    ("Peak memory", "1.31 GiB"),
                ]),
            },
        ],
        recipe: "output_path: out\nsequence_length: 256\nloss_functions:\n  - function: kl\n    weight: 0.9\n".into(),
    }
}

#[test]
fn a_report_is_complete_self_contained_and_escaped() {
    let page = html(&data()).unwrap();
    if let Some(path) = std::env::var_os("POTSTILL_REPORT") {
        std::fs::write(path, &page).unwrap();
    }
    assert_eq!(page.matches("<svg ").count(), 8);
    assert_eq!(page.matches("<title id=").count(), 8);
    for external in ["http", "<link", "<script", "src=", "@import", "url("] {
        assert!(!page.contains(external), "{external}");
    }
    for escaped in ["&lt;script&gt;alert(1)", "&lt;b&gt;bold", "&amp; true?"] {
        assert!(page.contains(escaped), "{escaped}");
    }
    // From the data by hand: 5.3367 - 7.8931, and 32.2% - 8.1%.
    for number in ["5.3367", "\u{2212}2.5564", "32.2%", "+24.1 points", "Twin on text alone"] {
        assert!(page.contains(number), "{number}");
    }
    assert!(!page.contains("NaN") && !page.contains("undefined") && !page.contains("none</"));
}

#[test]
fn a_report_of_nothing_is_a_page() {
    let page = html(&ReportData { title: "empty".into(), ..ReportData::default() }).unwrap();
    assert!(page.contains("<h1>empty</h1>") && !page.contains("<svg") && !page.contains("<h2>"));
}
