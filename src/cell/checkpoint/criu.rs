//! CRIU as a program: found, started, asked, and listened to.
//!
//! Owns the conversation: `criu swrk FD` reads requests from a socket and answers, telling meanwhile what it
//! is at (criu.org/RPC). The messages are rust-criu's, which the CRIU project generates from its own rpc.proto.
//! What to ask for is `request`'s.

use crate::cell::child::join_tasks;
use crate::cell::fault::{At, Fault, Stage, Step, WIRE};
use crate::cell::wire;
use crate::cgroup::Cgroup;
use crate::plan::Plan;
use crate::rootfs;
use crate::spec::lower::DEFAULT_PATH;
use crate::sys::clone::{self, Child, Clone3, Exit};
use crate::sys::misc::{self, CArray};
use crate::sys::{fd, socket};
use crate::{Error, Result};
use nix::errno::Errno;
use protobuf::{EnumOrUnknown, Message, MessageField};
use rust_criu::rust_criu_protobuf::rpc::{
    Criu_features, Criu_opts, Criu_req, Criu_req_type, Criu_resp,
};
use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longest answer: CRIU's hold a name, a pid, a line of its log.
const ANSWER: usize = 64 << 10;
/// How much of the end of a log is looked at, in bytes.
const LOG_END: u64 = 64 << 10;
/// How many of its lines are shown.
const LOG_LINES: usize = 3;

/// What CRIU tells while it works.
pub struct Notice<'a> {
    /// The name of the stage, as action scripts get it (criu(8), `--action-script`).
    pub stage: &'a str,
    /// The first process's pid on the host, where the stage has it.
    pub pid: Option<i32>,
    /// A descriptor that came with it.
    pub fd: Option<OwnedFd>,
}

/// Where a CRIU that restores works.
pub struct Place<'a> {
    /// The cell's Plan: its root is attached in a mount namespace of CRIU's own, so that no mount is ever
    /// left on the host. CRIU wants a root that is a mount point.
    pub plan: &'a Plan,
    /// The mount above that root, when it may be shared.
    pub parent_mount: Option<&'a CStr>,
    /// The groups it joins, and with it all that it restores.
    pub cgroup: &'a Cgroup,
    /// Descriptors it inherits under their own numbers.
    pub fds: &'a [OwnedFd],
}

/// A folder CRIU works in: known to it by the number of our descriptor.
#[derive(Debug)]
pub struct Folder {
    fd: File,
    path: CString,
}

impl Folder {
    /// Opens it.
    ///
    /// # Errors
    /// It is not there, or no folder.
    pub fn open(path: &Path) -> Result<Folder> {
        let open = || -> std::io::Result<Folder> {
            let path = path.canonicalize()?;
            Ok(Folder {
                fd: File::options()
                    .read(true)
                    .custom_flags(libc::O_DIRECTORY)
                    .open(&path)?,
                path: CString::new(path.into_os_string().into_vec())?,
            })
        };
        open().map_err(|e| Error::step("open folder", path.display().to_string(), e))
    }

    /// Its number in requests.
    pub fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// A running `criu swrk`.
pub struct Criu {
    child: Child,
    /// None once no more is asked.
    sock: Option<OwnedFd>,
    ended: bool,
}

/// Where programs are.
fn search_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into())
}

/// Finds the program.
///
/// # Errors
/// It is nowhere on PATH: the message says which package has it.
pub fn find(what: &str) -> Result<PathBuf> {
    std::env::split_paths(&search_path())
        .map(|dir| dir.join("criu"))
        .find(|p| p.is_absolute() && p.is_file())
        .ok_or_else(|| {
            Error::msg(format!(
                "{what}: criu is not installed: no such program on PATH (Debian: apt install criu)"
            ))
        })
}

impl Criu {
    /// Starts it: in `place`, or on the host as it is. Its environment is PATH alone (it calls tar and the
    /// firewall's programs). A CRIU that restores has our standard streams, for the cell; else it has none.
    ///
    /// CRIU looks folders up in the process that made the socket, and mounts in them. So the child makes it, and
    /// opens them anew: ours are not in its mount namespace.
    ///
    /// # Errors
    /// The program can't be executed, the root can't be attached, the groups can't be joined.
    pub fn start(program: &Path, folders: &[&Folder], place: Option<&Place>) -> Result<Criu> {
        let show = program.display().to_string();
        let fail = |e: Errno| Error::step("run", show.clone(), e);
        let (ours, report) = socket::pair().map_err(fail)?;
        let null = File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(|e| Error::step("open", "/dev/null", e))?;
        let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| fail(Errno::EINVAL));
        let path = text(program.as_os_str().as_bytes())?;
        let args = [
            text(b"criu")?,
            text(b"swrk")?,
            // In the child this number is free for it.
            text(ours.as_raw_fd().to_string().as_bytes())?,
        ];
        let env = [text(&[b"PATH=", search_path().as_bytes()].concat())?];
        let (argv, envp) = (CArray::new(&args, 0), CArray::new(&env, 0));
        let clone = Clone3 {
            flags: place.map_or(0, |_| libc::CLONE_NEWNS as u64),
            cgroup: place.and_then(|p| p.cgroup.clone_fd()),
        };
        let child = clone::clone3(&clone, || {
            let fault = match prepare(place, folders, &null, ours.as_raw_fd(), report.as_fd()) {
                Ok(()) => {
                    let errno = misc::execve(&path, argv.as_slice(), envp.as_slice());
                    Fault::new(Stage::Exec, 0, errno)
                }
                Err(fault) => fault,
            };
            let _ = socket::send(report.as_fd(), &fault.encode(wire::FAULT), None);
            1
        })
        .map_err(fail)?;
        drop(report);
        let mut criu = Criu {
            child,
            sock: None,
            ended: false,
        };
        loop {
            let mut buf = [0; WIRE];
            let (said, sock) = socket::recv(ours.as_fd(), &mut buf).map_err(fail)?;
            if sock.is_some() {
                criu.sock = sock;
                continue;
            }
            match (Fault::decode(&buf[..said]), place) {
                // End of file: the program is executed, or the child was killed.
                (None, _) if criu.sock.is_some() => return Ok(criu),
                (None, _) => return Err(fail(Errno::ECHILD)),
                (Some(f), Some(place)) if f.stage != Stage::Exec => {
                    return Err(f.explain(place.plan));
                }
                (Some(f), _) => return Err(fail(Errno::from_raw(f.errno))),
            }
        }
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Asks for something and gives `told` what it hears until it is done. An error of `told` makes CRIU undo
    /// what it did, and is what is returned.
    ///
    /// # Errors
    /// CRIU failed: what it says of it; it sent something else than an answer.
    pub fn ask(
        &mut self,
        request: &Criu_req,
        told: &mut dyn FnMut(Notice) -> Result<()>,
    ) -> Result<Criu_resp> {
        let sock = self.sock.as_ref().expect("open until the end").as_fd();
        send(sock, request)?;
        let mut buf = vec![0; ANSWER];
        let mut failed = None;
        loop {
            let (n, fd) = socket::recv(sock, &mut buf).map_err(talk)?;
            if n == 0 {
                return Err(failed.unwrap_or_else(|| Error::msg("criu ended without an answer")));
            }
            let answer = Criu_resp::parse_from_bytes(&buf[..n]);
            let answer = answer.map_err(|e| Error::step("talk to", "criu", io_error(e)))?;
            if answer.type_() != Criu_req_type::NOTIFY {
                return match failed {
                    Some(e) => Err(e),
                    None if answer.success() => Ok(answer),
                    None => Err(refusal(&answer)),
                };
            }
            let notice = Notice {
                stage: answer.notify.script(),
                pid: answer.notify.pid,
                fd,
            };
            if let Err(e) = told(notice) {
                failed.get_or_insert(e);
            }
            let mut heard = ask_for(Criu_req_type::NOTIFY);
            heard.notify_success = Some(failed.is_none());
            send(sock, &heard)?;
        }
    }

    /// Lets it end, and waits until it has.
    ///
    /// # Errors
    /// It can't be waited for.
    pub fn end(mut self) -> Result<Exit> {
        self.wait()
    }

    fn wait(&mut self) -> Result<Exit> {
        self.sock = None;
        self.ended = true;
        clone::wait_pidfd(self.child.pidfd.as_fd()).map_err(|e| Error::step("wait for", "criu", e))
    }
}

impl Drop for Criu {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.wait();
        }
    }
}

/// The child's side, up to the program, which finds its socket under `number`. Allocates nothing.
fn prepare(
    place: Option<&Place>,
    folders: &[&Folder],
    null: &File,
    number: i32,
    report: BorrowedFd,
) -> Step {
    misc::unblock_signals();
    misc::reset_sigpipe();
    if let Some(place) = place {
        join_tasks(place.cgroup.join_files())?;
        for inherited in place.fds {
            fd::set_cloexec(inherited.as_fd(), false).at(Stage::Prepare, 0)?;
        }
        rootfs::set_propagation(&place.plan.root, place.parent_mount)?;
        rootfs::attach(&place.plan.root)?;
    } else {
        for n in 0..3 {
            fd::dup2(null.as_fd(), n).at(Stage::Stdio, n as usize)?;
        }
    }
    for folder in folders {
        let again = fd::open_host(&folder.path, libc::O_DIRECTORY).at(Stage::HostFiles, 0)?;
        fd::dup2(again.as_fd(), folder.number()).at(Stage::Prepare, 0)?;
    }
    let (theirs, own) = socket::pair().at(Stage::Prepare, 0)?;
    fd::dup2(own.as_fd(), number).at(Stage::Prepare, 0)?;
    socket::send(report, b"s", Some(theirs.as_fd())).at(Stage::Sync, 0)
}

/// A request of a kind.
pub fn ask_for(kind: Criu_req_type) -> Criu_req {
    Criu_req {
        type_: Some(EnumOrUnknown::new(kind)),
        ..Criu_req::default()
    }
}

/// A request of a kind, with options.
pub fn ask_with(kind: Criu_req_type, opts: Criu_opts) -> Criu_req {
    Criu_req {
        opts: MessageField::some(opts),
        ..ask_for(kind)
    }
}

/// Whether this CRIU on this kernel can keep track of changed memory, or restore it lazily.
///
/// # Errors
/// It can't, or can't be asked.
pub fn can(program: &Path, wish: &Criu_features) -> Result<()> {
    let mut request = ask_for(Criu_req_type::FEATURE_CHECK);
    request.features = MessageField::some(wish.clone());
    let mut criu = Criu::start(program, &[], None)?;
    let has = criu.ask(&request, &mut |_| Ok(()))?.features;
    criu.end()?;
    for (name, wanted, there) in [
        ("memory tracking", wish.mem_track(), has.mem_track()),
        ("lazy pages", wish.lazy_pages(), has.lazy_pages()),
    ] {
        if wanted && !there {
            return Err(Error::unsupported(
                name,
                "criu says that this kernel, or itself, has it not",
            ));
        }
    }
    Ok(())
}

fn send(sock: BorrowedFd, request: &Criu_req) -> Result<()> {
    let bytes = request.write_to_bytes();
    let bytes = bytes.map_err(|e| Error::step("encode", "the request to criu", io_error(e)))?;
    socket::send(sock, &bytes, None).map_err(talk)
}

fn talk(e: Errno) -> Error {
    Error::step("talk to", "criu", e)
}

fn io_error(e: protobuf::Error) -> std::io::Error {
    std::io::Error::other(e)
}

fn refusal(answer: &Criu_resp) -> Error {
    let said = match answer.cr_errmsg().trim() {
        "" => String::new(),
        text => format!(": {}", line(text)),
    };
    match answer.cr_errno() {
        0 => Error::msg(format!("criu failed{said}")),
        errno => {
            let why = std::io::Error::from_raw_os_error(errno);
            Error::msg(format!("criu failed ({why}){said}"))
        }
    }
}

/// What the end of a log says of an error, in one line: its last lines with the word, or else its last ones.
pub fn last_words(log: &Path) -> String {
    let show = log.display();
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let from = file.metadata()?.len().saturating_sub(LOG_END);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(LOG_END).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => format!("{show} says: {}", worst(&String::from_utf8_lossy(&bytes))),
        Err(e) => format!("its log {show} can't be read: {e}"),
    }
}

fn worst(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|l| !l.trim().is_empty()).collect();
    let errors: Vec<&str> = lines
        .iter()
        .copied()
        .filter(|l| l.contains("Error"))
        .collect();
    let chosen = if errors.is_empty() { lines } else { errors };
    let from = chosen.len().saturating_sub(LOG_LINES);
    let shown: Vec<String> = chosen[from..].iter().map(|l| line(l)).collect();
    shown.join(" | ")
}

/// One line of a log without what is no text, and without its time.
fn line(text: &str) -> String {
    let text = match text.trim().strip_prefix('(') {
        Some(rest) => rest.split_once(") ").map_or(text, |(_, after)| after),
        None => text,
    };
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_log_come_first() {
        let log = "(00.1) Dumping\n(00.2) Error (criu/mount.c:1): one\n\n(00.3) Error two\n(00.4) Unlock\n";
        assert_eq!(worst(log), "Error (criu/mount.c:1): one | Error two");
        assert_eq!(worst("(00.1) a\n(00.2) b\x1b\n"), "a | b");
        assert_eq!(worst(""), "");
        let many = "Error 1\nError 2\nError 3\nError 4\n";
        assert_eq!(worst(many), "Error 2 | Error 3 | Error 4");
    }

    #[test]
    fn a_missing_log_is_said_to_be_missing() {
        let text = last_words(Path::new("/nowhere/dump.log"));
        assert!(text.contains("/nowhere/dump.log can't be read"), "{text}");
    }
}
