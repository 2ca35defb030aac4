//! The root itself: attached first, entered last.

use crate::cell::fault::{At, Stage, Step};
use crate::plan::RootPlan;
use crate::sys::mount::{self as m, MountAttr};
use crate::sys::{Sys, fd};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Sets the propagation of the whole tree, and takes the mount under a shared root out of it.
///
/// `parent_mount` is the mount point above the root directory when it may be shared:
/// pivot_root(2) refuses a shared parent, and attaching to one would show on the host.
pub fn set_propagation(root: &RootPlan, parent_mount: Option<&CStr>) -> Step {
    // An unbindable tree could not be cloned: until it is in place the root is private instead.
    let first = match root.propagation & !libc::MS_REC {
        libc::MS_UNBINDABLE => libc::MS_PRIVATE | root.propagation & libc::MS_REC,
        _ => root.propagation,
    };
    m::set_propagation(c"/", first).at(Stage::Propagation, 0)?;
    if let Some(path) = parent_mount {
        m::set_propagation(path, libc::MS_SLAVE).at(Stage::Propagation, 1)?;
    }
    Ok(())
}

/// Clones the root directory's tree (or mounts the overlay) and attaches it over the directory.
/// Returns the descriptor of its root. Attached before anything is mounted in it: a detached tree
/// takes no mounts on kernels before 6.15.
pub fn attach(root: &RootPlan) -> Step<OwnedFd> {
    attach_root(root).at(Stage::Root, 0)
}

fn attach_root(root: &RootPlan) -> Sys<OwnedFd> {
    let tree = match &root.overlay {
        None => m::open_tree(
            fd::at_cwd(),
            &root.path,
            m::OPEN_TREE_CLONE | m::AT_RECURSIVE,
        )?,
        Some(o) => {
            let fs = m::fsopen(c"overlay")?;
            m::fsconfig(fs.as_fd(), c"source", Some(c"overlay"))?;
            m::fsconfig(fs.as_fd(), c"lowerdir", Some(&o.lower))?;
            m::fsconfig(fs.as_fd(), c"upperdir", Some(&o.upper))?;
            m::fsconfig(fs.as_fd(), c"workdir", Some(&o.work))?;
            m::fsmount(fs.as_fd(), 0)?
        }
    };
    let apart = MountAttr {
        // A slave goes on receiving what the host mounts in the directory (runc's default);
        // either way nothing goes back.
        propagation: match root.propagation & !libc::MS_REC {
            libc::MS_SLAVE => libc::MS_SLAVE,
            _ => libc::MS_PRIVATE,
        },
        ..MountAttr::default()
    };
    m::setattr(tree.as_fd(), true, &apart)?;
    let over = fd::open_host(&root.path, libc::O_PATH | libc::O_DIRECTORY)?;
    m::attach(tree.as_fd(), over.as_fd())?;
    Ok(tree)
}

/// Makes the attached root `/` and lets go of the old one.
pub fn pivot(root: &RootPlan, fd: BorrowedFd) -> Step {
    swap(root, fd).at(Stage::Pivot, 0)?;
    // The specification's rootfsPropagation is that of the new root; until now it was a slave or
    // private.
    let kind = root.propagation & !libc::MS_REC;
    if kind != libc::MS_SLAVE {
        m::set_propagation(c"/", root.propagation).at(Stage::Pivot, 1)?;
    }
    if root.readonly {
        let attr = MountAttr {
            set: m::MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        m::setattr(fd, false, &attr).at(Stage::ReadonlyRoot, 0)?;
    }
    Ok(())
}

fn swap(root: &RootPlan, fd: BorrowedFd) -> Sys<()> {
    fd::fchdir(fd)?;
    if root.no_pivot {
        m::move_to_root(c".")?;
        fd::chroot(c".")?;
        return fd::fchdir(fd);
    }
    let apart = [
        libc::MS_SLAVE | libc::MS_REC,
        libc::MS_PRIVATE | libc::MS_REC,
    ];
    if apart.contains(&root.propagation) {
        m::pivot_here()?;
    } else {
        // Made a slave first, or a shared host tree would be unmounted on the host too. Only
        // umount(2) climbs from `.` to what lies over it; here it takes the old root's descriptor.
        let old = fd::open_host(c"/", libc::O_PATH | libc::O_DIRECTORY)?;
        m::pivot_here()?;
        fd::fchdir(old.as_fd())?;
        m::set_propagation(c".", libc::MS_SLAVE | libc::MS_REC)?;
        fd::fchdir(fd)?;
    }
    // The old root now lies over the new one.
    m::umount(c".", libc::MNT_DETACH)?;
    fd::fchdir(fd)
}
