//! The remaining process attributes: names, limits, scheduling, memory policy, seccomp, exec.

use super::{Sys, check};
use nix::errno::Errno;
use std::ffi::{CStr, c_char};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// sethostname(2).
pub fn set_hostname(name: &[u8]) -> Sys<()> {
    // SAFETY: the slice is valid for its length.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into())?;
    Ok(())
}

/// setdomainname(2).
pub fn set_domainname(name: &[u8]) -> Sys<()> {
    // SAFETY: the slice is valid for its length.
    check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into())?;
    Ok(())
}

/// setsid(2).
pub fn setsid() -> Sys<()> {
    // SAFETY: no arguments.
    check(unsafe { libc::setsid() }.into())?;
    Ok(())
}

/// umask(2); returns the old mask.
pub fn umask(mask: u32) -> u32 {
    // SAFETY: cannot fail.
    unsafe { libc::umask(mask) }
}

/// prlimit(2) on `pid` (0 = self).
pub fn set_rlimit(pid: i32, resource: u32, soft: u64, hard: u64) -> Sys<()> {
    let lim = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: lim is valid; a null old limit is allowed.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource,
            &raw const lim,
            std::ptr::null::<libc::rlimit64>(),
        )
    })?;
    Ok(())
}

/// personality(2).
pub fn set_personality(persona: u64) -> Sys<()> {
    // SAFETY: plain integer.
    check(unsafe { libc::personality(persona) }.into())?;
    Ok(())
}

/// `struct sched_attr` of sched_setattr(2), first version.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// Size of this structure.
    pub size: u32,
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// Nice value, for SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// Static priority, for SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// SCHED_DEADLINE, nanoseconds.
    pub runtime: u64,
    /// SCHED_DEADLINE, nanoseconds.
    pub deadline: u64,
    /// SCHED_DEADLINE, nanoseconds.
    pub period: u64,
}

/// sched_setattr(2) on the calling thread.
pub fn sched_setattr(attr: &SchedAttr) -> Sys<()> {
    // SAFETY: attr holds its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(attr), 0) })?;
    Ok(())
}

/// ioprio_set(2) on the calling thread: class in bits 13–15, level below.
pub fn ioprio_set(class: u32, level: u32) -> Sys<()> {
    const WHO_PROCESS: i32 = 1;
    const CLASS_SHIFT: u32 = 13;
    let prio = class << CLASS_SHIFT | level;
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, prio) })?;
    Ok(())
}

/// sched_setaffinity(2) on the calling thread; `mask` is in 64-bit words.
pub fn set_affinity(mask: &[u64]) -> Sys<()> {
    // SAFETY: the slice is valid for its size in bytes.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            0,
            std::mem::size_of_val(mask),
            mask.as_ptr(),
        )
    })?;
    Ok(())
}

/// set_mempolicy(2); `nodes` is a bit mask in 64-bit words, empty for none.
pub fn set_mempolicy(mode: i32, nodes: &[u64]) -> Sys<()> {
    let (ptr, bits) = if nodes.is_empty() {
        (std::ptr::null(), 0)
    } else {
        // The kernel reads maxnode - 1 bits (set_mempolicy(2), NOTES).
        (nodes.as_ptr(), nodes.len() * 64 + 1)
    };
    // SAFETY: the mask is valid for `bits`.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, ptr, bits) })?;
    Ok(())
}

/// Joins a fresh session keyring with this name (keyctl(2), KEYCTL_JOIN_SESSION_KEYRING).
pub fn join_session_keyring(name: &CStr) -> Sys<i64> {
    const JOIN_SESSION_KEYRING: u32 = 1;
    // SAFETY: name is NUL-terminated.
    check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            JOIN_SESSION_KEYRING,
            name.as_ptr(),
            0,
            0,
            0,
        )
    })
}

/// seccomp(2), SECCOMP_SET_MODE_FILTER. Returns the listener when NEW_LISTENER is among `flags`.
pub fn seccomp_filter(insns: &[libc::sock_filter], flags: u64) -> Sys<Option<OwnedFd>> {
    const SET_MODE_FILTER: u32 = 1;
    const NEW_LISTENER: u64 = 1 << 3;
    let prog = libc::sock_fprog {
        len: insns.len() as u16,
        filter: insns.as_ptr().cast_mut(),
    };
    // SAFETY: prog points at `len` instructions, which the kernel copies and checks.
    let ret = check(unsafe {
        libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const prog)
    })?;
    if flags & NEW_LISTENER != 0 {
        // SAFETY: a new descriptor.
        return Ok(Some(unsafe { OwnedFd::from_raw_fd(ret as RawFd) }));
    }
    Ok(None)
}

/// Whether this kernel knows a flag of SECCOMP_SET_MODE_FILTER. It looks at the flags first (EINVAL) and
/// then at the program, which is not there (EFAULT): nothing is installed (seccomp(2), "ERRORS").
pub fn seccomp_flag(flag: u32) -> bool {
    const SET_MODE_FILTER: u32 = 1;
    let none: *const libc::sock_fprog = std::ptr::null();
    // SAFETY: the kernel answers a null program with EFAULT.
    let answer = check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flag, none) });
    answer == Err(Errno::EFAULT)
}

/// Brings the loopback interface of the current network namespace up (netdevice(7)).
pub fn loopback_up() -> Sys<()> {
    // SAFETY: plain integers.
    let fd = check(
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into(),
    )?;
    // SAFETY: a new descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    // SAFETY: zero is a valid ifreq.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    req.ifr_name[0] = b'l' as c_char;
    req.ifr_name[1] = b'o' as c_char;
    req.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads an ifreq.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const req) }.into())?;
    Ok(())
}

/// execve(2): returns only on failure. Both arrays end in a null pointer.
pub fn execve(path: &CStr, argv: &[*const c_char], envp: &[*const c_char]) -> Errno {
    debug_assert!(argv.last().is_some_and(|p| p.is_null()));
    debug_assert!(envp.last().is_some_and(|p| p.is_null()));
    // SAFETY: null-terminated arrays of NUL-terminated strings (CStrings kept by the Plan).
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Errno::last()
}

/// execveat(2) on a descriptor (AT_EMPTY_PATH): returns only on failure.
pub fn execve_fd(fd: BorrowedFd, argv: &[*const c_char], envp: &[*const c_char]) -> Errno {
    // SAFETY: as execve.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::last()
}

/// A null-terminated array of pointers to C strings, as execve(2) wants it. The strings it was
/// made from must outlive it.
pub struct CArray(Vec<*const c_char>);

impl CArray {
    /// Pointers to `strings`, then `spare` null slots for later use, then the final null.
    pub fn new(strings: &[std::ffi::CString], spare: usize) -> Self {
        let mut v: Vec<*const c_char> = Vec::with_capacity(strings.len() + spare + 1);
        v.extend(strings.iter().map(|s| s.as_ptr()));
        v.resize(strings.len() + spare + 1, std::ptr::null());
        CArray(v)
    }

    /// The array.
    pub fn as_slice(&self) -> &[*const c_char] {
        &self.0
    }

    /// Puts `string` into the first null slot that is not the last one.
    pub fn push(&mut self, string: &CStr) {
        let last = self.0.len().saturating_sub(1);
        if let Some(slot) = self.0[..last].iter_mut().find(|p| p.is_null()) {
            *slot = string.as_ptr();
        }
    }
}

/// Blocks every signal; returns the old mask. The child restores it before exec.
pub fn block_signals() -> libc::sigset_t {
    // SAFETY: both sets are valid for writing.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
        old
    }
}

/// Unblocks every signal.
pub fn unblock_signals() {
    // SAFETY: the set is valid.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Default disposition for every signal: a program must not inherit an ignored SIGPIPE
/// (Rust's start-up ignores it).
pub fn reset_sigpipe() {
    // SAFETY: SIG_DFL is a valid disposition.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Default disposition for SIGCHLD.
pub fn reset_sigchld() {
    // SAFETY: SIG_DFL is a valid disposition.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// signalfd(2) for all signals, close-on-exec, non-blocking.
pub fn signalfd_all() -> Sys<OwnedFd> {
    // SAFETY: the set is valid.
    let fd = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::signalfd(-1, &raw const all, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    let fd = check(fd.into())?;
    // SAFETY: a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// One signal from a signalfd: its number and sender, or none when there is none waiting.
pub fn read_signal(fd: BorrowedFd) -> Option<i32> {
    let mut buf = [0u8; size_of::<libc::signalfd_siginfo>()];
    match super::fd::read(fd, &mut buf) {
        // ssi_signo is the first field, an u32.
        Ok(n) if n == buf.len() => Some(i32::from_ne_bytes([buf[0], buf[1], buf[2], buf[3]])),
        _ => None,
    }
}

/// poll(2) for input on up to four descriptors; true at each that is readable or hung up.
pub fn poll_in(fds: &[BorrowedFd], timeout_ms: i32) -> Sys<[bool; 4]> {
    let mut p: [libc::pollfd; 4] = [libc::pollfd {
        fd: -1,
        events: libc::POLLIN,
        revents: 0,
    }; 4];
    for (slot, fd) in p.iter_mut().zip(fds) {
        slot.fd = fd.as_raw_fd();
    }
    // SAFETY: p is valid for its length; fd -1 is ignored.
    let ret = unsafe { libc::poll(p.as_mut_ptr(), p.len() as libc::nfds_t, timeout_ms) };
    match check(ret.into()) {
        Err(Errno::EINTR) => Ok([false; 4]),
        Err(e) => Err(e),
        Ok(_) => Ok(p.map(|s| s.revents != 0)),
    }
}

/// poll(2) until a descriptor takes output or its other end is closed; false when the time is over.
pub fn poll_out(fd: BorrowedFd, timeout_ms: i32) -> Sys<bool> {
    let mut p = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: p is one valid pollfd.
    let ret = unsafe { libc::poll(&raw mut p, 1, timeout_ms) };
    match check(ret.into()) {
        Err(Errno::EINTR) => Ok(false),
        other => other.map(|n| n > 0),
    }
}

/// The CLONE_NEW* flag of the namespace behind a descriptor (ioctl_ns(2), NS_GET_NSTYPE).
pub fn ns_type(fd: BorrowedFd) -> Sys<i32> {
    /// _IO(0xb7, 0x3) of include/uapi/linux/nsfs.h.
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the request takes no argument.
    let kind = check(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) }.into())?;
    Ok(kind as i32)
}
