//! NVIDIA's hooks as values: what `nvidia-cdi-hook X` and `nvidia-ctk hook X` would do.
//!
//! A hook of the configuration that [`Work::recognise`] knows is never executed: [`super::work`] lowers
//! it to steps on the root's descriptor. Our own injection is written with the same hooks
//! ([`Work::to_hook`]), so that `explain`, `cdi generate` and the engine share one vocabulary.

use std::path::PathBuf;

/// The work of one hook.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Work {
    /// `create-symlinks --link TARGET::LINK…`: (what the link says, where it is).
    Symlinks(Vec<(PathBuf, PathBuf)>),
    /// `update-ldcache --folder DIR…`: the image's ld.so.cache with the libraries of these folders of
    /// the cell, and the links that SONAMEs ask for.
    LdCache(Vec<PathBuf>),
    /// `enable-cuda-compat --host-driver-version V`: the image's own newer libcuda comes first when
    /// the driver can work with it.
    CudaCompat {
        /// The host's driver version, as `550.163.01`.
        host_driver: String,
    },
    /// `disable-device-node-modification`: /proc/driver/nvidia/params says `ModifyDeviceFiles: 0`.
    KeepDeviceNodes,
    /// `chmod --mode M --path P…` (deprecated).
    Chmod {
        /// Permission bits.
        mode: u32,
        /// In the cell.
        paths: Vec<PathBuf>,
    },
}
