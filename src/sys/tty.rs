//! Terminals: pty pairs, the controlling terminal, window size.

use super::{Sys, check};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Opens the slave of a pty master without a path lookup (TIOCGPTPEER, Linux 4.13): nothing in
/// the cell's /dev/pts can be swapped for it.
pub fn open_peer(master: BorrowedFd) -> Sys<OwnedFd> {
    // SAFETY: TIOCGPTPEER takes open(2) flags by value.
    let fd = check(
        unsafe {
            libc::ioctl(
                master.as_raw_fd(),
                libc::TIOCGPTPEER,
                libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
            )
        }
        .into(),
    )?;
    // SAFETY: a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Unlocks the slave (TIOCSPTLCK).
pub fn unlock(master: BorrowedFd) -> Sys<()> {
    let zero: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK takes a pointer to int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const zero) }.into())?;
    Ok(())
}

/// The slave's number below /dev/pts (TIOCGPTN).
pub fn pts_number(master: BorrowedFd) -> Sys<u32> {
    let mut n: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes an unsigned int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut n) }.into())?;
    Ok(n)
}

/// Makes `fd` the controlling terminal of this session (TIOCSCTTY).
pub fn set_controlling(fd: BorrowedFd) -> Sys<()> {
    // SAFETY: TIOCSCTTY takes an int by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }.into())?;
    Ok(())
}

/// Sets the window size in character cells (TIOCSWINSZ).
pub fn set_size(fd: BorrowedFd, rows: u16, cols: u16) -> Sys<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads a winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into())?;
    Ok(())
}

/// The window size as (rows, columns) (TIOCGWINSZ).
pub fn size(fd: BorrowedFd) -> Sys<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes a winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }.into())?;
    Ok((size.ws_row, size.ws_col))
}
