//! Identity and times of what was searched.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::search::Root;
use crate::Result;
use crate::nvidia::inventory::Host;
use crate::sys::fd;

/// Which file it is and when it changed: device, inode, mtime and ctime in seconds and nanoseconds. ctime
/// too, since archives and package managers set mtime.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stamp(u64, u64, i64, u32, i64, u32);

impl Stamp {
    /// When name, mode or content last changed, seconds and nanoseconds since 1970.
    pub fn changed(&self) -> (i64, u32) {
        (self.4, self.5)
    }
}

/// Takes stamps below a driver root.
pub struct Stamps(Root);

impl Stamps {
    /// Holds the driver root.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn open(host: &Host) -> Result<Self> {
        Ok(Stamps(Root::open(host)?))
    }

    /// The stamp of one path; `None` when it isn't there or can't be looked at.
    pub fn stamp(&mut self, path: &Path) -> Option<Stamp> {
        let name = CString::new(path.as_os_str().as_bytes()).ok()?;
        let file = fd::open_in_root(self.0.fd.as_fd(), &name, libc::O_PATH).ok()?;
        let st = rustix::fs::fstat(file).ok()?;
        Some(Stamp(
            st.st_dev,
            st.st_ino,
            st.st_mtime,
            st.st_mtime_nsec as u32,
            st.st_ctime,
            st.st_ctime_nsec as u32,
        ))
    }

    /// The stamps of all paths. In place of one that isn't there stands the nearest folder above it that
    /// is: making the path changes that. `None` when not even the root can be looked at.
    pub fn of(&mut self, paths: &[PathBuf]) -> Option<Vec<(PathBuf, Stamp)>> {
        let mut all: Vec<(PathBuf, Stamp)> = Vec::new();
        for path in paths {
            for path in path.ancestors() {
                if all.iter().any(|(known, _)| known == path) {
                    break;
                }
                if let Some(stamp) = self.stamp(path) {
                    all.push((path.to_owned(), stamp));
                    break;
                }
                if path.parent().is_none() {
                    return None;
                }
            }
        }
        Some(all)
    }
}
