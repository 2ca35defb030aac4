//! The search for the driver's files below the driver root.
//!
//! Every name is resolved with the driver root as `/` (openat2(2), RESOLVE_IN_ROOT): a link of a driver
//! container can't lead to the host's files. Only names of the table are opened.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::table::{self, Group};
use super::{DriverFile, Kind};
use crate::nvidia::elf::{self, Class, Elf};
use crate::nvidia::inventory::Host;
use crate::nvidia::ldcache::{self, Cache};
use crate::sys::fd;
use crate::{Error, Result};

/// Machine of this build and of its 32-bit sister (elf.h), and the folders distributions keep their
/// libraries in: Debian's multiarch, Debian's alternatives, Red Hat's lib64, Arch's lib32, NixOS.
#[cfg(target_arch = "x86_64")]
const MACHINES: (u16, u16) = (elf::EM_X86_64, elf::EM_386);
#[cfg(target_arch = "aarch64")]
const MACHINES: (u16, u16) = (elf::EM_AARCH64, elf::EM_ARM);
#[cfg(target_arch = "x86_64")]
const MULTIARCH: [&str; 2] = ["x86_64-linux-gnu", "i386-linux-gnu"];
#[cfg(target_arch = "aarch64")]
const MULTIARCH: [&str; 2] = ["aarch64-linux-gnu", "arm-linux-gnueabihf"];

/// The driver root, held.
pub(super) struct Root {
    fd: OwnedFd,
    /// Its path without links: what /proc says of files below it begins with this.
    real: PathBuf,
}

/// A file or directory below the root.
pub(super) struct Found {
    pub fd: OwnedFd,
    /// Its path below the root, without links.
    pub real: PathBuf,
    pub mode: u32,
}

fn root_failed(host: &Host, e: Errno) -> Error {
    Error::step(
        "open driver root",
        host.driver_root.display().to_string(),
        e,
    )
}

/// Holds the driver root.
///
/// # Errors
/// It can't be opened.
pub(super) fn open_root(host: &Host) -> Result<OwnedFd> {
    let path = CString::new(host.driver_root.as_os_str().as_bytes())
        .map_err(|_| root_failed(host, Errno::EINVAL))?;
    fd::open_host(&path, libc::O_PATH | libc::O_DIRECTORY).map_err(|e| root_failed(host, e))
}

impl Root {
    pub(super) fn open(host: &Host) -> Result<Self> {
        let fd = open_root(host)?;
        let real = path_of(&fd).map_err(|e| root_failed(host, e))?;
        Ok(Root { fd, real })
    }

    /// Opens a path below the root; `None` when it isn't there.
    pub(super) fn open_at(&self, path: &Path, flags: i32) -> Result<Option<Found>> {
        let failed = |e: Errno| {
            let object = format!("{} in {}", path.display(), self.real.display());
            Error::step("open", object, e)
        };
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| failed(Errno::EINVAL))?;
        let fd = match fd::open_in_root(self.fd.as_fd(), &name, flags) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let real = path_of(&fd).map_err(failed)?;
        let below = match real.strip_prefix(&self.real) {
            Ok(below) => Path::new("/").join(below),
            // Removed or moved away meanwhile.
            Err(_) => return Ok(None),
        };
        let mode = fd::fstat(fd.as_fd()).map_err(failed)?.mode;
        Ok(Some(Found {
            fd,
            real: below,
            mode,
        }))
    }

    /// The names in a directory below the root and its real path; `None` when there is none.
    pub(super) fn list(&self, dir: &Path) -> Result<Option<(PathBuf, Vec<String>)>> {
        let Some(found) = self.open_at(dir, libc::O_RDONLY | libc::O_DIRECTORY)? else {
            return Ok(None);
        };
        let failed = |e: rustix::io::Errno| Error::step("read", dir.display().to_string(), e);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(found.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            names.extend(entry.file_name().to_str().ok().map(str::to_owned));
        }
        names.sort_unstable();
        Ok(Some((found.real, names)))
    }
}

/// The path of a descriptor, as /proc tells it. Always the real /proc: a stand-in knows no descriptors.
fn path_of(fd: &OwnedFd) -> Result<PathBuf, Errno> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    nix::fcntl::readlink(link.as_str()).map(PathBuf::from)
}

fn is_file(mode: u32) -> bool {
    mode & libc::S_IFMT == libc::S_IFREG
}

/// The search's result, and every directory that was or would have been searched, for the cache's key.
#[derive(Default)]
pub(super) struct Search {
    pub files: Vec<DriverFile>,
    /// Below the driver root, each once.
    pub watched: Vec<PathBuf>,
}

impl Search {
    pub(super) fn watch(&mut self, dir: &Path) {
        if !self.watched.iter().any(|w| w == dir) {
            self.watched.push(dir.to_owned());
        }
    }

    /// Libraries of both word sizes, each name once: the first folder wins.
    pub(super) fn libraries(&mut self, root: &Root, dirs: &[PathBuf], driver: &str) -> Result<()> {
        let mut seen_dirs = HashSet::new();
        let mut seen = HashSet::new();
        for dir in dirs {
            self.watch(dir);
            let Some((real, names)) = root.list(dir)? else {
                continue;
            };
            // /lib is /usr/lib on most.
            if !seen_dirs.insert(real) {
                continue;
            }
            for name in names {
                let Some(group) = table::library(&name, driver) else {
                    continue;
                };
                let path = dir.join(&name);
                let Some((file, bits32)) = library(root, path, group)? else {
                    continue;
                };
                if seen.insert((name, bits32)) {
                    self.add(file);
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, file: DriverFile) {
        // A link's file lies elsewhere, and can be replaced there.
        if let Some(dir) = file.real.parent() {
            self.watch(dir);
        }
        self.files.push(file);
    }

    /// The first of `dirs` that has the file.
    pub(super) fn first(
        &mut self,
        root: &Root,
        dirs: &[PathBuf],
        name: &str,
        file: impl Fn(PathBuf) -> (Kind, Group, PathBuf),
    ) -> Result<bool> {
        for dir in dirs {
            let path = dir.join(name);
            if let Some(parent) = path.parent() {
                self.watch(parent);
            }
            let Some(found) = root.open_at(&path, libc::O_PATH)? else {
                continue;
            };
            if is_file(found.mode) {
                let (kind, group, inside) = file(path.clone());
                self.add(DriverFile {
                    path,
                    real: found.real,
                    inside,
                    kind,
                    group,
                });
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Every `gsp*.bin` of the folders, each name once.
    pub(super) fn firmware(&mut self, root: &Root, dirs: &[PathBuf]) -> Result<()> {
        let mut seen = HashSet::new();
        for dir in dirs {
            self.watch(dir);
            let Some((_, names)) = root.list(dir)? else {
                continue;
            };
            for name in names {
                let gsp = name.starts_with("gsp") && name.ends_with(".bin");
                if !gsp || !seen.insert(name.clone()) {
                    continue;
                }
                let kind = |path: PathBuf| (Kind::Firmware, Group::Always, path);
                self.first(root, std::slice::from_ref(dir), &name, kind)?;
            }
        }
        Ok(())
    }
}

/// A library if it is one that this machine can load: (file, is it 32-bit).
fn library(root: &Root, path: PathBuf, group: Group) -> Result<Option<(DriverFile, bool)>> {
    // A FIFO of that name must not stop us.
    let Some(found) = root.open_at(&path, libc::O_RDONLY | libc::O_NONBLOCK)? else {
        return Ok(None);
    };
    if !is_file(found.mode) {
        return Ok(None);
    }
    let file = File::from(found.fd);
    let elf = Elf::read(&file).map_err(|e| Error::step("read", path.display().to_string(), e))?;
    let Some(elf) = elf else {
        return Ok(None);
    };
    let bits32 = match (elf.machine, elf.class) {
        (machine, Class::Bits64) if machine == MACHINES.0 => false,
        (machine, Class::Bits32) if machine == MACHINES.1 => true,
        _ => return Ok(None),
    };
    let file = DriverFile {
        inside: path.clone(),
        path,
        real: found.real,
        kind: Kind::Library {
            soname: elf.soname,
            bits32,
        },
        group,
    };
    Ok(Some((file, bits32)))
}

/// Folders of libraries, in order: the fixed ones, those ld.so.cache names, /usr/local/nvidia (driver
/// installers of GKE and others), NixOS's.
pub(super) fn library_dirs(root: &Root) -> Result<Vec<PathBuf>> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    for (arch, lib, lib_bits) in [
        (MULTIARCH[0], "lib", "lib64"),
        (MULTIARCH[1], "lib", "lib32"),
    ] {
        for top in ["/usr", "/"] {
            let top = Path::new(top);
            let multiarch = top.join(lib).join(arch);
            dirs.push(multiarch.clone());
            dirs.push(multiarch.join("nvidia/current"));
            dirs.push(top.join(lib_bits));
        }
    }
    dirs.extend(["/usr/lib".into(), "/lib".into()]);
    for dir in cached_dirs(root)? {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs.extend(
        [
            "/usr/local/nvidia/lib64",
            "/usr/local/nvidia/lib",
            "/usr/local/nvidia/lib32",
        ]
        .map(PathBuf::from),
    );
    // Where there is NixOS they are made at boot. Elsewhere they must not be watched for: /run changes
    // all the time.
    for dir in ["/run/opengl-driver/lib", "/run/opengl-driver-32/lib"] {
        if root.open_at(Path::new(dir), libc::O_PATH)?.is_some() {
            dirs.push(dir.into());
        }
    }
    let mut all = Vec::with_capacity(dirs.len() * 2);
    for dir in dirs {
        let vdpau = dir.join("vdpau");
        all.push(dir);
        all.push(vdpau);
    }
    Ok(all)
}

/// Folders that the driver root's ld.so.cache names for libraries of the driver.
fn cached_dirs(root: &Root) -> Result<Vec<PathBuf>> {
    let path = Path::new(LD_CACHE);
    let Some(found) = root.open_at(path, libc::O_RDONLY | libc::O_NONBLOCK)? else {
        return Ok(Vec::new());
    };
    let mut bytes = Vec::new();
    if is_file(found.mode) {
        File::from(found.fd)
            .take(ldcache::CACHE_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::step("read", LD_CACHE, e))?;
    }
    let mut dirs: Vec<PathBuf> = Vec::new();
    for entry in Cache::parse(&bytes).unwrap_or_default().entries {
        if !table::marks_directory(&entry.name) {
            continue;
        }
        let path = Path::new(std::ffi::OsStr::from_bytes(&entry.path));
        if let Some(dir) = path.parent()
            && path.is_absolute()
            && !dirs.iter().any(|d| d == dir)
        {
            dirs.push(dir.to_owned());
        }
    }
    Ok(dirs)
}

/// The loader's cache.
pub(super) const LD_CACHE: &str = "/etc/ld.so.cache";

/// Folders of programs: the usual ones, then our own PATH, which is the host's.
pub(super) fn binary_dirs(root: &Root) -> Result<Vec<PathBuf>> {
    let mut dirs: Vec<PathBuf> = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
        "/usr/local/nvidia/bin",
    ]
    .map(PathBuf::from)
    .to_vec();
    // As the libraries' /run/opengl-driver.
    let nixos = Path::new("/run/current-system/sw/bin");
    if root.open_at(nixos, libc::O_PATH)?.is_some() {
        dirs.push(nixos.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for dir in std::env::split_paths(&path).filter(|d| d.is_absolute()) {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    Ok(dirs)
}

/// Folders of the GSP firmware, in the kernel's order (Documentation/driver-api/firmware/
/// fw_search_path.rst).
pub(super) fn firmware_dirs(host: &Host, driver: &str) -> Vec<PathBuf> {
    let parameter = host.sys.join("module/firmware_class/parameters/path");
    let own = std::fs::read_to_string(parameter).unwrap_or_default();
    let release = nix::sys::utsname::uname()
        .map(|u| u.release().to_owned())
        .unwrap_or_default();
    let mut dirs = Vec::new();
    if own.trim().starts_with('/') {
        dirs.push(PathBuf::from(own.trim()));
    }
    for dir in ["/lib/firmware/updates", "/lib/firmware"] {
        dirs.push(Path::new(dir).join(&release));
        dirs.push(dir.into());
    }
    let below = |dir: PathBuf| dir.join("nvidia").join(driver);
    dirs.into_iter().map(below).collect()
}

/// Folders of Xorg's modules, next to the libraries and where Xorg looks.
pub(super) fn xorg_dirs(libraries: &[PathBuf]) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    let fixed = ["/usr/lib", "/usr/lib64"].map(PathBuf::from);
    for lib in libraries.iter().chain(&fixed) {
        for below in [
            "nvidia/xorg",
            "xorg/modules/drivers",
            "xorg/modules/extensions",
            "xorg/modules/updates/drivers",
            "xorg/modules/updates/extensions",
        ] {
            let dir = lib.join(below);
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
    }
    dirs
}
