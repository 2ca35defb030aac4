//! The connection to a systemd manager, and the calls made on it.
//!
//! Owns whom to connect to, the handshake, and waiting, which is bounded. Knows no properties.
//!
//! The D-Bus client is our own, some three hundred lines with `wire`, because the ready ones fall short:
//! - libcgroups has one, but for its own cgroup manager only (the module is private), and it throws signals away, so
//!   the end of a job can't be waited for;
//! - zbus brings an executor with threads of its own (and 60 crates, 1.3 MB of code): a process that makes and
//!   joins namespaces must have a single thread (setns(2), unshare(2));
//! - libdbus is a C library.

use super::wire::{self, FIXED, Message, Reader, Target, Type, Value};
use crate::error::{Error, Result};
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long systemd may take for one answer, or for one job. runc waits as long.
const LIMIT: Duration = Duration::from_secs(30);
/// Where the system's manager listens, for root, without a bus in between.
const PRIVATE: &str = "/run/systemd/private";

const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Why a call brought no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// systemd refused: the error's name and its words.
    Refused { name: String, text: String },
    /// It was not heard, or not understood.
    Lost(io::Error),
}

impl Failure {
    /// Whether systemd said that there is no such unit.
    pub fn no_such_unit(&self) -> bool {
        self.is("org.freedesktop.systemd1.NoSuchUnit")
    }

    pub fn unit_exists(&self) -> bool {
        self.is("org.freedesktop.systemd1.UnitExists")
    }

    fn is(&self, want: &str) -> bool {
        matches!(self, Failure::Refused { name, .. } if name == want)
    }

    fn lost(why: impl fmt::Display) -> Self {
        Failure::Lost(io::Error::other(why.to_string()))
    }

    /// For people: what was to be done, to which unit.
    pub fn at(self, step: &'static str, unit: &str) -> Error {
        match self {
            Failure::Refused { text, .. } => Error::msg(format!("{step} {unit}: systemd: {text}")),
            Failure::Lost(e) => Error::step(step, unit, e),
        }
    }
}

impl From<wire::Garbled> for Failure {
    fn from(e: wire::Garbled) -> Self {
        Failure::lost(format!("systemd sent {e}"))
    }
}

type Answer<T> = std::result::Result<T, Failure>;

/// A job that has come to its end.
struct Removed {
    job: String,
    result: String,
}

/// A connection.
pub(super) struct Bus {
    /// Buffered, for the first messages may come along with the handshake's last line.
    stream: BufReader<UnixStream>,
    serial: u32,
    /// Through a bus daemon.
    through_daemon: bool,
    /// Ends of jobs heard of while waiting for something else.
    removed: Vec<Removed>,
}

impl Bus {
    /// Connects to the system's manager, or to that of the user.
    ///
    /// # Errors
    /// No such manager is reachable; the places tried are named.
    pub fn connect(user: bool) -> Result<Self> {
        if !user {
            return Self::open(Path::new(PRIVATE), false).map_err(|e| no_manager(PRIVATE, &e));
        }
        let places = user_places(|name| std::env::var(name).ok());
        let mut tried = Vec::new();
        for (path, daemon) in &places {
            match Self::open(path, *daemon) {
                Ok(bus) => return Ok(bus),
                Err(e) => tried.push(format!("{}: {e}", path.display())),
            }
        }
        Err(Error::unsupported(
            "a cgroup made by systemd",
            match tried.is_empty() {
                true => {
                    "neither XDG_RUNTIME_DIR nor DBUS_SESSION_BUS_ADDRESS names a user manager \
                         (log in with a session: machinectl shell, ssh; or loginctl enable-linger)"
                        .to_owned()
                }
                false => format!("no user manager answers ({})", tried.join("; ")),
            },
        ))
    }

    fn open(path: &Path, through_daemon: bool) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut bus = Bus::on(stream, through_daemon);
        bus.authenticate()?;
        if through_daemon {
            bus.join_bus().map_err(|e| match e {
                Failure::Lost(e) => e,
                Failure::Refused { text, .. } => io::Error::other(text),
            })?;
        }
        Ok(bus)
    }

    fn on(stream: UnixStream, through_daemon: bool) -> Self {
        Bus {
            stream: BufReader::new(stream),
            serial: 0,
            through_daemon,
            removed: Vec::new(),
        }
    }

    /// SASL EXTERNAL, without saying who we are: the other side knows from the socket, and in a user namespace
    /// our own idea of it would be wrong. All in one, as sd-bus does: a call that systemd reads along with BEGIN lies in
    /// its buffer until more comes.
    fn authenticate(&mut self) -> io::Result<()> {
        self.stream
            .get_mut()
            .write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        // Two lines, a request for data and the verdict. A private socket may send signals right behind them,
        // before our first call.
        let (mut text, mut lines) = (Vec::new(), Read::take(&mut self.stream, 512));
        for _ in 0..2 {
            let read = lines.read_until(b'\n', &mut text)?;
            if lines.limit() > 0 && (read == 0 || !text.ends_with(b"\n")) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let text = String::from_utf8_lossy(&text);
        match text.lines().last() {
            Some(l) if l.starts_with("OK") => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "it does not let us in ({})",
                    text.trim().replace("\r\n", ", ")
                ),
            )),
        }
    }

    /// A bus daemon wants to be greeted, and passes on only signals asked for. A private socket carries all.
    fn join_bus(&mut self) -> Answer<()> {
        let to = |member| Target {
            destination: Some("org.freedesktop.DBus"),
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member,
        };
        self.call(&to("Hello"), &[])?;
        let rule = format!("type='signal',interface='{MANAGER}',member='JobRemoved'");
        self.call(&to("AddMatch"), &[Value::text(rule)])?;
        self.manager("Subscribe", &[]).map(drop)
    }

    fn manager(&mut self, member: &str, body: &[Value]) -> Answer<Message> {
        self.ask(PATH, MANAGER, member, body)
    }

    fn ask(
        &mut self,
        path: &str,
        interface: &str,
        member: &str,
        body: &[Value],
    ) -> Answer<Message> {
        let to = Target {
            destination: self.through_daemon.then_some(NAME),
            path,
            interface,
            member,
        };
        self.call(&to, body)
    }

    fn call(&mut self, to: &Target, body: &[Value]) -> Answer<Message> {
        self.serial += 1;
        let serial = self.serial;
        let data =
            wire::encode(serial, to, body).ok_or_else(|| Failure::lost("too much to say"))?;
        self.stream.get_mut().write_all(&data).map_err(timed_out)?;
        let end = Instant::now() + LIMIT;
        loop {
            let m = self.receive(end)?;
            if m.answers != Some(serial) {
                continue;
            }
            match m.kind {
                Type::Return => return Ok(m),
                Type::Error => {
                    let text = match m.signature.starts_with('s') {
                        true => Reader::new(&m.body).text()?,
                        false => m.error.clone(),
                    };
                    return Err(Failure::Refused {
                        name: m.error,
                        text,
                    });
                }
                _ => {}
            }
        }
    }

    /// The next message; ends of jobs are noted.
    fn receive(&mut self, end: Instant) -> Answer<Message> {
        if Instant::now() >= end {
            return Err(timed_out(io::ErrorKind::WouldBlock.into()));
        }
        let mut fixed = [0; FIXED];
        self.stream.read_exact(&mut fixed).map_err(timed_out)?;
        let (fields, body) = wire::sizes(&fixed)?;
        let mut rest = vec![0; fields + body];
        self.stream.read_exact(&mut rest).map_err(timed_out)?;
        let m = wire::decode(&fixed, &rest)?;
        if m.kind == Type::Signal
            && m.interface == MANAGER
            && m.member == "JobRemoved"
            && m.signature == "uoss"
        {
            let mut r = Reader::new(&m.body);
            r.u32()?;
            let job = r.text()?;
            r.text()?;
            let result = r.text()?;
            self.removed.push(Removed { job, result });
        }
        Ok(m)
    }

    /// Waits for the end of a job, and gives back its result: `done`, `failed`, `canceled`, `timeout` …
    pub fn wait(&mut self, job: &str) -> Answer<String> {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.removed.iter().position(|r| r.job == job) {
                return Ok(self.removed.swap_remove(at).result);
            }
            self.receive(end)?;
        }
    }

    /// StartTransientUnit; gives back the job.
    pub fn start_transient(&mut self, unit: &str, properties: Value) -> Answer<String> {
        let none = Value::Array("(sa(sv))".into(), Vec::new());
        let body = [Value::text(unit), Value::text("replace"), properties, none];
        let m = self.manager("StartTransientUnit", &body)?;
        Ok(Reader::new(&m.body).text()?)
    }

    /// StopUnit; gives back the job.
    pub fn stop(&mut self, unit: &str) -> Answer<String> {
        let m = self.manager("StopUnit", &[Value::text(unit), Value::text("replace")])?;
        Ok(Reader::new(&m.body).text()?)
    }

    /// ResetFailedUnit: lets systemd forget a unit that failed.
    pub fn reset_failed(&mut self, unit: &str) -> Answer<()> {
        self.manager("ResetFailedUnit", &[Value::text(unit)])
            .map(drop)
    }

    /// SetUnitProperties, until the unit ends.
    pub fn set_properties(&mut self, unit: &str, properties: Value) -> Answer<()> {
        let body = [Value::text(unit), Value::Bool(true), properties];
        self.manager("SetUnitProperties", &body).map(drop)
    }

    /// AttachProcessesToUnit, to the unit's own group.
    pub fn attach(&mut self, unit: &str, pid: u32) -> Answer<()> {
        let pids = Value::Array("u".into(), vec![Value::U32(pid)]);
        let body = [Value::text(unit), Value::text("/"), pids];
        self.manager("AttachProcessesToUnit", &body).map(drop)
    }

    /// The cgroup of a scope, below the mount; empty when it has none.
    pub fn scope_cgroup(&mut self, unit: &str) -> Answer<String> {
        let m = self.manager("GetUnit", &[Value::text(unit)])?;
        let path = Reader::new(&m.body).text()?;
        self.get(&path, "org.freedesktop.systemd1.Scope", "ControlGroup")
    }

    /// The manager's own cgroup; empty for the root.
    pub fn own_cgroup(&mut self) -> Answer<String> {
        self.get(PATH, MANAGER, "ControlGroup")
    }

    /// systemd's version, such as `257.8-1`.
    pub fn version(&mut self) -> Answer<String> {
        self.get(PATH, MANAGER, "Version")
    }

    /// A property that is a string.
    fn get(&mut self, path: &str, interface: &str, name: &str) -> Answer<String> {
        let body = [Value::text(interface), Value::text(name)];
        let m = self.ask(path, PROPERTIES, "Get", &body)?;
        let mut r = Reader::new(&m.body);
        match r.signature()?.as_str() {
            "s" => Ok(r.text()?),
            other => Err(Failure::lost(format!("{name} has type {other}, not s"))),
        }
    }
}

fn timed_out(e: io::Error) -> Failure {
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::lost(format!(
            "systemd did not answer within {} s",
            LIMIT.as_secs()
        )),
        io::ErrorKind::UnexpectedEof => Failure::lost("systemd closed the connection"),
        _ => Failure::Lost(e),
    }
}

fn no_manager(path: &str, e: &io::Error) -> Error {
    Error::unsupported(
        "a cgroup made by systemd",
        format!("{path}: {e} (is systemd running here?); use --cgroup-manager cgroupfs"),
    )
}

/// The sockets by which a user's manager may be reached, and whether a bus daemon is behind them. Its own comes
/// first: one process less on the way.
fn user_places(env: impl Fn(&str) -> Option<String>) -> Vec<(PathBuf, bool)> {
    let mut out = Vec::new();
    let runtime = env("XDG_RUNTIME_DIR").filter(|d| d.starts_with('/'));
    if let Some(dir) = &runtime {
        out.push((Path::new(dir).join("systemd/private"), false));
    }
    let address = env("DBUS_SESSION_BUS_ADDRESS").unwrap_or_default();
    for one in address.split(';') {
        // D-Bus Specification, "Server Addresses": `unix:path=/run/user/1000/bus,guid=…`
        let keys = one.strip_prefix("unix:").unwrap_or("");
        let path = keys.split(',').find_map(|k| k.strip_prefix("path="));
        if let Some(path) = path.and_then(unescape) {
            out.push((path, true));
        }
    }
    if let Some(dir) = runtime {
        let bus = Path::new(&dir).join("bus");
        if !out.iter().any(|(p, _)| *p == bus) {
            out.push((bus, true));
        }
    }
    out
}

/// `%2f` and the like in an address.
fn unescape(text: &str) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    (out.first() == Some(&b'/')).then(|| std::ffi::OsString::from_vec(out).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(runtime: Option<&str>, address: Option<&str>) -> Vec<(String, bool)> {
        user_places(|name| {
            match name {
                "XDG_RUNTIME_DIR" => runtime,
                _ => address,
            }
            .map(str::to_owned)
        })
        .into_iter()
        .map(|(p, d)| (p.display().to_string(), d))
        .collect()
    }

    #[test]
    fn where_a_users_manager_is() {
        let own = ("/run/user/7/systemd/private".to_owned(), false);
        let bus = ("/run/user/7/bus".to_owned(), true);
        assert_eq!(places(None, None), []);
        assert_eq!(places(Some("relative"), Some("tcp:host=x")), []);
        assert_eq!(
            places(Some("/run/user/7"), None),
            [own.clone(), bus.clone()]
        );
        assert_eq!(
            places(
                Some("/run/user/7"),
                Some("unix:path=/run/user/7/bus,guid=1")
            ),
            [own, bus]
        );
        assert_eq!(
            places(
                None,
                Some("unix:abstract=x;unix:guid=1,path=/a%20b;unix:path=%zz")
            ),
            [("/a b".to_owned(), true)]
        );
    }

    /// JobRemoved, as a stand-in for systemd sends it.
    fn signal(job: &str, result: &str) -> Vec<u8> {
        let body = [
            Value::U32(1),
            Value::Object(job.into()),
            Value::text("a.scope"),
            Value::text(result),
        ];
        let to = Target {
            destination: None,
            path: PATH,
            interface: MANAGER,
            member: "JobRemoved",
        };
        let mut data = wire::encode(1, &to, &body).unwrap();
        data[1] = 4;
        data
    }

    #[test]
    fn jobs_are_waited_for_however_early_they_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut bus = Bus::on(ours, false);
        theirs.write_all(&signal("/other", "failed")).unwrap();
        theirs.write_all(&signal("/job/1", "done")).unwrap();
        assert_eq!(bus.wait("/job/1").unwrap(), "done");
        theirs.write_all(&signal("/job/2", "canceled")).unwrap();
        drop(theirs);
        assert_eq!(bus.wait("/job/2").unwrap(), "canceled");
        let lost = bus.wait("/job/3").unwrap_err().at("wait for", "a.scope");
        assert!(lost.to_string().contains("closed"), "{lost}");
    }

    /// What happens on the machine while we connect is told to us, too: behind the verdict, whole or cut off.
    #[test]
    fn signals_may_follow_the_handshake_at_once() {
        let heard = signal("/job/1", "done");
        for together in 0..=heard.len() {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let mut bus = Bus::on(ours, false);
            let mut first = b"DATA\r\nOK 646f789baa3c46858c8189475c21a160\r\n".to_vec();
            first.extend_from_slice(&heard[..together]);
            theirs.write_all(&first).unwrap();
            bus.authenticate().unwrap();
            theirs.write_all(&heard[together..]).unwrap();
            assert_eq!(bus.wait("/job/1").unwrap(), "done");
        }
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"DATA\r\nREJECTED\r\n").unwrap();
        let refused = Bus::on(ours, false).authenticate().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }
}
