//! The seccomp profile of bundles made here: Docker's (moby `profiles/seccomp/default.json`), for a
//! set of capabilities.
//!
//! Data only: [`crate::process::seccomp`] compiles it. What is not listed fails with EPERM.

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

/// Calls that every cell may make.
const ALWAYS: &str = "
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown
    chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod
    fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr
    flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate
    ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat
    getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32
    getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority
    getrandom getresgid getresgid32 getresuid getresuid32 getrlimit get_robust_list getrusage
    getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getuid32 getxattr
    getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl
    io_destroy io_getevents io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set io_setup
    io_submit ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown
    lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek
    lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create
    memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock
    munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2
    pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll
    ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6
    pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv
    recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename
    renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam
    sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
    semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32
    setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32
    setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32
    setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
    sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount
    statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
    timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times
    tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat
    utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
";

/// Calls that a capability allows.
const WITH: [(Capability, &str); 14] = [
    (Capability::DacReadSearch, "open_by_handle_at"),
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount \
         mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
         sethostname setns syslog umount umount2 unshare",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (
        Capability::SysModule,
        "delete_module init_module finit_module",
    ),
    (Capability::SysPacct, "acct"),
    (
        Capability::SysPtrace,
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    ),
    (Capability::SysRawio, "iopl ioperm"),
    (
        Capability::SysTime,
        "settimeofday stime clock_settime clock_settime64",
    ),
    (Capability::SysTtyConfig, "vhangup"),
    (
        Capability::SysNice,
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    (Capability::Syslog, "syslog"),
    (Capability::Bpf, "bpf"),
    (Capability::Perfmon, "perf_event_open"),
];

/// The personalities that change nothing of security: Linux, 32-bit Linux, both with the UNAME26
/// flag, and the query (personality(2)).
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];

/// AF_VSOCK (socket.h): reaches the hypervisor past every namespace.
const AF_VSOCK: u64 = 40;

/// The CLONE_NEW* flags for namespaces (sched.h), CLONE_NEWTIME apart, which clone cannot take.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// EPERM and ENOSYS. clone3 must look missing: its flags are in memory, where no filter sees them,
/// and programs then fall back to clone.
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Docker's profile for a process with these capabilities (its bounding set).
pub fn profile<'a>(capabilities: impl IntoIterator<Item = &'a Capability>) -> LinuxSeccomp {
    let capabilities: Vec<&Capability> = capabilities.into_iter().collect();
    let has = |wanted: Capability| capabilities.contains(&&wanted);

    let mut rules = vec![
        rule(ALWAYS, LinuxSeccompAction::ScmpActAllow, &[]),
        // Their holes were closed in Linux 4.8, older than anything this runs on.
        allow("process_vm_readv process_vm_writev ptrace"),
        rule(
            "socket",
            LinuxSeccompAction::ScmpActAllow,
            &[arg(AF_VSOCK, None, LinuxSeccompOperator::ScmpCmpNe)],
        ),
    ];
    rules.extend(PERSONALITIES.map(|value| {
        rule(
            "personality",
            LinuxSeccompAction::ScmpActAllow,
            &[arg(value, None, LinuxSeccompOperator::ScmpCmpEq)],
        )
    }));
    rules.extend(native().1.iter().map(|names| allow(names)));
    rules.extend(
        WITH.iter()
            .filter(|(capability, _)| has(*capability))
            .map(|(_, names)| allow(names)),
    );
    if !has(Capability::SysAdmin) {
        rules.push(rule(
            "clone",
            LinuxSeccompAction::ScmpActAllow,
            &[arg(
                CLONE_NAMESPACES,
                Some(0),
                LinuxSeccompOperator::ScmpCmpMaskedEq,
            )],
        ));
        let mut clone3 = rule("clone3", LinuxSeccompAction::ScmpActErrno, &[]);
        clone3.set_errno_ret(Some(ENOSYS));
        rules.push(clone3);
    }

    let mut seccomp = LinuxSeccomp::default();
    seccomp.set_default_action(LinuxSeccompAction::ScmpActErrno);
    seccomp.set_default_errno_ret(Some(EPERM));
    seccomp.set_architectures(Some(native().0));
    seccomp.set_syscalls(Some(rules));
    seccomp
}

/// This machine's architectures, and the calls that only they have.
fn native() -> (Vec<Arch>, &'static [&'static str]) {
    if cfg!(target_arch = "x86_64") {
        (
            vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
            &["arch_prctl", "modify_ldt"],
        )
    } else if cfg!(target_arch = "aarch64") {
        (
            vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
            &[
                "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush \
                 set_tls",
            ],
        )
    } else {
        // An empty list means the host's own.
        (Vec::new(), &[])
    }
}

fn allow(names: &str) -> LinuxSyscall {
    rule(names, LinuxSeccompAction::ScmpActAllow, &[])
}

fn rule(names: &str, action: LinuxSeccompAction, args: &[LinuxSeccompArg]) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.split_whitespace().map(str::to_string).collect());
    rule.set_action(action);
    rule.set_args((!args.is_empty()).then(|| args.to_vec()));
    rule
}

/// A condition on the first argument.
fn arg(value: u64, value_two: Option<u64>, op: LinuxSeccompOperator) -> LinuxSeccompArg {
    let mut builder = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .value(value)
        .op(op);
    if let Some(two) = value_two {
        builder = builder.value_two(two);
    }
    builder.build().expect("every field has a default")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::default::DEFAULT_CAPABILITIES;

    /// What Docker itself writes for a container without flags.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn as_docker_resolves_it() {
        let json = include_str!("../../../tests/fixtures/docker-config.json");
        let docker: oci_spec::runtime::Spec = serde_json::from_str(json).unwrap();
        let docker = docker.linux().as_ref().unwrap().seccomp().clone().unwrap();
        let ours = profile(&DEFAULT_CAPABILITIES);
        assert_eq!(ours.default_action(), docker.default_action());
        assert_eq!(ours.default_errno_ret(), docker.default_errno_ret());
        assert_eq!(ours.architectures(), docker.architectures());
        let flat = |profile: &LinuxSeccomp| {
            let mut out = Vec::new();
            for rule in profile.syscalls().iter().flatten() {
                for name in rule.names() {
                    let args: Vec<_> = rule
                        .args()
                        .iter()
                        .flatten()
                        .map(|a| (a.index(), a.value(), a.value_two().unwrap_or(0), a.op()))
                        .collect();
                    out.push(format!(
                        "{name} {:?} {:?} {args:?}",
                        rule.action(),
                        rule.errno_ret()
                    ));
                }
            }
            out.sort();
            out
        };
        assert_eq!(flat(&ours), flat(&docker));
    }

    #[test]
    fn capabilities_open_calls() {
        let names = |caps: &[Capability]| -> Vec<String> {
            let profile = profile(caps);
            let rules = profile.syscalls().clone().unwrap_or_default();
            rules
                .iter()
                .filter(|r| r.args().is_none())
                .flat_map(|r| r.names().clone())
                .collect()
        };
        let has = |caps: &[Capability], name: &str| names(caps).iter().any(|n| n == name);
        assert!(!has(&[], "mount") && has(&[Capability::SysAdmin], "mount"));
        assert!(!has(&[], "chroot") && has(&DEFAULT_CAPABILITIES, "chroot"));
        assert!(has(&[Capability::SysNice], "mbind"));
        // With CAP_SYS_ADMIN clone3 is allowed, not made to look missing.
        let admin = profile(&[Capability::SysAdmin]);
        let clone3: Vec<_> = admin
            .syscalls()
            .iter()
            .flatten()
            .filter(|r| r.names().iter().any(|n| n == "clone3"))
            .collect();
        assert_eq!(clone3.len(), 1);
        assert_eq!(clone3[0].action(), LinuxSeccompAction::ScmpActAllow);
    }
}
