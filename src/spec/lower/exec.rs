//! One more process for a cell: the cell's configuration, a process or what the command line changes in
//! its own → ExecPlan.

use super::process::{MAX_LIST, cap_bit_of, cpu_list, mempolicy, personality, process};
use super::{NAMESPACES, keyring, namespaces};
use crate::plan::{ExecPlan, Kind, SubGroup};
use crate::spec::check;
use crate::{Error, Result};
use oci_spec::runtime::{Process, Spec};

/// Which process it is.
#[derive(Debug, Clone)]
pub enum Source {
    /// One given in full (`--process`). What it leaves out is the cell's, as with runc: capabilities,
    /// labels, resource limits, priorities, umask.
    Given(Box<Process>),
    /// The cell's own, with changes.
    Changed(Box<Changes>),
}

/// What the command line changes in the cell's process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// `NAME=value`, added.
    pub env: Vec<String>,
    /// A terminal is wanted. It never is because the cell's own process has one.
    pub tty: bool,
    /// Another user.
    pub user: Option<UserIds>,
    /// Supplementary groups, added.
    pub additional_gids: Vec<u32>,
    /// SELinux label.
    pub label: Option<String>,
    /// AppArmor profile.
    pub apparmor: Option<String>,
    /// Set no_new_privs.
    pub no_new_privs: bool,
    /// Capabilities, added by name.
    pub caps: Vec<String>,
}

/// A user, resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserIds {
    /// User id.
    pub uid: u32,
    /// Group id; none keeps that of the cell's process, as runc does.
    pub gid: Option<u32>,
    /// Supplementary groups; none keeps those of the cell's process.
    pub groups: Option<Vec<u32>>,
}

/// What else lowering needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The cell's id (names its keyring).
    pub id: &'a str,
    /// Processes of this cell keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// `--cgroup`, as given.
    pub groups: &'a [String],
}

/// Lowers a process. Returns warnings with the plan.
///
/// # Errors
/// JSON paths start with `process`.
pub fn lower(cell: &Spec, source: &Source, ctx: &Context) -> Result<(ExecPlan, Vec<String>)> {
    let linux = cell
        .linux()
        .as_ref()
        .ok_or_else(|| Error::config("linux", "missing"))?;
    let own = cell.process().as_ref();
    let spec = match source {
        Source::Given(p) => filled_in(p, own),
        Source::Changed(changes) => {
            let own = own.ok_or_else(|| Error::config("process", "missing"))?;
            changed(own, changes)
        }
    };
    let mut warnings = check::check_process(&spec, cell)?;
    let mut plan = process(&spec)?;
    if let Source::Changed(changes) = source {
        let ambient = spec
            .capabilities()
            .as_ref()
            .is_some_and(|c| c.inheritable().is_some());
        for name in &changes.caps {
            let Some(bit) = cap_bit_of(name) else {
                warnings.push(format!("--cap {name}: unknown capability, ignored"));
                continue;
            };
            plan.caps.bounding |= bit;
            plan.caps.permitted |= bit;
            plan.caps.effective |= bit;
            // As runc: it can be ambient only if it is inheritable, and that is not added to
            // (CVE-2022-29162).
            if ambient {
                plan.caps.ambient |= bit;
            }
        }
    }
    plan.personality = personality(linux)?;
    plan.mempolicy = mempolicy(linux)?;
    plan.keyring = match ctx.no_new_keyring {
        true => None,
        false => Some(keyring(ctx.id)?),
    };
    let seccomp = match linux.seccomp() {
        Some(s) => Some(crate::process::seccomp::compile(s)?),
        None => None,
    };
    warnings.extend(seccomp.iter().flat_map(|s| s.warnings.iter().cloned()));
    // A user namespace that is ours already can't be entered again (setns(2)), so it is always
    // looked at.
    let made = namespaces(linux)?.new & !(Kind::User as u64);
    let (first_cpus, cpus) = affinity(&spec)?;
    let plan = ExecPlan {
        process: plan,
        seccomp,
        own: made,
        perhaps: NAMESPACES
            .iter()
            .map(|(_, kind)| *kind)
            .filter(|kind| made & *kind as u64 == 0)
            .collect(),
        groups: sub_groups(ctx.groups)?,
        first_cpus,
        cpus,
    };
    Ok((plan, warnings))
}

/// What a process given in full leaves out is the cell's own (runc: newInitConfig).
fn filled_in(given: &Process, own: Option<&Process>) -> Process {
    let mut p = given.clone();
    let Some(own) = own else {
        return p;
    };
    let empty = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    if p.capabilities().is_none() {
        p.set_capabilities(own.capabilities().clone());
    }
    if empty(p.apparmor_profile()) {
        p.set_apparmor_profile(own.apparmor_profile().clone());
    }
    if empty(p.selinux_label()) {
        p.set_selinux_label(own.selinux_label().clone());
    }
    if p.rlimits().as_ref().is_none_or(Vec::is_empty) {
        p.set_rlimits(own.rlimits().clone());
    }
    if p.io_priority().is_none() {
        p.set_io_priority(*own.io_priority());
    }
    if p.scheduler().is_none() {
        p.set_scheduler(own.scheduler().clone());
    }
    if p.exec_cpu_affinity().is_none() {
        p.set_exec_cpu_affinity(own.exec_cpu_affinity().clone());
    }
    if p.oom_score_adj().is_none() {
        p.set_oom_score_adj(own.oom_score_adj());
    }
    if p.user().umask().is_none() {
        p.user_mut().set_umask(own.user().umask());
    }
    p
}

/// The cell's own process with the changes of the command line (runc: getProcess).
fn changed(own: &Process, ask: &Changes) -> Process {
    let mut p = own.clone();
    p.set_args(Some(ask.args.clone()));
    p.set_terminal(Some(ask.tty));
    if let Some(cwd) = &ask.cwd {
        p.set_cwd(cwd.into());
    }
    if !ask.env.is_empty() {
        let mut env = p.env().clone().unwrap_or_default();
        env.extend(ask.env.iter().cloned());
        p.set_env(Some(env));
    }
    let mut user = p.user().clone();
    if let Some(ids) = &ask.user {
        user.set_uid(ids.uid);
        if let Some(gid) = ids.gid {
            user.set_gid(gid);
        }
        if let Some(groups) = &ids.groups {
            user.set_additional_gids(Some(groups.clone()));
        }
    }
    if !ask.additional_gids.is_empty() {
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(&ask.additional_gids);
        user.set_additional_gids(Some(groups));
    }
    p.set_user(user);
    if ask.label.is_some() {
        p.set_selinux_label(ask.label.clone());
    }
    if ask.apparmor.is_some() {
        p.set_apparmor_profile(ask.apparmor.clone());
    }
    if ask.no_new_privs {
        p.set_no_new_privileges(Some(true));
    }
    p
}

/// execCPUAffinity (runtime-spec, config.md "Linux Process"): CPUs before the process is in its group, and
/// then.
#[allow(clippy::type_complexity)]
fn affinity(p: &Process) -> Result<(Option<Vec<u64>>, Option<Vec<u64>>)> {
    let Some(given) = p.exec_cpu_affinity() else {
        return Ok((None, None));
    };
    let list = |at: &str, text: &Option<String>| match text.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => cpu_list(at, text).map(Some),
    };
    let first = list("process.execCPUAffinity.initial", given.initial())?;
    let mut then = list("process.execCPUAffinity.final", given.cpu_affinity_final())?;
    if first.is_some() && then.is_none() {
        // Since Linux 6.2 the first mask would stay in force in the group. All CPUs means all of the
        // group's (sched_setaffinity(2), "NOTES").
        then = Some(vec![u64::MAX; MAX_LIST / 64]);
    }
    Ok((first, then))
}

/// `[CONTROLLER[,CONTROLLER]:]PATH` of `--cgroup`, in runc's words.
fn sub_groups(list: &[String]) -> Result<Vec<SubGroup>> {
    let mut out: Vec<SubGroup> = Vec::new();
    for arg in list {
        let bad = |why: &str| Error::msg(format!("invalid --cgroup argument: {arg} ({why})"));
        let (controllers, path) = match arg.split_once(':') {
            Some((controllers, path)) => (Some(controllers), path),
            None if list.len() > 1 => return Err(bad("missing <controller>: prefix")),
            None => (None, arg.as_str()),
        };
        if path.split('/').any(|name| name == "..") {
            return Err(bad("`..` would leave the cell's cgroup"));
        }
        if path.contains(char::is_control) {
            return Err(bad("control characters in a path"));
        }
        let names = path.split('/').filter(|n| !n.is_empty() && *n != ".");
        let path = names.collect::<Vec<_>>().join("/");
        let Some(controllers) = controllers else {
            out.push(SubGroup {
                controller: None,
                path,
            });
            continue;
        };
        for controller in controllers.split(',') {
            if controller.is_empty() {
                return Err(bad("empty <controller> prefix"));
            }
            if out
                .iter()
                .any(|g| g.controller.as_deref() == Some(controller))
            {
                return Err(Error::msg(format!(
                    "invalid --cgroup argument(s): controller {controller} specified multiple times"
                )));
            }
            out.push(SubGroup {
                controller: Some(controller.to_owned()),
                path: path.clone(),
            });
        }
    }
    Ok(out)
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
