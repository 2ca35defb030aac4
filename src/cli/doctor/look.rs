//! What `doctor` reads, behind a trait so that the judging is tested on made-up hosts.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::nvidia::capabilities::Capabilities;
use crate::nvidia::config::Config;
use crate::nvidia::files;
use crate::nvidia::inventory::{Host, Inventory};
use crate::nvidia::nodes::{self, Node, State};

/// Reads the host.
pub(super) trait Look {
    /// Text of a file; `None` when it can't be read.
    fn read(&self, path: &str) -> Option<String>;
    /// Whether a path is there.
    fn exists(&self, path: &str) -> bool;
    /// Whether the caller may write to a path.
    fn writable(&self, path: &str) -> bool;
    /// A program on PATH (and in the sbin directories, which a user's PATH may lack).
    fn program(&self, name: &str) -> Option<PathBuf>;
    /// `uname -r`.
    fn release(&self) -> String;
    /// Effective user id.
    fn uid(&self) -> u32;
    /// Login name of the caller, when the environment has it.
    fn user(&self) -> Option<String>;
    /// The init that `--init` would take.
    fn init(&self) -> Option<PathBuf>;
    /// The NVIDIA driver, when its module is loaded.
    fn nvidia(&self) -> Option<Result<Nvidia>>;
}

/// What there is of the NVIDIA driver.
#[derive(Clone, Debug)]
pub(super) struct Nvidia {
    /// Version of the module.
    pub(super) driver: String,
    /// The newest CUDA version it supports.
    pub(super) cuda: Option<String>,
    /// Number of GPUs.
    pub(super) gpus: usize,
    /// How many of them have no UUID yet.
    pub(super) sleeping: usize,
    /// Is nvidia-uvm loaded?
    pub(super) uvm: bool,
    /// Nodes of loaded modules.
    pub(super) nodes: Vec<(Node, State)>,
    /// Versions of the driver's libraries.
    pub(super) libraries: Vec<String>,
    /// CDI files that name a libcuda, and its version.
    pub(super) cdi: Vec<(PathBuf, String)>,
}

impl Nvidia {
    fn read(config: &Config) -> Result<Self> {
        let host = Host::from(config);
        let inv = Inventory::read(&host)?;
        let uvm = inv.majors.uvm.is_some();
        let caps = match uvm {
            true => Capabilities::ALL,
            // Control nodes of what is loaded.
            false => Capabilities::UTILITY,
        };
        let mut all = nodes::control(&inv, caps)?;
        for chosen in inv.all()? {
            let own = nodes::gpu_nodes(&inv, &chosen)?;
            // The MIG devices of a GPU share its node.
            all.extend(
                own.into_iter()
                    .filter(|n| !all.contains(n))
                    .collect::<Vec<_>>(),
            );
        }
        let state = |n: Node| n.state().map(|s| (n, s));
        Ok(Nvidia {
            nodes: all.into_iter().map(state).collect::<Result<_>>()?,
            libraries: files::versions(&host)?,
            gpus: inv.gpus.len(),
            sleeping: inv.gpus.iter().filter(|g| g.uuid.is_none()).count(),
            uvm,
            cuda: inv.cuda,
            driver: inv.driver,
            cdi: cdi(&config.cdi_dirs),
        })
    }
}

/// The CDI files of these folders that name a libcuda, with its version.
fn cdi(dirs: &[PathBuf]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in dirs.iter().flat_map(std::fs::read_dir).flatten().flatten() {
        let path = entry.path();
        let known = path.extension().is_some_and(|e| e == "json" || e == "yaml");
        let Some(text) = known.then(|| std::fs::read_to_string(&path).ok()).flatten() else {
            continue;
        };
        found.extend(libcuda(&text).map(|version| (path, version.to_owned())));
    }
    found.sort();
    found
}

/// The version of the first libcuda with a full version in the text.
pub(super) fn libcuda(text: &str) -> Option<&str> {
    text.split("libcuda.so.").skip(1).find_map(|rest| {
        let end = rest.find(|c: char| c != '.' && !c.is_ascii_digit());
        let version = rest.get(..end.unwrap_or(rest.len()))?;
        crate::nvidia::inventory::is_version(version).then_some(version)
    })
}

/// This host.
pub(super) struct Live;

impl Look for Live {
    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(path).ok()
    }

    fn exists(&self, path: &str) -> bool {
        Path::new(path).exists()
    }

    fn writable(&self, path: &str) -> bool {
        nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok()
    }

    fn program(&self, name: &str) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let extra = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        std::env::split_paths(&path)
            .chain(extra)
            .map(|dir| dir.join(name))
            .find(|p| nix::unistd::access(p, nix::unistd::AccessFlags::X_OK).is_ok())
    }

    fn release(&self) -> String {
        nix::sys::utsname::uname()
            .map(|u| u.release().to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    fn uid(&self) -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    fn user(&self) -> Option<String> {
        std::env::var("USER").ok()
    }

    fn init(&self) -> Option<PathBuf> {
        crate::cli::init::find().ok()
    }

    fn nvidia(&self) -> Option<Result<Nvidia>> {
        let config = match Config::load(None) {
            Ok(config) => config,
            Err(e) => return Some(Err(e)),
        };
        let loaded = Host::from(&config).driver_proc().join("version").exists();
        loaded.then(|| Nvidia::read(&config))
    }
}
