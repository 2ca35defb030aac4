//! Making the groups of a plan: directories, controllers, limits, the device filter.
//!
//! Owns the calls and their undoing. Decides nothing: that is `plan`.
//!
//! The way through on a v2 host with controllers handed down (any systemd host) is: open the
//! mount, mkdir, open the group, three calls for each limit, load and attach the filter.
//! Whatever more may be needed (groups above, subtree_control) is found out by a failed call.

use super::dir::Dir;
use super::filter;
use super::limits::{Need, Write, v1_name};
use super::plan::CgroupPlan;
use super::remove::remove_below;
use super::state::{CgroupState, Group, gone};
use super::systemd::{Start, Stub};
use crate::error::{Error, Result};
use nix::fcntl::AtFlags;
use nix::unistd::{Uid, fchownat};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Controllers switched on for their figures alone, where the group above has them to give.
const FIGURES: [&str; 4] = ["cpu", "memory", "pids", "io"];

/// A cell's groups, just made, ready to take its first process.
#[derive(Debug)]
pub struct Cgroup {
    v2: Option<Dir>,
    joins: Vec<CString>,
    state: CgroupState,
    /// Keeps the scope alive until the first process is in it.
    stub: Option<Stub>,
    /// Room for the stub was made in pids.max: what is to be there.
    pids: Option<&'static str>,
}

impl Cgroup {
    /// The v2 group, for clone3's CLONE_INTO_CGROUP.
    pub fn clone_fd(&self) -> Option<BorrowedFd<'_>> {
        self.v2.as_ref().map(AsFd::as_fd)
    }

    /// The v1 `tasks` files into which the child writes `0`, which moves the writing thread.
    pub fn join_files(&self) -> &[CString] {
        &self.joins
    }

    /// Whether the child unshares its cgroup namespace after joining (else it would see
    /// `/gpucell-ID` for `/` in the v1 hierarchies).
    pub fn cgroup_ns_late(&self) -> bool {
        !self.joins.is_empty()
    }

    /// To be called once the cell's first process is in its group: it needs no stub any more to keep the scope.
    ///
    /// # Errors
    /// pids.max can't be written.
    pub fn entered(&mut self) -> Result<()> {
        self.stub = None;
        let (Some(value), Some(dir)) = (self.pids.take(), &self.v2) else {
            return Ok(());
        };
        let at = format!("{}/pids.max", dir.path);
        dir.write("pids.max", value)
            .map_err(|e| Error::step(format!("write {value:?} to"), at, e))
    }

    /// What was saved before.
    pub fn state(&self) -> &CgroupState {
        &self.state
    }
}

impl CgroupPlan {
    /// Makes the groups, writes the limits and attaches the device filter. Save
    /// [`CgroupPlan::saved`] first.
    ///
    /// # Errors
    /// Names the file and value, the controller and the mount, or the group, with the errno.
    /// What was made by then has been removed again, and `saved` says what could not be.
    pub fn create(&self, saved: &mut CgroupState) -> Result<Cgroup> {
        // Never the groups of another cell, which one of our paths may turn out to be.
        let mut made = CgroupState::default();
        self.make(&mut made).inspect_err(|_| {
            // The first error is the one to tell.
            *saved = match made.remove() {
                Ok(()) => CgroupState::default(),
                Err(_) => made.clone(),
            };
        })
    }

    fn make(&self, made: &mut CgroupState) -> Result<Cgroup> {
        let mut cgroup = Cgroup {
            v2: None,
            joins: Vec::with_capacity(self.state.v1.len()),
            state: self.state.clone(),
            stub: None,
            pids: None,
        };
        if let (Some(start), Some(group)) = (&self.scope, &self.state.v2) {
            self.make_scope(start, group, made, &mut cgroup)?;
        } else if let Some(group) = &self.state.v2 {
            cgroup.v2 = self.make_v2(group, made)?;
        }
        for (group, writes) in self.state.v1.iter().zip(&self.v1_writes) {
            if let Some(dir) = self.make_v1(group, writes, made)? {
                let file = format!("{}/tasks", dir.path);
                let file =
                    CString::new(file).map_err(|_| Error::msg("a cgroup path with a NUL"))?;
                cgroup.joins.push(file);
            }
        }
        Ok(cgroup)
    }

    /// Without privilege and without limits, a cell can do without a group.
    fn may_lack(&self, e: &Error, limits: bool) -> bool {
        self.refused(e) && !limits
    }

    /// Whether an unprivileged caller was refused a group.
    fn refused(&self, e: &Error) -> bool {
        self.state.rootless && matches!(e.errno(), Some(libc::EACCES | libc::EPERM | libc::EROFS))
    }

    /// Names the first limit that can't be had.
    fn no_delegation(&self, group: &Group, e: Error) -> Error {
        let why = e.errno().map(io::Error::from_raw_os_error);
        let what = match self
            .v2_writes
            .iter()
            .chain(self.v1_writes.iter().flatten())
            .next()
        {
            Some(w) => format!("the limit {}={}", w.file, w.value),
            None => "limiting this cell".to_owned(),
        };
        Error::unsupported(
            what,
            format!(
                "cgroup {} can't be made ({}): no group is delegated to this user; run under \
                 `systemd-run --user --scope -p Delegate=yes`, or with --cgroup-manager systemd",
                group.full_path(),
                why.map_or_else(|| e.to_string(), |w| w.to_string())
            ),
        )
    }

    fn make_v2(&self, group: &Group, made: &mut CgroupState) -> Result<Option<Dir>> {
        let mount = open_mount(group)?;
        let mut ours = || made.v2 = Some(group.clone());
        let dir = match make_group(&mount, group, &mut ours) {
            Err(e) if self.may_lack(&e, self.has_limits()) => return Ok(None),
            Err(e) if self.refused(&e) => return Err(self.no_delegation(group, e)),
            other => other?,
        };
        self.furnish(&mount, group, &dir)?;
        Ok(Some(dir))
    }

    /// systemd makes the group; what is in it is ours.
    fn make_scope(
        &self,
        start: &Start,
        group: &Group,
        made: &mut CgroupState,
        cgroup: &mut Cgroup,
    ) -> Result<()> {
        let mount = open_mount(group)?;
        cgroup.stub = Some(start.run(&mut || {
            made.v2 = Some(group.clone());
            made.scope = Some(start.scope.clone());
        })?);
        let dir = mount
            .sub(&group.path)
            .map_err(|e| Error::step("open cgroup", group.full_path(), e))?;
        self.furnish(&mount, group, &dir)?;
        // The stub must not take the only place.
        let pids = self.v2_writes.iter().rfind(|w| w.file == "pids.max");
        if pids.is_some_and(|w| w.value == "1") {
            dir.write("pids.max", "2")
                .map_err(|e| Error::step("write \"2\" to", format!("{}/pids.max", dir.path), e))?;
            cgroup.pids = Some("1");
        }
        cgroup.v2 = Some(dir);
        Ok(())
    }

    /// Limits, figures, device filter and owner of a v2 group.
    fn furnish(&self, mount: &Dir, group: &Group, dir: &Dir) -> Result<()> {
        let given = set_limits_v2(mount, group, dir, &self.v2_writes)?;
        // On hybrid hosts the figures are v1's.
        if !given && self.state.v1.is_empty() && !dir.has("memory.current") {
            offer_figures(mount, group);
        }
        if let Some(program) = &self.filter {
            filter::attach(dir.as_fd(), &dir.path, program)?;
        }
        if let Some(uid) = self.owner {
            give(dir, uid)?;
        }
        Ok(())
    }

    fn make_v1(
        &self,
        group: &Group,
        writes: &[Write],
        made: &mut CgroupState,
    ) -> Result<Option<Dir>> {
        let mount = open_mount(group)?;
        let mut ours = || made.v1.push(group.clone());
        let dir = match make_group(&mount, group, &mut ours) {
            Err(e) if self.may_lack(&e, !writes.is_empty()) => return Ok(None),
            other => other?,
        };
        if group.controllers.iter().any(|c| c == "cpuset") {
            fill_cpuset(&mount, group)?;
        }
        match write_all(&dir, writes)? {
            None => Ok(Some(dir)),
            Some(w) => Err(Error::unsupported(
                format!("the limit {}={}", w.file, w.value),
                format!(
                    "controller {} at {} has no such file in this kernel",
                    v1_name(&w.controller),
                    group.mount
                ),
            )),
        }
    }
}

fn open_mount(group: &Group) -> Result<Dir> {
    Dir::open(&group.mount).map_err(|e| Error::step("open cgroup mount", group.mount.as_str(), e))
}

/// Makes the group, and those above it as needed. A group that is there already is used if it
/// has no processes (runtime-spec, "Control groups"), made anew where possible so that no old
/// limit stays. Calls `ours` as soon as there is something to undo.
fn make_group(mount: &Dir, group: &Group, ours: &mut dyn FnMut()) -> Result<Dir> {
    let path = group.path.as_str();
    let step = |e| Error::step("make cgroup", group.full_path(), e);
    match mount.mkdir(path) {
        Ok(()) => ours(),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
            ours();
            for (at, _) in path.match_indices('/') {
                let up = &path[..at];
                match mount.mkdir(up) {
                    Err(e) if e.raw_os_error() != Some(libc::EEXIST) => {
                        let full = format!("{}/{up}", mount.path);
                        return Err(Error::step("make cgroup", full, e));
                    }
                    _ => {}
                }
            }
            mount.mkdir(path).map_err(step)?;
        }
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
            renew(mount, group)?;
            ours();
        }
        Err(e) => return Err(step(e)),
    }
    mount
        .sub(path)
        .map_err(|e| Error::step("open cgroup", group.full_path(), e))
}

fn renew(mount: &Dir, group: &Group) -> Result<()> {
    let full = group.full_path();
    let dir = mount
        .sub(&group.path)
        .map_err(|e| Error::step("open cgroup", full.as_str(), e))?;
    group.refuse_busy(&dir)?;
    remove_below(&dir)?;
    match mount.rmdir(&group.path) {
        Ok(()) => mount
            .mkdir(&group.path)
            .map_err(|e| Error::step("make cgroup", full, e)),
        // A group handed to us by the owner of the one above: use it as it is.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => Ok(()),
        Err(e) if gone(&e) => mount
            .mkdir(&group.path)
            .map_err(|e| Error::step("make cgroup", full, e)),
        Err(e) => Err(Error::step("remove old cgroup", full, e)),
    }
}

/// Writes the limits; where a file is missing, has its controller handed down and starts over.
/// Says whether controllers had to be handed down.
pub(super) fn set_limits_v2(
    mount: &Dir,
    group: &Group,
    dir: &Dir,
    writes: &[Write],
) -> Result<bool> {
    if write_all(dir, writes)?.is_none() {
        return Ok(false);
    }
    let mut wanted: Vec<&str> = Vec::new();
    for w in writes {
        let c = w.controller.as_ref();
        if c != "cgroup" && !wanted.contains(&c) {
            wanted.push(c);
        }
    }
    hand_down(mount, group, &wanted)?;
    match write_all(dir, writes)? {
        None => Ok(true),
        Some(w) => Err(Error::unsupported(
            format!("the limit {}={}", w.file, w.value),
            match w.otherwise {
                Some((other, _)) => format!(
                    "controller {} at {} has neither {} nor {other} in this kernel",
                    w.controller, group.mount, w.file
                ),
                None => format!(
                    "controller {} at {} has no such file in this kernel",
                    w.controller, group.mount
                ),
            },
        )),
    }
}

/// Writes in order. Gives back the first one whose file is missing and must not be.
///
/// # Errors
/// Any other failure, naming file and value.
pub(super) fn write_all<'a>(dir: &Dir, writes: &'a [Write]) -> Result<Option<&'a Write>> {
    for w in writes {
        let (mut file, mut value) = (w.file.as_ref(), &w.value);
        let mut result = dir.write(file, value);
        if let (Err(e), Some(other)) = (&result, &w.otherwise)
            && e.raw_os_error() == Some(libc::ENOENT)
        {
            (file, value) = (other.0, &other.1);
            result = dir.write(file, value);
        }
        let Err(e) = result else { continue };
        match (e.raw_os_error(), w.need) {
            (Some(libc::ENOENT), Need::Must | Need::Retried) => return Ok(Some(w)),
            (Some(libc::ENOENT), Need::IfPresent) | (Some(libc::EINVAL), Need::Retried) => {}
            _ => {
                let object = format!("{}/{file}", dir.path);
                return Err(Error::step(format!("write {value:?} to"), object, e));
            }
        }
    }
    Ok(None)
}

/// The groups from the mount down to the one above the cell's: `""`, `"a"`, `"a/b"`.
fn above(group: &Group) -> impl Iterator<Item = &str> {
    let path = group.path.as_str();
    std::iter::once("").chain(path.match_indices('/').map(|(at, _)| &path[..at]))
}

fn subtree_control(up: &str) -> String {
    if up.is_empty() {
        "cgroup.subtree_control".to_owned()
    } else {
        format!("{up}/cgroup.subtree_control")
    }
}

/// Switches controllers on in every group above where they are off. (A user whose group is
/// delegated may not write further up, and need not.)
fn hand_down(mount: &Dir, group: &Group, wanted: &[&str]) -> Result<()> {
    for up in above(group) {
        let file = subtree_control(up);
        let on = mount.read(&file).unwrap_or_default();
        let off = wanted
            .iter()
            .filter(|w| !on.split_whitespace().any(|c| c == **w));
        let off: Vec<String> = off.map(|c| format!("+{c}")).collect();
        if off.is_empty() || mount.write(&file, &off.join(" ")).is_ok() {
            continue;
        }
        // One by one, to tell which one fails, and why.
        for c in &off {
            if let Err(e) = mount.write(&file, c) {
                return Err(no_controller(mount, up, c.trim_start_matches('+'), e));
            }
        }
    }
    Ok(())
}

fn no_controller(mount: &Dir, up: &str, controller: &str, e: io::Error) -> Error {
    let at = if up.is_empty() {
        mount.path.clone()
    } else {
        format!("{}/{up}", mount.path)
    };
    let why = match e.raw_os_error() {
        // cgroup-v2.rst: only controllers listed in cgroup.controllers can be enabled.
        Some(libc::ENOENT | libc::EINVAL) => {
            let list = fs::read_to_string(format!("{at}/cgroup.controllers")).unwrap_or_default();
            let list = match list.trim() {
                "" => "none",
                l => l,
            };
            format!(
                "it is not among the controllers there ({list}): bound to cgroup v1, switched off \
                 (cgroup_disable=), or not built in"
            )
        }
        Some(libc::EBUSY) => {
            "the group has processes of its own, and the kernel lets such a group \
             hand out no controllers; move them to a group below it"
                .to_owned()
        }
        Some(libc::EOPNOTSUPP) => {
            "the group is threaded, which this controller can't be".to_owned()
        }
        Some(libc::EACCES | libc::EPERM) => {
            format!("{e}: the group is not delegated to this user")
        }
        _ => e.to_string(),
    };
    Error::unsupported(
        format!(
            "controller {controller} for the cell (cgroup2 at {})",
            mount.path
        ),
        format!("{at}: {why}"),
    )
}

/// Switches on what gives figures, as far as possible. Nothing depends on it.
fn offer_figures(mount: &Dir, group: &Group) {
    let Ok(list) = mount.read("cgroup.controllers") else {
        return;
    };
    let wanted: Vec<&str> = list
        .split_whitespace()
        .filter(|c| FIGURES.contains(c))
        .collect();
    if wanted.is_empty() {
        return;
    }
    for up in above(group) {
        for c in &wanted {
            let _ = mount.write(&subtree_control(up), &format!("+{c}"));
        }
    }
}

/// v1 takes no process into a cpuset without CPUs and nodes: fill every empty level from the one
/// above it (cgroup-v1/cpusets.rst).
fn fill_cpuset(mount: &Dir, group: &Group) -> Result<()> {
    let levels: Vec<&str> = above(group)
        .chain(std::iter::once(group.path.as_str()))
        .collect();
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut inherited = String::new();
        for at in &levels {
            let name = if at.is_empty() {
                file.to_owned()
            } else {
                format!("{at}/{file}")
            };
            let fail = |step: &'static str| {
                let object = format!("{}/{name}", mount.path);
                move |e| Error::step(step, object, e)
            };
            let text = mount.read(&name).map_err(fail("read"))?;
            if text.trim().is_empty() {
                mount
                    .write(&name, inherited.trim())
                    .map_err(fail("write"))?;
            } else {
                inherited = text;
            }
        }
    }
    Ok(())
}

/// Hands a group to a user: the directory and the files that the kernel says are safe to give.
fn give(dir: &Dir, uid: u32) -> Result<()> {
    let list = fs::read_to_string("/sys/kernel/cgroup/delegate").unwrap_or_else(|_| {
        // The spec's fallback for kernels before 4.15.
        "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n".to_owned()
    });
    for file in std::iter::once(".").chain(list.lines().filter(|l| !l.contains('/'))) {
        let r = fchownat(
            dir.as_fd(),
            file,
            Some(Uid::from_raw(uid)),
            None,
            AtFlags::AT_SYMLINK_NOFOLLOW,
        );
        match r {
            Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
            Err(e) => {
                let object = format!("{}/{file}", dir.path);
                return Err(Error::step(
                    "give to the cell's user",
                    object,
                    io::Error::from(e),
                ));
            }
        }
    }
    Ok(())
}
