//! One more process in a cell: the parent's side.
//!
//! All that can be refused is refused first. Then two processes come to be ([`child`]). One is born straight in
//! the cell's group and enters the namespaces, so that this process stays on the host and keeps its files,
//! its privileges and its terminal. It makes the one that becomes the program, and ends. Why not one? What
//! is in the cell's pid namespace is in the sight of its processes, and one of them that may trace
//! (CAP_SYS_PTRACE) could open the host's root as /proc/PID/root, did a process come there that has yet to
//! enter the mount namespace. No lock is taken: other commands on the cell go on meanwhile, and it may be
//! deleted at any point, which ends both.

mod child;

use super::create::{pid_file, send_pidfd};
use super::fault::{Fault, Stage, WIRE};
use super::live::apart;
use super::run::{Signals, wait};
use super::status::Status;
use super::store::{Saved, Store};
use super::{spawn, view, wire};
use crate::image::users;
use crate::plan::{ExecPlan, Kind, Plan};
use crate::spec::load;
use crate::spec::lower::exec::{Changes, Context, Source, UserIds, lower};
use crate::sys::clone::{self, Child};
use crate::sys::misc::{self, CArray};
use crate::sys::{cred, fd, pipe, socket};
use crate::{Error, Result};
use child::Joiner;
use nix::errno::Errno;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// What to execute and how.
#[derive(Debug, Default)]
pub struct ExecOptions {
    /// The cell.
    pub id: String,
    /// A file with the process as JSON; then `changes` and `user` don't count.
    pub process: Option<PathBuf>,
    /// What differs from the cell's own process, its user aside.
    pub changes: Changes,
    /// `USER[:GROUP]`, by number or by the names in the cell's /etc/passwd and /etc/group.
    pub user: Option<String>,
    /// `[CONTROLLER:]PATH` of groups below the cell's.
    pub groups: Vec<String>,
    /// AF_UNIX socket that gets the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// AF_UNIX socket that gets the pidfd of the process.
    pub pidfd_socket: Option<PathBuf>,
    /// File to write its pid to.
    pub pid_file: Option<PathBuf>,
    /// Return once the program is executed.
    pub detach: bool,
    /// How many descriptors from 3 on the program inherits.
    pub preserve_fds: u32,
    /// Also into a paused cell, where the process waits until it is resumed.
    pub ignore_paused: bool,
}

/// How it went.
#[derive(Debug, Clone)]
pub struct ExecOutcome {
    /// The program's status, 128 + signal when killed; 0 when detached.
    pub code: i32,
    /// What was tolerated.
    pub warnings: Vec<String>,
}

/// Executes a program in a cell. In the foreground, signals go to the program.
///
/// # Errors
/// The cell is stopped or paused, the process can't be had as asked, or the program can't be
/// executed. Nothing is left then.
pub fn exec(store: &Store, opts: &ExecOptions) -> Result<ExecOutcome> {
    let saved = store.load(&opts.id)?;
    let target = Target::open(store, &saved, opts.ignore_paused)?;
    let cell = load::load(&store.dir(&opts.id))?.spec;
    let (source, mut warnings) = source(opts, &target)?;
    let ctx = Context {
        id: &opts.id,
        no_new_keyring: saved.no_new_keyring,
        groups: &opts.groups,
    };
    let (plan, more) = lower(&cell, &source, &ctx).map_err(|e| of_file(opts, e))?;
    warnings.extend(more);
    let made = start(&saved, &target, &plan, opts)?;
    let Made {
        child,
        signals,
        console,
    } = made;
    let code = match signals {
        None => 0,
        Some(signals) => wait(&child, &signals, console, true)?.code(),
    };
    Ok(ExecOutcome { code, warnings })
}

/// The cell's first process.
struct Target {
    pid: i32,
    pidfd: OwnedFd,
}

impl Target {
    /// Opens it, if the cell is in a state that takes another process.
    fn open(store: &Store, saved: &Saved, ignore_paused: bool) -> Result<Self> {
        // Before the look at the cell: what is seen then is true of this process, and not of a
        // later one with its number.
        let stopped = || Error::msg("cannot exec in a stopped container");
        let pidfd = match saved.pid {
            0 => None,
            pid => match clone::pidfd_open(pid) {
                Ok(fd) => Some(fd),
                Err(Errno::ESRCH) => return Err(stopped()),
                Err(e) => return Err(Error::step("open", format!("process {pid}"), e)),
            },
        };
        match (saved.status(store), pidfd) {
            (Status::Stopped, _) => Err(stopped()),
            (Status::Creating, _) | (_, None) => Err(Error::msg(
                "cannot exec in a container that is still being created",
            )),
            (Status::Paused, _) if !ignore_paused => Err(Error::msg(
                "cannot exec in a paused container (use --ignore-paused to override)",
            )),
            (_, Some(pidfd)) => Ok(Target {
                pid: saved.pid,
                pidfd,
            }),
        }
    }

    /// CLONE_NEW* of the namespaces to enter.
    fn namespaces(&self, plan: &ExecPlan) -> Result<u64> {
        let mut flags = plan.own;
        for kind in &plan.perhaps {
            match apart(self.pid, *kind) {
                Ok(true) => flags |= *kind as u64,
                Ok(false) => {}
                // A kernel without this kind.
                Err(e) if e.errno() == Some(libc::ENOENT) && !has(*kind) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(flags)
    }
}

fn has(kind: Kind) -> bool {
    Path::new(&format!("/proc/self/ns/{}", kind.file())).exists()
}

/// Which process it is, with names looked up in the cell.
fn source(opts: &ExecOptions, target: &Target) -> Result<(Source, Vec<String>)> {
    if let Some(path) = &opts.process {
        let text = load::read_file(path)?;
        let (process, warnings) = load::parse_process(&text).map_err(|e| of_file(opts, e))?;
        return Ok((Source::Given(Box::new(process)), warnings));
    }
    let mut changes = opts.changes.clone();
    if let Some(text) = &opts.user {
        changes.user = Some(user_ids(text, target.pid)?);
    }
    Ok((Source::Changed(Box::new(changes)), Vec::new()))
}

/// The errors of a process file name the file.
fn of_file(opts: &ExecOptions, e: Error) -> Error {
    match (&opts.process, e) {
        (Some(path), Error::Config { at, why }) if at.starts_with("process") => {
            Error::msg(format!("{}: {at}: {why}", path.display()))
        }
        // Said of the command line, which is what is wrong.
        (None, Error::Config { at, why }) if at.starts_with("process") => {
            Error::msg(format!("{at}: {why}"))
        }
        (_, e) => e,
    }
}

/// Numbers are taken as they are, as runc does; for a name the cell's own files are read.
fn user_ids(text: &str, init: i32) -> Result<UserIds> {
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    let (name, group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (text, None),
    };
    let number = |what: &str, t: &str| {
        let id: Option<u32> = t.parse().ok().filter(|id| *id != u32::MAX);
        id.ok_or_else(|| Error::msg(format!("--user {text}: {what} {t} is out of range")))
    };
    if digits(name) && group.is_none_or(digits) {
        return Ok(UserIds {
            uid: number("uid", name)?,
            gid: group.map(|g| number("gid", g)).transpose()?,
            groups: None,
        });
    }
    if name.is_empty() || group == Some("") {
        return Err(Error::msg(format!(
            "--user {text:?}: expected USER or USER:GROUP"
        )));
    }
    let path = CString::new(format!("/proc/{init}/root")).unwrap_or_default();
    let root = fd::open_host(&path, libc::O_PATH | libc::O_DIRECTORY)
        .map_err(|e| Error::step("open the root of", format!("process {init}"), e))?;
    let found = users::resolve(&root, text)?;
    let groups = (!digits(name)).then_some(found.groups);
    Ok(UserIds {
        uid: found.uid,
        gid: Some(found.gid),
        groups,
    })
}

/// A process that has executed its program.
struct Made {
    child: Child,
    /// In the foreground.
    signals: Option<Signals>,
    /// The terminal's master, when it is ours.
    console: Option<OwnedFd>,
}

fn start(saved: &Saved, target: &Target, plan: &ExecPlan, opts: &ExecOptions) -> Result<Made> {
    let p = &plan.process;
    view::refuse_labels(p, false)?;
    let (console, ours) = console(opts, p.terminal)?;
    let listener = super::create::listener(plan.seccomp.as_ref())?;
    let entry = saved.cgroup.enter(&plan.groups)?;
    let flags = target.namespaces(plan)?;
    let (parent, child_end) = socket::pair().map_err(|e| Error::step("make", "socket pair", e))?;
    // The process in between could die before it has told whom it made.
    socket::want_senders(parent.as_fd()).map_err(|e| Error::step("set up", "socket pair", e))?;
    let argv = CArray::new(&p.args, 0);
    let mut envp = CArray::new(&p.env, usize::from(p.needs_home));
    if let Some(cpus) = &plan.first_cpus {
        misc::set_affinity(cpus)
            .map_err(|e| Error::step("set CPU affinity to", "execCPUAffinity.initial", e))?;
    }
    // Before the child is there: a signal goes to one of the two.
    let signals = match opts.detach {
        true => None,
        false => Some(Signals::block()?),
    };
    // Nobody who sees this process or its children may look into them, from their birth on. exec takes it
    // back for the program. (Without root the child does it, for it must first write to files of its own
    // in /proc that this makes root's.)
    if cred::host_root() {
        cred::set_dumpable(false).map_err(|e| Error::step("protect", "the runtime's memory", e))?;
    }
    let mut joiner = Joiner {
        plan,
        pidfd: target.pidfd.as_fd(),
        enter: flags,
        joins_user: flags & Kind::User as u64 != 0,
        sock: child_end.as_fd(),
        console: console.as_ref().map(AsFd::as_fd),
        join_files: entry.join_files(),
        hold: None,
        preserve_fds: opts.preserve_fds,
    };
    let mut clone = |cgroup, joiner: &Joiner| {
        spawn::clone_once(0, cgroup, || child::between(joiner, &argv, &mut envp))
    };
    let made = match clone(entry.clone_fd(), &joiner) {
        // The cell's group hands out controllers, so it takes no process.
        Err(Errno::EBUSY) if plan.groups.is_empty() => {
            match saved
                .cgroup
                .enter_beside(target.pid, saved.cgroup.enter(&[])?)?
            {
                None => Err(Errno::EBUSY),
                Some(beside) => {
                    joiner.join_files = beside.join_files();
                    clone(beside.clone_fd(), &joiner)
                }
            }
        }
        // A user's scope, and this process is elsewhere: systemd moves it, which waits for that.
        Err(Errno::EACCES) if plan.groups.is_empty() && saved.cgroup.can_move() => {
            let (hold, release) = pipe::pair().map_err(|e| Error::step("make", "pipe", e))?;
            joiner.hold = Some((hold.as_fd(), release.as_fd()));
            let made = clone(None, &joiner).map_err(|e| cant_join(saved, e))?;
            let pid = made.pid;
            let mut held = HalfMade {
                between: Some(made),
                child: None,
            };
            saved.cgroup.move_in(pid)?;
            fd::write_all(release.as_fd(), b"0")
                .map_err(|e| Error::step("release", "a process in the cell", e))?;
            held.between.take().ok_or(Errno::ECHILD)
        }
        other => other,
    };
    let between = made.map_err(|e| cant_join(saved, e))?;
    // Ours to close, or the children's ends would never read as closed.
    drop((child_end, console));
    let half = HalfMade {
        between: Some(between),
        child: None,
    };
    let talk = Talk {
        saved,
        plan,
        listener: listener.as_ref(),
        signals: signals.as_ref(),
    };
    let mut half = converse(parent.as_fd(), &talk, half)?;
    let child = half.child.as_ref().ok_or_else(|| Error::msg(DIED))?;
    if let Some(path) = &opts.pidfd_socket {
        send_pidfd(path, child.pidfd.as_fd())?;
    }
    if let Some(path) = &opts.pid_file {
        pid_file(path, child.pid)?;
    }
    let console = match ours {
        None => None,
        Some(sock) => Some(super::create::receive_console(sock.as_fd())?),
    };
    Ok(Made {
        child: half.child.take().expect("not taken yet"),
        signals,
        console,
    })
}

fn cant_join(saved: &Saved, e: Errno) -> Error {
    match e {
        Errno::ESRCH => Error::msg("cannot exec in a stopped container"),
        // The kernel's words for a pid namespace whose first process is gone (clone(2), "ERRORS").
        Errno::ENOMEM if !saved.alive() => Error::msg("cannot exec in a stopped container"),
        Errno::ENODEV | Errno::ENOENT if !saved.alive() => {
            Error::msg("cannot exec in a stopped container")
        }
        e => Error::step("make a process in cell", saved.id.clone(), e),
    }
}

/// The process or the one in between is gone without a word.
const DIED: &str = "the process died while it joined the cell (killed, or the cell ended)";

/// Ends processes that didn't get as far as they should.
struct HalfMade {
    between: Option<Child>,
    child: Option<Child>,
}

impl Drop for HalfMade {
    fn drop(&mut self) {
        let both = || self.between.iter().chain(&self.child);
        for made in both() {
            let _ = clone::pidfd_kill(made.pidfd.as_fd(), libc::SIGKILL);
        }
        for made in both() {
            // One in a frozen v1 group dies when that is thawed, which is not ours to wait for.
            if misc::poll_in(&[made.pidfd.as_fd()], 1000).is_ok_and(|r| r[0]) {
                let _ = clone::wait_pidfd(made.pidfd.as_fd());
            }
        }
    }
}

/// The child's end of the console connection, and ours when the terminal is ours.
fn console(opts: &ExecOptions, terminal: bool) -> Result<(Option<OwnedFd>, Option<OwnedFd>)> {
    // runc's conditions and words (utils_linux.go, checkTerminal).
    match &opts.console_socket {
        None if opts.detach && terminal => Err(Error::msg(
            "cannot allocate tty if gpucell will detach without setting console socket",
        )),
        Some(_) if !opts.detach || !terminal => Err(Error::msg(
            "cannot use console socket if gpucell will not detach or allocate tty",
        )),
        Some(path) => {
            let s = UnixStream::connect(path).map_err(|e| {
                Error::step("connect to console socket", path.display().to_string(), e)
            })?;
            Ok((Some(s.into()), None))
        }
        None if terminal => {
            let (theirs, ours) =
                socket::pair().map_err(|e| Error::step("make", "console socket", e))?;
            Ok((Some(theirs), Some(ours)))
        }
        None => Ok((None, None)),
    }
}

/// What is needed to talk with the child.
struct Talk<'a> {
    saved: &'a Saved,
    plan: &'a ExecPlan,
    listener: Option<&'a UnixStream>,
    signals: Option<&'a Signals>,
}

/// Talks with the child and the process in between until the one has executed the program and the other
/// is gone.
fn converse(sock: BorrowedFd, talk: &Talk, mut half: HalfMade) -> Result<HalfMade> {
    let fail = |e| Error::step("talk to", "the process in the cell", e);
    loop {
        if let Some(signals) = talk.signals {
            await_word(sock, signals)?;
        }
        let mut buf = [0; WIRE];
        let got = socket::recv_packet(sock, &mut buf).map_err(fail)?;
        let buf = &buf[..got.len];
        match wire::kind(buf) {
            wire::FAULT => {
                return Err(match Fault::decode(buf) {
                    Some(fault) if fault.stage == Stage::JoinNamespace => {
                        cant_join(talk.saved, Errno::from_raw(fault.errno))
                    }
                    Some(fault) => fault.explain(&words(talk.plan)),
                    None => Error::msg("the process in the cell sent a garbled message"),
                });
            }
            wire::READY => {
                let pid = got.sender.ok_or_else(|| Error::msg(DIED))?;
                // It is our child, so that its number is its own until we have waited for it.
                let pidfd = clone::pidfd_open(pid).map_err(fail)?;
                half.child = Some(Child { pid, pidfd });
            }
            wire::NOTIFY => {
                if let (Some(listener), Some(fd), Some(child)) =
                    (talk.listener, got.fd, &half.child)
                {
                    let seccomp = talk.plan.seccomp.as_ref();
                    let at = view::Notified {
                        pid: child.pid,
                        status: "running",
                    };
                    view::send_notify(listener, seccomp, talk.saved, &at, fd.as_fd())?;
                }
            }
            // Closed by exec, and by the end of the one in between.
            0 if got.len == 0 && half.child.is_some() => {
                if let Some(between) = half.between.take() {
                    clone::wait_pidfd(between.pidfd.as_fd()).map_err(fail)?;
                }
                return Ok(half);
            }
            0 if got.len == 0 => return Err(Error::msg(DIED)),
            other => {
                return Err(Error::msg(format!(
                    "the process in the cell sent an unexpected message ({other})"
                )));
            }
        }
    }
}

/// Waits for the next word. It may be long in coming (a paused cell): what would end this command ends it, and
/// what it has made.
fn await_word(sock: BorrowedFd, signals: &Signals) -> Result<()> {
    let fail = |e| Error::step("wait for", "the process in the cell", e);
    loop {
        let ready = misc::poll_in(&[sock, signals.fd()], -1).map_err(fail)?;
        if ready[0] {
            return Ok(());
        }
        while let Some(signal) = misc::read_signal(signals.fd()) {
            match signal {
                libc::SIGINT | libc::SIGTERM | libc::SIGQUIT | libc::SIGHUP => {
                    return Err(Error::msg(format!(
                        "ended by signal {signal} before the program was executed"
                    )));
                }
                _ => {}
            }
        }
    }
}

/// The parts of a Plan that a failure is explained with.
fn words(plan: &ExecPlan) -> Plan {
    Plan {
        process: plan.process.clone(),
        seccomp: plan.seccomp.clone(),
        ..Plan::default()
    }
}
