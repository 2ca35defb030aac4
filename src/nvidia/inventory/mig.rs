//! MIG devices: parts of a GPU, each guarded by two capabilities.
//!
//! A MIG device is a compute instance (CI) of a GPU instance (GI). Who may open the capability nodes of
//! both may use it (MIG User Guide, "Device Nodes and Capabilities").

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::{Host, names};
use crate::{Error, Result};

/// One MIG device of a GPU.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mig {
    /// Its place among the GPU's MIG devices, which `GPU:MIG` names.
    pub index: u32,
    /// Id of the GPU instance.
    pub gpu_instance: u32,
    /// Id of the compute instance in it.
    pub compute_instance: u32,
    /// Minor number of the GPU instance's capability, `/dev/nvidia-caps/nvidia-cap<N>`.
    pub gpu_instance_cap: u32,
    /// Minor number of the compute instance's capability.
    pub compute_instance_cap: u32,
}

/// The MIG devices of the GPU with this minor number. NVML's order is not documented; nvidia-smi and the
/// Kubernetes device plugin show the order of the ids, which is taken here.
pub(super) fn devices(host: &Host, gpu: u32) -> Result<Vec<Mig>> {
    let mig = host
        .driver_proc()
        .join(format!("capabilities/gpu{gpu}/mig"));
    let mut parts = Vec::new();
    for gi in numbered(&mig, "gi")? {
        for ci in numbered(&mig.join(format!("gi{gi}")), "ci")? {
            parts.push((gi, ci));
        }
    }
    if parts.is_empty() {
        return Ok(Vec::new());
    }
    let minors = minors(host)?;
    let cap = |name: String| {
        minor_of(&minors, &name).ok_or_else(|| {
            Error::msg(format!(
                "{}: no capability {name}",
                minors_path(host).display()
            ))
        })
    };
    let device = |(index, (gi, ci))| {
        Ok(Mig {
            index: index as u32,
            gpu_instance: gi,
            compute_instance: ci,
            gpu_instance_cap: cap(format!("gpu{gpu}/gi{gi}/access"))?,
            compute_instance_cap: cap(format!("gpu{gpu}/gi{gi}/ci{ci}/access"))?,
        })
    };
    parts.into_iter().enumerate().map(device).collect()
}

/// The minor number of a capability by its name in `mig-minors`: `config`, `monitor`,
/// `gpu0/gi1/access`.
///
/// # Errors
/// The driver has no such capability.
pub fn caps_minor(host: &Host, name: &str) -> Result<u32> {
    minor_of(&minors(host)?, name).ok_or_else(|| {
        Error::unsupported(
            format!("MIG capability {name}"),
            format!("{} doesn't name it", minors_path(host).display()),
        )
    })
}

fn minors_path(host: &Host) -> std::path::PathBuf {
    host.proc.join("driver/nvidia-caps/mig-minors")
}

fn minors(host: &Host) -> Result<String> {
    let path = minors_path(host);
    match fs::read_to_string(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::unsupported(
            "MIG",
            format!("{}: {e}", path.display()),
        )),
        other => other.map_err(|e| Error::step("read", path.display().to_string(), e)),
    }
}

fn minor_of(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

/// The numbers of the directory's entries `<prefix><number>`, ascending.
fn numbered(dir: &Path, prefix: &str) -> Result<Vec<u32>> {
    let number = |name: String| name.strip_prefix(prefix)?.parse().ok();
    let mut found: Vec<u32> = names(dir)?.into_iter().filter_map(number).collect();
    found.sort_unstable();
    Ok(found)
}
