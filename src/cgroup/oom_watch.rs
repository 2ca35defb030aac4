//! Being told of OOM kills while they happen.
//!
//! Owns the notification: a poll of memory.events on v2, an eventfd on v1 (kernel: cgroup-v1/memory.rst,
//! "9. Notification API"). How many there were in all is `oom`'s.

use super::dir::Dir;
use super::state::{CgroupState, flat};
use crate::error::{Error, Result};
use nix::fcntl::OFlag;
use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

/// A cell's OOM kills from now on.
#[derive(Debug)]
pub struct OomWatch {
    /// memory.events, or memory.oom_control.
    file: File,
    /// v1.
    bell: Option<EventFd>,
    seen: u64,
}

impl CgroupState {
    /// Starts to watch; `None` when the cell has no memory controller.
    ///
    /// # Errors
    /// The group is gone; the kernel takes no more watchers.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        let v1 = self.v1_group("memory");
        let Some(dir) = v1
            .or(self.v2.as_ref())
            .map(|g| g.open())
            .transpose()?
            .flatten()
        else {
            return Ok(None);
        };
        let name = if v1.is_some() {
            "memory.oom_control"
        } else {
            "memory.events"
        };
        let fail = |e: io::Error| Error::step("watch", format!("{}/{name}", dir.path), e);
        let file = match dir.file(name, OFlag::O_RDONLY) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(fail)?,
        };
        let bell = match v1 {
            Some(_) => Some(ring(&dir, &file).map_err(fail)?),
            None => None,
        };
        let mut watch = OomWatch {
            file,
            bell,
            seen: 0,
        };
        watch.seen = watch.kills().unwrap_or(0);
        Ok(Some(watch))
    }
}

/// An eventfd that the kernel rings when the group runs out of memory, and when it is removed.
fn ring(dir: &Dir, file: &File) -> io::Result<EventFd> {
    let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let line = format!("{} {}", bell.as_fd().as_raw_fd(), file.as_raw_fd());
    dir.write("cgroup.event_control", &line)?;
    Ok(bell)
}

impl OomWatch {
    /// What to poll, and for what.
    pub fn poll(&self) -> (BorrowedFd<'_>, PollFlags) {
        match &self.bell {
            Some(bell) => (bell.as_fd(), PollFlags::POLLIN),
            None => (self.file.as_fd(), PollFlags::POLLPRI),
        }
    }

    /// Whether there was an OOM since the last call. Never waits.
    pub fn rang(&mut self) -> bool {
        let kills = self.kills();
        match &self.bell {
            // It rings before the kernel kills, so the count may be behind; without the group it rang for
            // the removal.
            Some(bell) => bell.read().is_ok() && kills.is_some(),
            None => kills.is_some_and(|n| n > std::mem::replace(&mut self.seen, n)),
        }
    }

    fn kills(&self) -> Option<u64> {
        let mut text = [0u8; 512];
        let n = self.file.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..n]).ok()?;
        flat(text, "oom_kill")
    }
}
