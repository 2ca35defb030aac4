//! New limits for a live cell.
//!
//! Owns the reading of present values that some limits need, and the way back when a write in
//! the middle fails.

use super::create::{set_limits_v2, write_all};
use super::device::Table;
use super::dir::Dir;
use super::filter;
use super::limits::{self, Need, Write};
use super::plan::{device_rules, missing_v1};
use super::state::{CgroupState, Group};
use super::systemd::{self, Scope, properties::Property};
use super::{device_v1, host::Mode};
use crate::error::{Error, Result};
use oci_spec::runtime::LinuxResources;
use std::os::fd::AsFd;

impl CgroupState {
    /// Changes the cell's limits to those that are set in `res`; the others stay. A device list
    /// replaces the cell's own list, in one step on v2. Gives back warnings.
    ///
    /// # Errors
    /// As for creation. Limits written by then are put back as they were, as far as possible.
    pub fn update(&self, res: &LinuxResources) -> Result<Vec<String>> {
        let is_v1 = |c: &str| self.v2.is_none() || self.v1_group(c).is_some();
        let dirs = self.open_all()?;
        let find = |c: &str| -> Option<&Dir> {
            let name = limits::v1_name(c);
            let of = |g: &&(&Group, Dir)| g.0.controllers.iter().any(|x| x == name);
            let v1 = dirs.iter().find(of);
            let v2 = || dirs.iter().find(|g| g.0.is_v2());
            v1.or_else(v2).map(|g| &g.1)
        };
        let now = |c: &str, file: &str| find(c)?.read(file).ok();
        let (mut new, mut old) = limits::lower(res, &is_v1, &now)?;
        let mut warnings = std::mem::take(&mut new.warnings);
        warnings.append(&mut old.warnings);
        if self.rootless && res.devices().is_some() {
            warnings.push(
                "linux.resources.devices is dropped: a rootless cell has no device filter".into(),
            );
        }
        let program = self.new_devices(res, &mut old.list)?;
        if self.mode.is_none()
            && let Some(w) = new.list.iter().chain(&old.list).next()
        {
            return Err(Error::unsupported(
                format!("the limit {}={}", w.file, w.value),
                "the cell was made without cgroups",
            ));
        }

        let mut back = Vec::new();
        if let Some((_, dir)) = dirs.iter().find(|g| g.0.is_v2()) {
            for w in &new.list {
                remember(&mut back, dir, w);
            }
        }
        let was: Vec<Write> = back
            .iter()
            .map(|(_, file, text)| told(file, text))
            .collect();
        if let Some(scope) = &self.scope {
            scope.set(&self.properties(scope, res, &new.list)?)?;
        }
        let done = self.apply(&dirs, &find, &new.list, &old.list, &mut back);
        let done = done.and_then(|()| match (&program, dirs.iter().find(|g| g.0.is_v2())) {
            (Some(code), Some((_, dir))) => filter::replace(dir.as_fd(), &dir.path, code),
            _ => Ok(()),
        });
        if done.is_err() {
            for (dir, file, value) in back.iter().rev() {
                let _ = dir.write(file, value);
            }
            if let Some(scope) = &self.scope {
                let _ = scope.set(&systemd::properties::limits(&was, false));
            }
        }
        done.map(|()| warnings)
    }

    /// What the unit is told of an update.
    fn properties(
        &self,
        scope: &Scope,
        res: &LinuxResources,
        new: &[Write],
    ) -> Result<Vec<Property>> {
        let idle = systemd::properties::wants_idle(new) && systemd::knows_idle(scope.user)?;
        let mut list = systemd::properties::limits(new, idle);
        if res.devices().is_some() && !self.rootless {
            let rules = device_rules(res, &self.extra_devices)?;
            list.extend(match Table::new(&rules).allows_all() {
                true => systemd::properties::all_devices(),
                false => systemd::properties::devices(&rules),
            });
        }
        Ok(list)
    }

    /// The program for a new device list (v2), or its lines (v1).
    fn new_devices(
        &self,
        res: &LinuxResources,
        old: &mut Vec<Write>,
    ) -> Result<Option<Vec<crate::sys::bpf::Insn>>> {
        if res.devices().is_none() || self.rootless || self.mode.is_none() {
            return Ok(None);
        }
        let table = Table::new(&device_rules(res, &self.extra_devices)?);
        if self.mode == Some(Mode::V1) {
            old.extend(device_v1::lower(&table)?);
            return Ok(None);
        }
        filter::compile(&table).map(Some)
    }

    fn open_all(&self) -> Result<Vec<(&Group, Dir)>> {
        let mut out = Vec::new();
        for g in self.v2.iter().chain(&self.v1) {
            match g.open()? {
                Some(dir) => out.push((g, dir)),
                None if self.rootless => {}
                None => {
                    return Err(Error::step(
                        "open cgroup",
                        g.full_path(),
                        std::io::Error::from_raw_os_error(libc::ENOENT),
                    ));
                }
            }
        }
        Ok(out)
    }

    fn apply<'a>(
        &self,
        dirs: &'a [(&Group, Dir)],
        find: &dyn Fn(&str) -> Option<&'a Dir>,
        new: &'a [Write],
        old: &'a [Write],
        back: &mut Vec<(&'a Dir, String, String)>,
    ) -> Result<()> {
        if !new.is_empty() {
            let Some((group, dir)) = dirs.iter().find(|g| g.0.is_v2()) else {
                return Err(no_group(&new[0]));
            };
            let mount = Dir::open(&group.mount)
                .map_err(|e| Error::step("open cgroup mount", group.mount.as_str(), e))?;
            set_limits_v2(&mount, group, dir, new)?;
        }
        for w in old {
            let Some(dir) = find(&w.controller) else {
                return Err(missing_v1(w));
            };
            remember(back, dir, w);
            if let Some(w) = write_all(dir, std::slice::from_ref(w))? {
                return Err(Error::unsupported(
                    format!("the limit {}={}", w.file, w.value),
                    format!("{} has no such file", dir.path),
                ));
            }
        }
        Ok(())
    }
}

/// Notes what a file has now, to put it back. One with a line for each device can't be put back by one write.
fn remember<'a>(back: &mut Vec<(&'a Dir, String, String)>, dir: &'a Dir, w: &Write) {
    for file in [Some(w.file.as_ref()), w.otherwise.as_ref().map(|o| o.0)] {
        if let Some(file) = file
            && let Ok(text) = dir.read(file)
            && text.lines().count() == 1
        {
            back.push((dir, file.to_owned(), text.trim().to_owned()));
        }
    }
}

/// A file's text as a write, for the unit.
fn told(file: &str, text: &str) -> Write {
    Write {
        controller: "".into(),
        file: file.to_owned().into(),
        value: text.to_owned(),
        need: Need::IfPresent,
        otherwise: None,
    }
}

fn no_group(w: &Write) -> Error {
    Error::unsupported(
        format!("the limit {}={}", w.file, w.value),
        "the cell has no cgroup of its own",
    )
}
