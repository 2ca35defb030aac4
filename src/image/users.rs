//! The user of an image, from its own /etc/passwd and /etc/group.
//!
//! Owns reading these two files safely inside the tree; [`crate::spec::user`] knows what they mean.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::unpack::dirs::in_root;
use crate::spec::user::{self, Resolved};
use crate::{Error, Result};

/// Largest passwd or group file read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// Resolves `USER[:GROUP]`, each a name or a number, in the tree at `root` (image-spec config.md,
/// "User"). Empty means root.
pub fn resolve(root: &OwnedFd, text: &str) -> Result<Resolved> {
    let passwd = file_in_root(root, b"etc/passwd")?;
    let group = file_in_root(root, b"etc/group")?;
    user::resolve(text, &passwd, &group)
}

/// A text file of the tree; empty if there is none. Links are followed inside the root; anything
/// but a regular file is taken for none, and not opened: opening a device or fifo acts on it.
pub fn file_in_root(root: &OwnedFd, path: &[u8]) -> Result<String> {
    let name = String::from_utf8_lossy(path);
    let failed = |e: Errno| Error::step("read the image's", name.to_string(), e);
    let held = match in_root(root, path, OFlags::PATH) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(String::new()),
        Err(e) => return Err(failed(e)),
    };
    let stat = rustix::fs::fstat(&held).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(String::new());
    }
    let mut data = Vec::new();
    std::fs::File::open(format!("/proc/self/fd/{}", held.as_raw_fd()))
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut data))
        .map_err(|e| Error::step("read the image's", name.to_string(), e))?;
    Ok(String::from_utf8_lossy(&data).into_owned())
}
