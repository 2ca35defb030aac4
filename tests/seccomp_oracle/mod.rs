//! libseccomp as the oracle, a classic-BPF interpreter, and a generator of profiles.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};

use gpucell::process::seccomp::{Arch, X32_BIT, compile_for};
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch as SpecArch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg,
    LinuxSeccompOperator as Op, LinuxSyscall,
};
use serde_json::{Value, json};

pub fn parse(json: &Value) -> LinuxSeccomp {
    serde_json::from_value(json.clone()).unwrap()
}

/// The profile in Docker's configuration.
pub fn docker() -> LinuxSeccomp {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/docker-config.json"
    );
    let json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    parse(&json["linux"]["seccomp"])
}

/// struct seccomp_data.
pub struct Data {
    nr: u32,
    arch: u32,
    args: [u64; 6],
}

impl Data {
    pub fn new(arch: Arch, nr: u32, args: [u64; 6]) -> Data {
        Data {
            nr,
            arch: arch.audit(),
            args,
        }
    }

    fn load(&self, offset: u32) -> u32 {
        match offset {
            0 => self.nr,
            4 => self.arch,
            16..=60 if offset.is_multiple_of(4) => {
                let arg = self.args[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) {
                    arg as u32
                } else {
                    (arg >> 32) as u32
                }
            }
            other => panic!("load at {other}"),
        }
    }
}

/// Runs a classic BPF program as the kernel's seccomp does.
pub fn run(code: &[libc::sock_filter], data: &Data) -> u32 {
    let mut acc = 0;
    let mut pc = 0;
    loop {
        let i = code[pc];
        pc += 1;
        let condition = match i.code {
            0x20 => {
                acc = data.load(i.k);
                continue;
            }
            0x54 => {
                acc &= i.k;
                continue;
            }
            0x05 => {
                pc += i.k as usize;
                continue;
            }
            0x06 => return i.k,
            0x15 => acc == i.k,
            0x25 => acc > i.k,
            0x35 => acc >= i.k,
            0x45 => acc & i.k != 0,
            other => panic!("instruction {other:#x}"),
        };
        pc += usize::from(if condition { i.jt } else { i.jf });
    }
}

fn action(action: Action, errno: Option<u32>) -> ScmpAction {
    match action {
        Action::ScmpActKill | Action::ScmpActKillThread => ScmpAction::KillThread,
        Action::ScmpActKillProcess => ScmpAction::KillProcess,
        Action::ScmpActTrap => ScmpAction::Trap,
        Action::ScmpActErrno => ScmpAction::Errno(errno.unwrap_or(1) as i32),
        Action::ScmpActNotify => ScmpAction::Notify,
        Action::ScmpActTrace => ScmpAction::Trace(errno.unwrap_or(1) as u16),
        Action::ScmpActLog => ScmpAction::Log,
        Action::ScmpActAllow => ScmpAction::Allow,
    }
}

fn compare(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let (op, datum) = match arg.op() {
        Op::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        Op::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        Op::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        Op::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        Op::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        Op::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        Op::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(arg.value()),
            arg.value_two().unwrap_or(0),
        ),
    };
    ScmpArgCompare::new(arg.index() as u32, op, datum)
}

/// The architectures that a filter for `host` is asked about.
pub fn architectures(profile: &LinuxSeccomp, host: Arch) -> Vec<Arch> {
    let mut archs = vec![host];
    for a in profile.architectures().iter().flatten() {
        let a = match a {
            SpecArch::ScmpArchX86_64 => Arch::X86_64,
            SpecArch::ScmpArchX86 => Arch::X86,
            SpecArch::ScmpArchX32 => Arch::X32,
            SpecArch::ScmpArchAarch64 => Arch::Aarch64,
            SpecArch::ScmpArchArm => Arch::Arm,
            _ => continue,
        };
        if a.runs_on(host) && !archs.contains(&a) {
            archs.push(a);
        }
    }
    archs
}

fn theirs(arch: Arch) -> ScmpArch {
    match arch {
        Arch::X86_64 => ScmpArch::X8664,
        Arch::X86 => ScmpArch::X86,
        Arch::X32 => ScmpArch::X32,
        Arch::Aarch64 => ScmpArch::Aarch64,
        Arch::Arm => ScmpArch::Arm,
    }
}

/// libseccomp's program, its rules added as runc adds them; `None` if it refuses one.
pub fn oracle(profile: &LinuxSeccomp, host: Arch) -> Option<Vec<libc::sock_filter>> {
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut filter = ScmpFilterContext::new(default).unwrap();
    for a in architectures(profile, host) {
        filter.add_arch(theirs(a)).unwrap();
    }
    // runc does so for more than 32 rules. Without it libseccomp 2.5.4 forgets to load the call's
    // number when the rule that it sorts first is for a call that the architecture lacks.
    if profile.syscalls().iter().flatten().next().is_some() {
        filter.set_ctl_optimize(2).unwrap();
    }
    if host != Arch::X86_64 {
        filter.remove_arch(ScmpArch::Native).unwrap();
    }
    for rule in profile.syscalls().iter().flatten() {
        let answer = action(rule.action(), rule.errno_ret());
        if answer == default {
            continue;
        }
        let args = rule.args().clone().unwrap_or_default();
        let twice = (0..6).any(|n| args.iter().filter(|a| a.index() == n).count() > 1);
        for name in rule.names() {
            let Ok(call) = ScmpSyscall::from_name(name) else {
                continue;
            };
            let conds: Vec<ScmpArgCompare> = args.iter().map(compare).collect();
            if conds.is_empty() {
                filter.add_rule(answer, call).ok()?;
            } else if twice {
                for c in conds {
                    filter.add_rule_conditional(answer, call, &[c]).ok()?;
                }
            } else {
                filter.add_rule_conditional(answer, call, &conds).ok()?;
            }
        }
    }
    let mut file = tempfile::tempfile().unwrap();
    filter.export_bpf(&file).unwrap();
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    let insns = bytes.chunks_exact(8).map(|c| libc::sock_filter {
        code: u16::from_ne_bytes([c[0], c[1]]),
        jt: c[2],
        jf: c[3],
        k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
    });
    Some(insns.collect())
}

/// Whether libseccomp is known to lose part of these rules, which are all that a call has: with
/// `<`, `<=`, `>`, `>=` or several `!=` its tree of 32-bit comparisons mixes up rules that share a
/// comparison (2.5.4 answers `arg == 1` by the action of "`arg >= 2` or `arg == 0xffffffff`"). They are then compared with
/// the rules as written instead, see [`as_written`].
fn lossy(rules: &[LinuxSyscall]) -> bool {
    let mut alternatives: Vec<Vec<LinuxSeccompArg>> = rules.iter().flat_map(alternatives).collect();
    alternatives.dedup();
    // Two `!=` on one argument have the upper half in common.
    let unequal = |arg: usize| {
        let with = |a: &LinuxSeccompArg| a.index() == arg && a.op() == Op::ScmpCmpNe;
        let n = alternatives.iter().filter(|a| a.iter().any(with)).count();
        n > 1
    };
    if (0..6).any(unequal) {
        return true;
    }
    let inequality = |a: &LinuxSeccompArg| {
        matches!(
            a.op(),
            Op::ScmpCmpLt | Op::ScmpCmpLe | Op::ScmpCmpGt | Op::ScmpCmpGe
        )
    };
    let conditional = alternatives.iter().filter(|a| !a.is_empty()).count();
    conditional > 1 && alternatives.iter().flatten().any(inequality)
}

/// The conditions of a rule; each alone if two are on one argument.
fn alternatives(rule: &LinuxSyscall) -> Vec<Vec<LinuxSeccompArg>> {
    let args = rule.args().clone().unwrap_or_default();
    if (0..6).any(|n| args.iter().filter(|a| a.index() == n).count() > 1) {
        args.into_iter().map(|a| vec![a]).collect()
    } else {
        vec![args]
    }
}

/// What the rules say, if all that match say the same: any rule whose conditions hold.
fn as_written(
    profile: &LinuxSeccomp,
    rules: &[LinuxSyscall],
    arch: Arch,
    args: &[u64; 6],
) -> Option<u32> {
    let bits = if arch.wide() { u64::MAX } else { 0xffff_ffff };
    let default = answer(profile.default_action(), profile.default_errno_ret());
    let holds = |a: &LinuxSeccompArg| {
        let (v, value) = (args[a.index()] & bits, a.value() & bits);
        match a.op() {
            Op::ScmpCmpNe => v != value,
            Op::ScmpCmpLt => v < value,
            Op::ScmpCmpLe => v <= value,
            Op::ScmpCmpEq => v == value,
            Op::ScmpCmpGe => v >= value,
            Op::ScmpCmpGt => v > value,
            Op::ScmpCmpMaskedEq => v & value == a.value_two().unwrap_or(0) & value,
        }
    };
    let mut answers = Vec::new();
    for rule in rules {
        let action = answer(rule.action(), rule.errno_ret());
        if action == default {
            continue;
        }
        for conds in alternatives(rule) {
            if conds.is_empty() {
                return None;
            }
            if conds.iter().all(holds) {
                answers.push(action);
            }
        }
    }
    answers.dedup();
    match answers[..] {
        [] => Some(default),
        [one] => Some(one),
        _ => None,
    }
}

/// SECCOMP_RET_*, as libseccomp has it.
fn answer(action: Action, errno: Option<u32>) -> u32 {
    u32::from_ne_bytes(match action {
        Action::ScmpActErrno | Action::ScmpActTrace => action.as_u32(errno).to_ne_bytes(),
        other => other.as_u32(None).to_ne_bytes(),
    })
}

/// How many answers were compared.
#[derive(Default, Debug)]
pub struct Compared {
    /// With libseccomp's.
    pub libseccomp: usize,
    /// With the rules as written.
    pub written: usize,
}

/// Compares both programs' answers; `None` if libseccomp refuses the profile. Names that
/// libseccomp doesn't know yet are left out first.
pub fn agree(what: &str, profile: &LinuxSeccomp, host: Arch) -> Option<Compared> {
    let profile = &known_to_libseccomp(profile);
    let theirs = oracle(profile, host);
    let ours = compile_for(profile, host);
    let (theirs, ours) = match (theirs, ours) {
        (Some(t), Ok(o)) => (t, o.insns),
        // libseccomp also refuses what only shares a comparison, where nothing contradicts.
        (None, _) => return None,
        (Some(_), Err(e)) => panic!(
            "{what}: only libseccomp accepts {}: {e}",
            serde_json::to_string(profile).unwrap()
        ),
    };
    let archs = architectures(profile, host);
    let allows = matches!(
        profile.default_action(),
        Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace
    );
    let mut compared = Compared::default();
    let mut check = |arch: Arch, nr: u32, (rules, lossy): &(Vec<LinuxSyscall>, bool), args| {
        let data = Data::new(arch, nr, args);
        let ours = run(&ours, &data);
        let (source, expected) = if *lossy {
            let multiplexed = arch == Arch::X86 && (nr == 102 || nr == 117);
            match as_written(profile, rules, arch, &args).filter(|_| !multiplexed) {
                Some(expected) => {
                    compared.written += 1;
                    ("the rules", expected)
                }
                None => return,
            }
        } else {
            compared.libseccomp += 1;
            ("libseccomp", run(&theirs, &data))
        };
        assert_eq!(
            ours,
            expected,
            "{what}: {arch:?} {nr:#x} {args:x?}: ours, {source}'s\n{}",
            serde_json::to_string(rules).unwrap()
        );
    };
    let none = (vec![], false);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for arch in Arch::ALL.into_iter().filter(|a| a.runs_on(host)) {
        let offset = if arch == Arch::X32 { X32_BIT } else { 0 };
        let listed = archs.contains(&arch);
        // The ENOSYS answer: above the highest number that the profile names.
        let highest = (!allows && listed)
            .then(|| highest(profile, arch))
            .flatten();
        let values = boundaries(profile, arch);
        let by_number = if listed {
            rules_of(profile, arch)
        } else {
            BTreeMap::new()
        };
        let numbers = (0..1100)
            .chain(0x0f_0000..0x0f_0010)
            .map(|n| n | offset)
            .chain([offset | 0x3fff_ffff, (-1_i32) as u32, (-2_i32) as u32]);
        for nr in numbers {
            let x32 = arch != Arch::X32 && nr & X32_BIT != 0 && archs.contains(&Arch::X32);
            if highest.is_some_and(|h| nr > h) || (x32 && !allows) {
                continue;
            }
            let rules = by_number.get(&nr).unwrap_or(&none);
            check(arch, nr, rules, [0; 6]);
            let Some(lists) = values.get(&nr) else {
                continue;
            };
            for (i, list) in lists.iter().enumerate() {
                for v in list {
                    let mut args = [0; 6];
                    args[i] = *v;
                    check(arch, nr, rules, args);
                }
            }
            for _ in 0..150 {
                let mut args = [0; 6];
                for (arg, list) in args.iter_mut().zip(lists) {
                    *arg = match list.len() {
                        0 => random.next(),
                        n => list[random.below(n as u64) as usize],
                    };
                }
                check(arch, nr, rules, args);
            }
        }
    }
    Some(compared)
}

/// The profile without the names that libseccomp knows on fewer architectures than we do.
fn known_to_libseccomp(profile: &LinuxSeccomp) -> LinuxSeccomp {
    let known = |name: &str| {
        ScmpSyscall::from_name(name).is_ok()
            && Arch::ALL.into_iter().all(|arch| {
                let number = ScmpSyscall::from_name_by_arch(name, theirs(arch));
                let theirs = number.ok().map(|s| s.as_raw_syscall()).unwrap_or(-1);
                match arch.call(name) {
                    Some(c) if c.multiplexed.is_none() => c.direct == Some(theirs as u32),
                    Some(_) => true,
                    None => theirs < 0,
                }
            })
    };
    let mut json = serde_json::to_value(profile).unwrap();
    for rule in json["syscalls"].as_array_mut().into_iter().flatten() {
        let names = rule["names"].as_array_mut().unwrap();
        names.retain(|n| known(n.as_str().unwrap()));
    }
    parse(&json)
}

fn numbers_of(arch: Arch, name: &str) -> Vec<u32> {
    let call = arch.call(name);
    call.iter()
        .flat_map(|c| c.direct.into_iter().chain(c.multiplexed.map(|(n, _)| n)))
        .collect()
}

fn highest(profile: &LinuxSeccomp, arch: Arch) -> Option<u32> {
    let rules = profile.syscalls().iter().flatten();
    rules
        .flat_map(|r| r.names())
        .filter_map(|n| ScmpSyscall::from_name_by_arch(n, theirs(arch)).ok())
        .map(|s| s.as_raw_syscall())
        .filter(|n| *n > 0)
        .max()
        .map(|n| n as u32)
}

/// The rules of each call, and whether libseccomp loses part of them.
fn rules_of(profile: &LinuxSeccomp, arch: Arch) -> BTreeMap<u32, (Vec<LinuxSyscall>, bool)> {
    let mut all: BTreeMap<u32, (Vec<LinuxSyscall>, bool)> = BTreeMap::new();
    for rule in profile.syscalls().iter().flatten() {
        // Without the names: a call's rules are printed when they disagree.
        let mut short = rule.clone();
        short.set_names(vec![]);
        for nr in rule.names().iter().flat_map(|n| numbers_of(arch, n)) {
            all.entry(nr).or_default().0.push(short.clone());
        }
    }
    for (rules, is_lossy) in all.values_mut() {
        *is_lossy = lossy(rules);
    }
    all
}

/// For each call with conditions and each argument: values on both sides of every constant.
fn boundaries(profile: &LinuxSeccomp, arch: Arch) -> BTreeMap<u32, [Vec<u64>; 6]> {
    let mut all: BTreeMap<u32, [Vec<u64>; 6]> = BTreeMap::new();
    for rule in profile.syscalls().iter().flatten() {
        let args = rule.args().clone().unwrap_or_default();
        let multiplexed = rule
            .names()
            .iter()
            .any(|n| arch.call(n).is_some_and(|c| c.multiplexed.is_some()));
        if args.is_empty() && !multiplexed {
            continue;
        }
        for nr in rule.names().iter().flat_map(|n| numbers_of(arch, n)) {
            let lists = all.entry(nr).or_default();
            if multiplexed {
                lists[0].extend(0..26);
            }
            for arg in &args {
                let list = &mut lists[arg.index()];
                for v in [arg.value(), arg.value_two().unwrap_or(0)] {
                    let high = v >> 32;
                    list.extend([
                        v,
                        v.wrapping_add(1),
                        v.wrapping_sub(1),
                        !v,
                        v & 0xffff_ffff,
                        v | 0xffff_ffff_0000_0000,
                        high.wrapping_add(1) << 32,
                        high.wrapping_sub(1) << 32 | 0xffff_ffff,
                        v.wrapping_add(1 << 32),
                        v.wrapping_sub(1 << 32),
                    ]);
                    list.extend((0..64).filter(|b| v >> b & 1 == 1).map(|b| v ^ (1 << b)));
                }
                list.extend([0, 1, u64::MAX, 1 << 32, 0x8000_0000, 0x7fff_ffff]);
            }
        }
    }
    for list in all.values_mut().flatten() {
        list.sort_unstable();
        list.dedup();
    }
    all
}

/// xorshift64*.
pub struct Random(u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }
}

/// Profiles from a seed.
pub struct Generator(Random);

impl Generator {
    pub fn new(seed: u64) -> Generator {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.next();
        }
        Generator(random)
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.0.below(list.len() as u64) as usize]
    }

    fn value(&mut self) -> u64 {
        match self.0.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => u64::from(u32::MAX),
            3 => 1 << 32,
            4 => self.0.next(),
            5 => 1 << self.0.below(64),
            _ => self.0.below(12),
        }
    }

    fn condition(&mut self, index: u64) -> Value {
        let op = *self.pick(&["NE", "LT", "LE", "EQ", "EQ", "GE", "GT", "MASKED_EQ"]);
        let mut c = json!({"index": index, "value": self.value(), "op": format!("SCMP_CMP_{op}")});
        if op == "MASKED_EQ" {
            c["valueTwo"] = json!(c["value"].as_u64().unwrap() & self.value());
        }
        c
    }

    pub fn profile(mut self) -> LinuxSeccomp {
        const NAMES: [&str; 24] = [
            "read",
            "write",
            "open",
            "socket",
            "bind",
            "accept",
            "sendmsg",
            "semop",
            "shmctl",
            "msgget",
            "clone",
            "clone3",
            "personality",
            "ioctl",
            "execve",
            "chown32",
            "set_tls",
            "openat2",
            "futex_waitv",
            "mmap2",
            "socketcall",
            "ipc",
            "ptrace",
            "prctl",
        ];
        const ACTIONS: [&str; 8] = [
            "KILL",
            "KILL_PROCESS",
            "TRAP",
            "ERRNO",
            "TRACE",
            "LOG",
            "ALLOW",
            "NOTIFY",
        ];
        const ARCHS: [&str; 5] = ["X86_64", "X86", "X32", "AARCH64", "ARM"];
        let archs: Vec<String> = ARCHS
            .iter()
            .filter(|_| self.0.below(3) != 0)
            .map(|a| format!("SCMP_ARCH_{a}"))
            .collect();
        let default = *self.pick(&ACTIONS[..7]);
        // In every second profile all conditions lead to one action, so that any number of rules
        // for one call goes together.
        let agreed = (self.0.below(2) == 0).then(|| *self.pick(&ACTIONS));
        let mut rules = Vec::new();
        for _ in 0..=self.0.below(40) {
            let names: Vec<&str> = (0..=self.0.below(4)).map(|_| *self.pick(&NAMES)).collect();
            let conditions: Vec<Value> = match self.0.below(6) {
                0 => vec![],
                1 => {
                    // Two on one argument.
                    let index = self.0.below(6);
                    vec![self.condition(index), self.condition(index)]
                }
                2 => {
                    let first = self.0.below(3);
                    let second = first + 1 + self.0.below(2);
                    vec![self.condition(first), self.condition(second)]
                }
                _ => {
                    let index = self.0.below(2);
                    vec![self.condition(index)]
                }
            };
            let action = match agreed {
                Some(action) if !conditions.is_empty() => action,
                _ => *self.pick(&ACTIONS),
            };
            let mut rule = json!({"names": names, "action": format!("SCMP_ACT_{action}")});
            if matches!(action, "ERRNO" | "TRACE") && agreed.is_none() && self.0.below(2) == 0 {
                rule["errnoRet"] = json!(self.0.below(200));
            }
            rule["args"] = json!(conditions);
            rules.push(rule);
        }
        parse(&json!({"defaultAction": format!("SCMP_ACT_{default}"),
                      "architectures": archs, "syscalls": rules}))
    }
}
