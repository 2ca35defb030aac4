//! The parent's side of a creation.
//!
//! Everything that can be refused is refused first; then the state (with every path to undo) is
//! on disk before the first effect; then groups, child, maps, hooks. A failure anywhere undoes
//! what was made, and a runtime that is killed leaves enough on disk for `delete -f`.

use super::child::Init;
use super::fault::Fault;
use super::prepare::{Prepared, prepare};
use super::spawn::{self, Joins};
use super::store::{Lock, Saved, Store};
use super::{hooks, host_parts, status, userns, view, wire};
use crate::cgroup::{self, Cgroup, Driver};
use crate::nvidia::cache;
use crate::plan::{Kind, OverlayPlan, Plan};
use crate::process::hook::Ready;
use crate::process::seccomp::Program;
use crate::rootfs::{self, Trees};
use crate::sys::clone::Child;
use crate::sys::misc::CArray;
use crate::sys::{fd, socket};
use crate::{Error, Result};
use oci_spec::runtime::Spec;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// What to create and how.
#[derive(Debug, Default)]
pub struct CreateOptions {
    /// Name.
    pub id: String,
    /// Directory of the bundle.
    pub bundle: PathBuf,
    /// The configuration, edits applied.
    pub spec: Spec,
    /// The configuration's text as read, when no edit was applied (saved as it is).
    pub config: Option<Vec<u8>>,
    /// AF_UNIX socket that gets the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// AF_UNIX socket that gets the pidfd of the first process.
    pub pidfd_socket: Option<PathBuf>,
    /// File to write the pid to.
    pub pid_file: Option<PathBuf>,
    /// Don't use pivot_root.
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// How many descriptors from 3 on the program inherits.
    pub preserve_fds: u32,
    /// NVIDIA's driver as it was found for the edits.
    pub nvidia: Option<cache::Driver>,
    /// Who makes the groups.
    pub driver: Driver,
    /// Replacements for stdin, stdout and stderr.
    pub stdio: [Option<OwnedFd>; 3],
    /// Run on a writable layer over a shared root.
    pub overlay: Option<OverlayPlan>,
    /// Directories to remove with the cell.
    pub remove: Vec<PathBuf>,
}

/// A cell made up to the point that was asked for.
pub struct Made {
    /// As saved.
    pub saved: Saved,
    /// Its lock, still held.
    pub lock: Lock,
    /// Its first process.
    pub child: Child,
    /// The terminal's master, when the caller keeps it.
    pub console: Option<OwnedFd>,
    /// What was tolerated.
    pub warnings: Vec<String>,
}

/// When the child goes on to the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// It waits for `start`.
    Created,
    /// It executes the program at once.
    Running,
}

/// As [`prepare`], but the group of a cell of that name is in the way sooner than its state.
pub(super) fn prepared(store: &Store, opts: &CreateOptions) -> Result<Prepared> {
    prepare(opts).map_err(|e| match super::store::check_id(&opts.id) {
        Ok(()) if store.dir(&opts.id).exists() => store.exists(&opts.id),
        _ => e,
    })
}

/// Creates a cell. On an error nothing is left behind.
pub fn create(store: &Store, mut opts: CreateOptions, until: Until) -> Result<Made> {
    let prepared = prepared(store, &opts)?;
    let root = nix::unistd::geteuid().is_root();
    if root && (prepared.plan.id_maps.is_none() || !prepared.rootless) {
        // Nobody in a pid namespace that the child joins may look into it or its descriptors.
        // exec takes it back for the program. Without the host's root the id maps could not be written.
        crate::sys::cred::set_dumpable(false)
            .map_err(|e| Error::step("protect", "the runtime's memory", e))?;
    }
    let joins = Joins::open(&prepared.plan.namespaces)?;
    let console = console_socket(&opts, &prepared.plan, until)?;
    let resctrl = host_parts::resctrl_made(prepared.plan.intel_rdt.as_ref(), &opts.id)?;
    let lock = store.create(&opts.id)?;
    let saved = first_state(&mut opts, &prepared, resctrl);
    let mut undo = Undo {
        lock: Some(lock),
        saved,
        child: None,
    };
    match make(&mut undo, &opts, &prepared, &joins, console, until) {
        Ok((console, child)) => Ok(undo.made(child, console, prepared.warnings)),
        Err(e) => {
            let e = undo.explain(e);
            undo.undo();
            Err(e)
        }
    }
}

pub(super) fn first_state(opts: &mut CreateOptions, p: &Prepared, resctrl: Vec<PathBuf>) -> Saved {
    let ns = &p.plan.namespaces;
    Saved {
        oci_version: opts.spec.version().clone(),
        id: opts.id.clone(),
        pid: 0,
        start_time: 0,
        bundle: p.bundle.clone(),
        rootfs: p.rootfs.clone(),
        created: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Nanos, true),
        annotations: opts
            .spec
            .annotations()
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
        owner: nix::unistd::getuid().as_raw(),
        cgroup: p.cgroup.saved(),
        driver: opts.driver,
        own_pid_ns: ns.makes(Kind::Pid),
        remove: std::mem::take(&mut opts.remove),
        resctrl,
        paused_created: false,
        no_new_keyring: opts.no_new_keyring,
    }
}

/// Undoes a creation that failed.
pub(super) struct Undo {
    pub lock: Option<Lock>,
    pub saved: Saved,
    pub child: Option<OwnedFd>,
}

impl Undo {
    /// The cell is made: nothing is undone.
    pub fn made(mut self, child: Child, console: Option<OwnedFd>, warnings: Vec<String>) -> Made {
        Made {
            lock: self.lock.take().expect("held until here"),
            saved: self.saved,
            child,
            console,
            warnings,
        }
    }

    /// A child that died without a word was most likely killed by its memory limit.
    fn explain(&self, e: Error) -> Error {
        match (&e, cgroup::too_low(&self.saved.cgroup)) {
            (Error::Msg(_), Some(text)) => Error::msg(text),
            (Error::Step { source, .. }, Some(text))
                if source.raw_os_error() == Some(libc::ENOMEM) =>
            {
                Error::msg(text)
            }
            _ => e,
        }
    }

    pub fn undo(&mut self) {
        let made = self.child.is_some();
        if let Some(pidfd) = self.child.take() {
            let _ = crate::sys::clone::pidfd_kill(pidfd.as_fd(), libc::SIGKILL);
            let _ = crate::sys::clone::wait_pidfd(pidfd.as_fd());
        }
        // The first error is the one to tell; `delete -f` finds what stays.
        let groups = self.saved.cgroup.remove();
        let _ = host_parts::leave_resctrl(&self.saved.resctrl);
        // The life cycle goes on with deletion (runtime-spec, Lifecycle): what earlier hooks made,
        // a network say, is poststop's to undo.
        if made && let Some(lock) = &self.lock {
            super::ops::poststop(lock, &self.saved);
        }
        for dir in &self.saved.remove {
            let _ = fs::remove_dir_all(dir);
        }
        if let (Ok(()), Some(lock)) = (groups, self.lock.take()) {
            let _ = lock.remove();
        }
    }
}

pub(super) type Console = Option<(OwnedFd, Option<OwnedFd>)>;

/// The socket for the terminal: the caller's, or a pair whose other end we keep.
pub(super) fn console_socket(opts: &CreateOptions, plan: &Plan, until: Until) -> Result<Console> {
    match (&opts.console_socket, plan.process.terminal) {
        (Some(_), false) => Err(Error::msg(
            "cannot use --console-socket: the configuration has no process.terminal",
        )),
        (None, false) => Ok(None),
        (None, true) if until == Until::Created => Err(Error::msg(
            "cannot allocate tty if the cell is detached without setting console socket",
        )),
        (Some(path), true) => {
            let s = UnixStream::connect(path).map_err(|e| {
                Error::step("connect to console socket", path.display().to_string(), e)
            })?;
            Ok(Some((s.into(), None)))
        }
        (None, true) => {
            let (theirs, ours) =
                socket::pair().map_err(|e| Error::step("make", "console socket", e))?;
            Ok(Some((theirs, Some(ours))))
        }
    }
}

/// exec.fifo and exec.status: descriptors for the child.
struct Fifos {
    start: OwnedFd,
    status: OwnedFd,
}

fn fifos(lock: &Lock) -> Result<Fifos> {
    use nix::sys::stat::Mode;
    let open = |name: &str, write_only: bool| -> Result<OwnedFd> {
        let path = lock.dir().join(name);
        let fail = |e: io::Error| Error::step("make", path.display().to_string(), e);
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).map_err(|e| fail(e.into()))?;
        let both = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(fail)?;
        if !write_only {
            return Ok(both.into());
        }
        // `start` sees end of file on the status once the child executed the program, so the
        // child must hold the writing end only.
        let writer = fs::OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .map_err(fail)?;
        Ok(writer.into())
    };
    let status = open("exec.status", true)?;
    Ok(Fifos {
        // Made last: its existence means "created".
        start: open("exec.fifo", false)?,
        status,
    })
}

fn make(
    undo: &mut Undo,
    opts: &CreateOptions,
    p: &Prepared,
    joins: &Joins,
    console: Console,
    until: Until,
) -> Result<(Option<OwnedFd>, Child)> {
    let plan = &p.plan;
    let lock = undo.lock.as_ref().expect("held while making");
    lock.save(&undo.saved)?;
    // Whoever deletes the cell of a runtime that was killed finds its poststop hooks there.
    let hooks_later = hooks_later(&opts.spec);
    if hooks_later {
        save_config(lock, opts)?;
    }
    let in_userns = plan.id_maps.is_some() || plan.namespaces.joins(Kind::User).is_some();
    let trees: Trees = rootfs::open_trees(&plan.mounts, in_userns, userns::namespace)
        .map_err(|f| f.explain(plan))?;
    let fifos = match until {
        Until::Created => Some(fifos(lock)?),
        Until::Running => None,
    };
    let notify = listener(plan.seccomp.as_ref())?;
    // What could not be made is not ours to remove: it may be another cell's.
    let mut cgroup: Cgroup = p.cgroup.create(&mut undo.saved.cgroup)?;
    let (parent, child_end) = socket::pair().map_err(|e| Error::step("make", "socket pair", e))?;

    let (head, tail) = hooks::state_text(&undo.saved, "creating")?;
    let (start_head, start_tail) = hooks::state_text(&undo.saved, "created")?;
    let create_hooks: Vec<_> = plan.create_container.iter().map(Ready::new).collect();
    let start_hooks: Vec<_> = plan.start_container.iter().map(Ready::new).collect();
    let argv = CArray::new(&plan.process.args, 0);
    let mut envp = CArray::new(&plan.process.env, usize::from(plan.process.needs_home));
    let close = [
        lock.file().as_raw_fd(),
        parent.as_raw_fd(),
        console
            .as_ref()
            .and_then(|c| c.1.as_ref())
            .map_or(parent.as_raw_fd(), |c| c.as_raw_fd()),
    ];
    let mut init = Init {
        plan,
        sock: child_end.as_fd(),
        close: &close,
        join_files: cgroup.join_files(),
        late_cgroup_ns: cgroup.cgroup_ns_late(),
        moved: false,
        join: &joins.child,
        trees: &trees,
        cgroup: &p.view,
        parent_mount: p.parent_mount.as_deref(),
        console: console.as_ref().map(|c| c.0.as_fd()),
        stdio: [0, 1, 2].map(|i: usize| opts.stdio[i].as_ref().map(|f| f.as_fd())),
        fifo: fifos.as_ref().map(|f| f.start.as_fd()),
        status: fifos.as_ref().map(|f| f.status.as_fd()),
        preserve_fds: opts.preserve_fds,
        hook_state: [(&head, &tail), (&start_head, &start_tail)],
        create_hooks: &create_hooks,
        start_hooks: &start_hooks,
    };
    let born = spawn::spawn(
        plan,
        joins,
        p.rootless,
        cgroup.clone_fd(),
        &init,
        &argv,
        &mut envp,
    );
    let child = match born {
        Err(e) if e.errno() == Some(libc::EACCES) && in_userns && cgroup.state().can_move() => {
            init.moved = true;
            spawn::spawn(plan, joins, p.rootless, None, &init, &argv, &mut envp)?
        }
        other => other?,
    };
    let moved = match init.moved {
        true => cgroup.state().move_in(child.pid),
        false => Ok(()),
    };
    let entered = moved.and_then(|()| cgroup.entered());
    // Ours to close, or the child's end would never read as closed.
    drop(child_end);
    drop(fifos);
    let master = console.and_then(|(theirs, ours)| {
        drop(theirs);
        ours
    });
    undo.child = Some(
        child
            .pidfd
            .try_clone()
            .map_err(|e| Error::step("duplicate", "pidfd", e))?,
    );
    entered?;
    undo.saved.pid = child.pid;
    if in_userns {
        let prepare = || {
            if let Some(maps) = &plan.id_maps {
                userns::write_maps(child.pid, maps)?;
            }
            view::limits_of(child.pid, &plan.process)?;
            go(parent.as_fd(), child.pid)
        };
        prepare().map_err(|e| last_words(&child, parent.as_fd(), plan).unwrap_or(e))?;
    }
    if let Some((_, start)) = status::process_stat(child.pid) {
        undo.saved.start_time = start;
    }
    // While the child is at work.
    lock.save(&undo.saved)?;
    if !hooks_later {
        save_config(lock, opts)?;
    }
    converse(parent.as_fd(), plan, &undo.saved, notify, until)?;
    if let Some(path) = &opts.pidfd_socket {
        send_pidfd(path, child.pidfd.as_fd())?;
    }
    if let Some(path) = &opts.pid_file {
        pid_file(path, child.pid)?;
    }
    let console = match master {
        None => None,
        Some(sock) => Some(receive_console(sock.as_fd())?),
    };
    Ok((console, child))
}

/// The terminal's master, which the child has sent.
pub(super) fn receive_console(sock: BorrowedFd) -> Result<OwnedFd> {
    let mut name = [0; 64];
    let (_, fd) =
        socket::recv(sock, &mut name).map_err(|e| Error::step("receive", "the terminal", e))?;
    fd.ok_or_else(|| Error::msg("the child sent no terminal"))
}

/// Talks with the child until it executed the program or waits for `start`.
fn converse(
    sock: BorrowedFd,
    plan: &Plan,
    saved: &Saved,
    notify: Option<UnixStream>,
    until: Until,
) -> Result<()> {
    let fail = |e| Error::step("talk to", "the cell's first process", e);
    loop {
        let mut buf = [0; super::fault::WIRE];
        let (n, passed) = socket::recv(sock, &mut buf).map_err(fail)?;
        match wire::kind(&buf[..n]) {
            wire::FAULT => {
                return Err(match Fault::decode(&buf[..n]) {
                    Some(fault) => fault.explain(plan),
                    None => Error::msg("the cell's first process sent a garbled message"),
                });
            }
            wire::HOOKS => {
                host_parts::move_interfaces(plan, saved.pid)?;
                host_parts::join_resctrl(plan, &saved.id, saved.pid)?;
                hooks::run(&plan.create_runtime, saved, "creating")?;
                go(sock, saved.pid)?;
            }
            wire::NOTIFY => {
                if let (Some(listener), Some(fd)) = (&notify, passed) {
                    let at = view::Notified {
                        pid: saved.pid,
                        status: "creating",
                    };
                    let filter = plan.seccomp.as_ref();
                    view::send_notify(listener, filter, saved, &at, fd.as_fd())?;
                }
            }
            wire::READY if until == Until::Created => return Ok(()),
            // End of file: the descriptor was closed by exec, or the child is dead. Which one
            // is told by whoever waits for it; before READY it can only be dead.
            0 if n == 0 && until == Until::Running => return Ok(()),
            0 if n == 0 => {
                return Err(Error::msg(
                    "the cell's first process died while it was set up",
                ));
            }
            other => {
                return Err(Error::msg(format!(
                    "the cell's first process sent an unexpected message ({other})"
                )));
            }
        }
    }
}

/// Why the child is dead, if it said so: what fails then is only that it is.
fn last_words(child: &Child, sock: BorrowedFd, plan: &Plan) -> Option<Error> {
    // Or it would wait for this process to go on.
    let _ = crate::sys::clone::pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL);
    let mut buf = [0; super::fault::WIRE];
    loop {
        let (n, _) = socket::recv(sock, &mut buf).ok()?;
        match wire::kind(&buf[..n]) {
            wire::FAULT => return Fault::decode(&buf[..n]).map(|f| f.explain(plan)),
            _ if n == 0 => return None,
            _ => {}
        }
    }
}

fn go(sock: BorrowedFd, pid: i32) -> Result<()> {
    socket::send(sock, &wire::go(pid), None)
        .map_err(|e| Error::step("talk to", "the cell's first process", e))
}

/// Are there hooks that are read from the saved configuration when their time comes?
fn hooks_later(spec: &Spec) -> bool {
    let hooks = spec.hooks().as_ref();
    hooks.is_some_and(|h| h.poststart().is_some() || h.poststop().is_some())
}

pub(super) fn save_config(lock: &Lock, opts: &CreateOptions) -> Result<()> {
    match &opts.config {
        Some(text) => lock.write("config.json", text),
        None => {
            let text = serde_json::to_vec(&opts.spec)
                .map_err(|e| Error::step("encode", "config.json", io::Error::other(e)))?;
            lock.write("config.json", &text)
        }
    }
}

/// Connects to the agent that a filter with SCMP_ACT_NOTIFY names.
pub(super) fn listener(filter: Option<&Program>) -> Result<Option<UnixStream>> {
    let Some(n) = filter.and_then(|s| s.notify.as_ref()) else {
        return Ok(None);
    };
    UnixStream::connect(&n.listener_path)
        .map(Some)
        .map_err(|e| {
            Error::step(
                "connect to seccomp listener",
                n.listener_path.display().to_string(),
                e,
            )
        })
}

pub(super) fn send_pidfd(path: &Path, pidfd: BorrowedFd) -> Result<()> {
    let fail = |e: io::Error| Error::step("send pidfd to", path.display().to_string(), e);
    let s = UnixStream::connect(path).map_err(fail)?;
    socket::send(s.as_fd(), b"pidfd", Some(pidfd)).map_err(|e| fail(e.into()))
}

/// Digits, no newline, put in place by a rename as runc does: a reader never sees half.
pub fn pid_file(path: &Path, pid: i32) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let tmp = path.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::write(&tmp, pid.to_string())
        .and_then(|()| fs::rename(&tmp, path))
        .map_err(|e| Error::step("write pid file", path.display().to_string(), e))
}

/// A C string of a path that holds no NUL (it came from the kernel or was checked).
pub(super) fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::msg(format!("{}: contains a NUL byte", path.display())))
}

/// Marks every inherited descriptor but the streams and the preserved ones close-on-exec, and
/// makes sure that the streams are open: a program must not find the runtime's files there.
pub fn sanitize_fds(preserve: u32) -> Result<()> {
    for n in 0..3 {
        if fd::fstat(fd::borrow(n)).is_err() {
            // The lowest free number is this one.
            let null = File::options().read(true).write(true).open("/dev/null");
            let null = null.map_err(|e| Error::step("open", "/dev/null", e))?;
            if null.as_raw_fd() == n {
                let _ = fd::set_cloexec(null.as_fd(), false);
                std::mem::forget(null);
            }
        }
    }
    // One that isn't open would be one of our own by the time the program gets it.
    for n in 3..3_u32.saturating_add(preserve) {
        let open = i32::try_from(n).is_ok_and(|n| fd::fstat(fd::borrow(n)).is_ok());
        if !open {
            return Err(Error::msg(format!(
                "unable to stat preserved-fd {n} (of {preserve}): it is not open"
            )));
        }
    }
    fd::cloexec_range(3 + preserve, u32::MAX)
        .map_err(|e| Error::step("close", "inherited descriptors", e))
}
