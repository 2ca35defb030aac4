//! Taking a cell's groups away, with whatever is still in them.
//!
//! Owns the order (processes, groups below, the group, its unit, empty ones above) and the waits.

use super::dir::Dir;
use super::state::{CgroupState, Group, gone, wait_event};
use crate::error::{Error, Result};
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long processes may take to die before removal is given up.
const LIMIT: Duration = Duration::from_secs(10);

impl CgroupState {
    /// Removes the cell's groups. Processes still there are killed first, and groups that the
    /// cell made below its own go too. Groups above that the cell's creation made go if empty.
    /// Groups that are gone already, or were never made, are no error.
    ///
    /// # Errors
    /// A process does not die within 10 s (it is named), a group can't be removed, or systemd can't be asked to
    /// end the unit.
    pub fn remove(&self) -> Result<()> {
        let end = Instant::now() + LIMIT;
        let mut killed = false;
        for group in self.v2.iter().chain(&self.v1) {
            // The usual case: nothing left, one call.
            let mut last = match rmdir(group) {
                Ok(()) => continue,
                Err(e) => e,
            };
            let mut pause = Duration::from_millis(1);
            loop {
                if last.raw_os_error() != Some(libc::EBUSY) {
                    return Err(Error::step("remove cgroup", group.full_path(), last));
                }
                if !killed {
                    self.kill_all()?;
                    killed = true;
                }
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(self.still_there(group, last));
                }
                if let Some(dir) = group.open()? {
                    if group.is_v2() {
                        wait_event(&dir, "populated", 0, left.min(Duration::from_secs(1)))?;
                    }
                    remove_below(&dir)?;
                }
                match rmdir(group) {
                    Ok(()) => break,
                    Err(e) => last = e,
                }
                // v1 tells nobody when a group empties; and a forking process may have slipped
                // past the first kill on kernels without cgroup.kill.
                killed = pause < Duration::from_millis(20);
                sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
        }
        if let (Some(scope), Some(group)) = (&self.scope, &self.v2) {
            scope.stop(&group.path)?;
        }
        for group in self.v2.iter().chain(&self.v1) {
            for parent in group.parents.iter().rev() {
                // Another cell may live there now.
                if std::fs::remove_dir(format!("{}/{parent}", group.mount)).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn still_there(&self, group: &Group, e: io::Error) -> Error {
        let procs = self.procs(true).unwrap_or_default();
        if procs.is_empty() {
            return Error::step("remove cgroup", group.full_path(), e);
        }
        let list: Vec<String> = procs.iter().take(8).map(i32::to_string).collect();
        Error::step(
            format!(
                "processes {} do not die (in uninterruptible sleep?): remove cgroup",
                list.join(", ")
            ),
            group.full_path(),
            e,
        )
    }
}

/// Removes one group that has nothing in it. Gone already is fine.
fn rmdir(group: &Group) -> io::Result<()> {
    match std::fs::remove_dir(group.full_path()) {
        Err(e) if gone(&e) => Ok(()),
        other => other,
    }
}

/// Removes the groups below one, innermost first, leaving those that are busy.
pub(super) fn remove_below(dir: &Dir) -> Result<()> {
    let names = match dir.children() {
        Err(e) if gone(&e) => return Ok(()),
        other => other.map_err(|e| Error::step("list cgroup", dir.path.as_str(), e))?,
    };
    for name in names {
        match dir.rmdir(&name) {
            Ok(()) => continue,
            Err(e) if gone(&e) => continue,
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            Err(e) => {
                return Err(Error::step(
                    "remove cgroup",
                    format!("{}/{name}", dir.path),
                    e,
                ));
            }
        }
        if let Ok(sub) = dir.sub(&name) {
            remove_below(&sub)?;
            let _ = dir.rmdir(&name);
        }
    }
    Ok(())
}
