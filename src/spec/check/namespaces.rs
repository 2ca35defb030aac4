//! `linux.namespaces`, the id mappings and time offsets that belong to two of them, and what else
//! needs a namespace of its own (config-linux.md, "Namespaces").

use std::fmt::Display;
use std::path::Path;

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, Process};

use super::absolute;
use crate::{Error, Result};

/// user_namespaces(7): lines in a map file, since Linux 4.15.
const MAX_MAPPINGS: usize = 340;
/// user_namespaces(7): a map is written at once and must be shorter than the page size, bytes.
const MAX_MAP_TEXT: usize = 4096;

/// The namespaces that the cell has of its own or joins.
pub(super) struct Namespaces<'a> {
    list: &'a [LinuxNamespace],
    uid_mappings: &'a [LinuxIdMapping],
    gid_mappings: &'a [LinuxIdMapping],
}

impl<'a> Namespaces<'a> {
    /// Checks the list and the mappings.
    pub(super) fn new(linux: Option<&'a Linux>) -> Result<Self> {
        let list = linux
            .and_then(|l| l.namespaces().as_deref())
            .unwrap_or_default();
        for (i, ns) in list.iter().enumerate() {
            // config-linux.md: "If a namespaces field contains duplicated namespaces with same
            // type, the runtime MUST generate an error."
            if list.iter().take(i).any(|other| other.typ() == ns.typ()) {
                return Err(Error::config(
                    format!("linux.namespaces[{i}].type"),
                    format!("the {} namespace is given twice", name(ns.typ())),
                ));
            }
            if let Some(path) = given(ns) {
                absolute(format_args!("linux.namespaces[{i}].path"), path)?;
            }
        }
        let mappings = |of: fn(&Linux) -> &Option<Vec<LinuxIdMapping>>| {
            linux.and_then(|l| of(l).as_deref()).unwrap_or_default()
        };
        let this = Namespaces {
            list,
            uid_mappings: mappings(Linux::uid_mappings),
            gid_mappings: mappings(Linux::gid_mappings),
        };
        this.check_mappings()?;
        Ok(this)
    }

    pub(super) fn has(&self, kind: LinuxNamespaceType) -> bool {
        self.list.iter().any(|ns| ns.typ() == kind)
    }

    /// Whether the namespace is made for the cell (not joined by path).
    pub(super) fn made(&self, kind: LinuxNamespaceType) -> bool {
        self.list
            .iter()
            .any(|ns| ns.typ() == kind && given(ns).is_none())
    }

    /// Refuses `at` unless the cell has this namespace: it would be done to the host.
    pub(super) fn require(&self, at: &str, kind: LinuxNamespaceType) -> Result<()> {
        if self.has(kind) {
            return Ok(());
        }
        Err(Error::config(
            at.to_owned(),
            format!("needs a {} namespace in linux.namespaces", name(kind)),
        ))
    }

    fn check_mappings(&self) -> Result<()> {
        for (at, mappings) in [
            ("linux.uidMappings", self.uid_mappings),
            ("linux.gidMappings", self.gid_mappings),
        ] {
            check_mappings(at, mappings)?;
            if mappings.is_empty() && self.made(LinuxNamespaceType::User) {
                return Err(Error::config(at, "is required with a new user namespace"));
            }
            if !mappings.is_empty() {
                self.require(at, LinuxNamespaceType::User)?;
            }
        }
        Ok(())
    }

    /// An id without a mapping is EINVAL in setuid(2), setgid(2) and setgroups(2).
    pub(super) fn ids_mapped(&self, process: &Process) -> Result<()> {
        if !self.made(LinuxNamespaceType::User) {
            return Ok(());
        }
        let user = process.user();
        mapped("process.user.uid", user.uid(), self.uid_mappings)?;
        mapped("process.user.gid", user.gid(), self.gid_mappings)?;
        for (i, group) in user.additional_gids().iter().flatten().enumerate() {
            let at = format!("process.user.additionalGids[{i}]");
            mapped(&at, *group, self.gid_mappings)?;
        }
        Ok(())
    }
}

/// The path to join, where one is given (Go's zero value counts as none).
fn given(ns: &LinuxNamespace) -> Option<&Path> {
    ns.path().as_deref().filter(|p| !p.as_os_str().is_empty())
}

/// The name that `config.json` has for it.
pub(super) fn name(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

fn mapped(at: &str, id: u32, mappings: &[LinuxIdMapping]) -> Result<()> {
    let inside = |m: &LinuxIdMapping| {
        id >= m.container_id() && u64::from(id) < u64::from(m.container_id()) + u64::from(m.size())
    };
    if mappings.iter().any(inside) {
        return Ok(());
    }
    Err(Error::config(
        at.to_owned(),
        format!("{id} is in no mapping of the user namespace"),
    ))
}

/// The rules of user_namespaces(7), "Defining user and group ID mappings", as the kernel's
/// map_write() applies them. Too many of them, or too long a text, were CVE-2021-43784 in runc.
pub(super) fn check_mappings(at: impl Display, mappings: &[LinuxIdMapping]) -> Result<()> {
    if mappings.len() > MAX_MAPPINGS {
        return Err(Error::config(
            at.to_string(),
            format!("{} mappings, at most {MAX_MAPPINGS}", mappings.len()),
        ));
    }
    let mut text = 0;
    for (i, m) in mappings.iter().enumerate() {
        let refuse = |why: String| Err(Error::config(format!("{at}[{i}]"), why));
        if m.size() == 0 {
            return refuse("size is 0".into());
        }
        for (side, first) in [("containerID", m.container_id()), ("hostID", m.host_id())] {
            // first + size must itself be an id: (u32)-1 is none.
            if first.checked_add(m.size()).is_none() {
                return refuse(format!(
                    "{side} {first} + size {} is above 2^32 - 1",
                    m.size()
                ));
            }
        }
        let overlap = |a: u32, b: u32, other: u32| {
            u64::from(a) < u64::from(b) + u64::from(other)
                && u64::from(b) < u64::from(a) + u64::from(m.size())
        };
        for (j, o) in mappings.iter().take(i).enumerate() {
            if overlap(m.container_id(), o.container_id(), o.size())
                || overlap(m.host_id(), o.host_id(), o.size())
            {
                return refuse(format!("overlaps mapping {j}"));
            }
        }
        text += format!("{} {} {}\n", m.container_id(), m.host_id(), m.size()).len();
    }
    if text >= MAX_MAP_TEXT {
        return Err(Error::config(
            at.to_string(),
            format!(
                "{text} bytes when written for the kernel, which takes less than {MAX_MAP_TEXT}"
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{accepted, base, refused};
    use serde_json::{Value, json};

    fn map(container: u32, host: u32, size: u32) -> Value {
        json!({"containerID": container, "hostID": host, "size": size})
    }

    /// `base()` with a user namespace and these mappings for users; groups get one of all.
    fn user_ns(uids: Value) -> Value {
        let mut j = base();
        let list = j["linux"]["namespaces"].as_array_mut().unwrap();
        list.push(json!({"type": "user"}));
        j["linux"]["uidMappings"] = uids;
        j["linux"]["gidMappings"] = json!([map(0, 100_000, 65536)]);
        j
    }

    #[test]
    fn lists_of_namespaces() {
        let mut j = base();
        j["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}, {"type": "pid"}]);
        refused(j.clone(), &["linux.namespaces[2]", "pid", "twice"]);
        j["linux"]["namespaces"] = json!([{"type": "pid", "path": "proc/1/ns/pid"}]);
        refused(j.clone(), &["linux.namespaces[0].path", "absolute"]);
        j["linux"]["namespaces"] = json!([{"type": "pid", "path": ""}]);
        accepted(j);
    }

    #[test]
    fn mappings_go_with_a_user_namespace() {
        accepted(user_ns(json!([map(0, 100_000, 65536)])));
        refused(user_ns(json!([])), &["linux.uidMappings", "required"]);
        let mut j = base();
        j["linux"]["gidMappings"] = json!([map(0, 0, 1)]);
        refused(j, &["linux.gidMappings", "user namespace"]);
    }

    #[test]
    fn mappings_are_what_the_kernel_takes() {
        for (bad, why) in [
            (json!([map(0, 1, 0)]), "size is 0"),
            (json!([map(0, u32::MAX, 1)]), "hostID"),
            (json!([map(2, 1, u32::MAX - 1)]), "containerID"),
            (
                json!([map(0, 10, 10), map(5, 100, 10)]),
                "overlaps mapping 0",
            ),
            (
                json!([map(0, 10, 10), map(10, 19, 10)]),
                "overlaps mapping 0",
            ),
        ] {
            refused(user_ns(bad), &["linux.uidMappings[", why]);
        }
        // The whole range is allowed: 2^32 - 1 ids.
        accepted(user_ns(json!([map(0, 0, u32::MAX)])));
        let many = |n: u32| (0..n).map(|i| map(i, i, 1)).collect::<Vec<_>>();
        accepted(user_ns(json!(many(340))));
        refused(user_ns(json!(many(341))), &["341 mappings"]);
        let long: Vec<_> = (0..200).map(|i| map(i, 4_000_000_000 + i, 1)).collect();
        accepted(user_ns(json!(long)));
        let long: Vec<_> = (0..340).map(|i| map(i, 4_000_000_000 + i, 1)).collect();
        refused(user_ns(json!(long)), &["bytes when written"]);
    }

    #[test]
    fn users_must_be_mapped() {
        let mut j = user_ns(json!([map(0, 100_000, 1000)]));
        j["process"]["user"] = json!({"uid": 1000});
        refused(j.clone(), &["process.user.uid", "1000", "no mapping"]);
        j["process"]["user"] = json!({"uid": 999, "additionalGids": [70000]});
        refused(j.clone(), &["additionalGids[0]", "no mapping"]);
        j["process"]["user"] = json!({"uid": 999, "gid": 1});
        accepted(j);
    }
}
