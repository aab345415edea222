//! DistillKit's codec settings, from the `compression_config.yaml` that its capture leaves or from a recipe of its own.

use crate::shards::foreign::{Bin, Compressor, CompressorConfig, Fault, FloatType, Legacy, LegacyConfig, Term};
use crate::yaml::{Fields, Node};
use crate::{Error, Result};

/// A checked codec. Without Parquet a recipe's codec is only checked: there is nothing to decode.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "parquet"), allow(dead_code))]
pub(super) enum Codec {
    /// `logprob_compressor`.
    New(Compressor),
    /// `legacy_logit_compression`.
    Legacy(Legacy),
}

#[cfg(feature = "parquet")]
impl Codec {
    /// The form it decodes.
    pub fn form(&self) -> crate::shards::foreign::Form {
        match self {
            Codec::New(_) => crate::shards::foreign::Form::New,
            Codec::Legacy(_) => crate::shards::foreign::Form::Legacy,
        }
    }
}

const NEW: &str = "logprob_compressor";
const LEGACY: &str = "legacy_logit_compression";

/// Reads a codec from the YAML file at `path`: its fields at the top, under `logprob_compressor` or
/// `legacy_logit_compression`, or one of those under `teacher`, as in a DistillKit recipe.
#[cfg(feature = "parquet")]
pub(super) fn load(path: &std::path::Path) -> Result<Codec> {
    let text = crate::platform::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let value = crate::yaml::read_yaml(&text, path)?;
    let root = Node { file: path, path: String::new(), value: &value };
    let inner = |value, path: &str| Node { file: root.file, path: path.to_string(), value };
    match (value.get("teacher"), value.get(NEW).or(value.get(LEGACY)), value.get("polynomial_degree")) {
        (Some(teacher), ..) => codec(&inner(teacher, "teacher")),
        (None, Some(_), _) => codec(&root),
        (None, None, Some(_)) => Ok(Codec::Legacy(legacy(root)?)),
        (None, None, None) => Ok(Codec::New(compressor(root)?)),
    }
}

/// The codec under one of its two keys in a mapping that may hold others.
pub(super) fn codec(node: &Node<'_>) -> Result<Codec> {
    let child = |key: &str| {
        let value = node.value.get(key).filter(|value| !value.is_null())?;
        let path = if node.path.is_empty() { key.to_string() } else { format!("{}.{key}", node.path) };
        Some(Node { file: node.file, path, value })
    };
    match (child(NEW), child(LEGACY)) {
        (Some(node), None) => Ok(Codec::New(compressor(node)?)),
        (None, Some(node)) => Ok(Codec::Legacy(legacy(node)?)),
        (new, _) => {
            let found = if new.is_some() { "both" } else { "neither" };
            node.complaint().expected(format!("`{NEW}` or `{LEGACY}`")).found(found).err()
        }
    }
}

fn compressor(node: Node<'_>) -> Result<Compressor> {
    let known = &[
        "d",
        "k",
        "exact_k",
        "exact_dtype",
        "polynomial_terms",
        "term_dtype",
        "residual_bins",
        "delta_encoding",
        "error_diffusion",
        "normalize_t",
    ];
    let fields = node.fields(known, &[])?;
    let config = CompressorConfig {
        d: fields.need("d", "the size of the vocabulary", small)?,
        k: fields.need("k", "the entries of a position", small)?,
        exact_k: fields.need("exact_k", "the entries stored as they are", small)?,
        exact_dtype: fields.or("exact_dtype", FloatType::Float32, float)?,
        polynomial_terms: fields.or("polynomial_terms", Vec::new(), |node| items(node, term))?,
        term_dtype: fields.or("term_dtype", FloatType::Float32, float)?,
        residual_bins: fields.need("residual_bins", "a list, which may be empty", |node| items(node, bin))?,
        delta_encoding: fields.or("delta_encoding", true, Node::boolean)?,
        error_diffusion: fields.or("error_diffusion", false, Node::boolean)?,
        normalize_t: fields.or("normalize_t", false, Node::boolean)?,
    };
    Compressor::new(config).map_err(|fault| refused(&fields, fault))
}

fn legacy(node: Node<'_>) -> Result<Legacy> {
    let known =
        &["k", "exact_k", "polynomial_degree", "vocab_size", "invert_polynomial", "with_sqrt_term", "term_dtype"];
    let fields = node.fields(known, &[])?;
    let config = LegacyConfig {
        k: fields.need("k", "the entries of a position", small)?,
        exact_k: fields.need("exact_k", "the entries stored as they are", small)?,
        polynomial_degree: fields.need("polynomial_degree", "the greatest exponent", small)?,
        vocab_size: fields.need("vocab_size", "the size of the vocabulary", small)?,
        invert_polynomial: fields.or("invert_polynomial", true, Node::boolean)?,
        with_sqrt_term: fields.or("with_sqrt_term", false, Node::boolean)?,
        term_dtype: fields.or("term_dtype", FloatType::Float32, float)?,
    };
    Legacy::new(config).map_err(|fault| refused(&fields, fault))
}

fn refused(fields: &Fields<'_>, fault: Fault) -> Error {
    fields.complaint(fault.field).expected(fault.expected).found(fault.found).error()
}

fn small(node: &Node<'_>) -> Result<u32> {
    let number = node.integer()?;
    u32::try_from(number).or_else(|_| node.complaint().expected("at most 4294967295").found(number).err())
}

fn float(node: &Node<'_>) -> Result<FloatType> {
    node.choice(FloatType::NAMES)
}

/// A list, which may be empty.
fn items<'a, T>(node: &Node<'a>, read: impl Fn(Node<'a>) -> Result<T>) -> Result<Vec<T>> {
    if node.value.as_array().is_some_and(Vec::is_empty) { Ok(Vec::new()) } else { node.list(read) }
}

fn term(node: Node<'_>) -> Result<Term> {
    let help = "DistillKit lets t start at 0, where a negative power is infinite";
    match (node.value.as_i64(), node.value.as_str()) {
        (Some(power), _) if power < 0 => {
            node.complaint().expected("a power of 0 or more").found(power).help(help).err()
        }
        (Some(_), _) => small(&node).map(Term::Power),
        (None, Some(name)) => Term::parse(name)
            .ok_or_else(|| node.complaint().expected("a power, sqrt or exp").found(format!("{name:?}")).error()),
        (None, None) => node.complaint().expected("a power, sqrt or exp").found(node.value).err(),
    }
}

fn bin(node: Node<'_>) -> Result<Bin> {
    let fields = node.fields(&["scale_dtype", "element_bits", "num_elements"], &[])?;
    Ok(Bin {
        scale_dtype: fields.need("scale_dtype", "a type of floating-point numbers", float)?,
        element_bits: fields.need("element_bits", "bits of a residual", small)?,
        num_elements: fields.need("num_elements", "residuals of the bin", small)?,
    })
}
