//! Masked and read-only paths, and mounts that become read-only last.

use super::path::{self, Links};
use crate::cell::fault::{At, Fault, Stage, Step};
use crate::plan::MountStep;
use crate::sys::mount::{self as m, MountAttr};
use crate::sys::{Sys, fd};
use nix::errno::Errno;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The host's /dev/null, opened before the root is entered: the cell's own may be anything
/// (CVE-2025-31133).
pub struct HostNull(OwnedFd);

impl HostNull {
    /// Opens and verifies it.
    pub fn open() -> Step<Self> {
        let null = fd::open_host(c"/dev/null", libc::O_PATH).at(Stage::HostFiles, 1)?;
        let st = fd::fstat(null.as_fd()).at(Stage::HostFiles, 1)?;
        if st.mode & libc::S_IFMT != libc::S_IFCHR || st.rdev != libc::makedev(1, 3) {
            return Err(Fault::new(Stage::HostFiles, 1, Errno::ENODEV));
        }
        Ok(HostNull(null))
    }
}

/// Hides paths: a file under /dev/null, a directory under an empty read-only tmpfs. What doesn't
/// exist needs no hiding (runtime-spec, Masked Paths).
pub fn mask(root: BorrowedFd, paths: &[CString]) -> Step {
    if paths.is_empty() {
        return Ok(());
    }
    let null = HostNull::open()?;
    let mut empty: Option<OwnedFd> = None;
    for (i, path) in paths.iter().enumerate() {
        let target = match path::open(root, path, Links::Follow) {
            Ok(t) => t,
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            Err(e) => return Err(Fault::new(Stage::Mask, i, e)),
        };
        one(target.as_fd(), &null, &mut empty).at(Stage::Mask, i)?;
    }
    Ok(())
}

fn one(target: BorrowedFd, null: &HostNull, empty: &mut Option<OwnedFd>) -> Sys<()> {
    if !fd::fstat(target)?.is_dir() {
        let tree = m::clone_tree(null.0.as_fd(), false)?;
        return m::attach(tree.as_fd(), target);
    }
    // One tmpfs serves all directories: the first use attaches it, the others its clones.
    let tree = match empty {
        Some(fs) => m::clone_tree(fs.as_fd(), false)?,
        None => {
            let fs = m::fsopen(c"tmpfs")?;
            m::fsconfig(fs.as_fd(), c"nr_inodes", Some(c"1"))?;
            m::fsconfig(fs.as_fd(), c"nr_blocks", Some(c"1"))?;
            m::fsmount(fs.as_fd(), m::MOUNT_ATTR_RDONLY)?
        }
    };
    m::attach(tree.as_fd(), target)?;
    if empty.is_none() {
        *empty = Some(tree);
    }
    Ok(())
}

/// Binds paths onto themselves, read-only all the way down.
pub fn readonly(root: BorrowedFd, paths: &[CString]) -> Step {
    let attr = MountAttr {
        set: m::MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    };
    for (i, path) in paths.iter().enumerate() {
        let target = match path::open(root, path, Links::Follow) {
            Ok(t) => t,
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            Err(e) => return Err(Fault::new(Stage::Readonly, i, e)),
        };
        m::clone_tree(target.as_fd(), true)
            .and_then(|tree| {
                m::setattr(tree.as_fd(), true, &attr)?;
                m::attach(tree.as_fd(), target.as_fd())
            })
            .at(Stage::Readonly, i)?;
    }
    Ok(())
}

/// Makes the mounts read-only that were left writable for what is made in them.
pub fn readonly_mounts(root: BorrowedFd, steps: &[MountStep]) -> Step {
    let attr = MountAttr {
        set: m::MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    };
    for (i, step) in steps.iter().enumerate().filter(|(_, s)| s.late_readonly) {
        let target = path::open(root, &step.target, Links::Follow).at(Stage::MountTarget, i)?;
        m::setattr(target.as_fd(), false, &attr).at(Stage::MountAttr, i)?;
    }
    Ok(())
}
