//! Figures from cgroup v2 files (kernel: admin-guide/cgroup-v2.rst), in v1's names as runc has them.

use super::{BlkioEntry, Files, Hugetlb, MemoryEntry, Stats, page_sizes};
use crate::error::Result;

/// Reads a group. Beside v1 hierarchies (`all` is false) it only has pressure.
pub(super) fn read(f: &Files<'_>, all: bool, to: &mut Stats) -> Result<()> {
    to.cpu.psi = f.pressure("cpu.pressure")?;
    to.memory.psi = f.pressure("memory.pressure")?;
    to.blkio.psi = f.pressure("io.pressure")?;
    if !all {
        return Ok(());
    }
    pids(f, to)?;
    cpu(f, to)?;
    memory(f, to)?;
    io(f, to)?;
    for size in page_sizes() {
        let at = |rest: &str| format!("hugetlb.{size}.{rest}");
        let reserved = f.number(&at("rsvd.current"))?;
        let Some(usage) = reserved.map_or_else(|| f.number(&at("current")), |n| Ok(Some(n)))?
        else {
            break;
        };
        let events = f.flat(&at("events"))?.unwrap_or_default();
        let entry = Hugetlb {
            usage,
            max: 0,
            failcnt: events.get("max").copied().unwrap_or(0),
        };
        to.hugetlb.insert(size, entry);
    }
    Ok(())
}

fn pids(f: &Files<'_>, to: &mut Stats) -> Result<()> {
    match f.number("pids.current")? {
        Some(current) => {
            to.pids.current = current;
            to.pids.limit = f
                .number("pids.max")?
                .filter(|&n| n != u64::MAX)
                .unwrap_or(0);
        }
        // Without the controller.
        None => {
            let procs = f.text("cgroup.procs")?.unwrap_or_default();
            to.pids.current = procs.lines().count() as u64;
        }
    }
    Ok(())
}

fn cpu(f: &Files<'_>, to: &mut Stats) -> Result<()> {
    for (key, n) in f.flat("cpu.stat")?.unwrap_or_default() {
        let usage = &mut to.cpu.usage;
        let throttling = &mut to.cpu.throttling;
        match key.as_str() {
            "usage_usec" => usage.total = n.saturating_mul(1000),
            "user_usec" => usage.user = n.saturating_mul(1000),
            "system_usec" => usage.kernel = n.saturating_mul(1000),
            "nr_periods" => throttling.periods = n,
            "nr_throttled" => throttling.throttled_periods = n,
            "throttled_usec" => throttling.throttled_time = n.saturating_mul(1000),
            _ => {}
        }
    }
    Ok(())
}

fn memory(f: &Files<'_>, to: &mut Stats) -> Result<()> {
    let Some(raw) = f.flat("memory.stat")? else {
        return Ok(());
    };
    let m = &mut to.memory;
    m.cache = raw.get("file").copied().unwrap_or(0);
    m.raw = raw;
    m.usage = entry(f, "memory")?;
    m.swap = entry(f, "memory.swap")?;
    // v2 counts swap alone; the name stands for v1's sum. The most of a sum can't be told.
    m.swap.usage = m.swap.usage.saturating_add(m.usage.usage);
    m.swap.limit = m.swap.limit.saturating_add(m.usage.limit);
    m.swap.max = 0;
    Ok(())
}

fn entry(f: &Files<'_>, name: &str) -> Result<MemoryEntry> {
    Ok(MemoryEntry {
        limit: f.or_zero(&format!("{name}.max"))?,
        usage: f.or_zero(&format!("{name}.current"))?,
        max: f.or_zero(&format!("{name}.peak"))?,
        failcnt: 0,
    })
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn io(f: &Files<'_>, to: &mut Stats) -> Result<()> {
    let text = f.text("io.stat")?.unwrap_or_default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let device = words.next().and_then(|d| d.split_once(':'));
        let number = |s: &str| s.parse().map_err(|_| f.odd("io.stat", line));
        let Some((major, minor)) = device else {
            continue;
        };
        let (major, minor) = (number(major)?, number(minor)?);
        for (key, value) in words.filter_map(|w| w.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut to.blkio.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut to.blkio.io_service_bytes_recursive, "Write"),
                "rios" => (&mut to.blkio.io_serviced_recursive, "Read"),
                "wios" => (&mut to.blkio.io_serviced_recursive, "Write"),
                _ => continue,
            };
            list.push(BlkioEntry {
                major,
                minor,
                op: op.to_owned(),
                value: number(value)?,
            });
        }
    }
    Ok(())
}
