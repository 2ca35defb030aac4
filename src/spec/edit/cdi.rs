//! Container edits as a CDI file writes them (CDI 1.1, `containerEdits`), and their way into [`Edit`]s.
//!
//! It must not read CDI directories or choose devices: that is discovery's work.

use std::path::PathBuf;

use oci_spec::runtime::{Hook, LinuxDeviceType, LinuxIntelRdt, Mount};
use serde::{Deserialize, Serialize};

use super::{Change, Edit, HookStage};
use crate::{Error, Result};

/// `containerEdits` of a CDI file. An unknown field is an error, as CDI demands.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ContainerEdits {
    /// `KEY=VALUE`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Device nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_nodes: Vec<DeviceNode>,
    /// Mounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<EditMount>,
    /// Hooks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<EditHook>,
    /// Intel RDT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<EditIntelRdt>,
    /// Supplementary groups; 0 is ignored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
    /// Network interfaces to move (CDI 1.1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub net_devices: Vec<NetDevice>,
}

/// Intel RDT as CDI writes it (resctrl, Documentation/filesystems/resctrl.rst).
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EditIntelRdt {
    /// Class of service.
    #[serde(default, rename = "closID", skip_serializing_if = "Option::is_none")]
    pub clos_id: Option<String>,
    /// L3 cache allocation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l3_cache_schema: Option<String>,
    /// Memory bandwidth allocation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_bw_schema: Option<String>,
    /// Lines for the schemata file (CDI 1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schemata: Option<Vec<String>>,
    /// A monitoring group of its own (CDI 1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_monitoring: Option<bool>,
}

/// A device node. Type and numbers that are missing are read from `host_path` (default: `path`).
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceNode {
    /// Path in the cell.
    pub path: PathBuf,
    /// Path on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<PathBuf>,
    /// `b`, `c`, `u` or `p`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub typ: Option<LinuxDeviceType>,
    /// Major number; 0 counts as missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    /// Minor number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    /// Permission bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    /// Device-cgroup access, of `r`, `w`, `m`; missing or empty: `rwm`. `none`: no access.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    /// Owner; default: the process's user when that isn't root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group; default: the process's group when that isn't root's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// A mount as CDI writes it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EditMount {
    /// Source on the host.
    pub host_path: PathBuf,
    /// Destination in the cell.
    pub container_path: PathBuf,
    /// File system type; none: a bind mount.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub typ: Option<String>,
    /// Mount options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// A hook as CDI writes it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EditHook {
    /// `prestart`, `createRuntime`, `createContainer`, `startContainer`, `poststart`, `poststop`.
    pub hook_name: String,
    /// Program.
    pub path: PathBuf,
    /// Arguments, the program's name first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its whole environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// A network interface to move into the cell.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetDevice {
    /// Its name on the host.
    pub host_interface_name: String,
    /// Its name in the cell; none: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ContainerEdits {
    /// The edits one by one, all with the same reason, in the order CDI applies them.
    ///
    /// # Errors
    /// An unknown hook name; an environment entry without `=`.
    pub fn into_edits(self, reason: &str) -> Result<Vec<Edit>> {
        let mut changes = Vec::new();
        for pair in self.env {
            if !pair.contains('=') || pair.starts_with('=') {
                return Err(Error::msg(format!(
                    "{reason}: env {pair:?} is not KEY=VALUE"
                )));
            }
            changes.push(Change::Env(pair));
        }
        changes.extend(self.device_nodes.into_iter().map(Change::Device));
        changes.extend(self.net_devices.into_iter().map(Change::NetDevice));
        changes.extend(
            self.mounts
                .into_iter()
                .map(|m| Change::Mount(m.into_mount())),
        );
        for hook in self.hooks {
            let (stage, hook) = hook.into_hook(reason)?;
            changes.push(Change::Hook { stage, hook });
        }
        changes.extend(self.intel_rdt.map(|rdt| Change::IntelRdt(rdt.into_rdt())));
        if !self.additional_gids.is_empty() {
            changes.push(Change::AdditionalGids(self.additional_gids));
        }
        Ok(changes.into_iter().map(|c| Edit::new(reason, c)).collect())
    }
}

impl EditIntelRdt {
    fn into_rdt(self) -> LinuxIntelRdt {
        let mut rdt = LinuxIntelRdt::default();
        rdt.set_clos_id(self.clos_id)
            .set_l3_cache_schema(self.l3_cache_schema)
            .set_mem_bw_schema(self.mem_bw_schema)
            .set_schemata(self.schemata)
            .set_enable_monitoring(self.enable_monitoring);
        rdt
    }
}

impl EditMount {
    fn into_mount(self) -> Mount {
        let mut mount = Mount::default();
        mount
            .set_destination(self.container_path)
            .set_source(Some(self.host_path))
            .set_typ(self.typ)
            .set_options((!self.options.is_empty()).then_some(self.options));
        mount
    }
}

impl EditHook {
    fn into_hook(self, reason: &str) -> Result<(HookStage, Hook)> {
        let stage = match self.hook_name.as_str() {
            "prestart" => HookStage::Prestart,
            "createRuntime" => HookStage::CreateRuntime,
            "createContainer" => HookStage::CreateContainer,
            "startContainer" => HookStage::StartContainer,
            "poststart" => HookStage::Poststart,
            "poststop" => HookStage::Poststop,
            other => {
                return Err(Error::msg(format!("{reason}: unknown hook name {other:?}")));
            }
        };
        let mut hook = Hook::default();
        hook.set_path(self.path)
            .set_args((!self.args.is_empty()).then_some(self.args))
            .set_env((!self.env.is_empty()).then_some(self.env))
            .set_timeout(self.timeout);
        Ok((stage, hook))
    }
}
