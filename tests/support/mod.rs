//! What the cell_* tests share: a bundle of one's own around the hello program, the runtime driven as a
//! user drives it, and what is read back.
//!
//! The hello program is made by `scripts/bundle hello`; it is made here when it is not there, which
//! needs rustc (the test machine has none: scripts/test makes it first).
#![allow(dead_code)] // each test program uses some of it

pub mod programs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;

use serde_json::Value;
use tempfile::TempDir;

/// The runtime under test.
pub const GPUCELL: &str = env!("CARGO_BIN_EXE_gpucell");

/// Is this machine pure cgroup v2? Else limits are on v1 (hybrid).
pub fn on_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The hello bundle's folder in the repository.
pub fn hello() -> PathBuf {
    static MADE: Once = Once::new();
    let repo = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bundle = repo.join("bundles/hello");
    MADE.call_once(|| {
        let age = |file: &str| fs::metadata(bundle.join(file)).and_then(|m| m.modified());
        let made = age("rootfs/.made-from").ok();
        if made.is_none() || age("hello.rs").ok() > made {
            let made = Command::new(repo.join("scripts/bundle"))
                .arg("hello")
                .status();
            assert!(
                made.is_ok_and(|s| s.success()),
                "scripts/bundle hello failed"
            );
        }
    });
    bundle
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Outcome {
    /// The value of a `name value` line that the hello program printed.
    pub fn value(&self, name: &str) -> &str {
        self.out
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '))
            .unwrap_or_else(|| panic!("no line '{name}' in {self:#?}"))
    }

    /// A numeric value.
    pub fn number(&self, name: &str) -> f64 {
        let text = self.value(name);
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is '{text}', no number"))
    }

    pub fn ok(self) -> Outcome {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }
}

/// A bundle of its own in a temporary folder, with a state folder beside it. Dropping it removes both;
/// the test is expected to have ended its cells.
pub struct Bundle {
    dir: TempDir,
    pub config: Value,
}

impl Bundle {
    pub fn new() -> Bundle {
        let dir = tempfile::Builder::new()
            .prefix("gpucell-test-")
            .tempdir()
            .expect("a temporary folder");
        let from = hello();
        let root = dir.path().join("bundle/rootfs");
        for sub in ["bin", "dev", "proc", "sys", "tmp", "etc", "mnt"] {
            fs::create_dir_all(root.join(sub)).expect("a folder of the root");
        }
        let from_root = from.join("rootfs");
        for program in ["bin/hello", "bin/true"] {
            programs::install(from_root.join(program), root.join(program));
        }
        for file in ["etc/passwd", "etc/group"] {
            fs::copy(from_root.join(file), root.join(file)).expect("a file of the root");
        }
        let text = fs::read(from.join("config.template.json")).expect("the template");
        let config = serde_json::from_slice(&text).expect("the template is JSON");
        let bundle = Bundle { dir, config };
        bundle.save();
        bundle
    }

    /// Changes config.json.
    pub fn edit(mut self, change: impl FnOnce(&mut Value)) -> Bundle {
        change(&mut self.config);
        self.save();
        self
    }

    fn save(&self) {
        let text = serde_json::to_vec_pretty(&self.config).expect("JSON");
        fs::write(self.path().join("config.json"), text).expect("config.json can be written");
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// Where the runtime keeps its state for this test.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// `gpucell --root STATE ARG...`
    pub fn gpucell(&self, args: &[&str]) -> Outcome {
        let mut command = Command::new(GPUCELL);
        command.arg("--root").arg(self.state()).args(args);
        outcome(&mut command)
    }

    /// `create`: a created cell keeps the streams open, so they are no pipes that would be read to
    /// their end.
    pub fn create(&self, runtime: &Path, id: &str) {
        let done = Command::new(runtime)
            .arg("--root")
            .arg(self.state())
            .args(["create", "--bundle"])
            .arg(self.path())
            .arg(id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .status()
            .expect("the runtime can be started");
        assert!(done.success(), "create {id}: {done}");
    }

    /// `gpucell exec BUNDLE/ FLAG... -- hello WORD...`
    pub fn exec(&self, flags: &[&str], words: &[&str]) -> Outcome {
        let bundle = format!("{}/", self.path().display());
        let mut args = vec!["exec", bundle.as_str()];
        args.extend(flags);
        args.extend(["--", "/bin/hello"]);
        args.extend(words);
        self.gpucell(&args)
    }
}

pub fn outcome(command: &mut Command) -> Outcome {
    let done = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let code = done.status.code().unwrap_or_else(|| {
        use std::os::unix::process::ExitStatusExt;
        128 + done.status.signal().unwrap_or(0)
    });
    Outcome {
        code,
        out: String::from_utf8_lossy(&done.stdout).into_owned(),
        err: String::from_utf8_lossy(&done.stderr).into_owned(),
    }
}
