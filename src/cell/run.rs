//! Running a cell to its end: create, start, wait, clean up.

use super::checkpoint::{self, RestoreOptions};
use super::create::{CreateOptions, Made, Until, create};
use super::ops;
use super::store::Store;
use crate::cgroup::{self, OomInfo};
use crate::process::terminal::{self, Pump, Raw};
use crate::sys::clone::{self, Child, Exit};
use crate::sys::misc;
use crate::{Error, Result};
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How to run.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// Return once the program is executed; the cell stays.
    pub detach: bool,
    /// Leave the state when the program ends (`runc run --keep`).
    pub keep: bool,
    /// Don't take in the cell's orphans.
    pub no_subreaper: bool,
    /// Our stdin goes to the cell's terminal.
    pub interactive: bool,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct RunOutcome {
    /// The program's status, 128 + signal when killed; 0 when detached.
    pub code: i32,
    /// Its memory, when the OOM killer struck in the cell and the first process died of SIGKILL.
    pub oom: Option<OomInfo>,
    /// What was tolerated.
    pub warnings: Vec<String>,
}

/// Creates and runs a cell. In the foreground, signals go to the program, and everything is
/// removed when it ends.
pub fn run(store: &Store, opts: CreateOptions, how: RunOptions) -> Result<RunOutcome> {
    let signals = ready(how)?;
    let made = create(store, opts, Until::Running)?;
    if let Err(e) = ops::poststart(&made.lock, &made.saved) {
        let _ = made.saved.cgroup.kill_all();
        let _ = clone::wait_pidfd(made.child.pidfd.as_fd());
        ops::destroy(&made.lock, &made.saved)?;
        return Err(e);
    }
    follow(store, made, signals, how)
}

/// Restores a cell, and is with it as [`run`] is.
///
/// # Errors
/// As [`checkpoint::restore`] and [`run`].
pub fn restore(
    store: &Store,
    opts: CreateOptions,
    from: &RestoreOptions,
    how: RunOptions,
) -> Result<RunOutcome> {
    let signals = ready(how)?;
    let made = checkpoint::restore(store, opts, from)?;
    follow(store, made, signals, how)
}

/// What has to be settled before there is a child; the signals when it is followed to its end.
fn ready(how: RunOptions) -> Result<Option<Signals>> {
    if !how.detach && !how.no_subreaper {
        clone::set_subreaper().map_err(|e| Error::step("become", "subreaper", e))?;
    }
    match how.detach {
        true => Ok(None),
        false => Signals::block().map(Some),
    }
}

/// Leaves a cell to itself, or follows it to its end.
fn follow(
    store: &Store,
    made: Made,
    signals: Option<Signals>,
    how: RunOptions,
) -> Result<RunOutcome> {
    let Made {
        saved,
        lock,
        child,
        console,
        warnings,
    } = made;
    let Some(signals) = signals else {
        return Ok(RunOutcome {
            code: 0,
            oom: None,
            warnings,
        });
    };
    // Others may look at, signal or delete the cell while it runs.
    drop(lock);
    let exit = wait(&child, &signals, console, how.interactive)?;
    // A shell or an init passes its child's death on as 128 + SIGKILL.
    let oom = match exit.code() {
        137 => saved.cgroup.oom().filter(|o| o.kills > 0),
        _ => None,
    };
    // The end of the talk with the child is the same whether it became the program or died; with
    // such a limit it was the latter.
    let too_low = match &oom {
        Some(info) if cgroup::hopeless(info) => cgroup::too_low(&saved.cgroup),
        _ => None,
    };
    if !how.keep {
        // `delete -f` by somebody else may have come first.
        match store.lock(&saved.id) {
            Ok(lock) => ops::destroy(&lock, &saved)?,
            Err(_) => saved.cgroup.remove()?,
        }
    }
    if let Some(text) = too_low {
        return Err(Error::msg(text));
    }
    Ok(RunOutcome {
        code: exit.code(),
        oom,
        warnings,
    })
}

/// All signals, as events.
pub(super) struct Signals(OwnedFd);

impl Signals {
    /// The descriptor, to poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub fn block() -> Result<Self> {
        misc::block_signals();
        misc::signalfd_all()
            .map(Signals)
            .map_err(|e| Error::step("make", "signal descriptor", e))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        misc::unblock_signals();
    }
}

/// Forwards signals and terminal bytes until the process ends.
pub(super) fn wait(
    child: &Child,
    signals: &Signals,
    console: Option<OwnedFd>,
    interactive: bool,
) -> Result<Exit> {
    let fail = |e: Errno| Error::step("wait for", "the cell", e);
    let raw = console
        .as_ref()
        .filter(|_| interactive)
        .map(|_| Raw::enter());
    let mut pump = console.map(|master| Pump::new(master, interactive));
    if let Some(p) = &pump {
        terminal::copy_size(p.master());
    }
    loop {
        let mut fds: Vec<BorrowedFd> = vec![child.pidfd.as_fd(), signals.0.as_fd()];
        if let Some(p) = &pump {
            fds.push(p.master());
            if p.wants_input() {
                fds.push(crate::sys::fd::borrow(0));
            }
        }
        let ready = misc::poll_in(&fds, -1).map_err(fail)?;
        drop(fds);
        while ready[1]
            && let Some(signal) = misc::read_signal(signals.0.as_fd())
        {
            forward(signal, child, pump.as_ref());
        }
        let mut hung_up = false;
        if let Some(p) = &mut pump {
            if ready[3] {
                p.input().map_err(fail)?;
            }
            hung_up = ready[2] && !p.output();
        }
        if ready[0] {
            // What the program printed last is still in the terminal.
            while let Some(p) = &pump
                && !hung_up
                && misc::poll_in(&[p.master()], 0).map_err(fail)?[0]
            {
                hung_up = !p.output();
            }
            drop(raw);
            return clone::wait_pidfd(child.pidfd.as_fd()).map_err(fail);
        }
        if hung_up {
            // The last slave is closed, but the program lives on.
            pump = None;
        }
    }
}

fn forward(signal: i32, child: &Child, pump: Option<&Pump>) {
    match signal {
        // Orphans of the cell that came to us.
        libc::SIGCHLD => reap(child.pid),
        libc::SIGWINCH => {
            if let Some(p) = pump {
                terminal::copy_size(p.master());
            }
        }
        // The runtime's own job control.
        libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU | libc::SIGPIPE => {}
        other => {
            let _ = clone::pidfd_kill(child.pidfd.as_fd(), other);
        }
    }
}

/// Reaps every dead child but the first process, whose status is collected by its pidfd.
fn reap(first: i32) {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(status) = waitid(Id::All, peek) {
        match status.pid() {
            Some(pid) if pid.as_raw() != first => {
                let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
            }
            // The first process is dead too: the loop is about to see it.
            Some(_) => return,
            None => {
                debug_assert!(matches!(status, WaitStatus::StillAlive));
                return;
            }
        }
    }
}
