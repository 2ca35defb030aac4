//! Our own CDI file: what discovery found, as other runtimes read it.
//!
//! Which devices there are, and what they need, is [`crate::nvidia::inventory`]'s and
//! [`crate::nvidia::files`]' to say ([`of_host`] asks them); [`generate`] and [`write`] are pure.

use std::collections::BTreeMap;

use super::load::Format;
use super::spec::{CdiSpec, Device};
use super::validate::validate;
use crate::nvidia::capabilities::Capabilities;
use crate::nvidia::files::{self, Place};
use crate::nvidia::inventory::{Chosen, Host, Inventory};
use crate::spec::edit::ContainerEdits;
use crate::{Error, Result};

/// The kind that `nvidia-ctk cdi generate` writes.
pub const KIND: &str = "nvidia.com/gpu";

/// The name of the device that is all others together.
pub const ALL: &str = "all";

/// A GPU or MIG device to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its names: index and UUID, or `GPU:MIG`. A device of the file is written for each.
    pub names: Vec<String>,
    /// What it needs beside the common edits.
    pub edits: ContainerEdits,
}

/// The CDI file of this host, with all that its driver has.
///
/// # Errors
/// No driver is loaded, a part of it isn't there, or as [`generate`].
pub fn of_host(host: &Host) -> Result<CdiSpec> {
    let inv = Inventory::read(host)?;
    let files = files::find(host, &inv)?;
    let caps = Capabilities::ALL;
    let mut common = files.common_edits(&inv, caps, &Place::Host)?;
    // A runtime that looks at the environment as well must not add to what the file says.
    common.env.push("NVIDIA_VISIBLE_DEVICES=void".to_owned());
    let entry = |chosen: Chosen| {
        Ok(Entry {
            names: names(&chosen),
            edits: files::gpu_edits(&inv, &chosen, caps, &Place::Host)?,
        })
    };
    let entries: Result<Vec<Entry>> = inv.all()?.into_iter().map(entry).collect();
    generate(common, entries?)
}

/// The UUID of a MIG device is known to NVML only.
fn names(chosen: &Chosen) -> Vec<String> {
    let gpu = &chosen.gpu;
    match &chosen.mig {
        Some(mig) => vec![format!("{}:{}", gpu.index, mig.index)],
        None => std::iter::once(gpu.index.to_string())
            .chain(gpu.uuid.clone())
            .collect(),
    }
}

/// The CDI file of the host's devices: one device for each name, and `all` with the edits of every one
/// of them. Its version is the lowest that holds the content, for readers that are older than we are.
/// A GPU that is split is not among `entries`; its MIG devices are.
///
/// # Errors
/// There is no device; a name or an edit that a CDI file can't hold; a name that is there twice.
pub fn generate(common: ContainerEdits, entries: Vec<Entry>) -> Result<CdiSpec> {
    if entries.is_empty() {
        return Err(Error::msg("no GPU was found: a CDI file needs a device"));
    }
    let mut all = ContainerEdits::default();
    let mut devices = Vec::new();
    for Entry { names, edits } in entries {
        merge(&mut all, &edits);
        devices.extend(names.into_iter().map(|name| device(name, edits.clone())));
    }
    devices.push(device(ALL.to_owned(), all));
    let mut spec = CdiSpec {
        cdi_version: String::new(),
        kind: KIND.to_owned(),
        annotations: BTreeMap::new(),
        devices,
        container_edits: common,
    };
    spec.cdi_version = spec.needs().0.as_str().to_owned();
    validate(&spec).map_err(|why| Error::msg(format!("CDI file: {why}")))?;
    Ok(spec)
}

/// The text of a CDI file, with a line end.
///
/// # Errors
/// A path that is not UTF-8: neither notation can hold it.
pub fn write(spec: &CdiSpec, format: Format) -> Result<String> {
    let fail = |e: String| Error::msg(format!("write CDI file: {e}"));
    match format {
        Format::Json => serde_json::to_string_pretty(spec)
            .map(|text| text + "\n")
            .map_err(|e| fail(e.to_string())),
        Format::Yaml => yaml_serde::to_string(spec)
            .map(|text| format!("---\n{}", quote_names(&text)))
            .map_err(|e| fail(e.to_string())),
    }
}

/// Quotes the names of devices: `0:1` alone is a number to base 60 for readers of YAML 1.1. Only devices
/// stand at the left edge in a list, and their names hold nothing that quotes would change.
fn quote_names(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    for line in text.lines() {
        match line.strip_prefix("- name: ") {
            Some(name) if !name.starts_with(['\'', '"']) => {
                out.push_str(&format!("- name: '{name}'"));
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

fn device(name: String, container_edits: ContainerEdits) -> Device {
    Device {
        name,
        annotations: BTreeMap::new(),
        container_edits,
    }
}

/// Adds to `all` what it doesn't have: several devices share nodes (a MIG device its parent's) and links.
fn merge(all: &mut ContainerEdits, one: &ContainerEdits) {
    fn add<T: Clone + PartialEq>(all: &mut Vec<T>, one: &[T]) {
        for item in one {
            if !all.contains(item) {
                all.push(item.clone());
            }
        }
    }
    add(&mut all.env, &one.env);
    add(&mut all.device_nodes, &one.device_nodes);
    add(&mut all.mounts, &one.mounts);
    add(&mut all.hooks, &one.hooks);
    add(&mut all.additional_gids, &one.additional_gids);
    add(&mut all.net_devices, &one.net_devices);
    if all.intel_rdt.is_none() {
        all.intel_rdt.clone_from(&one.intel_rdt);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::nvidia::cdi::parse;
    use crate::nvidia::hook::Work;

    fn edits(value: serde_json::Value) -> ContainerEdits {
        serde_json::from_value(value).unwrap()
    }

    fn nodes(paths: &[&str]) -> ContainerEdits {
        let nodes: Vec<_> = paths.iter().map(|p| json!({"path": p})).collect();
        edits(json!({"deviceNodes": nodes}))
    }

    fn entry(names: &[&str], edits: ContainerEdits) -> Entry {
        Entry {
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            edits,
        }
    }

    fn common() -> ContainerEdits {
        let mut common = edits(json!({
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
            "deviceNodes": [{"path": "/dev/nvidiactl"}],
            "mounts": [{
                "hostPath": "/usr/lib/libcuda.so.1", "containerPath": "/usr/lib/libcuda.so.1",
                "options": ["ro", "nosuid", "nodev", "bind"]
            }]
        }));
        let link = Work::Symlinks(vec![("libcuda.so.1".into(), "/usr/lib/libcuda.so".into())]);
        common.hooks.push(link.to_hook());
        common
    }

    fn two() -> Vec<Entry> {
        vec![
            entry(&["0", "GPU-aa"], nodes(&["/dev/nvidia0", "/dev/dri/card0"])),
            entry(&["1:0"], nodes(&["/dev/nvidia1", "/dev/nvidia-caps/cap3"])),
            entry(&["1:1"], nodes(&["/dev/nvidia1", "/dev/nvidia-caps/cap4"])),
        ]
    }

    #[test]
    fn every_name_is_a_device_and_all_is_every_one_once() {
        let spec = generate(common(), two()).unwrap();
        let names: Vec<&str> = spec.devices.iter().map(|d| &*d.name).collect();
        assert_eq!(names, ["0", "GPU-aa", "1:0", "1:1", "all"]);
        assert_eq!(
            spec.devices[0].container_edits,
            spec.devices[1].container_edits
        );
        let all = &spec.devices[4].container_edits.device_nodes;
        let all: Vec<&str> = all.iter().map(|n| n.path.to_str().unwrap()).collect();
        assert_eq!(
            all,
            [
                "/dev/nvidia0",
                "/dev/dri/card0",
                "/dev/nvidia1",
                "/dev/nvidia-caps/cap3",
                "/dev/nvidia-caps/cap4"
            ]
        );
        assert_eq!(spec.container_edits, common());
    }

    #[test]
    fn the_version_is_the_lowest_that_holds_the_content() {
        let version = |common, entries| generate(common, entries).unwrap().cdi_version;
        let named = || vec![entry(&["GPU-aa"], nodes(&["/dev/nvidia0"]))];
        assert_eq!(version(common(), named()), "0.3.0");
        assert_eq!(version(common(), two()), "0.5.0");
        let mut gids = common();
        gids.additional_gids.push(44);
        assert_eq!(version(gids, named()), "0.7.0");
    }

    #[test]
    fn what_is_written_is_read_back_in_both_notations() {
        let spec = generate(common(), two()).unwrap();
        for format in [Format::Json, Format::Yaml] {
            let text = write(&spec, format).unwrap();
            assert!(text.ends_with('\n'));
            assert_eq!(parse(text.as_bytes(), format).unwrap(), spec, "{text}");
        }
    }

    #[test]
    fn nothing_that_an_older_reader_does_not_know_is_written() {
        let spec = generate(common(), two()).unwrap();
        let value = serde_json::to_value(&spec).unwrap();
        let keys = |v: &serde_json::Value| -> Vec<String> {
            v.as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(
            keys(&value),
            ["cdiVersion", "kind", "devices", "containerEdits"]
        );
        assert_eq!(keys(&value["devices"][0]), ["name", "containerEdits"]);
        assert_eq!(
            keys(&value["devices"][0]["containerEdits"]),
            ["deviceNodes"]
        );
        assert_eq!(
            keys(&value["containerEdits"]),
            ["env", "deviceNodes", "mounts", "hooks"]
        );
        let hook = &value["containerEdits"]["hooks"][0];
        assert_eq!(keys(hook), ["hookName", "path", "args"]);
    }

    #[test]
    fn names_that_are_plain_numbers_in_yaml_stay_text_for_other_readers() {
        let text = write(&generate(common(), two()).unwrap(), Format::Yaml).unwrap();
        assert!(text.contains("- name: '0'\n"), "{text}");
        assert!(text.contains("- name: '1:1'\n"), "{text}");
    }

    #[test]
    fn nothing_to_write_and_names_twice_are_errors() {
        assert!(generate(common(), Vec::new()).is_err());
        let one = || entry(&["0"], nodes(&["/dev/nvidia0"]));
        let why = generate(common(), vec![one(), one()]).unwrap_err();
        assert!(why.to_string().contains("there twice"), "{why}");
        let all = vec![entry(&["all"], nodes(&["/dev/nvidia0"]))];
        assert!(generate(common(), all).is_err());
        let empty = vec![entry(&["0"], ContainerEdits::default())];
        assert!(generate(common(), empty).is_err());
        use std::os::unix::ffi::OsStrExt;
        let mut bad = common();
        bad.device_nodes[0].path = std::ffi::OsStr::from_bytes(b"/dev/\xff").into();
        let spec = generate(bad, two()).unwrap();
        assert!(write(&spec, Format::Json).is_err() && write(&spec, Format::Yaml).is_err());
    }
}
