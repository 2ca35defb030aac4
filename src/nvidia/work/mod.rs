//! NVIDIA's hooks lowered to steps on the root's descriptor.
//!
//! Looks into the image through a held descriptor, by openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS),
//! and decides everything: the child only makes what the steps say. What a volume holds is not looked
//! at: somebody else may change it meanwhile (CVE-2024-0132, CVE-2025-23359). Must not change
//! anything, and must not execute or load a file of the image.

mod compat;
mod folders;
mod libraries;

use super::cache::Driver;
use super::hook::{self, Work};
use crate::plan::{How, InRoot, InRootPlan, OwnPath};
use crate::spec::edit::normal;
use crate::spec::lower::cstr;
use crate::sys::fd;
use crate::{Error, Result};
use oci_spec::runtime::{Mount, Spec};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The largest params file read; the driver's has 1.5 KiB.
const PARAMS_MAX: u64 = 64 << 10;
/// The largest application profile read; ours has 250 bytes.
const PROFILE_MAX: usize = 64 << 10;
/// Where the driver shows itself in the cell.
const DRIVER: &str = "/proc/driver/nvidia";

/// What the works are about.
pub struct Cell<'a> {
    /// The image's root, or the shared directory below its overlay.
    pub root: BorrowedFd<'a>,
    /// The configuration.
    pub spec: &'a Spec,
    /// Where relative bind sources start.
    pub bundle: &'a Path,
    /// The host's procfs.
    pub proc: &'a Path,
    /// The driver as discovery found it: its libraries need not be read again.
    pub driver: Option<&'a Driver>,
}

/// The cell, and its mounts by destination: a driver has sixty files, and as many links ask where they are.
struct View<'a> {
    root: BorrowedFd<'a>,
    spec: &'a Spec,
    bundle: &'a Path,
    proc: &'a Path,
    driver: Option<&'a Driver>,
    /// The last mount at each destination, by its place in the configuration.
    mounts: HashMap<Cow<'a, OsStr>, usize>,
}

/// Holds the root of an image by a descriptor.
///
/// # Errors
/// It can't be opened, or is no directory.
pub fn hold(rootfs: &Path) -> Result<OwnedFd> {
    let path = cstr("root.path", rootfs.as_os_str().as_bytes())?;
    fd::open_host(&path, libc::O_PATH | libc::O_DIRECTORY)
        .map_err(|e| Error::step("open", rootfs.display().to_string(), e))
}

/// Lowers the works of a configuration.
///
/// # Errors
/// A file of the image that can't be read, with its path; a path with a NUL byte.
pub fn lower(works: &[Work], cell: &Cell) -> Result<InRootPlan> {
    let cell = &View::new(cell);
    let mut steps = Vec::new();
    let mut folders: Vec<&Path> = Vec::new();
    let mut compat = None;
    let mut libraries = false;
    for work in works {
        match work {
            Work::Symlinks(links) => {
                for (to, at) in links {
                    let at = normal(at);
                    // A mount at that very path is the configuration's last word.
                    if !cell.is_mount_point(&at) {
                        steps.push(symlink(cell, &at, to)?);
                    }
                }
            }
            Work::LdCache(list) => {
                libraries = true;
                folders.extend(list.iter().map(PathBuf::as_path));
            }
            Work::CudaCompat { host_driver } => {
                compat = compat::find(cell, host_driver)?;
                libraries |= compat.is_some();
            }
            Work::KeepDeviceNodes => steps.extend(keep_device_nodes(cell)?),
            Work::OnlyGpus(list) => steps.push(InRoot::Only {
                path: cstr("hooks", format!("{DRIVER}/gpus").as_bytes())?,
                keep: list
                    .iter()
                    .map(|bus| cstr("hooks", bus.as_bytes()))
                    .collect::<Result<_>>()?,
            }),
            Work::ApplicationProfile => steps.extend(application_profile(cell)?),
            Work::Chmod { mode, paths } => {
                for path in paths {
                    let at = own(cell, &normal(path))?;
                    steps.push(InRoot::Mode { at, mode: *mode });
                }
            }
        }
    }
    if libraries {
        libraries::lower(cell, works, compat.as_deref(), &folders, &mut steps)?;
    }
    Ok(InRootPlan {
        steps,
        temp: cstr(
            "hooks",
            format!(".gpucell.{}", std::process::id()).as_bytes(),
        )?,
    })
}

fn symlink(cell: &View, at: &Path, to: &Path) -> Result<InRoot> {
    Ok(InRoot::Symlink {
        at: own(cell, at)?,
        to: c_path(to)?,
    })
}

/// A file that replaces the image's, or covers it when the root becomes read-only.
fn file(cell: &View, at: &str, content: Vec<u8>) -> Result<InRoot> {
    Ok(InRoot::File {
        at: own(cell, Path::new(at))?,
        content,
        mode: 0o644,
        how: match cell.readonly() {
            true => How::Cover,
            false => How::Replace,
        },
    })
}

/// A whole file of the image; none when there is none, or it is too large to be what it should be.
fn read(cell: &View, path: &Path, max: usize) -> Result<Option<Vec<u8>>> {
    let Some(file) = cell.open(path)? else {
        return Ok(None);
    };
    let len = file.metadata().map_or(0, |m| m.len());
    let mut bytes = Vec::with_capacity(len.min(max as u64) as usize + 1);
    file.take(max as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::step("read the image's", path.display().to_string(), e))?;
    Ok((bytes.len() <= max).then_some(bytes))
}

/// The host's params with `ModifyDeviceFiles: 0`, so that nvidia-modprobe in the cell makes no nodes.
/// Nothing to do without the driver, or when it says so already.
fn keep_device_nodes(cell: &View) -> Result<Option<InRoot>> {
    let path = cell.proc.join("driver/nvidia/params");
    let mut text = String::new();
    match File::open(&path).and_then(|f| f.take(PARAMS_MAX).read_to_string(&mut text)) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::step("read", path.display().to_string(), e)),
    }
    let mut changed = false;
    let mut content = String::with_capacity(text.len());
    for line in text.lines() {
        let modify = line == "ModifyDeviceFiles: 1";
        changed |= modify;
        content.push_str(if modify { "ModifyDeviceFiles: 0" } else { line });
        content.push('\n');
    }
    if !changed {
        return Ok(None);
    }
    Ok(Some(InRoot::File {
        at: OwnPath {
            within: None,
            path: cstr("hooks", format!("{DRIVER}/params").as_bytes())?,
        },
        content: content.into_bytes(),
        mode: 0o444,
        how: How::CoverExisting,
    }))
}

/// The profile that shows EGL and Vulkan the GPUs whose nodes the configuration has.
fn application_profile(cell: &View) -> Result<Option<InRoot>> {
    let number = |path: &Path| -> Option<u32> {
        let digits = path.to_str()?.strip_prefix("/dev/nvidia")?;
        digits
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| digits.parse().ok())?
    };
    let linux = cell.spec.linux().as_ref();
    let devices = linux
        .and_then(|l| l.devices().as_deref())
        .unwrap_or_default();
    let mounts = cell.spec.mounts().as_deref().unwrap_or_default();
    let minors = devices
        .iter()
        .filter(|d| number(d.path()).is_some())
        .filter_map(|d| u32::try_from(d.minor()).ok())
        .chain(mounts.iter().filter_map(|m| number(m.destination())));
    let Some(text) = hook::application_profile(minors) else {
        return Ok(None);
    };
    // A bundle run in place has it from last time, and replacing a file waits for its disk.
    let old = read(cell, Path::new(hook::PROFILE_PATH), PROFILE_MAX)?;
    if old.as_deref() == Some(text.as_bytes()) {
        return Ok(None);
    }
    file(cell, hook::PROFILE_PATH, text.into_bytes()).map(Some)
}

impl<'a> View<'a> {
    fn new(cell: &Cell<'a>) -> Self {
        let list = cell.spec.mounts().as_deref().unwrap_or_default();
        let at = |(i, m): (usize, &'a Mount)| {
            let name = match normal(m.destination()) {
                Cow::Borrowed(path) => Cow::Borrowed(path.as_os_str()),
                Cow::Owned(path) => Cow::Owned(path.into_os_string()),
            };
            (name, i)
        };
        View {
            root: cell.root,
            spec: cell.spec,
            bundle: cell.bundle,
            proc: cell.proc,
            driver: cell.driver,
            mounts: list.iter().enumerate().map(at).collect(),
        }
    }

    /// The root is mounted read-only in the end.
    fn readonly(&self) -> bool {
        let root = self.spec.root().as_ref();
        root.and_then(|r| r.readonly()).unwrap_or(false)
    }

    fn is_mount_point(&self, path: &Path) -> bool {
        self.mounts.contains_key(path.as_os_str())
    }

    fn mounts(&self) -> &'a [Mount] {
        self.spec.mounts().as_deref().unwrap_or_default()
    }

    /// The mount that a normal path lies in: the last one over it or over a folder above it.
    fn mount_of(&self, path: &Path) -> Option<&'a Mount> {
        let last = folders_above(path)
            .filter_map(|at| self.mounts.get(at))
            .max();
        last.and_then(|i| self.mounts().get(*i))
    }

    /// Opens a file of the image for reading, if it is a regular one. A FIFO or device is not waited
    /// for, and not read.
    fn open(&self, path: &Path) -> Result<Option<File>> {
        self.open_as(
            path,
            libc::O_RDONLY | libc::O_NONBLOCK,
            fs::FileType::is_file,
        )
    }

    fn open_dir(&self, path: &Path) -> Result<Option<File>> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        self.open_as(path, flags, fs::FileType::is_dir)
    }

    fn open_as(
        &self,
        path: &Path,
        flags: i32,
        kind: fn(&fs::FileType) -> bool,
    ) -> Result<Option<File>> {
        let fail = |e: io::Error| Error::step("look at the image's", path.display().to_string(), e);
        match fd::open_in_root(self.root, &c_path(path)?, flags | libc::O_NOCTTY) {
            Ok(file) => {
                let file = File::from(file);
                let found = file.metadata().map_err(fail)?.file_type();
                Ok(kind(&found).then_some(file))
            }
            // Links in a circle, a socket, a device without a driver: no file either.
            Err(
                nix::Error::ENOENT | nix::Error::ENOTDIR | nix::Error::ELOOP | nix::Error::ENXIO,
            ) => Ok(None),
            Err(e) => Err(fail(e.into())),
        }
    }

    /// Something is there.
    fn exists(&self, path: &str) -> Result<bool> {
        match fd::open_in_root(self.root, &cstr("hooks", path.as_bytes())?, libc::O_PATH) {
            Ok(_) => Ok(true),
            Err(nix::Error::ENOENT | nix::Error::ENOTDIR | nix::Error::ELOOP) => Ok(false),
            Err(e) => Err(Error::step("look at the image's", path, io::Error::from(e))),
        }
    }
}

/// A normal path and all above it, up to the root.
fn folders_above(path: &Path) -> impl Iterator<Item = &OsStr> {
    let bytes = path.as_os_str().as_bytes();
    let ends = (0..bytes.len()).rev().filter(|&i| bytes[i] == b'/');
    let above = ends.map(|i| OsStr::from_bytes(if i == 0 { b"/" } else { &bytes[..i] }));
    let itself = (bytes != b"/").then_some(path.as_os_str());
    itself.into_iter().chain(above)
}

/// What of a normal path lies below another; empty when they are the same.
fn below<'a>(path: &'a Path, above: &Path) -> Option<&'a Path> {
    let (path, above) = (path.as_os_str(), above.as_os_str());
    let rest = path.as_bytes().strip_prefix(above.as_bytes())?;
    if above == "/" || rest.is_empty() {
        return Some(Path::new(OsStr::from_bytes(rest)));
    }
    let rest = rest.strip_prefix(b"/")?;
    Some(Path::new(OsStr::from_bytes(rest)))
}

/// Where a path may be changed: in the root, or in a tmpfs of the cell's own.
fn own(cell: &View, path: &Path) -> Result<OwnPath> {
    if let Some(mount) = cell
        .mount_of(path)
        .filter(|m| m.typ().as_deref() == Some("tmpfs"))
    {
        let point = normal(mount.destination());
        if let Some(rest) = below(path, &point) {
            return Ok(OwnPath {
                within: Some(c_path(&point)?),
                path: c_path(&Path::new("/").join(rest))?,
            });
        }
    }
    Ok(OwnPath {
        within: None,
        path: c_path(path)?,
    })
}

fn c_path(path: &Path) -> Result<CString> {
    cstr("hooks", path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests;
