//! Spec → Plan.
//!
//! Owns the translation of every runtime-spec field into the kernel's terms, and the refusal of
//! what can't be translated. Looks at nothing outside its arguments, except that paths the Plan
//! names are made absolute below the bundle.

mod dev;
pub mod exec;
mod hooks;
mod mounts;
mod process;

pub use hooks::{hook, works};
pub(crate) use mounts::{Member, is_bind, known_options, proc_file};
pub use process::{DEFAULT_PATH, cap_mask, cpu_list, process};
pub(crate) use process::{MEMORY_FLAGS, MEMORY_MODES};

use crate::nvidia::hook::Work;
use crate::plan::{IdMaps, IdRange, Kind, Namespaces, OverlayPlan, Plan, RootPlan};
use crate::{Error, Result};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, LinuxNetDevice, Spec};
use std::ffi::CString;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What lowering needs to know besides the Spec.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// The cell's id (names its keyring).
    pub id: &'a str,
    /// Canonical absolute path of the root directory.
    pub rootfs: &'a Path,
    /// Canonical absolute path of the bundle (relative bind sources start there).
    pub bundle: &'a Path,
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// `--no-new-keyring`.
    pub no_new_keyring: bool,
    /// The caller can't make device nodes (user namespace, or not root).
    pub bind_devices: bool,
    /// Root is an overlay over a shared directory.
    pub overlay: Option<OverlayPlan>,
}

/// Lowers a checked Spec: the Plan, and the work of NVIDIA's hooks, which needs a look at the image to become the
/// Plan's [`in_root`](Plan::in_root). Errors name the JSON path.
pub fn lower(spec: &Spec, ctx: &Context) -> Result<(Plan, Vec<Work>)> {
    let linux = spec.linux().as_ref().ok_or_else(|| {
        Error::config(
            "linux",
            "missing: a Linux container needs at least a mount namespace",
        )
    })?;
    let namespaces = namespaces(linux)?;
    if !namespaces.makes(Kind::Mount) && namespaces.joins(Kind::Mount).is_none() {
        return Err(Error::config(
            "linux.namespaces",
            "no mount namespace: the cell's mounts would be made on the host",
        ));
    }
    let id_maps = id_maps(linux, &namespaces)?;
    let in_userns = namespaces.makes(Kind::User) || namespaces.joins(Kind::User).is_some();
    let proc_spec = spec
        .process()
        .as_ref()
        .ok_or_else(|| Error::config("process", "missing"))?;
    let mut process = process::process(proc_spec)?;
    process.personality = process::personality(linux)?;
    process.mempolicy = process::mempolicy(linux)?;
    process.keyring = if ctx.no_new_keyring {
        None
    } else {
        Some(keyring(ctx.id)?)
    };
    let mounts = mounts::mounts(spec, ctx, id_maps.as_ref())?;
    let dev = dev::dev(spec, &mounts, ctx.bind_devices || in_userns)?;
    let seccomp = match linux.seccomp() {
        Some(s) => Some(crate::process::seccomp::compile(s)?),
        None => None,
    };
    let hooks = hooks::hooks(spec)?;
    let root = spec
        .root()
        .as_ref()
        .ok_or_else(|| Error::config("root", "missing"))?;
    let plan = Plan {
        time_offsets: time_offsets(linux, &namespaces)?,
        root: RootPlan {
            path: cstr("root.path", ctx.rootfs.as_os_str().as_bytes())?,
            readonly: root.readonly().unwrap_or(false),
            propagation: root_propagation(linux)?,
            no_pivot: ctx.no_pivot,
            overlay: ctx.overlay.clone(),
        },
        mounts,
        dev,
        masked: paths("linux.maskedPaths", linux.masked_paths())?,
        readonly: paths("linux.readonlyPaths", linux.readonly_paths())?,
        sysctls: sysctls(linux)?,
        hostname: name_bytes("hostname", spec.hostname())?,
        domainname: name_bytes("domainname", spec.domainname())?,
        net_devices: net_devices(linux),
        intel_rdt: linux.intel_rdt().clone(),
        process,
        seccomp,
        create_container: hooks.create_container,
        start_container: hooks.start_container,
        create_runtime: hooks.create_runtime,
        in_root: Default::default(),
        namespaces,
        id_maps,
    };
    Ok((plan, hooks.works))
}

/// Lowers the mounts and nodes of an edit alone, for a root that another runtime has made from the
/// configuration `of`: the Plan holds nothing else. Errors name the JSON path in the edit's Spec.
pub fn added(edit: &Spec, of: &Spec, ctx: &Context) -> Result<Plan> {
    let id_maps = match of.linux() {
        Some(linux) => id_maps(linux, &namespaces(linux)?)?,
        None => None,
    };
    Ok(Plan {
        root: RootPlan {
            path: cstr("root.path", ctx.rootfs.as_os_str().as_bytes())?,
            ..RootPlan::default()
        },
        mounts: mounts::mounts(edit, ctx, id_maps.as_ref())?,
        dev: dev::added(edit, of, ctx.bind_devices)?,
        ..Plan::default()
    })
}

/// The name of a cell's session keyring (runc's).
fn keyring(id: &str) -> Result<CString> {
    cstr("id", format!("_ses.{id}").as_bytes())
}

/// A C string, or an error that names the JSON path.
/// `at` is only written out when it is needed.
pub(crate) fn cstr(at: impl Display, bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::config(at.to_string(), "contains a NUL byte"))
}

fn paths(at: &str, list: &Option<Vec<String>>) -> Result<Vec<CString>> {
    list.iter()
        .flatten()
        .enumerate()
        .map(|(i, p)| cstr(format_args!("{at}[{i}]"), p.as_bytes()))
        .collect()
}

/// Every namespace there is, in the order of the runtime-spec.
pub(crate) const NAMESPACES: [(LinuxNamespaceType, Kind); 8] = [
    (LinuxNamespaceType::Pid, Kind::Pid),
    (LinuxNamespaceType::Network, Kind::Network),
    (LinuxNamespaceType::Mount, Kind::Mount),
    (LinuxNamespaceType::Ipc, Kind::Ipc),
    (LinuxNamespaceType::Uts, Kind::Uts),
    (LinuxNamespaceType::User, Kind::User),
    (LinuxNamespaceType::Cgroup, Kind::Cgroup),
    (LinuxNamespaceType::Time, Kind::Time),
];

fn namespaces(linux: &Linux) -> Result<Namespaces> {
    let mut out = Namespaces::default();
    for (i, ns) in linux.namespaces().iter().flatten().enumerate() {
        let Some((_, kind)) = NAMESPACES.iter().find(|(typ, _)| *typ == ns.typ()) else {
            return Err(Error::config(
                format!("linux.namespaces[{i}].type"),
                "unknown",
            ));
        };
        let kind = *kind;
        match ns.path() {
            Some(p) if !p.as_os_str().is_empty() => {
                let at = format!("linux.namespaces[{i}].path");
                out.join.push((kind, cstr(at, p.as_os_str().as_bytes())?));
            }
            _ => out.new |= kind as u64,
        }
    }
    Ok(out)
}

/// The maps of one side, in the Plan's form.
pub(crate) fn ranges(list: &Option<Vec<LinuxIdMapping>>) -> Vec<IdRange> {
    list.iter()
        .flatten()
        .map(|m| IdRange {
            inside: m.container_id(),
            outside: m.host_id(),
            count: m.size(),
        })
        .collect()
}

fn id_maps(linux: &Linux, ns: &Namespaces) -> Result<Option<IdMaps>> {
    let maps = IdMaps {
        uids: ranges(linux.uid_mappings()),
        gids: ranges(linux.gid_mappings()),
    };
    if !ns.makes(Kind::User) {
        return Ok(None);
    }
    if maps.uids.is_empty() || maps.gids.is_empty() {
        return Err(Error::config(
            "linux.uidMappings",
            "a new user namespace needs uidMappings and gidMappings",
        ));
    }
    Ok(Some(maps))
}

/// timens_offsets lines (time_namespaces(7)): `monotonic|boottime seconds nanoseconds`.
fn time_offsets(linux: &Linux, ns: &Namespaces) -> Result<Option<String>> {
    if !ns.makes(Kind::Time) {
        return Ok(None);
    }
    let mut text = String::new();
    for (clock, o) in linux.time_offsets().iter().flatten() {
        if clock != "monotonic" && clock != "boottime" {
            return Err(Error::config(
                format!("linux.timeOffsets.{clock}"),
                "unknown clock; the kernel has `monotonic` and `boottime`",
            ));
        }
        let (s, n) = (o.secs().unwrap_or(0), o.nanosecs().unwrap_or(0));
        text.push_str(&format!("{clock} {s} {n}\n"));
    }
    Ok(Some(text))
}

/// mount(2) flags for the first change of propagation. runc's default is a recursive slave: what
/// the host mounts later shows up, nothing goes back.
fn root_propagation(linux: &Linux) -> Result<u64> {
    let rec = libc::MS_REC;
    Ok(match linux.rootfs_propagation().as_deref() {
        None | Some("" | "rslave") => libc::MS_SLAVE | rec,
        Some("slave") => libc::MS_SLAVE,
        Some("private") => libc::MS_PRIVATE,
        Some("rprivate") => libc::MS_PRIVATE | rec,
        Some("shared") => libc::MS_SHARED,
        Some("rshared") => libc::MS_SHARED | rec,
        Some("unbindable") => libc::MS_UNBINDABLE,
        Some("runbindable") => libc::MS_UNBINDABLE | rec,
        Some(other) => {
            return Err(Error::config(
                "linux.rootfsPropagation",
                format!("unknown value {other:?}; use shared, slave, private or unbindable"),
            ));
        }
    })
}

fn sysctls(linux: &Linux) -> Result<Vec<(CString, Vec<u8>)>> {
    let mut out: Vec<_> = Vec::new();
    for (key, value) in linux.sysctl().iter().flatten() {
        let at = format!("linux.sysctl.{key}");
        // As sysctl(8): either separator, the first one found is the separator.
        let path = if key.find('.').unwrap_or(usize::MAX) < key.find('/').unwrap_or(usize::MAX) {
            key.chars()
                .map(|c| match c {
                    '.' => '/',
                    '/' => '.',
                    c => c,
                })
                .collect::<String>()
        } else {
            key.clone()
        };
        if path.is_empty()
            || path
                .split('/')
                .any(|p| p.is_empty() || p == ".." || p == ".")
        {
            return Err(Error::config(at, "not the name of a kernel parameter"));
        }
        out.push((cstr(at, path.as_bytes())?, value.clone().into_bytes()));
    }
    out.sort();
    Ok(out)
}

fn name_bytes(at: &'static str, name: &Option<String>) -> Result<Option<Vec<u8>>> {
    match name.as_deref() {
        None | Some("") => Ok(None),
        // __NEW_UTS_LEN of include/uapi/linux/utsname.h.
        Some(n) if n.len() > 64 => Err(Error::config(at, "longer than 64 bytes")),
        Some(n) => Ok(Some(n.as_bytes().to_vec())),
    }
}

/// In a fixed order.
fn net_devices(linux: &Linux) -> Vec<(String, LinuxNetDevice)> {
    let mut list: Vec<_> = linux
        .net_devices()
        .iter()
        .flatten()
        .map(|(name, device)| (name.clone(), device.clone()))
        .collect();
    list.sort_by(|a, b| a.0.cmp(&b.0));
    list
}
