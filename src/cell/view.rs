//! What a creation must look up on the host: cgroup mounts to show, LSMs present, the mount
//! above the root, attributes that only the parent may set.

use super::create::c_path;
use super::store::Saved;
use crate::cgroup::{CgroupPlan, CgroupState, Mode};
use crate::plan::{Kind, MountWhat, Plan, ProcessPlan};
use crate::process::seccomp::Program;
use crate::rootfs::{CgroupView, V1Mount};
use crate::sys::{misc, socket};
use crate::{Error, Result};
use oci_spec::runtime::Spec;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Refuses what this host lacks, by name, before anything is made.
pub fn refuse(spec: &Spec, plan: &Plan) -> Result<()> {
    super::host_parts::refuse(plan)?;
    host_net_sysctls(plan)?;
    let linux = spec.linux().as_ref();
    let mount_label = linux.and_then(|l| l.mount_label().clone());
    refuse_labels(&plan.process, mount_label.is_some_and(|l| !l.is_empty()))?;
    for kind in KINDS {
        if plan.namespaces.makes(kind) {
            let path = format!("/proc/self/ns/{}", kind.file());
            if !Path::new(&path).exists() {
                return Err(Error::unsupported(
                    format!("linux.namespaces {}", kind.file()),
                    "the kernel has no such namespace",
                ));
            }
        }
    }
    Ok(())
}

/// Refuses labels of a security module that this host has not got.
pub fn refuse_labels(p: &ProcessPlan, mount_label: bool) -> Result<()> {
    let label = p.selinux.is_some() || mount_label;
    if label && !Path::new("/sys/fs/selinux/enforce").exists() {
        return Err(Error::unsupported(
            "process.selinuxLabel",
            "SELinux is disabled or not built into this kernel",
        ));
    }
    if p.apparmor.is_some() {
        let on = fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|t| t.starts_with('Y'));
        if !on {
            return Err(Error::unsupported(
                "process.apparmorProfile",
                "AppArmor is disabled or not built into this kernel",
            ));
        }
    }
    Ok(())
}

/// `net.*` parameters written in a joined namespace that is the host's own would be the host's.
fn host_net_sysctls(plan: &Plan) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let Some(path) = plan.namespaces.joins(Kind::Network) else {
        return Ok(());
    };
    let Some((name, _)) = plan
        .sysctls
        .iter()
        .find(|(n, _)| n.as_bytes().starts_with(b"net/"))
    else {
        return Ok(());
    };
    let path = Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
    let id = |p: &Path| {
        fs::metadata(p)
            .map(|m| (m.dev(), m.ino()))
            .map_err(|e| Error::step("examine namespace", p.display().to_string(), e))
    };
    if id(path)? != id(Path::new("/proc/self/ns/net"))? {
        return Ok(());
    }
    Err(Error::config(
        format!("linux.sysctl.{}", name.to_string_lossy().replace('/', ".")),
        "the network namespace joined is the host's own",
    ))
}

/// Kinds that a kernel may lack (the others are older than the oldest kernel supported).
const KINDS: [Kind; 2] = [Kind::User, Kind::Time];

/// What `cgroup` mounts of the Plan show on this host.
///
/// Without a cgroup namespace that is the host's whole tree. A user's cell gets it read-only: the groups that are delegated
/// to its user are not the cell's to change (CVE-2023-25809).
pub fn cgroup_view(plan: &Plan, cgroup: &CgroupPlan, rootless: bool) -> Result<CgroupView> {
    if !plan.mounts.iter().any(|m| m.what == MountWhat::Cgroup) {
        return Ok(CgroupView::None);
    }
    let ns = &plan.namespaces;
    let namespace = ns.makes(Kind::Cgroup) || ns.joins(Kind::Cgroup).is_some();
    let mode = match cgroup.mode() {
        Some(mode) => mode,
        None => crate::cgroup::Host::detect()?.mode,
    };
    if mode == Mode::V2 {
        return Ok(CgroupView::V2 {
            host: c_path(Path::new(crate::cgroup::MOUNT))?,
            namespace,
            read_only: rootless && !namespace,
        });
    }
    v1_view(&cgroup.saved(), namespace)
}

fn v1_view(state: &CgroupState, namespace: bool) -> Result<CgroupView> {
    let text = |s: &str| c_path(Path::new(s));
    let mut list = Vec::new();
    for group in state.v1.iter().chain(&state.v2) {
        let name = Path::new(&group.mount)
            .file_name()
            .map_or(String::new(), |n| n.to_string_lossy().into_owned());
        let v2 = group.controllers.is_empty();
        let mut options: Vec<(CString, Option<CString>)> = Vec::new();
        for c in &group.controllers {
            match c.split_once('=') {
                // A named hierarchy has no controller: `none,name=systemd`.
                Some((k, v)) => {
                    options.push((text("none")?, None));
                    options.push((text(k)?, Some(text(v)?)));
                }
                None => options.push((text(c)?, None)),
            }
        }
        let links = group
            .controllers
            .iter()
            .filter(|c| group.controllers.len() > 1 && **c != name)
            .map(|c| text(c))
            .collect::<Result<_>>()?;
        list.push(V1Mount {
            name: text(&name)?,
            links,
            options,
            fstype: text(if v2 { "cgroup2" } else { "cgroup" })?,
            bind: match namespace {
                true => None,
                false => Some(text(&group.full_path())?),
            },
        });
    }
    Ok(CgroupView::V1(list))
}

/// The mount point that holds the root directory, when it may be shared with the host: only a
/// recursive change to something else reaches it.
pub fn parent_mount(plan: &Plan) -> Result<Option<CString>> {
    if plan.root.propagation & libc::MS_REC != 0 && plan.root.propagation & libc::MS_SHARED == 0 {
        return Ok(None);
    }
    let root = Path::new(std::ffi::OsStr::from_bytes(plan.root.path.as_bytes()));
    let fail =
        |e: procfs::ProcError| Error::step("read", "/proc/self/mountinfo", io::Error::other(e));
    let me = procfs::process::Process::myself().map_err(fail)?;
    let mounts = me.mountinfo().map_err(fail)?;
    let best = mounts
        .into_iter()
        .map(|m| m.mount_point)
        .filter(|m| root.starts_with(m))
        .max_by_key(|m| m.as_os_str().len());
    best.map(|m| c_path(&m)).transpose()
}

/// Attributes that a child in a user namespace may no longer set for itself.
pub fn limits_of(pid: i32, p: &ProcessPlan) -> Result<()> {
    if let Some(text) = &p.oom_score_adj {
        let path = format!("/proc/{pid}/oom_score_adj");
        fs::write(&path, text).map_err(|e| Error::step("write", path, e))?;
    }
    for (resource, soft, hard) in &p.rlimits {
        misc::set_rlimit(pid, *resource, *soft, *hard).map_err(|e| {
            Error::step(
                "set resource limit",
                format!("number {resource} to soft {soft}, hard {hard}"),
                e,
            )
        })?;
    }
    Ok(())
}

/// The process whose system calls an agent is told of.
pub struct Notified<'a> {
    /// Its pid on the host.
    pub pid: i32,
    /// The cell's status.
    pub status: &'a str,
}

/// Sends the seccomp listener with the state the runtime-spec defines (ContainerProcessState).
pub fn send_notify(
    listener: &UnixStream,
    filter: Option<&Program>,
    saved: &Saved,
    at: &Notified,
    fd: BorrowedFd,
) -> Result<()> {
    let metadata = filter
        .and_then(|s| s.notify.as_ref())
        .and_then(|n| n.metadata.clone())
        .unwrap_or_default();
    let state = serde_json::json!({
        "ociVersion": saved.oci_version,
        "fds": ["seccompFd"],
        "pid": at.pid,
        "metadata": metadata,
        "state": {
            "ociVersion": saved.oci_version,
            "id": saved.id,
            "status": at.status,
            "pid": saved.pid,
            "bundle": saved.bundle,
            "annotations": saved.annotations,
        },
    });
    socket::send(listener.as_fd(), state.to_string().as_bytes(), Some(fd))
        .map_err(|e| Error::step("send", "seccomp listener", e))
}
