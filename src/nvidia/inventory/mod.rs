//! GPUs, driver version and device numbers from procfs, without NVML.
//!
//! Owns what the kernel modules say of themselves: `driver/nvidia/{version,gpus,capabilities}`,
//! `driver/nvidia-caps` and `devices` below the procfs of a [`Host`]. Lines it doesn't know are passed
//! over, since every driver branch adds some; what it needs and doesn't find is an error or `None`.
//! It must not open device nodes (that wakes GPUs up) and must not look at the driver's files.

mod cuda;
mod mig;
mod procfs;

pub use mig::{Mig, caps_minor};
pub use procfs::{Params, is_version};

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::Config;
use super::monitor::Told;
use super::select::GpuId;
use crate::{Error, Result};

/// Where the host's parts are: the one switch that lets another tree stand in for this host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Host {
    /// Root of the file system with the driver's user space.
    pub driver_root: PathBuf,
    /// procfs.
    pub proc: PathBuf,
    /// Device nodes.
    pub dev: PathBuf,
    /// sysfs.
    pub sys: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Host {
            driver_root: "/".into(),
            proc: "/proc".into(),
            dev: "/dev".into(),
            sys: "/sys".into(),
        }
    }
}

impl From<&Config> for Host {
    fn from(config: &Config) -> Self {
        // A procfs that stands in brings its sysfs along, as its neighbour.
        let sys = match config.proc_root.parent() {
            Some(dir) if config.proc_root != Path::new("/proc") => dir.join("sys"),
            _ => "/sys".into(),
        };
        Host {
            driver_root: config.driver_root.clone(),
            proc: config.proc_root.clone(),
            dev: config.dev_root.clone(),
            sys,
        }
    }
}

impl Host {
    /// `/proc/driver/nvidia` of this host.
    pub fn driver_proc(&self) -> PathBuf {
        self.proc.join("driver/nvidia")
    }
}

/// One GPU that the driver drives.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Gpu {
    /// NVML's index: the order of PCI bus ids.
    pub index: u32,
    /// Minor number of its node, `/dev/nvidia<minor>`.
    pub minor: u32,
    /// `GPU-…` in lower case after the prefix. The driver knows it once it has talked to the GPU.
    pub uuid: Option<String>,
    /// `0000:01:00.0`, lower case.
    pub bus: String,
    /// As `NVIDIA A100-SXM4-40GB`.
    pub model: Option<String>,
}

/// Major numbers from /proc/devices; `None`: the module that owns it is not loaded.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Majors {
    /// GPUs, nvidiactl and nvidia-modeset: 195.
    pub nvidia: Option<u32>,
    /// nvidia-uvm, nvidia-uvm-tools.
    pub uvm: Option<u32>,
    /// MIG capabilities, `/dev/nvidia-caps/nvidia-cap<N>`.
    pub caps: Option<u32>,
    /// `/dev/nvidia-caps-imex-channels/channel<N>`.
    pub imex: Option<u32>,
}

/// What the driver says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Inventory {
    /// Version of the kernel module, as `550.163.01`.
    pub driver: String,
    /// The newest CUDA version it supports, as `12.4`; `None`: not published for this branch.
    pub cuda: Option<String>,
    /// In the order of their index. Those the administrator excluded are not here.
    pub gpus: Vec<Gpu>,
    /// Device numbers.
    pub majors: Majors,
    host: Host,
}

/// A GPU or a MIG device that exists.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chosen {
    /// The GPU, or the parent of the MIG device.
    pub gpu: Gpu,
    /// The part of it; `None`: all of it.
    pub mig: Option<Mig>,
}

impl Inventory {
    /// Reads it all from procfs.
    ///
    /// # Errors
    /// No driver is loaded, its version is not understood, or a GPU says neither its minor number nor
    /// its bus id.
    pub fn read(host: &Host) -> Result<Self> {
        let (driver, _) = version(host)?;
        let gpus = gpus(host)?;
        Self::new(host, driver, gpus)
    }

    /// An inventory whose version and GPUs are known already; device numbers are read afresh, for a
    /// module that is loaded again may get another one.
    pub(super) fn new(host: &Host, driver: String, gpus: Vec<Gpu>) -> Result<Self> {
        Ok(Inventory {
            cuda: cuda::newest(&driver).map(str::to_owned),
            driver,
            gpus,
            majors: procfs::majors(&read(&host.proc.join("devices"))?),
            host: host.clone(),
        })
    }

    /// Where this was read.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The MIG devices of a GPU, in the order of their GPU instance and compute instance ids; none when
    /// MIG is off. Read when asked for: an administrator makes and removes them at any time.
    ///
    /// # Errors
    /// procfs can't be read.
    pub fn mig(&self, gpu: &Gpu) -> Result<Vec<Mig>> {
        mig::devices(&self.host, gpu.minor)
    }

    /// Every GPU; in place of one that is split, its MIG devices. A GPU in MIG mode can't be used as a
    /// whole (MIG User Guide, "CUDA Device Enumeration").
    ///
    /// # Errors
    /// As [`Self::mig`].
    pub fn all(&self) -> Result<Vec<Chosen>> {
        let mut all = Vec::new();
        for gpu in &self.gpus {
            let parts = self.mig(gpu)?;
            if parts.is_empty() {
                all.push(Chosen {
                    gpu: gpu.clone(),
                    mig: None,
                });
            }
            all.extend(parts.into_iter().map(|part| Chosen {
                gpu: gpu.clone(),
                mig: Some(part),
            }));
        }
        Ok(all)
    }

    /// The device of a name.
    ///
    /// # Errors
    /// There is none; or the name can't be looked up without NVML (MIG UUIDs of drivers from 470 on).
    pub fn resolve(&self, id: &GpuId) -> Result<Chosen> {
        let whole = |gpu: &Gpu| Chosen {
            gpu: gpu.clone(),
            mig: None,
        };
        let found = match id {
            GpuId::Index(index) => self.gpus.iter().find(|g| g.index == *index).map(whole),
            GpuId::Uuid(uuid) => {
                let gpu = self.by_uuid(uuid).map(whole);
                let unknown = self.gpus.iter().filter(|g| g.uuid.is_none()).count();
                if gpu.is_none() && unknown > 0 {
                    return Err(Error::msg(format!(
                        "no GPU has the UUID {uuid}, but the driver doesn't know the UUID of {unknown} \
                         yet: start nvidia-persistenced, or run nvidia-smi once"
                    )));
                }
                gpu
            }
            GpuId::Bus(bus) => self.gpus.iter().find(|g| g.bus == *bus).map(whole),
            GpuId::Mig { gpu, instance } => match self.gpus.iter().find(|g| g.index == *gpu) {
                Some(parent) => {
                    let at = *instance as usize;
                    let part = self.mig(parent)?.into_iter().nth(at);
                    part.map(|part| Chosen {
                        gpu: parent.clone(),
                        mig: Some(part),
                    })
                }
                None => None,
            },
            GpuId::MigUuid(uuid) => self.by_mig_uuid(uuid)?,
        };
        found.ok_or_else(|| {
            let mut have = String::new();
            for gpu in &self.gpus {
                let uuid = gpu.uuid.as_deref().unwrap_or("UUID not known yet");
                have += &format!("; {} {} {uuid}", gpu.index, gpu.bus);
            }
            Error::msg(format!(
                "GPU {id} doesn't exist: the driver has {} GPU(s){have}",
                self.gpus.len()
            ))
        })
    }

    /// The device of a name that only NVML knows ([`GpuId::needs_nvml`]), by its answer.
    ///
    /// # Errors
    /// As [`Self::resolve`]; what NVML knows isn't in procfs.
    pub fn resolve_told(&self, id: &GpuId, told: &Told) -> Result<Chosen> {
        let uuid = match id {
            GpuId::MigUuid(uuid) if id.needs_nvml() => uuid,
            _ => return self.resolve(id),
        };
        for gpu in &self.gpus {
            let parts = told.of(gpu).map_or(&[][..], |t| &t.mig);
            let Some(found) = parts.iter().find(|m| m.uuid.eq_ignore_ascii_case(uuid)) else {
                continue;
            };
            let (gi, ci) = (found.gpu_instance, found.compute_instance);
            return self.instance(gpu, gi, ci)?.ok_or_else(|| {
                Error::msg(format!(
                    "MIG device {uuid}: GPU {} has no instance {gi}/{ci} in procfs",
                    gpu.index
                ))
            });
        }
        Err(Error::msg(format!(
            "MIG device {uuid} doesn't exist (`gpucell gpu list --stats` shows the UUIDs)"
        )))
    }

    fn by_uuid(&self, uuid: &str) -> Option<&Gpu> {
        self.gpus.iter().find(|g| g.uuid.as_deref() == Some(uuid))
    }

    /// Drivers before 470 wrote the parts into the name: `MIG-GPU-UUID/GI/CI`. Newer ones have UUIDs
    /// that only NVML can tell.
    fn by_mig_uuid(&self, uuid: &str) -> Result<Option<Chosen>> {
        let parts: Vec<&str> = uuid.trim_start_matches("MIG-").split('/').collect();
        let [gpu, gi, ci] = parts[..] else {
            return Err(Error::unsupported(
                format!("MIG device {uuid} by its UUID"),
                "only NVML knows it; name it GPU:MIG, as 0:1 (`gpucell gpu list`)",
            ));
        };
        let (Some(parent), Ok(gi), Ok(ci)) =
            (self.by_uuid(gpu), gi.parse::<u32>(), ci.parse::<u32>())
        else {
            return Ok(None);
        };
        self.instance(parent, gi, ci)
    }

    /// The MIG device of a GPU by the ids of its instances.
    fn instance(&self, gpu: &Gpu, gi: u32, ci: u32) -> Result<Option<Chosen>> {
        let same = |m: &Mig| m.gpu_instance == gi && m.compute_instance == ci;
        Ok(self.mig(gpu)?.into_iter().find(same).map(|part| Chosen {
            gpu: gpu.clone(),
            mig: Some(part),
        }))
    }
}

/// The version of the loaded module and the whole text that says so.
pub(super) fn version(host: &Host) -> Result<(String, String)> {
    let path = host.driver_proc().join("version");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(Error::unsupported(
                "NVIDIA driver",
                format!("{}: {e}; {}", path.display(), without_module(host)),
            ));
        }
        Err(e) => return Err(Error::step("read", path.display().to_string(), e)),
    };
    match procfs::version(&text) {
        Some(version) => Ok((version.to_owned(), text)),
        None => Err(Error::msg(format!(
            "{}: no version in {:?}",
            path.display(),
            text.lines().next().unwrap_or_default()
        ))),
    }
}

/// Why there is no driver of the kind we know, and what to do. Tegra is told by what NVIDIA's toolkit tells
/// it by (go-nvlib, `pkg/nvlib/info/property-extractor.go`).
fn without_module(host: &Host) -> &'static str {
    let soc = fs::read_to_string(host.sys.join("devices/soc0/family")).unwrap_or_default();
    if host.dev.join("dxg").exists() {
        "this is WSL2, whose driver is only reached through a CDI file: nvidia-ctk cdi generate \
         --mode=wsl, then --device nvidia.com/gpu=all"
    } else if host.driver_root.join("etc/nv_tegra_release").exists()
        || soc.to_ascii_lowercase().starts_with("tegra")
    {
        "this is a Tegra system, whose driver is only reached through a CDI file: nvidia-ctk cdi \
         generate --mode=csv, then --device nvidia.com/gpu=all"
    } else {
        "the module is not loaded: modprobe nvidia"
    }
}

/// Names below `gpus`, sorted; none when the driver found no GPU.
pub(super) fn gpu_names(host: &Host) -> Result<Vec<String>> {
    names(&host.driver_proc().join("gpus"))
}

fn gpus(host: &Host) -> Result<Vec<Gpu>> {
    let dir = host.driver_proc().join("gpus");
    let mut found = Vec::new();
    for name in gpu_names(host)? {
        let path = dir.join(&name).join("information");
        let text = read(&path)?;
        match procfs::gpu(&text, &name) {
            Ok(Some(gpu)) => found.push(gpu),
            Ok(None) => {}
            Err(why) => return Err(Error::msg(format!("{}: {why}", path.display()))),
        }
    }
    found.sort_by_key(|(order, _)| *order);
    let number = |(index, (_, gpu)): (usize, (_, Gpu))| Gpu {
        index: index as u32,
        ..gpu
    };
    Ok(found.into_iter().enumerate().map(number).collect())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| Error::step("read", path.display().to_string(), e))
}

/// Names in a directory, sorted; none when there is no directory.
fn names(dir: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::step("read", dir.display().to_string(), e);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests;
