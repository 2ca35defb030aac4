//! The groups that one more process of a cell starts in.
//!
//! Owns finding and opening them. The v2 group is opened and handed to clone3; into v1's the process
//! writes itself, as the first one did.

use super::dir::Dir;
use super::state::{CgroupState, Group, gone};
use crate::error::{Error, Result};
use crate::plan::SubGroup;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Groups ready to take a process.
#[derive(Debug, Default)]
pub struct Entry {
    v2: Option<Dir>,
    joins: Vec<CString>,
}

impl Entry {
    /// The v2 group, for clone3's CLONE_INTO_CGROUP.
    pub fn clone_fd(&self) -> Option<BorrowedFd<'_>> {
        self.v2.as_ref().map(AsFd::as_fd)
    }

    /// The v1 `tasks` files into which the process writes `0`.
    pub fn join_files(&self) -> &[CString] {
        &self.joins
    }
}

impl CgroupState {
    /// Opens the cell's groups, or those below them that `sub` names.
    ///
    /// # Errors
    /// A group is gone, or there is none of that name; a controller that the cell has no hierarchy for.
    pub fn enter(&self, sub: &[SubGroup]) -> Result<Entry> {
        let mut entry = Entry::default();
        let mut used = vec![false; sub.len()];
        for group in self.v2.iter().chain(&self.v1) {
            let below = choose(group, sub, &mut used);
            let path = match below {
                Some(below) if !below.path.is_empty() => {
                    format!("{}/{}", group.full_path(), below.path)
                }
                _ => group.full_path(),
            };
            let dir = match Dir::open(&path) {
                Ok(dir) => dir,
                // Without privilege a cell can do without a group (see `create`).
                Err(e) if gone(&e) && self.rootless && below.is_none() => continue,
                Err(e) => return Err(Error::step("open cgroup", path, e)),
            };
            if group.is_v2() {
                entry.v2 = Some(dir);
            } else {
                let file = CString::new(format!("{path}/tasks"))
                    .map_err(|_| Error::msg("a cgroup path with a NUL"))?;
                entry.joins.push(file);
            }
        }
        match sub.iter().zip(used).find(|(_, used)| !used) {
            None => Ok(entry),
            Some((unused, _)) => Err(self.no_such(unused)),
        }
    }

    /// Whether systemd can be asked to move a process into the group.
    pub fn can_move(&self) -> bool {
        self.rootless && self.scope.is_some()
    }

    /// Has systemd move a process into the group. For a user whose own processes are elsewhere (an ssh session): the kernel
    /// lets him clone into no group that isn't below a common one of his, but the user's systemd may ask the system's.
    ///
    /// # Errors
    /// systemd can't be reached, or refuses.
    pub fn move_in(&self, pid: i32) -> Result<()> {
        match &self.scope {
            Some(scope) => scope.attach(pid),
            None => Err(Error::msg("no unit to move a process into")),
        }
    }

    fn no_such(&self, sub: &SubGroup) -> Error {
        let why = match &sub.controller {
            Some(c) if self.v1.is_empty() && self.v2.is_some() => {
                format!("cgroup v2 has one hierarchy: give the path without {c}:")
            }
            Some(c) => format!("unknown controller {c}: the cell has no hierarchy with it"),
            None => "the cell has no such cgroup".to_owned(),
        };
        Error::msg(format!("--cgroup {}: {why}", sub.path))
    }

    /// The group that the process `init` is in by now, where it is below the cell's own. For a cell
    /// that has made groups of its own and moved into one: then its first group has controllers to
    /// hand out, and takes no process itself (cgroup-v2.rst, "No Internal Process Constraint"; runc does
    /// the same). None when the process is where it was.
    ///
    /// # Errors
    /// The process is gone, or in a group that isn't the cell's.
    pub fn enter_beside(&self, init: i32, entry: Entry) -> Result<Option<Entry>> {
        let Some(group) = &self.v2 else {
            return Ok(None);
        };
        let file = format!("/proc/{init}/cgroup");
        let text = fs::read_to_string(&file).map_err(|e| Error::step("read", file, e))?;
        let line = text.lines().find_map(|l| l.strip_prefix("0::/"));
        let Some(own) = line else {
            return Ok(None);
        };
        if own == group.path {
            return Ok(None);
        }
        let below = own.strip_prefix(&group.path);
        let Some(below) = below.and_then(|b| b.strip_prefix('/')) else {
            return Err(Error::msg(format!(
                "join cgroup {}: it hands out controllers, so it takes no processes, and process \
                 {init} is in {own}, outside of it",
                group.full_path()
            )));
        };
        let path = format!("{}/{below}", group.full_path());
        let dir = match below.split('/').any(|name| name == "..") {
            true => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            false => Dir::open(&path),
        };
        let dir = dir.map_err(|e| Error::step("open cgroup", path, e))?;
        Ok(Some(Entry {
            v2: Some(dir),
            ..entry
        }))
    }
}

/// The sub-group meant for a hierarchy. One for all hierarchies is passed over where it doesn't exist: a
/// group that was made in one is not in the others.
fn choose<'a>(group: &Group, sub: &'a [SubGroup], used: &mut [bool]) -> Option<&'a SubGroup> {
    let at = sub.iter().position(|s| match &s.controller {
        Some(c) => group.controllers.iter().any(|have| have == c),
        None => fs::exists(format!("{}/{}", group.full_path(), s.path)).unwrap_or(false),
    })?;
    // `memory:a,cpu:b` may both name a hierarchy of two controllers: then they must agree.
    let mine = |s: &SubGroup| match &s.controller {
        Some(c) => group.controllers.iter().any(|have| have == c),
        None => false,
    };
    for (i, s) in sub.iter().enumerate() {
        if i == at || mine(s) && s.path == sub[at].path {
            used[i] = true;
        }
    }
    Some(&sub[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Folders stand in for groups: what is tested is which one is chosen.
    fn state(root: &std::path::Path) -> CgroupState {
        let group = |mount: &str, controllers: &[&str]| {
            let mount = root.join(mount);
            fs::create_dir_all(mount.join("cell/sub")).unwrap();
            Group {
                mount: mount.to_string_lossy().into_owned(),
                path: "cell".into(),
                controllers: controllers.iter().map(|c| (*c).to_owned()).collect(),
                parents: Vec::new(),
            }
        };
        CgroupState {
            v2: Some(group("unified", &[])),
            v1: vec![
                group("memory", &["memory"]),
                group("cpu,cpuacct", &["cpu", "cpuacct"]),
            ],
            ..CgroupState::default()
        }
    }

    fn sub(controller: Option<&str>, path: &str) -> SubGroup {
        SubGroup {
            controller: controller.map(str::to_owned),
            path: path.into(),
        }
    }

    fn show(root: &std::path::Path, entry: &Entry) -> Vec<String> {
        let v2 = entry.v2.iter().map(|d| d.path.clone());
        let v1 = entry.joins.iter().map(|j| j.to_str().unwrap().to_owned());
        let root = format!("{}/", root.display());
        v2.chain(v1).map(|p| p.replace(&root, "")).collect()
    }

    #[test]
    fn groups_are_the_cells_or_below_them() {
        let dir = tempfile::tempdir().unwrap();
        let state = state(dir.path());
        fs::create_dir(dir.path().join("memory/cell/only")).unwrap();
        let got = |list: &[SubGroup]| {
            state
                .enter(list)
                .map(|e| show(dir.path(), &e).join(" "))
                .map_err(|e| e.to_string())
        };
        assert_eq!(
            got(&[]).unwrap(),
            "unified/cell memory/cell/tasks cpu,cpuacct/cell/tasks"
        );
        assert_eq!(
            got(&[sub(None, "sub")]).unwrap(),
            "unified/cell/sub memory/cell/sub/tasks cpu,cpuacct/cell/sub/tasks"
        );
        // One that was made in one hierarchy alone.
        assert_eq!(
            got(&[sub(None, "only")]).unwrap(),
            "unified/cell memory/cell/only/tasks cpu,cpuacct/cell/tasks"
        );
        assert_eq!(
            got(&[sub(Some("cpuacct"), "sub"), sub(Some("cpu"), "sub")]).unwrap(),
            "unified/cell memory/cell/tasks cpu,cpuacct/cell/sub/tasks"
        );
        for (list, why) in [
            (vec![sub(None, "none")], "no such cgroup"),
            (vec![sub(Some("memory"), "none")], "No such file"),
            (vec![sub(Some("pids"), "sub")], "unknown controller pids"),
            (
                vec![sub(Some("cpu"), "sub"), sub(Some("cpuacct"), "")],
                "cpuacct",
            ),
        ] {
            let error = got(&list).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let v2 = CgroupState {
            v1: Vec::new(),
            ..state.clone()
        };
        let error = v2.enter(&[sub(Some("cpu"), "sub")]).unwrap_err();
        assert!(error.to_string().contains("without cpu:"), "{error}");
        fs::remove_dir_all(dir.path().join("memory")).unwrap();
        assert!(got(&[]).unwrap_err().contains("No such file"));
    }
}
