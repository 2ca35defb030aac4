//! Thin wrappers over bpf(2) for device programs (BPF_PROG_TYPE_CGROUP_DEVICE).
//!
//! Owns the system call and the layout of its argument. What a program says, and which one is
//! replaced, is decided in `cgroup/`. The parent alone calls these; some allocate.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// include/uapi/linux/bpf.h: enum bpf_cmd, bpf_prog_type, bpf_attach_type and attach flags.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_REPLACE: u32 = 1 << 2;

/// Longest program name, without its final NUL (BPF_OBJ_NAME_LEN).
const NAME_MAX: usize = 15;
/// Most programs one cgroup can hold (BPF_CGROUP_MAX_PROGS).
const MAX_PROGS: usize = 64;

/// One eBPF instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// Class, operation and source.
    pub code: u8,
    /// Destination and source registers, in the host's bit-field order. Use [`Insn::new`].
    pub regs: u8,
    /// Jump distance, or offset into memory.
    pub off: i16,
    /// Immediate operand.
    pub imm: i32,
}

impl Insn {
    /// An instruction with its registers packed as the host's compiler packs the bit-fields.
    pub const fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Self {
        let regs = if cfg!(target_endian = "little") {
            (src << 4) | dst
        } else {
            (dst << 4) | src
        };
        Insn {
            code,
            regs,
            off,
            imm,
        }
    }
}

/// `union bpf_attr`, larger than any kernel's. A kernel accepts a longer one whose tail is zero,
/// and kernels 6.17 to 7.1 write past a short one in BPF_PROG_QUERY.
#[repr(C, align(8))]
struct Attr([u8; 256]);

impl Attr {
    fn new() -> Self {
        Attr([0; 256])
    }

    fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(&mut self, at: usize, value: u64) -> &mut Self {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(&mut self, at: usize, fd: BorrowedFd<'_>) -> &mut Self {
        // A borrowed descriptor is never negative.
        self.u32(at, fd.as_raw_fd() as u32)
    }

    fn get_u32(&self, at: usize) -> u32 {
        let mut b = [0; 4];
        b.copy_from_slice(&self.0[at..at + 4]);
        u32::from_ne_bytes(b)
    }

    fn call(&mut self, cmd: libc::c_int) -> io::Result<libc::c_int> {
        // SAFETY: the attribute is a live, writable buffer of the size passed. Pointers stored in
        // it come from references that outlive the call (each caller keeps them on its stack).
        let r = unsafe { libc::syscall(libc::SYS_bpf, cmd, self.0.as_mut_ptr(), self.0.len()) };
        if r < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(r as libc::c_int)
        }
    }

    fn call_fd(&mut self, cmd: libc::c_int) -> io::Result<OwnedFd> {
        let fd = self.call(cmd)?;
        // SAFETY: the kernel just returned this descriptor (close-on-exec); nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Loads a device program. `name` (at most 15 bytes of `[A-Za-z0-9_.]`) shows up in bpftool.
///
/// Memory is charged to the caller's memory cgroup since Linux 5.11; before, to RLIMIT_MEMLOCK,
/// which is not raised here (that needs CAP_SYS_RESOURCE).
///
/// # Errors
/// The errno of bpf(2): EPERM without CAP_BPF (or over RLIMIT_MEMLOCK before 5.11), EINVAL or
/// EACCES when the verifier refuses. [`verifier_log`] tells why.
pub fn load_device_program(insns: &[Insn], name: &CStr) -> io::Result<OwnedFd> {
    load_attr(insns, name).call_fd(BPF_PROG_LOAD)
}

/// Loads again with the verifier's log on, for an error message; the last lines matter.
pub fn verifier_log(insns: &[Insn], name: &CStr) -> String {
    let mut log = vec![0u8; 64 * 1024];
    let mut attr = load_attr(insns, name);
    attr.u32(24, 1)
        .u32(28, log.len() as u32)
        .u64(32, log.as_mut_ptr() as u64);
    // Success is possible (a race with a limit): the log is then simply short.
    let _ = attr.call_fd(BPF_PROG_LOAD);
    let end = log.iter().position(|&b| b == 0).unwrap_or(log.len());
    String::from_utf8_lossy(&log[..end]).trim().to_owned()
}

fn load_attr(insns: &[Insn], name: &CStr) -> Attr {
    // No GPL-only helper is called, so any licence text will do (bpf-licensing, kernel docs).
    const LICENCE: &CStr = c"Apache-2.0";
    let mut attr = Attr::new();
    attr.u32(0, BPF_PROG_TYPE_CGROUP_DEVICE)
        .u32(4, insns.len() as u32)
        .u64(8, insns.as_ptr() as u64)
        .u64(16, LICENCE.as_ptr() as u64);
    let name = name.to_bytes();
    let n = name.len().min(NAME_MAX);
    attr.0[48..48 + n].copy_from_slice(&name[..n]);
    attr
}

/// Attaches a device program to a cgroup, next to those already there (BPF_F_ALLOW_MULTI), or
/// in the place of `replace` in one step (BPF_F_REPLACE, Linux 5.6).
///
/// # Errors
/// EPERM when a program was attached there, or above, in an exclusive mode; ENOENT when
/// `replace` is not attached; else the errno of bpf(2).
pub fn attach_device(
    group: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attr = Attr::new();
    let mut flags = BPF_F_ALLOW_MULTI;
    if let Some(old) = replace {
        flags |= BPF_F_REPLACE;
        attr.fd(16, old);
    }
    attr.fd(0, group)
        .fd(4, program)
        .u32(8, BPF_CGROUP_DEVICE)
        .u32(12, flags);
    attr.call(BPF_PROG_ATTACH).map(drop)
}

/// Detaches one device program from a cgroup.
///
/// # Errors
/// ENOENT when it is not attached; else the errno of bpf(2).
pub fn detach_device(group: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    Attr::new()
        .fd(0, group)
        .fd(4, program)
        .u32(8, BPF_CGROUP_DEVICE)
        .call(BPF_PROG_DETACH)
        .map(drop)
}

/// The ids of the device programs attached to this cgroup itself, oldest first.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN (or CAP_SYS_ADMIN); else the errno of bpf(2).
pub fn query_device(group: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; MAX_PROGS];
    let mut attr = Attr::new();
    attr.fd(0, group)
        .u32(4, BPF_CGROUP_DEVICE)
        .u64(16, ids.as_mut_ptr() as u64)
        .u32(24, MAX_PROGS as u32);
    attr.call(BPF_PROG_QUERY)?;
    let n = (attr.get_u32(24) as usize).min(MAX_PROGS);
    Ok(ids[..n].to_vec())
}

/// A descriptor for a loaded program.
///
/// # Errors
/// ENOENT when it is gone; EPERM without CAP_SYS_ADMIN.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    Attr::new().u32(0, id).call_fd(BPF_PROG_GET_FD_BY_ID)
}

/// Whether a program was loaded under this name.
///
/// # Errors
/// The errno of bpf(2).
pub fn program_is_named(program: &OwnedFd, name: &CStr) -> io::Result<bool> {
    // struct bpf_prog_info up to and with its name (offset 64, BPF_OBJ_NAME_LEN bytes).
    let mut info = [0u64; 10];
    Attr::new()
        .fd(0, program.as_fd())
        .u32(4, size_of_val(&info) as u32)
        .u64(8, info.as_mut_ptr() as u64)
        .call(BPF_OBJ_GET_INFO_BY_FD)?;
    let mut found = [0u8; 16];
    found[..8].copy_from_slice(&info[8].to_ne_bytes());
    found[8..].copy_from_slice(&info[9].to_ne_bytes());
    let mut want = [0u8; 16];
    let name = name.to_bytes();
    let n = name.len().min(NAME_MAX);
    want[..n].copy_from_slice(&name[..n]);
    Ok(found == want)
}

/// The instructions of a loaded program, as the kernel keeps them after its verifier.
///
/// # Errors
/// EPERM when the kernel doesn't show them (no CAP_SYS_ADMIN, or constants are blinded), ENOTSUP when
/// they can't be loaded again: they refer to maps. Else the errno of bpf(2).
pub fn instructions(program: &OwnedFd) -> io::Result<Vec<Insn>> {
    // struct bpf_prog_info: xlated_prog_len at 20, xlated_prog_insns at 32, nr_map_ids at 52.
    let info = |insns: &mut [Insn]| -> io::Result<(usize, bool, u32)> {
        let mut info = [0u64; 10];
        info[2] = pair(0, size_of_val(insns) as u32);
        info[4] = insns.as_mut_ptr() as u64;
        Attr::new()
            .fd(0, program.as_fd())
            .u32(4, size_of_val(&info) as u32)
            .u64(8, info.as_mut_ptr() as u64)
            .call(BPF_OBJ_GET_INFO_BY_FD)?;
        let (_, bytes) = halves(info[2]);
        let (_, maps) = halves(info[6]);
        Ok((bytes as usize / size_of::<Insn>(), info[4] != 0, maps))
    };
    let (count, _, maps) = info(&mut [])?;
    if maps != 0 {
        return Err(io::Error::from_raw_os_error(libc::ENOTSUP));
    }
    let mut insns = vec![Insn::new(0, 0, 0, 0, 0); count];
    let (again, shown, _) = info(&mut insns)?;
    if count == 0 || again != count || !shown {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(insns)
}

/// Two 32-bit fields that stand beside each other in a struct, as the word that holds them.
fn pair(first: u32, second: u32) -> u64 {
    let mut word = [0; 8];
    word[..4].copy_from_slice(&first.to_ne_bytes());
    word[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(word)
}

fn halves(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    )
}
