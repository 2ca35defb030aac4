//! Identity and times of what was searched.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::search::open_root;
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

impl From<rustix::fs::Stat> for Stamp {
    fn from(st: rustix::fs::Stat) -> Self {
        Stamp(
            st.st_dev,
            st.st_ino,
            st.st_mtime,
            st.st_mtime_nsec as u32,
            st.st_ctime,
            st.st_ctime_nsec as u32,
        )
    }
}

/// Takes stamps below a driver root.
pub struct Stamps(OwnedFd);

impl Stamps {
    /// Holds the driver root.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn open(host: &Host) -> Result<Self> {
        open_root(host).map(Stamps)
    }

    /// The stamp of one path; `None` when it isn't there or can't be looked at.
    pub fn stamp(&self, path: &Path) -> Option<Stamp> {
        let name = CString::new(path.as_os_str().as_bytes()).ok()?;
        let file = fd::open_in_root(self.0.as_fd(), &name, libc::O_PATH).ok()?;
        rustix::fs::fstat(file).ok().map(Stamp::from)
    }

    /// Has this path still this stamp? One call where no link leads out of the root: whichever way it is
    /// reached, the same inode with the same times is the same.
    pub fn holds(&self, path: &Path, stamp: &Stamp) -> bool {
        let below = path.strip_prefix("/").unwrap_or(path);
        let here = match below.as_os_str().is_empty() {
            true => rustix::fs::fstat(&self.0),
            false => rustix::fs::statat(&self.0, below, rustix::fs::AtFlags::empty()),
        };
        here.is_ok_and(|st| Stamp::from(st) == *stamp) || self.stamp(path).as_ref() == Some(stamp)
    }

    /// The stamps of all paths. In place of one that isn't there stands the nearest folder above it that
    /// is: making the path changes that. `None` when not even the root can be looked at.
    pub fn of(&self, paths: &[PathBuf]) -> Option<Vec<(PathBuf, Stamp)>> {
        let mut all: Vec<(PathBuf, Stamp)> = Vec::new();
        for path in paths {
            let known = |at: &Path| all.iter().any(|(known, _)| known == at);
            let mut nearest = None;
            for at in path.ancestors() {
                if known(at) {
                    break;
                }
                nearest = self.stamp(at).map(|stamp| (at.to_owned(), stamp));
                if nearest.is_some() {
                    break;
                }
                at.parent()?;
            }
            all.extend(nearest);
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_stamp_holds_until_the_folder_changes() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host {
            driver_root: dir.path().to_owned(),
            ..Host::default()
        };
        fs::create_dir_all(dir.path().join("usr/lib")).unwrap();
        symlink("usr/lib", dir.path().join("relative")).unwrap();
        // Below the driver root; from the host's it leads elsewhere.
        symlink("/usr/lib", dir.path().join("absolute")).unwrap();
        let stamps = Stamps::open(&host).unwrap();
        let paths = ["/usr/lib", "/relative", "/absolute"].map(Path::new);
        let taken = paths.map(|p| stamps.stamp(p).unwrap());
        assert!(taken.iter().all(|s| *s == taken[0]), "{taken:?}");
        assert_eq!(stamps.stamp(Path::new("/none")), None);
        let root = stamps.stamp(Path::new("/")).unwrap();
        let hold = || paths.map(|p| stamps.holds(p, &taken[0]));
        assert_eq!(hold(), [true; 3]);
        assert!(stamps.holds(Path::new("/"), &root));
        assert!(!stamps.holds(Path::new("/usr"), &taken[0]));
        assert!(!stamps.holds(Path::new("/none"), &taken[0]));

        // Another tick of the clock that stamps files.
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(dir.path().join("usr/lib/new"), "").unwrap();
        assert_eq!(hold(), [false; 3]);
    }
}
