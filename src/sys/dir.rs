//! Reading directories and copying files without allocating.

use super::{Sys, check, fd};
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Entries of a directory by getdents64(2), from a buffer on the stack.
pub struct Entries<'a> {
    dir: BorrowedFd<'a>,
    buf: [u8; 2048],
    len: usize,
    pos: usize,
}

impl<'a> Entries<'a> {
    /// Reads from a directory opened for reading.
    pub fn new(dir: BorrowedFd<'a>) -> Self {
        Entries {
            dir,
            buf: [0; 2048],
            len: 0,
            pos: 0,
        }
    }

    /// The next name other than `.` and `..`.
    #[allow(clippy::should_implement_trait)] // lends from its own buffer, as Iterator can't
    pub fn next(&mut self) -> Sys<Option<&CStr>> {
        // struct linux_dirent64: ino 8, off 8, reclen 2, type 1, then the name.
        const RECLEN: usize = 16;
        const NAME: usize = 19;
        loop {
            if self.pos >= self.len {
                // SAFETY: buf is valid for its length.
                let n = check(unsafe {
                    libc::syscall(
                        libc::SYS_getdents64,
                        self.dir.as_raw_fd(),
                        self.buf.as_mut_ptr(),
                        self.buf.len(),
                    )
                })?;
                self.len = n as usize;
                self.pos = 0;
                if self.len == 0 {
                    return Ok(None);
                }
            }
            let at = self.pos;
            let reclen = usize::from(u16::from_ne_bytes([
                self.buf[at + RECLEN],
                self.buf[at + RECLEN + 1],
            ]));
            self.pos += reclen;
            let name = &self.buf[at + NAME..at + reclen];
            if name.starts_with(b".\0") || name.starts_with(b"..\0") {
                continue;
            }
            let end = at + reclen;
            return CStr::from_bytes_until_nul(&self.buf[at + NAME..end])
                .map(Some)
                .map_err(|_| Errno::EIO);
        }
    }
}

fn raw_stat(dir: BorrowedFd, name: &CStr, flags: i32) -> Sys<libc::stat> {
    // SAFETY: zero is a valid stat.
    let mut st: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: name is NUL-terminated, st valid for writing.
    check(unsafe { libc::fstatat(dir.as_raw_fd(), name.as_ptr(), &raw mut st, flags) }.into())?;
    Ok(st)
}

/// Owner and group of an open file.
pub fn owner(fd: BorrowedFd) -> Sys<(u32, u32)> {
    raw_stat(fd, c"", libc::AT_EMPTY_PATH).map(|st| (st.st_uid, st.st_gid))
}

/// Owner and group of an entry, links not followed.
pub fn owner_at(dir: BorrowedFd, name: &CStr) -> Sys<(u32, u32)> {
    raw_stat(dir, name, libc::AT_SYMLINK_NOFOLLOW).map(|st| (st.st_uid, st.st_gid))
}

/// fchmod(2).
pub fn fchmod(fd: BorrowedFd, mode: u32) -> Sys<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::fchmod(fd.as_raw_fd(), mode) }.into())?;
    Ok(())
}

/// readlinkat(2) into `buf`, as a C string.
pub fn readlink<'a>(dir: BorrowedFd, name: &CStr, buf: &'a mut [u8; 4096]) -> Sys<&'a CStr> {
    // SAFETY: name is NUL-terminated; one byte is left for the NUL.
    let n = check(unsafe {
        libc::readlinkat(
            dir.as_raw_fd(),
            name.as_ptr(),
            buf.as_mut_ptr().cast(),
            buf.len() - 1,
        )
    } as libc::c_long)?;
    buf[n as usize] = 0;
    CStr::from_bytes_until_nul(buf).map_err(|_| Errno::EINVAL)
}

/// Copies from one file to another by read and write with a buffer on the stack.
pub fn copy_bytes(from: BorrowedFd, to: BorrowedFd) -> Sys<()> {
    let mut buf = [0u8; 16384];
    loop {
        match fd::read(from, &mut buf)? {
            0 => return Ok(()),
            n => fd::write_all(to, &buf[..n])?,
        }
    }
}
