//! Running hooks: a fork, an exec with exactly the environment given, state on stdin, a timeout.
//!
//! [`run`] allocates nothing, so the child after clone3 uses it too.

use crate::plan::HookPlan;
use crate::sys::clone::{self, Clone3, Exit};
use crate::sys::misc::{self, CArray};
use crate::sys::{Sys, fd, pipe};
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// A hook with its argument arrays built.
pub struct Ready<'a> {
    plan: &'a HookPlan,
    argv: CArray,
    envp: CArray,
}

impl<'a> Ready<'a> {
    /// Builds the arrays execve(2) wants.
    pub fn new(plan: &'a HookPlan) -> Self {
        Ready {
            argv: CArray::new(&plan.args, 0),
            envp: CArray::new(&plan.env, 0),
            plan,
        }
    }
}

/// How a hook ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It exited or was killed.
    Ended(Exit),
    /// It could not be executed.
    NoExec(Errno),
    /// It was killed because its time was over.
    TimedOut,
}

/// Status with which the fork says that exec failed; the errno is in the pipe's other direction.
const EXEC_FAILED: i32 = 254;

/// Runs one hook with `state` (pieces of one JSON text) on its stdin and waits for it.
///
/// The environment is the hook's own and nothing else; descriptors above 2 are closed
/// (CVE-2025-23266 is what an inherited environment does).
pub fn run(hook: &Ready, state: &[&[u8]]) -> Sys<Outcome> {
    let (read, write) = pipe::pair()?;
    let (err_read, err_write) = pipe::pair()?;
    let child = clone::clone3(
        &Clone3 {
            flags: 0,
            cgroup: None,
        },
        || {
            let errno = exec(hook, read.as_fd());
            let _ = fd::write_all(err_write.as_fd(), &(errno as i32).to_ne_bytes());
            EXEC_FAILED
        },
    )?;
    drop(read);
    drop(err_write);
    let end = hook
        .plan
        .timeout
        .map(|s| Instant::now() + Duration::from_secs(s.into()));
    let told = give(write.as_fd(), state, end)?;
    drop(write);
    if !told {
        return time_over(&child);
    }
    let mut errno = [0u8; 4];
    if fd::read(err_read.as_fd(), &mut errno)? == errno.len() {
        clone::wait_pidfd(child.pidfd.as_fd())?;
        return Ok(Outcome::NoExec(Errno::from_raw(i32::from_ne_bytes(errno))));
    }
    loop {
        let left = left_ms(end);
        if left == 0 {
            return time_over(&child);
        }
        if misc::poll_in(&[child.pidfd.as_fd()], left)?[0] {
            return clone::wait_pidfd(child.pidfd.as_fd()).map(Outcome::Ended);
        }
    }
}

/// Writes the state, but no longer than the hook may take; false when its time is over. (A pipe
/// holds 64 KiB, annotations may be longer, and a hook need not read them.)
fn give(pipe: BorrowedFd, state: &[&[u8]], end: Option<Instant>) -> Sys<bool> {
    fd::set_nonblocking(pipe)?;
    for piece in state {
        let mut rest = *piece;
        while !rest.is_empty() {
            match fd::write_some(pipe, rest) {
                Ok(n) => rest = &rest[n..],
                // Not reading it is the hook's right (SIGPIPE is ignored in the parent and in
                // the child it made).
                Err(Errno::EPIPE) => return Ok(true),
                Err(Errno::EAGAIN) => match left_ms(end) {
                    0 => return Ok(false),
                    left => {
                        misc::poll_out(pipe, left)?;
                    }
                },
                Err(e) => return Err(e),
            }
        }
    }
    Ok(true)
}

/// For poll(2): -1 without an end, 0 when it is over.
fn left_ms(end: Option<Instant>) -> i32 {
    let Some(end) = end else {
        return -1;
    };
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return 0;
    }
    i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
}

fn time_over(child: &clone::Child) -> Sys<Outcome> {
    clone::pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL)?;
    clone::wait_pidfd(child.pidfd.as_fd())?;
    Ok(Outcome::TimedOut)
}

fn exec(hook: &Ready, stdin: BorrowedFd) -> Errno {
    let prepare = || -> Sys<()> {
        misc::reset_sigpipe();
        misc::unblock_signals();
        clone::set_pdeathsig(libc::SIGKILL)?;
        fd::dup2(stdin, 0)?;
        fd::cloexec_range(3, u32::MAX)
    };
    if let Err(e) = prepare() {
        return e;
    }
    misc::execve(&hook.plan.path, hook.argv.as_slice(), hook.envp.as_slice())
}
