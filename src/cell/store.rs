//! State on disk: one directory a cell below the state root.
//!
//! Owns the layout, the atomic writes and the lock. `<root>/<id>/` holds `state.json`,
//! `config.json` (the configuration as resolved), `exec.fifo` while the cell waits for `start`,
//! and `exec.status` beside it. The lock is flock(2) on the directory itself: it goes with the
//! last descriptor, so neither a dead caller nor (having closed its copy) the created child can
//! hold it.

use crate::cgroup::{CgroupState, Driver};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest id: it becomes a file name and part of others (`.tmp` suffixes).
const ID_MAX: usize = 200;

/// How long a command waits for another one on the same cell.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// What is known of a cell, as saved. Written before the first effect (then `pid` is 0), so that
/// a creation cut off anywhere can be undone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// Version of the configuration.
    pub oci_version: String,
    /// Name of the cell.
    pub id: String,
    /// Process id of its first process in the host's pid namespace; 0 before there is one.
    pub pid: i32,
    /// Start time of that process in clock ticks since boot (proc_pid_stat(5), field 22): tells
    /// it from a later one with the same pid.
    pub start_time: u64,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root.
    pub rootfs: PathBuf,
    /// RFC 3339 with nanoseconds.
    pub created: String,
    /// From the configuration.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// User id of the creator.
    pub owner: u32,
    /// Its groups: every path to undo.
    pub cgroup: CgroupState,
    /// Which manager made them: later calls need not say it again (containerd's clean-up doesn't).
    pub driver: Driver,
    /// The cell has its own pid namespace: all its processes die with the first.
    pub own_pid_ns: bool,
    /// Its processes keep the session keyring of whoever starts them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_new_keyring: bool,
    /// Directories of this cell alone, removed with it (its writable layer).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<PathBuf>,
    /// resctrl directories made for this cell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resctrl: Vec<PathBuf>,
    /// It was paused before it was started. `start` reads the state anyway; looking at the group
    /// would cost it more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused_created: bool,
}

/// The directory that holds all cells.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// A store below `root`; nothing is made yet.
    pub fn new(root: PathBuf) -> Self {
        Store { root }
    }

    /// The state root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of one cell.
    pub fn dir(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// Makes the directory of a new cell (mode 0711, as runc) and locks it.
    pub fn create(&self, id: &str) -> Result<Lock> {
        check_id(id)?;
        let dir = self.dir(id);
        let make = || fs::DirBuilder::new().mode(0o711).create(&dir);
        let made = match make() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.root)
                .and_then(|()| make()),
            other => other,
        };
        match made {
            Ok(()) => self.lock(id),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(self.exists(id)),
            Err(e) => Err(Error::step("create", dir.display().to_string(), e)),
        }
    }

    /// The error for an id that is taken.
    pub fn exists(&self, id: &str) -> Error {
        Error::msg(format!(
            "container with given ID already exists: {id} (state in {})",
            self.dir(id).display()
        ))
    }

    /// Locks an existing cell against other commands.
    pub fn lock(&self, id: &str) -> Result<Lock> {
        check_id(id)?;
        let dir = self.dir(id);
        let file = match File::open(&dir) {
            Ok(f) => f,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(not_found(id)),
            Err(e) => return Err(Error::step("open", dir.display().to_string(), e)),
        };
        let end = Instant::now() + LOCK_WAIT;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(fs::TryLockError::WouldBlock) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(Error::msg(format!(
                        "cell {id}: another command has held its lock for {} s",
                        LOCK_WAIT.as_secs()
                    )));
                }
                Err(fs::TryLockError::Error(e)) => {
                    return Err(Error::step("lock", dir.display().to_string(), e));
                }
            }
        }
        Ok(Lock { file, dir })
    }

    /// Another command holds the lock of this cell now.
    pub fn is_locked(&self, id: &str) -> bool {
        File::open(self.dir(id))
            .is_ok_and(|f| matches!(f.try_lock(), Err(fs::TryLockError::WouldBlock)))
    }

    /// Reads the state of a cell.
    pub fn load(&self, id: &str) -> Result<Saved> {
        check_id(id)?;
        let path = self.dir(id).join("state.json");
        match fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json)
                .map_err(|e| Error::step("read", path.display().to_string(), io::Error::other(e))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(not_found(id)),
            Err(e) => Err(Error::step("read", path.display().to_string(), e)),
        }
    }

    /// The names of all cells, sorted; none when the root doesn't exist.
    pub fn ids(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(e) => e,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::step("read", self.root.display().to_string(), e)),
        };
        let mut ids: Vec<String> = entries
            .flatten()
            .filter(|e| e.path().join("state.json").exists())
            .filter_map(|e| e.file_name().into_string().ok())
            .collect();
        ids.sort();
        Ok(ids)
    }
}

fn not_found(id: &str) -> Error {
    // The text that callers match for delete and kill.
    Error::msg(format!("container {id:?} does not exist"))
}

/// Letters, digits and `_+-.`, as runc; neither `.` nor `..`.
pub fn check_id(id: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id == "." || id == ".." || !id.chars().all(fine) || id.len() > ID_MAX {
        return Err(Error::msg(format!(
            "invalid container ID {id:?}: use up to {ID_MAX} letters, digits and _ + - ."
        )));
    }
    Ok(())
}

/// A locked cell directory. Dropping it unlocks.
#[derive(Debug)]
pub struct Lock {
    file: File,
    dir: PathBuf,
}

impl Lock {
    /// The cell's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The lock's descriptor, for the child to close.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes `state.json` atomically.
    pub fn save(&self, state: &Saved) -> Result<()> {
        let json = serde_json::to_vec(state)
            .map_err(|e| Error::step("encode", "state.json", io::Error::other(e)))?;
        self.write("state.json", &json)
    }

    /// Writes one file of the directory atomically, mode 0600.
    pub fn write(&self, name: &str, data: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        let tmp = self.dir.join(format!(".{name}.tmp"));
        let put = || -> io::Result<()> {
            let mut f = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&tmp)?;
            f.write_all(data)?;
            fs::rename(&tmp, &path)
        };
        put().map_err(|e| Error::step("write", path.display().to_string(), e))
    }

    /// Removes the directory with everything in it.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::step("remove", self.dir.display().to_string(), e))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_file_names_and_nothing_more() {
        for good in ["a", "a.b", "A_9-+", "...", "0"] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        let long = "x".repeat(ID_MAX + 1);
        for bad in ["", ".", "..", "a/b", "a b", "é", "a\0", long.as_str()] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_second_cell_of_the_same_name_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path().join("deep/root"));
        let lock = store.create("a").unwrap();
        assert!(store.create("a").is_err());
        assert!(store.load("a").is_err());
        lock.remove().unwrap();
        assert!(store.create("a").is_ok());
    }
}
