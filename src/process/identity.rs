//! What the child becomes: limits, identity, capabilities, filter.
//!
//! Runs in the child after clone3: nothing here allocates. The order is runc's where the kernel
//! leaves a choice; the reasons stand at each step.

use crate::cell::fault::{At, Fault, Stage, Step};
use crate::plan::{Caps, ProcessPlan};
use crate::process::seccomp::Program;
use crate::sys::{cred, fd, misc};
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Highest capability number tried when dropping from the bounding set; the kernel ends the walk
/// earlier with EINVAL.
const CAP_MAX: u8 = 63;

/// Needs privileges of the host's user namespace to lower it, as [`rlimits`] does to raise them: done by
/// the process itself while it is there, by the parent (with prlimit and /proc/PID) for one that was
/// born elsewhere.
pub fn oom_score(p: &ProcessPlan, proc_self: BorrowedFd) -> Step {
    match &p.oom_score_adj {
        Some(text) => fd::write_file(proc_self, c"oom_score_adj", text).at(Stage::OomScore, 0),
        None => Ok(()),
    }
}

/// Resource limits.
pub fn rlimits(p: &ProcessPlan) -> Step {
    for (i, (resource, soft, hard)) in p.rlimits.iter().enumerate() {
        misc::set_rlimit(0, *resource, *soft, *hard).at(Stage::Rlimit, i)?;
    }
    Ok(())
}

/// Scheduling and memory placement: need CAP_SYS_NICE, so they come before privileges go.
pub fn schedule(p: &ProcessPlan) -> Step {
    if let Some(s) = &p.scheduler {
        misc::sched_setattr(s).at(Stage::Scheduler, 0)?;
    }
    if let Some((class, level)) = p.io_priority {
        misc::ioprio_set(class, level).at(Stage::IoPriority, 0)?;
    }
    if let Some((mode, nodes)) = &p.mempolicy {
        misc::set_mempolicy(*mode, nodes).at(Stage::MemPolicy, 0)?;
    }
    if let Some(persona) = p.personality {
        misc::set_personality(persona).at(Stage::Personality, 0)?;
    }
    Ok(())
}

/// Takes on the user. On return the final sets are not in force yet: see [`finish_caps`].
pub fn user(p: &ProcessPlan) -> Step {
    drop_bounding(&p.caps)?;
    match cred::set_groups(&p.groups) {
        // A user namespace mapped without privileges denies setgroups (user_namespaces(7)); the
        // caller's groups then stay, which is only wrong when others were asked for.
        Err(Errno::EPERM) if p.groups.is_empty() => {}
        other => other.at(Stage::Groups, 0)?,
    }
    cred::set_gid(p.gid).at(Stage::Gid, 0)?;
    if p.uid != 0 {
        // Permitted capabilities must outlive setuid, to be narrowed afterwards.
        cred::set_keepcaps(true).at(Stage::Caps, 0)?;
    }
    cred::set_uid(p.uid).at(Stage::Uid, 0)?;
    misc::umask(p.umask.unwrap_or(0o022));
    if p.uid != 0 {
        cred::set_keepcaps(false).at(Stage::Caps, 0)?;
        // setuid cleared the effective set; seccomp without no_new_privs still needs
        // CAP_SYS_ADMIN there.
        let (_, permitted, inheritable) = cred::get_caps().at(Stage::Caps, 0)?;
        cred::set_caps(permitted, permitted, inheritable).at(Stage::Caps, 0)?;
    }
    Ok(())
}

fn drop_bounding(caps: &Caps) -> Step {
    for cap in 0..=CAP_MAX {
        if caps.bounding & 1 << cap != 0 {
            continue;
        }
        match cred::drop_bounding(cap) {
            Ok(()) => {}
            // Past the kernel's last capability.
            Err(Errno::EINVAL) => return Ok(()),
            Err(e) => return Err(Fault::new(Stage::Caps, cap.into(), e)),
        }
    }
    Ok(())
}

/// Puts the final capability sets in force.
pub fn finish_caps(p: &ProcessPlan) -> Step {
    let want = &p.caps;
    // A capability the runtime itself lacks can't be given (rootless, nested): what remains is
    // what runc gives too. The kernel would refuse the whole set.
    let (_, have, _) = cred::get_caps().at(Stage::Caps, 0)?;
    let permitted = want.permitted & have;
    let inheritable = want.inheritable & (have | want.bounding);
    cred::set_caps(want.effective & permitted, permitted, inheritable).at(Stage::Caps, 0)?;
    // setuid already emptied the ambient set for another user; for root it may still hold
    // what the runtime was started with.
    match cred::clear_ambient() {
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(e) => return Err(Fault::new(Stage::Caps, 0, e)),
    }
    for cap in 0..=CAP_MAX {
        if want.ambient & 1 << cap == 0 {
            continue;
        }
        match cred::raise_ambient(cap) {
            Ok(()) => {}
            // Not in both permitted and inheritable: ignored, as runc does with a warning.
            Err(Errno::EPERM) => {}
            Err(e) => return Err(Fault::new(Stage::Caps, cap.into(), e)),
        }
    }
    Ok(())
}

/// Installs the filter; returns the notify descriptor when the profile asks for one.
pub fn seccomp(filter: Option<&Program>) -> Step<Option<OwnedFd>> {
    match filter {
        None => Ok(None),
        Some(s) => misc::seccomp_filter(&s.insns, s.flags.into()).at(Stage::Seccomp, 0),
    }
}

/// The descriptors through which LSM labels are set, opened on the host's procfs while it is
/// still in sight: a /proc of the cell may be anything (CVE-2019-16884, CVE-2025-52881).
#[derive(Default)]
pub struct Labels {
    apparmor: Option<OwnedFd>,
    selinux: Option<OwnedFd>,
}

impl Labels {
    /// Opens what the Plan needs.
    pub fn open(p: &ProcessPlan, proc_self: BorrowedFd) -> Step<Self> {
        let open = |path| fd::openat(proc_self, path, libc::O_WRONLY, 0).at(Stage::Label, 0);
        let apparmor = match p.apparmor {
            None => None,
            // Kernels before 5.8 have AppArmor's file only under the shared name.
            Some(_) => Some(open(c"attr/apparmor/exec").or_else(|_| open(c"attr/exec"))?),
        };
        let selinux = match p.selinux {
            None => None,
            Some(_) => Some(open(c"attr/exec")?),
        };
        Ok(Labels { apparmor, selinux })
    }

    /// Writes the labels; they take effect at the next exec.
    pub fn apply(&self, p: &ProcessPlan) -> Step {
        for (file, text) in [(&self.apparmor, &p.apparmor), (&self.selinux, &p.selinux)] {
            if let (Some(file), Some(text)) = (file, text) {
                fd::write_all(file.as_fd(), text).at(Stage::Label, 0)?;
            }
        }
        Ok(())
    }
}
