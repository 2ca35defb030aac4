//! What recognised hooks ask for inside the root: links, files, modes, hidden folders.
//!
//! Changes the root itself and the file systems that the cell brought along, and nothing else: on the
//! way to a change no other mount is entered, so that no link of an image, and no volume, leads to a
//! folder of the host (CVE-2024-0133, CVE-2024-0134, CVE-2025-23267). What can't be changed, or must
//! not, is covered by a mount, which only the cell sees.

use super::path::{self, Links, PATH_MAX};
use crate::cell::fault::{At, Stage, Step};
use crate::plan::{How, InRoot, InRootPlan, OwnPath};
use crate::sys::mount::{self as m, MountAttr};
use crate::sys::{Sys, dir, fd};
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Carries out the steps in order.
pub fn inject(root: BorrowedFd, plan: &InRootPlan) -> Step {
    if plan.steps.is_empty() {
        return Ok(());
    }
    let mut scratch = Scratch {
        root,
        fs: None,
        names: 0,
    };
    let mut folder = None;
    for (i, step) in plan.steps.iter().enumerate() {
        if !matches!(step, InRoot::Symlink { .. }) {
            folder = None;
        }
        one(root, &plan.temp, step, &mut scratch, &mut folder).at(Stage::InRoot, i)?;
    }
    scratch.finish().at(Stage::InRoot, plan.steps.len())
}

fn one<'a>(
    root: BorrowedFd,
    temp: &CStr,
    step: &'a InRoot,
    scratch: &mut Scratch,
    folder: &mut Option<Folder<'a>>,
) -> Sys<()> {
    match step {
        InRoot::Symlink { at, to } => symlink_at(root, at, to, temp, folder),
        InRoot::File {
            at,
            content,
            mode,
            how,
        } => match how {
            How::Cover => cover(root, at, content, *mode, true, scratch),
            How::CoverExisting => match cover(root, at, content, *mode, false, scratch) {
                Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
                other => other,
            },
            How::Replace | How::Optional => {
                let done = in_parent(root, at, |dir, name| {
                    replace(dir, name, content, *mode, temp)
                });
                match (done, how) {
                    (Err(Errno::EROFS | Errno::EXDEV | Errno::EBUSY), How::Optional) => Ok(()),
                    // The first error is the one to tell when there is nothing to cover.
                    (Err(e @ (Errno::EROFS | Errno::EXDEV | Errno::EBUSY)), _) => {
                        match cover(root, at, content, *mode, false, scratch) {
                            Err(Errno::ENOENT) => Err(e),
                            other => other,
                        }
                    }
                    (other, _) => other,
                }
            }
        },
        InRoot::Mode { at, mode } => match set_mode(root, at, *mode) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
            other => other,
        },
        InRoot::Only { path, keep } => only(root, path, keep, scratch),
    }
}

/// The file system that a path belongs to. Its mount point is reached without links, which could
/// lead into another one.
fn base<'a>(
    root: BorrowedFd<'a>,
    at: &OwnPath,
    held: &'a mut Option<OwnedFd>,
) -> Sys<BorrowedFd<'a>> {
    match &at.within {
        None => Ok(root),
        Some(point) => {
            let held: &OwnedFd = held.insert(path::open(root, point, Links::Refuse)?);
            Ok(held.as_fd())
        }
    }
}

/// Calls `op` with the parent of a path, made where it is missing, and its last component.
fn in_parent(
    root: BorrowedFd,
    at: &OwnPath,
    op: impl FnOnce(BorrowedFd, &CStr) -> Sys<()>,
) -> Sys<()> {
    let mut buf = [0u8; PATH_MAX];
    let mut held = None;
    let base = base(root, at, &mut held)?;
    let (dir, name) = path::split(at.path.to_bytes());
    let name = own_name(&mut buf, name)?;
    let parent = path::parent(base, dir, Links::SameMount)?;
    op(parent.as_fd(), name)
}

/// The folder of the last link: the links of a driver's libraries follow each other.
struct Folder<'a> {
    within: Option<&'a CStr>,
    path: &'a [u8],
    fd: OwnedFd,
}

fn symlink_at<'a>(
    root: BorrowedFd,
    at: &'a OwnPath,
    to: &CStr,
    temp: &CStr,
    held: &mut Option<Folder<'a>>,
) -> Sys<()> {
    let (path, name) = path::split(at.path.to_bytes());
    let within = at.within.as_deref();
    if held
        .as_ref()
        .is_none_or(|f| f.path != path || f.within != within)
    {
        let mut point = None;
        let base = base(root, at, &mut point)?;
        let fd = path::parent(base, path, Links::SameMount)?;
        *held = Some(Folder { within, path, fd });
    }
    let mut buf = [0u8; PATH_MAX];
    let name = own_name(&mut buf, name)?;
    let folder = held.as_ref().ok_or(Errno::EINVAL)?;
    symlink(folder.fd.as_fd(), name, to, temp)
}

/// A last component that can be made.
fn own_name<'a>(buf: &'a mut [u8; PATH_MAX], name: &[u8]) -> Sys<&'a CStr> {
    match name {
        b"" | b"." | b".." => Err(Errno::EINVAL),
        name => path::terminated(buf, name),
    }
}

fn symlink(dir: BorrowedFd, name: &CStr, to: &CStr, temp: &CStr) -> Sys<()> {
    match fd::symlinkat(to, dir, name) {
        Err(Errno::EEXIST) => {}
        other => return other,
    }
    let mut buf = [0u8; PATH_MAX];
    if dir::readlink(dir, name, &mut buf).is_ok_and(|there| there == to) {
        return Ok(());
    }
    fd::symlinkat(to, dir, temp)?;
    put(dir, temp, name)
}

fn replace(dir: BorrowedFd, name: &CStr, content: &[u8], mode: u32, temp: &CStr) -> Sys<()> {
    write(dir, temp, content, mode)?;
    put(dir, temp, name)
}

/// A new file. The mask of the process is 0.
fn write(dir: BorrowedFd, name: &CStr, content: &[u8], mode: u32) -> Sys<()> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    let file = fd::openat(dir, name, flags, mode)?;
    fd::write_all(file.as_fd(), content).inspect_err(|_| {
        let _ = fd::unlinkat(dir, name, 0);
    })
}

fn put(dir: BorrowedFd, temp: &CStr, name: &CStr) -> Sys<()> {
    fd::renameat(dir, temp, name).inspect_err(|_| {
        let _ = fd::unlinkat(dir, temp, 0);
    })
}

/// Mounts a file of the scratch file system over a path.
fn cover(
    root: BorrowedFd,
    at: &OwnPath,
    content: &[u8],
    mode: u32,
    make: bool,
    scratch: &mut Scratch,
) -> Sys<()> {
    let mut held = None;
    let base = base(root, at, &mut held)?;
    // A mount over what another mount holds changes nothing there, but making a file would.
    let target = match path::open(base, &at.path, Links::Follow) {
        Err(Errno::ENOENT) if make => path::ensure_file(base, &at.path, Links::SameMount)?,
        other => other?,
    };
    if fd::fstat(target.as_fd())?.mode & libc::S_IFMT != libc::S_IFREG {
        return Err(Errno::EINVAL);
    }
    let mut buf = [0; 3];
    let name = scratch.name(&mut buf)?;
    let fs = scratch.get()?;
    write(fs, name, content, mode)?;
    let file = fd::openat(fs, name, libc::O_PATH, 0)?;
    lay(file.as_fd(), false, target.as_fd())
}

/// Mounts what lies in the scratch over a target, read-only and for this cell alone.
fn lay(from: BorrowedFd, recursive: bool, target: BorrowedFd) -> Sys<()> {
    let tree = m::clone_tree(from, recursive)?;
    let attr = MountAttr {
        set: m::MOUNT_ATTR_RDONLY
            | m::MOUNT_ATTR_NOSUID
            | m::MOUNT_ATTR_NODEV
            | m::MOUNT_ATTR_NOEXEC,
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    m::setattr(tree.as_fd(), recursive, &attr)?;
    m::attach(tree.as_fd(), target)
}

/// Only of files and folders: opening a device could do something.
fn set_mode(root: BorrowedFd, at: &OwnPath, mode: u32) -> Sys<()> {
    let mut held = None;
    let base = base(root, at, &mut held)?;
    let found = path::open(base, &at.path, Links::SameMount)?;
    let kind = fd::fstat(found.as_fd())?.mode & libc::S_IFMT;
    if kind != libc::S_IFREG && kind != libc::S_IFDIR {
        return Err(Errno::EINVAL);
    }
    // Opened once more for fchmod(2), which takes no O_PATH: O_NONBLOCK, for it may be another by now.
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let resolve = fd::RESOLVE_IN_ROOT | fd::RESOLVE_NO_MAGICLINKS | fd::RESOLVE_NO_XDEV;
    let file = fd::openat2(base, &at.path, flags, 0, resolve)?;
    if fd::fstat(file.as_fd())?.mode & libc::S_IFMT != kind {
        return Err(Errno::EAGAIN);
    }
    dir::fchmod(file.as_fd(), mode)
}

/// Mounts a folder over `path` that holds the kept folders and no others.
fn only(
    root: BorrowedFd,
    path: &CStr,
    keep: &[std::ffi::CString],
    scratch: &mut Scratch,
) -> Sys<()> {
    let target = match path::open(root, path, Links::Follow) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        other => other?,
    };
    let mut buf = [0; 3];
    let name = scratch.name(&mut buf)?;
    let fs = scratch.get()?;
    fd::mkdirat(fs, name, 0o555)?;
    let shown = fd::openat(fs, name, libc::O_PATH | libc::O_DIRECTORY, 0)?;
    for name in keep {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let found = match fd::openat(target.as_fd(), name, flags, 0) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            other => other?,
        };
        fd::mkdirat(shown.as_fd(), name, 0o555)?;
        let point = fd::openat(shown.as_fd(), name, flags, 0)?;
        let tree = m::clone_tree(found.as_fd(), false)?;
        m::attach(tree.as_fd(), point.as_fd())?;
    }
    lay(shown.as_fd(), true, target.as_fd())
}

/// A file system in memory, made at the first use. While it is needed it lies over the root's own
/// mount point, where no path from the root's descriptor meets it: the kernel clones no file of a
/// detached one (before 6.15).
struct Scratch<'a> {
    root: BorrowedFd<'a>,
    fs: Option<OwnedFd>,
    names: u8,
}

impl Scratch<'_> {
    fn get(&mut self) -> Sys<BorrowedFd<'_>> {
        if self.fs.is_none() {
            let fs = m::fsopen(c"tmpfs")?;
            m::fsconfig(fs.as_fd(), c"mode", Some(c"755"))?;
            let fs = m::fsmount(fs.as_fd(), m::MOUNT_ATTR_NOSUID | m::MOUNT_ATTR_NODEV)?;
            m::attach(fs.as_fd(), self.root)?;
            self.fs = Some(fs);
        }
        self.fs.as_ref().map(|f| f.as_fd()).ok_or(Errno::ENODEV)
    }

    /// A name in it that is still free.
    fn name<'b>(&mut self, buf: &'b mut [u8; 3]) -> Sys<&'b CStr> {
        *buf = [b'a' + (self.names >> 4), b'a' + (self.names & 15), 0];
        self.names = self.names.checked_add(1).ok_or(Errno::EMFILE)?;
        CStr::from_bytes_until_nul(buf).map_err(|_| Errno::EINVAL)
    }

    /// Takes it away again: umount2(2) wants a path, and `.` is the only sure one.
    fn finish(self) -> Sys<()> {
        let Some(fs) = self.fs else {
            return Ok(());
        };
        let before = fd::open_host(c".", libc::O_PATH | libc::O_DIRECTORY)?;
        fd::fchdir(fs.as_fd())?;
        m::umount(c".", libc::MNT_DETACH)?;
        fd::fchdir(before.as_fd())
    }
}
