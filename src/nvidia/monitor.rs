//! What only NVML knows: asked of `gpucell-monitor`, a program of its own (folder `monitor`).
//!
//! Owns the call and its answer. The runtime is static and cannot load the driver's library; nor would it want
//! to, for NVML takes from half a second to many to start where the driver isn't kept loaded
//! (nvidia-persistenced). So it is asked only where nothing else can tell: UUIDs of MIG devices, conditions on
//! `arch` and `brand`, and figures for people. It must not be called for a cell that needs none of these.

use std::cell::OnceCell;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::cache::Driver;
use super::config::Config;
use super::files::{self, DriverFiles, Kind};
use super::inventory::{Gpu, Inventory};
use crate::{Error, Result};

/// Without nvidia-persistenced the driver has been seen to take 25 s for eight GPUs.
const LIMIT: Duration = Duration::from_secs(90);
/// A longer answer is none: eight GPUs with a thousand processes make 100 KiB.
const MAX_SIZE: usize = 4 << 20;
/// NVML's library, by the name that programs ask for.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// NVML's answer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct Told {
    /// In NVML's order.
    pub gpus: Vec<ToldGpu>,
}

/// What NVML says of one GPU; `None`: it doesn't.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct ToldGpu {
    /// All else is missing then.
    pub error: Option<String>,
    /// `GPU-…`.
    pub uuid: Option<String>,
    /// As NVML writes it: `00000000:0F:00.0`.
    bus: String,
    /// As NVIDIA_REQUIRE_* has it: `tesla`.
    pub brand: Option<String>,
    /// Compute capability: `9.0`.
    pub arch: Option<String>,
    /// Of the whole GPU.
    pub memory: Option<Memory>,
    /// Of the last sample period.
    pub utilization: Option<Utilization>,
    /// That compute on it.
    pub processes: Vec<Process>,
    /// Its MIG devices.
    pub mig: Vec<ToldMig>,
}

/// GPU memory, in bytes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Memory {
    /// All there is.
    pub total: u64,
    /// Taken, by the driver too.
    pub used: u64,
    /// To be had.
    pub free: u64,
}

/// Percent of the time in which a kernel ran, and in which memory was read or written.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Utilization {
    /// Percent.
    pub gpu: u32,
    /// Percent.
    pub memory: u32,
}

/// A process on a GPU.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// In the pid namespace of the caller.
    pub pid: u32,
    /// Bytes of GPU memory.
    pub memory: Option<u64>,
    /// On a split GPU: id of the GPU instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<u32>,
    /// Id of the compute instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_instance: Option<u32>,
}

/// A MIG device.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ToldMig {
    /// `MIG-…`.
    pub uuid: String,
    /// Id of its GPU instance.
    pub gpu_instance: u32,
    /// Id of its compute instance.
    pub compute_instance: u32,
    /// Of its part.
    pub memory: Option<Memory>,
}

impl Told {
    /// What is said of a GPU of ours.
    pub fn of(&self, gpu: &Gpu) -> Option<&ToldGpu> {
        self.gpus.iter().find(|told| same_bus(&told.bus, &gpu.bus))
    }
}

/// NVML writes the PCI domain with eight digits, procfs with four.
fn same_bus(nvml: &str, procfs: &str) -> bool {
    let parts = |text: &str| {
        let (domain, rest) = text.split_once(':')?;
        let domain = u32::from_str_radix(domain, 16).ok()?;
        Some((domain, rest.to_ascii_lowercase()))
    };
    parts(nvml).is_some_and(|n| Some(n) == parts(procfs))
}

/// NVML, asked at most once, and only if somebody has to know.
pub struct Nvml<'a> {
    config: &'a Config,
    driver: &'a Driver,
    told: OnceCell<Told>,
}

impl<'a> Nvml<'a> {
    /// Asks nothing yet.
    pub fn new(config: &'a Config, driver: &'a Driver) -> Self {
        Nvml {
            config,
            driver,
            told: OnceCell::new(),
        }
    }

    /// Its answer.
    ///
    /// # Errors
    /// As [`ask`].
    pub fn told(&self) -> Result<&Told> {
        if let Some(told) = self.told.get() {
            return Ok(told);
        }
        let driver = self.driver;
        let told = ask(self.config, &driver.inventory, Some(&driver.files))?;
        Ok(self.told.get_or_init(|| told))
    }
}

/// Asks NVML. `files`: the driver's, where they are known already.
///
/// # Errors
/// The program isn't installed, NVML doesn't start, or it doesn't answer in 90 seconds.
pub fn ask(config: &Config, inv: &Inventory, files: Option<&DriverFiles>) -> Result<Told> {
    let program = &config.monitor;
    let library = library(config, inv, files)?;
    let text = answer(program, library.as_deref(), LIMIT)?;
    serde_json::from_slice(&text).map_err(|e| {
        Error::msg(format!(
            "{}: its answer is not understood: {e}",
            program.display()
        ))
    })
}

/// The driver's own library, where the loader would not find it or find another one.
fn library(
    config: &Config,
    inv: &Inventory,
    files: Option<&DriverFiles>,
) -> Result<Option<PathBuf>> {
    if config.driver_root == Path::new("/") {
        return Ok(None);
    }
    let searched;
    let files = match files {
        Some(files) => files,
        None => {
            searched = files::find(inv.host(), inv)?;
            &searched
        }
    };
    let wanted = |f: &&files::DriverFile| matches!(&f.kind, Kind::Library { soname: Some(name), bits32: false } if name == LIBRARY);
    let Some(found) = files.files.iter().find(wanted) else {
        let root = config.driver_root.display();
        return Err(Error::unsupported(
            "what only NVML knows",
            format!("no {LIBRARY} of this driver in {root}"),
        ));
    };
    let inside = found.real.strip_prefix("/").unwrap_or(&found.real);
    Ok(Some(config.driver_root.join(inside)))
}

fn answer(program: &Path, library: Option<&Path>, limit: Duration) -> Result<Vec<u8>> {
    let show = || program.display().to_string();
    let fail = |e: std::io::Error| Error::step("run", show(), e);
    let spawned = Command::new(program)
        .args(library)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(Error::unsupported(
                "what only NVML knows",
                format!(
                    "{} is not there: install gpucell-monitor, or say where it is ([nvidia] monitor)",
                    show()
                ),
            ));
        }
        other => other.map_err(fail)?,
    };
    let read = listen(&mut child, limit);
    if !matches!(read, Ok(Some(_))) {
        let _ = child.kill();
    }
    let end = child.wait().map_err(fail)?;
    let text = match read.map_err(fail)? {
        Some(text) => text,
        None => {
            return Err(Error::msg(format!(
                "{}: no answer in {} s, or one of more than {} MiB",
                show(),
                limit.as_secs(),
                MAX_SIZE >> 20
            )));
        }
    };
    if end.success() {
        return Ok(text);
    }
    let mut why = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut why);
    }
    let why = why.trim().trim_start_matches("gpucell-monitor: ");
    Err(Error::msg(match why {
        "" => format!("{}: {end}", show()),
        why => format!("{}: {why}", show()),
    }))
}

/// All it says; `None`: that took too long, or was too much.
fn listen(child: &mut Child, limit: Duration) -> std::io::Result<Option<Vec<u8>>> {
    let end = Instant::now() + limit;
    let mut out = child.stdout.take().expect("piped");
    let mut text = Vec::new();
    let mut chunk = [0; 16384];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(out.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return Ok(None),
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        match out.read(&mut chunk)? {
            0 => return Ok(Some(text)),
            n => text.extend_from_slice(&chunk[..n]),
        }
        if text.len() > MAX_SIZE {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn bus_ids_of_nvml_and_procfs() {
        for (nvml, procfs, same) in [
            ("00000000:0F:00.0", "0000:0f:00.0", true),
            ("0000:0f:00.0", "0000:0f:00.0", true),
            ("00010000:0F:00.0", "10000:0f:00.0", true),
            ("00000001:0F:00.0", "0000:0f:00.0", false),
            ("00000000:1F:00.0", "0000:0f:00.0", false),
            ("", "", false),
            ("x:0F:00.0", "x:0f:00.0", false),
        ] {
            assert_eq!(same_bus(nvml, procfs), same, "{nvml} {procfs}");
        }
    }

    /// A program that is a script.
    fn script(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("monitor");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path)
    }

    fn ask(text: &str, limit: u64) -> Result<String, String> {
        let (_dir, path) = script(text);
        let library = Path::new("/lib/x");
        let got = answer(&path, Some(library), Duration::from_millis(limit));
        let text = got.map_err(|e| e.to_string().replace(path.to_str().unwrap(), "M"))?;
        Ok(String::from_utf8(text).unwrap())
    }

    #[test]
    fn answers_and_failures() {
        assert_eq!(ask("echo $1", 60_000).unwrap(), "/lib/x\n");
        let wrong = ask("echo 'gpucell-monitor: NVML: no' >&2; exit 1", 60_000);
        assert_eq!(wrong.unwrap_err(), "M: NVML: no");
        let wrong = ask("exit 3", 60_000).unwrap_err();
        assert!(wrong.contains("M: exit status: 3"), "{wrong}");
        let late = ask("exec sleep 60", 50).unwrap_err();
        assert!(late.starts_with("M: no answer"), "{late}");
        let long = ask("exec cat /dev/zero", 60_000).unwrap_err();
        assert!(long.contains("more than 4 MiB"), "{long}");
    }

    #[test]
    fn a_program_that_isnt_there() {
        let got = answer(Path::new("/nowhere/monitor"), None, LIMIT);
        let text = got.unwrap_err().to_string();
        assert!(text.contains("/nowhere/monitor is not there"), "{text}");
    }
}
