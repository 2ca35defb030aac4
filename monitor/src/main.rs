//! `gpucell-monitor [LIBRARY]`: what NVML knows of this machine's GPUs, once, as JSON on standard output.
//!
//! Owns the way to NVML and the words of the answer (`src/nvidia/facts.rs` of gpucell reads them). It decides
//! nothing and changes nothing. LIBRARY is the path of libnvidia-ml.so.1; without one the loader finds it.
//!
//! A value that a GPU doesn't tell is null. An error of a whole GPU stands in its place as `error`; one of
//! NVML itself is printed to standard error, with exit code 1.

use std::ffi::OsString;
use std::process::ExitCode;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml, cuda_driver_version_major, cuda_driver_version_minor};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let library = std::env::args_os().nth(1);
    let answer = init(library).and_then(|nvml| all(&nvml));
    match answer {
        Ok(value) => {
            println!("{value}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("gpucell-monitor: NVML: {e}");
            ExitCode::FAILURE
        }
    }
}

fn init(library: Option<OsString>) -> Result<Nvml, NvmlError> {
    match &library {
        Some(path) => Nvml::builder().lib_path(path).init(),
        None => Nvml::init(),
    }
}

fn all(nvml: &Nvml) -> Result<Value, NvmlError> {
    let cuda = nvml.sys_cuda_driver_version()?;
    let gpus = (0..nvml.device_count()?).map(|index| {
        let told = nvml.device_by_index(index).and_then(|gpu| one(nvml, &gpu));
        told.unwrap_or_else(|e| json!({"error": e.to_string()}))
    });
    Ok(json!({
        "driver": nvml.sys_driver_version()?,
        "cuda": format!("{}.{}", cuda_driver_version_major(cuda), cuda_driver_version_minor(cuda)),
        "gpus": gpus.collect::<Vec<_>>(),
    }))
}

fn one(nvml: &Nvml, gpu: &Device) -> Result<Value, NvmlError> {
    let arch = gpu.cuda_compute_capability().ok();
    let usage = gpu.utilization_rates().ok();
    // Of a split GPU: those of its parts.
    let processes = gpu.running_compute_processes().unwrap_or_default();
    Ok(json!({
        "uuid": gpu.uuid()?,
        "bus": gpu.pci_info()?.bus_id,
        // The words of NVIDIA_REQUIRE_*: tesla, geforcertx.
        "brand": gpu.brand().ok().map(|b| format!("{b:?}").to_lowercase()),
        "arch": arch.map(|a| format!("{}.{}", a.major, a.minor)),
        "memory": memory(nvml, gpu),
        // Percent of the last sample period.
        "utilization": usage.map(|u| json!({"gpu": u.gpu, "memory": u.memory})),
        "processes": processes.iter().map(|p| json!({
            "pid": p.pid,
            "memory": match p.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            },
            "gpuInstance": p.gpu_instance_id,
            "computeInstance": p.compute_instance_id,
        })).collect::<Vec<_>>(),
        "mig": mig(nvml, gpu)?,
    }))
}

/// Bytes.
fn memory(nvml: &Nvml, gpu: &Device) -> Option<Value> {
    if let Ok(m) = gpu.memory_info() {
        return Some(json!({"total": m.total, "used": m.used, "free": m.free}));
    }
    // Drivers before 510 have only the first version of that call, which the wrapper left behind.
    // SAFETY: as in `instances`; the structure is of plain integers.
    let m = unsafe {
        let mut info = std::mem::zeroed();
        let lib = nvml.lib();
        lib.nvmlDeviceGetMemoryInfo.as_ref().ok()?;
        let code = lib.nvmlDeviceGetMemoryInfo(gpu.handle(), &mut info);
        nvml_wrapper::error::nvml_try(code).ok()?;
        info
    };
    Some(json!({"total": m.total, "used": m.used, "free": m.free}))
}

/// The MIG devices of a GPU; none where MIG is off or unknown to it.
fn mig(nvml: &Nvml, gpu: &Device) -> Result<Vec<Value>, NvmlError> {
    if !gpu.mig_mode().is_ok_and(|m| m.current == 1) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for index in 0..gpu.mig_device_count()? {
        let part = match gpu.mig_device_by_index(index) {
            // The count is of those that could be: places may be empty.
            Err(NvmlError::NotFound) => continue,
            other => other?,
        };
        let (gi, ci) = instances(nvml, &part)?;
        found.push(json!({
            "uuid": part.uuid()?,
            "gpuInstance": gi,
            "computeInstance": ci,
            "memory": memory(nvml, &part),
        }));
    }
    Ok(found)
}

/// Ids of the GPU instance and the compute instance that a MIG device is; the wrapper has no calls for them.
fn instances(nvml: &Nvml, part: &Device) -> Result<(u32, u32), NvmlError> {
    let (mut gi, mut ci) = (0, 0);
    // SAFETY: the handle comes from the library that is called and lives as long as `part`; the pointers are of
    // two local integers. A library without these functions makes the generated calls panic, so that is looked at first.
    let codes = unsafe {
        let lib = nvml.lib();
        if lib.nvmlDeviceGetGpuInstanceId.is_err() || lib.nvmlDeviceGetComputeInstanceId.is_err() {
            return Err(NvmlError::FunctionNotFound);
        }
        let handle = part.handle();
        [
            lib.nvmlDeviceGetGpuInstanceId(handle, &mut gi),
            lib.nvmlDeviceGetComputeInstanceId(handle, &mut ci),
        ]
    };
    for code in codes {
        nvml_wrapper::error::nvml_try(code)?;
    }
    Ok((gi, ci))
}
