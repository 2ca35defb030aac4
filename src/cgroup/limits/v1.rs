//! Limits as cgroup v1 files (kernel: admin-guide/cgroup-v1/).
//!
//! libcgroups' v1 managers are not used, for three reasons measured and read in 0.7.0:
//! its `apply` always writes its own device list after the configuration's (so a denied device
//! such as /dev/net/tun opens again) and no controller can be called by itself; making the
//! manager reads /proc/self/mountinfo and /proc/self/cgroup once for each of 12 controllers
//! (2.5 ms, 600 system calls, more than a whole start may take); and its groups are made only
//! by a write to cgroup.procs (7 to 10 ms each). The tests compare the resulting files with
//! those that libcgroups writes.

use super::v2::{check_burst, check_idle, check_weight, check_weight_of_idle};
use super::{Need, Present, Writes, check_page_size, check_word, device};
use crate::error::{Error, Result};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxThrottleDevice,
};

fn bytes(at: &'static str, value: i64) -> Result<i64> {
    if value >= -1 {
        Ok(value)
    } else {
        Err(Error::config(
            at,
            format!("expected bytes, or -1 for no limit, not {value}"),
        ))
    }
}

/// memory.limit_in_bytes and its kin.
pub(crate) fn memory(w: &mut Writes, m: &LinuxMemory, now: Present<'_>) -> Result<()> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const SWAP: &str = "memory.memsw.limit_in_bytes";
    if m.kernel().is_some_and(|v| v != 0 && v != -1) {
        w.warn("linux.resources.memory.kernel is ignored: Linux 5.4 made it obsolete");
    }
    let limit = m.limit().filter(|&l| l != 0);
    if let Some(l) = limit {
        bytes("linux.resources.memory.limit", l)?;
    }
    let swap = match m.swap().filter(|&s| s != 0) {
        // No memory limit means no swap limit, unless one is asked for (as runc).
        None if limit == Some(-1) => Some((-1, Need::IfPresent)),
        None => None,
        // Without swap accounting there is nothing to lift.
        Some(-1) => Some((-1, Need::IfPresent)),
        Some(s) => Some((bytes("linux.resources.memory.swap", s)?, Need::Must)),
    };
    if let (Some(l), Some((s, _))) = (limit, swap)
        && l > 0
        && s >= 0
        && s < l
    {
        return Err(Error::config(
            "linux.resources.memory.swap",
            format!("{s} is memory and swap together: expected no less than the memory limit, {l}"),
        ));
    }
    // The kernel wants memory <= memory+swap at every moment (EINVAL), so on the way up the swap
    // limit goes first, on the way down last. A new group has neither.
    let current: Option<u64> = now("memory", LIMIT).and_then(|t| t.trim().parse().ok());
    let swap_first = match (swap, current) {
        (Some((-1, _)), _) => true,
        (Some((s, _)), Some(cur)) => cur < s.unsigned_abs(),
        _ => false,
    };
    let put_swap = |w: &mut Writes| {
        if let Some((s, need)) = swap {
            w.push("memory", SWAP, s).need = need;
        }
    };
    if swap_first {
        put_swap(w);
    }
    if let Some(l) = limit {
        w.push("memory", LIMIT, l);
    }
    if !swap_first {
        put_swap(w);
    }
    if let Some(r) = m.reservation().filter(|&r| r != 0) {
        let r = bytes("linux.resources.memory.reservation", r)?;
        w.push("memory", "memory.soft_limit_in_bytes", r);
    }
    if let Some(t) = m.kernel_tcp().filter(|&t| t != 0) {
        let t = bytes("linux.resources.memory.kernelTCP", t)?;
        w.push("memory", "memory.kmem.tcp.limit_in_bytes", t);
    }
    match m.disable_oom_killer() {
        Some(true) => drop(w.push("memory", "memory.oom_control", 1)),
        // Only an update can find it switched on.
        Some(false) if current.is_some() => drop(w.push("memory", "memory.oom_control", 0)),
        _ => {}
    }
    if let Some(s) = m.swappiness() {
        if s > 100 {
            return Err(Error::config(
                "linux.resources.memory.swappiness",
                format!("expected 0 to 100, not {s}"),
            ));
        }
        w.push("memory", "memory.swappiness", s);
    }
    Ok(())
}

/// cpu.shares, the CFS quota, and real-time limits.
pub(crate) fn cpu(w: &mut Writes, c: &LinuxCpu, now: Present<'_>) -> Result<()> {
    let rt_period = c.realtime_period().filter(|&p| p != 0);
    let rt_runtime = c.realtime_runtime().filter(|&r| r != 0);
    // Period and runtime depend on each other: try the period, set the runtime, repeat.
    if let Some(p) = rt_period {
        w.push("cpu", "cpu.rt_period_us", p).need = if rt_runtime.is_some() {
            Need::Retried
        } else {
            Need::Must
        };
    }
    if let Some(r) = rt_runtime {
        w.push("cpu", "cpu.rt_runtime_us", r);
        if let Some(p) = rt_period {
            w.push("cpu", "cpu.rt_period_us", p);
        }
    }

    let idle = check_idle(c)?;
    if let Some(idle) = idle {
        w.push("cpu", "cpu.idle", idle);
    }
    if let Some(s) = c.shares().filter(|&s| s != 0) {
        // The kernel would clamp it without a word (MIN_SHARES, MAX_SHARES).
        if !(2..=262_144).contains(&s) {
            return Err(Error::config(
                "linux.resources.cpu.shares",
                format!("expected 2 to 262144, not {s}"),
            ));
        }
        if idle == Some(1) {
            w.warn("linux.resources.cpu.shares is ignored: cpu.idle sets the lowest weight");
        } else {
            check_weight_of_idle(idle, now)?;
            w.push("cpu", "cpu.shares", s);
        }
    }

    let burst = check_burst(c, now("cpu", "cpu.cfs_burst_us"))?;
    let quota = c.quota().filter(|&q| q != 0);
    let period = c.period().filter(|&p| p != 0);
    let live = now("cpu", "cpu.cfs_quota_us").is_some();
    if let Some(p) = period {
        // A new group has no quota, so any valid period will do. A live one may need the new
        // quota first: try, set the quota, repeat.
        w.push("cpu", "cpu.cfs_period_us", p).need = if live && quota.is_some() {
            Need::Retried
        } else {
            Need::Must
        };
    }
    if let (Some(b), true, true) = (burst, live, quota.is_some()) {
        w.push("cpu", "cpu.cfs_burst_us", b).need = Need::Retried;
    }
    if let Some(q) = quota {
        w.push("cpu", "cpu.cfs_quota_us", q.max(-1));
        if let (Some(p), true) = (period, live) {
            w.push("cpu", "cpu.cfs_period_us", p);
        }
    }
    if let Some(b) = burst {
        w.push("cpu", "cpu.cfs_burst_us", b);
    }
    Ok(())
}

/// blkio.weight (or its BFQ form) and blkio.throttle.*.
pub(crate) fn io(w: &mut Writes, b: &LinuxBlockIo) -> Result<()> {
    const AT: &str = "linux.resources.blockIO";
    if let Some(weight) = b.weight().filter(|&v| v != 0) {
        check_weight(AT, weight)?;
        w.push("io", "blkio.weight", weight).otherwise =
            Some(("blkio.bfq.weight", weight.to_string()));
    }
    if let Some(weight) = b.leaf_weight().filter(|&v| v != 0) {
        check_weight(AT, weight)?;
        w.push("io", "blkio.leaf_weight", weight);
    }
    for d in b.weight_device().iter().flatten() {
        let at = "linux.resources.blockIO.weightDevice";
        let dev = device(at, d.major(), d.minor())?;
        if let Some(weight) = d.weight().filter(|&v| v != 0) {
            check_weight(at, weight)?;
            let line = format!("{dev} {weight}");
            let put = w.push("io", "blkio.weight_device", &line);
            put.otherwise = Some(("blkio.bfq.weight_device", line));
        }
        if let Some(weight) = d.leaf_weight().filter(|&v| v != 0) {
            check_weight(at, weight)?;
            w.push("io", "blkio.leaf_weight_device", format!("{dev} {weight}"));
        }
    }
    let mut throttle = |list: &Option<Vec<LinuxThrottleDevice>>, file: &'static str| {
        for d in list.iter().flatten() {
            let dev = device(AT, d.major(), d.minor())?;
            w.push("io", file, format!("{dev} {}", d.rate()));
        }
        Ok::<(), Error>(())
    };
    throttle(
        b.throttle_read_bps_device(),
        "blkio.throttle.read_bps_device",
    )?;
    throttle(
        b.throttle_write_bps_device(),
        "blkio.throttle.write_bps_device",
    )?;
    throttle(
        b.throttle_read_iops_device(),
        "blkio.throttle.read_iops_device",
    )?;
    throttle(
        b.throttle_write_iops_device(),
        "blkio.throttle.write_iops_device",
    )?;
    Ok(())
}

/// hugetlb.<size>.limit_in_bytes, and the reservation form where the kernel has it (5.7).
pub(crate) fn hugetlb(w: &mut Writes, limits: &[LinuxHugepageLimit]) -> Result<()> {
    for l in limits {
        let size = check_page_size(l.page_size())?;
        let value = bytes("linux.resources.hugepageLimits", l.limit())?;
        w.push("hugetlb", format!("hugetlb.{size}.limit_in_bytes"), value);
        w.push(
            "hugetlb",
            format!("hugetlb.{size}.rsvd.limit_in_bytes"),
            value,
        )
        .need = Need::IfPresent;
    }
    Ok(())
}

/// net_cls.classid and net_prio.ifpriomap.
pub(crate) fn network(w: &mut Writes, n: &LinuxNetwork) -> Result<()> {
    if let Some(id) = n.class_id().filter(|&v| v != 0) {
        w.push("net_cls", "net_cls.classid", id);
    }
    for p in n.priorities().iter().flatten() {
        let name = check_word("linux.resources.network.priorities", p.name())?;
        w.push(
            "net_prio",
            "net_prio.ifpriomap",
            format!("{name} {}", p.priority()),
        );
    }
    Ok(())
}
