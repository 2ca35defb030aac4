//! tmpcopyup: fills a new tmpfs with what lies under its mount point, without allocating.

use crate::sys::fd;
use crate::sys::{Sys, dir};
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

/// Directories nested deeper than this are refused: the walk's stack is the program's.
const MAX_DEPTH: u32 = 64;

/// Copies the tree at `from` into the directory `to`: directories, files, links, nodes with
/// their modes and owners.
pub fn copy(from: BorrowedFd, to: BorrowedFd) -> Sys<()> {
    let st = fd::fstat(from)?;
    let (uid, gid) = dir::owner(from)?;
    let to = fd::openat(to, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    copy_dir(from, to.as_fd(), MAX_DEPTH)?;
    // The mount point's own mode and owner belong to it too.
    fd::fchown(to.as_fd(), uid, gid)?;
    dir::fchmod(to.as_fd(), st.mode & 0o7777)
}

fn copy_dir(from: BorrowedFd, to: BorrowedFd, depth: u32) -> Sys<()> {
    if depth == 0 {
        return Err(Errno::ELOOP);
    }
    let from = fd::openat(from, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    let mut entries = dir::Entries::new(from.as_fd());
    while let Some(name) = entries.next()? {
        copy_entry(from.as_fd(), to, name, depth)?;
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd, to: BorrowedFd, name: &CStr, depth: u32) -> Sys<()> {
    let st = fd::fstatat(from, name, libc::AT_SYMLINK_NOFOLLOW)?;
    let (uid, gid) = dir::owner_at(from, name)?;
    let nofollow = libc::O_NOFOLLOW;
    match st.mode & libc::S_IFMT {
        libc::S_IFDIR => {
            fd::mkdirat(to, name, 0o700)?;
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | nofollow;
            let source = fd::openat(from, name, flags, 0)?;
            let target = fd::openat(to, name, flags, 0)?;
            copy_dir(source.as_fd(), target.as_fd(), depth - 1)?;
            fd::fchown(target.as_fd(), uid, gid)?;
            dir::fchmod(target.as_fd(), st.mode & 0o7777)
        }
        libc::S_IFREG => {
            let source = fd::openat(from, name, libc::O_RDONLY | nofollow, 0)?;
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | nofollow;
            let target = fd::openat(to, name, flags, 0o600)?;
            dir::copy_bytes(source.as_fd(), target.as_fd())?;
            fd::fchown(target.as_fd(), uid, gid)?;
            dir::fchmod(target.as_fd(), st.mode & 0o7777)
        }
        libc::S_IFLNK => {
            let mut buf = [0u8; 4096];
            let link = dir::readlink(from, name, &mut buf)?;
            fd::symlinkat(link, to, name)?;
            fd::chown_entry(to, name, uid, gid)
        }
        // Sockets can't be copied and mean nothing without their server.
        libc::S_IFSOCK => Ok(()),
        _ => {
            fd::mknodat(to, name, st.mode, st.rdev)?;
            fd::chown_entry(to, name, uid, gid)
        }
    }
}
