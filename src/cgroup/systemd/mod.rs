//! The systemd cgroup driver (cgroup v2): a cell's group is a scope, a unit that systemd makes, delegates and removes.
//!
//! Owns the unit: its name, properties, start, change and end. Limits, the device filter, freezing and killing work on the
//! group's files as without systemd; the unit is told of limits besides, so that it doesn't undo them.
//!
//! systemd starts a scope around processes that are there already. To clone the cell's first process straight into the
//! group, a stub of ours keeps the scope alive until then. It is killed as soon as clone3 has returned, and dies with the
//! runtime, so that systemd takes away what a killed runtime was about to make.

pub(crate) mod annotation;
mod bus;
pub(crate) mod properties;
pub(crate) mod unit;
mod wire;

use crate::error::{Error, Result};
use crate::sys::clone::{self, Child, Clone3};
use bus::{Bus, Failure};
use properties::{Property, encoded, property};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;
use unit::Unit;
use wire::Value;

/// The first systemd that knows idle groups (CPUWeight=idle).
const KNOWS_IDLE: u32 = 252;

/// A cell's unit, as saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Its name, `docker-0123.scope`.
    pub unit: String,
    /// Of the user's manager, not the system's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub user: bool,
}

/// What is asked of systemd to make a scope, decided.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub scope: Scope,
    /// Everything but the processes.
    pub properties: Vec<Property>,
}

impl Start {
    /// The properties of a cell's unit: what any container's has, then its limits, and last what its annotations set.
    pub fn new(
        id: &str,
        unit: &Unit,
        user: bool,
        limits: Vec<Property>,
        set: Vec<Property>,
    ) -> Self {
        let yes = |name: &str| property(name, Value::Bool(true));
        let mut list = vec![
            property("Description", Value::text(format!("gpucell cell {id}"))),
            property("Slice", Value::text(&unit.slice)),
            yes("Delegate"),
            yes("MemoryAccounting"),
            yes("CPUAccounting"),
            yes("IOAccounting"),
            yes("TasksAccounting"),
            // Or the cell would be stopped early at shutdown, behind its engine's back.
            property("DefaultDependencies", Value::Bool(false)),
            // A scope that failed is forgotten too, without being asked.
            property("CollectMode", Value::text("inactive-or-failed")),
        ];
        list.extend(limits);
        for p in set {
            list.retain(|old| old.name != p.name);
            list.push(p);
        }
        Start {
            scope: Scope {
                unit: unit.name.clone(),
                user,
            },
            properties: list,
        }
    }

    /// Starts the scope and waits until it is there. Calls `ours` as soon as there may be something to undo.
    ///
    /// # Errors
    /// systemd can't be reached, refuses, or there is such a unit already.
    pub fn run(&self, ours: &mut dyn FnMut()) -> Result<Stub> {
        let unit = self.scope.unit.as_str();
        let mut bus = Bus::connect(self.scope.user)?;
        let stub = Stub::new()?;
        let pid = u32::try_from(stub.0.pid).map_err(|_| Error::msg("a negative pid"))?;
        let mut list = self.properties.clone();
        let pids = Value::Array("u".into(), vec![Value::U32(pid)]);
        list.push(property("PIDs", pids));
        let list = encoded(&list);
        const STEP: &str = "start unit";
        let job = match bus.start_transient(unit, list.clone()) {
            // One of that name that failed, or that systemd has not forgotten yet.
            Err(e) if e.unit_exists() => {
                let _ = bus.reset_failed(unit);
                bus.start_transient(unit, list)
            }
            other => other,
        };
        let job = match job {
            Ok(job) => job,
            Err(e) => {
                // Refused: nothing was made, and a unit that exists is somebody else's.
                if matches!(e, Failure::Lost(_)) {
                    ours();
                }
                return Err(e.at(STEP, unit));
            }
        };
        ours();
        match bus.wait(&job).map_err(|e| e.at(STEP, unit))?.as_str() {
            "done" => Ok(stub),
            result => Err(Error::msg(format!(
                "{STEP} {unit}: systemd's job ended as {result:?}: see systemctl status {unit}"
            ))),
        }
    }
}

impl Scope {
    /// Tells the unit of new limits, until it ends.
    ///
    /// # Errors
    /// systemd can't be reached, or refuses.
    pub(super) fn set(&self, properties: &[Property]) -> Result<()> {
        if properties.is_empty() {
            return Ok(());
        }
        let unit = self.unit.as_str();
        Bus::connect(self.user)?
            .set_properties(unit, encoded(properties))
            .map_err(|e| e.at("set properties of unit", unit))
    }

    /// Moves a process into the unit's group.
    ///
    /// # Errors
    /// systemd can't be reached, or refuses.
    pub(super) fn attach(&self, pid: i32) -> Result<()> {
        let unit = self.unit.as_str();
        let number = u32::try_from(pid).map_err(|_| Error::msg("a negative pid"))?;
        Bus::connect(self.user)?
            .attach(unit, number)
            .map_err(|e| e.at("move a process into unit", unit))
    }

    /// Ends the unit, whose processes are dead already. `path` is the cell's group: a unit of the same name with
    /// another one is not ours. One that is gone is no error.
    ///
    /// # Errors
    /// systemd can't be reached, or refuses.
    pub(super) fn stop(&self, path: &str) -> Result<()> {
        let unit = self.unit.as_str();
        let mut bus = Bus::connect(self.user)?;
        let result = self.stop_on(&mut bus, path);
        match result {
            Err(e) if e.no_such_unit() => Ok(()),
            other => other.map_err(|e| e.at("stop unit", unit)),
        }
    }

    fn stop_on(&self, bus: &mut Bus, path: &str) -> std::result::Result<(), Failure> {
        let unit = self.unit.as_str();
        let group = bus.scope_cgroup(unit)?;
        if !group.is_empty() && group.trim_start_matches('/') != path {
            return Ok(());
        }
        let job = bus.stop(unit)?;
        bus.wait(&job)?;
        // Only one that failed is left by now.
        bus.reset_failed(unit)
    }
}

/// Whether a manager knows idle groups.
///
/// # Errors
/// It can't be reached.
pub(super) fn knows_idle(user: bool) -> Result<bool> {
    let version = Bus::connect(user)?
        .version()
        .map_err(|e| e.at("ask for the version of", "systemd"))?;
    let digits = version.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    Ok(digits[..end].parse().is_ok_and(|n: u32| n >= KNOWS_IDLE))
}

/// The cgroup of the user's manager, below the mount; all its units are below it.
///
/// # Errors
/// It can't be reached.
pub(super) fn users_place() -> Result<String> {
    Bus::connect(true)?
        .own_cgroup()
        .map(|path| path.trim_matches('/').to_owned())
        .map_err(|e| e.at("ask for the cgroup of", "the user's systemd"))
}

/// A process that does nothing, to keep a scope alive. Ends with this value, or with the runtime.
#[derive(Debug)]
pub(super) struct Stub(Child);

impl Stub {
    fn new() -> Result<Self> {
        let parent = nix::unistd::getpid();
        let args = Clone3 {
            flags: 0,
            cgroup: None,
        };
        let made = clone::clone3(&args, || {
            let _ = clone::set_pdeathsig(libc::SIGKILL);
            // The parent may have died before that.
            if nix::unistd::getppid() != parent {
                return 1;
            }
            // It must hold neither the cell's lock nor the caller's pipes.
            let _ = crate::sys::fd::close_range(0, u32::MAX);
            loop {
                nix::unistd::pause();
            }
        });
        made.map(Stub)
            .map_err(|e| Error::step("clone", "the process that keeps the scope", e))
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        let pidfd = self.0.pidfd.as_fd();
        // It can only be dead already.
        let _ = clone::pidfd_kill(pidfd, libc::SIGKILL);
        let _ = clone::wait_pidfd(pidfd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_have_the_last_word() {
        let unit = unit::unit("c", None, false).unwrap();
        let limits = vec![property("TasksMax", Value::U64(5))];
        let set = vec![
            property("Description", Value::text("mine")),
            property("CollectMode", Value::text("inactive")),
        ];
        let start = Start::new("c", &unit, false, limits, set);
        let find = |name: &str| {
            let mut all = start.properties.iter().filter(|p| p.name == name);
            let found = all.next().map(|p| p.value.clone());
            assert!(all.next().is_none(), "{name} twice");
            found
        };
        assert_eq!(start.scope.unit, "gpucell-c.scope");
        assert_eq!(find("Description"), Some(Value::text("mine")));
        assert_eq!(find("CollectMode"), Some(Value::text("inactive")));
        assert_eq!(find("TasksMax"), Some(Value::U64(5)));
        assert_eq!(find("Slice"), Some(Value::text("system.slice")));
        assert_eq!(find("Delegate"), Some(Value::Bool(true)));
        assert_eq!(find("DefaultDependencies"), Some(Value::Bool(false)));
    }

    #[test]
    fn a_stub_ends_with_its_value() {
        let stub = Stub::new().unwrap();
        let pid = nix::unistd::Pid::from_raw(stub.0.pid);
        assert!(nix::sys::signal::kill(pid, None).is_ok());
        drop(stub);
        assert_eq!(
            nix::sys::signal::kill(pid, None),
            Err(nix::errno::Errno::ESRCH)
        );
    }
}
