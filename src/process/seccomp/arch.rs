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
        lookup(name)?.call(self)
    }

    const fn index(self) -> usize {
        match self {
            Arch::X86_64 => 0,
            Arch::X86 => 1,
            Arch::X32 => 2,
            Arch::Aarch64 => 3,
            Arch::Arm => 4,
        }
    }
}

/// A name and its numbers.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    name: &'static str,
    /// By [`Arch::index`]; [`NONE`] where the call doesn't exist.
    numbers: [u16; 5],
    /// i386's `socketcall` with this value, from [`IPC_BASE`] on `ipc` with the rest; 0 for none.
    multiplexed: u8,
}

const NONE: u16 = u16::MAX;
const IPC_BASE: u8 = 100;
/// Stands for [`ARM_BASE`], to fit 16 bits.
const ARM_PRIVATE: u16 = 0x8000;
/// arch/arm/include/uapi/asm/unistd.h, `__ARM_NR_BASE`.
const ARM_BASE: u32 = 0x0f_0000;

impl Entry {
    /// How the call is made on `arch`.
    pub(super) fn call(&self, arch: Arch) -> Option<Call> {
        let [x86_64, x86, x32, aarch64, arm] = self.numbers;
        let direct = match arch {
            Arch::X86_64 => Some(u32::from(x86_64)).filter(|_| x86_64 != NONE),
            Arch::X86 => Some(u32::from(x86)).filter(|_| x86 != NONE),
            Arch::X32 => Some(X32_BIT | u32::from(x32)).filter(|_| x32 != NONE),
            Arch::Aarch64 => Some(u32::from(aarch64)).filter(|_| aarch64 != NONE),
            Arch::Arm if arm == NONE => None,
            Arch::Arm if arm & ARM_PRIVATE != 0 => Some(ARM_BASE + u32::from(arm & !ARM_PRIVATE)),
            Arch::Arm => Some(u32::from(arm)),
        };
        let multiplexed = match self.multiplexed {
            n if n == 0 || arch != Arch::X86 => None,
            n if n > IPC_BASE => Some((X86_IPC, u32::from(n - IPC_BASE))),
            n => Some((X86_SOCKETCALL, u32::from(n))),
        };
        (direct.is_some() || multiplexed.is_some()).then_some(Call {
            direct,
            multiplexed,
        })
    }
}

/// The entry of a name; `None` if no architecture of Linux has a call of this name, as far as is
/// known here (the names of architectures without a table are known too).
pub(super) fn lookup(name: &str) -> Option<&'static Entry> {
    let start = hash(name.as_bytes());
    let (before, from) = TABLE.split_at_checked(start)?;
    for entry in from.iter().chain(before) {
        if entry.name == name {
            return Some(entry).filter(|_| !name.is_empty());
        }
        if entry.name.is_empty() {
            return None;
        }
    }
    None
}

/// Whether any architecture of Linux has a call of this name, also those without a table here.
pub fn is_known(name: &str) -> bool {
    lookup(name).is_some()
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
const NEWEST: [(&str, u16); 2] = [("listns", 470), ("rseq_slice_yield", 471)];

/// `__ARM_NR_*` (arch/arm/include/uapi/asm/unistd.h), less [`ARM_BASE`].
const ARM_OWN: [(&str, u16); 6] = [
    ("breakpoint", 1),
    ("cacheflush", 2),
    ("usr26", 3),
    ("usr32", 4),
    ("set_tls", 5),
    ("get_tls", 6),
];

/// scripts/syscall.tbl has these for 32-bit architectures alone; the crate's aarch64 table lists
/// them too.
const AARCH64_32_ONLY: std::ops::RangeInclusive<usize> = 403..=423;
/// The name for `newfstatat` that the crate's aarch64 table has instead.
const AARCH64_FSTATAT: usize = 79;

const X86_SOCKETCALL: u32 = 102;
const X86_IPC: u32 = 117;

/// include/uapi/linux/net.h, `SYS_*`.
const SOCKETCALL: [(&str, u8); 20] = [
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
const IPC: [(&str, u8); 12] = [
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
const X32_LACKS: [u16; 11] = [134, 156, 174, 177, 178, 180, 205, 211, 214, 215, 236];

/// Calls whose arguments need translation have numbers of their own under x32, from 512 on.
const X32_OWN: [(u16, u16); 36] = [
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

/// Slots of the table: a power of two, twice the names, so that probes stay short.
const SLOTS: usize = 1024;

/// Open addressing by FNV-1a, built by the compiler: a profile looks up some 400 names on the way
/// to every start.
static TABLE: [Entry; SLOTS] = table();

const fn hash(name: &[u8]) -> usize {
    let mut h: u32 = 0x811c_9dc5;
    let mut i = 0;
    while i < name.len() {
        h = (h ^ name[i] as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    (h ^ (h >> 15)) as usize & (SLOTS - 1)
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// The crate writes names that are Rust keywords as raw identifiers (`r#break`).
const fn plain(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

/// The slot of a name, made where there is none.
const fn slot(table: &mut [Entry; SLOTS], name: &'static str) -> usize {
    let mut slot = hash(name.as_bytes());
    while !table[slot].name.is_empty() && !same(table[slot].name.as_bytes(), name.as_bytes()) {
        slot = (slot + 1) & (SLOTS - 1);
    }
    table[slot].name = name;
    slot
}

/// Enters one of the crate's `Sysno` types (const code can't be generic over them).
macro_rules! enter {
    ($table:ident, $arch:expr, $sysno:ty) => {
        let mut number = 0;
        while number <= <$sysno>::last().id() as usize {
            if let Some(call) = <$sysno>::new(number) {
                let at = slot(&mut $table, plain(call.name()));
                $table[at].numbers[$arch.index()] = number as u16;
            }
            number += 1;
        }
    };
}

const fn table() -> [Entry; SLOTS] {
    let mut table = [Entry {
        name: "",
        numbers: [NONE; 5],
        multiplexed: 0,
    }; SLOTS];
    enter!(table, Arch::X86_64, syscalls::x86_64::Sysno);
    enter!(table, Arch::X86, syscalls::x86::Sysno);
    enter!(table, Arch::Arm, syscalls::arm::Sysno);
    let mut number = 0;
    while number <= syscalls::aarch64::Sysno::last().id() as usize {
        let only_32 = *AARCH64_32_ONLY.start() <= number && number <= *AARCH64_32_ONLY.end();
        if let (Some(call), false) = (syscalls::aarch64::Sysno::new(number), only_32) {
            let name = match number {
                AARCH64_FSTATAT => "newfstatat",
                _ => plain(call.name()),
            };
            let at = slot(&mut table, name);
            table[at].numbers[Arch::Aarch64.index()] = number as u16;
        }
        number += 1;
    }
    let mut i = 0;
    while i < NEWEST.len() {
        let at = slot(&mut table, NEWEST[i].0);
        table[at].numbers = [NEWEST[i].1; 5];
        i += 1;
    }
    i = 0;
    while i < ARM_OWN.len() {
        let at = slot(&mut table, ARM_OWN[i].0);
        table[at].numbers[Arch::Arm.index()] = ARM_PRIVATE | ARM_OWN[i].1;
        i += 1;
    }
    i = 0;
    while i < SOCKETCALL.len() {
        let at = slot(&mut table, SOCKETCALL[i].0);
        table[at].multiplexed = SOCKETCALL[i].1;
        i += 1;
    }
    i = 0;
    while i < IPC.len() {
        let at = slot(&mut table, IPC[i].0);
        table[at].multiplexed = IPC_BASE + IPC[i].1;
        i += 1;
    }
    i = 0;
    while i < ELSEWHERE.len() {
        slot(&mut table, ELSEWHERE[i]);
        i += 1;
    }
    i = 0;
    while i < SLOTS {
        table[i].numbers[Arch::X32.index()] = x32(table[i].numbers[Arch::X86_64.index()]);
        i += 1;
    }
    table
}

/// x32's number (without its bit) of the call that x86_64 has under `number`.
const fn x32(number: u16) -> u16 {
    let mut i = 0;
    while i < X32_LACKS.len() {
        if X32_LACKS[i] == number {
            return NONE;
        }
        i += 1;
    }
    i = 0;
    while i < X32_OWN.len() {
        if X32_OWN[i].0 == number {
            return X32_OWN[i].1;
        }
        i += 1;
    }
    number
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
                assert_eq!(number(Arch::X86_64, plain(s.name())), Some(n as u32));
            }
        }
        for n in 0..=syscalls::x86::Sysno::last().id() as usize {
            if let Some(s) = syscalls::x86::Sysno::new(n) {
                assert_eq!(number(Arch::X86, plain(s.name())), Some(n as u32));
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
