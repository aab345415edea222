//! Rotary positions from a `config.json`.

use super::fields::Fields;
use crate::Result;
use crate::nn::rotary::{Rope, RopeScaling};

/// Rotary positions from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before), over all of a
/// head or, in families with a `partial_rotary_factor`, over its first part.
pub(super) fn rope(fields: &Fields<'_>, head_dim: usize, partial: Option<f64>, max_positions: usize) -> Result<Rope> {
    let parameters = match fields.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_scaling")?,
    };
    let theta = fields.positive_or("rope_theta", 10_000.0)?;
    let dims = match partial {
        None if head_dim.is_multiple_of(2) => head_dim,
        None => return fields.refuse("head_dim", "an even number (rotary positions turn pairs)"),
        Some(default) => {
            let outer = fields.positive_or("partial_rotary_factor", default)?;
            let factor = parameters.as_ref().map_or(Ok(outer), |p| p.positive_or("partial_rotary_factor", outer))?;
            match (head_dim as f64 * factor) as usize {
                dims if dims > 0 && dims <= head_dim && dims.is_multiple_of(2) => dims,
                _ => {
                    return fields
                        .refuse("partial_rotary_factor", "an even part of a head (rotary positions turn pairs)");
                }
            }
        }
    };
    match parameters {
        None => Ok(Rope { theta, dims, scaling: RopeScaling::Default }),
        Some(parameters) => scaled(&parameters, dims, theta, max_positions),
    }
}

/// Rotary positions from one object of parameters; `theta` is taken where it has none.
pub(super) fn scaled(parameters: &Fields<'_>, dims: usize, theta: f64, max_positions: usize) -> Result<Rope> {
    let theta = parameters.positive_or("rope_theta", theta)?;
    let kind = parameters.str_or("rope_type", parameters.str_or("type", "default")?)?;
    let original = || parameters.positive_or("original_max_position_embeddings", max_positions as f64);
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: parameters.positive("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: parameters.positive("factor")?,
            low_freq_factor: parameters.positive("low_freq_factor")?,
            high_freq_factor: parameters.positive("high_freq_factor")?,
            original_max_position_embeddings: parameters.positive("original_max_position_embeddings")?,
        },
        "yarn" => yarn(parameters, original()?)?,
        _ => return parameters.refuse("rope_type", "one of `default`, `linear`, `llama3`, `yarn`"),
    };
    Ok(Rope { theta, dims, scaling })
}

fn yarn(parameters: &Fields<'_>, original: f64) -> Result<RopeScaling> {
    let factor = parameters.positive("factor")?;
    let mscale = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let (m, m_all) = (parameters.f64_or("mscale", 0.0)?, parameters.f64_or("mscale_all_dim", 0.0)?);
    let inferred = if m != 0.0 && m_all != 0.0 { mscale(m) / mscale(m_all) } else { mscale(1.0) };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: parameters.positive_or("beta_fast", 32.0)?,
        beta_slow: parameters.positive_or("beta_slow", 1.0)?,
        attention_factor: parameters.positive_or("attention_factor", inferred)?,
        original_max_position_embeddings: original,
        truncate: parameters.bool_or("truncate", true)?,
    })
}
