//! The rules of a CDI file that its types don't hold (CDI 1.1, "CDI JSON Specification").
//!
//! Pure: whether a path is there is known only when a cell is made.

use std::collections::HashSet;
use std::path::Path;

use oci_spec::runtime::LinuxDeviceType;

use super::names::{check_device, parse_kind};
use super::spec::{CdiSpec, Version};
use crate::spec::edit::{ContainerEdits, EditHook};

/// Checks a file's content.
///
/// # Errors
/// The first broken rule, with its field; a version that isn't known, or is below the one that a field
/// needs, with that version.
pub fn validate(spec: &CdiSpec) -> Result<(), String> {
    let declared = Version::parse(&spec.cdi_version).ok_or_else(|| {
        format!(
            "cdiVersion: {:?} is not known, 0.3.0 to 1.1.0 are",
            spec.cdi_version
        )
    })?;
    let (needed, field) = spec.needs();
    if declared < needed {
        return Err(format!(
            "{field} needs cdiVersion {needed}, the file says {declared}"
        ));
    }
    parse_kind(&spec.kind).map_err(|why| format!("kind: {why}"))?;
    edits("containerEdits", &spec.container_edits)?;
    if spec.devices.is_empty() {
        return Err("devices: at least one is needed".to_owned());
    }
    let mut seen = HashSet::new();
    for (i, device) in spec.devices.iter().enumerate() {
        let at = format!("devices[{i}]");
        check_device(&device.name).map_err(|why| format!("{at}.name: {why}"))?;
        if !seen.insert(&device.name) {
            return Err(format!("{at}.name: {:?} is there twice", device.name));
        }
        let at = format!("{at}.containerEdits");
        if device.container_edits == ContainerEdits::default() {
            return Err(format!("{at}: a device needs at least one edit"));
        }
        edits(&at, &device.container_edits)?;
    }
    Ok(())
}

fn edits(at: &str, edits: &ContainerEdits) -> Result<(), String> {
    env(at, &edits.env)?;
    for (i, node) in edits.device_nodes.iter().enumerate() {
        let at = format!("{at}.deviceNodes[{i}]");
        absolute(&format!("{at}.path"), &node.path)?;
        if let Some(host) = &node.host_path {
            absolute(&format!("{at}.hostPath"), host)?;
        }
        if node.typ == Some(LinuxDeviceType::A) {
            return Err(format!("{at}.type: \"a\" is not one of b, c, u, p"));
        }
        let access = node.permissions.as_deref().unwrap_or_default();
        if access != "none" && access.chars().any(|c| !"rwm".contains(c)) {
            return Err(format!(
                "{at}.permissions: expected letters of rwm or none, found {access:?}"
            ));
        }
    }
    for (i, mount) in edits.mounts.iter().enumerate() {
        let at = format!("{at}.mounts[{i}]");
        // Of a mount that is no bind mount this is a name, as `tmpfs`.
        if mount.host_path.as_os_str().is_empty() {
            return Err(format!("{at}.hostPath: is empty"));
        }
        absolute(&format!("{at}.containerPath"), &mount.container_path)?;
    }
    for (i, hook) in edits.hooks.iter().enumerate() {
        check_hook(&format!("{at}.hooks[{i}]"), hook)?;
    }
    if let Some(clos) = edits.intel_rdt.as_ref().and_then(|r| r.clos_id.as_deref()) {
        // A folder of resctrl; "/" is its root.
        let bad = clos.len() >= 4096 || matches!(clos, "." | "..") || clos.contains(['/', '\n']);
        if bad && clos != "/" {
            return Err(format!("{at}.intelRdt.closID: {clos:?} is not a file name"));
        }
    }
    let (mut hosts, mut names) = (HashSet::new(), HashSet::new());
    for (i, dev) in edits.net_devices.iter().enumerate() {
        let at = format!("{at}.netDevices[{i}]");
        let host = dev.host_interface_name.as_str();
        let name = dev.name.as_deref().unwrap_or_default();
        for (field, value, seen) in [
            ("hostInterfaceName", host, &mut hosts),
            ("name", name, &mut names),
        ] {
            if value.is_empty() {
                return Err(format!("{at}.{field}: is empty"));
            }
            if !seen.insert(value) {
                return Err(format!("{at}.{field}: {value:?} is there twice"));
            }
        }
    }
    Ok(())
}

fn check_hook(at: &str, hook: &EditHook) -> Result<(), String> {
    const STAGES: [&str; 6] = [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ];
    if !STAGES.contains(&hook.hook_name.as_str()) {
        return Err(format!(
            "{at}.hookName: {:?} is not one of {}",
            hook.hook_name,
            STAGES.join(", ")
        ));
    }
    absolute(&format!("{at}.path"), &hook.path)?;
    if hook.timeout.is_some_and(|t| t <= 0) {
        return Err(format!("{at}.timeout: must be greater than 0"));
    }
    env(at, &hook.env)
}

fn env(at: &str, env: &[String]) -> Result<(), String> {
    match env.iter().position(|pair| pair.find('=').unwrap_or(0) == 0) {
        Some(i) => Err(format!("{at}.env[{i}]: {:?} is not KEY=VALUE", env[i])),
        None => Ok(()),
    }
}

fn absolute(at: &str, path: &Path) -> Result<(), String> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(format!(
        "{at}: {:?} is not an absolute path",
        path.display()
    ))
}
