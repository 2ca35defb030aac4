//! The fake driver of driver.rs in a temporary folder, as the tests use it.
#![allow(dead_code)] // each test program uses some of it

mod driver;

use std::ops::Deref;

use gpucell::nvidia::capabilities::Capabilities;
use gpucell::nvidia::files::Place;
use gpucell::nvidia::inventory::Host;
use gpucell::spec::edit::ContainerEdits;
use tempfile::TempDir;

#[allow(unused_imports)] // as above
pub use driver::*;

/// A host with GPUs. Dropping it removes everything.
pub struct Fake {
    tree: Tree,
    _dir: TempDir,
}

impl Deref for Fake {
    type Target = Tree;

    fn deref(&self) -> &Tree {
        &self.tree
    }
}

impl Fake {
    /// [`Tree::lay`] in a folder of its own.
    pub fn new(gpus: u32) -> Fake {
        let dir = tempfile::Builder::new()
            .prefix("gpucell-driver-")
            .tempdir()
            .expect("a temporary folder");
        let tree = Tree::lay(dir.path().to_owned(), gpus);
        Fake { tree, _dir: dir }
    }

    pub fn host(&self) -> Host {
        Host {
            driver_root: self.root(),
            proc: self.path().join("proc"),
            dev: self.path().join("dev"),
            sys: self.path().join("sys"),
        }
    }

    pub fn bus(index: u32) -> String {
        Tree::bus(index)
    }

    pub fn uuid(index: u32) -> String {
        Tree::uuid(index)
    }
}

/// A new-format ld.so.cache (glibc, dl-cache.h) with these (name, path), all of libc6 and this machine.
pub fn ld_cache(entries: &[(&str, &str)]) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    const FLAGS: u32 = 0x0303;
    #[cfg(target_arch = "aarch64")]
    const FLAGS: u32 = 0x0a03;
    let mut strings = Vec::new();
    let mut table = Vec::new();
    let base = 48 + 24 * entries.len();
    for (name, path) in entries {
        table.extend(FLAGS.to_le_bytes());
        for text in [name, path] {
            table.extend(((base + strings.len()) as u32).to_le_bytes());
            strings.extend(text.as_bytes());
            strings.push(0);
        }
        table.extend([0; 12]);
    }
    let mut out = b"glibc-ld.so.cache1.1".to_vec();
    out.extend((entries.len() as u32).to_le_bytes());
    out.extend((strings.len() as u32).to_le_bytes());
    out.push(2); // little-endian
    out.resize(48, 0);
    out.extend(table);
    out.extend(strings);
    out
}

/// Where an image that isn't Debian's has libraries.
pub fn image() -> Place {
    Place::Image {
        lib_dir: "/usr/lib64".into(),
        lib32_dir: Some("/usr/lib".into()),
    }
}

pub fn caps(text: &str) -> Capabilities {
    Capabilities::parse(text).unwrap()
}

/// The links that edits ask for, as `TARGET::LINK`.
pub fn links(edits: &ContainerEdits) -> Vec<&str> {
    let hooks = edits.hooks.iter();
    let words = hooks
        .filter(|h| h.args[1] == "create-symlinks")
        .flat_map(|h| &h.args);
    words
        .filter(|a| a.contains("::"))
        .map(|a| a.as_str())
        .collect()
}
