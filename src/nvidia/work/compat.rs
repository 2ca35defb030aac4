//! CUDA forward compatibility: may the image's own newer libcuda work on the host's driver?

use super::View;
use crate::nvidia::elf::Compat;
use crate::sys::fd;
use crate::{Error, Result};
use std::cmp::Ordering;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Where NVIDIA's cuda-compat packages put it.
pub const FOLDER: &str = "/usr/local/cuda/compat";
const LIBRARY: &str = "libcuda.so.";

/// The folder, when its libraries come before the driver's: it holds exactly one regular
/// `libcuda.so.*.*`, whose note names the host's driver branch and which is newer than the driver; or,
/// without a note, one whose major version is above the driver's.
pub fn find(cell: &View, host_driver: &str) -> Result<Option<PathBuf>> {
    let folder = Path::new(FOLDER);
    let Some(dir) = cell.open_dir(folder)? else {
        return Ok(None);
    };
    let mut found: Option<(String, File)> = None;
    let fail = |e: io::Error| Error::step("look at the image's", FOLDER, e);
    let mut names = crate::sys::dir::Entries::new(dir.as_fd());
    while let Some(name) = names.next().map_err(|e| fail(e.into()))? {
        let Some((version, file)) = candidate(&dir, name) else {
            continue;
        };
        if found.is_some() {
            return Ok(None);
        }
        found = Some((version, file));
    }
    let Some((version, file)) = found else {
        return Ok(None);
    };
    let note = Compat::read(&file).map_err(fail)?;
    Ok(works(&version, note.as_ref(), host_driver).then(|| folder.to_owned()))
}

/// A regular file `libcuda.so.X.Y`; a link of that name is none.
fn candidate(dir: &File, name: &CStr) -> Option<(String, File)> {
    let version = name.to_str().ok()?.strip_prefix(LIBRARY)?;
    if !version.contains('.') {
        return None;
    }
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW;
    let file = File::from(fd::openat(dir.as_fd(), name, flags, 0).ok()?);
    let regular = file.metadata().ok()?.is_file();
    regular.then(|| (version.to_owned(), file))
}

fn works(compat: &str, note: Option<&Compat>, host: &str) -> bool {
    let (Some(compat), Some(host)) = (numbers(compat), numbers(host)) else {
        return false;
    };
    match note {
        Some(note) => note.drivers.contains(&host[0]) && newer(&compat, &host),
        None => compat[0] > host[0],
    }
}

fn numbers(version: &str) -> Option<Vec<u32>> {
    version.split('.').map(|n| n.parse().ok()).collect()
}

/// Missing parts are zero.
fn newer(a: &[u32], b: &[u32]) -> bool {
    let at = |v: &[u32], i: usize| v.get(i).copied().unwrap_or(0);
    (0..a.len().max(b.len()))
        .map(|i| at(a, i).cmp(&at(b, i)))
        .find(|o| o.is_ne())
        == Some(Ordering::Greater)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(drivers: &[u32]) -> Compat {
        Compat {
            cuda: "12.9".into(),
            drivers: drivers.to_vec(),
        }
    }

    #[test]
    fn the_note_decides() {
        let n = note(&[535, 550, 570, 575]);
        for (compat, host, expected) in [
            ("575.57.08", "590.44.01", false),
            ("575.57.08", "570.211.01", true),
            ("575.57.08", "575.10.10", true),
            ("575.57.08", "575.57.08", false),
            ("575.57.08", "575.99.99", false),
            ("575.57.08", "560.10", false),
        ] {
            assert_eq!(works(compat, Some(&n), host), expected, "{compat} {host}");
        }
        // A Tegra package names no driver.
        assert!(!works("1.1", Some(&note(&[])), "1.0"));
    }

    #[test]
    fn without_a_note_the_major_version_does() {
        assert!(works("575.57.08", None, "570.211.01"));
        assert!(!works("575.57.08", None, "575.10"));
        assert!(!works("535.1", None, "550.1"));
        assert!(!works("nonsense.1", None, "550.1"));
        assert!(!works("999.1", None, "host"));
        assert!(!works("575.", None, "550.1"));
    }
}
