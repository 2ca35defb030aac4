//! `linux.devices` and the defaults of the runtime-spec → nodes and links below /dev.

use super::{cstr, is_bind};
use crate::plan::{DevPlan, MountStep, MountWhat, Node};
use crate::{Error, Result};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The nodes every container has (runtime-spec, config-linux, Default Devices).
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Links every container has (runtime-spec, runtime-linux, "Dev symbolic links"), and /dev/ptmx.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

pub(super) fn dev(spec: &Spec, mounts: &[MountStep], bind: bool) -> Result<DevPlan> {
    // A /dev bound from elsewhere is somebody else's: nothing is made in it (runc does the same;
    // CVE-2026-41579 is what happens otherwise).
    let bound = mounts.iter().any(|m| {
        matches!(m.what, MountWhat::Bind { .. })
            && m.target.as_bytes().trim_ascii_end_slash() == b"/dev"
    });
    if bound {
        return Ok(DevPlan::default());
    }
    let mut nodes: Vec<Node> = Vec::new();
    for (path, major, minor) in DEFAULT {
        nodes.push(Node {
            path: cstr("linux.devices", path.as_bytes())?,
            mode: libc::S_IFCHR | 0o666,
            rdev: libc::makedev(major, minor),
            uid: 0,
            gid: 0,
        });
    }
    for node in own(spec)? {
        match nodes.iter_mut().find(|n| n.path == node.path) {
            Some(slot) => *slot = node,
            None => nodes.push(node),
        }
    }
    let links = LINKS
        .iter()
        .map(|(path, to)| {
            Ok((
                cstr("linux.devices", path.as_bytes())?,
                cstr("linux.devices", to.as_bytes())?,
            ))
        })
        .collect::<Result<Vec<(CString, CString)>>>()?;
    Ok(DevPlan { nodes, bind, links })
}

/// The nodes of an edit, for a container made from the configuration `of`.
pub(super) fn added(edit: &Spec, of: &Spec, bind: bool) -> Result<DevPlan> {
    // As in [`dev`].
    let mut mounts = of.mounts().iter().flatten();
    if mounts.any(|m| is_bind(m) && m.destination() == Path::new("/dev")) {
        return Ok(DevPlan::default());
    }
    Ok(DevPlan {
        nodes: own(edit)?,
        bind,
        links: Vec::new(),
    })
}

/// What `linux.devices` lists.
fn own(spec: &Spec) -> Result<Vec<Node>> {
    let linux = spec.linux().as_ref();
    let list = linux.and_then(|l| l.devices().as_deref());
    let mut nodes = Vec::new();
    for (i, d) in list.unwrap_or_default().iter().enumerate() {
        let node = node(i, d)?;
        // /dev/ptmx must be the container's own, a link to pts/ptmx (runtime-spec).
        if node.path.as_bytes() != b"/dev/ptmx" {
            nodes.push(node);
        }
    }
    Ok(nodes)
}

fn node(i: usize, d: &LinuxDevice) -> Result<Node> {
    let at = |field: &str| format!("linux.devices[{i}].{field}");
    if !d.path().is_absolute() {
        return Err(Error::config(at("path"), "must be absolute"));
    }
    let kind = match d.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => {
            return Err(Error::config(at("type"), "must be c, b, u or p"));
        }
    };
    let number = |field: &str, v: i64| {
        u32::try_from(v).map_err(|_| Error::config(at(field), format!("{v} is out of range")))
    };
    let rdev = if kind == libc::S_IFIFO {
        0
    } else {
        libc::makedev(number("major", d.major())?, number("minor", d.minor())?)
    };
    Ok(Node {
        path: cstr(at("path"), d.path().as_os_str().as_bytes())?,
        // Only permission bits: the type is `type`'s.
        mode: kind | d.file_mode().unwrap_or(0o666) & 0o7777,
        rdev,
        uid: d.uid().unwrap_or(0),
        gid: d.gid().unwrap_or(0),
    })
}

trait TrimSlash {
    fn trim_ascii_end_slash(&self) -> &[u8];
}

impl TrimSlash for [u8] {
    fn trim_ascii_end_slash(&self) -> &[u8] {
        let n = self.iter().rev().take_while(|b| **b == b'/').count();
        &self[..self.len() - n]
    }
}
