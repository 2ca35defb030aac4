//! What the process JSON of `exec --process` goes through before anything is made. Shared by the fuzz target
//! and by tests/spec_corpus.rs, which replays the corpus.

use gpucell::spec::load;
use gpucell::spec::lower::exec::{Context, Source, lower};

/// How far the bytes came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// Not a process.
    Nothing,
    /// Read, but refused.
    Parsed,
    /// Ready to be executed in a cell.
    Done,
}

/// A cell that leaves much to the process, one in a user namespace with a filter, and one that has nothing.
const CELLS: [&str; 3] = [
    r#"{"ociVersion": "1.2.0", "root": {"path": "rootfs"},
        "process": {"user": {"uid": 1, "gid": 1, "umask": 18}, "cwd": "/", "args": ["a"],
            "capabilities": {"bounding": ["CAP_KILL"], "ambient": ["CAP_KILL"]},
            "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}], "oomScoreAdj": 1,
            "apparmorProfile": "x", "execCPUAffinity": {"initial": "0-1"}},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}}"#,
    r#"{"ociVersion": "1.2.0", "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["a"]},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "user"}],
            "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
            "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}}"#,
    r#"{"ociVersion": "1.2.0", "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": "mount"}]}}"#,
];

/// Runs every step as far as it goes; the furthest of the cells counts.
pub fn run(data: &[u8]) -> Reached {
    let Ok((process, _)) = load::parse_process(data) else {
        return Reached::Nothing;
    };
    let source = Source::Given(Box::new(process));
    let ctx = Context {
        id: "fuzz",
        no_new_keyring: false,
        groups: &[],
    };
    let mut reached = Reached::Parsed;
    for cell in CELLS {
        let cell = load::parse(cell.as_bytes()).expect("a cell").spec;
        let Ok((plan, _)) = lower(&cell, &source, &ctx) else {
            continue;
        };
        // What execve(2) is given.
        let p = &plan.process;
        assert!(!p.args.is_empty() && !p.candidates.is_empty());
        assert!(p.cwd.as_bytes().starts_with(b"/"));
        assert!(p.env.iter().all(|e| e.as_bytes().contains(&b'=')));
        reached = Reached::Done;
    }
    reached
}
