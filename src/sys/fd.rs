//! Descriptors: openat2(2), close_range(2), and calls on paths relative to a directory.

use super::{Sys, check};
use nix::errno::Errno;
use std::ffi::CStr;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Don't cross mount points (openat2(2)).
pub const RESOLVE_NO_XDEV: u64 = 0x01;
/// Don't follow any symbolic link (openat2(2)).
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
/// Don't follow /proc's magic links.
pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
/// Refuse to leave the directory.
pub const RESOLVE_BENEATH: u64 = 0x08;
/// Treat the directory as the root, as chroot would.
pub const RESOLVE_IN_ROOT: u64 = 0x10;

/// How often a path walk that raced with a rename is tried again (EAGAIN of openat2(2)).
/// A cell that keeps renaming may make creation fail, but can't make it hang.
const EAGAIN_TRIES: u32 = 128;

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// openat2(2), with a bounded retry on EAGAIN. `flags` gets O_CLOEXEC.
pub fn openat2(dir: BorrowedFd, path: &CStr, flags: i32, mode: u32, resolve: u64) -> Sys<OwnedFd> {
    let how = OpenHow {
        flags: (flags | libc::O_CLOEXEC) as u64,
        mode: mode.into(),
        resolve,
    };
    let mut tries = 0;
    loop {
        // SAFETY: path is NUL-terminated, how is valid for its size.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<OpenHow>(),
            )
        };
        match check(ret) {
            Err(Errno::EAGAIN) if tries < EAGAIN_TRIES => tries += 1,
            Err(e) => return Err(e),
            // SAFETY: a new descriptor.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
        }
    }
}

/// Opens `path` with `root` as "/", never leaving it and never through a magic link.
pub fn open_in_root(root: BorrowedFd, path: &CStr, flags: i32) -> Sys<OwnedFd> {
    openat2(
        root,
        path,
        flags,
        0,
        RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
    )
}

/// openat(2) without path restrictions, for paths of the host.
pub fn open_host(path: &CStr, flags: i32) -> Sys<OwnedFd> {
    // SAFETY: path is NUL-terminated.
    let fd = check(
        unsafe { libc::openat(libc::AT_FDCWD, path.as_ptr(), flags | libc::O_CLOEXEC, 0) }.into(),
    )?;
    // SAFETY: a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The current directory as a descriptor argument (AT_FDCWD).
pub fn at_cwd() -> BorrowedFd<'static> {
    // SAFETY: AT_FDCWD is a constant the *at calls understand; it is never closed.
    unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) }
}

/// Borrows a raw descriptor that is known to stay open (inherited over clone).
pub fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    debug_assert!(fd >= 0);
    // SAFETY: callers pass descriptors owned by the parent's copy of the same table.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Takes ownership of a descriptor number received from elsewhere (environment, flags).
pub fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller owns the number by contract.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// close_range(2): closes every descriptor in `first..=last`.
pub fn close_range(first: u32, last: u32) -> Sys<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: callers only keep descriptors outside the range.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

/// close_range(2) with CLOSE_RANGE_CLOEXEC: marks instead of closing.
pub fn cloexec_range(first: u32, last: u32) -> Sys<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 1 << 2;
    if first > last {
        return Ok(());
    }
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// What fstat(2) says, as far as set-up needs it.
#[derive(Clone, Copy)]
pub struct Stat {
    /// st_mode.
    pub mode: u32,
    /// st_rdev.
    pub rdev: u64,
}

impl Stat {
    /// The object is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }
}

/// fstat(2).
pub fn fstat(fd: BorrowedFd) -> Sys<Stat> {
    // SAFETY: zero is a valid stat, and st is valid for writing.
    let mut st: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    check(unsafe { libc::fstat(fd.as_raw_fd(), &raw mut st) }.into())?;
    Ok(Stat {
        mode: st.st_mode,
        rdev: st.st_rdev,
    })
}

/// fstatat(2).
pub fn fstatat(dir: BorrowedFd, path: &CStr, flags: i32) -> Sys<Stat> {
    // SAFETY: zero is a valid stat.
    let mut st: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: path is NUL-terminated, st valid for writing.
    check(unsafe { libc::fstatat(dir.as_raw_fd(), path.as_ptr(), &raw mut st, flags) }.into())?;
    Ok(Stat {
        mode: st.st_mode,
        rdev: st.st_rdev,
    })
}

/// Is `name` in this folder a regular file that nothing is mounted on? A link is none. A kernel that doesn't tell
/// of mounts (STATX_ATTR_MOUNT_ROOT of statx(2), Linux 5.8) is taken to have one there.
pub fn is_own_file(dir: BorrowedFd, name: &CStr) -> Sys<bool> {
    // SAFETY: zero is a valid statx.
    let mut st: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: name is NUL-terminated, st valid for writing.
    check(
        unsafe {
            libc::statx(
                dir.as_raw_fd(),
                name.as_ptr(),
                flags,
                libc::STATX_TYPE,
                &raw mut st,
            )
        }
        .into(),
    )?;
    let root = libc::STATX_ATTR_MOUNT_ROOT as u64;
    let told = st.stx_mask & libc::STATX_TYPE != 0 && st.stx_attributes_mask & root != 0;
    let file = u32::from(st.stx_mode) & libc::S_IFMT == libc::S_IFREG;
    Ok(told && file && st.stx_attributes & root == 0)
}

/// The magic number of the file system behind a descriptor (fstatfs(2)).
pub fn fs_magic(fd: BorrowedFd) -> Sys<i64> {
    // SAFETY: zero is a valid statfs.
    let mut st: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: st is valid for writing.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut st) }.into())?;
    Ok(st.f_type as i64)
}

/// faccessat2(2) with AT_EACCESS: may the effective ids execute this?
pub fn may_execute(dir: BorrowedFd, path: &CStr) -> Sys<()> {
    // SAFETY: path is NUL-terminated.
    check(unsafe {
        libc::syscall(
            libc::SYS_faccessat2,
            dir.as_raw_fd(),
            path.as_ptr(),
            libc::X_OK,
            libc::AT_EACCESS,
        )
    })?;
    Ok(())
}

/// read(2), retried on EINTR.
pub fn read(fd: BorrowedFd, buf: &mut [u8]) -> Sys<usize> {
    loop {
        // SAFETY: buf is valid for its length.
        let ret = unsafe { libc::read(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) };
        match check(ret as libc::c_long) {
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e),
            Ok(n) => return Ok(n as usize),
        }
    }
}

/// write(2) of the whole buffer, for files that take it in one piece or pipes.
pub fn write_all(fd: BorrowedFd, mut buf: &[u8]) -> Sys<()> {
    while !buf.is_empty() {
        // SAFETY: buf is valid for its length.
        let ret = unsafe { libc::write(fd.as_raw_fd(), buf.as_ptr().cast(), buf.len()) };
        match check(ret as libc::c_long) {
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e),
            Ok(0) => return Err(Errno::EIO),
            Ok(n) => buf = &buf[n as usize..],
        }
    }
    Ok(())
}

/// O_NONBLOCK (fcntl(2), F_SETFL).
pub fn set_nonblocking(fd: BorrowedFd) -> Sys<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }.into())?;
    Ok(())
}

/// One write(2), retried on EINTR; returns how many bytes went.
pub fn write_some(fd: BorrowedFd, buf: &[u8]) -> Sys<usize> {
    loop {
        // SAFETY: buf is valid for its length.
        let ret = unsafe { libc::write(fd.as_raw_fd(), buf.as_ptr().cast(), buf.len()) };
        match check(ret as libc::c_long) {
            Err(Errno::EINTR) => continue,
            other => return other.map(|n| n as usize),
        }
    }
}

/// Opens an existing file below `dir`, writes `data` in one write(2), closes.
pub fn write_file(dir: BorrowedFd, path: &CStr, data: &[u8]) -> Sys<()> {
    let fd = openat(dir, path, libc::O_WRONLY, 0)?;
    write_all(std::os::fd::AsFd::as_fd(&fd), data)
}

/// openat(2); `flags` gets O_CLOEXEC.
pub fn openat(dir: BorrowedFd, path: &CStr, flags: i32, mode: u32) -> Sys<OwnedFd> {
    // SAFETY: path is NUL-terminated.
    let fd = check(
        unsafe {
            libc::openat(
                dir.as_raw_fd(),
                path.as_ptr(),
                flags | libc::O_CLOEXEC,
                mode as libc::c_uint,
            )
        }
        .into(),
    )?;
    // SAFETY: a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// mkdirat(2).
pub fn mkdirat(dir: BorrowedFd, path: &CStr, mode: u32) -> Sys<()> {
    // SAFETY: path is NUL-terminated.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), path.as_ptr(), mode) }.into())?;
    Ok(())
}

/// mknodat(2).
pub fn mknodat(dir: BorrowedFd, path: &CStr, mode: u32, dev: u64) -> Sys<()> {
    // SAFETY: path is NUL-terminated.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), path.as_ptr(), mode, dev) }.into())?;
    Ok(())
}

/// symlinkat(2).
pub fn symlinkat(target: &CStr, dir: BorrowedFd, path: &CStr) -> Sys<()> {
    // SAFETY: both strings are NUL-terminated.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), path.as_ptr()) }.into())?;
    Ok(())
}

/// unlinkat(2).
pub fn unlinkat(dir: BorrowedFd, path: &CStr, flags: i32) -> Sys<()> {
    // SAFETY: path is NUL-terminated.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), path.as_ptr(), flags) }.into())?;
    Ok(())
}

/// renameat(2) within one directory: what `to` named is gone.
pub fn renameat(dir: BorrowedFd, from: &CStr, to: &CStr) -> Sys<()> {
    let fd = dir.as_raw_fd();
    // SAFETY: both strings are NUL-terminated.
    check(unsafe { libc::renameat(fd, from.as_ptr(), fd, to.as_ptr()) }.into())?;
    Ok(())
}

/// fchownat(2) on the entry itself.
pub fn chown_entry(dir: BorrowedFd, path: &CStr, uid: u32, gid: u32) -> Sys<()> {
    // SAFETY: path is NUL-terminated.
    check(
        unsafe {
            libc::fchownat(
                dir.as_raw_fd(),
                path.as_ptr(),
                uid,
                gid,
                libc::AT_SYMLINK_NOFOLLOW,
            )
        }
        .into(),
    )?;
    Ok(())
}

/// fchown(2).
pub fn fchown(fd: BorrowedFd, uid: u32, gid: u32) -> Sys<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::fchown(fd.as_raw_fd(), uid, gid) }.into())?;
    Ok(())
}

/// fchdir(2).
pub fn fchdir(fd: BorrowedFd) -> Sys<()> {
    // SAFETY: plain integer.
    check(unsafe { libc::fchdir(fd.as_raw_fd()) }.into())?;
    Ok(())
}

/// chroot(2).
pub fn chroot(path: &CStr) -> Sys<()> {
    // SAFETY: path is NUL-terminated.
    check(unsafe { libc::chroot(path.as_ptr()) }.into())?;
    Ok(())
}

/// dup2(2) (dup3 without flags: the copy survives exec).
pub fn dup2(from: BorrowedFd, to: RawFd) -> Sys<()> {
    // SAFETY: plain integers; the caller owns `to`.
    check(unsafe { libc::dup2(from.as_raw_fd(), to) }.into())?;
    Ok(())
}

/// Clears or sets close-on-exec.
pub fn set_cloexec(fd: BorrowedFd, on: bool) -> Sys<()> {
    let flag = if on { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: plain integers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, flag) }.into())?;
    Ok(())
}
