//! Our side of a cell's terminal: raw mode, bytes both ways, the window size.

use crate::sys::{Sys, fd, tty};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The user's terminal in raw mode; restored when dropped.
pub struct Raw {
    saved: Option<Termios>,
}

impl Raw {
    /// Puts stdin into raw mode when it is a terminal.
    pub fn enter() -> Self {
        let stdin = std::io::stdin();
        let saved = tcgetattr(&stdin).ok();
        if let Some(old) = &saved {
            let mut raw = old.clone();
            cfmakeraw(&mut raw);
            let _ = tcsetattr(&stdin, SetArg::TCSANOW, &raw);
        }
        Raw { saved }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(old) = &self.saved {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, old);
        }
    }
}

/// Gives the cell's terminal the size of ours.
pub fn copy_size(master: BorrowedFd) {
    for n in [0, 1, 2] {
        if let Ok((rows, cols)) = tty::size(fd::borrow(n)) {
            // A terminal without a size (a pipe's pretence) tells nothing.
            if rows > 0 && cols > 0 {
                let _ = tty::set_size(master, rows, cols);
            }
            return;
        }
    }
}

/// The bytes between the user and the cell's terminal.
pub struct Pump {
    master: OwnedFd,
    stdin_open: bool,
}

impl Pump {
    /// Takes the terminal's master.
    pub fn new(master: OwnedFd, interactive: bool) -> Self {
        Pump {
            master,
            stdin_open: interactive,
        }
    }

    /// The master, to poll.
    pub fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// Our stdin may still have something for the cell.
    pub fn wants_input(&self) -> bool {
        self.stdin_open
    }

    /// Moves what the user typed; end of input becomes ^D, as a terminal would have it.
    pub fn input(&mut self) -> Sys<()> {
        const EOT: u8 = 4;
        let mut buf = [0; 8192];
        match fd::read(fd::borrow(0), &mut buf) {
            Ok(0) => {
                self.stdin_open = false;
                fd::write_all(self.master(), &[EOT])
            }
            Ok(n) => fd::write_all(self.master(), &buf[..n]),
            Err(_) => {
                self.stdin_open = false;
                Ok(())
            }
        }
    }

    /// Moves what the cell printed; false when its last slave is closed (EIO).
    pub fn output(&self) -> bool {
        let mut buf = [0; 8192];
        match fd::read(self.master(), &mut buf) {
            Ok(n) if n > 0 => fd::write_all(fd::borrow(1), &buf[..n]).is_ok(),
            _ => false,
        }
    }
}
