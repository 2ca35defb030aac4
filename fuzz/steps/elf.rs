//! What a library of an image goes through: its headers, its SONAME, CUDA's note. Shared by the fuzz
//! target and by tests/spec_gpu_corpus.rs, which replays the corpus.

use gpucell::nvidia::elf::{Compat, Elf};
use gpucell::nvidia::ldcache;
use std::fs::File;
use std::io::Write;

/// How far the bytes came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Not an ELF file.
    Nothing,
    /// Its headers were read.
    Headers,
    /// A library that a cache would list.
    Library,
    /// A note for forward compatibility.
    Note,
}

/// Runs every step as far as it goes.
pub fn run(data: &[u8]) -> Reached {
    let mut file = scratch();
    file.write_all(data).expect("a scratch file");
    let elf = Elf::read(&file).expect("a scratch file is readable");
    let note = Compat::read(&file).expect("a scratch file is readable");
    if let Some(name) = elf.as_ref().and_then(|e| e.soname.as_deref()) {
        assert!(!name.is_empty() && name.len() <= 255 && !name.contains(['/', '\0']));
    }
    match (elf, note) {
        (None, _) => Reached::Nothing,
        (Some(_), Some(_)) => Reached::Note,
        (Some(elf), None) if ldcache::flags(&elf).is_some() => Reached::Library,
        (Some(_), None) => Reached::Headers,
    }
}

/// A file without a name: the reader takes nothing else.
fn scratch() -> File {
    let name = std::env::temp_dir().join(format!("gpucell-fuzz-{}", std::process::id()));
    let mut options = File::options();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&name);
    let file = file.expect("a scratch file");
    std::fs::remove_file(name).expect("its name");
    file
}
