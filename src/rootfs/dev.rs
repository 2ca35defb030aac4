//! Device nodes, links and the console below the root's /dev.

use super::DEVPTS_SUPER_MAGIC;
use super::path::{self, Links};
use crate::cell::fault::{At, Fault, Stage, Step};
use crate::plan::{DevPlan, Node};
use crate::sys::{Sys, fd, mount as m, tty};
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Makes the nodes and links of the Plan.
pub fn make(root: BorrowedFd, plan: &DevPlan) -> Step {
    // Nearly all are directly in /dev: its descriptor is kept, after every mount is in place.
    let dev = if plan.nodes.is_empty() && plan.links.is_empty() {
        return Ok(());
    } else {
        path::ensure_dir(root, c"/dev", links(b"/dev")).at(Stage::Node, 0)?
    };
    for (i, node) in plan.nodes.iter().enumerate() {
        if plan.bind {
            bind_node(root, node).at(Stage::Node, i)?;
        } else {
            in_parent(root, dev.as_fd(), &node.path, |dir, name| {
                make_node(dir, name, node)
            })
            .at(Stage::Node, i)?;
        }
    }
    for (i, (link, to)) in plan.links.iter().enumerate() {
        in_parent(root, dev.as_fd(), link, |dir, name| {
            match fd::symlinkat(to, dir, name) {
                // The image's own entry stays, as with runc.
                Err(Errno::EEXIST) => Ok(()),
                other => other,
            }
        })
        .at(Stage::Link, i)?;
    }
    Ok(())
}

fn in_parent(
    root: BorrowedFd,
    dev: BorrowedFd,
    path: &CStr,
    op: impl FnOnce(BorrowedFd, &CStr) -> Sys<()>,
) -> Sys<()> {
    let mut buf = [0u8; path::PATH_MAX];
    let (dir, name) = path::split(path.to_bytes());
    let name = path::terminated(&mut buf, name)?;
    if name.is_empty() {
        return Err(Errno::EINVAL);
    }
    if dir == b"/dev" {
        return op(dev, name);
    }
    let parent = path::parent(root, dir, links(path.to_bytes()))?;
    op(parent.as_fd(), name)
}

/// In /dev no link is followed: an image's could lead into a folder of the host that is bound
/// elsewhere in the cell, where nothing may be made (CVE-2026-41579).
fn links(path: &[u8]) -> Links {
    if path == b"/dev" || path.starts_with(b"/dev/") {
        Links::Refuse
    } else {
        Links::Follow
    }
}

fn make_node(dir: BorrowedFd, name: &CStr, node: &Node) -> Sys<()> {
    match fd::mknodat(dir, name, node.mode, node.rdev) {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            // Only the very same device may already be there: a link or file in its place would
            // be written through (CVE-2025-31133, CVE-2026-88264).
            let st = fd::fstatat(dir, name, libc::AT_SYMLINK_NOFOLLOW)?;
            if (st.mode ^ node.mode) & libc::S_IFMT != 0 || st.rdev != node.rdev {
                return Err(Errno::EEXIST);
            }
        }
        Err(e) => return Err(e),
    }
    if (node.uid, node.gid) != (0, 0) {
        fd::chown_entry(dir, name, node.uid, node.gid)?;
    }
    Ok(())
}

/// In a user namespace nodes can't be made: the host's own, of the same number, is bound.
fn bind_node(root: BorrowedFd, node: &Node) -> Sys<()> {
    let tree = m::open_tree(fd::at_cwd(), &node.path, m::OPEN_TREE_CLONE)?;
    let st = fd::fstat(tree.as_fd())?;
    if (st.mode ^ node.mode) & libc::S_IFMT != 0 || st.rdev != node.rdev {
        return Err(Errno::ENODEV);
    }
    let target = path::ensure_file(root, &node.path, links(node.path.to_bytes()))?;
    m::attach(tree.as_fd(), target.as_fd())
}

/// Opens a new terminal in the cell's own devpts and binds its slave over /dev/console.
/// Returns (master, slave).
pub fn console(root: BorrowedFd, on_dev_console: bool) -> Step<(OwnedFd, OwnedFd)> {
    open_console(root, on_dev_console).map_err(|e| Fault::new(Stage::Console, 0, e))
}

fn open_console(root: BorrowedFd, on_dev_console: bool) -> Sys<(OwnedFd, OwnedFd)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let master = fd::open_in_root(root, c"/dev/pts/ptmx", flags)?;
    // An image's own file of that name must not be taken for a terminal.
    if fd::fs_magic(master.as_fd())? != DEVPTS_SUPER_MAGIC {
        return Err(Errno::ENOTTY);
    }
    tty::unlock(master.as_fd())?;
    let slave = tty::open_peer(master.as_fd())?;
    if on_dev_console {
        let tree = m::clone_tree(slave.as_fd(), false)?;
        let target = path::ensure_file(root, c"/dev/console", Links::Refuse)?;
        m::attach(tree.as_fd(), target.as_fd())?;
    }
    Ok((master, slave))
}
