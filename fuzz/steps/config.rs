//! What a `config.json` goes through before any process exists. Shared by the fuzz target and by
//! tests/spec_corpus.rs, which replays the corpus.

use gpucell::process::seccomp::{self, MAX_INSNS};
use gpucell::spec::{check, load, lower};
use std::path::Path;

/// How far the bytes came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// Not a configuration.
    Nothing,
    /// Read, but refused by the checks.
    Parsed,
    /// Accepted by the checks, but its seccomp profile did not compile or it was not lowered.
    Checked,
    /// All steps passed.
    Done,
}

/// Runs every step as far as it goes.
pub fn run(data: &[u8]) -> Reached {
    let Ok(loaded) = load::parse(data) else {
        return Reached::Nothing;
    };
    // A profile is compiled even when the checks refuse the rest: it must not panic either.
    let profile = loaded
        .spec
        .linux()
        .as_ref()
        .and_then(|l| l.seccomp().as_ref());
    let compiled = profile.map(seccomp::compile);
    if let Some(Ok(program)) = &compiled {
        assert!(!program.insns.is_empty() && program.insns.len() <= MAX_INSNS);
        // The kernel refuses a program whose last instruction is not a `ret`.
        assert_eq!(program.insns.last().map(|i| i.code), Some(0x06));
    }
    if check::check(&loaded.spec).is_err() {
        return Reached::Parsed;
    }
    if matches!(compiled, Some(Err(_))) {
        return Reached::Checked;
    }
    let lowered = lower::lower(
        &loaded.spec,
        &lower::Context {
            id: "fuzz",
            rootfs: Path::new("/bundle/rootfs"),
            bundle: Path::new("/bundle"),
            no_pivot: false,
            no_new_keyring: false,
            bind_devices: false,
            overlay: None,
        },
    );
    match lowered {
        Ok(_) => Reached::Done,
        Err(_) => Reached::Checked,
    }
}
