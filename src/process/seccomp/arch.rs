//! Architectures: how the kernel names them to a filter, and which number each system call has.
//!
//! Owns the name tables. They come from the `syscalls` crate (generated from the kernel's own);
//! here are only what that crate lacks and the facts about x32 and about the calls that i386
//! multiplexes. Numbers: the kernel's arch/*/entry/syscalls/*.tbl, include/uapi/linux/net.h
//! (socketcall) and ipc.h (ipc).

/// An instruction set that a filter can be asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86 (i386).
    X86,
    /// 64-bit x86 with 32-bit pointers. The kernel reports it as x86_64, with [`X32_BIT`] set in
    /// the number.
    X32,
    /// 64-bit Arm.
    Aarch64,
    /// 32-bit Arm (EABI).
    Arm,
}

/// `__X32_SYSCALL_BIT` (arch/x86/include/uapi/asm/unistd.h).
pub const X32_BIT: u32 = 0x4000_0000;

/// How a name is called on one architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its own number, [`X32_BIT`] included.
    pub direct: Option<u32>,
    /// Or (also) this number with this value as the first argument: i386's `socketcall`, `ipc`.
    pub multiplexed: Option<(u32, u32)>,
}

impl Arch {
    /// Every architecture there is a table for.
    pub const ALL: [Arch; 5] = [Arch::X86_64, Arch::X86, Arch::X32, Arch::Aarch64, Arch::Arm];

    /// The architecture that this program runs on, if there is a table for it.
    pub const HOST: Option<Arch> = if cfg!(target_arch = "x86_64") {
        Some(Arch::X86_64)
    } else if cfg!(target_arch = "aarch64") {
        Some(Arch::Aarch64)
    } else {
        None
    };

    /// What seccomp_data.arch holds: AUDIT_ARCH_* (include/uapi/linux/audit.h).
    pub const fn audit(self) -> u32 {
        match self {
            Arch::X86_64 | Arch::X32 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments are compared as 64-bit values.
    pub const fn wide(self) -> bool {
        matches!(self, Arch::X86_64 | Arch::Aarch64)
    }

    /// Whether a kernel of `host` can run programs of this architecture at all.
    pub const fn runs_on(self, host: Arch) -> bool {
        match host {
            Arch::X86_64 | Arch::X32 => matches!(self, Arch::X86_64 | Arch::X86 | Arch::X32),
            Arch::X86 => matches!(self, Arch::X86),
            Arch::Aarch64 => matches!(self, Arch::Aarch64 | Arch::Arm),
            Arch::Arm => matches!(self, Arch::Arm),
        }
    }

    /// How `name` is called here; `None` if it isn't.
    pub fn call(self, name: &str) -> Option<Call> {
        let direct = match self {
            Arch::X86_64 => find(&X86_64, name).or_else(|| newest(name)),
            Arch::X86 => find(&X86, name).or_else(|| newest(name)),
            Arch::Aarch64 => find(&AARCH64, name)
                .filter(|n| !AARCH64_32_ONLY.contains(n))
                .or_else(|| newest(name))
                .or(if name == "newfstatat" { Some(79) } else { None })
                .filter(|_| name != "fstatat"),
            Arch::Arm => find(&ARM, name)
                .or_else(|| newest(name))
                .or_else(|| listed(&ARM_PRIVATE, name)),
            Arch::X32 => find(&X86_64, name)
                .or_else(|| newest(name))
                .filter(|n| !X32_LACKS.contains(n))
                .map(|n| X32_BIT | x32_number(n)),
        };
        let multiplexed = if self == Arch::X86 {
            listed(&SOCKETCALL, name)
                .map(|n| (X86_SOCKETCALL, n))
                .or_else(|| listed(&IPC, name).map(|n| (X86_IPC, n)))
        } else {
            None
        };
        if direct.is_none() && multiplexed.is_none() {
            return None;
        }
        Some(Call {
            direct,
            multiplexed,
        })
    }
}

/// Whether any architecture of Linux has a call of this name, also those without a table here.
pub fn is_known(name: &str) -> bool {
    Arch::ALL.iter().any(|a| a.call(name).is_some()) || ELSEWHERE.contains(&name)
}

/// Names that only other architectures have (libseccomp and profiles made with it know them).
const ELSEWHERE: [&str; 23] = [
    "atomic_barrier",
    "atomic_cmpxchg_32",
    "cachectl",
    "getpagesize",
    "multiplexer",
    "riscv_flush_icache",
    "riscv_hwprobe",
    "rtas",
    "s390_guarded_storage",
    "s390_pci_mmio_read",
    "s390_pci_mmio_write",
    "s390_runtime_instr",
    "s390_sthyi",
    "spu_create",
    "spu_run",
    "subpage_prot",
    "swapcontext",
    "switch_endian",
    "sync_file_range2",
    "syscall",
    "sys_debug_setcontext",
    "sysmips",
    "timerfd",
];

/// Calls newer than the crate's tables; since 5.1 a new call has one number everywhere.
fn newest(name: &str) -> Option<u32> {
    listed(&[("listns", 470), ("rseq_slice_yield", 471)], name)
}

fn listed(list: &[(&str, u32)], name: &str) -> Option<u32> {
    list.iter()
        .find(|(n, _)| *n == name)
        .map(|(_, number)| *number)
}

/// arch/arm/include/uapi/asm/unistd.h: `__ARM_NR_*`, from 0x0f0000.
const ARM_PRIVATE: [(&str, u32); 6] = [
    ("breakpoint", 0x0f_0001),
    ("cacheflush", 0x0f_0002),
    ("usr26", 0x0f_0003),
    ("usr32", 0x0f_0004),
    ("set_tls", 0x0f_0005),
    ("get_tls", 0x0f_0006),
];

/// scripts/syscall.tbl has 403 to 423 for 32-bit architectures alone; the crate's aarch64 table
/// lists them too. 415 is in no table.
const AARCH64_32_ONLY: std::ops::RangeInclusive<u32> = 403..=423;

const X86_SOCKETCALL: u32 = 102;
const X86_IPC: u32 = 117;

/// include/uapi/linux/net.h, `SYS_*`.
const SOCKETCALL: [(&str, u32); 20] = [
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

/// include/uapi/linux/ipc.h.
const IPC: [(&str, u32); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// x86_64's numbers of ABI `64` without a twin for x32 (syscall_64.tbl).
const X32_LACKS: [u32; 11] = [134, 156, 174, 177, 178, 180, 205, 211, 214, 215, 236];

/// Calls whose arguments need translation have numbers of their own under x32, from 512 on.
const X32_OWN: [(u32, u32); 36] = [
    (13, 512),
    (15, 513),
    (16, 514),
    (19, 515),
    (20, 516),
    (45, 517),
    (46, 518),
    (47, 519),
    (54, 541),
    (55, 542),
    (59, 520),
    (101, 521),
    (127, 522),
    (128, 523),
    (129, 524),
    (131, 525),
    (206, 543),
    (209, 544),
    (222, 526),
    (244, 527),
    (246, 528),
    (247, 529),
    (273, 530),
    (274, 531),
    (278, 532),
    (279, 533),
    (295, 534),
    (296, 535),
    (297, 536),
    (299, 537),
    (307, 538),
    (310, 539),
    (311, 540),
    (322, 545),
    (327, 546),
    (328, 547),
];

fn x32_number(x86_64: u32) -> u32 {
    X32_OWN
        .iter()
        .find(|(n, _)| *n == x86_64)
        .map_or(x86_64, |(_, own)| *own)
}

/// Slots of a name table: a power of two, more than twice the names, so that probes stay short.
const SLOTS: usize = 1024;

/// Open addressing by FNV-1a, built by the compiler: a profile looks up some 400 names for each
/// of three architectures on the way to every start.
type Table = [(&'static str, u32); SLOTS];

/// The crate writes names that are Rust keywords as raw identifiers (`r#break`).
const fn plain(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

const fn hash(name: &[u8]) -> usize {
    let mut h: u32 = 0x811c_9dc5;
    let mut i = 0;
    while i < name.len() {
        h = (h ^ name[i] as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    (h ^ (h >> 15)) as usize & (SLOTS - 1)
}

/// Builds a table from one of the crate's `Sysno` types (const code can't be generic over them).
macro_rules! table {
    ($sysno:ty) => {{
        let mut table: Table = [("", 0); SLOTS];
        let mut number = 0;
        while number <= <$sysno>::last().id() as usize {
            if let Some(call) = <$sysno>::new(number) {
                let name = plain(call.name());
                let mut slot = hash(name.as_bytes());
                while !table[slot].0.is_empty() {
                    slot = (slot + 1) & (SLOTS - 1);
                }
                table[slot] = (name, number as u32);
            }
            number += 1;
        }
        table
    }};
}

static X86_64: Table = table!(syscalls::x86_64::Sysno);
static X86: Table = table!(syscalls::x86::Sysno);
static AARCH64: Table = table!(syscalls::aarch64::Sysno);
static ARM: Table = table!(syscalls::arm::Sysno);

fn find(table: &Table, name: &str) -> Option<u32> {
    if name.is_empty() {
        return None;
    }
    let start = hash(name.as_bytes());
    let (before, from) = table.split_at_checked(start)?;
    for (known, number) in from.iter().chain(before) {
        if known.is_empty() {
            return None;
        }
        if *known == name {
            return Some(*number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(arch: Arch, name: &str) -> Option<u32> {
        arch.call(name).and_then(|c| c.direct)
    }

    #[test]
    fn numbers() {
        assert_eq!(number(Arch::X86_64, "read"), Some(0));
        assert_eq!(number(Arch::X86_64, "clone3"), Some(435));
        assert_eq!(number(Arch::X86, "read"), Some(3));
        assert_eq!(number(Arch::X32, "read"), Some(X32_BIT));
        assert_eq!(number(Arch::X32, "execve"), Some(X32_BIT | 520));
        assert_eq!(number(Arch::X32, "uselib"), None);
        assert_eq!(number(Arch::Aarch64, "newfstatat"), Some(79));
        assert_eq!(number(Arch::Aarch64, "fstatat"), None);
        assert_eq!(number(Arch::Aarch64, "futex_time64"), None);
        assert_eq!(number(Arch::Arm, "set_tls"), Some(0x0f_0005));
        assert_eq!(number(Arch::X86_64, "chown32"), None);
        assert_eq!(number(Arch::X86, "chown32"), Some(212));
    }

    #[test]
    fn multiplexed() {
        let socket = Arch::X86.call("socket").unwrap();
        assert_eq!(socket.direct, Some(359));
        assert_eq!(socket.multiplexed, Some((102, 1)));
        let accept = Arch::X86.call("accept").unwrap();
        assert_eq!(accept.direct, None);
        assert_eq!(accept.multiplexed, Some((102, 5)));
        assert_eq!(
            Arch::X86.call("shmctl").unwrap().multiplexed,
            Some((117, 24))
        );
        assert_eq!(Arch::X86_64.call("socket").unwrap().multiplexed, None);
    }

    #[test]
    fn every_name_of_the_crate_is_found() {
        for n in 0..=syscalls::x86_64::Sysno::last().id() as usize {
            if let Some(s) = syscalls::x86_64::Sysno::new(n) {
                assert_eq!(find(&X86_64, plain(s.name())), Some(n as u32));
            }
        }
        for n in 0..=syscalls::x86::Sysno::last().id() as usize {
            if let Some(s) = syscalls::x86::Sysno::new(n) {
                assert_eq!(find(&X86, plain(s.name())), Some(n as u32));
            }
        }
    }

    #[test]
    fn unknown_names() {
        for name in ["", "no_such_call", "READ", "read "] {
            assert!(!is_known(name), "{name}");
        }
        assert!(is_known("riscv_hwprobe") && is_known("chown32") && is_known("set_tls"));
    }
}
