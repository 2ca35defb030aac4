//! Bringing a saved cell back: as a creation, with CRIU in the child's place.
//!
//! State, groups, hooks and undoing are those of [`crate::cell::create`]. What differs: CRIU makes the
//! namespaces and mounts, and the first process is not executed but restored.

use super::criu::{self, Criu, Notice, Place};
use super::facts::{Root, host_path, v1_binds};
use super::request::{self, LEFT_ALONE};
use super::{Folders, RestoreOptions, read_descriptors, refuse};
use crate::cell::create::{self, CreateOptions, Made, Undo, Until};
use crate::cell::fault::Step;
use crate::cell::prepare::Prepared;
use crate::cell::store::{Saved, Store};
use crate::cell::{hooks, host_parts, spawn, status, userns};
use crate::plan::{Kind, MountWhat, Plan};
use crate::rootfs::path::{self, Links};
use crate::rootfs::{self, CgroupView, Trees};
use crate::sys::clone::{self, Child, Exit};
use crate::sys::{cred, socket};
use crate::{Error, Result};
use nix::errno::Errno;
use rust_criu::rust_criu_protobuf::rpc::Criu_req_type;
use std::ffi::CStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// Restores a cell from an image into the groups, with the limits, that its configuration names. It runs when
/// this returns.
///
/// # Errors
/// As [`create::create`]; what [`super::checkpoint`] refuses; the image is missing or no good; criu is missing
/// or fails. Nothing is left behind.
pub fn restore(store: &Store, mut opts: CreateOptions, how: &RestoreOptions) -> Result<Made> {
    let what = format!("restore of cell {}", opts.id);
    refuse(&what, &opts.spec)?;
    let prepared = create::prepared(store, &opts)?;
    let folders = Folders::open(&how.flags)?;
    let descriptors = read_descriptors(&how.flags.images)?;
    let program = criu::find(&what)?;
    cred::set_dumpable(false).map_err(|e| Error::step("protect", "the runtime's memory", e))?;
    let joins = Joined::open(&prepared.plan)?;
    let console = create::console_socket(&opts, &prepared.plan, Until::Running)?;
    let resctrl = host_parts::resctrl_made(prepared.plan.intel_rdt.as_ref(), &opts.id)?;
    let lock = store.create(&opts.id)?;
    let saved = create::first_state(&mut opts, &prepared, resctrl);
    let mut undo = Undo {
        lock: Some(lock),
        saved,
        child: None,
    };
    let way = Way {
        what: &what,
        program: &program,
        opts: &opts,
        prepared: &prepared,
        how,
        folders: &folders,
        joins: &joins,
        descriptors: &descriptors,
    };
    match way.make(&mut undo, console) {
        Ok((console, child)) => Ok(undo.made(child, console, prepared.warnings)),
        Err(e) => {
            undo.undo();
            Err(e)
        }
    }
}

/// Namespaces that the cell is to share.
struct Joined {
    /// Those that CRIU takes by descriptor.
    fds: Vec<OwnedFd>,
    /// Their kinds and descriptors' numbers.
    inherited: Vec<(Kind, i32)>,
    /// Those that it takes by path.
    paths: Vec<(Kind, String)>,
}

impl Joined {
    fn open(plan: &Plan) -> Result<Joined> {
        let mut joined = Joined {
            fds: Vec::new(),
            inherited: Vec::new(),
            paths: Vec::new(),
        };
        for (i, (kind, path)) in plan.namespaces.join.iter().enumerate() {
            let show = path.to_string_lossy().into_owned();
            let file = File::open(host_path(path))
                .map_err(|e| Error::step("open namespace", show.clone(), e))?;
            if *kind == Kind::Cgroup {
                return Err(Error::unsupported(
                    format!("a restore with linux.namespaces[{i}].path"),
                    "CRIU can't join a cgroup namespace",
                ));
            }
            if LEFT_ALONE.contains(kind) {
                joined.inherited.push((*kind, file.as_raw_fd()));
                joined.fds.push(file.into());
            } else {
                joined.paths.push((*kind, show));
            }
        }
        Ok(joined)
    }
}

/// All that a restore needs.
struct Way<'a> {
    what: &'a str,
    program: &'a Path,
    opts: &'a CreateOptions,
    prepared: &'a Prepared,
    how: &'a RestoreOptions,
    folders: &'a Folders,
    joins: &'a Joined,
    descriptors: &'a [String],
}

impl Way<'_> {
    fn make(&self, undo: &mut Undo, console: create::Console) -> Result<(Option<OwnedFd>, Child)> {
        let (p, opts) = (self.prepared, self.opts);
        let lock = undo.lock.as_ref().expect("held while making");
        lock.save(&undo.saved)?;
        create::save_config(lock, opts)?;
        mount_points(&p.plan, p.parent_mount.as_deref())?;
        let mut cgroup = p.cgroup.create(&mut undo.saved.cgroup)?;
        let place = Place {
            plan: &p.plan,
            parent_mount: p.parent_mount.as_deref(),
            cgroup: &cgroup,
            fds: &self.joins.fds,
        };
        let mut criu = Criu::start(self.program, &self.folders.list(), Some(&place))?;
        cgroup.entered()?;
        let request = self.request(&undo.saved, criu.pid())?;
        let mut told = |notice: Notice| self.told(undo, &notice, console.as_ref());
        let answer = criu
            .ask(&request, &mut told)
            .map_err(|e| self.folders.explain(self.what, "restore.log", e))?;
        match criu.end()? {
            Exit::Code(0) => {}
            other => {
                let e = Error::msg(format!("criu ended with {}", other.code()));
                return Err(self.folders.explain(self.what, "restore.log", e));
            }
        }
        let pid = answer.restore.pid();
        if undo.saved.pid != pid || undo.child.is_none() {
            return Err(Error::msg(format!(
                "{}: criu restored process {pid} and didn't say so before",
                self.what
            )));
        }
        let pidfd = undo.child.as_ref().expect("just looked at");
        let fail = |e| Error::step("duplicate", "pidfd", e);
        let child = Child {
            pid,
            pidfd: pidfd.try_clone().map_err(fail)?,
        };
        if let Some(path) = &opts.pidfd_socket {
            create::send_pidfd(path, child.pidfd.as_fd())?;
        }
        if let Some(path) = &opts.pid_file {
            create::pid_file(path, pid)?;
        }
        // Ours to close, or a terminal that was not there would be waited for.
        let console = console.and_then(|(theirs, ours)| {
            drop(theirs);
            ours
        });
        let console = console.map(|ours| create::receive_console(ours.as_fd()));
        Ok((console.transpose()?, child))
    }

    fn request(
        &self,
        saved: &Saved,
        criu: i32,
    ) -> Result<rust_criu::rust_criu_protobuf::rpc::Criu_req> {
        let plan = &self.prepared.plan;
        let root = Root::open(&saved.rootfs)?;
        let binds = v1_binds(plan, &saved.cgroup);
        let externals = request::externals(plan, &binds, &|p| root.inside(p))?;
        let groups = format!("/proc/{criu}/cgroup");
        let groups = fs::read_to_string(&groups).map_err(|e| Error::step("read", groups, e))?;
        let mut opts = request::restore(
            &request::Restore {
                root: root.text()?,
                annotations: &saved.annotations,
                externals: &externals,
                masks: !plan.masked.is_empty(),
                inherited: &self.joins.inherited,
                joined: &self.joins.paths,
                groups: &groups,
                descriptors: self.descriptors,
            },
            self.how,
        );
        self.folders.tell(&mut opts);
        Ok(criu::ask_with(Criu_req_type::RESTORE, opts))
    }

    fn told(
        &self,
        undo: &mut Undo,
        notice: &Notice,
        console: Option<&(OwnedFd, Option<OwnedFd>)>,
    ) -> Result<()> {
        let plan = &self.prepared.plan;
        match (notice.stage, notice.pid, &notice.fd) {
            // The namespaces are there, and nothing in them yet.
            ("setup-namespaces", Some(pid), _) => {
                undo.saved.pid = pid;
                host_parts::move_interfaces(plan, pid)?;
                host_parts::join_resctrl(plan, &undo.saved.id, pid)?;
                hooks::run(&plan.create_runtime, &undo.saved, "creating")
            }
            // All is there, and stands still.
            ("post-restore", Some(pid), _) => {
                undo.saved.pid = pid;
                let pidfd = clone::pidfd_open(pid)
                    .map_err(|e| Error::step("open", format!("restored process {pid}"), e))?;
                undo.child = Some(pidfd);
                if let Some((_, start)) = status::process_stat(pid) {
                    undo.saved.start_time = start;
                }
                let lock = undo.lock.as_ref().expect("held while making");
                lock.save(&undo.saved)
            }
            ("orphan-pts-master", _, Some(master)) => match console {
                // runc sends the slave's name beside the descriptor.
                Some((sock, _)) => socket::send(sock.as_fd(), b"/dev/pts/0", Some(master.as_fd()))
                    .map_err(|e| Error::step("send", "the terminal", e)),
                None => Err(Error::msg(
                    "the image has a terminal, and config.json no process.terminal",
                )),
            },
            _ => Ok(()),
        }
    }
}

/// Makes what a creation would make in the root: mount points, nodes where /dev is part of it, the working
/// directory. By carrying out all mounts in a mount namespace that ends with the child: a mount point may be
/// in what an earlier mount shows.
fn mount_points(plan: &Plan, parent_mount: Option<&CStr>) -> Result<()> {
    let mut plan = plan.clone();
    // Mount points there are the kernel's or in a file system that the image brings.
    plan.mounts.retain(|m| m.what != MountWhat::Cgroup);
    let in_userns = plan.id_maps.is_some() || plan.namespaces.joins(Kind::User).is_some();
    let trees: Trees = rootfs::open_trees(&plan.mounts, in_userns, userns::namespace)
        .map_err(|f| f.explain(&plan))?;
    let fail = |e: Errno| Error::step("make", "the mount points of the root", e);
    let who = "the child that makes the mount points";
    spawn::aside(libc::CLONE_NEWNS as u64, &plan, fail, who, || {
        inside(&plan, parent_mount, &trees)
    })
}

/// The child's side. Allocates nothing.
fn inside(plan: &Plan, parent_mount: Option<&CStr>, trees: &Trees) -> Step {
    use crate::cell::fault::{At, Stage};
    crate::sys::misc::umask(0);
    rootfs::set_propagation(&plan.root, parent_mount)?;
    let root = rootfs::attach(&plan.root)?;
    rootfs::mount_all(root.as_fd(), &plan.mounts, trees, &CgroupView::None)?;
    rootfs::make_dev(root.as_fd(), &plan.dev)?;
    path::ensure_dir(root.as_fd(), &plan.process.cwd, Links::Follow)
        .at(Stage::Cwd, 0)
        .map(drop)
}
