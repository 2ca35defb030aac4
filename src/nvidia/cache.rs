//! Discovery kept between cells: the GPUs and the driver's files in one file of the state root.
//!
//! Owns the file, its key and the decision to believe it. The key holds whatever discovery depends on:
//! the boot, the text of the driver's version, the names of its GPUs, the search path, and identity and
//! times of every directory searched and of ld.so.cache. Device numbers, nodes, sockets and MIG devices
//! are never kept: they change at any time and are cheap to read.
//!
//! The cache is a help, never a need: what can't be read, isn't ours or doesn't fit is discovered anew,
//! and failing to write it is no error.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::files::{self, DriverFiles, Stamp, Stamps};
use super::inventory::{self, Gpu, Host, Inventory};
use crate::Result;

/// Name of the file below the state root.
const NAME: &str = "nvidia.cache";
/// Number of this format. Its values are in postcard's binary form: parsing text was most of what a warm
/// discovery cost.
const FORMAT: u32 = 2;
/// A larger file is none of ours: the whole list of a driver is 20 KiB.
const MAX_SIZE: u64 = 1 << 20;
/// A directory that changed so shortly before the search may change again without another time: file
/// times have the resolution of the timer tick (inode_set_ctime_current of Linux), 10 ms at most.
const SETTLED: Duration = Duration::from_millis(50);

/// The driver of this host: what it says of itself and its files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Driver {
    /// GPUs, versions, numbers.
    pub inventory: Inventory,
    /// Files.
    pub files: DriverFiles,
}

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Key {
    format: u32,
    driver_root: PathBuf,
    proc: PathBuf,
    sys: PathBuf,
    boot: String,
    version: String,
    gpus: Vec<String>,
    /// PATH and the kernel's firmware path.
    path: String,
    firmware: String,
}

#[derive(Deserialize, Serialize)]
struct Stored {
    key: Key,
    watched: Vec<(PathBuf, Stamp)>,
    driver: String,
    gpus: Vec<Gpu>,
    files: DriverFiles,
}

/// [`Stored`] to be written: nothing is copied.
#[derive(Serialize)]
struct Storing<'a> {
    key: &'a Key,
    watched: &'a [(PathBuf, Stamp)],
    driver: &'a str,
    gpus: &'a [Gpu],
    files: &'a DriverFiles,
}

impl Driver {
    /// The driver, from the cache below `state` (the runtime's state root) when that is still true.
    ///
    /// # Errors
    /// As [`Inventory::read`] and [`files::find`].
    pub fn discover(host: &Host, state: Option<&Path>) -> Result<Self> {
        let (driver, text) = inventory::version(host)?;
        let key = state.and_then(|_| key(host, text));
        let file = state.map(|dir| dir.join(NAME));
        if let (Some(key), Some(file)) = (&key, &file)
            && let Some(stored) = load(file, key, host)
            && stored.driver == driver
        {
            return Ok(Driver {
                inventory: Inventory::new(host, stored.driver, stored.gpus)?,
                files: stored.files,
            });
        }
        let start = SystemTime::now();
        let inventory = Inventory::read(host)?;
        let files = files::find(host, &inventory)?;
        let found = Driver { inventory, files };
        if let (Some(key), Some(file)) = (key, file) {
            found.save(&key, &file, start);
        }
        Ok(found)
    }

    fn save(&self, key: &Key, file: &Path, start: SystemTime) {
        // The driver learns a UUID when the GPU is first used.
        if self.inventory.gpus.iter().any(|g| g.uuid.is_none()) {
            return;
        }
        let Ok(stamps) = Stamps::open(self.inventory.host()) else {
            return;
        };
        let Some(watched) = stamps.of(&self.files.watched) else {
            return;
        };
        let Some(settled) = start
            .checked_sub(SETTLED)
            .and_then(|t| t.duration_since(UNIX_EPOCH).ok())
        else {
            return;
        };
        let young =
            |stamp: &Stamp| stamp.changed() >= (settled.as_secs() as i64, settled.subsec_nanos());
        if watched.iter().any(|(_, stamp)| young(stamp)) {
            return;
        }
        let stored = Storing {
            key,
            watched: &watched,
            driver: &self.inventory.driver,
            gpus: &self.inventory.gpus,
            files: &self.files,
        };
        if let Ok(bytes) = postcard::to_allocvec(&stored) {
            // A help, never a need.
            let _ = write(file, &bytes);
        }
    }
}

/// `None`: this host doesn't say which boot it is, so nothing is kept.
fn key(host: &Host, version: String) -> Option<Key> {
    let text = |path: PathBuf| fs::read_to_string(path);
    Some(Key {
        format: FORMAT,
        driver_root: host.driver_root.clone(),
        proc: host.proc.clone(),
        sys: host.sys.clone(),
        boot: text(host.proc.join("sys/kernel/random/boot_id")).ok()?,
        version,
        gpus: inventory::gpu_names(host).ok()?,
        path: std::env::var("PATH").unwrap_or_default(),
        firmware: text(host.sys.join("module/firmware_class/parameters/path")).unwrap_or_default(),
    })
}

fn load(path: &Path, key: &Key, host: &Host) -> Option<Stored> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let meta = file.metadata().ok()?;
    // What another user could have written decides about mounts: only our own.
    let ours = meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o022 == 0;
    if !meta.is_file() || !ours || meta.len() > MAX_SIZE {
        return None;
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.take(MAX_SIZE).read_to_end(&mut bytes).ok()?;
    let stored: Stored = postcard::from_bytes(&bytes).ok()?;
    if stored.key != *key {
        return None;
    }
    let stamps = Stamps::open(host).ok()?;
    let same = |(path, stamp): &(PathBuf, Stamp)| stamps.holds(path, stamp);
    stored.watched.iter().all(same).then_some(stored)
}

/// Whole or not at all, mode 0600.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let Some(dir) = path.parent() else {
        return Ok(());
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    let temp = dir.join(format!(".{NAME}.{}", std::process::id()));
    let put = || -> std::io::Result<()> {
        // Left over from a process that had our number.
        let _ = fs::remove_file(&temp);
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temp)?;
        file.write_all(bytes)?;
        fs::rename(&temp, path)
    };
    put().inspect_err(|_| {
        let _ = fs::remove_file(&temp);
    })
}
