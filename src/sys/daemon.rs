//! Going to the background: fork, session, /dev/null.

use super::{Sys, check};
use nix::errno::Errno;
use std::os::fd::AsRawFd;

/// Which side of [`fork`] this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The caller, with the child's process id.
    Parent(i32),
    /// The new process.
    Child,
}

/// fork(2), refused when the process has threads: the child of a threaded process may only call
/// async-signal-safe functions, and this one goes on as a program of its own.
///
/// # Errors
/// EBUSY with threads; what fork(2) says.
pub fn fork() -> Sys<Side> {
    // A thread that was joined is listed until the kernel has taken it down: a moment's patience.
    let threads = || std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    let mut patience = 200;
    while threads() != 1 {
        if patience == 0 {
            return Err(Errno::EBUSY);
        }
        patience -= 1;
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // SAFETY: the only thread is this one, so no lock is held by another in the child's copy.
    let pid = check(libc::c_long::from(unsafe { libc::fork() }))?;
    Ok(match i32::try_from(pid) {
        Ok(0) => Side::Child,
        Ok(pid) => Side::Parent(pid),
        Err(_) => return Err(Errno::EOVERFLOW),
    })
}

/// Puts /dev/null in place of stdin, stdout and stderr.
///
/// # Errors
/// /dev/null can't be opened, dup2(2) failed.
pub fn null_stdio() -> Sys<()> {
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
    for fd in 0..3 {
        // SAFETY: plain descriptors; nothing of ours owns 0, 1 and 2.
        check(libc::c_long::from(unsafe {
            libc::dup2(null.as_raw_fd(), fd)
        }))?;
    }
    Ok(())
}
