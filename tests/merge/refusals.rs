//! What a configuration is refused for, and that all of it is said at once.

use super::refusal;

fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
}

#[test]
fn all_problems_of_a_configuration_are_listed() {
    let error = refusal("{ merge_method: ties, base_model: '{base}', dtpye: float16, models: [{ model: '{a}' }] }");
    says(&error, &["merge.yaml: `dtpye`", "an unknown key", "did you mean `dtype`?"]);
    let error = refusal(
        "{ merge_method: ties, base_model: '{base}', dtype: float8, chat_template: nonsense, tokenizer: { sauce: union },
           models: [{ model: '{a}', parameters: { wieght: 1 } }, { model: '{b}', parameters: { weight: heavy,
           normalize: true, density: 1.5 } }] }",
    );
    says(
        &error,
        &["7 problems", "`dtype`: expected one of float32", "`chat_template`", "did you mean `source`?", "density"],
    );
    says(&error, &["`models[0].parameters.wieght`", "did you mean `weight`?", "`models[1].parameters.weight`"]);
    says(&error, &["`models[1].parameters.normalize`: expected `normalize` once for all models"]);
    let error = refusal("{ merge_method: tise, models: [{ model: '{a}' }] }");
    says(&error, &["one of linear, slerp", "did you mean `ties`?"]);
}

#[test]
fn counts_bases_and_required_parameters_are_checked() {
    let error = refusal("{ merge_method: slerp, models: [{ model: '{a}' }, { model: '{b}' }, { model: '{c}' }] }");
    says(&error, &["`base_model`: expected a base for slerp", "expected 1 model for slerp: found 3", "add `t`"]);
    let error = refusal("{ merge_method: linear, models: [{ model: '{a}' }, { model: '{b}' }] }");
    says(&error, &["2 problems", "`models[0].parameters.weight`: expected the weight of a model", "models[1]"]);
    let error =
        refusal("{ merge_method: model_stock, base_model: '{base}', models: [{ model: '{base}' }, { model: '{a}' }] }");
    says(&error, &["at least 2 models besides the base for model_stock: found 1"]);
    let error = refusal("{ merge_method: passthrough, models: [{ model: '{a}' }], slices: [] }");
    says(&error, &["exactly one of the keys models, slices, modules: found models and slices"]);
    let error = refusal(
        "{ merge_method: della, base_model: '{base}', models: [{ model: '{a}',
           parameters: { weight: 1, density: 0.9, epsilon: 0.2 } }] }",
    );
    says(&error, &["density + epsilon below 1", "density 0.9, epsilon 0.2"]);
    let error = refusal("{ merge_method: linear, parameters: { weight: [0.1, heavy] }, models: [{ model: '{a}' }] }");
    says(&error, &["`parameters.weight[1]`: expected a number"]);
}

#[test]
fn slices_must_fit_each_other_and_their_models() {
    let slices = |second: &str| {
        refusal(&format!(
            "{{ merge_method: linear, parameters: {{ weight: 1 }}, slices: [{{ sources: [
               {{ model: '{{a}}', layer_range: [0, 2] }}, {{ model: '{{b}}', layer_range: {second} }}] }}] }}"
        ))
    };
    says(&slices("[0, 3]"), &["layer ranges of one length", "[0, 2] of"]);
    says(&slices("[2, 4]"), &["`slices[0].sources[1].layer_range`: expected layers of", "which has 3", "[2, 4]"]);
    says(&slices("[2, 2]"), &["two layer numbers"]);
    let error = refusal(
        "{ merge_method: ties, base_model: '{base}', parameters: { weight: 1 }, slices: [{ sources: [
           { model: '{a}', layer_range: [0, 3] }] }] }",
    );
    says(&error, &["with its layers", "list the base among the sources"]);
}

#[test]
fn filters_that_serve_nothing_and_values_that_nothing_gives_are_named() {
    let linear = |weight: &str| {
        refusal(&format!(
            "{{ merge_method: linear, models: [{{ model: '{{a}}', parameters: {{ weight: {weight} }} }},
               {{ model: '{{b}}', parameters: {{ weight: 1 }} }}] }}"
        ))
    };
    let error = linear("[{ filter: q_prj, value: 0.5 }, { value: 1 }]");
    says(&error, &["`models[0].parameters.weight[0]`", "a filter that some tensor's name contains: found `q_prj`"]);
    // Shadowed by one before it.
    says(&linear("[{ value: 1 }, { filter: mlp, value: 0.5 }]"), &["`models[0].parameters.weight[1]`", "`mlp`"]);
    says(&linear("[{ filter: mlp, value: 0.5 }]"), &["`weight` of", "none for `model.embed_tokens.weight`", "more"]);
    says(&linear("true"), &["`models[0].parameters.weight`: expected a number: found `true`"]);
    says(&linear("[{ filter: mlp, vlaue: 0.5 }]"), &["did you mean `value`?"]);
}

#[test]
fn documents_must_name_each_other_in_an_order() {
    let document = |name: &str, model: &str| {
        format!("name: {name}\nmerge_method: passthrough\nmodels: [{{ model: '{model}' }}]\n")
    };
    let both = format!("{}---\n{}", document("x", "{a}"), document("y", "{b}"));
    says(&refusal(&both), &["one document that no other names: the result: found 2"]);
    let circle = format!("{}---\n{}---\n{}", document("x", "y"), document("y", "x"), document("z", "x"));
    says(&refusal(&circle), &["documents that do not need themselves: found x, y"]);
    says(&refusal(""), &["found nothing"]);
    says(&refusal("a: [1"), &["expected YAML"]);
}

#[test]
fn a_way_to_rescale_without_rescaling_is_refused() {
    let yaml = |keys: &str| {
        format!(
            "{{ merge_method: dare_ties, base_model: '{{base}}', parameters: {{ {keys} }}, \
             models: [{{ model: '{{a}}', parameters: {{ weight: 1, density: 0.5 }} }}] }}"
        )
    };
    let error = refusal(&yaml("rescale: false, rescale_by_density: true"));
    says(&error, &["`rescale_by_density`: expected `rescale: true` beside it: found `rescale: false`"]);
    assert!(!error.contains("problems"), "said once for all tensors: {error}");
    let dir = tempfile::tempdir().unwrap();
    for (i, keys) in ["rescale_by_density: true", "rescale: false, rescale_by_density: false"].into_iter().enumerate() {
        super::run(&super::filled(&yaml(keys)), &dir.path().join(i.to_string())).unwrap();
    }
}

#[test]
fn one_threshold_a_model_needs_one_density() {
    let error = refusal(
        "{ merge_method: ties, base_model: '{base}', parameters: { trim_whole_model: true },
           models: [{ model: '{a}', parameters: { weight: 1, density: [0.2, 0.6] } }] }",
    );
    says(&error, &["expected one density for all tensors with `trim_whole_model`: found 0.2 and"]);
}
