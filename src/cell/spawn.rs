//! Cloning the child: one clone3 with the new namespaces, straight into the cgroup, with the
//! exceptions that the kernel forces (existing namespaces, time offsets, no clone3).

use super::child::{self, Init};
use super::fault::{Fault, Step, WIRE};
use super::wire;
use crate::plan::{Kind, Namespaces, Plan};
use crate::sys::clone::{self, Child, Clone3, Exit};
use crate::sys::misc::CArray;
use crate::sys::{Sys, fd, pipe};
use crate::{Error, Result};
use nix::errno::Errno;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Namespaces opened by path, before anything is made.
pub struct Joins {
    /// Entered by the parent around clone3 (the child is born in them).
    parent: Vec<(OwnedFd, Kind)>,
    /// Entered by the child: (descriptor, kind, index in the Plan).
    pub child: Vec<(OwnedFd, Kind, usize)>,
    /// An existing user namespace: a process in between enters it first.
    user: Option<OwnedFd>,
}

impl Joins {
    /// Opens the paths of the Plan and checks that each is a namespace of its kind.
    pub fn open(ns: &Namespaces) -> Result<Self> {
        let mut joins = Joins {
            parent: Vec::new(),
            child: Vec::new(),
            user: None,
        };
        for (i, (kind, path)) in ns.join.iter().enumerate() {
            let text = path.to_string_lossy().into_owned();
            let os = std::ffi::OsStr::from_bytes(path.as_bytes());
            let file =
                File::open(os).map_err(|e| Error::step("open namespace", text.clone(), e))?;
            // NS_GET_NSTYPE (ioctl_ns(2)) is the test of what a path stands for.
            let found = crate::sys::misc::ns_type(file.as_fd())
                .map_err(|e| Error::step("examine namespace", text.clone(), e))?;
            if found as u64 != *kind as u64 {
                return Err(Error::config(
                    format!("linux.namespaces[{i}].path"),
                    format!("{text} is not a {} namespace", kind.file()),
                ));
            }
            let fd = OwnedFd::from(file);
            match kind {
                Kind::User => joins.user = Some(fd),
                Kind::Mount | Kind::Cgroup => joins.child.push((fd, *kind, i)),
                _ => joins.parent.push((fd, *kind)),
            }
        }
        Ok(joins)
    }
}

/// Makes the child. `argv` and `envp` as for [`child::main`].
pub fn spawn(
    plan: &Plan,
    joins: &Joins,
    rootless: bool,
    cgroup: Option<BorrowedFd>,
    init: &Init,
    argv: &CArray,
    envp: &mut CArray,
) -> Result<Child> {
    let mut flags = plan.namespaces.new & !(Kind::Time as u64);
    if init.late_cgroup_ns || init.moved {
        flags &= !(Kind::Cgroup as u64);
    }
    let fail = |e: Errno| Error::step("clone", format!("the cell (flags {flags:#x})"), e);
    // Joining a user namespace costs the privileges of the old one. And only the host's root gets back
    // into a namespace of the host's (setns(2)).
    if joins.user.is_some() || (rootless && !joins.parent.is_empty()) {
        let user = joins.user.iter().map(|fd| (fd.as_fd(), Kind::User));
        let others = joins.parent.iter().map(|(fd, kind)| (fd.as_fd(), *kind));
        let all: Vec<_> = user.chain(others).collect();
        return through(&all, flags, cgroup, || child::main(init, argv, envp)).map_err(
            |(e, which)| match which {
                Some(kind) => Error::step("join namespace", kind.file(), e),
                None => fail(e),
            },
        );
    }
    let back = Back::enter(plan, joins)?;
    let made = clone_once(flags, cgroup, || child::main(init, argv, envp));
    back.leave()?;
    made.map_err(fail)
}

/// A child, in the group if one is given.
pub(super) fn clone_once(
    flags: u64,
    cgroup: Option<BorrowedFd>,
    child: impl FnOnce() -> i32,
) -> Sys<Child> {
    let args = Clone3 { flags, cgroup };
    clone::clone3(&args, child)
}

/// Has steps of a Plan done by a child beside the cell, and waits for its end. `fail` names what was tried,
/// `who` the child. The steps must not allocate.
pub(super) fn aside(
    flags: u64,
    plan: &Plan,
    fail: impl Fn(Errno) -> Error,
    who: &str,
    steps: impl FnOnce() -> Step,
) -> Result<()> {
    let (read, write) = pipe::pair().map_err(&fail)?;
    let child = clone_once(flags, None, || match steps() {
        Ok(()) => 0,
        Err(fault) => {
            let _ = fd::write_all(write.as_fd(), &fault.encode(wire::FAULT));
            1
        }
    })
    .map_err(&fail)?;
    drop(write);
    let mut buf = [0; WIRE];
    let said = fd::read(read.as_fd(), &mut buf).map_err(&fail)?;
    let ended = clone::wait_pidfd(child.pidfd.as_fd()).map_err(&fail)?;
    match (Fault::decode(&buf[..said]), ended) {
        (None, Exit::Code(0)) => Ok(()),
        (Some(fault), _) => Err(fault.explain(plan)),
        (None, other) => Err(Error::msg(format!("{who} ended with {}", other.code()))),
    }
}

/// The namespaces the parent left to give birth in others.
struct Back(Vec<(OwnedFd, Kind)>);

impl Back {
    fn enter(plan: &Plan, joins: &Joins) -> Result<Self> {
        let mut back = Back(Vec::new());
        let own = |kind: Kind| -> Result<OwnedFd> {
            let path = format!("/proc/self/ns/{}", kind.file());
            File::open(&path)
                .map(OwnedFd::from)
                .map_err(|e| Error::step("open namespace", path, e))
        };
        for (fd, kind) in &joins.parent {
            back.0.push((own(*kind)?, *kind));
            if let Err(e) = clone::setns(fd.as_fd(), *kind as u64 as i32) {
                back.leave()?;
                return Err(Error::step("join namespace", kind.file(), e));
            }
        }
        if let Some(offsets) = &plan.time_offsets {
            // Offsets can only be written before the first process is in the namespace
            // (time_namespaces(7)); unshare moves children only.
            back.0.push((own(Kind::Time)?, Kind::Time));
            clone::unshare(Kind::Time as u64 as i32)
                .map_err(|e| Error::step("make namespace", "time", e))?;
            if !offsets.is_empty() {
                let path = "/proc/self/timens_offsets";
                fs::write(path, offsets).map_err(|e| Error::step("write time offsets", path, e))?;
            }
        }
        Ok(back)
    }

    fn leave(self) -> Result<()> {
        for (fd, kind) in self.0.iter().rev() {
            clone::setns(fd.as_fd(), *kind as u64 as i32)
                .map_err(|e| Error::step("return to namespace", kind.file(), e))?;
        }
        Ok(())
    }
}

/// A child by way of a process in between, which enters namespaces that this one must not, and makes the
/// child as a sibling of its own (CLONE_PARENT). An error says which namespace, if it is about one.
fn through(
    join: &[(BorrowedFd, Kind)],
    flags: u64,
    cgroup: Option<BorrowedFd>,
    child: impl FnOnce() -> i32,
) -> Result<Child, (Errno, Option<Kind>)> {
    let plain = |e: Errno| (e, None);
    let (read, write) = pipe::pair().map_err(plain)?;
    let between = clone_once(0, cgroup, || {
        // A pid or an errno, and how many namespaces were joined by then.
        let mut answer = [0; 2];
        let enter = || {
            for (fd, kind) in join {
                clone::setns(*fd, *kind as u64 as i32)?;
                answer[1] += 1;
            }
            clone_once(flags | libc::CLONE_PARENT as u64, None, child)
        };
        answer[0] = enter().map_or_else(|e| -(e as i32), |c| c.pid);
        for word in answer {
            let _ = fd::write_all(write.as_fd(), &word.to_ne_bytes());
        }
        0
    })
    .map_err(plain)?;
    drop(write);
    let word = || {
        let mut bytes = [0; 4];
        match fd::read(read.as_fd(), &mut bytes) {
            Ok(4) => Ok(i32::from_ne_bytes(bytes)),
            Ok(_) => Err(plain(Errno::ECHILD)),
            Err(e) => Err(plain(e)),
        }
    };
    let (pid, joined) = (word(), word());
    clone::wait_pidfd(between.pidfd.as_fd()).map_err(plain)?;
    let (pid, joined) = (pid?, joined?);
    if pid <= 0 {
        let which = join.get(joined as usize).map(|(_, kind)| *kind);
        return Err((Errno::from_raw(-pid), which));
    }
    Ok(Child {
        pid,
        pidfd: clone::pidfd_open(pid).map_err(plain)?,
    })
}
