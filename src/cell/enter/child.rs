//! One more process in a cell: the child's side. Joins the cell and becomes the program.
//!
//! As [`crate::cell::child`]: nothing here allocates, takes a lock or decides.

use super::super::child::{
    Last, Never, become_root, close_all_but, exit_code, join_tasks, keyring, proc_self, terminal,
};
use super::super::fault::{At, Fault, Stage, Step};
use super::super::wire;
use crate::plan::{ExecPlan, ProcessPlan};
use crate::process::{identity, lookup};
use crate::rootfs::path;
use crate::sys::misc::{self, CArray};
use crate::sys::{clone, cred, fd, socket};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};

/// What the child is given, all built before clone3.
#[derive(Clone, Copy)]
pub struct Joiner<'a> {
    /// The Plan.
    pub plan: &'a ExecPlan,
    /// The cell's first process.
    pub pidfd: BorrowedFd<'a>,
    /// CLONE_NEW* of the namespaces to enter.
    pub enter: u64,
    /// The cell's user namespace is another than the caller's.
    pub joins_user: bool,
    /// It was made by a process in between, in the cell's user namespace already and with its limits set.
    pub born_inside: bool,
    /// Its end of the socket pair.
    pub sock: BorrowedFd<'a>,
    /// Connected socket that receives the terminal's master.
    pub console: Option<BorrowedFd<'a>>,
    /// v1 `tasks` files to join.
    pub join_files: &'a [CString],
    /// Descriptors 3.. that the program inherits.
    pub preserve_fds: u32,
}

/// Entry point of the child; returns only when something failed.
pub fn main(joiner: &Joiner, argv: &CArray, envp: &mut CArray) -> i32 {
    match steps(joiner, argv, envp) {
        Ok(never) => match never {},
        Err(fault) => {
            let wire = fault.encode(wire::FAULT);
            // write(2) rather than send(2): a seccomp filter may already be in force.
            let _ = fd::write_all(joiner.sock, &wire);
            exit_code(&fault)
        }
    }
}

fn steps(joiner: &Joiner, argv: &CArray, envp: &mut CArray) -> Step<Never> {
    let mut home = [0; lookup::HOME_MAX];
    let program = prepare(joiner, envp, &mut home)?;
    let errno = misc::execve(program, argv.as_slice(), envp.as_slice());
    Err(Fault::new(Stage::Exec, 0, errno))
}

fn prepare<'a>(
    joiner: &Joiner<'a>,
    envp: &mut CArray,
    home: &mut [u8; lookup::HOME_MAX],
) -> Step<&'a CStr> {
    let plan = joiner.plan;
    let p = &plan.process;
    clone::set_pdeathsig(libc::SIGKILL).at(Stage::Prepare, 0)?;
    // First of all: this process is in the cell's sight from its birth on, and none of the parent's
    // descriptors is any use to it (CVE-2024-21626).
    let keep = [Some(joiner.pidfd), Some(joiner.sock), joiner.console];
    close_all_but(keep, joiner.preserve_fds)?;
    misc::unblock_signals();
    misc::umask(0);
    join_tasks(joiner.join_files)?;
    misc::setsid().at(Stage::Prepare, 1)?;
    // Through the host's procfs, and with the host's privileges, while both are there.
    if !joiner.born_inside {
        limits(p)?;
    }
    let labels = labels(p)?;
    if let Some(cpus) = &plan.cpus {
        // In its group by now, whose CPUs bound it.
        misc::set_affinity(cpus).at(Stage::Affinity, 0)?;
    }
    // For callers that aren't root: theirs was not the parent's (see `start`).
    cred::set_dumpable(false).at(Stage::Prepare, 3)?;
    if joiner.enter != 0 {
        // All at once, so that no process is ever in some of them only. The kernel takes the user
        // namespace first (kernel/nsproxy.c, validate_nsset), and root and working directory
        // become the mount namespace's. The cgroup namespace may come now that the group is joined:
        // with `nsdelegate` the other order is ENOENT.
        clone::setns(joiner.pidfd, joiner.enter as i32).at(Stage::JoinNamespace, 0)?;
    }
    if joiner.joins_user {
        become_root().at(Stage::UserNamespace, 0)?;
    }
    keyring(p)?;
    let root = fd::open_host(c"/", libc::O_PATH | libc::O_DIRECTORY).at(Stage::Root, 0)?;
    // Not made when missing, unlike at creation. A magic link (/proc/self/fd/N) is refused.
    let cwd = path::open(root.as_fd(), &p.cwd, path::Links::Follow).at(Stage::Cwd, 0)?;
    if p.terminal {
        terminal(p, joiner.console, root.as_fd(), false)?;
    }
    let ready = wire::plain(wire::READY);
    socket::send(joiner.sock, &ready, None).at(Stage::Sync, 2)?;
    let last = Last {
        process: p,
        seccomp: plan.seccomp.as_ref(),
        sock: joiner.sock,
        keep: [None, None],
        preserve_fds: joiner.preserve_fds,
        hooks_follow: false,
    };
    last.steps(root, cwd, labels, envp, home)
}

/// Limits that the host's privileges are needed for.
pub(super) fn limits(p: &ProcessPlan) -> Step {
    identity::rlimits(p)?;
    match &p.oom_score_adj {
        Some(_) => identity::oom_score(p, proc_self()?.as_fd()),
        None => Ok(()),
    }
}

fn labels(p: &ProcessPlan) -> Step<identity::Labels> {
    match p.apparmor.is_some() || p.selinux.is_some() {
        true => identity::Labels::open(p, proc_self()?.as_fd()),
        false => Ok(identity::Labels::default()),
    }
}
