//! A CDI file as values, and the version that its content needs.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::spec::edit::ContainerEdits;

/// One CDI file. An unknown field is an error, as CDI demands.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CdiSpec {
    /// As `0.6.0`.
    pub cdi_version: String,
    /// `vendor/class`.
    pub kind: String,
    /// For people; nothing is done with them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// At least one.
    pub devices: Vec<Device>,
    /// Made once for a cell that gets any of the devices.
    #[serde(default, skip_serializing_if = "is_default")]
    pub container_edits: ContainerEdits,
}

/// One device of a CDI file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// Its name in the kind.
    pub name: String,
    /// For people; nothing is done with them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Made for a cell that gets this device.
    pub container_edits: ContainerEdits,
}

fn is_default(edits: &ContainerEdits) -> bool {
    *edits == ContainerEdits::default()
}

/// A version of CDI that is read (CDI 1.1, "Released versions").
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[allow(missing_docs)]
pub enum Version {
    V0_3,
    V0_4,
    V0_5,
    V0_6,
    V0_7,
    V0_8,
    V1_0,
    V1_1,
}

impl Version {
    const ALL: [Version; 8] = [
        Version::V0_3,
        Version::V0_4,
        Version::V0_5,
        Version::V0_6,
        Version::V0_7,
        Version::V0_8,
        Version::V1_0,
        Version::V1_1,
    ];

    /// Reads a version; `v0.6.0` is read too, as upstream does. `None`: not one that is known.
    pub fn parse(text: &str) -> Option<Version> {
        let text = text.strip_prefix('v').unwrap_or(text);
        Version::ALL.into_iter().find(|v| v.as_str() == text)
    }

    /// As it stands in a file.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_3 => "0.3.0",
            Version::V0_4 => "0.4.0",
            Version::V0_5 => "0.5.0",
            Version::V0_6 => "0.6.0",
            Version::V0_7 => "0.7.0",
            Version::V0_8 => "0.8.0",
            Version::V1_0 => "1.0.0",
            Version::V1_1 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl CdiSpec {
    /// The lowest version that has everything the file uses, and the first field that needs it
    /// (empty when the oldest version will do).
    pub fn needs(&self) -> (Version, String) {
        let mut most = Most(Version::V0_3, String::new());
        if self
            .kind
            .split_once('/')
            .is_some_and(|(_, c)| c.contains('.'))
        {
            most.add(Version::V0_6, || "kind: a dot in the class".to_owned());
        }
        if !self.annotations.is_empty() {
            most.add(Version::V0_6, || "annotations".to_owned());
        }
        most.edits("containerEdits", &self.container_edits);
        for (i, device) in self.devices.iter().enumerate() {
            if device.name.starts_with(|c: char| c.is_ascii_digit()) {
                most.add(Version::V0_5, || {
                    format!("devices[{i}].name: a digit in front")
                });
            }
            if !device.annotations.is_empty() {
                most.add(Version::V0_6, || format!("devices[{i}].annotations"));
            }
            most.edits(
                &format!("devices[{i}].containerEdits"),
                &device.container_edits,
            );
        }
        (most.0, most.1)
    }
}

/// The highest version so far, and the field that asked for it first.
struct Most(Version, String);

impl Most {
    fn add(&mut self, version: Version, field: impl FnOnce() -> String) {
        if version > self.0 {
            *self = Most(version, field());
        }
    }

    fn edits(&mut self, at: &str, edits: &ContainerEdits) {
        for (i, mount) in edits.mounts.iter().enumerate() {
            if mount.typ.as_deref().is_some_and(|t| !t.is_empty()) {
                self.add(Version::V0_4, || format!("{at}.mounts[{i}].type"));
            }
        }
        for (i, node) in edits.device_nodes.iter().enumerate() {
            if node.host_path.is_some() {
                self.add(Version::V0_5, || format!("{at}.deviceNodes[{i}].hostPath"));
            }
        }
        if !edits.additional_gids.is_empty() {
            self.add(Version::V0_7, || format!("{at}.additionalGids"));
        }
        if let Some(rdt) = &edits.intel_rdt {
            self.add(Version::V0_7, || format!("{at}.intelRdt"));
            if rdt.schemata.is_some() {
                self.add(Version::V1_1, || format!("{at}.intelRdt.schemata"));
            }
            if rdt.enable_monitoring == Some(true) {
                self.add(Version::V1_1, || format!("{at}.intelRdt.enableMonitoring"));
            }
        }
        if !edits.net_devices.is_empty() {
            self.add(Version::V1_1, || format!("{at}.netDevices"));
        }
    }
}
