//! What the people's commands share: where things are, names of cells, a cell's own folders, volumes.
//!
//! The engine's state of a cell is in `<root>/<id>`. Beside it a cell of these commands has up to two
//! folders of its own, which the engine removes with it: `<root>/.etc/<id>` for the files of /etc, and
//! `<data>/cells/<id>` for its log and its writable layer.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::cell::Store;
use crate::cgroup::Driver;
use crate::cli::Globals;
use crate::cli::flags::{EtcFile, Flags, Live};
use crate::{Error, Result, image};

/// Where cells and their data are: from the global flags.
#[derive(Debug, Clone)]
pub struct Setting {
    /// `--root`.
    pub cells: Store,
    /// Images, writable layers, logs, volumes (`--store`).
    pub data: PathBuf,
    /// `--cgroup-manager`.
    pub driver: Driver,
}

impl Setting {
    /// From the global flags, and `--store` or this user's default.
    pub fn new(globals: &Globals, store: Option<PathBuf>) -> Self {
        Setting {
            cells: globals.store(),
            data: store.unwrap_or_else(image::store::Store::default_path),
            driver: globals.driver(),
        }
    }

    /// Folder of a cell's log and writable layer.
    pub fn cell_data(&self, id: &str) -> PathBuf {
        self.data.join("cells").join(id)
    }

    /// Folder of a cell's files of /etc.
    pub fn cell_etc(&self, id: &str) -> PathBuf {
        self.cells.root().join(".etc").join(id)
    }

    /// The host, as the flags ask about it.
    pub fn host(&self, rootfs: &Path) -> Live {
        Live {
            rootfs: rootfs.to_owned(),
            cells: Some(self.cells.clone()),
            volumes: self.data.join("volumes"),
        }
    }
}

/// The cell's name: the flag's, else one made from a folder's or image's name, with `suffix` to keep
/// two runs apart.
///
/// # Errors
/// The flag's is no name.
pub fn cell_name(flags: &Flags, from: &str, suffix: Option<u32>) -> Result<String> {
    if let Some(name) = &flags.name {
        crate::cell::store::check_id(name)?;
        return Ok(name.clone());
    }
    let last = from
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(from);
    let last = last.split(['@', ':']).next().unwrap_or(last);
    let mut name: String = last
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "_.-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .take(40)
        .collect();
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        name.insert_str(0, "cell");
    }
    Ok(match suffix {
        Some(n) => format!("{name}-{:06x}", n & 0xff_ffff),
        None => name,
    })
}

/// A number that differs from run to run. Not for secrets.
pub fn random() -> u32 {
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    (hasher.finish() >> 16) as u32
}

/// Folders made for a cell. What is in it is removed when dropped, unless the engine took it over.
#[derive(Debug, Default)]
pub struct Folders {
    made: Vec<PathBuf>,
}

impl Folders {
    /// Makes a folder that must not be there yet.
    ///
    /// # Errors
    /// The name is taken: by a running cell, or by what one left after a restart of the machine.
    pub fn make(&mut self, set: &Setting, id: &str, path: PathBuf, mode: u32) -> Result<PathBuf> {
        let show = path.display().to_string();
        let failed = |e| Error::step("make", show.clone(), e);
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(parent)
                .map_err(failed)?;
        }
        let make = || fs::DirBuilder::new().mode(mode).create(&path);
        match make() {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                if set.cells.dir(id).exists() {
                    return Err(Error::msg(format!(
                        "the name {id:?} is already in use by a cell; remove that cell \
                         (gpucell delete {id}) or take another name"
                    )));
                }
                left_over(&path, id)?;
                make().map_err(failed)?;
            }
            other => other.map_err(failed)?,
        }
        self.made.push(path.clone());
        Ok(path)
    }

    /// All of them, for the engine to remove with the cell.
    pub fn list(&self) -> Vec<PathBuf> {
        self.made.clone()
    }

    /// The cell is there: the folders are the engine's now.
    pub fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        for path in &self.made {
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// A folder without a cell: of a run that was killed, or from before a restart, which empties the
/// state root. It is removed, but never a writable layer with something in it.
fn left_over(path: &Path, id: &str) -> Result<()> {
    let layer = path.join("upper");
    if fs::read_dir(&layer).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::msg(format!(
            "a cell named {id:?} that is gone left its writable layer in {0}; take another name, or \
             remove it: rm -r {0}",
            path.display()
        )));
    }
    fs::remove_dir_all(path)
        .map_err(|e| Error::step("remove left-over", path.display().to_string(), e))
}

/// Writes the files of /etc, world-readable as Docker's are.
///
/// # Errors
/// A failed write.
pub fn write_etc(dir: &Path, files: &[EtcFile]) -> Result<()> {
    for file in files {
        let path = dir.join(file.name);
        let write = || {
            let mut out = File::options()
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(&path)?;
            io::Write::write_all(&mut out, file.text.as_bytes())?;
            // Whatever the umask: a user of the cell must be able to read them.
            out.set_permissions(fs::Permissions::from_mode(0o644))
        };
        write().map_err(|e| Error::step("write", path.display().to_string(), e))?;
    }
    Ok(())
}

/// How a bundle is held while cells use it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hold {
    /// Others may use it too: its root isn't written to.
    Shared,
    /// Only this cell.
    Alone,
}

/// Locks a bundle (flock(2) on its folder, the lock that `gpucell pull` takes too). The lock goes with
/// the descriptor.
///
/// # Errors
/// It is in use.
pub fn hold_bundle(bundle: &Path, how: Hold) -> Result<File> {
    let show = bundle.display().to_string();
    let folder = File::open(bundle).map_err(|e| Error::step("open bundle", show.clone(), e))?;
    let locked = match how {
        Hold::Shared => folder.try_lock_shared(),
        Hold::Alone => folder.try_lock(),
    };
    match locked {
        Ok(()) => Ok(folder),
        Err(fs::TryLockError::WouldBlock) => Err(Error::msg(match how {
            Hold::Alone => format!(
                "bundle {show} is in use by another cell or a pull; `gpucell run {show}` gives every \
                 cell a writable layer of its own, and --read-only lets cells share it"
            ),
            Hold::Shared => {
                format!("bundle {show} is in use by a cell that writes to it, or by a pull")
            }
        })),
        Err(fs::TryLockError::Error(e)) => Err(Error::step("lock bundle", show, e)),
    }
}

/// Makes the layer's two folders, the upper one with the mode and owner of the root below: what `/`
/// of an overlay shows is the upper folder's (kernel, filesystems/overlayfs.rst, "Upper and Lower").
///
/// # Errors
/// A failed call.
pub fn make_layer(dir: &Path, rootfs: &Path) -> Result<(PathBuf, PathBuf)> {
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    let make = || {
        let below = fs::metadata(rootfs)?;
        for path in [&upper, &work] {
            fs::DirBuilder::new().mode(0o700).create(path)?;
        }
        std::os::unix::fs::chown(&upper, Some(below.uid()), Some(below.gid()))?;
        fs::set_permissions(&upper, fs::Permissions::from_mode(below.mode() & 0o7777))
    };
    make().map_err(|e| Error::step("make writable layer", dir.display().to_string(), e))?;
    Ok((upper, work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let name = |from: &str| cell_name(&Flags::default(), from, None).unwrap();
        for (from, want) in [
            ("bundles/miniconda/", "miniconda"),
            ("./x y/", "x-y"),
            ("docker.io/library/debian:bookworm@sha256:ab", "debian"),
            ("ghcr.io/a/b:1", "b"),
            ("/", "cell"),
            (".", "cell."),
            ("_x", "cell_x"),
        ] {
            assert_eq!(name(from), want, "{from}");
            crate::cell::store::check_id(&name(from)).unwrap();
        }
        let numbered = cell_name(&Flags::default(), "a/b", Some(0xabcd_ef01)).unwrap();
        assert_eq!(numbered, "b-cdef01");
        let flag = |name: &str| {
            let flags = Flags {
                name: Some(name.to_owned()),
                ..Flags::default()
            };
            cell_name(&flags, "x", Some(1))
        };
        assert_eq!(flag("mine").unwrap(), "mine");
        assert!(flag("a/b").is_err());
    }

    fn setting(dir: &Path) -> Setting {
        Setting {
            cells: Store::new(dir.join("root")),
            data: dir.join("data"),
            driver: Driver::default(),
        }
    }

    #[test]
    fn folders_go_unless_kept() {
        let dir = tempfile::tempdir().unwrap();
        let set = setting(dir.path());
        let path = set.cell_data("a");
        let mut folders = Folders::default();
        folders.make(&set, "a", path.clone(), 0o700).unwrap();
        assert!(path.is_dir());
        drop(folders);
        assert!(!path.exists());
        let mut folders = Folders::default();
        folders.make(&set, "a", path.clone(), 0o700).unwrap();
        assert_eq!(folders.list(), std::slice::from_ref(&path));
        folders.keep();
        assert!(path.is_dir());
    }

    #[test]
    fn left_overs_go_but_not_a_layer_with_data() {
        let dir = tempfile::tempdir().unwrap();
        let set = setting(dir.path());
        let path = set.cell_data("a");
        fs::create_dir_all(path.join("upper")).unwrap();
        let make = || {
            Folders::default()
                .make(&set, "a", path.clone(), 0o700)
                .map(drop)
        };
        make().unwrap();
        fs::create_dir_all(path.join("upper")).unwrap();
        fs::write(path.join("upper/data"), "x").unwrap();
        assert!(make().unwrap_err().to_string().contains("rm -r"));
        fs::create_dir_all(set.cells.dir("a")).unwrap();
        assert!(make().unwrap_err().to_string().contains("already in use"));
        assert!(path.join("upper/data").exists());
    }

    #[test]
    fn bundles_are_held() {
        let dir = tempfile::tempdir().unwrap();
        let alone = hold_bundle(dir.path(), Hold::Alone).unwrap();
        assert!(hold_bundle(dir.path(), Hold::Shared).is_err());
        drop(alone);
        let one = hold_bundle(dir.path(), Hold::Shared).unwrap();
        let two = hold_bundle(dir.path(), Hold::Shared).unwrap();
        let refused = hold_bundle(dir.path(), Hold::Alone)
            .unwrap_err()
            .to_string();
        assert!(refused.contains("gpucell run"), "{refused}");
        drop((one, two));
    }
}
