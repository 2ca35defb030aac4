//! Owners, modes, times and extended attributes of what was just made.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::super::tar::{Entry, show};
use super::Unpacker;
use super::dirs::Dir;
use crate::{Error, Result};

/// Attributes that are not an image's to set: overlayfs reads its own from the trees below a mount
/// (a layer could redirect lookups with them), and labels belong to the host's policy.
const FOREIGN: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"security.selinux"];
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

impl Unpacker {
    /// Whether a file made with permission bits `mode` has exactly these.
    pub(super) fn exact(&self, mode: u32) -> bool {
        self.exact_modes && mode & (self.umask | 0o7000) == 0
    }

    /// Whether something just made in `parent` belongs to someone else than the entry says.
    pub(super) fn foreign_owner(&self, entry: &Entry, parent: &Dir) -> bool {
        self.privileged && (parent.setgid || entry.uid != self.uid || entry.gid != self.gid)
    }

    /// Sets the owner of `name`, never through a symbolic link. Without privileges all belongs to
    /// the user, as with every rootless unpacker.
    pub(super) fn own(
        &self,
        entry: &Entry,
        path: &[u8],
        parent: &Dir,
        name: &[u8],
        existed: bool,
    ) -> Result<()> {
        if !self.privileged || !(existed || self.foreign_owner(entry, parent)) {
            return Ok(());
        }
        rustix::fs::chownat(
            &parent.fd,
            name,
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|e| not_owned(entry, path, e))
    }

    /// Metadata of a symbolic link, fifo or device (`has_mode`: not for links).
    pub(super) fn node_metadata(
        &mut self,
        entry: &Entry,
        path: &[u8],
        parent: &Dir,
        name: &[u8],
        has_mode: bool,
    ) -> Result<()> {
        self.own(entry, path, parent, name, false)?;
        if has_mode && !self.exact(entry.mode) {
            // Not a symbolic link: it was made just now, in a tree nobody else writes to.
            rustix::fs::chmodat(
                &parent.fd,
                name,
                Mode::from_raw_mode(entry.mode),
                AtFlags::empty(),
            )
            .map_err(|e| Error::step("set the mode of", show(path), e))?;
        }
        self.set_xattrs(entry, path, parent, name)?;
        times_at(&parent.fd, name, entry.mtime)
            .map_err(|e| Error::step("set the time of", show(path), e))
    }

    /// Sets the entry's extended attributes on `name` itself.
    pub(super) fn set_xattrs(
        &mut self,
        entry: &Entry,
        path: &[u8],
        parent: &Dir,
        name: &[u8],
    ) -> Result<()> {
        if entry.xattrs.is_empty() {
            return Ok(());
        }
        let file = through_proc(parent.fd.as_fd(), name);
        for (key, value) in &entry.xattrs {
            let set = || rustix::fs::lsetxattr(&file[..], &key[..], value, XattrFlags::empty());
            self.xattr(path, key, set)?;
        }
        Ok(())
    }

    /// Sets one attribute by `set`. One that this file system or this user can't hold is left out
    /// with a warning, as umoci and containerd do.
    pub(super) fn xattr(
        &mut self,
        path: &[u8],
        key: &[u8],
        set: impl Fn() -> rustix::io::Result<()>,
    ) -> Result<()> {
        let why = if FOREIGN.iter().any(|prefix| key.starts_with(prefix)) {
            "it belongs to the host".to_string()
        } else {
            if key == DEFAULT_ACL {
                self.exact_modes = false;
            }
            match set() {
                Ok(()) => return Ok(()),
                Err(e @ Errno::OPNOTSUPP) => std::io::Error::from(e).to_string(),
                Err(e @ Errno::PERM) if !self.privileged || key.starts_with(b"security.") => {
                    std::io::Error::from(e).to_string()
                }
                Err(e) => {
                    let object = format!("{} of {}", show(key), show(path));
                    return Err(Error::step("set attribute", object, e));
                }
            }
        };
        // A few examples tell enough.
        if self.warnings.len() < 16 {
            self.warnings.push(format!(
                "attribute {} of {} was left out: {why}",
                show(key),
                show(path)
            ));
        }
        Ok(())
    }
}

pub(super) fn not_owned(entry: &Entry, path: &[u8], e: Errno) -> Error {
    let object = format!("{} to {}:{}", show(path), entry.uid, entry.gid);
    Error::step("set the owner of", object, e)
}

/// Timestamps of an entry. The access time is set too, so that two unpackings are alike.
pub(super) fn stamps(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime.0,
        tv_nsec: mtime.1.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

pub(super) fn times_at(dir: impl AsFd, name: &[u8], mtime: (i64, u32)) -> rustix::io::Result<()> {
    rustix::fs::utimensat(dir, name, &stamps(mtime), AtFlags::SYMLINK_NOFOLLOW)
}

/// Removes all extended attributes of `name`: a folder that a layer names again has the layer's
/// attributes, not those below (image-spec layer.md, "Modifications": the attributes are replaced).
pub(super) fn clear(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<()> {
    let file = through_proc(dir.as_fd(), name);
    // A list is at most 64 KiB (XATTR_LIST_MAX, xattr(7)); nearly always it is empty.
    let mut list = vec![0u8; 1024];
    let size = match rustix::fs::llistxattr(&file[..], &mut list[..]) {
        Err(Errno::RANGE) => {
            list.resize(64 << 10, 0);
            rustix::fs::llistxattr(&file[..], &mut list[..])
        }
        other => other,
    };
    match size {
        Ok(size) => list.truncate(size),
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(e) => return Err(e),
    }
    for key in list.split(|&b| b == 0).filter(|key| !key.is_empty()) {
        if FOREIGN.iter().any(|prefix| key.starts_with(prefix)) {
            continue;
        }
        match rustix::fs::lremovexattr(&file[..], key) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A path to `name` in an open folder. The l*xattr calls have no *at form; they do not follow a
/// symbolic link in the last place, and there is no other place for one.
fn through_proc(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// The file mode creation mask, without changing it for the other threads as umask(2) would
/// (proc_pid_status(5)).
pub(super) fn umask() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("Umask:"))?;
    u32::from_str_radix(line.trim(), 8).ok()
}

/// Whether files made in the root would take an access list from it, which overrules their mode
/// (acl(5), "Object creation and default ACLs").
pub(super) fn has_default_acl(root: &OwnedFd) -> bool {
    let path = through_proc(root.as_fd(), b".");
    !matches!(
        rustix::fs::getxattr(&path[..], DEFAULT_ACL, &mut [0u8; 0][..]),
        Err(Errno::NODATA | Errno::OPNOTSUPP)
    )
}

/// Whether two names are the same file.
pub(super) fn same_file(dir: impl AsFd, name: &[u8], other_dir: impl AsFd, other: &[u8]) -> bool {
    let stat = |dir: BorrowedFd<'_>, name: &[u8]| {
        rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|s| (s.st_dev, s.st_ino))
    };
    match (stat(dir.as_fd(), name), stat(other_dir.as_fd(), other)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}
