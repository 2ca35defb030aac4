//! Device nodes: which ones a cell needs, and the ones the host lacks.
//!
//! Owns names and numbers of the driver's nodes, and their making. Numbers come from the driver
//! ([`Inventory`]), never from what lies in /dev: after a module is loaded again an old node there leads
//! to another device. It must not decide which GPUs a cell gets.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxDeviceType;

use super::capabilities::Capabilities;
use super::inventory::{Chosen, Host, Inventory, Params, caps_minor};
use crate::spec::edit::DeviceNode;
use crate::{Error, Result};

/// Minor numbers of the major that GPUs have (open-gpu-kernel-modules, `nv-linux.h` and
/// `nvidia-modeset-linux.c`).
const CONTROL: u32 = 255;
const MODESET: u32 = 254;

/// IMEX channels are numbered below 2^20, the kernel's limit of minor numbers.
const IMEX_MAX: u32 = 1 << 20;

/// Capabilities whose libraries include libcuda, which can't start without nvidia-uvm.
const CUDA: [Capabilities; 2] = [Capabilities::COMPUTE, Capabilities::VIDEO];

/// A device node of the driver.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Its path in a cell, `/dev/nvidia0`.
    pub path: PathBuf,
    /// Its path on the host.
    pub host: PathBuf,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Is it a MIG capability? Those are read-only for all (0444), whatever the other nodes are.
    pub capability: bool,
}

impl Node {
    fn new(host: &Host, name: &str, major: u32, minor: u32) -> Self {
        Node {
            path: Path::new("/dev").join(name),
            host: host.dev.join(name),
            major,
            minor,
            capability: false,
        }
    }

    fn capability(host: &Host, major: u32, minor: u32) -> Self {
        Node {
            capability: true,
            ..Node::new(
                host,
                &format!("nvidia-caps/nvidia-cap{minor}"),
                major,
                minor,
            )
        }
    }

    /// What lies at its path on the host.
    ///
    /// # Errors
    /// What lstat(2) says, but for a missing file.
    pub fn state(&self) -> Result<State> {
        let meta = match fs::symlink_metadata(&self.host) {
            Ok(meta) => meta,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(State::Missing);
            }
            Err(e) => return Err(Error::step("lstat", self.host.display().to_string(), e)),
        };
        if !meta.file_type().is_char_device() {
            return Ok(State::Other);
        }
        let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
        Ok(if (major, minor) == (self.major, self.minor) {
            State::Here {
                mode: meta.mode() & 0o7777,
                uid: meta.uid(),
                gid: meta.gid(),
            }
        } else {
            State::Stale { major, minor }
        })
    }

    /// The node as an edit. Owner and permission bits are the host's; numbers are the driver's, or left
    /// out for a CDI file, which outlives a reboot (no state given).
    pub fn edit(&self, state: Option<State>) -> DeviceNode {
        let mut node = DeviceNode {
            path: self.path.clone(),
            host_path: (self.host != self.path).then(|| self.host.clone()),
            permissions: Some("rw".to_owned()),
            ..DeviceNode::default()
        };
        if let Some(state) = state {
            node.typ = Some(LinuxDeviceType::C);
            node.major = Some(self.major.into());
            node.minor = Some(self.minor.into());
            let (mode, uid, gid) = match state {
                State::Here { mode, uid, gid } => (mode, uid, gid),
                _ if self.capability => (0o444, 0, 0),
                _ => (0o666, 0, 0),
            };
            node.file_mode = Some(mode);
            node.uid = Some(uid);
            node.gid = Some(gid);
        }
        node
    }

    /// The group a process needs to open the node in that state, when not everybody may.
    pub fn group(&self, state: State) -> Option<u32> {
        let all = if self.capability { 0o004 } else { 0o006 };
        match state {
            State::Here { mode, gid, .. } if mode & all != all && gid != 0 => Some(gid),
            _ => None,
        }
    }
}

/// What lies at a node's path on the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// The node.
    Here {
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A node with numbers of another device: an old one, from before the module was loaded again.
    Stale {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A file of another kind.
    Other,
    /// Nothing.
    Missing,
}

fn loaded(major: Option<u32>, module: &str) -> Result<u32> {
    major.ok_or_else(|| {
        Error::unsupported(
            module.to_owned(),
            format!("/proc/devices doesn't name it, the module is not loaded: modprobe {module}"),
        )
    })
}

/// The nodes that belong to no GPU: nvidiactl always, nvidia-uvm for CUDA, nvidia-modeset for displays.
///
/// # Errors
/// The module that owns one of them isn't loaded. Only who asks for all capabilities is content with
/// those there are: nvidia-modeset is then left out.
pub fn control(inv: &Inventory, caps: Capabilities) -> Result<Vec<Node>> {
    let host = inv.host();
    let nvidia = loaded(inv.majors.nvidia, "nvidia")?;
    let mut nodes = vec![Node::new(host, "nvidiactl", nvidia, CONTROL)];
    if CUDA.iter().any(|c| caps.contains(*c)) {
        let uvm = loaded(inv.majors.uvm, "nvidia-uvm")?;
        nodes.push(Node::new(host, "nvidia-uvm", uvm, 0));
        nodes.push(Node::new(host, "nvidia-uvm-tools", uvm, 1));
    }
    if caps.contains(Capabilities::DISPLAY) {
        let node = Node::new(host, "nvidia-modeset", nvidia, MODESET);
        let here = host.sys.join("module/nvidia_modeset").exists()
            || matches!(node.state()?, State::Here { .. });
        if here {
            nodes.push(node);
        } else if caps != Capabilities::ALL {
            return loaded(None, "nvidia-modeset").map(|_| Vec::new());
        }
    }
    Ok(nodes)
}

/// The nodes of a GPU; for a MIG device the parent's, and the capabilities of its two instances. A GPU
/// that is asked for whole and is split comes with all its MIG devices.
///
/// # Errors
/// The owning module isn't loaded; procfs can't be read.
pub fn gpu_nodes(inv: &Inventory, chosen: &Chosen) -> Result<Vec<Node>> {
    let host = inv.host();
    let nvidia = loaded(inv.majors.nvidia, "nvidia")?;
    let minor = chosen.gpu.minor;
    let mut nodes = vec![Node::new(host, &format!("nvidia{minor}"), nvidia, minor)];
    let parts = match chosen.mig {
        Some(part) => vec![part],
        None => inv.mig(&chosen.gpu)?,
    };
    if parts.is_empty() {
        return Ok(nodes);
    }
    let major = loaded(inv.majors.caps, "nvidia-caps")?;
    // Compute instances of one GPU instance share its capability.
    let both = |p: super::inventory::Mig| [p.gpu_instance_cap, p.compute_instance_cap];
    let minors: BTreeSet<u32> = parts.into_iter().flat_map(both).collect();
    nodes.extend(minors.into_iter().map(|m| Node::capability(host, major, m)));
    Ok(nodes)
}

/// The capability nodes that let a cell make (`config`) or watch (`monitor`) MIG devices.
///
/// # Errors
/// The driver has no such capability.
pub fn mig_control(inv: &Inventory, config: bool, monitor: bool) -> Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for (wanted, name) in [(config, "config"), (monitor, "monitor")] {
        if wanted {
            let major = loaded(inv.majors.caps, "nvidia-caps")?;
            let minor = caps_minor(inv.host(), name)?;
            nodes.push(Node::capability(inv.host(), major, minor));
        }
    }
    Ok(nodes)
}

/// IMEX channels by their number, which is their minor.
///
/// # Errors
/// The driver has no IMEX channels; a number of 2^20 or more.
pub fn imex(inv: &Inventory, channels: &[u32]) -> Result<Vec<Node>> {
    let node = |&channel: &u32| {
        if channel >= IMEX_MAX {
            return Err(Error::msg(format!(
                "IMEX channel {channel}: the last one is {}",
                IMEX_MAX - 1
            )));
        }
        let major = loaded(inv.majors.imex, "nvidia-caps-imex-channels")?;
        let name = format!("nvidia-caps-imex-channels/channel{channel}");
        Ok(Node::new(inv.host(), &name, major, channel))
    };
    channels.iter().map(node).collect()
}

/// Nodes of other drivers, found in a directory by the beginning of their names, sorted.
///
/// # Errors
/// There is none (`what` is named), or the directory can't be read.
pub fn by_name(host: &Host, dir: &str, prefix: &str, what: &str) -> Result<Vec<Node>> {
    let at = host.dev.join(dir);
    let mut names = Vec::new();
    match fs::read_dir(&at) {
        Ok(entries) => {
            let text = |e: fs::DirEntry| e.file_name().into_string().ok();
            names.extend(entries.flatten().filter_map(text));
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(Error::step("read", at.display().to_string(), e)),
    }
    names.retain(|n| n.starts_with(prefix));
    names.sort();
    let mut nodes = Vec::new();
    for name in names {
        let Ok(meta) = fs::symlink_metadata(at.join(&name)) else {
            continue;
        };
        if meta.file_type().is_char_device() {
            let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
            let name = Path::new(dir).join(name);
            nodes.push(Node::new(host, &name.to_string_lossy(), major, minor));
        }
    }
    if nodes.is_empty() {
        return Err(Error::unsupported(
            what.to_owned(),
            format!("no device node {}{prefix}*", at.join("").display()),
        ));
    }
    Ok(nodes)
}

/// Makes the nodes that the host lacks and replaces stale ones, as nvidia-modprobe does, with the owner
/// and permission bits that the driver's parameters say. Returns the paths of those that are still not
/// there: the caller has no right to make nodes, the file system is read-only, or the administrator
/// has forbidden it (`ModifyDeviceFiles: 0`). A cell with the right to make its own doesn't need them.
///
/// # Errors
/// A file that is no device lies in the way; any other failed step.
pub fn make_missing(host: &Host, nodes: &[Node]) -> Result<Vec<PathBuf>> {
    let mut params = None;
    let mut left = Vec::new();
    for node in nodes {
        match node.state()? {
            State::Here { .. } => continue,
            State::Other => {
                return Err(Error::msg(format!(
                    "{}: not a character device; remove it",
                    node.host.display()
                )));
            }
            State::Missing | State::Stale { .. } => {}
        }
        let params = *params.get_or_insert_with(|| {
            Params::parse(
                &fs::read_to_string(host.driver_proc().join("params")).unwrap_or_default(),
            )
        });
        if !params.modify {
            left.push(node.host.clone());
            continue;
        }
        match make(node, params) {
            Ok(()) => {}
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::EPERM | libc::EACCES | libc::EROFS)
                ) =>
            {
                left.push(node.host.clone());
            }
            Err(e) => return Err(Error::step("mknod", node.host.display().to_string(), e)),
        }
    }
    Ok(left)
}

/// Under another name first: the node appears with its final owner and mode, and an old one is
/// replaced in one step. Two runtimes that do it at once make the same node.
fn make(node: &Node, params: Params) -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    let (Some(dir), Some(name)) = (node.host.parent(), node.host.file_name()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    if let Err(e) = fs::create_dir(dir)
        && e.kind() != ErrorKind::AlreadyExists
    {
        return Err(e);
    }
    let temp = dir.join(format!(
        ".{}.{}",
        name.to_string_lossy(),
        std::process::id()
    ));
    let done = || -> io::Result<()> {
        mknodat(
            CWD,
            &temp,
            FileType::CharacterDevice,
            Mode::RUSR | Mode::WUSR,
            makedev(node.major, node.minor),
        )?;
        let (uid, gid, mode) = match node.capability {
            true => (0, 0, 0o444),
            false => (params.uid, params.gid, params.mode),
        };
        std::os::unix::fs::lchown(&temp, Some(uid), Some(gid))?;
        fs::set_permissions(&temp, fs::Permissions::from_mode(mode))?;
        fs::rename(&temp, &node.host)
    };
    done().inspect_err(|_| {
        let _ = fs::remove_file(&temp);
    })
}

/// The DRM nodes of a GPU by its PCI address, `card*` and `renderD*`, numbers from sysfs. None when
/// nvidia-drm isn't loaded: EGL and Vulkan work without a window then.
///
/// # Errors
/// sysfs can't be read, or a number there isn't one.
pub fn drm(host: &Host, bus: &str) -> Result<Vec<Node>> {
    let dir = host.sys.join("bus/pci/devices").join(bus).join("drm");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::step("read", dir.display().to_string(), e)),
    };
    let mut nodes = Vec::new();
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if !(name.starts_with("card") || name.starts_with("renderD")) {
            continue;
        }
        let path = entry.path().join("dev");
        let text = fs::read_to_string(&path)
            .map_err(|e| Error::step("read", path.display().to_string(), e))?;
        let numbers = text.trim().split_once(':');
        let numbers = numbers.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let Some((major, minor)) = numbers else {
            return Err(Error::msg(format!("{}: {text:?}", path.display())));
        };
        nodes.push(Node::new(host, &format!("dri/{name}"), major, minor));
    }
    nodes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(nodes)
}
