//! The v2 device filter: an eBPF program made from a device [`Table`], loaded, attached and
//! replaced.
//!
//! Owns the program's shape and which attached program is ours. The order of rules is settled
//! before (`device`); the system call is in `sys::bpf`.
//!
//! Loading costs what the verifier costs, and that grows with branches and stored state. So the
//! device's number is packed into one register (major << 20 | minor, which is the kernel's own
//! dev_t), each rule is a single compare-and-jump, and all rules with the same access share one
//! exit. The naive form (three compares, a mask test and an exit for each rule) takes four
//! times as long to load for Docker's list.

use super::device::{ALL, KindTable, Table};
use crate::error::{Error, Result};
use crate::sys::bpf::{self, Insn};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The name our programs are loaded under, by which an update finds the one to replace.
const NAME: &CStr = c"gpucell_devices";

// Instruction codes: include/uapi/linux/bpf.h and bpf_common.h, with JMP32 (Linux 5.1).
const LDX_W: u8 = 0x61;
const ALU32_AND_K: u8 = 0x54;
const ALU32_OR_X: u8 = 0x4c;
const ALU32_LSH_K: u8 = 0x64;
const ALU32_RSH_K: u8 = 0x74;
const MOV32_X: u8 = 0xbc;
const MOV32_K: u8 = 0xb4;
const JEQ32_K: u8 = 0x16;
const JSET32_K: u8 = 0x46;
const JA: u8 = 0x05;
const EXIT: u8 = 0x95;

/// struct bpf_cgroup_dev_ctx: access_type = (access << 16) | type, then major and minor.
const CTX_ACCESS: i16 = 0;
const CTX_MAJOR: i16 = 4;
const CTX_MINOR: i16 = 8;
/// BPF_DEVCG_DEV_CHAR; a block device has BPF_DEVCG_DEV_BLOCK, which is 1.
const TYPE_CHAR: i32 = 2;

const R_VERDICT: u8 = 0;
const R_CTX: u8 = 1;
const R_ACCESS: u8 = 2;
const R_DEV: u8 = 3;
const R_TMP: u8 = 4;

/// A place not yet known while jumps to it are written.
#[derive(Clone, Copy, PartialEq)]
enum Label {
    /// Start of the section for character devices.
    Chars,
    /// The exit that grants just these kinds of access.
    Grant(u8),
}

#[derive(Default)]
struct Asm {
    code: Vec<Insn>,
    jumps: Vec<(usize, Label)>,
}

impl Asm {
    fn op(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) {
        self.code.push(Insn::new(code, dst, src, off, imm));
    }

    fn jump(&mut self, code: u8, dst: u8, imm: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.op(code, dst, 0, 0, imm);
    }

    /// Ties every jump to `label` to the next instruction. False if there was none.
    fn land(&mut self, label: Label) -> bool {
        let here = self.code.len();
        let before = self.jumps.len();
        let code = &mut self.code;
        self.jumps.retain(|&(at, to)| {
            if to == label {
                code[at].off = (here - at - 1) as i16;
            }
            to != label
        });
        self.jumps.len() != before
    }

    fn section(&mut self, table: &KindTable) {
        for &(major, minor, access) in &table.exact {
            self.jump(
                JEQ32_K,
                R_DEV,
                ((major << 20) | minor) as i32,
                Label::Grant(access),
            );
        }
        if !table.majors.is_empty() {
            self.op(MOV32_X, R_TMP, R_DEV, 0, 0);
            self.op(ALU32_RSH_K, R_TMP, 0, 0, 20);
            for &(major, access) in &table.majors {
                self.jump(JEQ32_K, R_TMP, major as i32, Label::Grant(access));
            }
        }
        if !table.minors.is_empty() {
            self.op(ALU32_AND_K, R_DEV, 0, 0, 0xf_ffff);
            for &(minor, access) in &table.minors {
                self.jump(JEQ32_K, R_DEV, minor as i32, Label::Grant(access));
            }
        }
        self.jump(JA, 0, 0, Label::Grant(table.rest));
    }
}

/// Longest program made. Jumps reach 32767 instructions; the kernel takes a million.
const MAX_INSNS: usize = 32_000;

/// The program for a table: returns 1 when all that is asked for is granted, else 0.
///
/// # Errors
/// [`Error::Unsupported`] when the list has too many different devices (over 32,000).
pub fn compile(table: &Table) -> Result<Vec<Insn>> {
    assemble(
        table,
        &[
            Insn::new(MOV32_K, R_VERDICT, 0, 0, 0),
            Insn::new(EXIT, 0, 0, 0, 0),
        ],
    )
}

/// The program for a table, which goes on with `otherwise` where the table does not grant all that is
/// asked for. `otherwise` finds its argument where the kernel puts it, in r1.
fn assemble(table: &Table, otherwise: &[Insn]) -> Result<Vec<Insn>> {
    let entries: usize = [&table.chars, &table.blocks]
        .iter()
        .map(|t| t.exact.len() + t.majors.len() + t.minors.len())
        .sum();
    if entries > MAX_INSNS - 64 {
        return Err(Error::unsupported(
            "linux.resources.devices",
            format!("{entries} different devices; a device filter holds {MAX_INSNS}"),
        ));
    }
    let mut asm = Asm {
        code: Vec::with_capacity(entries + 32 + otherwise.len()),
        jumps: Vec::with_capacity(entries + 32),
    };
    asm.op(LDX_W, R_ACCESS, R_CTX, CTX_ACCESS, 0);
    asm.op(LDX_W, R_DEV, R_CTX, CTX_MAJOR, 0);
    asm.op(LDX_W, R_TMP, R_CTX, CTX_MINOR, 0);
    asm.op(ALU32_LSH_K, R_DEV, 0, 0, 20);
    asm.op(ALU32_OR_X, R_DEV, R_TMP, 0, 0);
    asm.jump(JSET32_K, R_ACCESS, TYPE_CHAR, Label::Chars);
    asm.section(&table.blocks);
    asm.land(Label::Chars);
    asm.section(&table.chars);

    // Exits, those that jump on to "denied" first, so that every jump goes forward.
    for access in 1..ALL {
        if asm.land(Label::Grant(access)) {
            asm.jump(
                JSET32_K,
                R_ACCESS,
                i32::from(!access & ALL) << 16,
                Label::Grant(0),
            );
            asm.jump(JA, 0, 0, Label::Grant(ALL));
        }
    }
    if asm.land(Label::Grant(ALL)) {
        asm.op(MOV32_K, R_VERDICT, 0, 0, 1);
        asm.op(EXIT, 0, 0, 0, 0);
    }
    // The verifier refuses what nothing leads to.
    if asm.land(Label::Grant(0)) {
        asm.code.extend_from_slice(otherwise);
    }
    Ok(asm.code)
}

/// Loads a program and attaches it to a group that has none of ours yet.
///
/// # Errors
/// Names the group, and for EPERM what is missing.
pub fn attach(group: BorrowedFd<'_>, name: &str, program: &[Insn]) -> Result<()> {
    let fd = load(name, program)?;
    bpf::attach_device(group, fd.as_fd(), None)
        .map_err(|e| Error::step("attach device filter to cgroup", name, e))
}

/// Loads a program and puts it in the place of ours in one step, so that there is no moment
/// without a filter. Programs of others (systemd's) stay. A group without ours just gets it.
///
/// # Errors
/// Names the group; the old filter is then still in force.
pub fn replace(group: BorrowedFd<'_>, name: &str, program: &[Insn]) -> Result<()> {
    let step = |e: io::Error| Error::step("replace device filter of cgroup", name, e);
    let old = ours(group).map_err(step)?;
    let fd = load(name, program)?;
    bpf::attach_device(group, fd.as_fd(), old.first().map(AsFd::as_fd)).map_err(step)?;
    // More than one of ours means that an update was cut off; the newest says it all.
    for extra in old.iter().skip(1) {
        bpf::detach_device(group, extra.as_fd()).map_err(step)?;
    }
    Ok(())
}

/// Puts a table ahead of every program attached to a group, whoever made it: what the table grants is
/// granted, all else is decided as before. Each program is replaced in one step. A group without
/// programs denies nothing and stays as it is.
///
/// All programs of a group must allow an access, so that when a later one can't be replaced the devices
/// are denied as before.
///
/// # Errors
/// Names the group, and why a program can't be read or replaced (see [`bpf::instructions`]).
pub(super) fn put_ahead(group: BorrowedFd<'_>, name: &str, table: &Table) -> Result<()> {
    let step = |what: &'static str| {
        move |e: io::Error| Error::step(what, format!("device filter of cgroup {name}"), e)
    };
    for id in bpf::query_device(group).map_err(step("look at"))? {
        let old = bpf::program_by_id(id).map_err(step("open"))?;
        let insns = bpf::instructions(&old).map_err(step("read"))?;
        let new = load(name, &assemble(table, &insns)?)?;
        bpf::attach_device(group, new.as_fd(), Some(old.as_fd())).map_err(step("replace"))?;
    }
    Ok(())
}

/// The programs of ours that are attached to a group.
fn ours(group: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for id in bpf::query_device(group)? {
        match bpf::program_by_id(id) {
            Ok(fd) if bpf::program_is_named(&fd, NAME)? => found.push(fd),
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// How many filters of ours a group carries.
///
/// # Errors
/// The errno of bpf(2), with the group's name.
pub fn count(group: BorrowedFd<'_>, name: &str) -> Result<usize> {
    ours(group)
        .map(|v| v.len())
        .map_err(|e| Error::step("look at device filter of cgroup", name, e))
}

fn load(group: &str, program: &[Insn]) -> Result<OwnedFd> {
    bpf::load_device_program(program, NAME).map_err(|e| match e.raw_os_error() {
        Some(libc::EPERM) => Error::unsupported(
            format!("the device filter of cgroup {group}"),
            "bpf(2) is refused: it needs CAP_BPF and CAP_NET_ADMIN (or CAP_SYS_ADMIN), and before \
             Linux 5.11 room in RLIMIT_MEMLOCK (ulimit -l unlimited)"
                .to_owned(),
        ),
        Some(libc::EINVAL | libc::EACCES) => {
            let log = bpf::verifier_log(program, NAME);
            let last = log.lines().last().unwrap_or("no reason given");
            Error::unsupported(
                format!("the device filter of cgroup {group}"),
                format!("the kernel refuses the program ({e}): {last}"),
            )
        }
        _ => Error::step("load device filter of cgroup", group, e),
    })
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
