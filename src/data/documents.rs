//! Datasets on disk, read one document at a time: `.txt` and `.jsonl` files and folders of them.
//!
//! Only the document in hand is in memory. A folder is walked in the byte order of its paths, so that the same folder
//! is the same corpus everywhere; it contributes its `.txt` and `.jsonl` files, nothing hidden and no linked folders.
//! Documents of nothing but white space hold nothing to learn and are passed over; a dataset of nothing else is an
//! error.

use std::collections::VecDeque;
use std::fmt;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use crate::data::rows::{self, Chat};
use crate::platform::fs;
use crate::{Error, Result};

/// How a `.txt` file becomes documents. JSON lines are one document each, whatever is chosen here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Split {
    /// The file is one document.
    #[default]
    File,
    /// Documents are parted by one or more blank lines, which belong to none of them.
    Paragraphs,
    /// Documents are parted by this text exactly (it may hold line breaks), which belongs to none of them.
    Marker(String),
}

/// Where a document was read: prints as `file:line`, the line being the one where it begins, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// What one document holds, before it is tokenised.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Plain text, all of it to be learned.
    Text(String),
    /// A conversation, of which the assistant's turns are to be learned.
    Chat(Chat),
    /// Two texts that follow one another with nothing between, of which the second is to be learned.
    PromptCompletion {
        /// What is given.
        prompt: String,
        /// What is to be learned.
        completion: String,
    },
    /// Tokens made elsewhere, and for each whether it is to be learned.
    Ids {
        /// Token ids.
        ids: Vec<u32>,
        /// One flag a token.
        loss: Vec<bool>,
    },
}

impl Content {
    fn is_blank(&self) -> bool {
        match self {
            Content::Text(text) => text.trim().is_empty(),
            Content::PromptCompletion { prompt, completion } => {
                prompt.trim().is_empty() && completion.trim().is_empty()
            }
            Content::Chat(_) | Content::Ids { .. } => false,
        }
    }
}

/// One document and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Where it begins.
    pub place: Place,
    /// What it holds.
    pub content: Content,
    /// What its row says in the field that routes (see [`Documents::routed_by`]).
    pub route: Option<String>,
}

impl Source {
    /// Plain text, which has no fields and so no route.
    fn text(place: Place, text: String) -> Source {
        Source { place, content: Content::Text(text), route: None }
    }
}

/// The documents of a dataset, in order. The first error ends the iteration.
pub struct Documents {
    name: String,
    files: VecDeque<PathBuf>,
    split: Split,
    route_field: Option<String>,
    reader: Option<Reader>,
    found_any: bool,
    finished: bool,
}

/// Opens `paths`, each a `.txt` or `.jsonl` file or a folder of them.
///
/// Errors if a path is missing or of another kind, or if no file is found.
pub fn open<P: AsRef<Path>>(paths: &[P], split: Split) -> Result<Documents> {
    let name = paths.iter().map(|p| p.as_ref().display().to_string()).collect::<Vec<_>>().join(", ");
    if split == Split::Marker(String::new()) {
        return Error::at(name).field("document marker").expected("some text").found("none").err();
    }
    let mut files = VecDeque::new();
    for path in paths {
        collect(path.as_ref(), &mut files)?;
    }
    if files.is_empty() {
        return Error::at(name)
            .expected("at least one .txt or .jsonl file")
            .found("none")
            .help("name files of these kinds or a folder that holds some")
            .err();
    }
    Ok(Documents { name, files, split, route_field: None, reader: None, found_any: false, finished: false })
}

/// Reads one dataset from memory or any stream: `name` stands for the file in messages, and its extension chooses
/// the format just as a file's does.
pub fn read(name: &str, bytes: impl BufRead + Send + 'static, split: Split) -> Result<Documents> {
    let mut documents = Documents {
        name: name.to_string(),
        files: VecDeque::new(),
        split,
        route_field: None,
        reader: None,
        found_any: false,
        finished: false,
    };
    documents.reader = Some(Reader::new(PathBuf::from(name), Box::new(bytes), &documents.split)?);
    Ok(documents)
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|e| e.to_str()).unwrap_or("")
}

fn wrong_kind(path: &Path) -> Error {
    Error::file(path)
        .expected("a .txt or .jsonl file")
        .found(format!("the extension {:?}", extension(path)))
        .help("rename the file, or convert it to JSON lines with a `text` field")
        .error()
}

/// Adds a named file, or the files of a folder in the byte order of their paths.
fn collect(path: &Path, files: &mut VecDeque<PathBuf>) -> Result<()> {
    let folder = fs::try_is_dir(path);
    if folder.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        let complaint = Error::file(path).expected("a .txt or .jsonl file, or a folder of them");
        let help = "check the path; a relative one begins at the working directory";
        return complaint.found("nothing of this name").help(help).err();
    }
    if !folder.map_err(Error::io("read", path))? {
        if !["txt", "jsonl"].contains(&extension(path)) {
            return Err(wrong_kind(path));
        }
        files.push_back(path.to_path_buf());
        return Ok(());
    }
    let mut entries = fs::list(path).map_err(Error::io("list", path))?;
    entries.sort();
    for entry in entries {
        let hidden = entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        // A linked folder may lead back up to this one.
        let folder = fs::is_own_dir(&entry).map_err(Error::io("read", &entry))?;
        let file = !folder && fs::is_file(&entry) && ["txt", "jsonl"].contains(&extension(&entry));
        if !hidden && (folder || file) {
            collect(&entry, files)?;
        }
    }
    Ok(())
}

impl Documents {
    /// Also reads each JSON line's field `field` as the document's route.
    ///
    /// Where such a field holds anything but a text, the iteration ends with an error.
    pub fn routed_by(mut self, field: impl Into<String>) -> Documents {
        self.route_field = Some(field.into());
        self
    }

    fn advance(&mut self) -> Result<Option<Source>> {
        loop {
            if self.reader.is_none() {
                let Some(path) = self.files.pop_front() else { break };
                let text = fs::open_text(&path).map_err(Error::io("read", &path))?;
                self.reader = Some(Reader::new(path, Box::new(text), &self.split)?);
            }
            let route_field = self.route_field.as_deref();
            while let Some(source) = self.reader.as_mut().map_or(Ok(None), |reader| reader.next(route_field))? {
                if !source.content.is_blank() {
                    self.found_any = true;
                    return Ok(Some(source));
                }
            }
            self.reader = None;
        }
        if self.found_any {
            return Ok(None);
        }
        Error::at(&self.name)
            .expected("at least one document that is not blank")
            .found("none")
            .help("the dataset is empty: check the path and the files' contents")
            .err()
    }
}

impl Iterator for Documents {
    type Item = Result<Source>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let next = self.advance().transpose();
        self.finished = !matches!(next, Some(Ok(_)));
        next
    }
}

enum Kind {
    Jsonl,
    Text(Split),
}

/// One open file.
struct Reader {
    path: PathBuf,
    bytes: Box<dyn BufRead + Send>,
    kind: Kind,
    /// The number of lines read.
    line: u64,
    /// Text read but not yet handed out; what lies before `start` has been.
    pending: String,
    start: usize,
    start_line: u64,
}

impl Reader {
    fn new(path: PathBuf, bytes: Box<dyn BufRead + Send>, split: &Split) -> Result<Reader> {
        let kind = match extension(&path) {
            "jsonl" => Kind::Jsonl,
            "txt" => Kind::Text(split.clone()),
            _ => return Err(wrong_kind(&path)),
        };
        Ok(Reader { path, bytes, kind, line: 0, pending: String::new(), start: 0, start_line: 1 })
    }

    fn place(&self, line: u64) -> Place {
        Place { file: self.path.clone(), line }
    }

    fn next(&mut self, route_field: Option<&str>) -> Result<Option<Source>> {
        match &self.kind {
            Kind::Jsonl => self.next_row(route_field),
            Kind::Text(Split::File) => self.next_file(),
            Kind::Text(Split::Paragraphs) => self.next_paragraph(),
            Kind::Text(Split::Marker(marker)) => {
                let marker = marker.clone();
                self.next_marked(&marker)
            }
        }
    }

    /// Appends the next line, with its line break, to `pending`; false at the end of the file.
    fn read_line(&mut self) -> Result<bool> {
        let mut line = Vec::new();
        if self.bytes.read_until(b'\n', &mut line).map_err(Error::io("read", &self.path))? == 0 {
            return Ok(false);
        }
        self.line += 1;
        match std::str::from_utf8(&line) {
            // A byte-order mark is no part of the text.
            Ok(text) if self.line == 1 => self.pending.push_str(text.strip_prefix('\u{feff}').unwrap_or(text)),
            Ok(text) => self.pending.push_str(text),
            Err(error) => {
                return Error::at(self.place(self.line))
                    .expected("UTF-8 text")
                    .found(format!("an invalid sequence at byte {} of the line", error.valid_up_to() + 1))
                    .help("convert the file to UTF-8")
                    .err();
            }
        }
        Ok(true)
    }

    fn next_row(&mut self, route_field: Option<&str>) -> Result<Option<Source>> {
        loop {
            self.pending.clear();
            if !self.read_line()? {
                return Ok(None);
            }
            if !self.pending.trim().is_empty() {
                let place = self.place(self.line);
                let (content, route) = rows::parse_routed(&self.pending, route_field, &place)?;
                return Ok(Some(Source { place, content, route }));
            }
        }
    }

    fn next_file(&mut self) -> Result<Option<Source>> {
        if self.line > 0 {
            return Ok(None);
        }
        while self.read_line()? {}
        let text = std::mem::take(&mut self.pending);
        Ok((self.line > 0).then(|| Source::text(self.place(1), text)))
    }

    fn next_paragraph(&mut self) -> Result<Option<Source>> {
        let mut first_line = 0;
        self.pending.clear();
        loop {
            let length = self.pending.len();
            let more = self.read_line()?;
            if !self.pending[length..].trim().is_empty() {
                if length == 0 {
                    first_line = self.line;
                }
                continue;
            }
            self.pending.truncate(length);
            if length > 0 {
                let text = self.pending.trim_end_matches(['\r', '\n']).to_string();
                return Ok(Some(Source::text(self.place(first_line), text)));
            }
            if !more {
                return Ok(None);
            }
        }
    }

    fn next_marked(&mut self, marker: &str) -> Result<Option<Source>> {
        let mut searched = self.start;
        loop {
            if let Some(at) = self.pending[searched..].find(marker) {
                let end = searched + at;
                return Ok(Some(self.take_marked(end, end + marker.len())));
            }
            // A marker may straddle the lines read so far and the next one.
            let straddle = self.pending.len().saturating_sub(marker.len() - 1).max(self.start);
            searched = (self.start..=straddle).rev().find(|&i| self.pending.is_char_boundary(i)).unwrap_or(self.start);
            self.pending.drain(..self.start);
            searched -= self.start;
            self.start = 0;
            if !self.read_line()? {
                let end = self.pending.len();
                return Ok((end > 0).then(|| self.take_marked(end, end)));
            }
        }
    }

    /// Hands out `pending[start..end]` and goes on at `resume`.
    fn take_marked(&mut self, end: usize, resume: usize) -> Source {
        let text = self.pending[self.start..end].to_string();
        let place = self.place(self.start_line);
        self.start_line += self.pending[self.start..resume].bytes().filter(|&b| b == b'\n').count() as u64;
        self.start = resume;
        Source::text(place, text)
    }
}
