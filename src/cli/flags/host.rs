//! What [`super::raise`] asks of the host, behind a trait so that the flags stay pure in tests.
//!
//! [`Live`] answers for real. It looks and never changes anything.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Capability;

use crate::cell::Store;
use crate::cli::{init, units};
use crate::spec::edit::{HostNode, host_node};
use crate::sys::fd;
use crate::{Error, Result};

/// Owner of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Owner {
    /// User id on the host.
    pub uid: u32,
    /// Group id on the host.
    pub gid: u32,
    /// Whether it is a directory.
    pub dir: bool,
}

/// What the flags need to know.
pub trait Host {
    /// A variable of gpucell's own environment.
    fn env(&self, key: &str) -> Option<String>;
    /// Text of a file the user named.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// Text of a file in the rootfs, found without leaving it; `None` when it isn't there.
    fn root_file(&self, path: &str) -> Result<Option<String>>;
    /// Whether a path is there in the rootfs.
    fn root_has(&self, path: &str) -> bool;
    /// Capabilities this process may hand on: its bounding set.
    fn capabilities(&self) -> Vec<Capability>;
    /// Owner and kind of a path of the host; the error when it isn't there.
    fn owner(&self, path: &Path) -> io::Result<Owner>;
    /// A device node of the host.
    fn node(&self, path: &Path) -> Result<HostNode>;
    /// All device nodes under a directory of the host.
    fn nodes_in(&self, dir: &Path) -> Result<Vec<PathBuf>>;
    /// The caller's working directory.
    fn cwd(&self) -> io::Result<PathBuf>;
    /// CPUs this process may run on.
    fn cpus(&self) -> BTreeSet<u32>;
    /// Memory nodes of the machine.
    fn mems(&self) -> BTreeSet<u32>;
    /// Whether the memory controller is cgroup v2's.
    fn memory_v2(&self) -> bool;
    /// Whether swap can be limited.
    fn swap_limit(&self) -> bool;
    /// Whether SELinux is on.
    fn selinux(&self) -> bool;
    /// Kernel release, the first two numbers.
    fn kernel(&self) -> (u32, u32);
    /// Path of a namespace (`net`, `pid`, `ipc`) of another running cell.
    fn namespace_of(&self, cell: &str, namespace: &str) -> Result<PathBuf>;
    /// A statically linked init of the host.
    fn find_init(&self) -> Result<PathBuf>;
    /// The folder of a named volume; it need not be there yet.
    fn volume(&self, name: &str) -> Result<PathBuf>;
    /// Host name.
    fn hostname(&self) -> String;
}

/// The machine this runs on.
#[derive(Debug, Default)]
pub struct Live {
    /// The rootfs of the bundle.
    pub rootfs: PathBuf,
    /// The other cells; `None`: none can be named.
    pub cells: Option<Store>,
    /// Where named volumes are.
    pub volumes: PathBuf,
}

/// Text files of a rootfs above this size aren't read (passwd of a big site is well below).
const MAX_TEXT: u64 = 16 << 20;

impl Host for Live {
    fn env(&self, key: &str) -> Option<String> {
        std::env::var(key).ok()
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn root_file(&self, path: &str) -> Result<Option<String>> {
        let object = || format!("{path} in {}", self.rootfs.display());
        // O_NONBLOCK: a FIFO in the image must not hang us.
        let file = match self.open_in_root(path, libc::O_RDONLY | libc::O_NONBLOCK) {
            Ok(file) => file,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                return Ok(None);
            }
            Err(e) => return Err(Error::step("read", object(), e)),
        };
        let regular = file.metadata().map(|m| m.is_file());
        if !regular.map_err(|e| Error::step("read", object(), e))? {
            return Err(Error::msg(format!("{} is not a regular file", object())));
        }
        let mut text = Vec::new();
        file.take(MAX_TEXT)
            .read_to_end(&mut text)
            .map_err(|e| Error::step("read", object(), e))?;
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }

    fn root_has(&self, path: &str) -> bool {
        self.open_in_root(path, libc::O_PATH).is_ok()
    }

    fn capabilities(&self) -> Vec<Capability> {
        let set = caps::read(None, caps::CapSet::Bounding).unwrap_or_default();
        let names = set.iter().map(ToString::to_string);
        names
            .filter_map(|n| n.strip_prefix("CAP_").and_then(|bare| bare.parse().ok()))
            .collect()
    }

    fn owner(&self, path: &Path) -> io::Result<Owner> {
        let meta = std::fs::metadata(path)?;
        Ok(Owner {
            uid: meta.uid(),
            gid: meta.gid(),
            dir: meta.is_dir(),
        })
    }

    fn node(&self, path: &Path) -> Result<HostNode> {
        // Docker follows links given to --device (/dev/cdrom → sr0).
        let real = std::fs::canonicalize(path)
            .map_err(|e| Error::step("device node", path.display().to_string(), e))?;
        host_node(&real)
    }

    fn nodes_in(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut todo = vec![dir.to_owned()];
        while let Some(dir) = todo.pop() {
            let failed = |e| Error::step("read directory", dir.display().to_string(), e);
            for entry in std::fs::read_dir(&dir).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                if entry.file_type().map_err(failed)?.is_dir() {
                    todo.push(entry.path());
                } else if host_node(&entry.path()).is_ok() {
                    found.push(entry.path());
                }
            }
        }
        found.sort();
        Ok(found)
    }

    fn cwd(&self) -> io::Result<PathBuf> {
        std::env::current_dir()
    }

    fn cpus(&self) -> BTreeSet<u32> {
        // sched_getaffinity(2): what nproc(1) and thread pools see.
        let Ok(set) = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)) else {
            return BTreeSet::new();
        };
        (0..nix::sched::CpuSet::count())
            .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
            .filter_map(|cpu| u32::try_from(cpu).ok())
            .collect()
    }

    fn mems(&self) -> BTreeSet<u32> {
        std::fs::read_to_string("/sys/devices/system/node/online")
            .ok()
            .and_then(|text| units::list(&text).ok())
            .unwrap_or_else(|| BTreeSet::from([0]))
    }

    fn memory_v2(&self) -> bool {
        v1_memory_mount().is_none()
    }

    fn swap_limit(&self) -> bool {
        match v1_memory_mount() {
            // cgroup-v1/memory.rst: memsw files exist when swap is accounted.
            Some(dir) => dir.join("memory.memsw.limit_in_bytes").exists(),
            // The root group has no memory.swap.max; its accounting is on with any v2 memory
            // controller unless booted with swapaccount=0 (removed in 6.1).
            None => !std::fs::read_to_string("/proc/cmdline")
                .is_ok_and(|line| line.split_whitespace().any(|w| w == "swapaccount=0")),
        }
    }

    fn selinux(&self) -> bool {
        Path::new("/sys/fs/selinux/enforce").exists()
    }

    fn kernel(&self) -> (u32, u32) {
        let release = nix::sys::utsname::uname()
            .map(|u| u.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map(|n| n.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }

    fn namespace_of(&self, cell: &str, namespace: &str) -> Result<PathBuf> {
        let Some(cells) = &self.cells else {
            return Err(Error::msg(format!("No such container: {cell}")));
        };
        let saved = cells.load(cell)?;
        if !saved.alive() {
            return Err(Error::msg(format!(
                "cannot join namespace of a non running container: {cell}"
            )));
        }
        Ok(PathBuf::from(format!("/proc/{}/ns/{namespace}", saved.pid)))
    }

    fn find_init(&self) -> Result<PathBuf> {
        init::find()
    }

    fn volume(&self, name: &str) -> Result<PathBuf> {
        Ok(self.volumes.join(name))
    }

    fn hostname(&self) -> String {
        nix::unistd::gethostname()
            .map(|h| h.to_string_lossy().into_owned())
            .unwrap_or_default()
    }
}

impl Live {
    /// Opens a path of the rootfs with the rootfs as `/`: no link leads out (openat2(2),
    /// RESOLVE_IN_ROOT).
    fn open_in_root(&self, path: &str, flags: i32) -> io::Result<std::fs::File> {
        let root = std::fs::File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(&self.rootfs)?;
        let path = CString::new(path)?;
        let fd = fd::open_in_root(root.as_fd(), &path, flags | libc::O_CLOEXEC)?;
        Ok(std::fs::File::from(fd))
    }
}

/// Where the v1 memory controller is mounted, if it is.
fn v1_memory_mount() -> Option<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mounts").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (dir, typ, options) = (fields.nth(1)?, fields.next()?, fields.next()?);
        (typ == "cgroup" && options.split(',').any(|o| o == "memory")).then(|| PathBuf::from(dir))
    })
}
