//! clone3(2) and pidfds.

use super::{Sys, check};
use nix::errno::Errno;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Puts the child into the cgroup of [`Clone3::cgroup`] (clone3(2), Linux 5.7).
pub const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// New time namespace; only valid in unshare(2) and clone3(2) (Linux 5.6).
pub const CLONE_NEWTIME: u64 = 0x80;

/// `struct clone_args` of `include/uapi/linux/sched.h` (size CLONE_ARGS_SIZE_VER2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// What to clone.
pub struct Clone3<'a> {
    /// CLONE_NEW* and CLONE_PARENT flags. CLONE_PIDFD is always added.
    pub flags: u64,
    /// A cgroup v2 directory the child starts in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A new process as its parent sees it.
#[derive(Debug)]
pub struct Child {
    /// Process id in the caller's pid namespace.
    pub pid: i32,
    /// Its pidfd, close-on-exec.
    pub pidfd: OwnedFd,
}

/// Clones the calling process (fork semantics: copied memory) and runs `child` in the new one.
///
/// `child` must not allocate, take locks, or touch anything another thread of the parent may
/// have held at the moment of the call: raw clone runs no fork handlers.
///
/// Where clone3 is missing (ENOSYS: kernels before 5.3, and seccomp profiles that hide it because
/// they can't look into its argument, Docker's among them), clone(2) does it in more steps.
///
/// Errors: as clone3(2).
pub fn clone3(args: &Clone3, child: impl FnOnce() -> i32) -> Sys<Child> {
    // From a caller that ignores SIGCHLD it is inherited, and then no child could be waited for (wait(2)).
    super::misc::reset_sigchld();
    match raw_clone3(args) {
        Err(Errno::ENOSYS) => {}
        Ok(None) => exit_now(child()),
        Ok(Some(made)) => return Ok(made),
        Err(e) => return Err(e),
    }
    match raw_clone(args.flags & !late(args))? {
        Some(made) => Ok(made),
        None => {
            // What clone3 does at once: enter the group, and only then make its namespace.
            let entered = args.cgroup.map_or(Ok(()), |dir| {
                super::fd::write_file(dir, c"cgroup.procs", b"0")
            });
            let late = late(args) as i32;
            let made = entered.and_then(|()| if late != 0 { unshare(late) } else { Ok(()) });
            exit_now(match made {
                Ok(()) => child(),
                Err(_) => 1,
            })
        }
    }
}

/// The namespaces that must wait until the child is in its cgroup.
fn late(args: &Clone3) -> u64 {
    match args.cgroup {
        Some(_) => args.flags & libc::CLONE_NEWCGROUP as u64,
        None => 0,
    }
}

/// None in the child.
fn raw_clone3(args: &Clone3) -> Sys<Option<Child>> {
    let mut pidfd: RawFd = -1;
    let mut raw = CloneArgs {
        flags: args.flags | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        // With CLONE_PARENT the kernel takes the caller's own exit signal and wants zero here.
        exit_signal: if args.flags & libc::CLONE_PARENT as u64 != 0 {
            0
        } else {
            libc::SIGCHLD as u64
        },
        ..CloneArgs::default()
    };
    if let Some(fd) = args.cgroup {
        raw.flags |= CLONE_INTO_CGROUP;
        raw.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: the struct is valid for its size; without CLONE_VM the child runs on a copy of
    // this stack, and the caller ends it by _exit.
    let ret = unsafe { libc::syscall(libc::SYS_clone3, &raw mut raw, size_of::<CloneArgs>()) };
    born(ret, || pidfd)
}

/// clone(2) with fork semantics; none in the child.
fn raw_clone(flags: u64) -> Sys<Option<Child>> {
    let mut pidfd: RawFd = -1;
    let signal = if flags & libc::CLONE_PARENT as u64 != 0 {
        0
    } else {
        libc::SIGCHLD as u64
    };
    let flags = flags | libc::CLONE_PIDFD as u64 | signal;
    // SAFETY: a null stack means fork semantics; the third argument (parent_tid) receives the
    // pidfd (clone(2), CLONE_PIDFD), on x86-64 and arm64 alike.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_clone,
            flags,
            0usize,
            &raw mut pidfd,
            0usize,
            0usize,
        )
    };
    born(ret, || pidfd)
}

fn born(ret: libc::c_long, pidfd: impl FnOnce() -> RawFd) -> Sys<Option<Child>> {
    match check(ret)? {
        0 => Ok(None),
        pid => Ok(Some(Child {
            pid: pid as i32,
            // SAFETY: CLONE_PIDFD made this descriptor for us.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd()) },
        })),
    }
}

/// Ends this process without running exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// pidfd_open(2) (Linux 5.3).
pub fn pidfd_open(pid: i32) -> Sys<OwnedFd> {
    // SAFETY: plain integers.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// pidfd_send_signal(2) (Linux 5.1).
pub fn pidfd_kill(pidfd: BorrowedFd, signal: i32) -> Sys<()> {
    // SAFETY: a null siginfo means "as kill(2)".
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })?;
    Ok(())
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// exit(2) status.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl Exit {
    /// The shell's convention: the status, or 128 + signal.
    pub fn code(self) -> i32 {
        match self {
            Exit::Code(c) => c,
            Exit::Signal(s) => 128 + s,
        }
    }
}

/// waitid(P_PIDFD, WEXITED), retried on EINTR.
pub fn wait_pidfd(pidfd: BorrowedFd) -> Sys<Exit> {
    loop {
        // SAFETY: siginfo_t is plain data; zero is a valid value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: info is valid for writing.
        let ret = unsafe {
            libc::waitid(
                libc::P_PIDFD,
                pidfd.as_raw_fd() as libc::id_t,
                &raw mut info,
                libc::WEXITED,
            )
        };
        match check(ret.into()) {
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e),
            Ok(_) => {
                // SAFETY: waitid filled a SIGCHLD siginfo, for which si_status is defined.
                let status = unsafe { info.si_status() };
                return Ok(if info.si_code == libc::CLD_EXITED {
                    Exit::Code(status)
                } else {
                    Exit::Signal(status)
                });
            }
        }
    }
}

/// setns(2).
pub fn setns(fd: BorrowedFd, nstype: i32) -> Sys<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::setns(fd.as_raw_fd(), nstype) }.into())?;
    Ok(())
}

/// unshare(2).
pub fn unshare(flags: i32) -> Sys<()> {
    // SAFETY: plain integer.
    check(unsafe { libc::unshare(flags) }.into())?;
    Ok(())
}

/// Kills the calling process when its parent ends (prctl(2), PR_SET_PDEATHSIG); 0 turns it off.
/// The kernel clears it on a change of credentials: set it again then.
pub fn set_pdeathsig(signal: i32) -> Sys<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong, 0, 0, 0) }.into())?;
    Ok(())
}

/// Orphaned descendants are reparented to this process (prctl(2), PR_SET_CHILD_SUBREAPER).
pub fn set_subreaper() -> Sys<()> {
    // SAFETY: plain integers.
    check(
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1 as libc::c_ulong, 0, 0, 0) }.into(),
    )?;
    Ok(())
}
