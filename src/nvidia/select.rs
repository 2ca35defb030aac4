//! Which GPUs a cell asks for, by every name users and engines use.
//!
//! Sources, the first that names a device wins: annotations `cdi.k8s.io/*`, mounts of /dev/null under
//! /var/run/nvidia-container-devices, the environment (nvidia.md §1; the order is that of the NVIDIA
//! Container Toolkit, `internal/config/image/cuda_image.go`). `--gpus` is Docker's ([`flag`]).
//!
//! It reads a configuration and nothing of the host: whether a GPU exists, and which, is the
//! inventory's ([`super::inventory`]); whether requirements hold is [`super::require`]'s.

mod id;

pub use id::GpuId;

use std::path::PathBuf;

use super::capabilities::Capabilities;
use super::require::Requirement;

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
