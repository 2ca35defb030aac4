//! The text of a CDI file → [`CdiSpec`]: bounds, both notations, field names in errors.
//!
//! The folders belong to the administrator, but vendors' programs write into them: no input may take
//! the process down or fill its memory.

use std::cell::Cell;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::spec::CdiSpec;
use super::validate::validate;
use crate::{Error, Result};

/// Largest file that is read, in bytes. `nvidia-ctk cdi generate` on eight GPUs writes under 100 KiB; a
/// parsed YAML document takes up to 60 times its text.
pub const MAX_SIZE: u64 = 1 << 20;

/// How much the aliases of a YAML document may make of it, in bytes of scalars and a few per value.
const MAX_EXPANDED: usize = 4 << 20;

/// Counted for each value beside its text.
const PER_VALUE: usize = 32;

/// Most opening brackets and braces in a YAML file. The parser's work grows with their number times their
/// depth, and it looks at the whole document before its own bound on depth (128) counts.
const MAX_BRACKETS: usize = 10_000;

/// Most directives (`%YAML`, `%TAG`) of a YAML file; the parser compares each with all before it.
const MAX_DIRECTIVES: usize = 8;

/// How a CDI file is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// `.json`
    Json,
    /// `.yaml`
    Yaml,
}

impl Format {
    /// By the end of a file's name. `None`: not a CDI file.
    pub fn of(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()? {
            "json" => Some(Format::Json),
            "yaml" => Some(Format::Yaml),
            _ => None,
        }
    }
}

/// Reads and checks one file.
///
/// # Errors
/// The file can't be read, isn't a regular file, is larger than [`MAX_SIZE`], or as [`parse`]. The
/// message names the file.
pub fn read(path: &Path, format: Format) -> Result<CdiSpec> {
    let fail = |e: std::io::Error| Error::step("read", path.display().to_string(), e);
    // O_NONBLOCK: a FIFO of that name must not hang the runtime. It has no effect on files.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    let refuse = |why: String| Error::msg(format!("{}: {why}", path.display()));
    if !meta.is_file() {
        return Err(refuse("not a regular file".to_owned()));
    }
    let mut text = Vec::new();
    // The file may grow meanwhile: the bound holds for what is read.
    (&mut file)
        .take(MAX_SIZE + 1)
        .read_to_end(&mut text)
        .map_err(fail)?;
    if text.len() as u64 > MAX_SIZE {
        return Err(refuse(too_large()));
    }
    parse(&text, format).map_err(refuse)
}

fn too_large() -> String {
    format!("larger than the {} MiB that are read", MAX_SIZE >> 20)
}

/// Parses and checks the text of a file.
///
/// # Errors
/// What is wrong, with the field where there is one: not JSON or YAML, an unknown field, a field given
/// twice, a value of the wrong type, a broken rule ([`validate`]), or a version below what is used.
pub fn parse(text: &[u8], format: Format) -> Result<CdiSpec, String> {
    if text.len() as u64 > MAX_SIZE {
        return Err(too_large());
    }
    let spec = match format {
        Format::Json => json(text)?,
        Format::Yaml => yaml(text)?,
    };
    validate(&spec)?;
    Ok(spec)
}

fn json(text: &[u8]) -> Result<CdiSpec, String> {
    let from = &mut serde_json::Deserializer::from_slice(text);
    let spec = serde_path_to_error::deserialize(&mut *from).map_err(|e| placed(&e))?;
    from.end().map_err(|e| e.to_string())?;
    Ok(spec)
}

fn yaml(text: &[u8]) -> Result<CdiSpec, String> {
    if text.iter().filter(|b| matches!(b, b'[' | b'{')).count() > MAX_BRACKETS {
        return Err(format!("more than {MAX_BRACKETS} brackets and braces"));
    }
    // The line ends of YAML 1.1: beside LF and CR, the last bytes of NEL, LS and PS.
    let lines = text.split(|b| matches!(b, b'\n' | b'\r' | 0x85 | 0xa8 | 0xa9));
    if lines.filter(|l| l.starts_with(b"%")).count() > MAX_DIRECTIVES {
        return Err(format!("more than {MAX_DIRECTIVES} directives"));
    }
    // An alias repeats what its anchor names, as often as it stands there. The parser bounds how often,
    // not how much: that is counted first, in a pass that keeps nothing. No anchor, no alias.
    if text.contains(&b'&') {
        let left = Cell::new(MAX_EXPANDED);
        Budget(&left)
            .deserialize(yaml_serde::Deserializer::from_slice(text))
            .map_err(|e| printable(&e.to_string()))?;
    }
    serde_path_to_error::deserialize(yaml_serde::Deserializer::from_slice(text))
        .map_err(|e| placed(&e))
}

/// A parser's error with the field, unless its message says it already.
fn placed<E: de::Error>(e: &serde_path_to_error::Error<E>) -> String {
    let (at, why) = (e.path().to_string(), e.inner().to_string());
    let text = if at == "." || why.starts_with(&at) {
        why
    } else {
        format!("{at}: {why}")
    };
    printable(&text)
}

/// A message holds parts of the file: no control characters, bounded.
fn printable(text: &str) -> String {
    const MOST: usize = 400;
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut out: String = text.chars().take(MOST).map(clean).collect();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

/// Walks a document and takes the size of each value from what is left.
#[derive(Clone, Copy)]
struct Budget<'a>(&'a Cell<usize>);

impl Budget<'_> {
    fn take<E: de::Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(bytes.saturating_add(PER_VALUE));
        self.0.set(left.ok_or_else(|| {
            E::custom(format!(
                "aliases make it larger than {} MiB",
                MAX_EXPANDED >> 20
            ))
        })?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Budget<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Budget<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of a CDI file")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        self.take(0)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        self.take(0)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        self.take(0)
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<(), E> {
        self.take(0)
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<(), E> {
        self.take(0)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        self.take(0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        self.take(text.len())
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.take(0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.take(0)?;
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.take(0)?;
        while map.next_key_seed(self)?.is_some() {
            map.next_value_seed(self)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
