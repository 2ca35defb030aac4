//! Capabilities, `--security-opt`, devices.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, LinuxDeviceCgroup, LinuxDeviceType, Spec,
};

use super::{Flags, Host, invalid, profile};
use crate::nvidia::select;
use crate::spec::default::seccomp;
use crate::spec::edit::{Change, DeviceNode, Edit, HostNode};
use crate::{Error, Result};

/// A capability by name, with or without `CAP_`, in any case.
fn capability(name: &str) -> Result<Capability> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    bare.parse()
        .map_err(|_| Error::msg(format!("unknown capability: \"CAP_{bare}\"")))
}

fn split_all(names: &[String]) -> Result<(bool, Capabilities)> {
    let mut all = false;
    let mut out = Capabilities::new();
    for name in names {
        if name.eq_ignore_ascii_case("all") {
            all = true;
        } else {
            out.insert(capability(name)?);
        }
    }
    Ok((all, out))
}

/// The capability sets once the flags and the user are known (moby `oci/caps`, `TweakCapabilities`, and
/// `oci.SetCapabilities`): a user other than root keeps only the bounding set, and what the bundle gave
/// as ambient. `None` when nothing asks for a change.
pub(super) fn capabilities(
    flags: &Flags,
    spec: &Spec,
    uid: u32,
    host: &dyn Host,
) -> Result<Option<(Edit, Capabilities)>> {
    let old = spec
        .process()
        .as_ref()
        .and_then(|p| p.capabilities().as_ref());
    let asked = flags.privileged || !flags.cap_add.is_empty() || !flags.cap_drop.is_empty();
    if !asked && (flags.user.is_none() || old.is_none()) {
        return Ok(None);
    }
    let (add_all, add) = split_all(&flags.cap_add)?;
    let (drop_all, drop) = split_all(&flags.cap_drop)?;
    let base = old.and_then(|c| c.bounding().clone()).unwrap_or_default();
    let set: Capabilities = if flags.privileged {
        // As Docker: nothing is taken from a privileged container.
        host.capabilities().into_iter().collect()
    } else if add_all {
        let all = host.capabilities().into_iter();
        all.filter(|c| !drop.contains(c)).collect()
    } else if drop_all {
        add
    } else {
        let kept = base.into_iter().filter(|c| !drop.contains(c));
        kept.chain(add).collect()
    };
    let keep = |sets: Option<&Option<Capabilities>>| -> Capabilities {
        let old = sets.and_then(Option::as_ref).cloned().unwrap_or_default();
        old.intersection(&set).copied().collect()
    };
    let ambient = keep(old.map(LinuxCapabilities::ambient));
    let held = if uid == 0 {
        set.clone()
    } else {
        ambient.clone()
    };
    let mut caps = LinuxCapabilities::default();
    caps.set_bounding(Some(set.clone()))
        .set_permitted(Some(held.clone()))
        .set_effective(Some(held))
        .set_inheritable(Some(keep(old.map(LinuxCapabilities::inheritable))))
        .set_ambient(Some(ambient));
    let mut reason: Vec<String> = Vec::new();
    reason.extend(flags.privileged.then(|| "--privileged".to_owned()));
    reason.extend(flags.cap_drop.iter().map(|c| format!("--cap-drop {c}")));
    reason.extend(flags.cap_add.iter().map(|c| format!("--cap-add {c}")));
    if !asked {
        reason.extend(flags.user.iter().map(|u| format!("-u {u}")));
    }
    Ok(Some((
        Edit::new(reason.join(" "), Change::Capabilities(caps)),
        set,
    )))
}

/// The filter for other capabilities than the bundle's, where the bundle has the one that gpucell made
/// for it: Docker's profile allows more calls with more capabilities (moby `setupSeccomp`). A filter of
/// the bundle's own stays.
pub(super) fn own_filter(spec: &Spec, old: &Capabilities, new: &Capabilities) -> Option<Edit> {
    let filter = spec.linux().as_ref()?.seccomp().as_ref()?;
    if old == new || *filter != seccomp::profile(old) {
        return None;
    }
    let reason = "the default seccomp profile for these capabilities";
    Some(Edit::new(
        reason,
        Change::Seccomp(Some(seccomp::profile(new))),
    ))
}

/// `--security-opt` (moby `daemon/daemon_unix.go`, `parseSecurityOpt`). `caps` are the bounding
/// capabilities, which Docker's seccomp profiles ask about.
pub(super) fn options(
    flags: &Flags,
    spec: &Spec,
    caps: &Capabilities,
    host: &dyn Host,
    warnings: &mut Vec<String>,
) -> Result<Vec<Edit>> {
    let mut out = Vec::new();
    let mut label: Option<String> = None;
    for text in &flags.security_opt {
        let reason = format!("--security-opt {text}");
        let unknown = || Error::msg(format!("invalid --security-opt: {text:?}"));
        if text == "no-new-privileges" {
            out.push(Edit::new(reason, Change::NoNewPrivileges(true)));
            continue;
        }
        // Docker still reads the old spelling with a colon.
        let at = text.find(['=', ':']).ok_or_else(unknown)?;
        let (key, value) = text.split_at_checked(at).ok_or_else(unknown)?;
        let value = value.get(1..).ok_or_else(unknown)?;
        let change = match (key, value) {
            ("no-new-privileges", "true" | "1") => Change::NoNewPrivileges(true),
            ("no-new-privileges", "false" | "0") => Change::NoNewPrivileges(false),
            ("systempaths", "unconfined") => Change::Unmask,
            ("apparmor", "unconfined") => Change::Apparmor(None),
            ("apparmor", name) if !name.is_empty() => Change::Apparmor(Some(name.to_owned())),
            ("seccomp", "unconfined") => Change::Seccomp(None),
            ("seccomp", file) if !file.is_empty() => {
                let json = host.read(Path::new(file)).map_err(|e| {
                    Error::msg(format!("opening seccomp profile ({file}) failed: {e}"))
                })?;
                let filter = profile::parse(&json, caps, host.kernel())
                    .map_err(|why| Error::msg(format!("seccomp profile {file}: {why}")))?;
                Change::Seccomp(Some(filter))
            }
            ("label", "disable") => Change::Selinux {
                process: None,
                mount: None,
            },
            ("label", part) if !host.selinux() => {
                warnings.push(format!(
                    "--security-opt label={part} is ignored: SELinux is not enabled"
                ));
                continue;
            }
            ("label", part) => {
                let base = label.take().or_else(|| {
                    let old = spec.process().as_ref()?.selinux_label().clone();
                    old.filter(|l| !l.is_empty())
                });
                let new = relabelled(base, part).ok_or_else(unknown)?;
                label = Some(new.clone());
                Change::Selinux {
                    process: Some(new),
                    mount: spec.linux().as_ref().and_then(|l| l.mount_label().clone()),
                }
            }
            _ => return Err(unknown()),
        };
        out.push(Edit::new(reason, change));
    }
    Ok(out)
}

/// One part of an SELinux context replaced: `type:X`, `user:X`, `role:X`, `level:X`.
fn relabelled(base: Option<String>, part: &str) -> Option<String> {
    let base = base.unwrap_or_else(|| "system_u:system_r:container_t:s0".to_owned());
    // user:role:type:level, and the level may hold colons itself.
    let mut parts: Vec<&str> = base.splitn(4, ':').collect();
    parts.resize(4, "");
    let (key, value) = part.split_once(':')?;
    let at = match key {
        "user" => 0,
        "role" => 1,
        "type" => 2,
        "level" => 3,
        _ => return None,
    };
    *parts.get_mut(at)? = value;
    Some(parts.join(":"))
}

/// Names in /dev that `--privileged` leaves out: other file systems, links made anew, the console (runc
/// libcontainer/devices, `GetDevices`).
const NOT_PASSED: [&str; 9] = [
    "pts",
    "shm",
    "fd",
    "mqueue",
    ".lxc",
    ".lxd-mounts",
    ".udev",
    "console",
    "ptmx",
];

/// `--privileged`, all of it: every device of the host, no filter, profile or label, no masked and
/// read-only paths, /sys and the cgroups writable (moby `oci_linux.go`, `WithDevices`, `WithMounts`). The
/// capabilities are [`capabilities`]'.
pub(super) fn privileged(flags: &Flags, spec: &Spec, host: &dyn Host) -> Result<Vec<Edit>> {
    if !flags.privileged {
        return Ok(Vec::new());
    }
    let mut changes = vec![
        Change::Seccomp(None),
        Change::Apparmor(None),
        Change::Selinux {
            process: None,
            mount: None,
        },
        Change::Unmask,
    ];
    for mount in spec.mounts().iter().flatten() {
        let typ = mount.typ().as_deref();
        let options = mount.options().clone().unwrap_or_default();
        if !matches!(typ, Some("sysfs" | "cgroup" | "cgroup2" | "proc")) {
            continue;
        }
        if options.iter().any(|o| o == "ro") {
            let mut mount = mount.clone();
            mount.set_options(Some(options.into_iter().filter(|o| o != "ro").collect()));
            changes.push(Change::Mount(mount));
        }
    }
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true)
        .set_typ(Some(LinuxDeviceType::A))
        .set_access(Some("rwm".to_owned()));
    changes.push(Change::DeviceRule(rule));
    for path in host.nodes_in(Path::new("/dev"))? {
        let below = path.strip_prefix("/dev").unwrap_or(&path);
        let first = below.components().next().map(|c| c.as_os_str());
        if first.is_none_or(|f| NOT_PASSED.iter().any(|n| f == *n)) {
            continue;
        }
        // One that vanished meanwhile is no error; nobody asked for it by name.
        let Ok(node) = host.node(&path) else { continue };
        if node.typ != LinuxDeviceType::P {
            changes.push(Change::Device(device_node(path.clone(), path, node, "rwm")));
        }
    }
    let edit = |change| Edit::new("--privileged", change);
    Ok(changes.into_iter().map(edit).collect())
}

/// The node with the host's owner and mode, as Docker makes it.
fn device_node(target: PathBuf, path: PathBuf, node: HostNode, permissions: &str) -> DeviceNode {
    DeviceNode {
        path: target,
        host_path: Some(path),
        typ: Some(node.typ),
        major: Some(node.major),
        minor: Some(node.minor),
        file_mode: Some(node.mode),
        permissions: Some(permissions.to_owned()),
        uid: Some(node.uid),
        gid: Some(node.gid),
    }
}

/// `--device` and `--device-cgroup-rule`.
pub(super) fn devices(flags: &Flags, host: &dyn Host) -> Result<Vec<Edit>> {
    let mut out = Vec::new();
    for text in flags.device.iter().filter(|d| !select::qualified(d)) {
        let (from, to, permissions) = device_parts(text)?;
        let reason = format!("--device {text}");
        let gather = |e: Error| {
            Error::msg(format!(
                "error gathering device information while adding custom device {from:?}: {e}"
            ))
        };
        let is_dir = host.owner(&from).is_ok_and(|o| o.dir);
        let nodes = if is_dir {
            host.nodes_in(&from).map_err(gather)?
        } else {
            vec![from.clone()]
        };
        for path in nodes {
            let node = host.node(&path).map_err(gather)?;
            let below = path.strip_prefix(&from).unwrap_or(Path::new(""));
            let target = if is_dir { to.join(below) } else { to.clone() };
            out.push(Edit::new(
                reason.clone(),
                Change::Device(device_node(target, path, node, &permissions)),
            ));
        }
    }
    for text in &flags.device_cgroup_rule {
        let rule = device_rule(text).ok_or_else(|| {
            invalid(
                text,
                "--device-cgroup-rule",
                format!("invalid device cgroup format '{text}'"),
            )
        })?;
        let reason = format!("--device-cgroup-rule '{text}'");
        out.push(Edit::new(reason, Change::DeviceRule(rule)));
    }
    Ok(out)
}

fn access(text: &str) -> bool {
    let once = |c| text.matches(c).count() <= 1;
    !text.is_empty() && text.chars().all(|c| "rwm".contains(c)) && "rwm".chars().all(once)
}

/// `HOST[:CELL[:rwm]]`, and `HOST:rwm` (docker/cli `parseLinuxDevice`).
fn device_parts(text: &str) -> Result<(PathBuf, PathBuf, String)> {
    let bad = |why: String| invalid(text, "--device", why);
    let parts: Vec<&str> = text.split(':').collect();
    let (from, to, permissions) = match parts.as_slice() {
        [from] => (*from, *from, "rwm"),
        [from, mode] if access(mode) => (*from, *from, *mode),
        [from, to] => (*from, *to, "rwm"),
        [from, to, mode] => (*from, *to, *mode),
        _ => return Err(bad(format!("invalid device specification: {text}"))),
    };
    if !from.starts_with('/') && from.contains('=') {
        return Err(bad(format!(
            "{from} is neither a path nor a CDI device (vendor/class=name)"
        )));
    }
    if !access(permissions) {
        return Err(bad(format!("bad mode specified: {permissions}")));
    }
    for path in [from, to] {
        if !Path::new(path).is_absolute() {
            return Err(bad(format!("{path} is not an absolute path")));
        }
    }
    Ok((from.into(), to.into(), permissions.to_owned()))
}

/// `a|b|c MAJOR:MINOR rwm`, with `*` for any number.
fn device_rule(text: &str) -> Option<LinuxDeviceCgroup> {
    let mut words = text.split(' ');
    let typ = match words.next()? {
        "a" => LinuxDeviceType::A,
        "b" => LinuxDeviceType::B,
        "c" => LinuxDeviceType::C,
        _ => return None,
    };
    let (major, minor) = words.next()?.split_once(':')?;
    let permissions = words.next()?;
    if words.next().is_some() || !access(permissions) {
        return None;
    }
    let number = |s: &str| match s {
        "*" => Some(None),
        _ => s.parse::<u32>().ok().map(|n| Some(i64::from(n))),
    };
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true)
        .set_typ(Some(typ))
        .set_major(number(major)?)
        .set_minor(number(minor)?)
        .set_access(Some(permissions.to_owned()));
    Some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::default;

    #[test]
    fn the_default_filter_follows_the_capabilities() {
        let old: Capabilities = default::DEFAULT_CAPABILITIES.into_iter().collect();
        let mut new = old.clone();
        new.insert(Capability::SysPtrace);
        let mut spec = default::docker_like();
        assert!(own_filter(&spec, &old, &old).is_none());
        assert!(own_filter(&spec, &old, &new).is_some());
        // A filter that is not ours is left alone, and so is its absence.
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(Some(Default::default()));
        }
        assert!(own_filter(&spec, &old, &new).is_none());
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(None);
        }
        assert!(own_filter(&spec, &old, &new).is_none());
    }
}
