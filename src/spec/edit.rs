//! Edits: the only way anything is added to a [`Spec`].
//!
//! Owns the edit type and [`apply`]. An edit is a container edit as the Container Device Interface
//! (CDI 1.1) defines it (env, device node, mount, hook, Intel RDT, additional gid, net device) or an
//! override from the command line. Every edit says why it is there; `gpucell explain` prints that.
//!
//! It must not decide anything (flags and discovery do) and must not touch the host, but for the one
//! look that CDI asks for: the `lstat` of a device node whose type or numbers were left out.

mod cdi;
mod describe;
mod device;
mod resources;
#[cfg(test)]
mod tests;

pub use cdi::{ContainerEdits, DeviceNode, EditHook, EditIntelRdt, EditMount, NetDevice};
pub use device::{HostNode, host_node};

use device::{add_device, add_rule};

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{
    BoxBuilder as ConsoleBoxBuilder, Hook, Linux, LinuxCapabilities, LinuxCpu, LinuxDeviceCgroup,
    LinuxHugepageLimit, LinuxIntelRdt, LinuxMemory, LinuxNamespace, LinuxNamespaceType,
    LinuxNetDevice, LinuxSeccomp, LinuxThrottleDevice, LinuxWeightDevice, Mount, PosixRlimit,
    Process, Root, Spec, User,
};
use serde::Serialize;

use crate::{Error, Result};

/// One addition to a Spec, with the reason a user can read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Edit {
    /// Why it is made: a flag as typed (`--memory 4g`), a CDI device name, a default.
    pub reason: String,
    /// What is made.
    #[serde(flatten)]
    pub change: Change,
}

impl Edit {
    /// An edit with its reason.
    pub fn new(reason: impl Into<String>, change: Change) -> Self {
        Edit {
            reason: reason.into(),
            change,
        }
    }
}

/// What an [`Edit`] does. The first seven are CDI's.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", content = "value", rename_all = "camelCase")]
pub enum Change {
    /// `KEY=VALUE` in the environment; replaces the same key where it stands.
    Env(String),
    /// A device node, with the device-cgroup rule that lets the cell use it.
    Device(DeviceNode),
    /// A mount; replaces one at the same destination.
    Mount(Mount),
    /// A hook, after those already there for its stage.
    Hook {
        /// When it runs.
        stage: HookStage,
        /// What runs.
        hook: Hook,
    },
    /// Replaces `linux.intelRdt`.
    IntelRdt(LinuxIntelRdt),
    /// Supplementary groups, each once; 0 is ignored as CDI says.
    AdditionalGids(Vec<u32>),
    /// A host network interface moved into the cell.
    NetDevice(NetDevice),

    /// Removes the mount at a destination.
    Unmount(PathBuf),
    /// A device-cgroup rule alone (Docker's `--device-cgroup-rule`).
    DeviceRule(LinuxDeviceCgroup),
    /// Replaces `process.args`.
    Args(Vec<String>),
    /// Replaces `process.cwd`.
    Cwd(PathBuf),
    /// Replaces the user, group and supplementary groups; the umask stays.
    User {
        /// User id in the cell.
        uid: u32,
        /// Primary group id in the cell.
        gid: u32,
        /// Supplementary groups.
        additional_gids: Vec<u32>,
    },
    /// File mode creation mask.
    Umask(u32),
    /// Whether the process gets a terminal.
    Terminal(bool),
    /// Terminal size in characters.
    ConsoleSize {
        /// Rows.
        height: u64,
        /// Columns.
        width: u64,
    },
    /// Replaces all five capability sets.
    Capabilities(LinuxCapabilities),
    /// A resource limit; replaces one of the same type.
    Rlimit(PosixRlimit),
    /// `process.noNewPrivileges`.
    NoNewPrivileges(bool),
    /// AppArmor profile; `None` leaves the process unconfined by it.
    Apparmor(Option<String>),
    /// SELinux label of the process and of its mounts; `None` removes them.
    Selinux {
        /// `process.selinuxLabel`.
        process: Option<String>,
        /// `linux.mountLabel`.
        mount: Option<String>,
    },
    /// Replaces the seccomp filter; `None` removes it.
    Seccomp(Option<LinuxSeccomp>),
    /// `process.oomScoreAdj`, -1000 to 1000.
    OomScoreAdj(i32),
    /// Host name; `None` removes it.
    Hostname(Option<String>),
    /// NIS domain name; `None` removes it.
    Domainname(Option<String>),
    /// One namespace: new, the host's, or an existing one.
    Namespace {
        /// Which.
        typ: LinuxNamespaceType,
        /// Where it comes from.
        from: NamespaceFrom,
    },
    /// Whether the root is read-only.
    RootReadonly(bool),
    /// The rootfs.
    RootPath(PathBuf),
    /// Removes the masked and read-only paths.
    Unmask,
    /// Memory limits: the fields that are set replace.
    Memory(LinuxMemory),
    /// CPU limits: the fields that are set replace.
    Cpu(LinuxCpu),
    /// Number of processes and threads; -1 is no limit.
    Pids(i64),
    /// Block I/O weight, 10 to 1000.
    BlkioWeight(u16),
    /// Block I/O weight of one device.
    BlkioWeightDevice(LinuxWeightDevice),
    /// Block I/O rate limit of one device.
    Throttle {
        /// Which of the four lists.
        which: Throttle,
        /// Device and rate: bytes or operations a second.
        device: LinuxThrottleDevice,
    },
    /// Huge page limit in bytes; replaces one of the same page size.
    Hugepage(LinuxHugepageLimit),
    /// A cgroup v2 file and its value.
    Unified {
        /// File name, as `memory.high`.
        key: String,
        /// What is written to it.
        value: String,
    },
    /// A sysctl of the cell's namespaces.
    Sysctl {
        /// Name with dots.
        key: String,
        /// Value.
        value: String,
    },
    /// An annotation.
    Annotation {
        /// Name.
        key: String,
        /// Value.
        value: String,
    },
    /// `linux.cgroupsPath`.
    CgroupsPath(PathBuf),
}

/// When a hook runs (runtime-spec, config.md "POSIX-platform Hooks").
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum HookStage {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

/// Where a namespace comes from.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NamespaceFrom {
    /// A new one.
    New,
    /// The runtime's own: the entry is removed.
    Host,
    /// An existing one, by its path.
    Path(PathBuf),
}

/// The four throttle lists of `linux.resources.blockIO`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum Throttle {
    ReadBps,
    WriteBps,
    ReadIops,
    WriteIops,
}

/// Applies `edits` in order. When any of them is a mount, all mounts are then sorted by the depth of
/// their destination, those of one depth in their old order: a parent must be mounted before what lies
/// in it (CDI, "OCI Edits": mounts are sorted).
///
/// # Errors
/// A device node that isn't there or isn't of the type named, and a mount or device path that isn't
/// absolute. The Spec may then be half edited and must not be used.
pub fn apply(spec: &mut Spec, edits: &[Edit]) -> Result<()> {
    let mut taken: Option<HashSet<OsString>> = None;
    for edit in edits {
        apply_one(spec, &edit.change, &mut taken)?;
    }
    if taken.is_some()
        && let Some(mounts) = spec.mounts_mut()
    {
        mounts.sort_by_cached_key(|m| depth(m.destination()));
    }
    Ok(())
}

/// `taken`: the destinations of mounts, known from the first added mount on.
fn apply_one(
    spec: &mut Spec,
    change: &Change,
    taken: &mut Option<HashSet<OsString>>,
) -> Result<()> {
    match change {
        Change::Env(pair) => set_env(process(spec), pair),
        Change::Device(node) => add_device(spec, node)?,
        Change::Mount(mount) => {
            let taken = taken.get_or_insert_with(|| destinations(spec));
            add_mount(spec, mount, taken)?;
        }
        Change::Hook { stage, hook } => add_hook(spec, *stage, hook),
        Change::IntelRdt(rdt) => {
            linux(spec).set_intel_rdt(Some(rdt.clone()));
        }
        Change::AdditionalGids(gids) => add_gids(process(spec).user_mut(), gids),
        Change::NetDevice(dev) => {
            let mut entry = LinuxNetDevice::default();
            entry.set_name(dev.name.clone());
            linux(spec)
                .net_devices_mut()
                .get_or_insert_with(HashMap::new)
                .insert(dev.host_interface_name.clone(), entry);
        }
        Change::Unmount(dest) => {
            if let Some(mounts) = spec.mounts_mut() {
                mounts.retain(|m| !same_path(m.destination(), dest));
            }
        }
        Change::DeviceRule(rule) => add_rule(linux(spec), rule.clone()),
        Change::Args(args) => {
            process(spec).set_args(Some(args.clone()));
        }
        Change::Cwd(cwd) => {
            process(spec).set_cwd(cwd.clone());
        }
        Change::User {
            uid,
            gid,
            additional_gids,
        } => set_user(process(spec).user_mut(), *uid, *gid, additional_gids),
        Change::Umask(mask) => {
            process(spec).user_mut().set_umask(Some(*mask));
        }
        Change::Terminal(on) => {
            process(spec).set_terminal(Some(*on));
        }
        Change::ConsoleSize { height, width } => {
            let size = ConsoleBoxBuilder::default()
                .height(*height)
                .width(*width)
                .build()
                .map_err(|e| Error::config("process.consoleSize", e.to_string()))?;
            process(spec).set_console_size(Some(size));
        }
        Change::Capabilities(caps) => {
            process(spec).set_capabilities(Some(caps.clone()));
        }
        Change::Rlimit(limit) => {
            let process = process(spec);
            let mut all = process.rlimits().clone().unwrap_or_default();
            all.retain(|l| l.typ() != limit.typ());
            all.push(*limit);
            process.set_rlimits(Some(all));
        }
        Change::NoNewPrivileges(on) => {
            process(spec).set_no_new_privileges(Some(*on));
        }
        Change::Apparmor(profile) => {
            process(spec).set_apparmor_profile(profile.clone());
        }
        Change::Selinux {
            process: label,
            mount,
        } => {
            process(spec).set_selinux_label(label.clone());
            linux(spec).set_mount_label(mount.clone());
        }
        Change::Seccomp(filter) => {
            linux(spec).set_seccomp(filter.clone());
        }
        Change::OomScoreAdj(adj) => {
            process(spec).set_oom_score_adj(Some(*adj));
        }
        Change::Hostname(name) => {
            spec.set_hostname(name.clone());
        }
        Change::Domainname(name) => {
            spec.set_domainname(name.clone());
        }
        Change::Namespace { typ, from } => set_namespace(linux(spec), *typ, from),
        Change::RootReadonly(on) => {
            root(spec).set_readonly(Some(*on));
        }
        Change::RootPath(path) => {
            root(spec).set_path(path.clone());
        }
        Change::Unmask => {
            linux(spec).set_masked_paths(None).set_readonly_paths(None);
        }
        Change::Sysctl { key, value } => {
            linux(spec)
                .sysctl_mut()
                .get_or_insert_with(HashMap::new)
                .insert(key.clone(), value.clone());
        }
        Change::Annotation { key, value } => {
            spec.annotations_mut()
                .get_or_insert_with(HashMap::new)
                .insert(key.clone(), value.clone());
        }
        Change::CgroupsPath(path) => {
            linux(spec).set_cgroups_path(Some(path.clone()));
        }
        Change::Memory(_)
        | Change::Cpu(_)
        | Change::Pids(_)
        | Change::BlkioWeight(_)
        | Change::BlkioWeightDevice(_)
        | Change::Throttle { .. }
        | Change::Hugepage(_)
        | Change::Unified { .. } => resources::apply(linux(spec), change),
    }
    Ok(())
}

/// An empty `linux` section. (`Linux::default()` of oci-spec is a full example configuration.)
fn empty_linux() -> Linux {
    let mut linux = Linux::default();
    linux
        .set_resources(None)
        .set_namespaces(None)
        .set_masked_paths(None)
        .set_readonly_paths(None);
    linux
}

fn linux(spec: &mut Spec) -> &mut Linux {
    spec.linux_mut().get_or_insert_with(empty_linux)
}

fn root(spec: &mut Spec) -> &mut Root {
    spec.root_mut().get_or_insert_with(|| {
        let mut root = Root::default();
        root.set_readonly(None);
        root
    })
}

fn process(spec: &mut Spec) -> &mut Process {
    spec.process_mut().get_or_insert_with(|| {
        let mut process = Process::default();
        process
            .set_terminal(None)
            .set_args(None)
            .set_env(None)
            .set_no_new_privileges(None)
            .set_capabilities(None)
            .set_rlimits(None);
        process
    })
}

fn set_env(process: &mut Process, pair: &str) {
    let key = pair.split('=').next().unwrap_or(pair);
    let env = process.env_mut().get_or_insert_with(Vec::new);
    let same = |e: &String| e.split('=').next() == Some(key);
    match env.iter().position(same) {
        Some(at) => {
            if let Some(slot) = env.get_mut(at) {
                *slot = pair.to_owned();
            }
        }
        None => env.push(pair.to_owned()),
    }
}

fn set_user(user: &mut User, uid: u32, gid: u32, groups: &[u32]) {
    user.set_uid(uid)
        .set_gid(gid)
        .set_username(None)
        .set_additional_gids((!groups.is_empty()).then(|| groups.to_vec()));
}

fn add_gids(user: &mut User, gids: &[u32]) {
    let list = user.additional_gids_mut().get_or_insert_with(Vec::new);
    for &gid in gids.iter().filter(|g| **g != 0) {
        if !list.contains(&gid) {
            list.push(gid);
        }
    }
    if list.is_empty() {
        user.set_additional_gids(None);
    }
}

/// Where something is mounted. A driver has sixty files: each is looked up, not held against all others.
fn destinations(spec: &Spec) -> HashSet<OsString> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let at = |m: &Mount| normal(m.destination()).into_owned().into_os_string();
    mounts.iter().map(at).collect()
}

/// `taken` holds at least the destinations of all mounts.
fn add_mount(spec: &mut Spec, mount: &Mount, taken: &mut HashSet<OsString>) -> Result<()> {
    let dest = mount.destination();
    if !dest.is_absolute() {
        return Err(Error::msg(format!(
            "mount destination {} is not an absolute path",
            dest.display()
        )));
    }
    let mounts = spec.mounts_mut().get_or_insert_with(Vec::new);
    if !taken.insert(normal(dest).into_owned().into_os_string()) {
        mounts.retain(|m| !same_path(m.destination(), dest));
    }
    mounts.push(mount.clone());
    Ok(())
}

#[allow(deprecated)] // prestart: deprecated by the spec, still carried out
fn add_hook(spec: &mut Spec, stage: HookStage, hook: &Hook) {
    let hooks = spec.hooks_mut().get_or_insert_with(Default::default);
    let list = match stage {
        HookStage::Prestart => hooks.prestart_mut(),
        HookStage::CreateRuntime => hooks.create_runtime_mut(),
        HookStage::CreateContainer => hooks.create_container_mut(),
        HookStage::StartContainer => hooks.start_container_mut(),
        HookStage::Poststart => hooks.poststart_mut(),
        HookStage::Poststop => hooks.poststop_mut(),
    };
    list.get_or_insert_with(Vec::new).push(hook.clone());
}

fn set_namespace(linux: &mut Linux, typ: LinuxNamespaceType, from: &NamespaceFrom) {
    let list = linux.namespaces_mut().get_or_insert_with(Vec::new);
    let at = list.iter().position(|n| n.typ() == typ);
    let path = match from {
        NamespaceFrom::Host => {
            list.retain(|n| n.typ() != typ);
            return;
        }
        NamespaceFrom::New => None,
        NamespaceFrom::Path(path) => Some(path.clone()),
    };
    match at.and_then(|i| list.get_mut(i)) {
        Some(entry) => {
            entry.set_path(path);
        }
        None => {
            let mut entry = LinuxNamespace::default();
            entry.set_typ(typ).set_path(path);
            list.push(entry);
        }
    }
}

/// Number of names in a path: `/` is 0, `/dev/shm` is 2. `.` and doubled slashes don't count, `..`
/// takes one away.
pub(crate) fn depth(path: &Path) -> usize {
    if is_plain(path) {
        let bytes = path.as_os_str().as_encoded_bytes();
        return bytes.iter().filter(|b| **b == b'/').count();
    }
    clean(path).len()
}

/// Whether two absolute paths are the same as text, once `.`, `..` and doubled slashes are taken out.
pub fn same_path(a: &Path, b: &Path) -> bool {
    if is_plain(a) && is_plain(b) {
        return a.as_os_str() == b.as_os_str();
    }
    clean(a) == clean(b)
}

/// Absolute and without `.`, `..`, doubled or trailing slashes, as nearly every path in a configuration
/// is: such paths are compared byte by byte. (Names that start with a dot are taken for not plain.)
pub(crate) fn is_plain(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    let mut before = 0;
    for &byte in bytes {
        if before == b'/' && matches!(byte, b'/' | b'.') {
            return false;
        }
        before = byte;
    }
    bytes.len() > 1 && bytes[0] == b'/' && before != b'/'
}

/// Without `.`, `..` and double slashes, and absolute: what a mount's destination is compared by. Links
/// are resolved by the child.
pub(crate) fn normal(path: &Path) -> Cow<'_, Path> {
    if is_plain(path) {
        return Cow::Borrowed(path);
    }
    let mut out = PathBuf::from("/");
    out.extend(clean(path));
    Cow::Owned(out)
}

fn clean(path: &Path) -> Vec<&std::ffi::OsStr> {
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => {
                names.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names
}
