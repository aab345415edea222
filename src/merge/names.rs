//! What tensors' names say: layers, embeddings, heads, buffers.

/// Prefixes that one checkpoint of a family has and another lacks: those of transformers' base models.
const ROOTS: [&str; 6] = ["model.", "transformer.", "gpt_neox.", "bert.", "roberta.", "backbone."];
/// Buffers that older checkpoints carry: constants, which no model needs from a file.
const BUFFERS: [&str; 5] =
    ["rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.masked_bias", "position_ids"];
/// The tables from tokens to vectors, which tied heads share.
const TOKEN_TABLES: [&str; 5] =
    ["embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight"];
/// The heads from vectors to tokens.
const HEADS: [&str; 2] = ["lm_head.weight", "embed_out.weight"];

/// The name without its family's prefix, by which tensors of different checkpoints are matched; and that prefix.
pub(super) fn canonical(name: &str) -> (&'static str, &str) {
    let root = ROOTS.into_iter().find(|root| name.starts_with(root)).unwrap_or("");
    (root, &name[root.len()..])
}

/// Whether a tensor is a constant. `c_attn.bias` and its like are weights, and GPT-2's masks are called `attn.bias`.
pub(super) fn is_buffer(name: &str) -> bool {
    BUFFERS.iter().any(|end| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

/// A tensor of a layer: the stack's name, the layer, the rest.
pub(super) fn layer(name: &str) -> Option<(&str, usize, &str)> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        if start > 0 && end < name.len() && !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            return Some((&name[..start - 1], part.parse().ok()?, &name[end + 1..]));
        }
        start = end + 1;
    }
    None
}

/// The name of a tensor in another layer.
pub(super) fn in_layer(stack: &str, layer: usize, rest: &str) -> String {
    format!("{stack}.{layer}.{rest}")
}

/// Whether a tensor turns logits out of vectors.
pub(super) fn is_head(name: &str) -> bool {
    HEADS.contains(&name)
}

/// Whether a tensor is the table of the tokens.
pub(super) fn is_token_table(name: &str) -> bool {
    TOKEN_TABLES.iter().any(|table| name == *table || name.strip_suffix(table).is_some_and(|rest| rest.ends_with('.')))
}

/// Whether a tensor outside the layers comes before them.
pub(super) fn is_before_layers(name: &str) -> bool {
    let embeds = ["embed", "wte", "wpe"].iter().any(|part| name.contains(part));
    embeds && !is_head(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(layer("layers.12.mlp.up_proj.weight"), Some(("layers", 12, "mlp.up_proj.weight")));
        assert_eq!(layer("h.0.attn.c_attn.bias"), Some(("h", 0, "attn.c_attn.bias")));
        assert_eq!(
            layer("layers.3.block_sparse_moe.experts.7.w1.weight"),
            Some(("layers", 3, "block_sparse_moe.experts.7.w1.weight"))
        );
        assert_eq!(layer("norm.weight"), None);
        assert_eq!(layer("0.weight"), None);
        assert_eq!(canonical("model.layers.0.x"), ("model.", "layers.0.x"));
        assert_eq!(canonical("lm_head.weight"), ("", "lm_head.weight"));
        assert!(is_buffer("h.0.attn.bias") && !is_buffer("h.0.attn.c_attn.bias"));
        assert!(is_before_layers("embed_tokens.weight") && !is_before_layers("embed_out.weight"));
    }
}
