//! What learning the coefficients of a merge did.

use std::path::Path;

/// See [`super::Merged`].
#[derive(Clone, Debug, PartialEq)]
pub struct Learned {
    /// Steps.
    pub steps: u64,
    /// For each model with text, in the order of the configuration.
    pub models: Vec<Divergence>,
}

/// How far the merged model is from one it was made of, on that one's own text.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// The model.
    pub model: String,
    /// Held-out T^2 KL(model || merged) at temperature T, nats a token, of the plain average: before the first step.
    /// `None` if nothing is held out.
    pub before: Option<f64>,
    /// The same with the learned coefficients.
    pub after: Option<f64>,
}

/// For the model card.
pub(super) fn table(learned: &Learned) -> String {
    let mut text = format!("\n## Learned coefficients\n\n{} steps. ", learned.steps);
    if learned.models.iter().all(|model| model.after.is_none()) {
        text.push_str("Nothing was held out to measure.\n");
        return text;
    }
    text.push_str("Divergence from each model on text of its own that was held out, nats a token:\n\n");
    text.push_str("| model | plain average | learned |\n| --- | --- | --- |\n");
    for model in &learned.models {
        let [before, after] = [model.before, model.after].map(|x| x.map_or("-".to_owned(), |x| format!("{x:.4}")));
        let name = Path::new(&model.model).file_name().map_or(model.model.clone(), |n| n.to_string_lossy().into());
        text.push_str(&format!("| {name} | {before} | {after} |\n"));
    }
    text
}
