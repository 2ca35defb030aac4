//! Memory, CPU, processes, block I/O, huge pages: flags to edits of `linux.resources`.
//!
//! Bounds and wording are Docker's (moby `daemon/daemon_unix.go`, `verifyPlatformContainerResources`).

use std::collections::BTreeSet;
use std::path::Path;

use oci_spec::runtime::{
    LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxThrottleDevice, LinuxThrottleDeviceBuilder,
    LinuxWeightDeviceBuilder, Spec,
};

use super::{Flags, Host, invalid};
use crate::cli::units::{self, NANO};
use crate::spec::edit::{Change, Edit, Throttle};
use crate::{Error, Result};

/// The CFS period that `--cpus` is expressed in, microseconds (moby: 100 ms).
const PERIOD: u64 = 100_000;

/// All limit edits, and the warnings that go with them.
pub(super) fn edits(
    flags: &Flags,
    spec: &Spec,
    host: &dyn Host,
    warnings: &mut Vec<String>,
) -> Result<Vec<Edit>> {
    let mut out = Vec::new();
    memory(flags, spec, host, warnings, &mut out)?;
    cpu(flags, host, &mut out)?;
    if let Some(limit) = flags.pids_limit {
        if limit < -1 {
            return Err(Error::msg(format!("invalid pids limit: {limit}")));
        }
        let limit = if limit == 0 { -1 } else { limit };
        out.push(Edit::new(
            format!("--pids-limit {limit}"),
            Change::Pids(limit),
        ));
    }
    block_io(flags, host, &mut out)?;
    for text in &flags.hugetlb {
        out.push(hugetlb(text)?);
    }
    for text in &flags.cgroup_conf {
        let (key, value) = pair(text, "--cgroup-conf")?;
        out.push(Edit::new(
            format!("--cgroup-conf {text}"),
            Change::Unified { key, value },
        ));
    }
    Ok(out)
}

fn pair(text: &str, flag: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(invalid(text, flag, "KEY=VALUE is expected")),
    }
}

fn size(text: &Option<String>, flag: &str) -> Result<Option<i64>> {
    let Some(text) = text else { return Ok(None) };
    let value = units::bytes(text).map_err(|why| invalid(text, flag, why))?;
    Ok(Some(value).filter(|v| *v != 0)) // 0 is "not set", as in Docker
}

fn swap_size(text: &Option<String>) -> Result<Option<i64>> {
    match text.as_deref() {
        Some("-1") => Ok(Some(-1)),
        _ => size(text, "--memory-swap"),
    }
}

/// The memory limit that will hold: the flag's, else the bundle's.
pub(super) fn memory_limit(flags: &Flags, spec: &Spec) -> Result<Option<i64>> {
    let flag = size(&flags.memory, "-m, --memory")?;
    let bundle = spec
        .linux()
        .as_ref()
        .and_then(|l| l.resources().as_ref())
        .and_then(|r| r.memory().as_ref())
        .and_then(LinuxMemory::limit);
    Ok(flag.or(bundle).filter(|l| *l > 0))
}

fn memory(
    flags: &Flags,
    spec: &Spec,
    host: &dyn Host,
    warnings: &mut Vec<String>,
    out: &mut Vec<Edit>,
) -> Result<()> {
    let set = |reason: String, fill: &dyn Fn(&mut LinuxMemory)| {
        let mut memory = LinuxMemory::default();
        fill(&mut memory);
        Edit::new(reason, Change::Memory(memory))
    };
    let flag = size(&flags.memory, "-m, --memory")?;
    let limit = memory_limit(flags, spec)?;
    if let (Some(bytes), Some(text)) = (flag, &flags.memory) {
        out.push(set(format!("--memory {text}"), &|m| {
            m.set_limit(Some(bytes));
        }));
    }
    let swap = swap_size(&flags.memory_swap)?;
    match (swap, limit) {
        (Some(swap), None) if swap > 0 => {
            return Err(Error::msg(
                "You should always set the Memory limit when using Memoryswap limit, see usage",
            ));
        }
        (Some(swap), Some(limit)) if swap > 0 && swap < limit => {
            return Err(Error::msg(
                "Minimum memoryswap limit should be larger than memory limit, see usage",
            ));
        }
        (Some(swap), _) => {
            let text = flags.memory_swap.as_deref().unwrap_or_default();
            out.push(set(format!("--memory-swap {text}"), &|m| {
                m.set_swap(Some(swap));
            }));
        }
        (None, Some(_)) if flag.is_some() => {
            // moby: an unset memory+swap is twice the memory, where the host can limit swap.
            let bytes = flag.unwrap_or_default();
            if host.swap_limit() {
                let swap = bytes.saturating_mul(2);
                out.push(set("default: twice --memory".to_owned(), &|m| {
                    m.set_swap(Some(swap));
                }));
            }
        }
        (None, _) => {}
    }
    if let (Some(bytes), Some(text)) = (
        size(&flags.memory_reservation, "--memory-reservation")?,
        &flags.memory_reservation,
    ) {
        if limit.is_some_and(|l| l < bytes) {
            return Err(Error::msg(
                "Minimum memory limit can not be less than memory reservation limit, see usage",
            ));
        }
        out.push(set(format!("--memory-reservation {text}"), &|m| {
            m.set_reservation(Some(bytes));
        }));
    }
    if let (Some(bytes), Some(text)) = (
        size(&flags.memory_high, "--memory-high")?,
        &flags.memory_high,
    ) {
        memory_high(bytes, text, limit, host, out)?;
    }
    match flags.memory_swappiness {
        None | Some(-1) => {}
        Some(value @ 0..=100) => {
            let value = u64::try_from(value).unwrap_or_default();
            out.push(set(format!("--memory-swappiness {value}"), &|m| {
                m.set_swappiness(Some(value));
            }));
        }
        Some(value) => {
            return Err(Error::msg(format!(
                "Invalid value: {value}, valid memory swappiness range is 0-100"
            )));
        }
    }
    if flags.oom_kill_disable {
        if host.memory_v2() {
            return Err(Error::unsupported(
                "--oom-kill-disable",
                "cgroup v2 has no such switch; --memory-high SIZE slows the cell down instead of \
                 killing it",
            ));
        }
        if limit.is_none() {
            warnings.push(
                "OOM killer is disabled for the container, but no memory limit is set, this can \
                 result in the system running out of resources."
                    .to_owned(),
            );
        }
        out.push(set("--oom-kill-disable".to_owned(), &|m| {
            m.set_disable_oom_killer(Some(true));
        }));
    }
    Ok(())
}

fn memory_high(
    bytes: i64,
    text: &str,
    limit: Option<i64>,
    host: &dyn Host,
    out: &mut Vec<Edit>,
) -> Result<()> {
    if !host.memory_v2() {
        return Err(Error::unsupported(
            "--memory-high",
            "the memory controller of this host is cgroup v1, which has no memory.high",
        ));
    }
    if limit.is_some_and(|l| l < bytes) {
        return Err(Error::msg(
            "--memory-high above the memory limit has no effect",
        ));
    }
    out.push(Edit::new(
        format!("--memory-high {text}"),
        Change::Unified {
            key: "memory.high".to_owned(),
            value: bytes.to_string(),
        },
    ));
    Ok(())
}

fn cpu(flags: &Flags, host: &dyn Host, out: &mut Vec<Edit>) -> Result<()> {
    let set = |reason: String, fill: &dyn Fn(&mut LinuxCpu)| {
        let mut cpu = LinuxCpu::default();
        fill(&mut cpu);
        Edit::new(reason, Change::Cpu(cpu))
    };
    let nano = match &flags.cpus {
        Some(text) => units::nano_cpus(text).map_err(|why| invalid(text, "--cpus", why))?,
        None => 0,
    };
    let period = flags.cpu_period.unwrap_or(0);
    let quota = flags.cpu_quota.unwrap_or(0);
    if nano > 0 {
        cpus_fit(nano, period, quota, host)?;
        let quota = i64::try_from(u128::from(nano) * u128::from(PERIOD) / u128::from(NANO));
        let quota = quota.unwrap_or(i64::MAX);
        let text = flags.cpus.as_deref().unwrap_or_default();
        out.push(set(format!("--cpus {text}"), &|c| {
            c.set_quota(Some(quota)).set_period(Some(PERIOD));
        }));
    }
    if period != 0 {
        // kernel/sched/core.c: min_cfs_quota_period 1 ms, max_cfs_quota_period 1 s
        if !(1000..=1_000_000).contains(&period) {
            return Err(Error::msg(
                "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
            ));
        }
        let value = u64::try_from(period).unwrap_or_default();
        out.push(set(format!("--cpu-period {period}"), &|c| {
            c.set_period(Some(value));
        }));
    }
    if quota != 0 {
        if quota > 0 && quota < 1000 {
            return Err(Error::msg(
                "CPU cfs quota can not be less than 1ms (i.e. 1000)",
            ));
        }
        out.push(set(format!("--cpu-quota {quota}"), &|c| {
            c.set_quota(Some(quota));
        }));
    }
    if let Some(shares) = flags.cpu_shares.filter(|s| *s != 0) {
        let value = u64::try_from(shares).map_err(|_| {
            Error::msg(format!(
                "invalid CPU shares ({shares}): value must be a positive integer"
            ))
        })?;
        out.push(set(format!("--cpu-shares {shares}"), &|c| {
            c.set_shares(Some(value));
        }));
    }
    if let Some(text) = &flags.cpuset_cpus {
        available(text, "cpus", "CPUs", &host.cpus())?;
        out.push(set(format!("--cpuset-cpus {text}"), &|c| {
            c.set_cpus(Some(text.clone()));
        }));
    }
    if let Some(text) = &flags.cpuset_mems {
        available(text, "mems", "memory nodes", &host.mems())?;
        out.push(set(format!("--cpuset-mems {text}"), &|c| {
            c.set_mems(Some(text.clone()));
        }));
    }
    Ok(())
}

fn cpus_fit(nano: u64, period: i64, quota: i64, host: &dyn Host) -> Result<()> {
    for (value, name) in [(period, "Period"), (quota, "Quota")] {
        if value > 0 {
            return Err(Error::msg(format!(
                "Conflicting options: Nano CPUs and CPU {name} cannot both be set."
            )));
        }
    }
    let count = host.cpus().len();
    let most = u64::try_from(count)
        .unwrap_or(u64::MAX)
        .saturating_mul(NANO);
    if nano < NANO / 100 || nano > most {
        return Err(Error::msg(format!(
            "Range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available"
        )));
    }
    Ok(())
}

fn available(text: &str, which: &str, name: &str, have: &BTreeSet<u32>) -> Result<()> {
    let asked = units::list(text)
        .map_err(|_| Error::msg(format!("Invalid value {text} for cpuset {which}")))?;
    if asked.is_empty() || !asked.is_subset(have) {
        return Err(Error::msg(format!(
            "Requested {name} are not available - requested {text}, available: {}",
            list_text(have)
        )));
    }
    Ok(())
}

/// The shortest list that names a set: `0-3,8`.
pub(super) fn list_text(set: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &n in set {
        match ranges.last_mut() {
            Some((_, high)) if *high + 1 == n => *high = n,
            _ => ranges.push((n, n)),
        }
    }
    let show = |(low, high): (u32, u32)| match low == high {
        true => low.to_string(),
        false => format!("{low}-{high}"),
    };
    ranges.into_iter().map(show).collect::<Vec<_>>().join(",")
}

/// CPUs' worth of time that the edits leave, in billionths, when there is a CFS quota.
pub(super) fn quota_nano(spec: &Spec) -> Option<u64> {
    let cpu = spec
        .linux()
        .as_ref()?
        .resources()
        .as_ref()?
        .cpu()
        .as_ref()?;
    let quota = u64::try_from(cpu.quota()?).ok().filter(|q| *q > 0)?;
    let period = cpu.period().filter(|p| *p > 0).unwrap_or(PERIOD);
    u64::try_from(u128::from(quota) * u128::from(NANO) / u128::from(period)).ok()
}

fn block_io(flags: &Flags, host: &dyn Host, out: &mut Vec<Edit>) -> Result<()> {
    match flags.blkio_weight {
        None | Some(0) => {}
        Some(weight @ 10..=1000) => {
            let reason = format!("--blkio-weight {weight}");
            out.push(Edit::new(reason, Change::BlkioWeight(weight)));
        }
        Some(_) => {
            return Err(Error::msg("Range of blkio weight is from 10 to 1000"));
        }
    }
    for text in &flags.blkio_weight_device {
        let flag = "--blkio-weight-device";
        let (path, weight) = units::device_weight(text).map_err(|why| invalid(text, flag, why))?;
        let (major, minor) = numbers(&path, host)?;
        let device = LinuxWeightDeviceBuilder::default()
            .major(major)
            .minor(minor)
            .weight(weight)
            .build()
            .map_err(|e| Error::msg(e.to_string()))?;
        let reason = format!("{flag} {text}");
        out.push(Edit::new(reason, Change::BlkioWeightDevice(device)));
    }
    for (list, flag, which) in [
        (
            &flags.device_read_bps,
            "--device-read-bps",
            Throttle::ReadBps,
        ),
        (
            &flags.device_write_bps,
            "--device-write-bps",
            Throttle::WriteBps,
        ),
        (
            &flags.device_read_iops,
            "--device-read-iops",
            Throttle::ReadIops,
        ),
        (
            &flags.device_write_iops,
            "--device-write-iops",
            Throttle::WriteIops,
        ),
    ] {
        for text in list {
            let parsed = match which {
                Throttle::ReadBps | Throttle::WriteBps => units::rate_bps(text),
                Throttle::ReadIops | Throttle::WriteIops => units::rate_iops(text),
            };
            let (path, rate) = parsed.map_err(|why| invalid(text, flag, why))?;
            let device = throttle(&path, rate, host)?;
            out.push(Edit::new(
                format!("{flag} {text}"),
                Change::Throttle { which, device },
            ));
        }
    }
    Ok(())
}

fn throttle(path: &str, rate: u64, host: &dyn Host) -> Result<LinuxThrottleDevice> {
    let (major, minor) = numbers(path, host)?;
    LinuxThrottleDeviceBuilder::default()
        .major(major)
        .minor(minor)
        .rate(rate)
        .build()
        .map_err(|e| Error::msg(e.to_string()))
}

fn numbers(path: &str, host: &dyn Host) -> Result<(i64, i64)> {
    let node = host.node(Path::new(path))?;
    if node.typ != oci_spec::runtime::LinuxDeviceType::B {
        return Err(Error::msg(format!("{path} is not a block device")));
    }
    Ok((node.major, node.minor))
}

/// `2MB:1g`: page size as the kernel names it (hugetlb.2MB.max), limit in bytes.
fn hugetlb(text: &str) -> Result<Edit> {
    let bad = |why: String| invalid(text, "--hugetlb", why);
    let (page, limit) = text
        .split_once(':')
        .ok_or_else(|| bad("PAGE:SIZE is expected, as 2MB:1g".to_owned()))?;
    let bytes = units::bytes(page).map_err(&bad)?;
    let limit_bytes = units::bytes(limit).map_err(&bad)?;
    // mm/hugetlb_cgroup.c `mem_fmt`: whole GB, MB or KB.
    let name = match u64::try_from(bytes).unwrap_or(0) {
        b if b >= 1 << 30 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 => format!("{}MB", b >> 20),
        b if b >= 1 << 10 => format!("{}KB", b >> 10),
        _ => return Err(bad(format!("invalid size: '{page}'"))),
    };
    let mut entry = LinuxHugepageLimit::default();
    entry.set_page_size(name).set_limit(limit_bytes);
    Ok(Edit::new(
        format!("--hugetlb {text}"),
        Change::Hugepage(entry),
    ))
}
