//! Figures from cgroup v1 files (kernel: admin-guide/cgroup-v1/).

use super::{Blkio, BlkioEntry, Files, Hugetlb, MemoryEntry, Stats, page_sizes};
use crate::error::Result;

/// Nanoseconds of a tick of cpuacct.stat: USER_HZ is 100 on all architectures that cells run on.
const TICK: u64 = 10_000_000;

/// Reads what the controllers of one hierarchy have to tell.
pub(super) fn read(f: &Files<'_>, controllers: &[String], to: &mut Stats) -> Result<()> {
    for controller in controllers {
        match controller.as_str() {
            "cpu" => cpu(f, to)?,
            "cpuacct" => cpuacct(f, to)?,
            "cpuset" => cpuset(f, to)?,
            "memory" => memory(f, to)?,
            "pids" => {
                to.pids.current = f.or_zero("pids.current")?;
                to.pids.limit = f
                    .number("pids.max")?
                    .filter(|&n| n != u64::MAX)
                    .unwrap_or(0);
            }
            "blkio" => blkio(f, &mut to.blkio)?,
            "hugetlb" => hugetlb(f, to)?,
            _ => {}
        }
    }
    Ok(())
}

fn cpu(f: &Files<'_>, to: &mut Stats) -> Result<()> {
    let stat = f.flat("cpu.stat")?.unwrap_or_default();
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    to.cpu.throttling.periods = get("nr_periods");
    to.cpu.throttling.throttled_periods = get("nr_throttled");
    to.cpu.throttling.throttled_time = get("throttled_time");
    Ok(())
}

fn cpuacct(f: &Files<'_>, to: &mut Stats) -> Result<()> {
    let usage = &mut to.cpu.usage;
    usage.total = f.or_zero("cpuacct.usage")?;
    let stat = f.flat("cpuacct.stat")?.unwrap_or_default();
    let ticks = |key: &str| stat.get(key).copied().unwrap_or(0).saturating_mul(TICK);
    usage.user = ticks("user");
    usage.kernel = ticks("system");
    let text = f.text("cpuacct.usage_percpu")?.unwrap_or_default();
    for word in text.split_whitespace() {
        let n = word.parse();
        usage
            .percpu
            .push(n.map_err(|_| f.odd("cpuacct.usage_percpu", word))?);
    }
    // cpu user system
    for line in f
        .text("cpuacct.usage_all")?
        .unwrap_or_default()
        .lines()
        .skip(1)
    {
        let numbers: Option<Vec<u64>> = line.split(' ').take(3).map(|w| w.parse().ok()).collect();
        match numbers.as_deref() {
            Some([_, user, kernel]) => {
                usage.percpu_user.push(*user);
                usage.percpu_kernel.push(*kernel);
            }
            _ => return Err(f.odd("cpuacct.usage_all", line)),
        }
    }
    Ok(())
}

fn cpuset(f: &Files<'_>, to: &mut Stats) -> Result<()> {
    let list = |file: &str| -> Result<Vec<u16>> {
        let text = f.text(file)?.unwrap_or_default();
        let mut all = Vec::new();
        for part in text.trim().split(',').filter(|p| !p.is_empty()) {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            match (from.parse::<u16>(), to.parse::<u16>()) {
                (Ok(from), Ok(to)) => all.extend(from..=to),
                _ => return Err(f.odd(file, &text)),
            }
        }
        Ok(all)
    };
    let c = &mut to.cpuset;
    c.cpus = list("cpuset.cpus")?;
    c.mems = list("cpuset.mems")?;
    for (file, to) in [
        ("cpu_exclusive", &mut c.cpu_exclusive),
        ("mem_hardwall", &mut c.mem_hardwall),
        ("mem_exclusive", &mut c.mem_exclusive),
        ("memory_migrate", &mut c.memory_migrate),
        ("memory_spread_page", &mut c.memory_spread_page),
        ("memory_spread_slab", &mut c.memory_spread_slab),
        ("memory_pressure", &mut c.memory_pressure),
        ("sched_load_balance", &mut c.sched_load_balance),
    ] {
        *to = f.or_zero(&format!("cpuset.{file}"))?;
    }
    let level = "cpuset.sched_relax_domain_level";
    if let Some(text) = f.text(level)? {
        let n = text.trim().parse();
        c.sched_relax_domain_level = n.map_err(|_| f.odd(level, &text))?;
    }
    Ok(())
}

fn memory(f: &Files<'_>, to: &mut Stats) -> Result<()> {
    let Some(raw) = f.flat("memory.stat")? else {
        return Ok(());
    };
    let m = &mut to.memory;
    m.cache = raw.get("cache").copied().unwrap_or(0);
    m.raw = raw;
    m.usage = entry(f, "memory")?;
    m.swap = entry(f, "memory.memsw")?;
    m.kernel = entry(f, "memory.kmem")?;
    m.kernel_tcp = entry(f, "memory.kmem.tcp")?;
    Ok(())
}

fn entry(f: &Files<'_>, name: &str) -> Result<MemoryEntry> {
    Ok(MemoryEntry {
        limit: f.or_zero(&format!("{name}.limit_in_bytes"))?,
        usage: f.or_zero(&format!("{name}.usage_in_bytes"))?,
        max: f.or_zero(&format!("{name}.max_usage_in_bytes"))?,
        failcnt: f.or_zero(&format!("{name}.failcnt"))?,
    })
}

fn hugetlb(f: &Files<'_>, to: &mut Stats) -> Result<()> {
    for size in page_sizes() {
        // Reservations count in the newer form (5.7).
        let all = [format!("hugetlb.{size}.rsvd"), format!("hugetlb.{size}")];
        for name in all {
            let Some(usage) = f.number(&format!("{name}.usage_in_bytes"))? else {
                continue;
            };
            let entry = Hugetlb {
                usage,
                max: f.or_zero(&format!("{name}.max_usage_in_bytes"))?,
                failcnt: f.or_zero(&format!("{name}.failcnt"))?,
            };
            to.hugetlb.insert(size, entry);
            break;
        }
    }
    Ok(())
}

/// The first family of files that is there counts: BFQ's, CFQ's (removed in 5.0), those of throttling.
fn blkio(f: &Files<'_>, to: &mut Blkio) -> Result<()> {
    for prefix in ["blkio.bfq.", "blkio.", "blkio.throttle."] {
        let list = |name: &str| entries(f, &format!("{prefix}{name}"));
        let recursive = list("io_serviced_recursive")?;
        let Some(serviced) = recursive.map_or_else(
            || match prefix {
                "blkio.throttle." => list("io_serviced"),
                _ => Ok(None),
            },
            |l| Ok(Some(l)),
        )?
        else {
            continue;
        };
        to.io_serviced_recursive = serviced;
        let bytes = list("io_service_bytes_recursive")?;
        to.io_service_bytes_recursive = match bytes {
            Some(list) => list,
            None => list("io_service_bytes")?.unwrap_or_default(),
        };
        to.sectors_recursive = list("sectors_recursive")?.unwrap_or_default();
        to.io_service_time_recursive = list("io_service_time_recursive")?.unwrap_or_default();
        to.io_wait_time_recursive = list("io_wait_time_recursive")?.unwrap_or_default();
        to.io_merged_recursive = list("io_merged_recursive")?.unwrap_or_default();
        to.io_queued_recursive = list("io_queued_recursive")?.unwrap_or_default();
        to.io_time_recursive = list("time_recursive")?.unwrap_or_default();
        break;
    }
    Ok(())
}

/// Lines `8:0 Read 5`, `8:0 7`, and a total at the end.
fn entries(f: &Files<'_>, file: &str) -> Result<Option<Vec<BlkioEntry>>> {
    let Some(text) = f.text(file)? else {
        return Ok(None);
    };
    let line = |l: &str| {
        let words: Vec<&str> = l.split([' ', ':']).filter(|w| !w.is_empty()).collect();
        let (major, minor, op, value) = match words.as_slice() {
            [major, minor, op, value] => (major, minor, *op, value),
            [major, minor, value] => (major, minor, "", value),
            _ => return None,
        };
        Some(BlkioEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: op.to_owned(),
            value: value.parse().ok()?,
        })
    };
    text.lines()
        .filter(|l| !l.starts_with("Total "))
        .map(|l| line(l).ok_or_else(|| f.odd(file, l)))
        .collect::<Result<_>>()
        .map(Some)
}
