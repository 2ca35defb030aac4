//! What the kernel's OOM killer did to a cell, for the message a person gets.
//!
//! Owns the reading of memory events. Prints nothing.

use super::dir::Dir;
use super::state::{CgroupState, Group, flat, walk};
use crate::error::Result;

/// A cell's memory at a glance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OomInfo {
    /// Bytes allowed; `None` without a limit.
    pub limit: Option<u64>,
    /// Most bytes ever used; `None` where the kernel does not tell (v2 before Linux 5.19).
    pub peak: Option<u64>,
    /// Processes of the cell killed by the OOM killer.
    pub kills: u64,
}

/// v1 says "no limit" with the largest multiple of the page size (PAGE_COUNTER_MAX).
const V1_UNLIMITED: u64 = i64::MAX as u64 - 0xffff;

impl CgroupState {
    /// Limit, peak and OOM kills; `None` when the cell has no memory group (any more).
    pub fn oom(&self) -> Option<OomInfo> {
        if let Some(group) = self.v1_group("memory") {
            return v1(group);
        }
        let dir = self.v2.as_ref()?.open().ok()??;
        // Events of groups below are counted in (memory.events is hierarchical).
        let events = dir.read("memory.events").ok()?;
        Some(OomInfo {
            limit: number(&dir, "memory.max"),
            peak: number(&dir, "memory.peak"),
            kills: flat(&events, "oom_kill").unwrap_or(0),
        })
    }
}

fn number(dir: &Dir, file: &str) -> Option<u64> {
    dir.read(file).ok()?.trim().parse().ok() // "max" is no number
}

/// In v1 each group counts its own kills only.
fn v1(group: &Group) -> Option<OomInfo> {
    let dir = group.open().ok()??;
    let mut info = OomInfo {
        limit: number(&dir, "memory.limit_in_bytes").filter(|&l| l < V1_UNLIMITED),
        peak: number(&dir, "memory.max_usage_in_bytes"),
        kills: 0,
    };
    let mut add = |d: &Dir| -> Result<()> {
        if let Ok(text) = d.read("memory.oom_control") {
            info.kills += flat(&text, "oom_kill").unwrap_or(0);
        }
        Ok(())
    };
    // Groups that can't be walked only make the count smaller.
    let _ = walk(&dir, 64, &mut add);
    Some(info)
}

/// The least memory limit under which a cell was seen to start and end: a small static program in
/// all namespaces but user and time, on v1 (Linux 6.18) and v2 (6.12), 2 CPUs. At half of it the
/// set-up succeeds and exec does not; at a quarter the set-up dies.
const LEAST_BYTES: u64 = 256 << 10;

/// When a cell died of its memory limit before its program ran: what to tell the user.
/// `None` if no OOM kill is on record.
pub fn too_low(state: &CgroupState) -> Option<String> {
    let info = state.oom()?;
    if info.kills == 0 {
        return None;
    }
    Some(format!(
        "the memory limit of {} is too low to start at all: the kernel killed the cell before its \
         program ran. A small static program starts with {}; most programs need some MiB \
         (Docker takes no limit below 6 MiB)",
        human(info.limit?),
        human(LEAST_BYTES),
    ))
}

/// A limit under which no cell was ever seen to start.
pub fn hopeless(info: &OomInfo) -> bool {
    info.limit.is_some_and(|l| l < LEAST_BYTES)
}

/// Bytes in the largest unit that keeps them readable.
fn human(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{:.1} GiB", b as f64 / f64::from(1 << 30)),
        b if b >= 1 << 20 => format!("{:.1} MiB", b as f64 / f64::from(1 << 20)),
        b => format!("{} KiB", b / 1024),
    }
}
