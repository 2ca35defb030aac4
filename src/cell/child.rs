//! The child's side of a creation: executes the Plan's steps in order and becomes the program.
//!
//! Runs after clone3 on a copy of the parent's memory. Nothing here allocates, takes a lock,
//! parses or decides: what could be settled before was settled by the parent. Every failure is
//! sent as a [`Fault`] that names the step.

use super::fault::{At, Fault, HOOK_EXIT, HOOK_SIGNAL, HOOK_TIMEOUT, Stage, Step};
use super::wire;
use crate::plan::{Kind, Plan, ProcessPlan};
use crate::process::hook::{self, Outcome, Ready};
use crate::process::{identity, lookup, seccomp};
use crate::rootfs::{self, CgroupView, path};
use crate::sys::clone::{self, Exit};
use crate::sys::misc::{self, CArray};
use crate::sys::{Sys, cred, fd, socket, tty};
use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// What the child is given, all built before clone3.
pub struct Init<'a> {
    /// The Plan.
    pub plan: &'a Plan,
    /// Its end of the socket pair.
    pub sock: BorrowedFd<'a>,
    /// Descriptors of the parent it must not hold (the lock above all).
    pub close: &'a [RawFd],
    /// v1 `tasks` files to join.
    pub join_files: &'a [CString],
    /// Unshare the cgroup namespace only after joining (v1 and hybrid hosts).
    pub late_cgroup_ns: bool,
    /// The parent has it moved into its group before GO (see `Cgroup::move_in`).
    pub moved: bool,
    /// Namespaces the child joins itself: descriptor, kind, index in the Plan.
    pub join: &'a [(OwnedFd, Kind, usize)],
    /// Mount sources opened by the parent.
    pub trees: &'a [Option<OwnedFd>],
    /// What `cgroup` mounts show.
    pub cgroup: &'a CgroupView,
    /// The mount above a root that is to be shared.
    pub parent_mount: Option<&'a CStr>,
    /// Connected socket that receives the terminal's master.
    pub console: Option<BorrowedFd<'a>>,
    /// Replacement for stdin, stdout, stderr.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// exec.fifo, when `start` is another command.
    pub fifo: Option<BorrowedFd<'a>>,
    /// Where a failure after `start` is written.
    pub status: Option<BorrowedFd<'a>>,
    /// Descriptors 3.. that the program inherits.
    pub preserve_fds: u32,
    /// The state for hooks, without its pid: text before and after it, for createContainer and
    /// startContainer.
    pub hook_state: [(&'a [u8], &'a [u8]); 2],
    /// Hooks with their arrays.
    pub create_hooks: &'a [Ready<'a>],
    /// Hooks with their arrays.
    pub start_hooks: &'a [Ready<'a>],
}

/// Entry point of the child; returns only when something failed. `argv` and `envp` (with one
/// spare slot when HOME is missing) are built by the parent.
pub fn main(init: &Init, argv: &CArray, envp: &mut CArray) -> i32 {
    let fault = match steps(init, argv, envp) {
        Ok(never) => match never {},
        Err((fault, sink)) => {
            let wire = fault.encode(wire::FAULT);
            // write(2) rather than send(2): a seccomp filter may already be in force.
            let _ = fd::write_all(sink, &wire);
            fault
        }
    };
    exit_code(&fault)
}

/// The shell's convention for a program that could not be executed.
pub(super) fn exit_code(fault: &Fault) -> i32 {
    match (fault.stage, fault.errno) {
        (Stage::Lookup | Stage::Exec, libc::ENOENT | libc::ENOTDIR) => 127,
        (Stage::Lookup | Stage::Exec, _) => 126,
        _ => 1,
    }
}

/// What a function that executes a program returns when it succeeds.
pub(super) enum Never {}

type Failed<'a> = (Fault, BorrowedFd<'a>);

fn steps<'a>(init: &Init<'a>, argv: &CArray, envp: &mut CArray) -> Result<Never, Failed<'a>> {
    let mut home = [0; lookup::HOME_MAX];
    let mut host_pid = 0;
    let program = prepare(init, envp, &mut home, &mut host_pid).map_err(|f| (f, init.sock))?;
    let sink = match (init.fifo, init.status) {
        (Some(fifo), Some(status)) => {
            wait_for_start(init, fifo).map_err(|f| (f, init.sock))?;
            status
        }
        _ => init.sock,
    };
    if !init.start_hooks.is_empty() {
        run_hooks(init, 1, Stage::StartHook, init.start_hooks, host_pid).map_err(|f| (f, sink))?;
        // Not before: a hook that ends without reading its state is no reason to die.
        misc::reset_sigpipe();
    }
    let errno = misc::execve(program, argv.as_slice(), envp.as_slice());
    Err((Fault::new(Stage::Exec, 0, errno), sink))
}

/// Everything up to the point where the cell counts as created.
fn prepare<'a>(
    init: &Init<'a>,
    envp: &mut CArray,
    home: &mut [u8; lookup::HOME_MAX],
    host_pid: &mut i32,
) -> Step<&'a CStr> {
    let plan = init.plan;
    let p = &plan.process;
    for raw in init.close {
        let _ = fd::close_range(*raw as u32, *raw as u32);
    }
    clone::set_pdeathsig(libc::SIGKILL).at(Stage::Prepare, 0)?;
    misc::unblock_signals();
    misc::umask(0);
    join_cgroup(init)?;
    for (ns, kind, i) in init.join {
        clone::setns(ns.as_fd(), *kind as u64 as i32).at(Stage::JoinNamespace, *i)?;
    }
    misc::setsid().at(Stage::Prepare, 1)?;

    let proc_self = proc_self()?;
    // Before the ids change, after which the files of /proc/self are no longer ours.
    let labels = identity::Labels::open(p, proc_self.as_fd())?;
    rootfs::set_propagation(&plan.root, init.parent_mount)?;
    let in_userns = plan.id_maps.is_some() || plan.namespaces.joins(Kind::User).is_some();
    // Before the ids change: the way to the root may be open to its owner only. Or only to the cell's root
    // (podman's --userns keep-id): then it is tried again after the change.
    let root = match rootfs::attach(&plan.root) {
        Err(f) if in_userns && f.errno == libc::EACCES => None,
        other => Some(other?),
    };
    if in_userns {
        // The maps are written, and the limits that only the parent may set.
        await_go(init, host_pid)?;
        if init.moved && plan.namespaces.makes(Kind::Cgroup) {
            clone::unshare(libc::CLONE_NEWCGROUP).at(Stage::Unshare, 0)?;
        }
        become_root().at(Stage::UserNamespace, 0)?;
    }
    let root = root.map_or_else(|| rootfs::attach(&plan.root), Ok)?;
    keyring(p)?;
    names(plan)?;
    if plan.namespaces.makes(Kind::Network) {
        misc::loopback_up().at(Stage::Loopback, 0)?;
    }
    let root_fd = root.as_fd();
    rootfs::mount_all(root_fd, &plan.mounts, init.trees, init.cgroup)?;
    rootfs::make_dev(root_fd, &plan.dev)?;
    let cwd = path::ensure_dir(root_fd, &p.cwd, path::Links::Follow).at(Stage::Cwd, 0)?;
    streams(init, root_fd)?;
    hooks_before_pivot(init, root_fd, host_pid)?;
    sysctls(plan)?;
    if !in_userns {
        identity::oom_score(p, proc_self.as_fd())?;
        identity::rlimits(p)?;
    }
    rootfs::mask(root_fd, &plan.masked)?;
    rootfs::readonly(root_fd, &plan.readonly)?;
    rootfs::readonly_mounts(root_fd, &plan.mounts)?;
    rootfs::pivot(&plan.root, root_fd)?;

    drop(proc_self);
    let last = Last {
        process: p,
        seccomp: plan.seccomp.as_ref(),
        sock: init.sock,
        keep: [init.fifo, init.status],
        preserve_fds: init.preserve_fds,
        hooks_follow: !init.start_hooks.is_empty(),
    };
    last.steps(root, cwd, labels, envp, home)
}

/// What every process of a cell does last, be it the first one or one that joins: becomes the user,
/// with the rights and limits of its program.
pub(super) struct Last<'a> {
    /// The program.
    pub process: &'a ProcessPlan,
    /// Its filter.
    pub seccomp: Option<&'a seccomp::Program>,
    /// The socket to the parent.
    pub sock: BorrowedFd<'a>,
    /// Descriptors that stay open until exec, beside the socket.
    pub keep: [Option<BorrowedFd<'a>>; 2],
    /// Descriptors 3.. that the program inherits.
    pub preserve_fds: u32,
    /// Hooks are to be run: SIGPIPE stays ignored.
    pub hooks_follow: bool,
}

impl<'a> Last<'a> {
    /// All steps but execve: returns the path of the program. The root is `/` already.
    pub fn steps(
        &self,
        root: OwnedFd,
        cwd: OwnedFd,
        labels: identity::Labels,
        envp: &mut CArray,
        home: &mut [u8; lookup::HOME_MAX],
    ) -> Step<&'a CStr> {
        let p = self.process;
        identity::schedule(p)?;
        if p.needs_home {
            envp.push(lookup::home(root.as_fd(), p.uid, home));
        }
        if p.no_new_privs {
            cred::set_no_new_privs().at(Stage::NoNewPrivs, 0)?;
        }
        // Root may enter a directory its user can't; a user may enter one that root can't (NFS).
        let entered = fd::fchdir(cwd.as_fd());
        own_stdio(p.uid);
        identity::user(p)?;
        if p.uid != 0 {
            // A change of credentials cleared it.
            clone::set_pdeathsig(libc::SIGKILL).at(Stage::Prepare, 0)?;
        }
        if entered.is_err() {
            fd::fchdir(cwd.as_fd()).at(Stage::Cwd, 0)?;
        }
        // From here on only the streams, the preserved descriptors and our own sockets are open:
        // no /proc/self/fd/N of the cell leads to the host (CVE-2024-21626).
        labels.apply(p)?;
        drop((labels, cwd, root));
        close_all_but(
            [Some(self.sock), self.keep[0], self.keep[1]],
            self.preserve_fds,
        )?;
        if !self.hooks_follow {
            misc::reset_sigpipe();
        }
        clone::set_pdeathsig(0).at(Stage::Prepare, 0)?;
        if p.no_new_privs {
            // The filter comes last, so that it need not allow capset and prctl.
            identity::finish_caps(p)?;
            let program = lookup::program(p).at(Stage::Lookup, 0)?;
            self.filter()?;
            return Ok(program);
        }
        // Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes before the capabilities go.
        let program = lookup::program(p).at(Stage::Lookup, 0)?;
        self.filter()?;
        identity::finish_caps(p)?;
        Ok(program)
    }

    fn filter(&self) -> Step {
        if let Some(listener) = identity::seccomp(self.seccomp)? {
            let msg = wire::plain(wire::NOTIFY);
            socket::send(self.sock, &msg, Some(listener.as_fd())).at(Stage::Seccomp, 1)?;
        }
        Ok(())
    }
}

/// This process in the host's procfs, while that is in sight: what is written there can't be redirected
/// by anything mounted in the cell. /proc/self is this process by the host's numbering.
pub(super) fn proc_self() -> Step<OwnedFd> {
    let dir = fd::open_host(c"/proc/self", libc::O_PATH).at(Stage::HostFiles, 0)?;
    match fd::fs_magic(dir.as_fd()).at(Stage::HostFiles, 0)? {
        rootfs::PROC_SUPER_MAGIC => Ok(dir),
        _ => Err(Fault::new(Stage::HostFiles, 0, Errno::ENODEV)),
    }
}

/// The caller's session keyring is not the cell's.
pub(super) fn keyring(p: &ProcessPlan) -> Step {
    let Some(name) = &p.keyring else {
        return Ok(());
    };
    match misc::join_session_keyring(name) {
        // A kernel without keys has none to leak (runc tolerates it too).
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        Err(e) => Err(Fault::new(Stage::Keyring, 0, e)),
    }
}

/// v1 `tasks` files: "0" is the writer itself, whatever its pid namespace; `tasks` rather than
/// cgroup.procs, which waits for an RCU grace period.
pub(super) fn join_tasks(files: &[CString]) -> Step {
    for (i, file) in files.iter().enumerate() {
        fd::write_file(fd::at_cwd(), file, b"0").at(Stage::JoinCgroup, i)?;
    }
    Ok(())
}

fn join_cgroup(init: &Init) -> Step {
    join_tasks(init.join_files)?;
    if init.late_cgroup_ns && init.plan.namespaces.makes(Kind::Cgroup) {
        clone::unshare(libc::CLONE_NEWCGROUP).at(Stage::Unshare, 0)?;
    }
    Ok(())
}

/// Waits for the parent's GO. A parent that is gone (end of file) ends the child.
fn await_go(init: &Init, host_pid: &mut i32) -> Step {
    let mut buf = [0; 8];
    let (n, _) = socket::recv(init.sock, &mut buf).at(Stage::Sync, 0)?;
    if n == 0 || wire::kind(&buf) != wire::GO {
        clone::exit_now(1);
    }
    *host_pid = wire::pid(&buf);
    Ok(())
}

/// Root of the user namespace, whatever the ids were outside.
pub(super) fn become_root() -> Sys<()> {
    match cred::set_groups(&[]) {
        // Denied in a namespace mapped without privileges.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(e) => return Err(e),
    }
    cred::set_gid(0)?;
    cred::set_uid(0)?;
    clone::set_pdeathsig(libc::SIGKILL)
}

fn names(plan: &Plan) -> Step {
    if let Some(name) = &plan.hostname {
        misc::set_hostname(name).at(Stage::Hostname, 0)?;
    }
    if let Some(name) = &plan.domainname {
        misc::set_domainname(name).at(Stage::Domainname, 0)?;
    }
    Ok(())
}

/// The standard streams: the cell's terminal, or what replaces them.
fn streams(init: &Init, root: BorrowedFd) -> Step {
    let p = &init.plan.process;
    if p.terminal {
        return terminal(p, init.console, root, !init.plan.dev.nodes.is_empty());
    }
    for (n, stream) in init.stdio.iter().enumerate() {
        if let Some(stream) = stream {
            fd::dup2(*stream, n as RawFd).at(Stage::Stdio, n)?;
        }
    }
    Ok(())
}

/// Makes the terminal, hands its master over and puts its slave on the standard streams.
pub(super) fn terminal(
    p: &ProcessPlan,
    console: Option<BorrowedFd>,
    root: BorrowedFd,
    on_dev_console: bool,
) -> Step {
    let Some(console) = console else {
        return Err(Fault::new(Stage::Console, 1, Errno::ENOTCONN));
    };
    let (master, slave) = rootfs::console(root, on_dev_console)?;
    if let Some((rows, cols)) = p.console_size {
        tty::set_size(slave.as_fd(), rows, cols).at(Stage::Console, 2)?;
    }
    // runc sends the slave's name beside the descriptor.
    let name = c"/dev/pts/0".to_bytes();
    socket::send(console, name, Some(master.as_fd())).at(Stage::Console, 3)?;
    drop(master);
    if p.uid != 0 {
        fd::fchown(slave.as_fd(), p.uid, u32::MAX).at(Stage::Console, 4)?;
    }
    tty::set_controlling(slave.as_fd()).at(Stage::Console, 5)?;
    for n in 0..3 {
        fd::dup2(slave.as_fd(), n).at(Stage::Stdio, n as usize)?;
    }
    Ok(())
}

/// Pipes on the standard streams belong to the program's user, so that it can reopen them as
/// /dev/stdout (runc: fixStdioPermissions). Terminals and files of the caller are left alone.
fn own_stdio(uid: u32) {
    if uid == 0 {
        return;
    }
    for n in 0..3 {
        let stream = fd::borrow(n);
        if fd::fstat(stream).is_ok_and(|st| st.mode & libc::S_IFMT == libc::S_IFIFO) {
            // Not all pipes can be given away (an unmapped owner); the program can still use it.
            let _ = fd::fchown(stream, uid, u32::MAX);
        }
    }
}

fn hooks_before_pivot(init: &Init, root: BorrowedFd, host_pid: &mut i32) -> Step {
    let plan = init.plan;
    if !plan.create_runtime.is_empty() || needs_pid(plan) || super::host_parts::any(plan) {
        socket::send(init.sock, &wire::plain(wire::HOOKS), None).at(Stage::Sync, 1)?;
        await_go(init, host_pid)?;
    }
    // Hooks too, only that their work is known; those that are executed find it done.
    rootfs::inject(root, &plan.in_root)?;
    run_hooks(init, 0, Stage::CreateHook, init.create_hooks, *host_pid)
}

/// The child must learn its own pid of the host for its hooks' state.
pub fn needs_pid(plan: &Plan) -> bool {
    !plan.create_container.is_empty() || !plan.start_container.is_empty()
}

fn run_hooks(init: &Init, which: usize, stage: Stage, hooks: &[Ready], host_pid: i32) -> Step {
    if hooks.is_empty() {
        return Ok(());
    }
    let (before, after) = init.hook_state[which];
    let mut digits = [0u8; 10];
    let pid = decimal(host_pid, &mut digits);
    for (i, hook) in hooks.iter().enumerate() {
        let outcome = hook::run(hook, &[before, pid, after]).at(stage, i)?;
        let code = match outcome {
            Outcome::Ended(Exit::Code(0)) => continue,
            Outcome::Ended(Exit::Code(c)) => HOOK_EXIT + c,
            Outcome::Ended(Exit::Signal(s)) => HOOK_SIGNAL + s,
            Outcome::NoExec(e) => e as i32,
            Outcome::TimedOut => HOOK_TIMEOUT,
        };
        let mut fault = Fault::new(stage, i, Errno::UnknownErrno);
        fault.errno = code;
        return Err(fault);
    }
    Ok(())
}

/// The decimal digits of a pid, without allocating.
fn decimal(n: i32, buf: &mut [u8; 10]) -> &[u8] {
    let mut n = n.unsigned_abs();
    let mut at = buf.len();
    loop {
        at -= 1;
        buf[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            return &buf[at..];
        }
    }
}

/// Through the host's /proc/sys: its entries are those of the writer's own namespaces.
fn sysctls(plan: &Plan) -> Step {
    if plan.sysctls.is_empty() {
        return Ok(());
    }
    let dir = fd::open_host(c"/proc/sys", libc::O_PATH).at(Stage::HostFiles, 0)?;
    for (i, (name, value)) in plan.sysctls.iter().enumerate() {
        fd::write_file(dir.as_fd(), name, value).at(Stage::Sysctl, i)?;
    }
    Ok(())
}

/// Closes everything but the streams, the preserved descriptors and these.
pub(super) fn close_all_but<const N: usize>(
    keep: [Option<BorrowedFd>; N],
    preserve_fds: u32,
) -> Step {
    let first = 3 + preserve_fds;
    let mut keep = keep.map(|fd| fd.map(|fd| fd.as_raw_fd() as u32));
    keep.sort_unstable();
    let mut from = first;
    for fd in keep.into_iter().flatten().filter(|fd| *fd >= first) {
        if fd > from {
            fd::close_range(from, fd - 1).at(Stage::Prepare, 2)?;
        }
        from = fd + 1;
    }
    fd::close_range(from, u32::MAX).at(Stage::Prepare, 2)
}

/// Tells the parent that the cell is made, then blocks until `start` writes a byte.
fn wait_for_start(init: &Init, fifo: BorrowedFd) -> Step {
    fd::write_all(init.sock, &wire::plain(wire::READY)).at(Stage::Sync, 2)?;
    // The parent reads end of file from here on only if this process dies.
    // A seccomp filter without close_range is no reason to fail: exec closes it at the latest.
    let sock = init.sock.as_raw_fd() as u32;
    let _ = fd::close_range(sock, sock);
    let mut byte = [0];
    match fd::read(fifo, &mut byte) {
        Ok(1) => Ok(()),
        // Nobody will ever start it: the state directory is gone.
        _ => clone::exit_now(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_are_written_in_decimal() {
        let mut buf = [0; 10];
        assert_eq!(decimal(0, &mut buf), b"0");
        assert_eq!(decimal(4_194_304, &mut buf), b"4194304");
        assert_eq!(decimal(i32::MAX, &mut buf), b"2147483647");
    }
}
