//! Downloads: by ranges where the server has them, taken up again where a connection broke, checked while they come.

use super::failure::{Failure, Kind, Outcome, text};
use super::options::Context;
use crate::Error;
use crate::digest::hex;
use crate::platform::sleep;
use crate::platform::stored::Stored;
use sha2::{Digest, Sha256};
use std::io::ErrorKind;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{Headers, ReadableStreamDefaultReader, Request, RequestCache, RequestInit, Response};

/// How often a broken connection is tried again without a byte in between.
const RETRIES: u32 = 5;
/// The wait before the first of them, doubled each time, in milliseconds.
const FIRST_WAIT: i32 = 250;
/// Bytes of a stored part that are read at a time to go on with its digest.
const PIECE: usize = 1 << 20;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_name = fetch)]
    fn fetch_request(request: &Request) -> js_sys::Promise;
}

/// What is known of a file before it is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where it is.
    pub url: String,
    /// Its length, where a manifest tells.
    pub bytes: Option<u64>,
    /// Its SHA-256, where a manifest tells.
    pub sha256: Option<String>,
}

/// Where a download goes.
pub enum Sink {
    /// Memory.
    Memory(Vec<u8>),
    /// A file in private storage.
    Stored(Stored),
}

/// A file on its way, and the digest of what has come.
pub struct Part {
    /// Where it goes.
    pub sink: Sink,
    bytes: u64,
    digest: Sha256,
}

/// What a server said of a file beside its bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// `ETag`.
    pub etag: Option<String>,
    /// `Last-Modified`.
    pub modified: Option<String>,
    /// That what is kept still holds: nothing was sent.
    pub unchanged: bool,
}

impl Part {
    /// The beginning of a file: what a stored part holds already is kept.
    pub fn resume(sink: Sink) -> std::io::Result<Part> {
        let mut part = Part { sink, bytes: 0, digest: Sha256::new() };
        if let Sink::Stored(stored) = &part.sink {
            let mut piece = vec![0; PIECE];
            loop {
                let count = stored.read_at(part.bytes, &mut piece)?;
                if count == 0 {
                    break;
                }
                part.digest.update(&piece[..count]);
                part.bytes += count as u64;
            }
        }
        Ok(part)
    }

    /// An empty file.
    pub fn start(sink: Sink) -> std::io::Result<Part> {
        let mut part = Part { sink, bytes: 0, digest: Sha256::new() };
        part.restart()?;
        Ok(part)
    }

    /// Bytes that have come.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The SHA-256 of what has come.
    pub fn sha256(&self) -> String {
        hex(&self.digest.clone().finalize())
    }

    fn restart(&mut self) -> std::io::Result<()> {
        (self.bytes, self.digest) = (0, Sha256::new());
        match &mut self.sink {
            Sink::Memory(bytes) => bytes.clear(),
            Sink::Stored(stored) => stored.set_bytes(0)?,
        }
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.sink {
            Sink::Memory(all) => all.extend_from_slice(bytes),
            Sink::Stored(stored) => stored.write_at(self.bytes, bytes)?,
        }
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// How one attempt ended short of the whole file.
enum Break {
    /// Worth another attempt.
    Broken(String),
    /// Not.
    Fatal(Failure),
}

impl From<Failure> for Break {
    fn from(failure: Failure) -> Break {
        Break::Fatal(failure)
    }
}

/// Downloads the rest of a file into `part`. `known` is what the server said of a copy that is kept: if that still
/// holds, nothing is sent. A file that is not as `wanted` says is fetched once more from its beginning.
pub async fn download(wanted: &Wanted, part: &mut Part, known: Option<&Answer>, context: &Context) -> Outcome<Answer> {
    let (mut attempt, mut last, mut anew) = (0, part.bytes, false);
    loop {
        context.check()?;
        let whole = part.bytes > 0 && Some(part.bytes) == wanted.bytes;
        let answer = if whole { Ok(Answer::default()) } else { request(wanted, part, known, anew, context).await };
        let reason = match answer {
            Ok(answer) if answer.unchanged => return Ok(answer),
            Ok(answer) => match verify(wanted, part) {
                Ok(()) => return Ok(answer),
                // A proxy's stale copy, or a part that was left by another version of the file.
                Err(failure) if anew => return Err(failure),
                Err(failure) => {
                    part.restart().map_err(full(wanted))?;
                    anew = true;
                    failure.to_string()
                }
            },
            Err(Break::Fatal(failure)) => return Err(failure),
            Err(Break::Broken(reason)) => reason,
        };
        attempt = if part.bytes > last { 1 } else { attempt + 1 };
        last = part.bytes;
        if attempt > RETRIES {
            let complaint = Error::at(&wanted.url).expected("the file").found(reason);
            let help = "check the connection and go on: what has come is kept";
            return Err(Failure::new(Kind::Network, complaint.help(help)));
        }
        context.event(&serde_json::json!({"type": "retry", "url": wanted.url, "attempt": attempt, "reason": reason}));
        sleep(FIRST_WAIT << (attempt - 1)).await;
    }
}

fn verify(wanted: &Wanted, part: &Part) -> Outcome<()> {
    let refuse = |field: &str, expected: &str, found: &str| {
        let complaint = Error::at(&wanted.url).field(field).expected(format!("{expected} (manifest)")).found(found);
        Err(Failure::new(Kind::Damaged, complaint.help("copy the file to the server again, or capture again")))
    };
    if let Some(bytes) = wanted.bytes.filter(|bytes| *bytes != part.bytes) {
        return refuse("length", &bytes.to_string(), &part.bytes.to_string());
    }
    match &wanted.sha256 {
        Some(expected) if *expected != part.sha256() => refuse("SHA-256", expected, &part.sha256()),
        _ => Ok(()),
    }
}

/// Why a part could not be written.
fn full(wanted: &Wanted) -> impl FnOnce(std::io::Error) -> Failure + '_ {
    move |error| {
        let kind = if error.kind() == ErrorKind::QuotaExceeded { Kind::Quota } else { Kind::Internal };
        let complaint = Error::at(&wanted.url).expected("room for it in the browser's storage").found(error);
        Failure::new(kind, complaint.help(super::storage::FREE_SOME))
    }
}

async fn request(
    wanted: &Wanted,
    part: &mut Part,
    known: Option<&Answer>,
    anew: bool,
    context: &Context,
) -> Result<Answer, Break> {
    let broken = |thrown: JsValue| match context.check() {
        Err(cancelled) => Break::Fatal(cancelled),
        Ok(()) => Break::Broken(text(&thrown)),
    };
    let init = RequestInit::new();
    let headers = Headers::new().map_err(broken)?;
    if wanted.sha256.is_some() {
        // From 0 too, so that a server without ranges is known by its answer.
        headers.set("Range", &format!("bytes={}-", part.bytes)).map_err(broken)?;
    }
    if let Some(etag) = known.and_then(|known| known.etag.as_ref()) {
        headers.set("If-None-Match", etag).map_err(broken)?;
    } else if let Some(modified) = known.and_then(|known| known.modified.as_ref()) {
        headers.set("If-Modified-Since", modified).map_err(broken)?;
    }
    init.set_headers(&headers);
    // The copies of this crate are its own; the browser's would be second ones.
    init.set_cache(if anew || known.is_some() { RequestCache::Reload } else { RequestCache::NoStore });
    init.set_signal(context.signal.as_ref());
    let request = Request::new_with_str_and_init(&wanted.url, &init).map_err(|thrown| {
        let complaint = Error::at(&wanted.url).expected("an address").found(text(&thrown));
        Break::Fatal(Failure::new(Kind::Input, complaint.help("check the address")))
    })?;
    let response: Response = JsFuture::from(fetch_request(&request)).await.map_err(broken)?.unchecked_into();
    let header = |name: &str| response.headers().get(name).ok().flatten();
    let answer = Answer { etag: header("ETag"), modified: header("Last-Modified"), unchanged: false };
    match response.status() {
        304 => return Ok(Answer { unchanged: true, ..known.cloned().unwrap_or_default() }),
        206 => continues(header("Content-Range").as_deref(), part.bytes)?,
        // The whole file, from a server without ranges.
        200 => part.restart().map_err(full(wanted))?,
        // The part is as long as the file, or longer.
        416 if part.bytes > 0 => {
            part.restart().map_err(full(wanted))?;
            return Err(Break::Broken("another length than before".to_owned()));
        }
        status => return Err(refused(wanted, status, &response.status_text())),
    }
    let total = wanted.bytes.or_else(|| header("Content-Length")?.parse::<u64>().ok());
    body(wanted, part, &response, total, context).await?;
    Ok(answer)
}

/// Reads a response's body into the part.
async fn body(
    wanted: &Wanted,
    part: &mut Part,
    response: &Response,
    total: Option<u64>,
    context: &Context,
) -> Result<(), Break> {
    let Some(stream) = response.body() else { return Ok(()) };
    let reader: ReadableStreamDefaultReader = stream.get_reader().unchecked_into();
    loop {
        let step = JsFuture::from(reader.read()).await.map_err(|thrown| match context.check() {
            Err(cancelled) => Break::Fatal(cancelled),
            Ok(()) => Break::Broken(text(&thrown)),
        })?;
        let get = |name: &str| js_sys::Reflect::get(&step, &name.into()).unwrap_or(JsValue::UNDEFINED);
        if get("done").is_truthy() {
            return Ok(());
        }
        let piece = js_sys::Uint8Array::new(&get("value")).to_vec();
        if wanted.bytes.is_some_and(|bytes| part.bytes + piece.len() as u64 > bytes) {
            // Longer than it may be: count it, so that the refusal says so, and read no further.
            let _ = reader.cancel();
            part.bytes += piece.len() as u64;
            return Ok(());
        }
        part.push(&piece).map_err(full(wanted))?;
        context.progress(&wanted.url, part.bytes, total);
    }
}

/// Whether a partial answer begins where the part ends.
fn continues(range: Option<&str>, bytes: u64) -> Result<(), Break> {
    // A server of another origin may keep the header to itself; the digest tells then.
    let Some(range) = range else { return Ok(()) };
    let start = range.strip_prefix("bytes ").and_then(|range| range.split('-').next()?.parse::<u64>().ok());
    match start {
        Some(start) if start == bytes => Ok(()),
        _ => Err(Break::Broken(format!("the range `{range}` in place of one from {bytes}"))),
    }
}

fn refused(wanted: &Wanted, status: u16, status_text: &str) -> Break {
    let found = format!("{status} {status_text}").trim().to_owned();
    if status == 408 || status == 429 || status >= 500 {
        return Break::Broken(found);
    }
    let help = match status {
        404 | 410 => "check the address, and that the file was copied to the server",
        _ => "check that the server lets this page read it",
    };
    Break::Fatal(Failure::new(Kind::Network, Error::at(&wanted.url).expected("the file").found(found).help(help)))
}
