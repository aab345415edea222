//! From files to rows a model can be trained on.
//!
//! A reader follows a text from top to bottom: [`documents`] reads files one document at a time ([`rows`] knows the
//! layouts of a JSON line), [`chat`] writes a conversation as text the way its model expects, [`turns`] says which
//! bytes of it the assistant spoke, [`tokens`] turns that into ids with a loss flag each, [`split`] sets aside held-out
//! text, and [`packing`] cuts what is left into batches of equal length, losing no token and letting no document see
//! another.
//!
//! Nothing here knows of devices, graphs or models; the tokenizer is a closure.

pub mod chat;
pub mod documents;
pub mod packing;
pub mod python;
pub mod rows;
pub mod split;
pub mod tokens;
pub mod turns;
