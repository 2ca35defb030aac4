//! `process`: who runs what, with which rights and limits (config.md, "Process").

use std::collections::HashSet;

use oci_spec::runtime::{
    Capabilities, IOPriorityClass, LinuxCapabilities, LinuxIOPriority, LinuxSchedulerPolicy,
    PosixRlimitType, Process, Scheduler,
};

use super::{absolute, id, id_list, text, texts};
use crate::{Error, Result};

/// setgroups(2): NGROUPS_MAX.
const MAX_GROUPS: usize = 65536;

pub(super) fn check(process: &Process, warnings: &mut Vec<String>) -> Result<()> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() {
        return Err(Error::config(
            "process.args",
            "expected at least one entry, the program",
        ));
    }
    texts("process.args", Some(args))?;
    env(process.env().as_deref().unwrap_or_default())?;
    absolute("process.cwd", process.cwd())?;

    let user = process.user();
    id("process.user.uid", user.uid())?;
    id("process.user.gid", user.gid())?;
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    if groups.len() > MAX_GROUPS {
        return Err(Error::config(
            "process.user.additionalGids",
            format!("more than {MAX_GROUPS} groups"),
        ));
    }
    for (i, group) in groups.iter().enumerate() {
        id(&format!("process.user.additionalGids[{i}]"), *group)?;
    }
    if let Some(mask) = user.umask().filter(|m| *m > 0o777) {
        return Err(Error::config(
            "process.user.umask",
            format!("expected at most 511 (octal 777), found {mask}"),
        ));
    }

    if let Some(size) = process.console_size() {
        // struct winsize has 16 bits for each (ioctl_tty(2)).
        for (at, n) in [("height", size.height()), ("width", size.width())] {
            if n > u64::from(u16::MAX) {
                return Err(Error::config(
                    format!("process.consoleSize.{at}"),
                    format!("expected at most {}, found {n}", u16::MAX),
                ));
            }
        }
    }
    if let Some(caps) = process.capabilities() {
        capabilities(caps, warnings)?;
    }
    rlimits(process)?;
    if let Some(score) = process.oom_score_adj() {
        // proc_pid_oom_score_adj(5)
        if !(-1000..=1000).contains(&score) {
            return Err(Error::config(
                "process.oomScoreAdj",
                format!("expected -1000 to 1000, found {score}"),
            ));
        }
    }
    for (at, label) in [
        ("process.apparmorProfile", process.apparmor_profile()),
        ("process.selinuxLabel", process.selinux_label()),
    ] {
        if let Some(label) = label {
            text(at, label)?;
            if label.contains(['\n', '\r']) {
                return Err(Error::config(at, "holds a line break"));
            }
        }
    }
    if let Some(priority) = process.io_priority() {
        io_priority(priority)?;
    }
    if let Some(s) = process.scheduler() {
        scheduler(s)?;
    }
    if let Some(affinity) = process.exec_cpu_affinity() {
        for (at, list) in [
            ("initial", affinity.initial()),
            ("final", affinity.cpu_affinity_final()),
        ] {
            if let Some(list) = list.as_deref().filter(|l| !l.is_empty()) {
                id_list(&format!("process.execCPUAffinity.{at}"), list)?;
            }
        }
    }
    Ok(())
}

/// `NAME=value` (config.md: environ(7)); runc 1.3 refuses the others too.
fn env(entries: &[String]) -> Result<()> {
    texts("process.env", Some(entries))?;
    for (i, entry) in entries.iter().enumerate() {
        // A name may not hold '=', so that the first one ends it.
        if !matches!(entry.split_once('='), Some((name, _)) if !name.is_empty()) {
            return Err(Error::config(
                format!("process.env[{i}]"),
                format!("expected NAME=value, found {entry:?}"),
            ));
        }
    }
    Ok(())
}

/// capset(2): a new effective set must be within the new permitted set. capabilities(7): a
/// capability can be ambient only while it is permitted and inheritable.
fn capabilities(caps: &LinuxCapabilities, warnings: &mut Vec<String>) -> Result<()> {
    let none = Capabilities::new();
    let permitted = caps.permitted().as_ref().unwrap_or(&none);
    let inheritable = caps.inheritable().as_ref().unwrap_or(&none);
    let effective = caps.effective().as_ref().unwrap_or(&none);
    let mut missing: Vec<String> = effective
        .difference(permitted)
        .map(|c| format!("CAP_{c}"))
        .collect();
    if !missing.is_empty() {
        missing.sort();
        return Err(Error::config(
            "process.capabilities.effective",
            format!("{} not in permitted too", missing.join(", ")),
        ));
    }
    let ambient = caps.ambient().as_ref().unwrap_or(&none);
    let mut lost: Vec<String> = ambient
        .iter()
        .filter(|c| !permitted.contains(c) || !inheritable.contains(c))
        .map(|c| format!("CAP_{c}"))
        .collect();
    if !lost.is_empty() {
        lost.sort();
        warnings.push(format!(
            "process.capabilities.ambient: {} not both permitted and inheritable, so not raised",
            lost.join(", ")
        ));
    }
    Ok(())
}

fn rlimits(process: &Process) -> Result<()> {
    let mut seen: HashSet<String> = HashSet::new();
    for (i, limit) in process.rlimits().iter().flatten().enumerate() {
        // config.md: "If rlimits contains duplicated entries with same type, the runtime MUST
        // generate an error."
        let kind: PosixRlimitType = limit.typ();
        if !seen.insert(kind.to_string()) {
            return Err(Error::config(
                format!("process.rlimits[{i}].type"),
                format!("{kind} is given twice"),
            ));
        }
        if limit.soft() > limit.hard() {
            return Err(Error::config(
                format!("process.rlimits[{i}].soft"),
                format!("{} is above the hard limit {}", limit.soft(), limit.hard()),
            ));
        }
    }
    Ok(())
}

/// ioprio_set(2): eight levels in the real-time and best-effort classes.
fn io_priority(p: &LinuxIOPriority) -> Result<()> {
    if p.class() != IOPriorityClass::IoprioClassIdle && !(0..=7).contains(&p.priority()) {
        return Err(Error::config(
            "process.ioPriority.priority",
            format!("expected 0 to 7, found {}", p.priority()),
        ));
    }
    Ok(())
}

/// sched_setattr(2) and sched(7).
fn scheduler(s: &Scheduler) -> Result<()> {
    use LinuxSchedulerPolicy as Policy;
    let refuse = |at: &str, why: String| Err(Error::config(format!("process.scheduler.{at}"), why));
    let policy = *s.policy();
    if policy == Policy::SchedIso {
        return refuse(
            "policy",
            "SCHED_ISO is reserved: no Linux kernel has it".into(),
        );
    }
    let nice = s.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return refuse("nice", format!("expected -20 to 19, found {nice}"));
    }
    let priority = s.priority().unwrap_or(0);
    match policy {
        Policy::SchedFifo | Policy::SchedRr if !(1..=99).contains(&priority) => {
            return refuse(
                "priority",
                format!("expected 1 to 99 for {policy}, found {priority}"),
            );
        }
        Policy::SchedFifo | Policy::SchedRr => {}
        _ if priority != 0 => {
            return refuse(
                "priority",
                format!("only SCHED_FIFO and SCHED_RR have one, not {policy}"),
            );
        }
        _ => {}
    }
    let times = [s.runtime(), s.deadline(), s.period()].map(|t| t.unwrap_or(0));
    let [runtime, deadline, period] = times;
    if policy != Policy::SchedDeadline {
        if times.iter().any(|t| *t != 0) {
            return refuse(
                "policy",
                format!("runtime, deadline and period belong to SCHED_DEADLINE, not to {policy}"),
            );
        }
        return Ok(());
    }
    // kernel/sched/deadline.c, __checkparam_dl(): period 0 means the deadline.
    let period = if period == 0 { deadline } else { period };
    if runtime < 1024 || runtime > deadline || deadline > period || period >> 63 != 0 {
        return refuse(
            "runtime",
            format!(
                "expected 1024 ns <= runtime <= deadline <= period < 2^63 ns, \
                 found {runtime}, {deadline}, {period}"
            ),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{accepted, refused, set};
    use serde_json::json;

    #[test]
    fn program_and_environment() {
        refused(set("/process/args", json!([])), &["process.args"]);
        refused(
            set("/process/args", json!(["a", "b\0"])),
            &["process.args[1]", "NUL"],
        );
        refused(
            set("/process/cwd", json!("tmp")),
            &["process.cwd", "absolute"],
        );
        accepted(set("/process/env", json!(["A=", "B=c=d"])));
        for bad in ["A", "=x", ""] {
            refused(
                set("/process/env", json!(["A=b", bad])),
                &["process.env[1]"],
            );
        }
    }

    #[test]
    fn users() {
        refused(
            set("/process/user", json!({"uid": u32::MAX})),
            &["process.user.uid"],
        );
        refused(
            set("/process/user", json!({"additionalGids": [5, u32::MAX]})),
            &["additionalGids[1]"],
        );
        refused(set("/process/user", json!({"umask": 0o1000})), &["umask"]);
        accepted(set("/process/user", json!({"uid": 65534, "umask": 0o777})));
    }

    #[test]
    fn capability_sets() {
        refused(
            set("/process/capabilities", json!({"effective": ["CAP_KILL"]})),
            &["effective", "CAP_KILL"],
        );
        let all = json!(["CAP_KILL"]);
        let full = json!({"effective": all, "permitted": all, "inheritable": all,
                          "bounding": all, "ambient": all});
        assert!(accepted(set("/process/capabilities", full)).is_empty());
        let w = accepted(set(
            "/process/capabilities",
            json!({"permitted": all, "ambient": all}),
        ));
        assert!(w[0].contains("ambient") && w[0].contains("CAP_KILL"));
    }

    #[test]
    fn limits() {
        let l = |ty, soft, hard| json!({"type": ty, "soft": soft, "hard": hard});
        accepted(set(
            "/process/rlimits",
            json!([l("RLIMIT_NOFILE", 1, 2), l("RLIMIT_CORE", 0, 0)]),
        ));
        refused(
            set(
                "/process/rlimits",
                json!([l("RLIMIT_NOFILE", 1, 2), l("RLIMIT_NOFILE", 1, 2)]),
            ),
            &["rlimits[1]", "RLIMIT_NOFILE", "twice"],
        );
        refused(
            set("/process/rlimits", json!([l("RLIMIT_NOFILE", 3, 2)])),
            &["rlimits[0].soft", "above"],
        );
        refused(set("/process/oomScoreAdj", json!(-1001)), &["oomScoreAdj"]);
        refused(
            set("/process/consoleSize", json!({"height": 70000, "width": 1})),
            &["consoleSize.height"],
        );
    }

    #[test]
    fn priorities() {
        accepted(set(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 7}),
        ));
        refused(
            set(
                "/process/ioPriority",
                json!({"class": "IOPRIO_CLASS_RT", "priority": 8}),
            ),
            &["ioPriority.priority"],
        );
        let s = |j| set("/process/scheduler", j);
        accepted(s(json!({"policy": "SCHED_OTHER", "nice": -20})));
        accepted(s(json!({"policy": "SCHED_RR", "priority": 99})));
        accepted(s(
            json!({"policy": "SCHED_DEADLINE", "runtime": 1024, "deadline": 2048}),
        ));
        refused(s(json!({"policy": "SCHED_OTHER", "nice": 20})), &["nice"]);
        refused(s(json!({"policy": "SCHED_FIFO"})), &["priority", "1 to 99"]);
        refused(
            s(json!({"policy": "SCHED_BATCH", "priority": 1})),
            &["priority"],
        );
        refused(s(json!({"policy": "SCHED_ISO"})), &["SCHED_ISO"]);
        refused(
            s(json!({"policy": "SCHED_OTHER", "period": 5})),
            &["SCHED_DEADLINE"],
        );
        refused(
            s(json!({"policy": "SCHED_DEADLINE", "runtime": 4096, "deadline": 2048})),
            &["runtime"],
        );
        refused(
            set("/process/execCPUAffinity", json!({"initial": "3-1"})),
            &["execCPUAffinity.initial"],
        );
    }
}
