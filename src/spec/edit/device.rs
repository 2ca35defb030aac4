//! Device nodes: what is missing in one is read from the host, and the cell is let use it.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Process, Spec};

use super::{DeviceNode, linux, resources, same_path};
use crate::{Error, Result};

/// Adds a node: type and numbers from the host where they are missing, the owner from the process
/// (CDI: a device without an owner belongs to the container's user), and the device-cgroup rule.
pub(super) fn add_device(spec: &mut Spec, node: &DeviceNode) -> Result<()> {
    if !node.path.is_absolute() {
        return Err(Error::msg(format!(
            "device path {} is not an absolute path",
            node.path.display()
        )));
    }
    let mut device = resolve_node(node)?;
    if let Some(user) = spec.process().as_ref().map(Process::user) {
        if device.uid().is_none() && user.uid() > 0 {
            device.set_uid(Some(user.uid()));
        }
        if device.gid().is_none() && user.gid() > 0 {
            device.set_gid(Some(user.gid()));
        }
    }
    let linux = linux(spec);
    let devices = linux.devices_mut().get_or_insert_with(Vec::new);
    devices.retain(|d| !same_path(d.path(), &node.path));
    devices.push(device.clone());
    if let Some(rule) = rule(node, &device) {
        add_rule(linux, rule);
    }
    Ok(())
}

impl DeviceNode {
    /// The device-cgroup rule that lets a cell use the node; none when it says so, or is no device.
    ///
    /// # Errors
    /// Its numbers are the host node's, which can't be read.
    pub fn rule(&self) -> Result<Option<LinuxDeviceCgroup>> {
        Ok(rule(self, &resolve_node(self)?))
    }
}

fn rule(node: &DeviceNode, device: &LinuxDevice) -> Option<LinuxDeviceCgroup> {
    let access = match node.permissions.as_deref() {
        // CDI 1.1, `permissions`: the node is there, but no rule lets the cell use it.
        Some("none") => return None,
        None | Some("") => "rwm",
        Some(access) => access,
    };
    if !matches!(device.typ(), LinuxDeviceType::B | LinuxDeviceType::C) {
        return None;
    }
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true)
        .set_typ(Some(device.typ()))
        .set_major(Some(device.major()))
        .set_minor(Some(device.minor()))
        .set_access(Some(access.to_owned()));
    Some(rule)
}

/// The last rule that matches decides, so a rule that stands already is moved to the end.
pub(super) fn add_rule(linux: &mut Linux, rule: LinuxDeviceCgroup) {
    let rules = resources::resources(linux)
        .devices_mut()
        .get_or_insert_with(Vec::new);
    rules.retain(|r| *r != rule);
    rules.push(rule);
}

/// The node with its type and numbers settled (container-device-interface, `fillMissingInfo`).
fn resolve_node(node: &DeviceNode) -> Result<LinuxDevice> {
    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.clone())
        .set_file_mode(node.file_mode)
        .set_uid(node.uid)
        .set_gid(node.gid);
    let (major, minor) = (node.major.unwrap_or(0), node.minor.unwrap_or(0));
    if let Some(typ) = node.typ
        && (major != 0 || typ == LinuxDeviceType::P)
    {
        device.set_typ(typ).set_major(major).set_minor(minor);
        return Ok(device);
    }
    let host = node.host_path.as_deref().unwrap_or(&node.path);
    let found = host_node(host)?;
    if let Some(typ) = node.typ
        && typ != found.typ
        && !(typ == LinuxDeviceType::U && found.typ == LinuxDeviceType::C)
    {
        return Err(Error::msg(format!(
            "device {}: {} is a {} device, {} was asked for",
            node.path.display(),
            host.display(),
            found.typ.as_str(),
            typ.as_str()
        )));
    }
    device.set_typ(found.typ);
    if found.typ != LinuxDeviceType::P {
        device.set_major(found.major).set_minor(found.minor);
    }
    Ok(device)
}

/// What `lstat` says of a device node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HostNode {
    /// Block, character or FIFO.
    pub typ: LinuxDeviceType,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Reads a device node of the host without following a last link.
///
/// # Errors
/// The node is missing, or is no device and no FIFO.
pub fn host_node(path: &Path) -> Result<HostNode> {
    let meta = std::fs::symlink_metadata(path)
        .map_err(|e| Error::step("device node", path.display().to_string(), e))?;
    let kind = meta.file_type();
    let typ = if kind.is_block_device() {
        LinuxDeviceType::B
    } else if kind.is_char_device() {
        LinuxDeviceType::C
    } else if kind.is_fifo() {
        LinuxDeviceType::P
    } else {
        return Err(Error::msg(format!(
            "device {}: not a device node",
            path.display()
        )));
    };
    Ok(HostNode {
        typ,
        major: i64::from(nix::libc::major(meta.rdev())),
        minor: i64::from(nix::libc::minor(meta.rdev())),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
    })
}
