//! The crate's one error type. A message says what was read, where, what was expected, what was found
//! and what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in this crate.
#[derive(Debug)]
pub enum Error {
    /// Something a user gave (a file, a field, an argument) is not what it has to be.
    Input(Box<Complaint>),
    /// More than one thing is wrong, and all of them are known: see [`Error::all`].
    Several(Vec<Error>),
    /// The operating system refused to read or write.
    Io {
        /// What was tried: "read", "create", "rename".
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The device failed: out of memory, lost, a validation error, no adapter.
    Device {
        /// What happened, on which device.
        what: String,
        /// What to do about it.
        help: String,
    },
    /// The loss or a gradient stopped being finite.
    NotFinite {
        /// Which number.
        what: String,
        /// At which optimiser step.
        step: u64,
        /// What to do about it.
        help: String,
    },
    /// The caller asked for a stop through a progress callback.
    Cancelled,
    /// A broken promise inside this crate: please report it.
    Internal(String),
}

/// The parts of an [`Error::Input`] message. Build one with [`Error::at`] or [`Error::file`].
#[derive(Debug, Default)]
pub struct Complaint {
    place: String,
    field: String,
    expected: String,
    found: String,
    help: String,
}

impl Complaint {
    /// The field, tensor, key or line inside the place.
    pub fn field(mut self, field: impl fmt::Display) -> Self {
        self.field = field.to_string();
        self
    }

    /// What should have been there.
    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.expected = expected.to_string();
        self
    }

    /// What was there instead.
    pub fn found(mut self, found: impl fmt::Display) -> Self {
        self.found = found.to_string();
        self
    }

    /// What the user can do.
    pub fn help(mut self, help: impl fmt::Display) -> Self {
        self.help = help.to_string();
        self
    }

    /// Finishes the message.
    pub fn error(self) -> Error {
        Error::Input(Box::new(self))
    }

    /// Finishes the message as an `Err`.
    pub fn err<T>(self) -> Result<T> {
        Err(self.error())
    }
}

impl From<Complaint> for Error {
    fn from(complaint: Complaint) -> Self {
        complaint.error()
    }
}

impl Error {
    /// Starts a message about `place`: a command-line argument, a recipe key, a named thing.
    pub fn at(place: impl fmt::Display) -> Complaint {
        Complaint { place: place.to_string(), ..Complaint::default() }
    }

    /// Starts a message about the file or folder at `path`.
    pub fn file(path: impl AsRef<Path>) -> Complaint {
        Self::at(path.as_ref().display())
    }

    /// Wraps an operating-system error: `action` reads like "read", "create", "rename".
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// A device failure and what to do about it.
    pub fn device(what: impl Into<String>, help: impl Into<String>) -> Error {
        Error::Device { what: what.into(), help: help.into() }
    }

    /// A bug in this crate.
    pub fn internal(what: impl Into<String>) -> Error {
        Error::Internal(what.into())
    }

    /// All of `errors` as one: `Ok` if there is none, a single one as it is, else a numbered list.
    pub fn all(errors: Vec<Error>) -> Result<()> {
        let mut flat = Vec::new();
        for error in errors {
            match error {
                Error::Several(inner) => flat.extend(inner),
                other => flat.push(other),
            }
        }
        match flat.len() {
            0 => Ok(()),
            1 => flat.pop().map_or(Ok(()), Err),
            _ => Err(Error::Several(flat)),
        }
    }

    /// The same message, said of something inside `place`.
    pub fn inside(self, place: impl fmt::Display) -> Error {
        match self {
            Error::Several(errors) => {
                let place = place.to_string();
                Error::Several(errors.into_iter().map(|error| error.inside(&place)).collect())
            }
            Error::Input(mut complaint) => {
                complaint.place = format!("{place}: {}", complaint.place);
                Error::Input(complaint)
            }
            other => other,
        }
    }

    /// The candidate nearest to a misspelt `word`, for "did you mean" hints.
    pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
        candidates
            .into_iter()
            .map(|c| (strsim::damerau_levenshtein(word, c), c))
            .filter(|(distance, c)| *distance <= 2.max(c.len() / 3))
            .min()
            .map(|(_, c)| c)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Input(c) => c.fmt(f),
            Error::Several(errors) => {
                write!(f, "{} problems:", errors.len())?;
                (1..).zip(errors).try_for_each(|(number, error)| write!(f, "\n  {number}. {error}"))
            }
            Error::Io { action, path, source } => {
                write!(f, "cannot {action} {}: {source}", path.display())?;
                match remedy(source.kind()) {
                    Some(help) => write!(f, "; {help}"),
                    None => Ok(()),
                }
            }
            Error::Device { what, help } => write!(f, "device: {what}; {help}"),
            Error::NotFinite { what, step, help } => write!(f, "{what} is not finite at step {step}; {help}"),
            Error::Cancelled => write!(f, "cancelled"),
            Error::Internal(what) => write!(f, "internal error: {what} (please report this)"),
        }
    }
}

/// What to do about the system's commonest refusals.
fn remedy(kind: std::io::ErrorKind) -> Option<&'static str> {
    use std::io::ErrorKind as Kind;
    match kind {
        Kind::StorageFull | Kind::QuotaExceeded => Some("free some space and run the same command again: it resumes"),
        Kind::FileTooLarge => Some("raise the limit on file sizes, or write to another file system"),
        Kind::NotFound => Some("check the path; a relative one begins at the working directory"),
        Kind::IsADirectory => Some("name a file inside it"),
        Kind::NotADirectory => Some("name a folder"),
        Kind::PermissionDenied => Some("ask for permission, or name another place"),
        Kind::ReadOnlyFilesystem => Some("write to another place"),
        _ => None,
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        for (word, text) in [("", &self.field), ("expected ", &self.expected), ("found ", &self.found)] {
            if !text.is_empty() {
                write!(f, ": {word}{text}")?;
            }
        }
        if !self.help.is_empty() {
            write!(f, "; {}", self.help)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_place_field_expectation_finding_and_remedy() {
        let error = Error::file("model/config.json")
            .field("`rope_theta`")
            .expected("a number")
            .found("\"x\"")
            .help("fix it")
            .error();
        assert_eq!(error.to_string(), "model/config.json: `rope_theta`: expected a number: found \"x\"; fix it");
    }

    #[test]
    fn several_problems_are_one_numbered_list() {
        let problem = |field: &str| Error::at("r.yaml").field(field).expected("a number").found("none").error();
        assert!(Error::all(Vec::new()).is_ok());
        let one = Error::all(vec![problem("a")]).unwrap_err().to_string();
        assert_eq!(one, "r.yaml: a: expected a number: found none");
        let two = Error::all(vec![problem("a"), problem("b")]).unwrap_err();
        let three = Error::all(vec![two, problem("c")]).unwrap_err().to_string();
        let lines = ["a", "b", "c"].map(|field| format!(". r.yaml: {field}: expected a number: found none"));
        let [a, b, c] = lines;
        assert_eq!(three, format!("3 problems:\n  1{a}\n  2{b}\n  3{c}"));
    }

    #[test]
    fn the_nearest_key_is_suggested_only_when_it_is_near() {
        assert_eq!(Error::nearest("temprature", ["weight", "temperature"]), Some("temperature"));
        assert_eq!(Error::nearest("zebra", ["weight", "temperature"]), None);
    }
}
