//! What a cell uses, as `runc events` prints it (runc: types/events.go): the same names, and the same values
//! left out.
//!
//! Owns the types and the choice of hierarchy; [`v1`] and [`v2`] read the files. Nothing is written.

mod v1;
mod v2;

use super::dir::Dir;
use super::state::{CgroupState, gone};
use crate::error::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;

/// Figures of one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// CPU time.
    pub cpu: Cpu,
    /// CPUs and memory nodes (v1 only, as under runc).
    pub cpuset: Cpuset,
    /// Memory and swap.
    pub memory: Memory,
    /// Processes and threads.
    pub pids: Pids,
    /// Disk traffic.
    pub blkio: Blkio,
    /// By page size, `2MB`.
    pub hugetlb: BTreeMap<String, Hugetlb>,
}

/// CPU time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// What was used.
    #[serde(skip_serializing_if = "is_default")]
    pub usage: CpuUsage,
    /// What the quota held back.
    #[serde(skip_serializing_if = "is_default")]
    pub throttling: Throttling,
    /// Pressure, where the kernel tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// Nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuUsage {
    /// All of it.
    #[serde(skip_serializing_if = "is_default")]
    pub total: u64,
    /// For each CPU (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// For each CPU, in the kernel (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// For each CPU, in the program (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// In the program.
    pub user: u64,
}

/// What the quota held back.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Periods that went by.
    #[serde(skip_serializing_if = "is_default")]
    pub periods: u64,
    /// Periods with the quota used up.
    #[serde(skip_serializing_if = "is_default")]
    pub throttled_periods: u64,
    /// Nanoseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub throttled_time: u64,
}

/// Time lost to a lack of something (kernel: accounting/psi.rst).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Psi {
    /// Some processes waited.
    #[serde(skip_serializing_if = "is_default")]
    pub some: PsiLine,
    /// All processes waited.
    #[serde(skip_serializing_if = "is_default")]
    pub full: PsiLine,
}

/// Percent of the last 10, 60 and 300 seconds, and microseconds in all.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PsiLine {
    /// Percent of 10 s.
    pub avg10: f64,
    /// Percent of 60 s.
    pub avg60: f64,
    /// Percent of 300 s.
    pub avg300: f64,
    /// Microseconds.
    pub total: u64,
}

/// The files of v1's cpuset.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)] // named as the files (cpuset(7))
pub struct Cpuset {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    pub cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

/// Bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Pages of files.
    #[serde(skip_serializing_if = "is_default")]
    pub cache: u64,
    /// Memory.
    #[serde(skip_serializing_if = "is_default")]
    pub usage: MemoryEntry,
    /// Memory and swap together.
    #[serde(skip_serializing_if = "is_default")]
    pub swap: MemoryEntry,
    /// The kernel's (v1).
    #[serde(skip_serializing_if = "is_default")]
    pub kernel: MemoryEntry,
    /// The kernel's for TCP (v1).
    #[serde(rename = "kernelTCP", skip_serializing_if = "is_default")]
    pub kernel_tcp: MemoryEntry,
    /// memory.stat.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    /// Pressure, where the kernel tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// Bytes, and how often the limit was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct MemoryEntry {
    /// 2^64-1 (v2) or nearly 2^63 (v1): none.
    pub limit: u64,
    /// Now.
    #[serde(skip_serializing_if = "is_default")]
    pub usage: u64,
    /// Most ever.
    #[serde(skip_serializing_if = "is_default")]
    pub max: u64,
    /// Times (v1).
    pub failcnt: u64,
}

/// Processes and threads.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pids {
    /// Now.
    #[serde(skip_serializing_if = "is_default")]
    pub current: u64,
    /// 0: none.
    #[serde(skip_serializing_if = "is_default")]
    pub limit: u64,
}

/// Disk traffic by device.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // named as v1's files (cgroup-v1/blkio-controller.rst)
pub struct Blkio {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlkioEntry>,
    #[serde(rename = "ioQueueRecursive", skip_serializing_if = "Vec::is_empty")]
    pub io_queued_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_time_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_wait_time_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_merged_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_time_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sectors_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// One figure of one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BlkioEntry {
    /// Device number.
    #[serde(skip_serializing_if = "is_default")]
    pub major: u64,
    /// Device number.
    #[serde(skip_serializing_if = "is_default")]
    pub minor: u64,
    /// `Read`, `Write` and others of v1.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// Bytes, operations, nanoseconds or sectors.
    #[serde(skip_serializing_if = "is_default")]
    pub value: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Hugetlb {
    /// Now.
    #[serde(skip_serializing_if = "is_default")]
    pub usage: u64,
    /// Most ever (v1).
    #[serde(skip_serializing_if = "is_default")]
    pub max: u64,
    /// Times the limit was met.
    pub failcnt: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl CgroupState {
    /// What the cell uses now. A controller that this host or this cell lacks leaves its part empty.
    ///
    /// # Errors
    /// The cell has no groups (any more); a file can't be read or understood.
    pub fn stats(&self) -> Result<Stats> {
        if self.mode.is_none() {
            return Err(Error::unsupported(
                "what the cell uses",
                "it was made without cgroups",
            ));
        }
        let mut stats = Stats::default();
        for group in &self.v1 {
            let Some(dir) = group.open()? else { continue };
            v1::read(&Files(&dir), &group.controllers, &mut stats)?;
        }
        if let Some(group) = &self.v2 {
            match group.open()? {
                Some(dir) => v2::read(&Files(&dir), self.v1.is_empty(), &mut stats)?,
                None => return Err(Error::msg(format!("cgroup {} is gone", group.full_path()))),
            }
        }
        Ok(stats)
    }
}

/// Control files of one group, by name.
struct Files<'a>(&'a Dir);

impl Files<'_> {
    /// `None`: there is no such file, or the kernel has nothing to tell (pressure switched off).
    fn text(&self, file: &str) -> Result<Option<String>> {
        match self.0.read(file) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(e) => Err(Error::step("read", format!("{}/{file}", self.0.path), e)),
        }
    }

    /// One number; `max` is the largest.
    fn number(&self, file: &str) -> Result<Option<u64>> {
        let Some(text) = self.text(file)? else {
            return Ok(None);
        };
        match text.trim() {
            "max" => Ok(Some(u64::MAX)),
            word => word.parse().map(Some).map_err(|_| self.odd(file, word)),
        }
    }

    /// The same, 0 where there is no such file.
    fn or_zero(&self, file: &str) -> Result<u64> {
        self.number(file).map(Option::unwrap_or_default)
    }

    /// Lines `key number`.
    fn flat(&self, file: &str) -> Result<Option<BTreeMap<String, u64>>> {
        let Some(text) = self.text(file)? else {
            return Ok(None);
        };
        let line = |l: &str| {
            let (key, value) = l.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        };
        text.lines()
            .map(|l| line(l).ok_or_else(|| self.odd(file, l)))
            .collect::<Result<_>>()
            .map(Some)
    }

    fn pressure(&self, file: &str) -> Result<Option<Psi>> {
        match self.text(file)? {
            Some(text) => psi(&text).map(Some).ok_or_else(|| self.odd(file, &text)),
            None => Ok(None),
        }
    }

    fn odd(&self, file: &str, text: &str) -> Error {
        Error::step(
            "read",
            format!("{}/{file}", self.0.path),
            io::Error::new(io::ErrorKind::InvalidData, format!("found {text:?}")),
        )
    }
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and `full` likewise.
fn psi(text: &str) -> Option<Psi> {
    let mut all = Psi::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let to = match words.next()? {
            "some" => &mut all.some,
            "full" => &mut all.full,
            _ => continue,
        };
        for word in words {
            match word.split_once('=')? {
                ("avg10", n) => to.avg10 = n.parse().ok()?,
                ("avg60", n) => to.avg60 = n.parse().ok()?,
                ("avg300", n) => to.avg300 = n.parse().ok()?,
                ("total", n) => to.total = n.parse().ok()?,
                _ => {}
            }
        }
    }
    Some(all)
}

/// Whether an error says that the group has gone meanwhile.
pub fn is_gone(e: &Error) -> bool {
    matches!(e, Error::Step { source, .. } if gone(source))
        || matches!(e, Error::Msg(text) if text.ends_with(" is gone"))
}

/// The sizes of huge pages that the kernel has, as control files name them (`2MB`).
fn page_sizes() -> Vec<String> {
    let list = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter();
    let names = list.flatten().flatten();
    let mut sizes: Vec<u64> = names
        .filter_map(|e| {
            let name = e.file_name().into_string().ok()?;
            let kb = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
            kb.parse().ok()
        })
        .collect();
    sizes.sort_unstable();
    sizes.into_iter().map(page_size).collect()
}

fn page_size(kb: u64) -> String {
    match kb {
        k if k >= 1 << 20 => format!("{}GB", k >> 20),
        k if k >= 1 << 10 => format!("{}MB", k >> 10),
        k => format!("{k}KB"),
    }
}

#[cfg(test)]
mod tests;
