//! Reads `config.json` once into [`oci_spec::runtime::Spec`].
//!
//! Owns: the size and depth bounds, the version check, the wording of parse errors (JSON path,
//! what was expected, what was found, line and column), and the places where oci-spec's types
//! are stricter than the runtime specification. It never looks at the host and never decides
//! whether a well-formed configuration makes sense (that is [`super::check`]).
//!
//! Two speeds: a file that fits oci-spec's types as it stands is parsed once and nothing else is
//! done. Only when that fails is the text parsed again, into a tree, in which what runtime-spec
//! 1.3 and Go's encoder allow is put into the form that oci-spec accepts (see [`tolerate`]).

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use oci_spec::runtime::{Process, Spec};

use super::tolerate;
use crate::{Error, Result};

/// Largest `config.json` that is read, in bytes. Docker's with a full seccomp profile is about
/// 30 KiB; the bound only keeps a hostile or mistaken file from filling the memory.
pub const MAX_SIZE: u64 = 16 << 20;

/// Oldest version of runtime-spec that is read.
pub(crate) const OLDEST_VERSION: &str = "1.0.0";

/// Newest minor version of runtime-spec 1.x whose properties are all carried out.
const NEWEST_MINOR: u64 = 3;

/// A configuration as read, before [`super::check::check`].
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub spec: Spec,
    /// What was tolerated, one line each, for the log (runtime-spec `config.md`, "Extensibility"
    /// and `process.capabilities`: unknown values warn, they don't fail).
    pub warnings: Vec<String>,
}

/// Reads and parses `bundle/config.json`.
///
/// # Errors
/// As [`read`] and [`parse`].
pub fn load(bundle: &Path) -> Result<Loaded> {
    parse(&read(bundle)?)
}

/// Reads the text of `bundle/config.json`.
///
/// # Errors
/// The file can't be read, is not a regular file or is larger than [`MAX_SIZE`].
pub fn read(bundle: &Path) -> Result<Vec<u8>> {
    read_file(&bundle.join("config.json"))
}

/// Reads a file of JSON text with the bounds of a configuration.
///
/// # Errors
/// As [`read`].
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    let fail = |e: io::Error| Error::step("read", path.display().to_string(), e);
    // O_NONBLOCK: a FIFO of that name must not hang the runtime. It has no effect on files.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    if !meta.is_file() {
        return Err(Error::msg(format!(
            "{} is not a regular file",
            path.display()
        )));
    }
    let mut json = Vec::new();
    if meta.len() <= MAX_SIZE {
        // One byte more than the size, so that one read sees the end of the file.
        json.reserve_exact(usize::try_from(meta.len()).unwrap_or(0) + 1);
        // The file may grow meanwhile: the bound holds for what is read.
        (&mut file)
            .take(MAX_SIZE + 1)
            .read_to_end(&mut json)
            .map_err(fail)?;
    }
    if meta.len() > MAX_SIZE || json.len() as u64 > MAX_SIZE {
        return Err(too_large());
    }
    Ok(json)
}

/// Parses the text of a `config.json`.
///
/// # Errors
/// [`Error::Config`] with the JSON path: not JSON, nested too deeply (128 levels), a value of the
/// wrong type, a missing required property, a property given twice, or a version other than 1.x.
pub fn parse(json: &[u8]) -> Result<Loaded> {
    if json.len() as u64 > MAX_SIZE {
        return Err(too_large());
    }
    // serde's derived types also read an array as a struct, member by member.
    if json.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[') {
        return Err(Error::config(TOP, "expected a JSON object, found an array"));
    }
    let mut warnings = Vec::new();
    let spec = match serde_json::from_slice::<Spec>(json) {
        Ok(spec) => spec,
        Err(_) => parse_slowly(json, &mut warnings)?,
    };
    check_version(spec.version(), &mut warnings)?;
    Ok(Loaded { spec, warnings })
}

/// Parses the text of one process, as `exec --process` takes it: config.json's `process` alone. Returns
/// warnings with it.
///
/// # Errors
/// As [`parse`]; JSON paths start with `process`.
pub fn parse_process(json: &[u8]) -> Result<(Process, Vec<String>)> {
    if json.len() as u64 > MAX_SIZE {
        return Err(too_large());
    }
    if json.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[') {
        return Err(Error::config(
            "process",
            "expected a JSON object, found an array",
        ));
    }
    if let Ok(process) = serde_json::from_slice(json) {
        return Ok((process, Vec::new()));
    }
    let bare = tolerate::tree(json).map_err(|e| Error::config("process", describe(&e)))?;
    // As a part of a configuration, so that the same is tolerated and paths are the same.
    let mut tree = serde_json::json!({ "ociVersion": OLDEST_VERSION, "process": bare });
    let mut warnings = Vec::new();
    tolerate::tolerate(&mut tree, &mut warnings);
    let spec = with_path(tree.to_string().as_bytes())
        .map_err(|e| Error::config(path_name(e.path()), unplaced(e.inner())))?;
    match spec.process() {
        Some(process) => Ok((process.clone(), warnings)),
        None => Err(Error::config("process", "expected a JSON object")),
    }
}

fn too_large() -> Error {
    Error::config(
        TOP,
        format!("larger than the {} MiB that are read", MAX_SIZE >> 20),
    )
}

/// How errors name the outermost value.
const TOP: &str = "(top level)";

/// The second attempt, after the first one failed for whatever reason.
fn parse_slowly(json: &[u8], warnings: &mut Vec<String>) -> Result<Spec> {
    let mut tree = tolerate::tree(json).map_err(|e| Error::config(TOP, describe(&e)))?;
    tolerate::tolerate(&mut tree, warnings);
    with_path(tree.to_string().as_bytes()).map_err(|e| {
        let at = path_name(e.path());
        // The tree's text has other lines. The file's own will do, if its first error is this one.
        let why = match with_path(json) {
            Err(t) if path_name(t.path()) == at => describe(t.inner()),
            _ => unplaced(e.inner()),
        };
        Error::config(at, why)
    })
}

/// Reads a text and keeps the path of its error. Trees are read by their text, too: the code for a `&Value` beside
/// this were another twentieth of the program.
fn with_path(
    json: &[u8],
) -> std::result::Result<Spec, serde_path_to_error::Error<serde_json::Error>> {
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(json))
}

fn path_name(path: &serde_path_to_error::Path) -> String {
    let name = path.to_string();
    if name == "." || name.is_empty() {
        TOP.into()
    } else {
        printable(&name)
    }
}

/// serde_json's message with its position, fit to be printed.
fn describe(e: &serde_json::Error) -> String {
    let text = e.to_string();
    printable(&text)
}

/// The same without the position.
fn unplaced(e: &serde_json::Error) -> String {
    let text = e.to_string();
    let place = format!(" at line {} column {}", e.line(), e.column());
    printable(text.strip_suffix(&place).unwrap_or(&text))
}

/// Escapes control characters (the text quotes the file, which may hold terminal escapes) and
/// cuts the middle out of very long messages.
fn printable(text: &str) -> String {
    const KEEP: usize = 200;
    let clean: Vec<char> = text
        .chars()
        .flat_map(|c| {
            let escaped: Box<dyn Iterator<Item = char>> = if c.is_control() {
                Box::new(c.escape_default())
            } else {
                Box::new(std::iter::once(c))
            };
            escaped
        })
        .collect();
    if clean.len() <= 2 * KEEP + 3 {
        return clean.into_iter().collect();
    }
    let (head, rest) = clean.split_at(KEEP);
    let tail = rest.split_at(rest.len() - KEEP).1;
    head.iter().chain(['…'].iter()).chain(tail).collect()
}

/// Accepts 1.x (runtime-spec `config.md`, "Specification version": SemVer, so that any 1.x is
/// readable), warns of a minor version newer than the one carried out.
fn check_version(version: &str, warnings: &mut Vec<String>) -> Result<()> {
    let refuse = |why: String| Err(Error::config("ociVersion", why));
    if version.is_empty() {
        return refuse("is required".into());
    }
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<Option<u64>> = core.split('.').map(|n| n.parse().ok()).collect();
    match numbers[..] {
        [Some(1), Some(minor), Some(_)] => {
            if minor > NEWEST_MINOR {
                warnings.push(format!(
                    "ociVersion {} is newer than 1.{NEWEST_MINOR}: what it adds is ignored",
                    printable(version)
                ));
            }
            Ok(())
        }
        [Some(_), Some(_), Some(_)] => refuse(format!(
            "{} is not supported, only 1.x is",
            printable(version)
        )),
        _ => refuse(format!(
            "expected a version such as 1.3.0, found {:?}",
            printable(version)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(json: &str) -> String {
        match parse(json.as_bytes()) {
            Ok(_) => panic!("accepted: {json}"),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn minimal_is_read_without_warnings() {
        let l = parse(br#"{"ociVersion":"1.0.2","root":{"path":"rootfs"}}"#).unwrap();
        assert!(l.warnings.is_empty());
        assert_eq!(l.spec.root().as_ref().unwrap().path(), Path::new("rootfs"));
    }

    #[test]
    fn errors_name_path_expectation_and_position() {
        let text = "{\"ociVersion\":\"1.0.2\",\n \"linux\":{\"resources\":{\"memory\":{\"limit\":\"4g\"}}}}";
        let m = message(text);
        assert!(m.contains("linux.resources.memory.limit"), "{m}");
        assert!(m.contains("expected i64"), "{m}");
        assert!(m.contains("\"4g\""), "{m}");
        assert!(m.contains("line 2 column"), "{m}");
        let m =
            message(r#"{"ociVersion":"1.0.2","mounts":[{"destination":"/a"},{"type":"bind"}]}"#);
        assert!(
            m.contains("mounts[1]") && m.contains("`destination`"),
            "{m}"
        );
    }

    #[test]
    fn errors_behind_a_tolerated_value_still_name_their_path() {
        let m = message(
            r#"{"ociVersion":"1.0.2","process":{"cwd":"/","capabilities":{"bounding":["CAP_NEW"]}},
                "linux":{"resources":{"pids":{"limit":"many"}}}}"#,
        );
        assert!(m.contains("linux.resources.pids.limit"), "{m}");
        assert!(m.contains("\"many\", expected i64"), "{m}");
        // Of the file, whose first error is another, none is known; the tree's is of no use.
        assert!(!m.contains(" line "), "{m}");
    }

    #[test]
    fn not_json_and_too_deep_are_errors() {
        assert!(message("{").contains("EOF"));
        assert!(message("[]").contains("expected a JSON object"));
        assert!(message("nonsense").contains("line 1"));
        let deep = format!("{{\"x\":{}", "[".repeat(100_000));
        assert!(message(&deep).contains("recursion limit"));
    }

    #[test]
    fn duplicate_properties_are_refused() {
        let m = message(r#"{"ociVersion":"1.0.2","hostname":"a","hostname":"b"}"#);
        assert!(m.contains("hostname") && m.contains("twice"), "{m}");
        // Also when it is in a part that oci-spec doesn't model.
        let m = message(
            r#"{"ociVersion":"1.0.2","process":{"cwd":"/","args":["a"],"args":["b"],
               "capabilities":{"bounding":["CAP_NEW"]}}}"#,
        );
        assert!(m.contains("args"), "{m}");
    }

    #[test]
    fn versions() {
        for ok in ["1.0.0", "1.0.2-dev", "1.3.0", "1.0.0-rc5+build.1"] {
            let l = parse(format!("{{\"ociVersion\":\"{ok}\"}}").as_bytes()).unwrap();
            assert!(l.warnings.is_empty(), "{ok}: {:?}", l.warnings);
        }
        let l = parse(br#"{"ociVersion":"1.9.0"}"#).unwrap();
        assert_eq!(l.warnings.len(), 1);
        for bad in ["", "2.0.0", "0.9.0", "1", "1.x.0", "1.0", "1.0.0.0"] {
            let m = message(&format!("{{\"ociVersion\":\"{bad}\"}}"));
            assert!(m.contains("ociVersion"), "{bad}: {m}");
        }
        assert!(message("{}").contains("ociVersion: is required"));
    }

    #[test]
    fn messages_hold_no_control_characters_and_are_bounded() {
        let name = "\\u001b[31m".repeat(1000);
        let m = message(&format!("{{\"ociVersion\":\"{name}\"}}"));
        assert!(!m.chars().any(char::is_control));
        assert!(m.chars().count() < 600);
    }

    #[test]
    fn load_reads_a_bundle_and_refuses_other_things() {
        let dir = tempfile::tempdir().unwrap();
        let e = load(dir.path()).unwrap_err();
        assert_eq!(e.errno(), Some(libc::ENOENT));
        let file = dir.path().join("config.json");
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(
            load(dir.path())
                .unwrap_err()
                .to_string()
                .contains("not a regular file")
        );
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, r#"{"ociVersion":"1.2.0"}"#).unwrap();
        assert_eq!(load(dir.path()).unwrap().spec.version(), "1.2.0");
        let big = std::fs::File::create(&file).unwrap();
        big.set_len(MAX_SIZE + 1).unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().contains("16 MiB"));
    }
}
