//! What the engine's cell_* tests share: one cell of one's own, driven by runc's commands, and a
//! look at what is left of it afterwards.
#![allow(dead_code)] // each test program uses some of it

use crate::support::{Bundle, GPUCELL, Outcome, outcome};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A cell's bundle and name. Dropping it deletes the cell and fails the test when anything of it is left.
pub struct Cell {
    pub bundle: Bundle,
    pub id: String,
}

impl Cell {
    /// The hello bundle with a writable root and `change` applied. Its id is nobody else's.
    pub fn new(change: impl FnOnce(&mut Value)) -> Cell {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut bundle = Bundle::new();
        bundle.config["root"]["readonly"] = json!(false);
        change(&mut bundle.config);
        let id = format!("gpucell-test-{}-{n:03}", std::process::id());
        let cell = Cell { bundle, id };
        cell.save();
        cell
    }

    /// Changes config.json once more.
    pub fn edit(&mut self, change: impl FnOnce(&mut Value)) {
        change(&mut self.bundle.config);
        self.save();
    }

    fn save(&self) {
        let text = serde_json::to_vec_pretty(&self.bundle.config).expect("JSON");
        fs::write(self.bundle.path().join("config.json"), text).expect("config.json");
    }

    /// A path in the root, from outside.
    pub fn root(&self, path: &str) -> PathBuf {
        self.bundle.rootfs().join(path.trim_start_matches('/'))
    }

    /// A folder of the test's own beside the bundle.
    pub fn outside(&self, name: &str) -> PathBuf {
        let dir = self.bundle.path().with_file_name(name);
        fs::create_dir_all(&dir).expect("a folder beside the bundle");
        dir
    }

    /// Sets the arguments of the hello program.
    pub fn words(&mut self, words: &[&str]) -> &mut Self {
        let args: Vec<&str> = ["/bin/hello"].iter().chain(words).copied().collect();
        self.edit(|c| c["process"]["args"] = json!(args));
        self
    }

    /// `gpucell --root STATE ARG...`, to be finished by the caller.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(GPUCELL);
        c.arg("--root").arg(self.bundle.state()).args(args);
        c
    }

    /// `gpucell VERB FLAG... ID`
    pub fn verb(&self, verb: &str, flags: &[&str]) -> Outcome {
        outcome(self.command(&[verb]).args(flags).arg(&self.id))
    }

    /// A command that makes the cell (`create` or `run`), with the bundle given.
    pub fn making(&self, verb: &str, flags: &[&str]) -> Command {
        let mut c = self.command(&[verb, "--bundle"]);
        c.arg(self.bundle.path()).args(flags).arg(&self.id);
        c
    }

    /// `gpucell run`, to its end, with what config.json has.
    pub fn run(&self, flags: &[&str]) -> Outcome {
        outcome(&mut self.making("run", flags))
    }

    /// Runs the hello program.
    pub fn hello(&mut self, words: &[&str]) -> Outcome {
        self.words(words).run(&[])
    }

    /// Runs several commands of the hello program in one cell: (exit code, output) of each.
    pub fn each(&mut self, commands: &[&[&str]]) -> Vec<(i32, String)> {
        let joined = commands.join(&";");
        let words: Vec<&str> = ["each"].into_iter().chain(joined).collect();
        let done = self.hello(&words).ok();
        let got = sections(&done.out);
        assert_eq!(got.len(), commands.len(), "{done:#?}");
        got
    }

    /// `gpucell create`. Its streams go nowhere: the cell's process keeps them open, so that a pipe
    /// would not end.
    pub fn create(&self, flags: &[&str]) -> Outcome {
        quiet(
            self.making("create", flags),
            &self.bundle.path().with_file_name("log"),
        )
    }

    /// `gpucell run --detach`, likewise.
    pub fn detach(&self, flags: &[&str]) -> Outcome {
        let mut c = self.making("run", flags);
        c.arg("--detach");
        quiet(c, &self.bundle.path().with_file_name("log"))
    }

    /// The state as JSON.
    pub fn state(&self) -> Value {
        let done = self.verb("state", &[]).ok();
        serde_json::from_str(&done.out).expect("state prints JSON")
    }

    pub fn status(&self) -> String {
        self.state()["status"]
            .as_str()
            .expect("a status")
            .to_owned()
    }

    pub fn pid(&self) -> i32 {
        self.state()["pid"].as_i64().expect("a pid") as i32
    }

    /// A file of the cell's group, whichever hierarchy has it.
    pub fn group_file(&self, name: &str) -> Option<PathBuf> {
        let dirs = groups(&self.id).into_iter();
        dirs.map(|g| PathBuf::from(g.trim_start_matches("group ")).join(name))
            .find(|f| f.exists())
    }

    /// What is in it.
    pub fn group_value(&self, name: &str) -> String {
        let file = self.group_file(name).unwrap_or_else(|| panic!("no {name}"));
        let text = fs::read_to_string(file).expect("a control file");
        text.trim().to_owned()
    }

    /// Waits for a status.
    pub fn wait_for(&self, status: &str) {
        until(status, || self.status() == status);
    }

    /// What is still there of this cell: processes, groups, mounts, state.
    pub fn leftovers(&self) -> Vec<String> {
        let dir = self.bundle.path();
        let dir = dir
            .parent()
            .expect("has one")
            .to_string_lossy()
            .into_owned();
        let mut left: Vec<String> = groups(&self.id);
        for p in fs::read_dir("/proc").expect("/proc").flatten() {
            let name = p.file_name().to_string_lossy().into_owned();
            if !name.bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            let read = |f: &str| fs::read(p.path().join(f)).unwrap_or_default();
            let text = |f: &str| String::from_utf8_lossy(&read(f)).replace('\0', " ");
            // A dead orphan is the machine's to reap, in its own time.
            let stat = text("stat");
            let after = stat.rsplit(") ").next().unwrap_or_default();
            if after.starts_with("Z 1 ") {
                continue;
            }
            if text("cgroup").contains(&self.id) || text("cmdline").contains(&self.id) {
                left.push(format!(
                    "process {name}: {}{}",
                    text("cmdline"),
                    text("cgroup")
                ));
            }
        }
        left.extend(host_mounts(&dir).into_iter().map(|m| format!("mount {m}")));
        for e in fs::read_dir(self.bundle.state())
            .into_iter()
            .flatten()
            .flatten()
        {
            // What the driver has, kept for the next cell.
            if e.file_name() == "nvidia.cache" {
                continue;
            }
            // Folders that cells share (`.etc`) may stay, but nothing in them.
            let shared = e.file_name().to_string_lossy().starts_with('.');
            if !shared || fs::read_dir(e.path()).is_ok_and(|mut d| d.next().is_some()) {
                left.push(format!("state {}", e.path().display()));
            }
        }
        left
    }

    pub fn nothing_left(&self) {
        // A process that was just killed may take a moment to go.
        let end = Instant::now() + Duration::from_secs(2);
        let mut left = self.leftovers();
        while !left.is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
            left = self.leftovers();
        }
        assert_eq!(left, Vec::<String>::new(), "left behind by {}", self.id);
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let deleted = self.verb("delete", &["--force"]);
        if !std::thread::panicking() {
            assert_eq!(deleted.code, 0, "{deleted:#?}");
            self.nothing_left();
        }
    }
}

/// Folders below the cgroup mounts with this name in theirs.
fn groups(id: &str) -> Vec<String> {
    let mut left = Vec::new();
    let mut todo = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = todo.pop() {
        for e in fs::read_dir(dir).into_iter().flatten().flatten() {
            if !e.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            if e.file_name().to_string_lossy().contains(id) {
                left.push(format!("group {}", e.path().display()));
            } else {
                todo.push(e.path());
            }
        }
    }
    left
}

/// Mount points of the test's own mount namespace below `dir`.
pub fn host_mounts(dir: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let points = table.lines().filter_map(|l| l.split(' ').nth(4));
    points
        .filter(|p| p.starts_with(dir))
        .map(str::to_owned)
        .collect()
}

/// Runs a command whose descendants keep its streams: they go to a file, which is read back.
pub fn quiet(mut command: Command, log: &Path) -> Outcome {
    let file = fs::File::create(log).expect("a log");
    let err = file.try_clone().expect("a descriptor");
    let status = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(err)
        .status();
    Outcome {
        code: status.expect("gpucell can be run").code().unwrap_or(-1),
        out: String::new(),
        err: fs::read_to_string(log).unwrap_or_default(),
    }
}

/// The parts of the output of `hello each`.
pub fn sections(out: &str) -> Vec<(i32, String)> {
    let mut got = Vec::new();
    let mut text = String::new();
    for line in out.lines() {
        // What a command prints need not end in a newline.
        let end = line
            .rsplit_once("== ")
            .and_then(|(t, n)| Some((t, n.parse().ok()?)));
        match end {
            Some((rest, code)) => {
                text.push_str(rest);
                got.push((code, std::mem::take(&mut text)));
            }
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    got
}

/// One line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, Default)]
pub struct Mounted {
    pub options: Vec<String>,
    /// `shared:N`, `master:N`, `unbindable`, without the numbers.
    pub propagation: Vec<String>,
    pub fstype: String,
    pub superblock: Vec<String>,
}

impl Mounted {
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|o| o == option)
    }
}

/// The topmost mount at a mount point.
pub fn mounted(mountinfo: &str, point: &str) -> Option<Mounted> {
    mountinfo.lines().rev().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let head: Vec<&str> = head.split(' ').collect();
        let tail: Vec<&str> = tail.split(' ').collect();
        let list = |s: &str| s.split(',').map(str::to_owned).collect::<Vec<_>>();
        (*head.get(4)? == point).then(|| Mounted {
            options: list(head[5]),
            propagation: head[6..]
                .iter()
                .map(|f| f.split(':').next().unwrap_or_default().to_owned())
                .collect(),
            fstype: tail[0].to_owned(),
            superblock: list(tail.last().copied().unwrap_or_default()),
        })
    })
}

/// Waits up to ten seconds.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A child that is killed when the test ends.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A mount of the test's own on the host, undone when dropped.
pub struct HostMount(PathBuf);

impl HostMount {
    /// `mount ARG... POINT`
    pub fn new(args: &[&str], point: &Path) -> HostMount {
        let done = Command::new("mount").args(args).arg(point).status();
        assert!(done.is_ok_and(|s| s.success()), "mount {args:?} {point:?}");
        HostMount(point.to_owned())
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
