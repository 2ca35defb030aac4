//! Programs that a test puts somewhere and then runs. They are written by another process: a child that this
//! one forks meanwhile, for a test in another thread, would hold the file open for writing until it
//! has become its own program, and running the file would be ETXTBSY (execve(2)).
#![allow(dead_code)] // each test program uses some of it

use std::fs;
use std::path::Path;
use std::process::Command;

/// A copy of the program `from`, which every user can run; `to` is a file or a folder.
pub fn install(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    let mut command = Command::new("install");
    command
        .args(["-m", "755"])
        .arg(from.as_ref())
        .arg(to.as_ref());
    let done = command.status().expect("install (coreutils)");
    assert!(done.success(), "{command:?}: {done}");
}

/// A program with these bytes at `path`.
pub fn write_program(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
    let draft = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(draft.path(), bytes).expect("the draft");
    install(draft.path(), path);
}
