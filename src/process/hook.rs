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
    for piece in state {
        // A hook need not read its state: EPIPE is its right (SIGPIPE is ignored in the parent,
        // blocked in the child).
        match fd::write_all(write.as_fd(), piece) {
            Ok(()) => {}
            Err(Errno::EPIPE) => break,
            Err(e) => return Err(e),
        }
    }
    drop(write);
    let mut errno = [0u8; 4];
    if fd::read(err_read.as_fd(), &mut errno)? == errno.len() {
        clone::wait_pidfd(child.pidfd.as_fd())?;
        return Ok(Outcome::NoExec(Errno::from_raw(i32::from_ne_bytes(errno))));
    }
    let end = hook
        .plan
        .timeout
        .map(|s| Instant::now() + Duration::from_secs(s.into()));
    loop {
        let left = match end {
            None => -1,
            Some(end) => {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    clone::pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL)?;
                    clone::wait_pidfd(child.pidfd.as_fd())?;
                    return Ok(Outcome::TimedOut);
                }
                i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
            }
        };
        if misc::poll_in(&[child.pidfd.as_fd()], left)?[0] {
            return clone::wait_pidfd(child.pidfd.as_fd()).map(Outcome::Ended);
        }
    }
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
