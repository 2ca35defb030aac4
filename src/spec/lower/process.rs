//! `process` → what the child becomes.

use super::cstr;
use crate::plan::{Caps, ProcessPlan};
use crate::sys::misc::SchedAttr;
use crate::{Error, Result};
use oci_spec::runtime::{
    Capability, IOPriorityClass, Linux, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, PosixRlimitType, Process,
    Scheduler,
};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::mem::size_of;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

/// Where programs are looked for when the environment has no PATH (what runc and execvp(3) use).
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Lowers `process`. The keyring and Linux-wide parts (personality, memory policy) are the
/// caller's.
pub fn process(p: &Process) -> Result<ProcessPlan> {
    let args = strings("process.args", p.args())?;
    let Some(first) = args.first() else {
        return Err(Error::config("process.args", "missing: no program to run"));
    };
    if first.is_empty() {
        return Err(Error::config("process.args[0]", "empty: no program to run"));
    }
    let mut env = strings("process.env", p.env())?;
    if let Some(i) = env.iter().position(|e| !e.as_bytes().contains(&b'=')) {
        return Err(Error::config(
            format!("process.env[{i}]"),
            "must be NAME=value",
        ));
    }
    last_wins(&mut env);
    if !p.cwd().is_absolute() {
        return Err(Error::config("process.cwd", "must be an absolute path"));
    }
    let terminal = p.terminal().unwrap_or(false);
    let user = p.user();
    Ok(ProcessPlan {
        candidates: candidates(first, &env)?,
        needs_home: !env.iter().any(|e| e.as_bytes().starts_with(b"HOME=")),
        args,
        env,
        cwd: cstr("process.cwd", p.cwd().as_os_str().as_bytes())?,
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask(),
        // Without the property there are none, as with runc and crun: neither the caller's nor root's.
        caps: p
            .capabilities()
            .as_ref()
            .map_or_else(Caps::default, |c| Caps {
                bounding: cap_mask(c.bounding()),
                effective: cap_mask(c.effective()),
                permitted: cap_mask(c.permitted()),
                inheritable: cap_mask(c.inheritable()),
                ambient: cap_mask(c.ambient()),
            }),
        no_new_privs: p.no_new_privileges().unwrap_or(false),
        rlimits: rlimits(p)?,
        oom_score_adj: p.oom_score_adj().map(|v| v.to_string().into_bytes()),
        apparmor: label(p.apparmor_profile(), "exec "),
        selinux: label(p.selinux_label(), ""),
        io_priority: io_priority(p)?,
        scheduler: p.scheduler().as_ref().map(scheduler).transpose()?,
        terminal,
        console_size: p
            .console_size()
            .as_ref()
            .filter(|_| terminal)
            .map(|b| (clamp16(b.height()), clamp16(b.width()))),
        ..ProcessPlan::default()
    })
}

/// Leaves one definition of each variable: the last one, where the first one stood. Programs that find
/// two take the first (getenv(3)), which would be the configuration's and not the command line's.
fn last_wins(env: &mut Vec<CString>) {
    fn name(entry: &CString) -> Vec<u8> {
        let name = entry.as_bytes().split(|b| *b == b'=').next();
        name.unwrap_or_default().to_vec()
    }
    let mut at: HashMap<Vec<u8>, usize> = HashMap::with_capacity(env.len());
    let mut out: Vec<CString> = Vec::with_capacity(env.len());
    for entry in env.drain(..) {
        match at.entry(name(&entry)) {
            Entry::Occupied(seen) => out[*seen.get()] = entry,
            Entry::Vacant(new) => {
                new.insert(out.len());
                out.push(entry);
            }
        }
    }
    *env = out;
}

fn clamp16(v: u64) -> u16 {
    u16::try_from(v).unwrap_or(u16::MAX)
}

fn label(text: &Option<String>, prefix: &str) -> Option<Vec<u8>> {
    text.as_deref()
        .filter(|t| !t.is_empty())
        .map(|t| format!("{prefix}{t}").into_bytes())
}

fn strings(at: &str, list: &Option<Vec<String>>) -> Result<Vec<CString>> {
    list.iter()
        .flatten()
        .enumerate()
        .map(|(i, s)| cstr(format_args!("{at}[{i}]"), s.as_bytes()))
        .collect()
}

/// The paths to try for args[0]: itself when it has a slash, else one per entry of the cell's
/// PATH (an empty entry is the working directory, execvp(3)).
fn candidates(first: &CString, env: &[CString]) -> Result<Vec<CString>> {
    if first.as_bytes().contains(&b'/') {
        return Ok(vec![first.clone()]);
    }
    let path = env
        .iter()
        .find_map(|e| e.as_bytes().strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH.as_bytes());
    path.split(|b| *b == b':')
        .map(|dir| {
            let dir = if dir.is_empty() { b"." } else { dir };
            let full = [dir, b"/", first.as_bytes()].concat();
            cstr("process.args[0]", &full)
        })
        .collect()
}

/// Bit mask of a capability set (bit = number in include/uapi/linux/capability.h).
pub fn cap_mask(set: &Option<HashSet<Capability>>) -> u64 {
    set.iter()
        .flatten()
        .fold(0, |mask, cap| mask | cap_bit(*cap))
}

fn cap_bit(cap: Capability) -> u64 {
    // oci-spec prints AUDIT_CONTROL, the caps crate knows CAP_AUDIT_CONTROL.
    cap_bit_of(&cap.to_string()).unwrap_or(0)
}

/// The bit of a capability by name, with or without `CAP_`; none for an unknown one.
pub(super) fn cap_bit_of(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let full = match upper.starts_with("CAP_") {
        true => upper,
        false => format!("CAP_{upper}"),
    };
    caps::Capability::from_str(&full).ok().map(|c| c.bitmask())
}

fn rlimits(p: &Process) -> Result<Vec<(u32, u64, u64)>> {
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for (i, r) in p.rlimits().iter().flatten().enumerate() {
        let number = match r.typ() {
            PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
            PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
            PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
            PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
            PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
            PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
            PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
            PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
            PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
            PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
            PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
            PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
            PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
            PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
            PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
            PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
        };
        if !seen.insert(number) {
            return Err(Error::config(
                format!("process.rlimits[{i}].type"),
                format!("{} is given twice", r.typ()),
            ));
        }
        out.push((number, r.soft(), r.hard()));
    }
    Ok(out)
}

/// ioprio_set(2): class 1 rt, 2 be, 3 idle; level 0 to 7.
fn io_priority(p: &Process) -> Result<Option<(u32, u32)>> {
    let Some(io) = p.io_priority() else {
        return Ok(None);
    };
    let class = match io.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(io.priority()) {
        Ok(level) if level <= 7 => Ok(Some((class, level))),
        _ => Err(Error::config(
            "process.ioPriority.priority",
            "must be 0 to 7",
        )),
    }
}

/// sched_setattr(2). Numbers from include/uapi/linux/sched.h.
fn scheduler(s: &Scheduler) -> Result<SchedAttr> {
    let policy = match s.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => {
            return Err(Error::unsupported(
                "process.scheduler.policy SCHED_ISO",
                "the kernel reserves the name and has no such policy",
            ));
        }
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flags = s.flags().iter().flatten().fold(0u64, |f, flag| {
        f | match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
            LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
        }
    });
    let priority = u32::try_from(s.priority().unwrap_or(0))
        .map_err(|_| Error::config("process.scheduler.priority", "must not be negative"))?;
    Ok(SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy,
        flags,
        nice: s.nice().unwrap_or(0),
        priority,
        runtime: s.runtime().unwrap_or(0),
        deadline: s.deadline().unwrap_or(0),
        period: s.period().unwrap_or(0),
    })
}

/// personality(2): the domain, and no flags (the runtime-spec defines none yet).
pub(super) fn personality(linux: &Linux) -> Result<Option<u64>> {
    let Some(p) = linux.personality() else {
        return Ok(None);
    };
    if p.flags().iter().flatten().next().is_some() {
        return Err(Error::config(
            "linux.personality.flags",
            "no flag is supported (the specification defines none)",
        ));
    }
    // include/uapi/linux/personality.h
    Ok(Some(match p.domain() {
        LinuxPersonalityDomain::PerLinux => 0x0000,
        LinuxPersonalityDomain::PerLinux32 => 0x0008,
    }))
}

/// Modes of set_mempolicy(2). Numbers from include/uapi/linux/mempolicy.h.
pub(crate) const MEMORY_MODES: [(MemoryPolicyModeType, i32); 7] = [
    (MemoryPolicyModeType::MpolDefault, 0),
    (MemoryPolicyModeType::MpolPreferred, 1),
    (MemoryPolicyModeType::MpolBind, 2),
    (MemoryPolicyModeType::MpolInterleave, 3),
    (MemoryPolicyModeType::MpolLocal, 4),
    (MemoryPolicyModeType::MpolPreferredMany, 5),
    (MemoryPolicyModeType::MpolWeightedInterleave, 6),
];

/// Flags of its modes, likewise.
pub(crate) const MEMORY_FLAGS: [(MemoryPolicyFlagType, i32); 3] = [
    (MemoryPolicyFlagType::MpolFStaticNodes, 1 << 15),
    (MemoryPolicyFlagType::MpolFRelativeNodes, 1 << 14),
    (MemoryPolicyFlagType::MpolFNumaBalancing, 1 << 13),
];

/// set_mempolicy(2): mode | flags and the nodes.
pub(super) fn mempolicy(linux: &Linux) -> Result<Option<(i32, Vec<u64>)>> {
    let Some(p) = linux.memory_policy() else {
        return Ok(None);
    };
    let Some((_, mode)) = MEMORY_MODES.iter().find(|(name, _)| *name == p.mode()) else {
        return Err(Error::config("linux.memoryPolicy.mode", "unknown"));
    };
    let wanted = |name: &MemoryPolicyFlagType| p.flags().iter().flatten().any(|f| f == name);
    let flags = MEMORY_FLAGS.iter().filter(|(name, _)| wanted(name));
    let flags = flags.fold(0, |all, (_, flag)| all | flag);
    let at = "linux.memoryPolicy.nodes";
    let nodes = cpu_list(at, p.nodes().as_deref().unwrap_or(""))?;
    let takes_nodes = !matches!(
        p.mode(),
        MemoryPolicyModeType::MpolDefault | MemoryPolicyModeType::MpolLocal
    );
    match (takes_nodes, nodes.is_empty(), p.mode()) {
        (false, false, _) => Err(Error::config(at, "this mode takes no nodes")),
        (true, true, mode) if mode != MemoryPolicyModeType::MpolPreferred => {
            Err(Error::config(at, "this mode needs nodes"))
        }
        _ => Ok(Some((mode | flags, nodes))),
    }
}

/// Largest CPU or node number accepted in a list: the kernel's own masks are no wider.
pub(super) const MAX_LIST: usize = 8192;

/// A kernel list such as `0-3,7` (cpuset(7), List format) as a bit mask in 64-bit words.
pub fn cpu_list(at: &str, text: &str) -> Result<Vec<u64>> {
    let bad = || {
        Error::config(
            at.to_owned(),
            format!("{text:?} is not a list such as 0-3,7"),
        )
    };
    let mut mask = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (lo, hi) = part.split_once('-').unwrap_or((part, part));
        let lo: usize = lo.trim().parse().map_err(|_| bad())?;
        let hi: usize = hi.trim().parse().map_err(|_| bad())?;
        if lo > hi || hi >= MAX_LIST {
            return Err(bad());
        }
        if mask.len() <= hi / 64 {
            mask.resize(hi / 64 + 1, 0u64);
        }
        (lo..=hi).for_each(|n| mask[n / 64] |= 1 << (n % 64));
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_masks() {
        assert_eq!(cpu_list("x", "0-3,7").unwrap(), [0b1000_1111]);
        assert_eq!(cpu_list("x", "64").unwrap(), [0, 1]);
        assert_eq!(cpu_list("x", "").unwrap(), Vec::<u64>::new());
        for bad in ["a", "3-1", "-1", "99999999", "1-", "1-99999999999999999999"] {
            assert!(cpu_list("x", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn programs_are_looked_for_in_the_cells_own_path() {
        let env = [c"PATH=/a:/b:".to_owned()];
        let got = candidates(&c"x".to_owned(), &env).unwrap();
        assert_eq!(got, [c"/a/x".into(), c"/b/x".into(), CString::from(c"./x")]);
        let got = candidates(&c"./x".to_owned(), &env).unwrap();
        assert_eq!(got, [CString::from(c"./x")]);
    }

    #[test]
    fn the_last_definition_of_a_variable_wins() {
        let text = |list: &[&str]| list.iter().map(|e| CString::new(*e).unwrap()).collect();
        let mut env: Vec<CString> =
            text(&["A=1", "PATH=/a", "A=2", "B=", "PATH=/b", "A=3=4", "B=x"]);
        last_wins(&mut env);
        assert_eq!(env, text(&["A=3=4", "PATH=/b", "B=x"]) as Vec<CString>);
    }

    #[test]
    fn capabilities_map_to_their_kernel_numbers() {
        let set = Some(HashSet::from([Capability::Chown, Capability::SysAdmin]));
        assert_eq!(cap_mask(&set), 1 | 1 << 21);
        let last = Some(HashSet::from([Capability::CheckpointRestore]));
        assert_eq!(cap_mask(&last), 1 << 40);
    }
}
