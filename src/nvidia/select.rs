//! Which GPUs a cell asks for, by every name users and engines use.
//!
//! Sources, the first that names a device wins: annotations `cdi.k8s.io/*`, mounts of /dev/null under
//! /var/run/nvidia-container-devices, the environment (the order of the NVIDIA Container
//! Toolkit, `internal/config/image/cuda_image.go`). `--gpus` is Docker's ([`from_flag`]) and
//! comes before all of them.
//!
//! It reads a configuration and nothing of the host: whether a GPU exists, and which, is the
//! inventory's ([`super::inventory`]); whether requirements hold is [`super::require`]'s.

mod devices;
mod environment;
mod flag;
mod id;
mod mounts;

pub use devices::qualified;
pub use flag::{Flag, from_flag};
pub use id::GpuId;
pub use mounts::ROOT as MOUNTS;

use std::path::PathBuf;

use oci_spec::runtime::{Capability, Spec};

use super::capabilities::Capabilities;
use super::cdi::ANNOTATION_PREFIX;
use super::config::Config;
use super::require::Requirement;
use crate::{Error, Result};
use devices::{Devices, Item};
use environment::Environment;
use mounts::Listed;

/// The GPUs of a [`Request`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Gpus {
    /// The driver's files and control nodes, no GPU.
    None,
    /// Every GPU and MIG device.
    All,
    /// The first so many, by index; at least 1. Only `--gpus` counts.
    Count(u32),
    /// These, each once, in the order asked. Never empty.
    List(Vec<GpuId>),
}

/// GPUs and driver files from the host's own driver.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// Which GPUs.
    pub gpus: Gpus,
    /// Which groups of driver files; within what the administrator allows.
    pub capabilities: Capabilities,
    /// What each GPU must fulfil, all of them; empty when the image disables them.
    pub requirements: Vec<Requirement>,
    /// The capability to configure MIG on all visible GPUs. Only a privileged cell has it.
    pub mig_config: bool,
    /// The capability to watch all MIG devices. Only a privileged cell has it.
    pub mig_monitor: bool,
    /// IMEX channels, each once, below 2^20.
    pub imex: Vec<u32>,
    /// GPUDirect Storage: nvidia-fs nodes, /run/udev, /etc/cufile.json.
    pub gds: bool,
    /// Mellanox OFED: infiniband verbs nodes.
    pub mofed: bool,
    /// GDRCopy: /dev/gdrdrv.
    pub gdrcopy: bool,
    /// NVSwitch nodes.
    pub nvswitch: bool,
    /// Destinations of the mounts that are only a device list. The caller takes them out of the
    /// configuration: they would leave links to /dev/null in the cell.
    pub mounts: Vec<PathBuf>,
    /// Where it came from, for a person: `NVIDIA_VISIBLE_DEVICES=all`, `--gpus 2`.
    pub reason: String,
}

/// CDI devices by name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cdi {
    /// Each once, in the order asked. Never empty.
    pub names: Vec<CdiName>,
    /// What each GPU must fulfil; empty unless a name's vendor is NVIDIA.
    pub requirements: Vec<Requirement>,
    /// As [`Request::mounts`].
    pub mounts: Vec<PathBuf>,
}

/// One CDI device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CdiName {
    /// `vendor/class=name`, checked against CDI's grammar.
    pub name: String,
    /// Where it came from, for a person: `annotation cdi.k8s.io/x`.
    pub from: String,
}

/// What a configuration asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Asked {
    /// No GPU: the configuration stays as it is.
    Nothing,
    /// The environment asks and, by the administrator's word, isn't listened to. The configuration stays
    /// as it is; the text is a warning.
    Ignored(String),
    /// CDI devices, to be resolved in the CDI folders.
    Cdi(Cdi),
    /// GPUs by gpucell's own discovery.
    Driver(Request),
}

/// What the configuration asks for by itself. The sources' rules:
///
/// - Annotations `cdi.k8s.io/*` hold comma lists of CDI names.
/// - Mounts count when [`Config::accept_mounts`] says so.
/// - The environment counts for a privileged cell (CAP_SYS_ADMIN in the bounding set, as the toolkit
///   decides), and for others when [`Config::accept_environment_unprivileged`] says so. That rule is also
///   `NVIDIA_IMEX_CHANNELS`' and the `enabled` switches'; capabilities and requirements always count, for
///   they give no device.
/// - `runtime.nvidia.com/gpu=ID` is a CDI name that stands for discovery at this moment, wherever it is
///   written; next to other CDI names it is an error.
///
/// # Errors
/// A value that isn't one, with where it stands; a capability the administrator doesn't allow; MIG's
/// control for a cell that isn't privileged.
pub fn asked(spec: &Spec, config: &Config) -> Result<Asked> {
    let env = Environment::of(spec);
    let privileged = privileged(spec);
    let counts = privileged || config.accept_environment_unprivileged;
    let listed = if config.accept_mounts {
        mounts::listed(spec)?
    } else {
        Listed::default()
    };

    let annotations = annotations(spec)?;
    if !annotations.is_empty() {
        let from = annotations[0].from.clone();
        let devices = devices::sort(annotations)?;
        return build(devices, from, spec, config, listed, None);
    }
    if !listed.items.is_empty() {
        let devices = devices::read(listed.items.clone())?;
        let from = format!("mounts under {}", mounts::ROOT);
        return build(devices, from, spec, config, listed, None);
    }
    let Some((items, from)) = env.visible() else {
        return Ok(Asked::Nothing);
    };
    if !counts {
        return Ok(Asked::Ignored(format!(
            "{from} is ignored: the environment of an unprivileged cell gets no GPU here \
             (accept-environment-unprivileged)"
        )));
    }
    build(devices::read(items)?, from, spec, config, listed, None)
}

/// Does the toolkit take the cell for a privileged one?
fn privileged(spec: &Spec) -> bool {
    let capabilities = spec
        .process()
        .as_ref()
        .and_then(|p| p.capabilities().as_ref());
    capabilities
        .and_then(|c| c.bounding().as_ref())
        .is_some_and(|set| set.contains(&Capability::SysAdmin))
}

/// The CDI names in the annotations, in the order of the keys.
fn annotations(spec: &Spec) -> Result<Vec<Item>> {
    let Some(all) = spec.annotations() else {
        return Ok(Vec::new());
    };
    let mut ours: Vec<_> = all
        .iter()
        .filter(|(k, _)| k.starts_with(ANNOTATION_PREFIX))
        .collect();
    ours.sort();
    let mut items = Vec::new();
    for (key, value) in ours {
        for name in value.split(',').map(str::trim) {
            if !qualified(name) {
                return Err(Error::config(
                    format!("annotations[{key:?}]"),
                    format!("{name:?} is not a CDI name (vendor/class=name)"),
                ));
            }
            items.push(Item::new(
                name,
                format!("annotation {}", key.escape_debug()),
            ));
        }
    }
    Ok(items)
}

/// The rest of a request, once its devices are settled. `chosen`: capabilities that stand for the
/// environment's, already within what is allowed.
fn build(
    devices: Devices,
    reason: String,
    spec: &Spec,
    config: &Config,
    listed: Listed,
    chosen: Option<Capabilities>,
) -> Result<Asked> {
    let env = Environment::of(spec);
    let capabilities = || chosen.map_or_else(|| env.capabilities(config.capabilities), Ok);
    let gpus = match devices {
        Devices::Untouched => return Ok(Asked::Nothing),
        Devices::Cdi(names) => {
            // What such a device brings, its file says: NVIDIA's capabilities are only held against
            // what is allowed, and its requirements kept for the check.
            let nvidia = names.iter().any(|item| devices::is_nvidia(&item.text));
            let requirements = match nvidia {
                true => {
                    capabilities()?;
                    env.requirements()?
                }
                false => Vec::new(),
            };
            return Ok(Asked::Cdi(Cdi {
                names: names.into_iter().map(CdiName::from).collect(),
                requirements,
                mounts: listed.mounts,
            }));
        }
        Devices::Gpus(gpus) => gpus,
    };
    let privileged = privileged(spec);
    let counts = privileged || config.accept_environment_unprivileged;
    let mig = |name| {
        let on = env.mig(name, privileged)?;
        if on && matches!(&gpus, Gpus::List(ids) if ids.iter().any(GpuId::is_mig)) {
            return Err(Error::msg(format!(
                "{name}: not together with single MIG devices ({reason})"
            )));
        }
        Ok(on)
    };
    let (mig_config, mig_monitor) = (
        mig("NVIDIA_MIG_CONFIG_DEVICES")?,
        mig("NVIDIA_MIG_MONITOR_DEVICES")?,
    );
    let imex = if !listed.imex.is_empty() {
        listed.imex
    } else if counts {
        env.imex()?
    } else {
        Vec::new()
    };
    let switch = |name| counts && env.get(name) == Some("enabled");
    Ok(Asked::Driver(Request {
        gpus,
        capabilities: capabilities()?,
        requirements: env.requirements()?,
        mig_config,
        mig_monitor,
        imex,
        gds: switch("NVIDIA_GDS"),
        mofed: switch("NVIDIA_MOFED"),
        gdrcopy: switch("NVIDIA_GDRCOPY"),
        nvswitch: switch("NVIDIA_NVSWITCH"),
        mounts: listed.mounts,
        reason,
    }))
}

impl From<Item> for CdiName {
    fn from(item: Item) -> Self {
        CdiName {
            name: item.text,
            from: item.from,
        }
    }
}
