//! What goes wrong, as JavaScript sees it: an `Error` named `PotstillError` with the message of the native command and
//! a `kind` to tell cases apart by.

use crate::Error;
use crate::error::Complaint;
use std::fmt;
use wasm_bindgen::{JsCast, JsValue};

/// What went wrong, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A recipe, a file or an argument is not what it has to be.
    Input,
    /// A server did not answer, or not with what was asked for.
    Network,
    /// What was downloaded or stored is not what it should be.
    Damaged,
    /// The browser gives no more room.
    Quota,
    /// A GPU was asked for, and the browser offers none.
    NoGpu,
    /// The device refused.
    Device,
    /// The device is gone.
    DeviceLost,
    /// The loss or a gradient is not a number.
    NotFinite,
    /// An `AbortSignal` fired.
    Cancelled,
    /// A bug.
    Internal,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Input => "input",
            Kind::Network => "network",
            Kind::Damaged => "damaged",
            Kind::Quota => "quota",
            Kind::NoGpu => "no-gpu",
            Kind::Device => "device",
            Kind::DeviceLost => "device-lost",
            Kind::NotFinite => "not-finite",
            Kind::Cancelled => "cancelled",
            Kind::Internal => "internal",
        }
    }
}

/// An error on its way to JavaScript.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong, in a word.
    pub kind: Kind,
    message: String,
}

impl Failure {
    /// A complaint of this kind.
    pub fn new(kind: Kind, complaint: Complaint) -> Failure {
        Failure { kind, message: complaint.error().to_string() }
    }

    /// Wraps what a browser's interface threw while `doing`.
    pub fn thrown(doing: &str, thrown: JsValue) -> Failure {
        Failure { kind: Kind::Internal, message: format!("{doing}: {}", text(&thrown)) }
    }

    /// The stop that the caller asked for.
    pub fn cancelled() -> Failure {
        Error::Cancelled.into()
    }
}

/// The message of something thrown.
pub fn text(thrown: &JsValue) -> String {
    match thrown.dyn_ref::<js_sys::Error>() {
        Some(error) => String::from(error.message()),
        None => thrown.as_string().unwrap_or_else(|| format!("{thrown:?}")),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let kind = match &error {
            Error::Input(_) | Error::Several(_) => Kind::Input,
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::QuotaExceeded => Kind::Quota,
            Error::Io { .. } => Kind::Input,
            Error::Device { .. } => Kind::Device,
            Error::NotFinite { .. } => Kind::NotFinite,
            Error::Cancelled => Kind::Cancelled,
            Error::Internal(_) => Kind::Internal,
        };
        Failure { kind, message: error.to_string() }
    }
}

impl From<Failure> for JsValue {
    fn from(failure: Failure) -> JsValue {
        let error = js_sys::Error::new(&failure.message);
        error.set_name("PotstillError");
        // A plain object takes any property.
        let _ = js_sys::Reflect::set(&error, &"kind".into(), &failure.kind.name().into());
        error.into()
    }
}

/// `Result` with [`Failure`].
pub type Outcome<T> = Result<T, Failure>;
