//! The driver's files on the host, by capability.
//!
//! Owns which files of the driver root belong to the driver ([`table`]), where they are ([`search`]) and
//! the container edits that show them to a cell ([`edits`]). It must not look into an image, and must not
//! decide which capabilities a cell has.

mod edits;
mod search;
mod stamp;
mod table;

pub use edits::{Place, gpu_edits, nodes_edits, switch_edits};
pub use stamp::{Stamp, Stamps};
pub use table::Group;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::capabilities::Capabilities;
use super::inventory::{Host, Inventory};
use crate::{Error, Result};
use search::{Root, Search};

/// What a file is, as far as its placement goes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Kind {
    /// A library this machine can load.
    Library {
        /// What programs ask for.
        soname: Option<String>,
        /// Is it one for 32-bit programs?
        bits32: bool,
    },
    /// A program.
    Binary,
    /// Firmware of the GPU's own processor.
    Firmware,
    /// A configuration file.
    Config,
    /// A module of the Xorg server.
    Xorg,
}

/// A file of the driver.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DriverFile {
    /// Where it was found, below the driver root.
    pub path: PathBuf,
    /// The same without links.
    pub real: PathBuf,
    /// Where it is in a cell that keeps the host's layout.
    pub inside: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Who asks for it.
    pub group: Group,
}

impl DriverFile {
    /// Is it asked for?
    fn asked(&self, caps: Capabilities) -> bool {
        let size = match self.kind {
            Kind::Library { bits32, .. } => !bits32 || caps.contains(Capabilities::COMPAT32),
            _ => true,
        };
        size && self.group.asked(caps)
    }

    /// The name of the file.
    pub fn name(&self) -> &str {
        self.path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default()
    }
}

/// All files of the driver.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct DriverFiles {
    /// In the order found: libraries, programs, firmware, configuration, Xorg modules.
    pub files: Vec<DriverFile>,
    /// Directories (and ld.so.cache) below the driver root, there or not, whose change may change the
    /// list.
    #[serde(skip)]
    pub watched: Vec<PathBuf>,
}

/// Searches the driver root.
///
/// # Errors
/// The driver root, or a directory or library in it, can't be read.
pub fn find(host: &Host, inv: &Inventory) -> Result<DriverFiles> {
    let root = Root::open(host)?;
    let mut search = Search::default();
    let library_dirs = search::library_dirs(&root)?;
    search.libraries(&root, &library_dirs, &inv.driver)?;

    let dirs = search::binary_dirs(&root)?;
    for (name, group) in table::BINARIES {
        let kind = |path: PathBuf| (Kind::Binary, group, path);
        search.first(&root, &dirs, name, kind)?;
    }

    search.firmware(&root, &search::firmware_dirs(host, &inv.driver))?;

    // /vulkan: GKE's driver root has it there.
    let dirs = ["/etc", "/usr/local/share", "/usr/share", "/"].map(PathBuf::from);
    for (name, place) in table::CONFIGS {
        let kind = |_| (Kind::Config, Group::Graphics, Path::new(place).join(name));
        search.first(&root, &dirs, name, kind)?;
    }

    // Next to the libraries that were found, not in each of forty folders.
    let mut beside: Vec<PathBuf> = Vec::new();
    for dir in search.files.iter().filter_map(|f| f.path.parent()) {
        if !dir.ends_with("vdpau") && library_dirs.iter().any(|d| d == dir) {
            beside.push(dir.to_owned());
        }
    }
    beside.dedup();
    let dirs = search::xorg_dirs(&beside);
    for name in table::XORG {
        let name = name.replace('%', &inv.driver);
        let kind = |path: PathBuf| (Kind::Xorg, Group::Graphics, path);
        search.first(&root, &dirs, &name, kind)?;
    }
    search.watch(Path::new(search::LD_CACHE));
    Ok(DriverFiles {
        files: search.files,
        watched: search.watched,
    })
}

/// The driver versions that the library folders hold a libcuda or libnvidia-ml of, sorted: more than the
/// module's own is a half-done upgrade.
///
/// # Errors
/// The driver root, or a directory in it, can't be read.
pub fn versions(host: &Host) -> Result<Vec<String>> {
    let root = Root::open(host)?;
    let mut found = Vec::new();
    for dir in search::library_dirs(&root)? {
        for name in root.list(&dir)?.map(|(_, names)| names).unwrap_or_default() {
            let version = match name.split_once(".so.") {
                Some(("libcuda" | "libnvidia-ml", version)) => version,
                _ => continue,
            };
            if super::inventory::is_version(version) && !found.iter().any(|f| f == version) {
                found.push(version.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What a capability that is asked for by name can't be without: the first of these that is there.
const NEEDED: [(Capabilities, &[&str]); 6] = [
    (Capabilities::COMPUTE, &["libcuda"]),
    (Capabilities::UTILITY, &["libnvidia-ml"]),
    (Capabilities::VIDEO, &["libnvcuvid", "libnvidia-encode"]),
    (Capabilities::NGX, &["libnvidia-ngx"]),
    (
        Capabilities::GRAPHICS,
        &["libnvidia-glcore", "libnvidia-eglcore"],
    ),
    (
        Capabilities::DISPLAY,
        &["libnvidia-glcore", "libnvidia-eglcore"],
    ),
];

impl DriverFiles {
    /// The files that these capabilities ask for.
    pub fn asked(&self, caps: Capabilities) -> impl Iterator<Item = &DriverFile> {
        self.files.iter().filter(move |f| f.asked(caps))
    }

    /// Checks that the host has what the capabilities stand for. Who asks for all of them gets those
    /// there are, but the driver's libraries at all.
    ///
    /// # Errors
    /// Names the capability and the library that isn't there.
    pub fn check(&self, inv: &Inventory, caps: Capabilities) -> Result<()> {
        let driver = &inv.driver;
        let has = |stem: &str, bits: bool| {
            self.files.iter().any(|f| {
                matches!(f.kind, Kind::Library { bits32, .. } if bits32 == bits)
                    && f.name().split_once(".so.").is_some_and(|(s, _)| s == stem)
            })
        };
        let missing = |cap: Capabilities, what: &str| {
            Error::unsupported(
                format!("driver capability {cap}"),
                format!(
                    "no {what}.so.{driver} in the library folders of {}: install the driver's \
                     libraries of the kernel module's version",
                    inv.host().driver_root.display()
                ),
            )
        };
        if caps == Capabilities::ALL {
            return match has("libcuda", false) || has("libnvidia-ml", false) {
                true => Ok(()),
                false => Err(missing(caps, "libcuda")),
            };
        }
        for (cap, stems) in NEEDED {
            if caps.contains(cap) && !stems.iter().any(|s| has(s, false)) {
                return Err(missing(cap, stems[0]));
            }
        }
        let any32 = |f: &DriverFile| matches!(f.kind, Kind::Library { bits32: true, .. });
        if caps.contains(Capabilities::COMPAT32) && !self.files.iter().any(any32) {
            return Err(missing(Capabilities::COMPAT32, "32-bit lib*"));
        }
        Ok(())
    }
}
