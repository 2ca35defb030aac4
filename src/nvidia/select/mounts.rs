//! A device list written as mounts: the source is /dev/null, the destination names the device. An image
//! can't make these, unlike variables.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Spec;

use super::devices::Item;
use super::{environment, qualified};
use crate::{Error, Result};

/// The folder under which the destinations are.
pub const ROOT: &str = "/var/run/nvidia-container-devices";

/// What the mounts name.
#[derive(Clone, Debug, Default)]
pub(super) struct Listed {
    /// Devices: what follows [`ROOT`], or a CDI name.
    pub items: Vec<Item>,
    /// IMEX channels.
    pub imex: Vec<u32>,
    /// The destinations of all these mounts, as written.
    pub mounts: Vec<PathBuf>,
}

/// Reads the mounts of a configuration.
///
/// # Errors
/// A destination under `cdi/` or `imex/` that names no device or channel.
pub(super) fn listed(spec: &Spec) -> Result<Listed> {
    let mut all = Listed::default();
    for (at, mount) in spec.mounts().iter().flatten().enumerate() {
        let null = mount
            .source()
            .as_deref()
            .is_some_and(|source| clean(source) == Path::new("/dev/null"));
        let destination = clean(mount.destination());
        let Ok(device) = destination.strip_prefix(ROOT) else {
            continue;
        };
        if !null || device.as_os_str().is_empty() {
            continue;
        }
        let bad = |why: &str| Error::config(format!("mounts[{at}].destination"), why);
        let device = device.to_str().ok_or_else(|| bad("not UTF-8"))?;
        if let Some(channel) = device.strip_prefix("imex/") {
            let channels = environment::channels(std::iter::once(channel));
            for channel in channels.map_err(|e| bad(&e.to_string()))? {
                if !all.imex.contains(&channel) {
                    all.imex.push(channel);
                }
            }
        } else {
            let name = match device.strip_prefix("cdi/") {
                Some(rest) => {
                    cdi_name(rest).ok_or_else(|| bad(&format!("{rest:?} names no CDI device")))?
                }
                None => device.to_string(),
            };
            let from = format!("mount {ROOT}/{}", device.escape_debug());
            all.items.push(Item::new(name, from));
        }
        all.mounts.push(mount.destination().clone());
    }
    Ok(all)
}

/// `vendor/class/name`, or a qualified name as it is.
fn cdi_name(text: &str) -> Option<String> {
    let name = if text.contains('=') {
        text.to_string()
    } else {
        let mut parts = text.splitn(3, '/');
        format!("{}/{}={}", parts.next()?, parts.next()?, parts.next()?)
    };
    qualified(&name).then_some(name)
}

/// The path without `.`, `..` and double slashes, by its letters alone (Go's filepath.Clean): it is a
/// name here, nothing is opened by it.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean
}
