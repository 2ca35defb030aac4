//! A list of devices, as `NVIDIA_VISIBLE_DEVICES` holds it: special words, GPUs, CDI names.

use super::{GpuId, Gpus};
use crate::nvidia::cdi::parse_qualified;
use crate::{Error, Result};

/// One item of a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Item {
    /// As written, trimmed.
    pub text: String,
    /// Where, for a person.
    pub from: String,
}

impl Item {
    pub fn new(text: impl Into<String>, from: impl Into<String>) -> Self {
        Item {
            text: text.into(),
            from: from.into(),
        }
    }
}

/// What a list comes to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Devices {
    /// An empty list, or one with `void`: no GPU is asked for.
    Untouched,
    Gpus(Gpus),
    /// Names to be resolved in the CDI folders, each once; never empty.
    Cdi(Vec<Item>),
}

/// The kind whose names stand for the toolkit's discovery at run time ("automatic" CDI devices, in
/// nvidia-container-toolkit's internal/modifier/cdi.go); no file holds them.
const AUTOMATIC: &str = "runtime.nvidia.com/gpu=";

/// Reads a list. `void` anywhere leaves the cell untouched; else the first `all` or `none` settles it,
/// whatever else is there.
///
/// # Errors
/// An item that is no device; CDI names next to others.
pub(super) fn read(items: Vec<Item>) -> Result<Devices> {
    if items.is_empty() || items.iter().any(|item| item.text == "void") {
        return Ok(Devices::Untouched);
    }
    match items.iter().find_map(|item| word(&item.text)) {
        Some(gpus) => Ok(Devices::Gpus(gpus)),
        None => sort(items),
    }
}

/// `all` (of any case, as libnvidia-container takes it) or `none`.
fn word(text: &str) -> Option<Gpus> {
    if text.eq_ignore_ascii_case("all") {
        Some(Gpus::All)
    } else if text == "none" {
        Some(Gpus::None)
    } else {
        None
    }
}

/// Sorts items that are no special words into CDI names and GPUs.
///
/// # Errors
/// As [`read`].
pub(super) fn sort(items: Vec<Item>) -> Result<Devices> {
    let mut ids = Vec::new();
    let mut settled = None;
    let mut names: Vec<Item> = Vec::new();
    let mut other = None;
    for item in items {
        let automatic = item.text.strip_prefix(AUTOMATIC);
        if automatic.is_none() && item.text.contains('=') {
            if !qualified(&item.text) {
                return Err(Error::msg(format!(
                    "{}: {:?} is not a CDI name (vendor/class=name)",
                    item.from, item.text
                )));
            }
            if names.iter().all(|known| known.text != item.text) {
                names.push(item);
            }
            continue;
        }
        let id = automatic.unwrap_or(&item.text);
        match word(id).filter(|_| automatic.is_some()) {
            Some(gpus) => settled = settled.or(Some(gpus)),
            None => {
                let id = GpuId::parse(id).map_err(|e| Error::msg(format!("{}: {e}", item.from)))?;
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        other = other.or(Some(item));
    }
    match (other, names.first()) {
        (Some(plain), Some(name)) => Err(Error::msg(format!(
            "{}: {} can't be asked for together with the CDI device {}",
            plain.from, plain.text, name.text
        ))),
        (None, Some(_)) => Ok(Devices::Cdi(names)),
        (Some(_), None) => Ok(Devices::Gpus(settled.unwrap_or(Gpus::List(ids)))),
        (None, None) => Ok(Devices::Untouched),
    }
}

/// Is it a qualified CDI name?
pub fn qualified(text: &str) -> bool {
    parse_qualified(text).is_ok()
}

/// Is the vendor of a qualified name NVIDIA? The device plugin's is `k8s.device-plugin.nvidia.com`.
pub(super) fn is_nvidia(name: &str) -> bool {
    let vendor = name.split('/').next().unwrap_or_default();
    vendor == "nvidia.com" || vendor.ends_with(".nvidia.com")
}
