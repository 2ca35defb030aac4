//! A cell's groups as later commands see them: saved on disk, opened again when needed.
//!
//! Owns the saved form and what is done to running processes: list, kill, freeze, thaw. Removal
//! is in `remove`, new limits are in `update`.

use super::device::DeviceRule;
use super::dir::Dir;
use super::host::Mode;
use super::limits::v1_name;
use super::systemd::Scope;
use crate::error::{Error, Result};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long freezing may take before it is given up (a process in uninterruptible sleep).
const FREEZE_WAIT: Duration = Duration::from_secs(10);
/// How many levels of groups below a cell's are walked. systemd in a cell uses about 6.
const DEPTH: usize = 64;

/// One group in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Mount point of the hierarchy.
    pub mount: String,
    /// Path below it, `a/b`.
    pub path: String,
    /// v1 controllers of the hierarchy; empty for v2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controllers: Vec<String>,
    /// Groups above it that were not there when the cell was planned, outermost first: removed
    /// with it when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<String>,
}

impl Group {
    /// A group to be made, with the missing ones above it looked up. One that is there and has
    /// processes is refused already here, before its path is saved as ours: removing it later
    /// would kill them.
    pub(super) fn planned(mount: &str, path: &str, controllers: Vec<String>) -> Result<Self> {
        let mut parents = Vec::new();
        let mut at = path;
        while let Some((up, _)) = at.rsplit_once('/') {
            if std::path::Path::new(&format!("{mount}/{up}")).exists() {
                break;
            }
            parents.insert(0, up.to_owned());
            at = up;
        }
        let group = Group {
            mount: mount.to_owned(),
            path: path.to_owned(),
            controllers,
            parents,
        };
        if group.parents.is_empty()
            && let Some(dir) = group.open()?
        {
            group.refuse_busy(&dir)?;
        }
        Ok(group)
    }

    /// A group of somebody else's processes is not for a new cell (runtime-spec, "Control
    /// groups").
    pub(super) fn refuse_busy(&self, dir: &Dir) -> Result<()> {
        let busy = if self.is_v2() {
            event(dir, "populated")? == Some(1)
        } else {
            let mut procs = Vec::new();
            walk(dir, DEPTH, &mut |d| read_procs(d, &mut procs))?;
            !procs.is_empty()
        };
        if busy {
            return Err(Error::msg(format!(
                "make cgroup {}: it exists and has processes, of another cell perhaps",
                self.full_path()
            )));
        }
        Ok(())
    }

    /// The group's directory.
    pub fn full_path(&self) -> String {
        format!("{}/{}", self.mount, self.path)
    }

    pub(super) fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    /// Opens the group; `None` when it does not exist.
    pub(super) fn open(&self) -> Result<Option<Dir>> {
        let path = self.full_path();
        match Dir::open(&path) {
            Ok(dir) => Ok(Some(dir)),
            Err(e) if gone(&e) => Ok(None),
            Err(e) => Err(Error::step("open cgroup", path, e)),
        }
    }
}

/// Whether an errno says that a group does not exist (any more). ENODEV: reading or writing a
/// file of a group removed meanwhile.
pub(super) fn gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// A cell's groups, as saved. Every method works from the paths alone, so any process can use
/// it, also after a crash, and on groups half made or half removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupState {
    /// How the host divided controllers; `None`: the cell has no groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The v2 group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v2: Option<Group>,
    /// The v1 groups, one for each hierarchy joined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub v1: Vec<Group>,
    /// Device rules that an update keeps after the configuration's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_devices: Vec<DeviceRule>,
    /// Whether devices are filtered.
    #[serde(default)]
    pub filter: bool,
    /// The unit whose group v2's is (systemd driver).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// Whether the cell was made without real root.
    #[serde(default)]
    pub rootless: bool,
}

impl CgroupState {
    /// The group that holds a controller's v1 files. Takes v2 names too (`io`).
    pub(super) fn v1_group(&self, controller: &str) -> Option<&Group> {
        let name = v1_name(controller);
        self.v1
            .iter()
            .find(|g| g.controllers.iter().any(|c| c == name))
    }

    /// The group by which processes are found: v2's; else the freezer's, which a process can't
    /// leave unseen while it is being killed; else any.
    pub(super) fn main(&self) -> Option<&Group> {
        self.v2
            .as_ref()
            .or_else(|| self.v1_group("freezer"))
            .or_else(|| self.v1.first())
    }

    fn open_main(&self) -> Result<Option<Dir>> {
        match self.main() {
            Some(g) => g.open(),
            None => Ok(None),
        }
    }

    /// The directory of every group, v2's first.
    pub fn paths(&self) -> Vec<String> {
        self.v2
            .iter()
            .chain(&self.v1)
            .map(Group::full_path)
            .collect()
    }

    /// The processes in the cell's group; with `all`, also in groups made below it. Host pids,
    /// in no order. Empty when there is no such group.
    ///
    /// # Errors
    /// A group can't be read.
    pub fn procs(&self, all: bool) -> Result<Vec<i32>> {
        let Some(dir) = self.open_main()? else {
            return Ok(Vec::new());
        };
        let mut out = Vec::new();
        if all {
            walk(&dir, DEPTH, &mut |d| read_procs(d, &mut out))?;
        } else {
            read_procs(&dir, &mut out)?;
        }
        Ok(out)
    }

    /// Whether no process is left in the cell's group or below it.
    ///
    /// # Errors
    /// A group can't be read.
    pub fn is_empty(&self) -> Result<bool> {
        match self.main() {
            Some(g) if g.is_v2() => match g.open()? {
                None => Ok(true),
                Some(dir) => Ok(event(&dir, "populated")? == Some(0) || !dir.has("cgroup.procs")),
            },
            _ => Ok(self.procs(true)?.is_empty()),
        }
    }

    /// Sends SIGKILL to every process of the cell, frozen ones and groups below included. By
    /// cgroup.kill where the kernel has it (v2, Linux 5.14): one write, which does not wait for
    /// the processes to end. Else by freezing, killing and thawing until none is left, a few
    /// seconds at most. No group is no error.
    ///
    /// # Errors
    /// A control file can't be written, or processes are left.
    pub fn kill_all(&self) -> Result<()> {
        let Some(main) = self.main() else {
            return Ok(());
        };
        let Some(dir) = main.open()? else {
            return Ok(());
        };
        if main.is_v2() {
            match dir.write("cgroup.kill", "1") {
                Ok(()) => return Ok(()),
                Err(e) if gone(&e) => {} // an older kernel, or just removed
                Err(e) => {
                    return Err(Error::step(
                        "write 1 to",
                        format!("{}/cgroup.kill", dir.path),
                        e,
                    ));
                }
            }
        }
        self.kill_by_hand()
    }

    /// Killing without cgroup.kill. Frozen processes can't fork away from the list just read.
    /// A v1 process dies only once thawed; a v2 one at once.
    fn kill_by_hand(&self) -> Result<()> {
        for round in 0..40 {
            if self.procs(true)?.is_empty() {
                return Ok(());
            }
            // A cell that can't be frozen (a process in uninterruptible sleep) is killed without.
            let _ = self.freeze_within(Duration::from_millis(100));
            for pid in self.procs(true)? {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            self.thaw()?;
            sleep(Duration::from_millis(1 + round));
        }
        let left = self.procs(true)?;
        if left.is_empty() {
            return Ok(());
        }
        Err(Error::msg(format!(
            "kill processes of cgroup {}: {left:?} do not die",
            self.paths().join(", ")
        )))
    }

    /// Stops every process of the cell, and waits until they have stopped, 10 s at most.
    ///
    /// # Errors
    /// There is no group; a control file can't be written; or a process does not stop, in which
    /// case the cell is thawed again.
    pub fn freeze(&self) -> Result<()> {
        self.freeze_within(FREEZE_WAIT)
    }

    fn freeze_within(&self, limit: Duration) -> Result<()> {
        let (dir, v2) = self.freezer()?;
        let done = if v2 {
            set_freeze(&dir, "cgroup.freeze", "1")?;
            wait_event(&dir, "frozen", 1, limit)?
        } else {
            freeze_v1(&dir, limit)?
        };
        if done {
            return Ok(());
        }
        let _ = self.thaw();
        Err(Error::step(
            "freeze cgroup",
            dir.path,
            io::Error::from_raw_os_error(libc::ETIMEDOUT),
        ))
    }

    /// Lets the cell's processes go on. No group is no error.
    ///
    /// # Errors
    /// A control file can't be written.
    pub fn thaw(&self) -> Result<()> {
        let Ok((dir, v2)) = self.freezer() else {
            return Ok(());
        };
        let (file, value) = if v2 {
            ("cgroup.freeze", "0")
        } else {
            ("freezer.state", "THAWED")
        };
        match dir.write(file, value) {
            Err(e) if !gone(&e) => Err(Error::step("thaw cgroup", dir.path, e)),
            _ => Ok(()),
        }
    }

    /// Whether the cell is frozen, or about to be.
    ///
    /// # Errors
    /// A control file can't be read.
    pub fn is_frozen(&self) -> Result<bool> {
        let Ok((dir, v2)) = self.freezer() else {
            return Ok(false);
        };
        let file = if v2 { "cgroup.freeze" } else { "freezer.state" };
        match dir.read(file) {
            Ok(text) => Ok(matches!(text.trim(), "1" | "FROZEN" | "FREEZING")),
            Err(e) if gone(&e) => Ok(false),
            Err(e) => Err(Error::step("read", format!("{}/{file}", dir.path), e)),
        }
    }

    /// The folder of the group that freezes, for a program that does it by itself. None where that program
    /// could not tell the kinds apart: hybrid hosts.
    pub fn freezer_path(&self) -> Option<String> {
        let group = match self.mode {
            Some(Mode::V2) => self.v2.as_ref(),
            Some(Mode::V1) => self.v1_group("freezer"),
            Some(Mode::Hybrid) | None => None,
        };
        group.map(Group::full_path)
    }

    /// The group that freezes, and whether it is v2's (Linux 5.2).
    fn freezer(&self) -> Result<(Dir, bool)> {
        let group = self.v2.as_ref().or_else(|| self.v1_group("freezer"));
        match group {
            Some(g) => match g.open()? {
                Some(dir) => Ok((dir, g.is_v2())),
                None if self.rootless => Err(Error::unsupported(
                    "freezing this cell",
                    "it has no cgroup: none is delegated to its user",
                )),
                None => Err(Error::step(
                    "open cgroup",
                    g.full_path(),
                    io::Error::from_raw_os_error(libc::ENOENT),
                )),
            },
            None => Err(Error::unsupported(
                "freezing this cell",
                "it has no cgroup with a freezer (cgroup v2, or the v1 controller freezer)",
            )),
        }
    }
}

fn set_freeze(dir: &Dir, file: &str, value: &str) -> Result<()> {
    dir.write(file, value).map_err(|e| {
        Error::step(
            format!("write {value} to"),
            format!("{}/{file}", dir.path),
            e,
        )
    })
}

/// v1: FROZEN has to be written again while the state reads FREEZING, since processes forked
/// meanwhile are missed (cgroup-v1/freezer-subsystem.rst).
fn freeze_v1(dir: &Dir, limit: Duration) -> Result<bool> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_micros(200);
    loop {
        set_freeze(dir, "freezer.state", "FROZEN")?;
        let text = dir
            .read("freezer.state")
            .map_err(|e| Error::step("read", format!("{}/freezer.state", dir.path), e))?;
        if text.trim() == "FROZEN" {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

fn read_procs(dir: &Dir, out: &mut Vec<i32>) -> Result<()> {
    let text = match dir.read("cgroup.procs") {
        // A threaded group lists its processes in the nearest domain group above (cgroup-v2.rst,
        // "Threads"), which is the cell's own or one below it.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
        Err(e) if gone(&e) => return Ok(()),
        other => other.map_err(|e| Error::step("read", format!("{}/cgroup.procs", dir.path), e))?,
    };
    // 0 stands for a process outside of our pid namespace: there is nothing to name it by.
    out.extend(
        text.lines()
            .filter_map(|l| l.parse::<i32>().ok())
            .filter(|&p| p > 0),
    );
    Ok(())
}

/// Calls `f` for a group and all below it. Groups that vanish meanwhile are skipped.
pub(super) fn walk(dir: &Dir, depth: usize, f: &mut dyn FnMut(&Dir) -> Result<()>) -> Result<()> {
    f(dir)?;
    let names = match dir.children() {
        Err(e) if gone(&e) => return Ok(()),
        other => other.map_err(|e| Error::step("list cgroup", dir.path.as_str(), e))?,
    };
    for name in names {
        match dir.sub(&name) {
            Ok(sub) if depth > 0 => walk(&sub, depth - 1, f)?,
            Ok(_) => {
                return Err(Error::msg(format!(
                    "list cgroup {}: more than {DEPTH} levels of groups",
                    dir.path
                )));
            }
            Err(e) if gone(&e) => {}
            Err(e) => {
                return Err(Error::step(
                    "open cgroup",
                    format!("{}/{name}", dir.path),
                    e,
                ));
            }
        }
    }
    Ok(())
}

/// One value of cgroup.events; `None` when the group is gone.
pub(super) fn event(dir: &Dir, key: &str) -> Result<Option<u64>> {
    match dir.read("cgroup.events") {
        Ok(text) => Ok(flat(&text, key)),
        Err(e) if gone(&e) => Ok(None),
        Err(e) => Err(Error::step(
            "read",
            format!("{}/cgroup.events", dir.path),
            e,
        )),
    }
}

/// A value of a flat-keyed file (`key value` lines).
pub(super) fn flat(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(' '))
        .and_then(|v| v.trim().parse().ok())
}

/// Waits until a value of cgroup.events is `want`. The kernel signals a change by POLLPRI.
/// False when time is up. A group that is gone counts as done.
pub(super) fn wait_event(dir: &Dir, key: &str, want: u64, limit: Duration) -> Result<bool> {
    let end = Instant::now() + limit;
    let err = |e: io::Error| Error::step("read", format!("{}/cgroup.events", dir.path), e);
    let file = match dir.file("cgroup.events", OFlag::O_RDONLY) {
        Err(e) if gone(&e) => return Ok(true),
        other => other.map_err(err)?,
    };
    let mut buf = [0u8; 256];
    loop {
        let n = match file.read_at(&mut buf, 0) {
            Err(e) if gone(&e) => return Ok(true),
            other => other.map_err(err)?,
        };
        let text = String::from_utf8_lossy(&buf[..n]);
        if flat(&text, key) == Some(want) {
            return Ok(true);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let ms = u16::try_from(left.as_millis()).unwrap_or(u16::MAX).max(1);
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut fds, PollTimeout::from(ms)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(err(e.into())),
        }
    }
}
