//! Devices for a container that another runtime has made: they are added to what its groups allow.
//!
//! Owns the search for the container's groups and the check that they are its own. Groups of others,
//! those above among them, are never changed: what they deny stays denied.

use super::device::{DeviceRule, Table};
use super::device_v1;
use super::dir::Dir;
use super::filter;
use super::host::Host;
use crate::error::{Error, Result};
use std::fs;
use std::io;
use std::os::fd::AsFd;

/// Lets the container of process `pid` use the devices that `rules` allow, beside those it may use
/// already: by lines of devices.allow (v1), and ahead of the programs attached to its group (v2).
/// Gives back warnings: a container without a group of its own uses devices as its caller does.
///
/// # Errors
/// A group that can't be found or doesn't hold the process; a rule that can't be added. What was not
/// allowed before and is not added by then stays denied.
pub fn allow_devices(pid: i32, rules: &[DeviceRule]) -> Result<Vec<String>> {
    if rules.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(rule) = rules.iter().find(|r| !r.allow) {
        return Err(Error::msg(format!(
            "device rule {rule:?} denies: only devices that are allowed can be added"
        )));
    }
    let host = Host::detect()?;
    let theirs = read(&format!("/proc/{pid}/cgroup"))?;
    let ours = read("/proc/self/cgroup")?;
    let mut warnings = Vec::new();
    if let Some(home) = host.v1_home("devices") {
        match own_path(&theirs, &ours, Some("devices")) {
            Some(path) => on_v1(&open(&home.mount, path, pid)?, rules)?,
            None => warnings.push(alone("devices controller")),
        }
    }
    if let Some(mount) = &host.v2 {
        match own_path(&theirs, &ours, None) {
            Some(path) => on_v2(mount, path, pid, rules)?,
            // Beside v1 controllers nobody need be in a group of v2.
            None if host.v1_home("devices").is_none() => {
                warnings.push(alone("unified hierarchy"));
            }
            None => {}
        }
    }
    Ok(warnings)
}

fn alone(what: &str) -> String {
    format!("the container has no group of its own in the {what}: its device rules are not changed")
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(|e| Error::step("read", path, e))
}

/// The path of the line of /proc/PID/cgroup (cgroups(7)) for a v1 controller, or for v2.
fn path_of<'a>(text: &'a str, controller: Option<&str>) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let found = match controller {
            Some(name) => controllers.split(',').any(|c| c == name),
            None => controllers.is_empty() && line.starts_with("0:"),
        };
        found.then_some(path)
    })
}

/// The group of a process, if it is neither the root nor the one we are in ourselves.
fn own_path<'a>(theirs: &'a str, ours: &str, controller: Option<&str>) -> Option<&'a str> {
    let path = path_of(theirs, controller)?;
    (path != "/" && Some(path) != path_of(ours, controller)).then_some(path)
}

/// Opens a group and makes sure that it holds the process: the path is only right where the
/// hierarchy's own root is mounted.
fn open(mount: &str, path: &str, pid: i32) -> Result<Dir> {
    let full = format!("{mount}{path}");
    let fail = |e: io::Error| Error::step("open cgroup", full.as_str(), e);
    if path.split('/').any(|name| name == "..") {
        return Err(Error::msg(format!(
            "open cgroup {full}: it is outside of the cgroup namespace of this process"
        )));
    }
    let dir = Dir::open(&full).map_err(fail)?;
    let procs = dir.read("cgroup.procs").map_err(fail)?;
    if !procs.lines().any(|line| line.parse() == Ok(pid)) {
        return Err(Error::msg(format!(
            "open cgroup {full}: process {pid} of the container is not in it"
        )));
    }
    Ok(dir)
}

fn on_v1(dir: &Dir, rules: &[DeviceRule]) -> Result<()> {
    for line in rules.iter().flat_map(device_v1::rule_lines) {
        dir.write("devices.allow", &line).map_err(|e| {
            let file = format!("{}/devices.allow", dir.path);
            Error::step("write", format!("{line:?} to {file}"), e)
        })?;
    }
    Ok(())
}

fn on_v2(mount: &str, path: &str, pid: i32, rules: &[DeviceRule]) -> Result<()> {
    let table = Table::new(rules);
    let dir = open(mount, path, pid)?;
    // crun puts the container into a group below its systemd scope, and systemd's program is on the
    // scope (crun.1, "run.oci.systemd.subgroup"). It is the container's if nobody else is in it.
    if let Some((above, _)) = path.rsplit_once('/')
        && above.ends_with(".scope")
    {
        let full = format!("{mount}{above}");
        let fail = |e: io::Error| Error::step("open cgroup", full.as_str(), e);
        let scope = Dir::open(&full).map_err(fail)?;
        let empty = scope.read("cgroup.procs").map_err(fail)?.trim().is_empty();
        if empty && scope.children().map_err(fail)?.len() == 1 {
            filter::put_ahead(scope.as_fd(), &scope.path, &table)?;
        }
    }
    filter::put_ahead(dir.as_fd(), &dir.path, &table)
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEIRS: &str = "12:devices:/a/b\n4:cpu,cpuacct:/c\n1:name=systemd:/x\n0::/u/v\n";

    #[test]
    fn groups_are_found_by_controller() {
        assert_eq!(path_of(THEIRS, Some("devices")), Some("/a/b"));
        assert_eq!(path_of(THEIRS, Some("cpuacct")), Some("/c"));
        assert_eq!(path_of(THEIRS, Some("memory")), None);
        assert_eq!(path_of(THEIRS, None), Some("/u/v"));
        // A path with colons, and a named hierarchy that is no version 2.
        assert_eq!(path_of("3::/no\n0::/a:b:c\n", None), Some("/a:b:c"));
        assert_eq!(path_of("garbage\n\n:\n", None), None);
    }

    #[test]
    fn groups_of_others_are_left_alone() {
        let ours = "12:devices:/a/b\n0::/\n";
        assert_eq!(own_path(THEIRS, ours, Some("devices")), None);
        assert_eq!(own_path(THEIRS, ours, None), Some("/u/v"));
        assert_eq!(own_path("0::/\n", "0::/x\n", None), None);
    }

    #[test]
    fn a_group_without_the_process_is_refused() {
        let deny = DeviceRule {
            allow: false,
            kind: super::super::device::Kind::Char,
            major: None,
            minor: None,
            access: super::super::device::ALL,
        };
        assert!(allow_devices(1, &[deny]).is_err());
        assert!(open("/nowhere", "/../x", 1).is_err());
    }
}
