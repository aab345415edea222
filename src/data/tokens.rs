//! Tokenised documents and the corpus they make up.
//!
//! A token carries three things: its id, whether it is learned (whether the row before it has it as label), and how
//! many bytes of text it covers. Row t is the distribution for token t+1, so a document's first token is never a label
//! and its flag and bytes never count.

use std::ops::Range;
use std::slice::from_ref;

use crate::platform::parallel::*;
use sha2::{Digest, Sha256};

use crate::data::chat::ChatTemplate;
use crate::data::documents::{Content, Place, Source};
use crate::digest::hex;
use crate::{Error, Result};

/// Tokens of a text, no special token added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each token the byte of the text where it ends (the second half of a tokenizer's offsets, in bytes).
    pub ends: Vec<usize>,
}

/// One tokenised document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Token ids; never empty.
    pub ids: Vec<u32>,
    /// One flag a token: whether it is learned.
    pub loss: Vec<bool>,
    /// UTF-8 bytes of text that each token covers (0 for added special tokens), or `None` where the text is unknown.
    pub bytes: Option<Vec<u32>>,
}

/// How documents become tokens.
pub struct Tokenise<'a> {
    /// Encodes a text without adding special tokens; those written in the text are recognised.
    pub encode: &'a (dyn Fn(&str) -> Result<Encoded> + Sync),
    /// Put before plain text and prompts, where the model wants it.
    pub bos: Option<u32>,
    /// Put after plain text and completions, and learned. Chat templates end their turns themselves.
    pub eos: Option<u32>,
    /// The number of ids the model's tokenizer has; ids beyond it are refused.
    pub vocabulary: usize,
    /// Needed for conversations only.
    pub template: Option<&'a ChatTemplate>,
    /// Learn every token of conversations, prompts and given ids (axolotl's name; the default is false: only what the
    /// assistant says, the completion, the positions that `labels` or `loss_mask` name).
    pub train_on_inputs: bool,
    /// Refuse documents of more tokens than this. `None`: any length; packing cuts long documents into consecutive
    /// pieces, each a context of its own, and loses no token.
    pub max_length: Option<usize>,
}

impl Tokenise<'_> {
    /// Tokenises one document.
    ///
    /// Errors name the document's place: no tokens, an id beyond the vocabulary, longer than `max_length`, a
    /// conversation without template, and whatever the template or the tokenizer refuses.
    pub fn document(&self, source: &Source) -> Result<Document> {
        let mut document = match &source.content {
            Content::Text(text) => self.text(text, from_ref(&(0..text.len())), true)?,
            Content::PromptCompletion { prompt, completion } => {
                let text = format!("{prompt}{completion}");
                let learned = if self.train_on_inputs { 0 } else { prompt.len() };
                self.text(&text, from_ref(&(learned..text.len())), true)?
            }
            Content::Chat(chat) => {
                let Some(template) = self.template else {
                    return Error::at(&source.place)
                        .field("messages")
                        .expected("a model with a chat template")
                        .found("none")
                        .help("use the instruct version of the model, or give a chat template")
                        .err();
                };
                if self.train_on_inputs {
                    let text = template.render(&chat.messages, &chat.tools, false, &source.place)?;
                    self.text(&text, from_ref(&(0..text.len())), false)?
                } else {
                    let (text, spans) = template.render_learned(chat, &source.place)?;
                    self.text(&text, &spans, false)?
                }
            }
            Content::Ids { ids, loss } => Document { ids: ids.clone(), loss: loss.clone(), bytes: None },
        };
        if self.train_on_inputs {
            document.loss.fill(true);
        }
        self.check(&document, &source.place)?;
        Ok(document)
    }

    /// Encodes `text`; a token is learned if any byte of it is in `spans`, so one that straddles a border is.
    fn text(&self, text: &str, spans: &[Range<usize>], add_special: bool) -> Result<Document> {
        let encoded = (self.encode)(text)?;
        if encoded.ids.len() != encoded.ends.len() {
            return Err(Error::internal("the tokenizer gave ids and offsets of different number"));
        }
        let (bos, eos) = if add_special { (self.bos, self.eos) } else { (None, None) };
        // A text that spells its own first token needs no second one.
        let bos = bos.filter(|bos| encoded.ids.first() != Some(bos));
        let (mut ids, mut loss, mut bytes) =
            (Vec::from_iter(bos), vec![false; bos.iter().len()], vec![0; bos.iter().len()]);
        let mut start = 0;
        for (&id, &end) in encoded.ids.iter().zip(&encoded.ends) {
            let end = end.clamp(start, text.len());
            ids.push(id);
            loss.push(spans.iter().any(|span| touches(span, start, end)));
            bytes.push(u32::try_from(end - start).unwrap_or(u32::MAX));
            start = end;
        }
        // Bytes after the last token (white space that a normaliser removed) are the last token's.
        if let Some(last) = bytes.last_mut() {
            *last = last.saturating_add(u32::try_from(text.len() - start).unwrap_or(u32::MAX));
        }
        if let Some(eos) = eos {
            ids.push(eos);
            loss.push(true);
            bytes.push(0);
        }
        Ok(Document { ids, loss, bytes: Some(bytes) })
    }

    fn check(&self, document: &Document, place: &Place) -> Result<()> {
        if document.ids.is_empty() {
            return Error::at(place).expected("at least one token").found("none").help("remove the document").err();
        }
        if let Some((i, id)) = document.ids.iter().enumerate().find(|(_, id)| **id as usize >= self.vocabulary) {
            return Error::at(place)
                .field(format!("token {i}"))
                .expected(format!("an id below {}, the size of the vocabulary", self.vocabulary))
                .found(id)
                .help("the ids were made with another tokenizer: tokenise the text with this model's")
                .err();
        }
        match self.max_length {
            Some(limit) if document.ids.len() > limit => Error::at(place)
                .expected(format!("a document of at most {limit} tokens, the context length"))
                .found(format!("{} tokens", document.ids.len()))
                .help("shorten it, raise the context length, or let long documents be split")
                .err(),
            _ => Ok(()),
        }
    }

    /// Tokenises a whole dataset, several documents at a time, in order.
    pub fn corpus(&self, sources: impl IntoIterator<Item = Result<Source>>) -> Result<Corpus> {
        /// Documents in memory as text at once.
        const CHUNK: usize = 64;
        let mut sources = sources.into_iter();
        let mut corpus = Corpus::default();
        loop {
            let chunk: Vec<Source> = sources.by_ref().take(CHUNK).collect::<Result<_>>()?;
            if chunk.is_empty() {
                return Ok(corpus);
            }
            let documents: Vec<Result<Document>> = chunk.par_iter().map(|source| self.document(source)).collect();
            for (document, source) in documents.into_iter().zip(&chunk) {
                corpus.push_routed(document?, source.route.as_deref())?;
            }
        }
    }
}

/// Whether the token over bytes `start..end` has a byte in `span`. One of no bytes is a later part of a character that
/// ended before it, and goes with that character.
fn touches(span: &Range<usize>, start: usize, end: usize) -> bool {
    span.start < end && (start < span.end || start == end && end <= span.end)
}

/// Tokenised documents, end to end. A token's place in here is its global position, which teacher records name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Corpus {
    ids: Vec<u32>,
    loss: Vec<bool>,
    bytes: Option<Vec<u32>>,
    ends: Vec<usize>,
    /// One item a document: its place in `route_names`, or [`NO_ROUTE`].
    routes: Vec<u32>,
    /// Sorted, each once.
    route_names: Vec<String>,
}

/// The route id of a document that has no route.
pub const NO_ROUTE: u32 = u32::MAX;

impl Corpus {
    /// Appends a document without a route. One without a known text makes the bytes of the whole corpus unknown.
    ///
    /// Errors if it has no token or its fields are of different lengths.
    pub fn push(&mut self, document: Document) -> Result<()> {
        self.push_routed(document, None)
    }

    /// As [`Corpus::push`], with the document's route.
    pub fn push_routed(&mut self, document: Document, route: Option<&str>) -> Result<()> {
        let tokens = document.ids.len();
        if tokens == 0 || document.loss.len() != tokens || document.bytes.as_ref().is_some_and(|b| b.len() != tokens) {
            return Err(Error::internal(format!(
                "a document of {tokens} tokens with flags or bytes of another number"
            )));
        }
        let first = self.ends.is_empty();
        self.bytes = match (self.bytes.take(), document.bytes) {
            (None, Some(new)) if first => Some(new),
            (Some(mut all), Some(new)) => {
                all.extend(new);
                Some(all)
            }
            _ => None,
        };
        self.ids.extend(document.ids);
        self.loss.extend(document.loss);
        self.ends.push(self.ids.len());
        let route = route.map_or(NO_ROUTE, |name| self.route_number(name));
        self.routes.push(route);
        Ok(())
    }

    /// The id of a route's name, which takes its place in the sorted table if it is new there.
    fn route_number(&mut self, name: &str) -> u32 {
        let place = match self.route_names.binary_search_by(|known| known.as_str().cmp(name)) {
            Ok(place) => return place as u32,
            Err(place) => place,
        };
        self.route_names.insert(place, name.to_string());
        for id in self.routes.iter_mut().filter(|id| **id != NO_ROUTE && **id as usize >= place) {
            *id += 1;
        }
        place as u32
    }

    /// What the route field of document `index` said, if it had one.
    pub fn route(&self, index: usize) -> Option<&str> {
        self.route_names.get(*self.routes.get(index)? as usize).map(String::as_str)
    }

    /// The names of all routes, sorted: a route id is a place in here.
    pub fn routes(&self) -> &[String] {
        &self.route_names
    }

    /// The route id of the document that holds the token at global position `position`, [`NO_ROUTE`] without one.
    pub fn route_id_at(&self, position: usize) -> u32 {
        let document = self.ends.partition_point(|&end| end <= position);
        self.routes.get(document).copied().unwrap_or(NO_ROUTE)
    }

    /// SHA-256, in hexadecimal, of `potstill routes 1\n` and then for each document its route's name followed by a line
    /// break, a document without one giving the line break alone. `None` if no document has a route. The corpus digest
    /// does not depend on routes: records of a corpus fit it however it is routed.
    pub fn routes_digest(&self) -> Option<String> {
        if self.route_names.is_empty() {
            return None;
        }
        let mut hash = Sha256::new();
        hash.update(b"potstill routes 1\n");
        for document in 0..self.documents() {
            hash.update(self.route(document).unwrap_or_default());
            hash.update(b"\n");
        }
        Some(hex(&hash.finalize()))
    }

    /// Token ids, one document after another.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// One flag a token: whether it is learned.
    pub fn loss(&self) -> &[bool] {
        &self.loss
    }

    /// Bytes of text each token covers, if known for all.
    pub fn bytes(&self) -> Option<&[u32]> {
        self.bytes.as_deref()
    }

    /// The number of documents.
    pub fn documents(&self) -> usize {
        self.ends.len()
    }

    /// The global positions of document `index`, empty beyond the last.
    pub fn range(&self, index: usize) -> Range<usize> {
        let start = index.checked_sub(1).and_then(|i| self.ends.get(i)).copied().unwrap_or(0);
        self.ends.get(index).map_or(0..0, |&end| start..end)
    }

    /// SHA-256 of the documents: see [`CorpusDigest`].
    pub fn digest(&self) -> String {
        let mut digest = CorpusDigest::default();
        for document in 0..self.documents() {
            let range = self.range(document);
            digest.push(&self.ids[range.clone()], &self.loss[range]);
        }
        digest.finish()
    }
}

/// What identifies a corpus, taken document by document: the SHA-256, in hexadecimal, of `potstill corpus 1\n` and then
/// for each document its length (u64), its ids (u32 each) and its loss flags (u8 each, 0 or 1), all little-endian.
pub struct CorpusDigest(Sha256);

impl Default for CorpusDigest {
    fn default() -> Self {
        CorpusDigest(Sha256::new_with_prefix(b"potstill corpus 1\n"))
    }
}

impl CorpusDigest {
    /// Takes the next document: ids and one flag each.
    pub fn push(&mut self, ids: &[u32], loss: &[bool]) {
        self.0.update((ids.len() as u64).to_le_bytes());
        self.0.update(ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
        self.0.update(loss.iter().map(|&flag| u8::from(flag)).collect::<Vec<u8>>());
    }

    /// The digest.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}
