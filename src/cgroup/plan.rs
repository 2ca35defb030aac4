//! What will be made for a cell: groups, writes and the device filter, as data.
//!
//! Owns the decisions; `create` carries them out. Nothing is made here, and all that can be
//! refused without making anything is refused here.

use super::device::{DeviceRule, Table};
use super::device_v1;
use super::filter;
use super::host::{Host, Mode};
use super::limits::{self, Need, Write};
use super::path;
use super::state::{CgroupState, Group};
use super::systemd::{self, Start, annotation, properties};
use crate::error::{Error, Result};
use crate::sys::bpf::Insn;
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// Who makes a cell's group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// We do, in the file system.
    #[default]
    Cgroupfs,
    /// systemd does, as a scope.
    Systemd,
    /// Nobody: the cell stays in the caller's group, and limits are refused.
    Disabled,
}

/// What a cell asks of this room.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The cell's id, already checked.
    pub id: &'a str,
    /// `linux.cgroupsPath`.
    pub cgroups_path: Option<&'a Path>,
    /// `linux.resources`.
    pub resources: Option<&'a LinuxResources>,
    /// Device rules that follow the configuration's own: see [`super::DEFAULT_RULES`].
    pub extra_devices: &'a [DeviceRule],
    /// `annotations`: the systemd driver finds properties of the unit there.
    pub annotations: Option<&'a HashMap<String, String>>,
    /// Who makes the group.
    pub driver: Driver,
    /// Whether the caller lacks real root. Such a cell gets no device filter (bpf(2) needs
    /// privilege; it can make no device nodes either), and goes without a group where it can
    /// have none and asks for no limit.
    pub rootless: bool,
}

/// Everything to be made, decided. See [`CgroupPlan::create`].
#[derive(Clone, Debug)]
pub struct CgroupPlan {
    pub(super) state: CgroupState,
    pub(super) v2_writes: Vec<Write>,
    /// For each group of `state.v1`.
    pub(super) v1_writes: Vec<Vec<Write>>,
    pub(super) filter: Option<Vec<Insn>>,
    pub(super) owner: Option<u32>,
    /// The scope to ask systemd for.
    pub(super) scope: Option<Start>,
    warnings: Vec<String>,
}

/// v1 hierarchies that every cell joins, where mounted: those that hold limits or figures that
/// an update or `events` may ask for later.
const V1_ALWAYS: [&str; 9] = [
    "memory", "cpu", "cpuacct", "cpuset", "pids", "blkio", "hugetlb", "rdma", "misc",
];
/// Those joined only where there is no v2 hierarchy to do the same.
const V1_ALONE: [&str; 3] = ["freezer", "devices", "name=systemd"];

/// What is said of a device list that can't be had.
pub const NO_FILTER: &str = "linux.resources.devices is dropped: a rootless cell can load no device filter (and can make no device nodes)";

/// Decides on groups, writes and the device filter.
///
/// # Errors
/// A configuration error for bad values and paths; [`Error::Unsupported`] for limits that this
/// host can't enforce (naming the controller), for the systemd driver where there is no systemd or no
/// pure cgroup v2, and for limits without a group.
pub fn plan(req: &Request<'_>) -> Result<CgroupPlan> {
    match req.driver {
        Driver::Cgroupfs | Driver::Systemd => plan_on(req, &Host::detect()?),
        Driver::Disabled => plan_nothing(req),
    }
}

/// A scope. Its group's limits are planned as for a group of our own.
fn plan_scope(req: &Request<'_>, host: &Host) -> Result<CgroupPlan> {
    let mut plan = CgroupPlan::empty(req);
    plan.state.mode = Some(host.mode);
    let user = req.rootless;
    let unit = systemd::unit::unit(req.id, req.cgroups_path, user)?;
    let mount = match &host.v2 {
        Some(mount) if host.mode == Mode::V2 => mount,
        // runc makes scopes on v1 as well. systemd 258 has no v1 any more, and no such host is without cgroupfs.
        _ => {
            return Err(Error::unsupported(
                "the systemd cgroup driver",
                "it needs all controllers on cgroup v2, and here some are on v1; use --cgroup-manager cgroupfs",
            ));
        }
    };
    let set = req.annotations.map(annotation::properties).transpose()?;
    let default = LinuxResources::default();
    let res = req.resources.unwrap_or(&default);
    let (new, _) = limits::lower(res, &|_| false, &|_, _| None)?;
    plan.warnings.extend(new.warnings);
    plan.v2_writes = new.list;
    let above = match user {
        true => systemd::users_place()?,
        false => String::new(),
    };
    let path = match above.as_str() {
        "" => unit.path.clone(),
        above => format!("{above}/{}", unit.path),
    };
    let group = Group::planned(mount, &path, Vec::new())?;
    plan.state.v2 = Some(Group {
        // Slices are systemd's to remove.
        parents: Vec::new(),
        ..group
    });
    plan.devices(req, res)?;

    let idle = properties::wants_idle(&plan.v2_writes) && systemd::knows_idle(user)?;
    let mut told = properties::limits(&plan.v2_writes, idle);
    if plan.filter.is_some() {
        told.extend(properties::devices(&device_rules(res, req.extra_devices)?));
    }
    let start = Start::new(req.id, &unit, user, told, set.unwrap_or_default());
    plan.state.scope = Some(start.scope.clone());
    plan.scope = Some(start);
    Ok(plan)
}

fn plan_nothing(req: &Request<'_>) -> Result<CgroupPlan> {
    if let Some(res) = req.resources {
        let (new, _) = limits::lower(res, &|_| false, &|_, _| None)?;
        if let Some(w) = new.list.first() {
            return Err(Error::unsupported(
                format!("the limit {}={}", w.file, w.value),
                "cgroups are disabled (--cgroup-manager disabled)",
            ));
        }
    }
    Ok(CgroupPlan::empty(req))
}

/// [`plan`] for a host described by the caller: what would be made there.
///
/// # Errors
/// As for [`plan`].
pub fn plan_on(req: &Request<'_>, host: &Host) -> Result<CgroupPlan> {
    if req.driver == Driver::Systemd {
        return plan_scope(req, host);
    }
    let mut plan = CgroupPlan::empty(req);
    plan.state.mode = Some(host.mode);
    let mut rel = path::resolve(req.id, req.cgroups_path)?;
    let absolute = req.cgroups_path.is_some_and(Path::is_absolute);
    if req.rootless && !absolute {
        match path::own_place(host) {
            Some(parent) if !parent.is_empty() => rel = format!("{parent}/{rel}"),
            Some(_) => {}
            None => plan.warnings.push(
                "no cgroup is delegated to this user, so the cell gets none (run under \
                 `systemd-run --user --scope` to have one)"
                    .into(),
            ),
        }
    }

    let default = LinuxResources::default();
    let res = req.resources.unwrap_or(&default);
    let no_v2 = host.v2.is_none();
    let is_v1 = |c: &str| no_v2 || host.v1_home(c).is_some();
    let (new, old) = limits::lower(res, &is_v1, &|_, _| None)?;
    plan.warnings.extend(new.warnings);
    plan.warnings.extend(old.warnings);
    plan.v2_writes = new.list;

    if let Some(mount) = &host.v2 {
        plan.state.v2 = Some(Group::planned(mount, &rel, Vec::new())?);
    } else if let Some(w) = plan.v2_writes.first() {
        return Err(Error::unsupported(
            format!("linux.resources.unified[{:?}]", w.file),
            "this host has no cgroup v2 mount",
        ));
    }
    for m in &host.v1 {
        let has = |list: &[&str]| m.controllers.iter().any(|c| list.contains(&c.as_str()));
        let mine = |w: &&Write| {
            m.controllers
                .iter()
                .any(|c| c == limits::v1_name(&w.controller))
        };
        let writes: Vec<Write> = old.list.iter().filter(mine).cloned().collect();
        if has(&V1_ALWAYS) || (no_v2 && has(&V1_ALONE)) || !writes.is_empty() {
            let group = Group::planned(&m.mount, &rel, m.controllers.clone())?;
            plan.state.v1.push(group);
            plan.v1_writes.push(writes);
        }
    }
    if let Some(w) = old
        .list
        .iter()
        .find(|w| w.need == Need::Must && plan.state.v1_group(&w.controller).is_none())
    {
        return Err(missing_v1(w));
    }
    plan.devices(req, res)?;
    Ok(plan)
}

/// A limit whose controller has no hierarchy at all.
pub(super) fn missing_v1(w: &Write) -> Error {
    let name = limits::v1_name(&w.controller);
    Error::unsupported(
        format!("the limit {}={}", w.file, w.value),
        format!(
            "controller {name} is not mounted (expected below {})",
            super::host::MOUNT
        ),
    )
}

/// The rule list in force: the configuration's, then those that every cell gets.
pub(super) fn device_rules(res: &LinuxResources, extra: &[DeviceRule]) -> Result<Vec<DeviceRule>> {
    let own = res.devices().as_deref().unwrap_or_default();
    let mut rules = Vec::with_capacity(own.len() + extra.len());
    for (i, entry) in own.iter().enumerate() {
        rules.push(DeviceRule::from_spec(entry, i)?);
    }
    rules.extend_from_slice(extra);
    Ok(rules)
}

impl CgroupPlan {
    fn empty(req: &Request<'_>) -> Self {
        CgroupPlan {
            state: CgroupState {
                extra_devices: req.extra_devices.to_vec(),
                rootless: req.rootless,
                ..CgroupState::default()
            },
            v2_writes: Vec::new(),
            v1_writes: Vec::new(),
            filter: None,
            owner: None,
            scope: None,
            warnings: Vec::new(),
        }
    }

    fn devices(&mut self, req: &Request<'_>, res: &LinuxResources) -> Result<()> {
        let rules = device_rules(res, req.extra_devices)?;
        let table = Table::new(&rules);
        if table.allows_all() {
            return Ok(()); // a privileged cell: nothing to filter
        }
        if req.rootless {
            if res.devices().as_ref().is_some_and(|d| !d.is_empty()) {
                self.warnings.push(NO_FILTER.into());
            }
            return Ok(());
        }
        if self.state.v2.is_some() {
            self.filter = Some(filter::compile(&table)?);
        } else {
            let lines = device_v1::lower(&table)?;
            let at = self
                .state
                .v1
                .iter()
                .position(|g| g.controllers.iter().any(|c| c == "devices"));
            match at.and_then(|i| self.v1_writes.get_mut(i)) {
                Some(writes) => writes.extend(lines),
                None => {
                    return Err(Error::unsupported(
                        "linux.resources.devices",
                        "neither cgroup v2 nor the v1 controller devices is mounted",
                    ));
                }
            }
        }
        self.state.filter = true;
        Ok(())
    }

    /// What is to be saved before anything is made: every path that [`CgroupPlan::create`] may
    /// leave behind.
    pub fn saved(&self) -> CgroupState {
        self.state.clone()
    }

    /// What is done otherwise than asked, one line each, for `explain` and the log.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Gives the v2 group to a host user, so that the cell can make groups below it
    /// (runtime-spec, "Cgroup ownership": only with a cgroup namespace of its own and
    /// /sys/fs/cgroup mounted read-write; never in v1).
    pub fn set_owner(&mut self, uid: u32) {
        self.owner = Some(uid);
    }

    /// Whether any limit (devices aside) is set.
    pub fn has_limits(&self) -> bool {
        !self.v2_writes.is_empty() || self.v1_writes.iter().any(|w| !w.is_empty())
    }

    /// The writes in order as `(path of the file, value)`, for `explain`.
    pub fn writes(&self) -> Vec<(String, String)> {
        let v2 = self.state.v2.iter().map(|g| (g, &self.v2_writes));
        let v1 = self.state.v1.iter().zip(&self.v1_writes);
        v2.chain(v1)
            .flat_map(|(g, list)| {
                let dir = g.full_path();
                list.iter()
                    .map(move |w| (format!("{dir}/{}", w.file), w.value.clone()))
            })
            .collect()
    }

    /// The device program, for tests and `explain`.
    pub fn filter(&self) -> Option<&[Insn]> {
        self.filter.as_deref()
    }

    /// How the host divides controllers; `None` when cgroups are disabled.
    pub fn mode(&self) -> Option<Mode> {
        self.state.mode
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
