//! The seccomp filter: `linux.seccomp` compiled to a classic BPF program.
//!
//! Owns the meaning of a profile and the program's shape. It installs nothing: the child does,
//! as its last step but exec, with the ready program. The answers are those of libseccomp as runc
//! calls it; tests/spec_seccomp.rs compares the two call by call. libseccomp itself isn't used,
//! because building its filter takes longer than all the rest of a start, and its program is
//! larger (each allowed call is compared on its own).
//!
//! The program: architecture, then one binary search over the call's number, in which
//! neighbouring numbers with the same answer are one interval; then, for the few calls with
//! conditions, searches over the arguments. All exits are shared.
//!
//! Deliberate differences from libseccomp's filter:
//!
//! - **ENOSYS for calls newer than the profile.** A number above the highest one that the profile
//!   names for its architecture is answered with ENOSYS instead of the default action, unless the
//!   default is to allow, log or trace. C libraries try new calls first and fall back on ENOSYS
//!   only; EPERM breaks them. runc does the same (its `patchbpf`), but only for architectures
//!   that the profile lists; here also for the host's own when it lists none.
//! - Architectures whose programs this host's kernel can't run are left out: they are never asked
//!   for.
//! - Where libseccomp's tree loses part of a rule (two conditional rules of one call that share
//!   their first comparison in different ways), the rule is carried out as written.

mod arch;
mod args;
mod emit;
pub(crate) mod names;
mod rules;

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompFilterFlag as Flag,
};

pub use arch::{Arch, Call, X32_BIT, is_known};

use crate::{Error, Result};
use emit::{Emitter, Intervals, Target, Word};
use rules::{Answer, Cond, Op2, Refused, RuleSet};

/// A compiled filter, ready for seccomp(2), SECCOMP_SET_MODE_FILTER.
#[derive(Clone, Debug)]
pub struct Program {
    /// The instructions, at most [`MAX_INSNS`].
    pub insns: Vec<libc::sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*` to install it with.
    pub flags: u32,
    /// Where the filter's notification descriptor goes, if any rule notifies.
    pub notify: Option<Notify>,
    /// What in the profile is ignored, one line each.
    pub warnings: Vec<String>,
}

/// The agent that answers `SCMP_ACT_NOTIFY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// Its socket, AF_UNIX, SOCK_STREAM (config-linux.md, `listenerPath`).
    pub listener_path: PathBuf,
    /// Opaque text for it (`listenerMetadata`).
    pub metadata: Option<String>,
}

/// BPF_MAXINSNS (include/uapi/linux/bpf_common.h): instructions in one filter.
pub const MAX_INSNS: usize = 4096;

/// seccomp_data.nr and .arch (include/uapi/linux/seccomp.h).
const NR: Word = 0;
const ARCH: Word = 4;

/// SECCOMP_RET_KILL_THREAD: the answer for an architecture that the profile doesn't list, as
/// libseccomp's SCMP_FLTATR_ACT_BADARCH has it by default.
const BAD_ARCH: u32 = 0;

/// Compiles a profile for this host.
///
/// # Errors
/// [`Error::Config`]: contradictory rules, more than the kernel takes, values that
/// [`crate::spec::check`] refuses too. [`Error::Unsupported`]: a host without a table of names.
pub fn compile(spec: &LinuxSeccomp) -> Result<Program> {
    let host = Arch::HOST.ok_or_else(|| {
        Error::unsupported(
            "seccomp",
            format!("no table for {}", std::env::consts::ARCH),
        )
    })?;
    compile_for(spec, host)
}

/// Compiles a profile for a kernel of the architecture `host`.
///
/// # Errors
/// As [`compile`].
pub fn compile_for(spec: &LinuxSeccomp, host: Arch) -> Result<Program> {
    let mut warnings = Vec::new();
    let default = action(
        || "linux.seccomp.defaultErrnoRet".into(),
        spec.default_action(),
        spec.default_errno_ret(),
    )?;
    let stub = enosys_stub(spec.default_action(), default);
    let mut sets = Vec::new();
    for arch in architectures(spec, host) {
        sets.push(Rules {
            arch,
            set: RuleSet::new(arch.wide(), if arch == Arch::X32 { X32_BIT } else { 0 }),
            highest: 0,
        });
    }
    add_rules(spec, &mut sets, default, &mut warnings)?;

    let mut emitter = Emitter::default();
    let mut by_audit: BTreeMap<u32, Intervals<u32>> = BTreeMap::new();
    let archs: Vec<Arch> = sets.iter().map(|s| s.arch).collect();
    for rules in sets {
        let intervals = by_audit.entry(rules.arch.audit()).or_default();
        numbers(&mut emitter, rules, default, stub, intervals)?;
    }
    // Without x32 in the profile its calls are another architecture's, but for -1: a tracer sets
    // that to have a call skipped (seccomp(2)).
    if archs.contains(&Arch::X86_64) && !archs.contains(&Arch::X32) {
        let intervals = by_audit.entry(Arch::X86_64.audit()).or_default();
        intervals.push(X32_BIT, Target::Return(BAD_ARCH));
        intervals.push(u32::MAX, Target::Return(default));
    }
    let mut top = Intervals::all(0, Target::Return(BAD_ARCH));
    for (audit, intervals) in by_audit {
        let target = emitter.search(NR, intervals);
        within_limit(&emitter)?;
        top.push(audit, target);
        top.push(audit + 1, Target::Return(BAD_ARCH));
    }
    let entry = emitter.search(ARCH, top);
    let insns = emitter.finish(entry);
    if insns.len() > MAX_INSNS {
        return Err(too_long());
    }

    let notify = notify(spec);
    let flags = flags(spec, notify.is_some(), &mut warnings);
    Ok(Program {
        insns,
        flags,
        notify,
        warnings,
    })
}

/// The architectures to answer for: the host's own first (libseccomp adds it to every filter).
fn architectures(spec: &LinuxSeccomp, host: Arch) -> Vec<Arch> {
    let mut archs = vec![host];
    for listed in spec.architectures().iter().flatten() {
        // One that has no table is the host's own, or the host can't run its programs.
        let Some((_, a)) = names::ARCHS.iter().find(|(name, _)| name == listed) else {
            continue;
        };
        let a = *a;
        if a.runs_on(host) && !archs.contains(&a) {
            archs.push(a);
        }
    }
    // Intervals of one audit value are appended in order: x32's numbers are above x86_64's.
    archs.sort();
    archs
}

/// SECCOMP_RET_* for an action (include/uapi/linux/seccomp.h).
fn action(at: impl FnOnce() -> String, action: Action, errno: Option<u32>) -> Result<u32> {
    // config-linux.md: "If not specified, its default value is EPERM".
    let data = errno.unwrap_or(libc::EPERM as u32);
    if data > 0xffff {
        return Err(Error::config(
            at(),
            format!("expected at most 65535, found {data}"),
        ));
    }
    let Some((_, ret)) = names::ACTIONS.iter().find(|(name, _)| *name == action) else {
        return Err(Error::config(at(), format!("unknown action {action}")));
    };
    Ok(match action {
        Action::ScmpActErrno | Action::ScmpActTrace => ret | data,
        _ => *ret,
    })
}

/// The answer to calls newer than the profile; `None` where the default action already lets them
/// through, or is the same.
fn enosys_stub(default_action: Action, default: u32) -> Option<u32> {
    let enosys = 0x0005_0000 | libc::ENOSYS as u32;
    match default_action {
        // A tracer can answer for itself.
        Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace => None,
        _ => Some(enosys).filter(|e| *e != default),
    }
}

/// The rules of one architecture while they are collected.
struct Rules {
    arch: Arch,
    set: RuleSet,
    /// The highest number that the profile names, whatever its rule says; 0 if it names none (or
    /// call 0 alone, which says nothing of what the profile's author knew).
    highest: u32,
}

/// Adds the profile's rules to every architecture that has their calls.
fn add_rules(
    spec: &LinuxSeccomp,
    sets: &mut [Rules],
    default: u32,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let mut unknown = Unknown::default();
    for (i, rule) in spec.syscalls().iter().flatten().enumerate() {
        let answer = action(
            || format!("linux.seccomp.syscalls[{i}].errnoRet"),
            rule.action(),
            rule.errno_ret(),
        )?;
        let mut conds = Vec::new();
        for (j, arg) in rule.args().iter().flatten().enumerate() {
            if arg.index() > 5 {
                return Err(Error::config(
                    format!("linux.seccomp.syscalls[{i}].args[{j}].index"),
                    format!("expected 0 to 5, found {}", arg.index()),
                ));
            }
            conds.push(Cond::new(arg));
        }
        // Two conditions on one argument: runc makes every condition a rule of its own then.
        let mut args: Vec<u8> = conds.iter().map(|c| c.arg).collect();
        args.sort_unstable();
        let twice = args.windows(2).any(|pair| pair.first() == pair.last());
        let alternatives: Vec<&[Cond]> = if twice {
            conds.chunks(1).collect()
        } else {
            vec![&conds]
        };
        for name in rule.names() {
            let Some(entry) = arch::lookup(name) else {
                unknown.add(name);
                continue;
            };
            for rules in &mut *sets {
                let Some(call) = entry.call(rules.arch) else {
                    continue;
                };
                rules.highest = rules.highest.max(call.direct.unwrap_or(0));
                if answer == default {
                    continue;
                }
                for conds in &alternatives {
                    add(&mut rules.set, call, conds, answer).map_err(|why| {
                        let why = match why {
                            Refused::Conflict => format!(
                                "the rule for {name} has the same conditions as an earlier one, \
                                 but another action"
                            ),
                            Refused::TooMany => format!("too many conditional rules for {name}"),
                        };
                        Error::config(format!("linux.seccomp.syscalls[{i}]"), why)
                    })?;
                }
            }
        }
    }
    warnings.extend(unknown.warning());
    Ok(())
}

fn add(set: &mut RuleSet, call: Call, conds: &[Cond], action: u32) -> Result<(), Refused> {
    if let Some((number, first)) = call.multiplexed {
        // The call's own arguments are in memory, out of a filter's reach; libseccomp leaves the
        // conditions on the other arguments as they are.
        let mut through: Vec<Cond> = conds.iter().filter(|c| c.arg != 0).copied().collect();
        through.push(Cond {
            arg: 0,
            op: Op2::Eq,
            mask: u64::MAX,
            value: u64::from(first),
        });
        set.add(number, &through, action)?;
    }
    if let Some(number) = call.direct {
        set.add(number, conds, action)?;
    }
    Ok(())
}

/// Appends one architecture's numbers to `intervals`.
fn numbers(
    emitter: &mut Emitter,
    rules: Rules,
    default: u32,
    stub: Option<u32>,
    intervals: &mut Intervals<u32>,
) -> Result<()> {
    let otherwise = Target::Return(default);
    let Rules { arch, set, highest } = rules;
    let first = if arch == Arch::X32 { X32_BIT } else { 0 };
    intervals.push(first, otherwise);
    set.answers(|number, answer| {
        let target = match answer {
            Answer::Always(action) => Target::Return(action),
            Answer::First(rules) => args::first(emitter, arch.wide(), &rules, otherwise)?,
        };
        intervals.push(number, target);
        intervals.push(number + 1, otherwise);
        Ok(())
    })?;
    if let Some(enosys) = stub.filter(|_| highest != 0)
        && let Some(next) = highest.checked_add(1)
    {
        intervals.push(next, Target::Return(enosys));
    }
    Ok(())
}

fn too_long() -> Error {
    Error::config(
        "linux.seccomp.syscalls",
        format!("the filter is longer than the {MAX_INSNS} instructions that the kernel takes"),
    )
}

fn within_limit(emitter: &Emitter) -> Result<()> {
    if emitter.len() > MAX_INSNS {
        return Err(too_long());
    }
    Ok(())
}

fn notify(spec: &LinuxSeccomp) -> Option<Notify> {
    let used = spec
        .syscalls()
        .iter()
        .flatten()
        .any(|r| r.action() == Action::ScmpActNotify);
    Some(Notify {
        listener_path: spec.listener_path().clone().filter(|_| used)?,
        metadata: spec.listener_metadata().clone().filter(|m| !m.is_empty()),
    })
}

/// seccomp(2).
fn flags(spec: &LinuxSeccomp, notify: bool, warnings: &mut Vec<String>) -> u32 {
    let mut flags = 0;
    for flag in spec.flags().iter().flatten() {
        let number = names::FLAGS.iter().find(|(name, _)| name == flag);
        flags |= match flag {
            // Every thread of the process: there is one, so that the flag changes nothing; and
            // with a listener it would turn the returned descriptor into an error code.
            Flag::SeccompFilterFlagTsync => 0,
            Flag::SeccompFilterFlagWaitKillableRecv if !notify => {
                warnings.push(format!(
                    "linux.seccomp.flags: {flag} is ignored: no rule has SCMP_ACT_NOTIFY"
                ));
                0
            }
            // Always found: the table has every value of the type (a test says so).
            _ => number.map_or(0, |(_, number)| *number),
        };
    }
    if notify {
        flags |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32;
    }
    flags
}

/// Names in one warning.
const MAX_NAMES: usize = 16;

/// Names that no table has. config-linux.md lets a runtime go on without them: newer profiles
/// name newer calls. The ENOSYS answer, not the profile's, is what such calls get.
#[derive(Default)]
struct Unknown {
    names: Vec<String>,
    more: usize,
}

impl Unknown {
    fn add(&mut self, name: &str) {
        let name = name.chars().take(64).collect::<String>();
        let name = name.escape_debug().to_string();
        if self.names.contains(&name) {
            return;
        }
        if self.names.len() < MAX_NAMES {
            self.names.push(name);
        } else {
            self.more += 1;
        }
    }

    fn warning(self) -> Option<String> {
        let more = match self.more {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        (!self.names.is_empty()).then(|| {
            format!(
                "linux.seccomp.syscalls: unknown system calls are ignored: {}{more}",
                self.names.join(", ")
            )
        })
    }
}
