//! One more process in a cell: the two processes that come to be for it. The first one stays out of the
//! cell's sight, joins the cell and makes the second one, which becomes the program.
//!
//! As [`crate::cell::child`]: nothing here allocates, takes a lock or decides.

use super::super::child::{
    Last, Never, become_root, close_all_but, exit_code, join_tasks, keyring, proc_self, terminal,
};
use super::super::fault::{At, Fault, Stage, Step};
use super::super::wire;
use crate::plan::ExecPlan;
use crate::process::{identity, lookup};
use crate::rootfs::path;
use crate::sys::clone::{self, Clone3};
use crate::sys::misc::{self, CArray};
use crate::sys::{cred, fd, socket};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// What both are given, all built before clone3.
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
    /// Their end of the socket pair.
    pub sock: BorrowedFd<'a>,
    /// Connected socket that receives the terminal's master.
    pub console: Option<BorrowedFd<'a>>,
    /// v1 `tasks` files to join.
    pub join_files: &'a [CString],
    /// A pipe on which to wait until the parent has had this process moved into the cell's group: its ends.
    pub hold: Option<(BorrowedFd<'a>, BorrowedFd<'a>)>,
    /// Descriptors 3.. that the program inherits.
    pub preserve_fds: u32,
}

/// Entry point of the first one, which has the cell's v2 group already. Its pid namespace is the caller's, so
/// that no process of the cell sees it.
pub fn between(joiner: &Joiner, argv: &CArray, envp: &mut CArray) -> i32 {
    let made = join(joiner).and_then(|()| {
        let args = Clone3 {
            // A child of the runtime, not of this process.
            flags: libc::CLONE_PARENT as u64,
            cgroup: None,
        };
        clone::clone3(&args, || main(joiner, argv, envp)).at(Stage::JoinNamespace, 0)
    });
    match made {
        Ok(_) => 0,
        Err(fault) => {
            let _ = fd::write_all(joiner.sock, &fault.encode(wire::FAULT));
            1
        }
    }
}

/// Joins the cell with all that its children inherit. What the cell sees of them from their birth on has
/// nothing of the host: no root or working directory, no file but the streams and the preserved ones.
fn join(joiner: &Joiner) -> Step {
    let plan = joiner.plan;
    let p = &plan.process;
    clone::set_pdeathsig(libc::SIGKILL).at(Stage::Prepare, 0)?;
    if let Some((hold, release)) = joiner.hold {
        // Or it would not end with the parent.
        let raw = release.as_raw_fd() as u32;
        fd::close_range(raw, raw).at(Stage::Prepare, 0)?;
        if fd::read(hold, &mut [0]).at(Stage::Sync, 0)? == 0 {
            clone::exit_now(1);
        }
    }
    join_tasks(joiner.join_files)?;
    // Through the host's procfs, and with the host's privileges, while both are there. The labels are for
    // the next exec, and a child has them from its parent.
    if p.oom_score_adj.is_some() || p.apparmor.is_some() || p.selinux.is_some() {
        let proc_self = proc_self()?;
        identity::oom_score(p, proc_self.as_fd())?;
        identity::Labels::open(p, proc_self.as_fd())?.apply(p)?;
    }
    identity::rlimits(p)?;
    if let Some(cpus) = &plan.cpus {
        // In its group by now, whose CPUs bound it.
        misc::set_affinity(cpus).at(Stage::Affinity, 0)?;
    }
    if joiner.enter != 0 {
        // All at once, so that no process is ever in some of them only. The kernel takes the user
        // namespace first (kernel/nsproxy.c, validate_nsset), and root and working directory
        // become the mount namespace's. The cgroup namespace may come now that the group is joined:
        // with `nsdelegate` the other order is ENOENT. The pid namespace is for children only.
        clone::setns(joiner.pidfd, joiner.enter as i32).at(Stage::JoinNamespace, 0)?;
    }
    if joiner.joins_user {
        become_root().at(Stage::UserNamespace, 0)?;
    }
    // A change of ids makes it what fs.suid_dumpable says; for callers that aren't root it must come after
    // the writes above, for it makes this process's files in /proc root's.
    cred::set_dumpable(false).at(Stage::Prepare, 3)?;
    // CVE-2024-21626, CVE-2016-9962.
    close_all_but([Some(joiner.sock), joiner.console], joiner.preserve_fds)
}

/// Entry point of the second one; returns only when something failed.
fn main(joiner: &Joiner, argv: &CArray, envp: &mut CArray) -> i32 {
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
    let p = &joiner.plan.process;
    clone::set_pdeathsig(libc::SIGKILL).at(Stage::Prepare, 0)?;
    misc::unblock_signals();
    misc::umask(0);
    misc::setsid().at(Stage::Prepare, 1)?;
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
        seccomp: joiner.plan.seccomp.as_ref(),
        sock: joiner.sock,
        keep: [None, None],
        preserve_fds: joiner.preserve_fds,
        hooks_follow: false,
    };
    // They are in force already.
    let labels = identity::Labels::default();
    last.steps(root, cwd, labels, envp, home)
}
