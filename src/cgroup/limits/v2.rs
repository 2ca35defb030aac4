//! Limits as cgroup v2 files (kernel: admin-guide/cgroup-v2.rst).

use super::convert::{blkio_to_io_weight, bytes, shares_to_weight, swap};
use super::{Need, Present, Write, Writes, check_list, check_page_size, check_word, device};
use crate::error::{Error, Result};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxPids, LinuxRdma,
    LinuxThrottleDevice,
};
use std::borrow::Cow;
use std::collections::HashMap;

/// The kernel's default for the second word of cpu.max, microseconds.
const PERIOD: u64 = 100_000;

/// memory.max, memory.swap.max, memory.low. `memory.high`, `.min` and `.oom.group` have no place
/// in the spec's memory object: they come through `unified`, as in runc and crun.
pub(crate) fn memory(w: &mut Writes, m: &LinuxMemory, now: Present<'_>) -> Result<()> {
    if m.disable_oom_killer() == Some(true) {
        return Err(Error::unsupported(
            "linux.resources.memory.disableOOMKiller",
            "cgroup v2 has no switch for the OOM killer; memory.high (linux.resources.unified) \
             slows a cell down at that size instead of killing in it",
        ));
    }
    if let Some(s) = m.swappiness().filter(|&s| s != 0) {
        return Err(Error::unsupported(
            "linux.resources.memory.swappiness",
            format!("cgroup v2 has no file for it ({s} asked); memory.swap.max limits swap"),
        ));
    }
    for (name, set) in [("kernel", m.kernel()), ("kernelTCP", m.kernel_tcp())] {
        if set.is_some_and(|v| v != 0 && v != -1) {
            w.warn(format!(
                "linux.resources.memory.{name} is ignored: cgroup v2 counts kernel memory in \
                 memory.max"
            ));
        }
    }
    let limit = m.limit().filter(|&l| l != 0);
    if let Some(l) = limit
        && l > 0
        && m.check_before_update() == Some(true)
    {
        check_usage(l, m.swap().unwrap_or(0), now)?;
    }
    // Swap alone on an update is measured against the limit in force.
    let effective = limit.or_else(|| {
        let text = now("memory", "memory.max")?;
        match text.trim() {
            "max" => Some(-1),
            n => n.parse().ok(),
        }
    });
    let swap = match (limit, m.swap().filter(|&s| s != 0)) {
        (None, None) => None,
        (None, set) => swap(effective, set)?,
        (set, s) => swap(set, s)?,
    };
    if let Some(s) = swap {
        // Without swap in the kernel there is no such file, and nothing to limit.
        let needed = if s == "max" || s == "0" {
            Need::IfPresent
        } else {
            Need::Must
        };
        w.push("memory", "memory.swap.max", s).need = needed;
    }
    if let Some(l) = limit {
        let value = bytes("linux.resources.memory.limit", l)?;
        w.push("memory", "memory.max", value);
    }
    if let Some(r) = m.reservation().filter(|&r| r != 0) {
        let value = bytes("linux.resources.memory.reservation", r)?;
        w.push("memory", "memory.low", value);
    }
    Ok(())
}

/// `checkBeforeUpdate`: refuse what would make the kernel kill at once, as v1 did (EBUSY).
fn check_usage(limit: i64, swap: i64, now: Present<'_>) -> Result<()> {
    let read = |file| now("memory", file).and_then(|t| t.trim().parse::<i64>().ok());
    let Some(used) = read("memory.current") else {
        return Ok(()); // a group not made yet uses nothing
    };
    let used_swap = read("memory.swap.current").unwrap_or(0);
    let total = used.saturating_add(used_swap);
    if limit < used || (swap > 0 && swap < total) {
        return Err(Error::config(
            "linux.resources.memory.limit",
            format!(
                "{limit} is below what the cell uses now ({used} bytes, and {used_swap} of swap), \
                 and checkBeforeUpdate is set"
            ),
        ));
    }
    Ok(())
}

/// cpu.weight, cpu.max, cpu.max.burst, cpu.idle.
pub(crate) fn cpu(w: &mut Writes, c: &LinuxCpu, now: Present<'_>) -> Result<()> {
    for (name, set) in [
        (
            "realtimeRuntime",
            c.realtime_runtime().is_some_and(|v| v != 0),
        ),
        (
            "realtimePeriod",
            c.realtime_period().is_some_and(|v| v != 0),
        ),
    ] {
        if set {
            return Err(Error::unsupported(
                format!("linux.resources.cpu.{name}"),
                "cgroup v2 has no real-time scheduling limits",
            ));
        }
    }
    let idle = check_idle(c)?;
    if let Some(idle) = idle {
        w.push("cpu", "cpu.idle", idle);
    }
    let weight = shares_to_weight(c.shares().unwrap_or(0));
    if weight != 0 {
        if idle == Some(1) {
            // The kernel refuses a weight (EINVAL) while cpu.idle is 1: the weight is then fixed.
            w.warn("linux.resources.cpu.shares is ignored: cpu.idle sets the lowest weight");
        } else {
            check_weight_of_idle(idle, now)?;
            w.push("cpu", "cpu.weight", weight);
        }
    }

    let quota = c.quota().filter(|&q| q != 0);
    let period = c.period().filter(|&p| p != 0);
    let burst = check_burst(c, now("cpu", "cpu.max.burst"))?;
    let old = now("cpu", "cpu.max");
    let max = if quota.is_some() || period.is_some() {
        let mut words = old.as_deref().unwrap_or("").split_whitespace();
        let (old_quota, old_period) = (words.next(), words.next());
        let quota = match quota {
            Some(q) if q > 0 => q.to_string(),
            Some(_) => "max".into(),
            None => old_quota.unwrap_or("max").to_owned(),
        };
        let period = match period {
            Some(p) => p.to_string(),
            None => old_period.map_or_else(|| PERIOD.to_string(), str::to_owned),
        };
        Some(format!("{quota} {period}"))
    } else {
        None
    };
    // The kernel wants burst <= quota at every moment. A new group has burst 0, so the quota
    // goes first. On an update either may have to: try the burst, set the quota, repeat.
    if let (Some(b), Some(_), Some(_)) = (burst, &max, &old) {
        w.push("cpu", "cpu.max.burst", b).need = Need::Retried;
    }
    if let Some(max) = max {
        w.push("cpu", "cpu.max", max);
    }
    if let Some(b) = burst {
        w.push("cpu", "cpu.max.burst", b);
    }
    Ok(())
}

/// `cpu.idle` is 0 or 1.
pub(super) fn check_idle(c: &LinuxCpu) -> Result<Option<i64>> {
    match c.idle() {
        Some(i) if !(0..=1).contains(&i) => Err(Error::config(
            "linux.resources.cpu.idle",
            format!("expected 0 or 1, not {i}"),
        )),
        other => Ok(other),
    }
}

/// The kernel refuses a weight for a group that is idle (EINVAL).
pub(super) fn check_weight_of_idle(idle: Option<i64>, now: Present<'_>) -> Result<()> {
    match now("cpu", "cpu.idle") {
        Some(text) if idle.is_none() && text.trim() == "1" => Err(Error::config(
            "linux.resources.cpu.shares",
            "the cell is idle, which fixes its weight: set linux.resources.cpu.idle to 0 too",
        )),
        _ => Ok(()),
    }
}

/// A burst above the quota, either one given or in force, is refused (runtime-spec, "CPU"); the
/// kernel would only say EINVAL.
pub(super) fn check_burst(c: &LinuxCpu, in_force: Option<String>) -> Result<Option<u64>> {
    let Some(quota) = c.quota().filter(|&q| q > 0).map(i64::unsigned_abs) else {
        return Ok(c.burst());
    };
    if let Some(b) = c.burst().filter(|&b| b > quota) {
        return Err(Error::config(
            "linux.resources.cpu.burst",
            format!("{b} exceeds the quota, {quota}"),
        ));
    }
    let old = in_force.and_then(|t| t.trim().parse::<u64>().ok());
    if let (None, Some(b)) = (c.burst(), old.filter(|&b| b > quota)) {
        return Err(Error::config(
            "linux.resources.cpu.quota",
            format!("{quota} is below the burst in force ({b}): set linux.resources.cpu.burst too"),
        ));
    }
    Ok(c.burst())
}

/// cpuset.cpus, cpuset.mems.
pub(crate) fn cpuset(w: &mut Writes, c: &LinuxCpu) -> Result<()> {
    if let Some(list) = c.cpus().as_deref().filter(|l| !l.is_empty()) {
        let list = check_list("linux.resources.cpu.cpus", list)?;
        w.push("cpuset", "cpuset.cpus", list);
    }
    if let Some(list) = c.mems().as_deref().filter(|l| !l.is_empty()) {
        let list = check_list("linux.resources.cpu.mems", list)?;
        w.push("cpuset", "cpuset.mems", list);
    }
    Ok(())
}

/// pids.max. Zero is a limit (runtime-spec, "PIDs"), written as 1 as runc does: the same to a
/// cell, whose first process is there already, and systemd takes no 0.
pub(crate) fn pids(w: &mut Writes, p: &LinuxPids) {
    let value = match p.limit() {
        l if l < 0 => "max".to_owned(),
        l => l.max(1).to_string(),
    };
    w.push("pids", "pids.max", value);
}

/// io.max and io.weight (or io.bfq.weight, where that scheduler is built in).
pub(crate) fn io(w: &mut Writes, b: &LinuxBlockIo) -> Result<()> {
    const AT: &str = "linux.resources.blockIO";
    if b.leaf_weight().is_some_and(|v| v != 0) {
        return Err(no_leaf_weight(AT));
    }
    if let Some(weight) = b.weight().filter(|&v| v != 0) {
        check_weight(AT, weight)?;
        w.push("io", "io.bfq.weight", weight).otherwise =
            Some(("io.weight", blkio_to_io_weight(weight).to_string()));
    }
    for d in b.weight_device().iter().flatten() {
        let at = "linux.resources.blockIO.weightDevice";
        if d.leaf_weight().is_some_and(|v| v != 0) {
            return Err(no_leaf_weight(at));
        }
        let Some(weight) = d.weight().filter(|&v| v != 0) else {
            continue;
        };
        check_weight(at, weight)?;
        let dev = device(at, d.major(), d.minor())?;
        w.push("io", "io.bfq.weight", format!("{dev} {weight}"))
            .otherwise = Some(("io.weight", format!("{dev} {}", blkio_to_io_weight(weight))));
    }
    let mut max = |list: &Option<Vec<LinuxThrottleDevice>>, key: &str, field: &str| {
        for d in list.iter().flatten() {
            let dev = device(&format!("{AT}.{field}"), d.major(), d.minor())?;
            // v1 lifts a limit with 0; v2 says max (and refuses 0, ERANGE).
            let rate = match d.rate() {
                0 => Cow::Borrowed("max"),
                n => Cow::Owned(n.to_string()),
            };
            w.push("io", "io.max", format!("{dev} {key}={rate}"));
        }
        Ok::<(), Error>(())
    };
    max(
        b.throttle_read_bps_device(),
        "rbps",
        "throttleReadBpsDevice",
    )?;
    max(
        b.throttle_write_bps_device(),
        "wbps",
        "throttleWriteBpsDevice",
    )?;
    max(
        b.throttle_read_iops_device(),
        "riops",
        "throttleReadIOPSDevice",
    )?;
    max(
        b.throttle_write_iops_device(),
        "wiops",
        "throttleWriteIOPSDevice",
    )?;
    Ok(())
}

pub(super) fn check_weight(at: &'static str, weight: u16) -> Result<()> {
    if (10..=1000).contains(&weight) {
        Ok(())
    } else {
        Err(Error::config(
            at,
            format!("expected a weight from 10 to 1000, not {weight}"),
        ))
    }
}

fn no_leaf_weight(at: &'static str) -> Error {
    Error::unsupported(
        format!("{at}.leafWeight"),
        "it belonged to the CFQ scheduler, which Linux 5.0 removed",
    )
}

/// hugetlb.<size>.max, and .rsvd.max where the kernel has it (5.7), which counts reservations.
pub(crate) fn hugetlb(w: &mut Writes, limits: &[LinuxHugepageLimit]) -> Result<()> {
    for l in limits {
        let size = check_page_size(l.page_size())?;
        let value = bytes("linux.resources.hugepageLimits", l.limit())?;
        w.push("hugetlb", format!("hugetlb.{size}.max"), &value);
        w.push("hugetlb", format!("hugetlb.{size}.rsvd.max"), &value)
            .need = Need::IfPresent;
    }
    Ok(())
}

/// rdma.max, the same file in v1 and v2.
pub(crate) fn rdma(w: &mut Writes, devices: &HashMap<String, LinuxRdma>) -> Result<()> {
    let mut names: Vec<_> = devices.iter().collect();
    names.sort_by_key(|e| e.0);
    for (name, limit) in names {
        let at = "linux.resources.rdma";
        let mut line = check_word(at, name)?.to_owned();
        if limit.hca_handles().is_none() && limit.hca_objects().is_none() {
            return Err(Error::config(
                at,
                format!("{name}: expected hcaHandles, hcaObjects or both"),
            ));
        }
        if let Some(n) = limit.hca_handles() {
            line.push_str(&format!(" hca_handle={n}"));
        }
        if let Some(n) = limit.hca_objects() {
            line.push_str(&format!(" hca_object={n}"));
        }
        w.push("rdma", "rdma.max", line);
    }
    Ok(())
}

/// Network class and priority have no v2 controller.
pub(crate) fn network(n: &LinuxNetwork) -> Result<()> {
    for (name, set) in [
        ("classID", n.class_id().is_some_and(|v| v != 0)),
        (
            "priorities",
            n.priorities().as_ref().is_some_and(|v| !v.is_empty()),
        ),
    ] {
        if set {
            return Err(Error::unsupported(
                format!("linux.resources.network.{name}"),
                "cgroup v2 has no network controller; an eBPF or nftables rule can match the \
                 cell's cgroup instead",
            ));
        }
    }
    Ok(())
}

/// Files that are no limits: they move, kill or stop processes.
const NOT_LIMITS: [&str; 4] = [
    "cgroup.procs",
    "cgroup.threads",
    "cgroup.kill",
    "cgroup.freeze",
];

/// `unified`: any file of the group by its name. Values with several lines are written line by
/// line, as the kernel reads them. misc.max, memory.high, memory.min and memory.oom.group come
/// this way.
pub(crate) fn unified(w: &mut Writes, files: &HashMap<String, String>) -> Result<()> {
    let mut names: Vec<_> = files.iter().collect();
    names.sort_by_key(|e| e.0);
    for (name, value) in names {
        let at = || format!("linux.resources.unified[{name:?}]");
        let controller = match name.split_once('.') {
            Some((c, rest)) if !c.is_empty() && !rest.is_empty() => c,
            _ => return Err(Error::config(at(), "expected a name CONTROLLER.PARAMETER")),
        };
        if name.contains(['/', '\0']) {
            return Err(Error::config(at(), "expected a file name, without slashes"));
        }
        if NOT_LIMITS.contains(&name.as_str()) {
            return Err(Error::config(
                at(),
                "expected a limit; this file is the runtime's",
            ));
        }
        for line in value.split('\n').filter(|l| !l.is_empty()) {
            w.list.push(Write {
                controller: Cow::Owned(controller.to_owned()),
                file: Cow::Owned(name.clone()),
                value: line.to_owned(),
                need: Need::Must,
                otherwise: None,
            });
        }
    }
    Ok(())
}
