//! A container that another runtime is making: entered between its mounts and its program.
//!
//! Owns the way in, for the hooks that runc and crun execute: a child joins the mount namespace (and the
//! user namespace, when there is one), holds the root by a descriptor and carries out a Plan's mounts,
//! nodes and in-root work there. Nothing else of a Plan is looked at, and no process of the container is
//! touched.
//!
//! At that time (prestart, createRuntime, createContainer) the container's root is mounted at its own
//! path, with the host's tree still around it: runc and crun pivot after the hooks (runtime-spec,
//! config.md "Prestart" and "CreateRuntime Hooks").

use super::child::become_root;
use super::fault::{At, Stage, Step};
use super::{spawn, userns};
use crate::plan::{Kind, Plan};
use crate::rootfs::{self, CgroupView, Trees};
use crate::sys::{clone, cred, fd, misc};
use crate::{Error, Result};
use nix::errno::Errno;
use procfs::process::{MountInfo, MountOptFields, Process};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The process that will become the container's program.
#[derive(Debug)]
pub struct Waiting {
    pid: i32,
    pidfd: OwnedFd,
    mount_apart: bool,
    user_apart: bool,
}

impl Waiting {
    /// Finds it by its pid.
    ///
    /// # Errors
    /// There is no such process; its namespaces can't be looked at.
    pub fn open(pid: i32) -> Result<Waiting> {
        let fail = |e: Errno| Error::step("open", format!("process {pid} of the container"), e);
        let pidfd = clone::pidfd_open(pid).map_err(fail)?;
        let waiting = Waiting {
            mount_apart: apart(pid, Kind::Mount)?,
            user_apart: apart(pid, Kind::User)?,
            pid,
            pidfd,
        };
        // As long as it can get a signal, the number is its own, and what was read of it too.
        clone::pidfd_kill(waiting.pidfd.as_fd(), 0).map_err(fail)?;
        Ok(waiting)
    }

    /// It has a user namespace that is not ours.
    pub fn user_namespace(&self) -> bool {
        self.user_apart
    }

    /// Carries out mounts, nodes and in-root work of a Plan whose root is the container's.
    ///
    /// # Errors
    /// The container has no mount namespace of its own, or its root is not mounted in it (then everything
    /// would happen on the host), or a step fails: the error names it. Mounts and nodes made by then are
    /// the container's alone and go with it.
    pub fn carry_out(&self, plan: &Plan) -> Result<()> {
        if !self.mount_apart {
            return Err(Error::unsupported(
                "a hook in this container",
                format!(
                    "its process {} shares our mount namespace: its mounts would be the host's",
                    self.pid
                ),
            ));
        }
        let mut plan = plan.clone();
        plan.namespaces.join = [Kind::Mount, Kind::User]
            .into_iter()
            .map(|kind| Ok((kind, ns_path(self.pid, kind)?)))
            .collect::<Result<_>>()?;
        root_is_mounted(Some(self.pid), &plan, |group| {
            let ours = mounts(None)?;
            Ok(ours.iter().any(|m| peers(m) == Some(group)))
        })?;
        // Sources are the host's: opened here, where nothing of the container is in the way.
        let trees: Trees = rootfs::open_trees(&plan.mounts, true, userns::namespace)
            .map_err(|f| f.explain(&plan))?;
        // Its root may be in our pid namespace and must not look into the child's memory.
        cred::set_dumpable(false).map_err(|e| Error::step("protect", "the hook's memory", e))?;

        let fail = |e: Errno| Error::step("enter", format!("process {}", self.pid), e);
        let who = format!("the child that entered process {}", self.pid);
        spawn::aside(0, &plan, fail, &who, || self.inside(&plan, &trees))
    }

    /// The child's side. Allocates nothing.
    fn inside(&self, plan: &Plan, trees: &Trees) -> Step {
        clone::set_pdeathsig(libc::SIGKILL).at(Stage::Prepare, 0)?;
        misc::umask(0);
        let pidfd = self.pidfd.as_fd();
        // Also changes root and working directory to the namespace's.
        clone::setns(pidfd, libc::CLONE_NEWNS).at(Stage::JoinNamespace, 0)?;
        // Before the ids change: the way to the root may be open to its owner only.
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let root = fd::open_host(&plan.root.path, flags).at(Stage::Root, 0)?;
        if self.user_apart {
            clone::setns(pidfd, libc::CLONE_NEWUSER).at(Stage::JoinNamespace, 1)?;
            become_root().at(Stage::UserNamespace, 0)?;
        }
        carry_out(root.as_fd(), plan, trees)
    }
}

fn carry_out(root: BorrowedFd, plan: &Plan, trees: &Trees) -> Step {
    rootfs::mount_all(root, &plan.mounts, trees, &CgroupView::None)?;
    rootfs::make_dev(root, &plan.dev)?;
    rootfs::inject(root, &plan.in_root)
}

/// The container as one of its createContainer hooks finds it: this process is in the namespaces already.
#[derive(Debug)]
pub struct Inside {
    root: OwnedFd,
}

impl Inside {
    /// Opens the root that `plan` names. `pid` is the container's process, where it is known.
    ///
    /// # Errors
    /// That process is in another mount namespace; the root is not mounted in ours, or is shared with
    /// another.
    pub fn open(pid: Option<i32>, plan: &Plan) -> Result<Inside> {
        if let Some(pid) = pid
            && apart(pid, Kind::Mount)?
        {
            return Err(Error::unsupported(
                "this hook here",
                format!(
                    "process {pid} of the container is in another mount namespace: let it be a \
                     createContainer hook"
                ),
            ));
        }
        root_is_mounted(None, plan, |_| Ok(true))?;
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let root = fd::open_host(&plan.root.path, flags)
            .map_err(|e| Error::step("open", plan.root.path.to_string_lossy(), e))?;
        Ok(Inside { root })
    }

    /// The image's root alone, without the mounts in it.
    ///
    /// # Errors
    /// As open_tree(2).
    pub fn image(&self) -> Result<OwnedFd> {
        crate::sys::mount::clone_tree(self.root.as_fd(), false)
            .map_err(|e| Error::step("clone", "the container's root", e))
    }

    /// Carries out in-root work.
    ///
    /// # Errors
    /// The error names the step that failed.
    pub fn carry_out(&self, plan: &Plan) -> Result<()> {
        let before = misc::umask(0);
        let done = carry_out(self.root.as_fd(), plan, &Trees::new());
        misc::umask(before);
        done.map_err(|f| f.explain(plan))
    }
}

/// Whether a process has another namespace of this kind than we have.
pub(super) fn apart(pid: i32, kind: Kind) -> Result<bool> {
    let id = |path: String| {
        fs::metadata(&path)
            .map(|m| (m.dev(), m.ino()))
            .map_err(|e| Error::step("examine namespace", path, e))
    };
    let file = kind.file();
    Ok(id(format!("/proc/{pid}/ns/{file}"))? != id(format!("/proc/self/ns/{file}"))?)
}

fn ns_path(pid: i32, kind: Kind) -> Result<std::ffi::CString> {
    super::create::c_path(Path::new(&format!("/proc/{pid}/ns/{}", kind.file())))
}

/// The root must be a mount of the container's own: before it is mounted, or after pivot_root, its path
/// means something else. And it must not be a peer of one of the host's, where mounts would show up too.
fn root_is_mounted(
    pid: Option<i32>,
    plan: &Plan,
    hosts: impl FnOnce(u32) -> Result<bool>,
) -> Result<()> {
    let root = plan.root.path.to_string_lossy();
    let all = mounts(pid)?;
    let found = all
        .iter()
        .rev()
        .find(|m| m.mount_point == Path::new(&*root));
    let Some(mount) = found else {
        return Err(Error::unsupported(
            "a hook in this container",
            format!(
                "its root {root} is not mounted in its mount namespace: such a hook belongs to \
                 prestart, createRuntime or createContainer"
            ),
        ));
    };
    match peers(mount) {
        Some(group) if hosts(group)? => Err(Error::unsupported(
            "a hook in this container",
            format!("its root {root} is a shared mount: what is mounted in it would show outside"),
        )),
        _ => Ok(()),
    }
}

/// The mounts that a process sees, or this one: /proc/self, for /proc may be that of another pid namespace
/// than ours.
fn mounts(pid: Option<i32>) -> Result<Vec<MountInfo>> {
    let (process, name) = match pid {
        Some(pid) => (Process::new(pid), pid.to_string()),
        None => (Process::myself(), "self".to_owned()),
    };
    process
        .and_then(|p| p.mountinfo())
        .map(|list| list.into_iter().collect())
        .map_err(|e| {
            Error::step(
                "read",
                format!("/proc/{name}/mountinfo"),
                io::Error::other(e),
            )
        })
}

/// The peer group of a shared mount (proc_pid_mountinfo(5)).
fn peers(mount: &MountInfo) -> Option<u32> {
    mount.opt_fields.iter().find_map(|f| match f {
        MountOptFields::Shared(group) => Some(*group),
        _ => None,
    })
}
