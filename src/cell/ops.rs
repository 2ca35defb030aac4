//! The life of a cell after its creation: start, kill, delete.

use super::hooks;
use super::schemata::Schemata;
use super::status::Status;
use super::store::{Lock, Saved, Store};
use crate::plan::HookPlan;
use crate::sys::clone;
use crate::{Error, Result};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxResources, Spec};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

/// How long `delete` waits for a killed process to be gone.
const DEATH_WAIT: Duration = Duration::from_secs(10);

/// Starts a created cell.
///
/// Errors: the cell is in another state; the program could not be executed (the cell is then
/// stopped); a startContainer or poststart hook failed.
pub fn start(store: &Store, id: &str) -> Result<()> {
    let lock = store.lock(id)?;
    let saved = store.load(id)?;
    match saved.status(store) {
        Status::Created => {}
        Status::Stopped => return Err(Error::msg("cannot start a container that has stopped")),
        // A created one would wait for its process until somebody resumes it.
        Status::Paused => {
            return Err(Error::msg("cannot start a container in the paused state"));
        }
        other => {
            return Err(Error::msg(format!(
                "cannot start an already running container ({id} is {other})"
            )));
        }
    }
    release(&lock)?;
    // A failing poststart hook ends the cell (runtime-spec, Lifecycle, step 10), as in `run`.
    poststart(&lock, &saved).inspect_err(|_| {
        let _ = kill_and_wait(&saved);
    })
}

/// Lets the waiting child go on and waits until it executed the program.
fn release(lock: &Lock) -> Result<()> {
    let fifo = lock.dir().join("exec.fifo");
    let status = lock.dir().join("exec.status");
    let fail = |e: io::Error| Error::step("start through", fifo.display().to_string(), e);
    // Opened before the child goes on, so that its end of file can't be missed.
    let mut answer = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&status)
        .map_err(fail)?;
    let mut go = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&fifo)
        .map_err(fail)?;
    go.write_all(b"0").map_err(fail)?;
    let mut wire = Vec::new();
    loop {
        crate::sys::misc::poll_in(&[answer.as_fd()], -1).map_err(|e| fail(e.into()))?;
        match answer.read_to_end(&mut wire) {
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(fail(e)),
        }
    }
    for path in [&fifo, &status] {
        let _ = fs::remove_file(path);
    }
    match super::fault::Fault::decode(&wire) {
        None => Ok(()),
        Some(fault) => {
            // Only the words of the Plan are needed, for the message.
            let spec = load_config(lock)?;
            Err(explain(&fault, &spec))
        }
    }
}

fn explain(fault: &super::fault::Fault, spec: &Spec) -> Error {
    let program = spec
        .process()
        .as_ref()
        .and_then(|p| p.args().clone())
        .and_then(|a| a.into_iter().next())
        .unwrap_or_default();
    use super::fault::{Stage, hook_words, not_executed};
    match fault.stage {
        Stage::Exec | Stage::Lookup => not_executed(&program, fault.errno),
        _ => Error::msg(format!(
            "startContainer hook {}: {}",
            fault.index,
            hook_words(fault.errno)
        )),
    }
}

/// The configuration as it was resolved at creation.
pub fn load_config(lock: &Lock) -> Result<Spec> {
    crate::spec::load::load(lock.dir()).map(|l| l.spec)
}

/// Runs the poststart hooks. Reads the configuration only when it may have some.
pub fn poststart(lock: &Lock, saved: &Saved) -> Result<()> {
    hooks::run(&late_hooks(lock, "poststart")?, saved, "running")
}

/// The hooks of a kind that runs after the cell was made.
fn late_hooks(lock: &Lock, kind: &str) -> Result<Vec<HookPlan>> {
    let path = lock.dir().join("config.json");
    let text = match fs::read(&path) {
        Ok(t) => t,
        // A creation cut off before it was written ran no hook.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::step("read", path.display().to_string(), e)),
    };
    // Most configurations have no such hook: looking for its name is cheaper than parsing.
    let key = format!("\"{kind}\"");
    if memchr::memmem::find(&text, key.as_bytes()).is_none() {
        return Ok(Vec::new());
    }
    let spec = crate::spec::load::parse(&text)?.spec;
    let Some(h) = spec.hooks() else {
        return Ok(Vec::new());
    };
    let list = match kind {
        "poststart" => h.poststart(),
        _ => h.poststop(),
    };
    hooks::lowered(kind, list)
}

/// Runs the poststop hooks, all of them: one that fails is warned of, and the rest go on as if it had
/// not (runtime-spec, Lifecycle, step 13).
pub fn poststop(lock: &Lock, saved: &Saved) {
    let warn = |e: Error| eprintln!("gpucell: warning: {e}");
    match late_hooks(lock, "poststop") {
        Ok(plans) => {
            for one in plans.chunks(1) {
                hooks::run(one, saved, "stopped").unwrap_or_else(warn);
            }
        }
        Err(e) => warn(e),
    }
}

/// Sends a signal to the first process, or to all.
pub fn kill(store: &Store, id: &str, signal: i32, all: bool) -> Result<()> {
    let saved = store.load(id)?;
    if all {
        return saved.kill_every(signal);
    }
    let status = saved.status(store);
    if status == Status::Stopped {
        // Without its own pid namespace others may outlive the first process (runc: --all).
        return Err(Error::msg("container not running"));
    }
    let pidfd = match clone::pidfd_open(saved.pid) {
        Ok(fd) => fd,
        Err(Errno::ESRCH) => return Err(Error::msg("os: process already finished")),
        Err(e) => return Err(Error::step("open", format!("process {}", saved.pid), e)),
    };
    // Between the first look and pidfd_open the pid may have passed to another process.
    if !saved.alive() {
        return Err(Error::msg("os: process already finished"));
    }
    match clone::pidfd_kill(pidfd.as_fd(), signal) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Err(Error::msg("os: process already finished")),
        Err(e) => return Err(Error::step("signal", format!("process {}", saved.pid), e)),
    }
    // A frozen process takes even SIGKILL only when thawed on v1 (runc thaws as well).
    if signal == libc::SIGKILL && status == Status::Paused {
        saved.cgroup.thaw()?;
    }
    Ok(())
}

/// Freezes all processes of a cell.
///
/// # Errors
/// It is neither running nor created; as [`crate::cgroup::CgroupState::freeze`].
pub fn pause(store: &Store, id: &str) -> Result<()> {
    let lock = store.lock(id)?;
    let mut saved = store.load(id)?;
    match saved.status(store) {
        Status::Running => {}
        Status::Created => {
            saved.paused_created = true;
            lock.save(&saved)?;
        }
        // The text that callers match.
        _ => return Err(Error::msg("container not running")),
    }
    saved.cgroup.freeze()
}

/// Lets a paused cell go on.
///
/// # Errors
/// It isn't paused; as [`crate::cgroup::CgroupState::thaw`].
pub fn resume(store: &Store, id: &str) -> Result<()> {
    let lock = store.lock(id)?;
    let mut saved = store.load(id)?;
    if saved.status(store) != Status::Paused {
        return Err(Error::msg("container not paused"));
    }
    saved.cgroup.thaw()?;
    if saved.paused_created {
        saved.paused_created = false;
        lock.save(&saved)?;
    }
    Ok(())
}

/// The processes of a cell, groups made below its own included: host pids, in order. A cell without
/// groups (rootless, none delegated) has those of its pid namespace.
///
/// # Errors
/// There is no such cell; a group can't be read.
pub fn processes(store: &Store, id: &str) -> Result<Vec<i32>> {
    let saved = store.load(id)?;
    let mut pids = saved.cgroup.procs(true)?;
    if pids.is_empty() && saved.alive() {
        pids = saved.namespace_procs();
    }
    pids.sort_unstable();
    Ok(pids)
}

/// Changes the limits of a live cell to those that are set, and the saved configuration with them. Gives
/// back warnings.
///
/// # Errors
/// It is stopped; as [`crate::cgroup::CgroupState::update`] and [`Schemata`].
pub fn update(
    store: &Store,
    id: &str,
    mut resources: LinuxResources,
    schemata: &Schemata,
) -> Result<Vec<String>> {
    let lock = store.lock(id)?;
    let saved = store.load(id)?;
    if saved.status(store) == Status::Stopped {
        return Err(Error::msg("container not running"));
    }
    let spec = load_config(&lock)?;
    let linux = spec.linux().as_ref();
    keep_swap(&mut resources, linux.and_then(|l| l.resources().as_ref()));
    let file = match schemata.is_empty() {
        true => None,
        false => {
            let rdt = linux.and_then(|l| l.intel_rdt().as_ref());
            let root = super::host_parts::resctrl().ok();
            Some(schemata.file(root.as_deref(), rdt, id)?)
        }
    };
    let warnings = saved.cgroup.update(&resources)?;
    if let Some(file) = file {
        schemata.write(&file)?;
    }
    // What the cell has now, for whoever asks later.
    let mut config = saved_config(&lock)?;
    crate::spec::resources::merge(&mut config, &resources)?;
    schemata.merge(&mut config);
    lock.write("config.json", config.to_string().as_bytes())?;
    Ok(warnings)
}

fn saved_config(lock: &Lock) -> Result<serde_json::Value> {
    let path = lock.dir().join("config.json");
    let fail = |e: io::Error| Error::step("read", path.display().to_string(), e);
    serde_json::from_slice(&fs::read(&path).map_err(fail)?).map_err(|e| fail(e.into()))
}

/// `swap` is memory and swap together, and stays so when only the memory limit changes. v1 keeps the sum by
/// itself; the file of v2 is for swap alone, and is worked out anew (as in runc).
fn keep_swap(new: &mut LinuxResources, old: Option<&LinuxResources>) {
    let total = old.and_then(|r| r.memory().as_ref()).and_then(|m| m.swap());
    if let Some(memory) = new.memory_mut()
        && memory.limit().is_some_and(|l| l > 0)
        && memory.swap().is_none_or(|s| s == 0)
        && let Some(total) = total.filter(|&s| s > 0)
    {
        memory.set_swap(Some(total));
    }
}

impl Saved {
    /// The processes in the cell's own pid namespace, as far as this user may look; else the first one.
    fn namespace_procs(&self) -> Vec<i32> {
        let link = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = link(self.pid).filter(|_| self.own_pid_ns);
        let (Some(own), Ok(all)) = (own, procfs::process::all_processes()) else {
            return vec![self.pid];
        };
        let pids = all.flatten().map(|p| p.pid());
        pids.filter(|&pid| link(pid).as_ref() == Some(&own))
            .collect()
    }

    fn kill_every(&self, signal: i32) -> Result<()> {
        if signal == libc::SIGKILL {
            return self.cgroup.kill_all();
        }
        for pid in self.cgroup.procs(true)? {
            if let Ok(fd) = clone::pidfd_open(pid) {
                match clone::pidfd_kill(fd.as_fd(), signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(e) => return Err(Error::step("signal", format!("process {pid}"), e)),
                }
            }
        }
        Ok(())
    }
}

/// Deletes a cell: its groups (with whatever still lives in them, when `force`), its own
/// directories, its state.
///
/// Errors: it runs and `force` is off; something can't be removed (the state then
/// stays, to try again).
pub fn delete(store: &Store, id: &str, force: bool) -> Result<()> {
    let lock = match store.lock(id) {
        Ok(lock) => lock,
        // As runc: with --force, what isn't there counts as deleted.
        Err(Error::Msg(text)) if force && text.ends_with("does not exist") => return Ok(()),
        Err(e) => return Err(e),
    };
    let saved = match store.load(id) {
        Ok(saved) => saved,
        // The directory without a state: cut off before the first effect.
        Err(_) if force && !lock.dir().join("state.json").exists() => return lock.remove(),
        Err(e) => return Err(e),
    };
    match saved.status(store) {
        Status::Stopped => {}
        // A created cell has run nothing yet: its waiting process is ours to end. runc does so
        // too, and containerd deletes created tasks without --force.
        Status::Created => kill_and_wait(&saved)?,
        _ if force => kill_and_wait(&saved)?,
        other => {
            return Err(Error::msg(format!(
                "cannot delete container {id} that is not stopped: {other}"
            )));
        }
    }
    destroy(&lock, &saved)
}

pub(super) fn kill_and_wait(saved: &Saved) -> Result<()> {
    saved.cgroup.kill_all()?;
    // A cell without groups of its own still has its first process.
    if saved.alive()
        && let Ok(fd) = clone::pidfd_open(saved.pid)
    {
        let _ = clone::pidfd_kill(fd.as_fd(), libc::SIGKILL);
        let _ = saved.cgroup.thaw();
    }
    let end = Instant::now() + DEATH_WAIT;
    while saved.alive() {
        if Instant::now() > end {
            return Err(Error::msg(format!(
                "process {} of cell {} did not die within {} s of SIGKILL",
                saved.pid,
                saved.id,
                DEATH_WAIT.as_secs()
            )));
        }
        match clone::pidfd_open(saved.pid) {
            Ok(fd) => {
                let _ = crate::sys::misc::poll_in(&[fd.as_fd()], 20);
            }
            Err(_) => break,
        }
    }
    Ok(())
}

/// Removes everything a stopped cell has; poststop hooks run last.
pub fn destroy(lock: &Lock, saved: &Saved) -> Result<()> {
    saved.cgroup.remove()?;
    super::host_parts::leave_resctrl(&saved.resctrl)?;
    for dir in &saved.remove {
        match fs::remove_dir_all(dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::step("remove", dir.display().to_string(), e));
            }
            _ => {}
        }
    }
    poststop(lock, saved);
    lock.remove()
}
