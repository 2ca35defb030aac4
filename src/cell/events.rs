//! What a cell uses and what happens to it, as a stream: `events`.
//!
//! Owns the order and the end of the stream, and the parts of the figures that are not cgroups'. Who reads
//! it is the caller's business.

use super::resctrl_stats::{self, Rdt};
use super::status::Status;
use super::store::{Saved, Store};
use super::{host_parts, ops};
use crate::cgroup::{OomWatch, Stats, is_gone};
use crate::sys::clone;
use crate::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::LinuxIntelRdt;
use serde::Serialize;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// One event, as runc prints it.
#[derive(Debug, Serialize)]
pub struct Event<'a> {
    /// `stats` or `oom`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Name of the cell.
    pub id: &'a str,
    /// With `stats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
}

/// The figures.
#[derive(Debug, Serialize)]
pub struct Data {
    #[serde(flatten)]
    groups: Stats,
    intel_rdt: Rdt,
    /// runc has them of veth pairs that it was told of, which no configuration can do any more.
    network_interfaces: (),
}

/// A live cell, watched.
#[derive(Debug)]
pub struct Watched {
    saved: Saved,
    rdt: Option<LinuxIntelRdt>,
}

impl Watched {
    /// Finds it.
    ///
    /// # Errors
    /// There is no such cell, or it is stopped.
    pub fn open(store: &Store, id: &str) -> Result<Watched> {
        // Not held: this may go on for as long as the cell does.
        let lock = store.lock(id)?;
        let saved = store.load(id)?;
        if saved.status(store) == Status::Stopped {
            return Err(Error::msg(format!("container with id {id} is not running")));
        }
        let linux = ops::load_config(&lock)?.linux().clone();
        Ok(Watched {
            saved,
            rdt: linux.and_then(|l| l.intel_rdt().clone()),
        })
    }

    /// Its figures now.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn stats(&self) -> Result<Event<'_>> {
        let intel_rdt = match &self.rdt {
            Some(rdt) => resctrl_stats::read(&host_parts::resctrl()?, rdt, &self.saved.id)?,
            None => Rdt::default(),
        };
        Ok(self.event(
            "stats",
            Some(Data {
                groups: self.saved.cgroup.stats()?,
                intel_rdt,
                network_interfaces: (),
            }),
        ))
    }

    fn event(&self, kind: &'static str, data: Option<Data>) -> Event<'_> {
        Event {
            kind,
            id: &self.saved.id,
            data,
        }
    }

    /// Gives `tell` the figures after each interval, and each OOM when it happens, until the cell ends,
    /// `tell` returns false, or the other end of `reader` is closed.
    ///
    /// # Errors
    /// A file can't be read; `tell` fails.
    pub fn follow(
        &self,
        interval: Duration,
        reader: BorrowedFd<'_>,
        tell: &mut dyn FnMut(&Event<'_>) -> Result<bool>,
    ) -> Result<()> {
        let process = match clone::pidfd_open(self.saved.pid) {
            Ok(fd) => fd,
            Err(Errno::ESRCH) => return Ok(()),
            Err(e) => {
                return Err(Error::step(
                    "open",
                    format!("process {}", self.saved.pid),
                    e,
                ));
            }
        };
        if !self.saved.alive() {
            return Ok(());
        }
        let mut oom = self.saved.cgroup.watch_oom()?;
        let mut next = Instant::now() + interval;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            let end = wait(process.as_fd(), reader, oom.as_ref(), left)?;
            if oom.as_mut().is_some_and(OomWatch::rang) && !tell(&self.event("oom", None))? {
                return Ok(());
            }
            if end {
                return Ok(());
            }
            if Instant::now() >= next {
                match self.stats() {
                    Ok(stats) if !tell(&stats)? => return Ok(()),
                    Ok(_) => {}
                    // Deleted between the wait and the reading.
                    Err(e) if is_gone(&e) => return Ok(()),
                    Err(e) => return Err(e),
                }
                // Not from `next`: a slow reader gets no backlog.
                next = Instant::now() + interval;
            }
        }
    }
}

/// Waits for whatever comes first; true when the cell ended or nobody reads any more.
fn wait(
    process: BorrowedFd<'_>,
    reader: BorrowedFd<'_>,
    oom: Option<&OomWatch>,
    left: Duration,
) -> Result<bool> {
    let mut fds = vec![
        PollFd::new(process, PollFlags::POLLIN),
        // Only what poll always reports: POLLERR and POLLHUP.
        PollFd::new(reader, PollFlags::empty()),
    ];
    if let Some((fd, flags)) = oom.map(OomWatch::poll) {
        fds.push(PollFd::new(fd, flags));
    }
    // Rounded up, or the last millisecond would be spun through.
    let ms = left.as_nanos().div_ceil(1_000_000);
    let ms = i32::try_from(ms).unwrap_or(i32::MAX);
    match poll(
        &mut fds,
        PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX),
    ) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => return Err(Error::step("wait for", "events", e)),
    }
    let set = |i: usize| fds[i].revents().is_some_and(|r| !r.is_empty());
    Ok(set(0) || set(1))
}
