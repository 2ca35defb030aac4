//! Container edits that show the driver to a cell.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::search::Root;
use super::{DriverFile, DriverFiles, Kind};
use crate::nvidia::capabilities::Capabilities;
use crate::nvidia::hook::Work;
use crate::nvidia::inventory::{Chosen, Host, Inventory};
use crate::nvidia::nodes::{self, Node, State};
use crate::spec::edit::{ContainerEdits, EditMount};
use crate::{Error, Result};

/// Where a cell sees the driver's files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// Where the driver root has them; numbers of device nodes are left to the reader. For CDI files.
    Host,
    /// In an image's own folders.
    Image {
        /// Libraries, `/usr/lib/x86_64-linux-gnu`.
        lib_dir: PathBuf,
        /// 32-bit libraries; none: the image has no folder for them.
        lib32_dir: Option<PathBuf>,
    },
}

/// Files: what the driver writes on a host stays the host's. Nothing is mounted on a file's own mount, so
/// there is nothing to recurse into.
const FILE: [&str; 5] = ["ro", "nosuid", "nodev", "bind", "private"];
/// Sockets and what is like them: connecting needs write access.
const SOCKET: [&str; 5] = ["nosuid", "nodev", "noexec", "rbind", "rprivate"];

/// Sockets of daemons, and who asks for them.
const SOCKETS: [(&str, Capabilities); 2] = [
    ("/run/nvidia-persistenced/socket", Capabilities::UTILITY),
    ("/run/nvidia-fabricmanager/socket", Capabilities::UTILITY),
];

fn mount(host: PathBuf, inside: PathBuf, options: &[&str]) -> EditMount {
    EditMount {
        host_path: host,
        container_path: inside,
        typ: None,
        options: options.iter().map(|o| (*o).to_owned()).collect(),
    }
}

/// A path below the driver root as a path of the host.
fn on_host(host: &Host, below: &Path) -> PathBuf {
    let relative = below.strip_prefix("/").unwrap_or(below);
    host.driver_root.join(relative)
}

/// A link of a name to another in the same folder, or wherever `to` says.
type Link = (PathBuf, PathBuf);

fn set_link(links: &mut Vec<Link>, to: &str, at: PathBuf) {
    // As text: comparing paths part by part takes ten times as long, and there are sixty.
    links.retain(|(_, other)| other.as_os_str() != at.as_os_str());
    links.push((to.into(), at));
}

impl DriverFiles {
    /// Everything that is the same for every GPU: files, sockets, control nodes, links, and the work in
    /// the root.
    ///
    /// # Errors
    /// The host lacks what a capability stands for; the image has no place for 32-bit libraries; an old
    /// module state ([`nodes::control`]).
    pub fn common_edits(
        &self,
        inv: &Inventory,
        caps: Capabilities,
        place: &Place,
    ) -> Result<ContainerEdits> {
        self.check(inv, caps)?;
        let host = inv.host();
        let mut edits = nodes_edits(&nodes::control(inv, caps)?, place)?;
        let mut links: Vec<Link> = Vec::new();
        let mut folders: Vec<PathBuf> = Vec::new();
        for file in self.asked(caps) {
            let Some(inside) = inside(file, caps, place)? else {
                continue;
            };
            let dir = inside.parent().unwrap_or(Path::new("/")).to_owned();
            file_links(file, &dir, &inv.driver, &mut links);
            // vdpau finds its driver in that folder by itself.
            let library = matches!(file.kind, Kind::Library { .. }) && !dir.ends_with("vdpau");
            if library && !folders.iter().any(|f| f.as_os_str() == dir.as_os_str()) {
                folders.push(dir);
            }
            edits
                .mounts
                .push(mount(on_host(host, &file.real), inside, &FILE));
        }
        edits.mounts.extend(sockets(host, caps)?);

        let mut works = Vec::new();
        if !links.is_empty() {
            works.push(Work::Symlinks(links));
        }
        if caps.contains(Capabilities::COMPUTE) {
            works.push(Work::CudaCompat {
                host_driver: inv.driver.clone(),
            });
        }
        if !folders.is_empty() {
            works.push(Work::LdCache(folders));
        }
        works.push(Work::KeepDeviceNodes);
        if graphics(caps) {
            works.push(Work::ApplicationProfile);
        }
        edits.hooks.extend(works.iter().map(Work::to_hook));
        Ok(edits)
    }
}

fn graphics(caps: Capabilities) -> bool {
    caps.contains(Capabilities::GRAPHICS) || caps.contains(Capabilities::DISPLAY)
}

/// The file's path in the cell; `None`: no place for it, and that is fine.
fn inside(file: &DriverFile, caps: Capabilities, place: &Place) -> Result<Option<PathBuf>> {
    let Place::Image { lib_dir, lib32_dir } = place else {
        return Ok(Some(file.inside.clone()));
    };
    Ok(match (&file.kind, lib32_dir) {
        (Kind::Library { bits32: false, .. }, _) => Some(lib_dir.join(file.name())),
        (Kind::Library { .. }, Some(dir)) => Some(dir.join(file.name())),
        (Kind::Library { .. }, None) if caps == Capabilities::ALL => None,
        (Kind::Library { .. }, None) => {
            return Err(Error::unsupported(
                "driver capability compat32",
                "the image has no folder for 32-bit libraries",
            ));
        }
        (Kind::Binary, _) => Some(Path::new("/usr/bin").join(file.name())),
        (Kind::Firmware | Kind::Config | Kind::Xorg, _) => Some(file.inside.clone()),
    })
}

/// The links a file in `dir` needs: its SONAME, and the names that programs open without a version
/// (NVIDIA Container Toolkit, `internal/discover/symlinks.go` and `graphics.go`).
fn file_links(file: &DriverFile, dir: &Path, driver: &str, links: &mut Vec<Link>) {
    let name = file.name();
    let stem = name.split_once(".so.").map_or(name, |(stem, _)| stem);
    if let Kind::Library { soname, .. } = &file.kind {
        if let Some(soname) = soname.as_deref().filter(|s| *s != name) {
            set_link(links, name, dir.join(soname));
        }
        match stem {
            "libcuda" => set_link(links, "libcuda.so.1", dir.join("libcuda.so")),
            "libnvidia-opticalflow" => set_link(
                links,
                "libnvidia-opticalflow.so.1",
                dir.join("libnvidia-opticalflow.so"),
            ),
            "libGLX_nvidia" => set_link(links, name, dir.join("libGLX_indirect.so.0")),
            "libnvidia-allocator" => set_link(
                links,
                "../libnvidia-allocator.so.1",
                dir.join("gbm/nvidia-drm_gbm.so"),
            ),
            "libnvidia-vulkan-producer" => {
                set_link(links, name, dir.join("libnvidia-vulkan-producer.so"));
            }
            _ => {}
        }
    }
    if file.kind == Kind::Xorg && name == format!("libglxserver_nvidia.so.{driver}") {
        set_link(links, name, dir.join("libglxserver_nvidia.so"));
    }
}

/// Sockets that are there now, and the pipes of the CUDA multi process service.
fn sockets(host: &Host, caps: Capabilities) -> Result<Vec<EditMount>> {
    let root = Root::open(host)?;
    let mut mounts = Vec::new();
    for (path, cap) in SOCKETS {
        if !caps.contains(cap) {
            continue;
        }
        if let Some(found) = root.open_at(Path::new(path), libc::O_PATH)?
            && found.mode & libc::S_IFMT == libc::S_IFSOCK
        {
            mounts.push(mount(on_host(host, &found.real), path.into(), &SOCKET));
        }
    }
    if caps.contains(Capabilities::COMPUTE)
        && let Some((pipes, real)) = mps_pipes(&root)?
    {
        mounts.push(mount(on_host(host, &real), pipes, &SOCKET));
    }
    Ok(mounts)
}

/// The folder with the pipes of CUDA's multi process service, and the same without links, if it is there.
/// Where the administrator says (in our own environment, which is the host's) it is believed. The default
/// is in /tmp, where anybody could put a link to a folder that isn't his: there it must be no link, and
/// root's or our own, so that nobody else can swap it before it is mounted (the sticky bit of /tmp).
fn mps_pipes(root: &Root) -> Result<Option<(PathBuf, PathBuf)>> {
    let named = std::env::var_os("CUDA_MPS_PIPE_DIRECTORY")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute());
    let ours = named.is_some();
    let pipes = named.unwrap_or_else(|| "/tmp/nvidia-mps".into());
    let nofollow = if ours { 0 } else { libc::O_NOFOLLOW };
    let Some(found) = root.open_at(&pipes, libc::O_PATH | nofollow)? else {
        return Ok(None);
    };
    if found.mode & libc::S_IFMT != libc::S_IFDIR {
        return Ok(None);
    }
    let owner = rustix::fs::fstat(&found.fd)
        .map_err(|e| Error::step("stat", pipes.display().to_string(), e))?
        .st_uid;
    let trusted = ours || owner == 0 || owner == nix::unistd::geteuid().as_raw();
    Ok(trusted.then_some((pipes, found.real)))
}

/// Nodes, and the groups of those that not everybody may open.
///
/// # Errors
/// A node's path on the host can't be looked at.
pub fn nodes_edits(nodes: &[Node], place: &Place) -> Result<ContainerEdits> {
    let mut edits = ContainerEdits::default();
    let mut groups = BTreeSet::new();
    for node in nodes {
        let state = node.state()?;
        // A reader of a CDI file finds the numbers at the path, if it is there by then.
        let numbers = *place != Place::Host || !matches!(state, State::Here { .. });
        edits.device_nodes.push(node.edit(numbers.then_some(state)));
        groups.extend(node.group(state));
    }
    edits.additional_gids.extend(groups);
    Ok(edits)
}

/// What belongs to one GPU or MIG device: its nodes; for graphics its DRM nodes, with their links by
/// PCI address.
///
/// # Errors
/// As [`nodes::gpu_nodes`]; sysfs or /dev can't be read.
pub fn gpu_edits(
    inv: &Inventory,
    chosen: &Chosen,
    caps: Capabilities,
    place: &Place,
) -> Result<ContainerEdits> {
    let mut all = nodes::gpu_nodes(inv, chosen)?;
    let mut links: Vec<Link> = Vec::new();
    if graphics(caps) {
        let drm = nodes::drm(inv.host(), &chosen.gpu.bus)?;
        for node in &drm {
            let name = node.path.file_name().and_then(|n| n.to_str());
            let name = name.unwrap_or_default();
            // udev's 60-drm.rules name them so.
            let kind = if name.starts_with("card") {
                "card"
            } else {
                "render"
            };
            let at = format!("/dev/dri/by-path/pci-{}-{kind}", chosen.gpu.bus);
            set_link(&mut links, &format!("../{name}"), at.into());
        }
        all.extend(drm);
    }
    let mut edits = nodes_edits(&all, place)?;
    if !links.is_empty() {
        edits.hooks.push(Work::Symlinks(links).to_hook());
    }
    Ok(edits)
}

/// What the `enabled` switches (`NVIDIA_GDS` and its like), MIG control and IMEX channels add.
///
/// # Errors
/// The driver or device behind a switch that is on isn't there.
pub fn switch_edits(
    inv: &Inventory,
    request: &super::super::select::Request,
    place: &Place,
) -> Result<ContainerEdits> {
    let host = inv.host();
    let mut all = nodes::mig_control(inv, request.mig_config, request.mig_monitor)?;
    all.extend(nodes::imex(inv, &request.imex)?);
    if request.gds {
        all.extend(nodes::by_name(host, "", "nvidia-fs", "GPUDirect Storage")?);
    }
    if request.mofed {
        let what = "Mellanox OFED";
        all.extend(nodes::by_name(host, "infiniband", "uverbs", what)?);
        all.extend(nodes::by_name(host, "infiniband", "rdma_cm", what)?);
    }
    if request.gdrcopy {
        all.extend(nodes::by_name(host, "", "gdrdrv", "GDRCopy")?);
    }
    if request.nvswitch {
        all.extend(nodes::by_name(host, "", "nvidia-nvswitch", "NVSwitch")?);
    }
    let mut edits = nodes_edits(&all, place)?;
    if request.gds {
        // udev's database says which disk lies on which bus.
        for path in ["/run/udev", "/etc/cufile.json"] {
            let at = on_host(host, Path::new(path));
            match fs::metadata(&at) {
                Ok(_) => edits.mounts.push(mount(at, path.into(), &FILE)),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(Error::step("stat", at.display().to_string(), e)),
            }
        }
    }
    Ok(edits)
}
