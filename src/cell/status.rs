//! What a saved cell is doing now.

use super::store::{Saved, Store};
use crate::Result;
use procfs::FromRead;
use procfs::process::Stat;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

/// The states of the runtime-spec, and runc's `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made.
    Creating,
    /// Made; the program has not been executed.
    Created,
    /// The program runs.
    Running,
    /// Frozen.
    Paused,
    /// The first process is gone.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// The `state` of the runtime-spec with runc's additions, in runc's field order.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// Version of the configuration.
    pub oci_version: String,
    /// Name.
    pub id: String,
    /// First process; 0 when stopped.
    pub pid: i32,
    /// What it is doing.
    pub status: Status,
    /// Absolute path.
    pub bundle: PathBuf,
    /// Absolute path.
    pub rootfs: PathBuf,
    /// RFC 3339.
    pub created: String,
    /// From the configuration.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Name of the creator (its number where the host has no name for it).
    pub owner: String,
}

/// A process as /proc has it: its state letter and start time.
pub fn process_stat(pid: i32) -> Option<(char, u64)> {
    // Not by procfs::process::Process, which opens and reads more of /proc first. The kernel gives the one line
    // whole, and it has less than 700 bytes.
    let mut line = [0; 1024];
    let mut file = File::open(format!("/proc/{pid}/stat")).ok()?;
    let len = file.read(&mut line).ok()?;
    let stat = Stat::from_read(&line[..len]).ok()?;
    Some((stat.state, stat.starttime))
}

impl Saved {
    /// The first process is there, not a zombie, and not a later process with the same pid.
    pub fn alive(&self) -> bool {
        self.pid > 0
            && process_stat(self.pid)
                .is_some_and(|(state, start)| start == self.start_time && !"ZXx".contains(state))
    }

    /// What the cell is doing.
    pub fn status(&self, store: &Store) -> Status {
        if self.pid == 0 {
            return if store.is_locked(&self.id) {
                Status::Creating
            } else {
                Status::Stopped
            };
        }
        if !self.alive() {
            Status::Stopped
        } else if store.dir(&self.id).join("exec.fifo").exists()
            && !(self.paused_created && self.cgroup.is_frozen().unwrap_or(false))
        {
            Status::Created
        } else if self.cgroup.is_frozen().unwrap_or(false) {
            Status::Paused
        } else {
            Status::Running
        }
    }

    /// For `state` and `list`.
    pub fn view(self, store: &Store) -> View {
        let status = self.status(store);
        View {
            status,
            pid: if status == Status::Stopped {
                0
            } else {
                self.pid
            },
            owner: owner_name(self.owner),
            oci_version: self.oci_version,
            id: self.id,
            bundle: self.bundle,
            rootfs: self.rootfs,
            created: self.created,
            annotations: self.annotations,
        }
    }
}

/// All cells, those that vanish meanwhile left out.
pub fn list(store: &Store) -> Result<Vec<View>> {
    Ok(store
        .ids()?
        .into_iter()
        .filter_map(|id| store.load(&id).ok())
        .map(|s| s.view(store))
        .collect())
}

/// From /etc/passwd, read by us: NSS has no place in a static binary.
fn owner_name(uid: u32) -> String {
    let number = uid.to_string();
    let Ok(passwd) = std::fs::read_to_string("/etc/passwd") else {
        return number;
    };
    passwd
        .lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|f| f.len() > 2 && f[2] == number)
        .map_or(number, |f| f[0].to_owned())
}
