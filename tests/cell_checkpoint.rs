//! checkpoint and restore: a cell goes on where it was, with its limits, mounts and streams; and what can't be
//! saved is left as it was.
//!
//! Most of it needs a CRIU that works on this kernel. Elsewhere it is only seen that its absence, GPUs, rootless
//! callers and cells that don't run are refused; the rest runs in the test machine (`scripts/test vm`), which has
//! one.

mod cell_support;
mod support;

use cell_support::{Cell, until};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::{GPUCELL, Outcome, outcome};

const M: u64 = 1 << 20;

/// Whether CRIU works here. In the test machine it has to (Debian 12 has no package of it).
fn here() -> bool {
    let works = Command::new("criu")
        .arg("check")
        .output()
        .is_ok_and(|o| o.status.success());
    let name = fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let promised = name.trim() == "gpucell-guest" && !system.contains("VERSION_ID=\"12\"");
    assert!(works || !promised, "the test machine's criu doesn't work");
    if !works {
        eprintln!("no criu that works here: this runs in the test machine (scripts/test vm)");
    }
    works
}

/// A cell that counts in the link `count` of its root.
fn counter(change: impl FnOnce(&mut Value)) -> Cell {
    let mut cell = Cell::new(change);
    cell.words(&["count", "/count"]);
    cell
}

/// What it has counted to.
fn count(cell: &Cell) -> u64 {
    let text = fs::read_link(cell.root("count")).unwrap_or_default();
    text.to_str().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Waits until it has counted further than `from`.
fn beyond(cell: &Cell, from: u64) {
    until("the count to go on", || count(cell) > from);
}

/// Runs a command whose cell keeps its streams: /dev/null, and for messages a log of its own.
fn apart(mut command: Command, log: &Path) -> Outcome {
    let done = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(log).expect("a log"))
        .status();
    Outcome {
        code: done.expect("gpucell can be run").code().unwrap_or(-1),
        out: String::new(),
        err: fs::read_to_string(log).unwrap_or_default(),
    }
}

/// A command that makes the cell, with what it says kept out of the cell: `--log` is for that.
fn detached(cell: &Cell, verb: &str, flags: &[&str]) -> Outcome {
    let log = cell.outside("logs").join(verb);
    let mut c = cell.command(&["--log"]);
    c.arg(&log).args([verb, "--bundle"]).arg(cell.bundle.path());
    c.arg("--detach").args(flags).arg(&cell.id);
    c.stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let code = c.status().expect("gpucell can be run").code();
    Outcome {
        code: code.unwrap_or(-1),
        out: String::new(),
        err: fs::read_to_string(&log).unwrap_or_default(),
    }
}

fn images(cell: &Cell, name: &str) -> PathBuf {
    cell.outside("images").join(name)
}

fn save(cell: &Cell, images: &Path, flags: &[&str]) -> Outcome {
    let mut c = cell.command(&["checkpoint", "--image-path"]);
    outcome(c.arg(images).args(flags).arg(&cell.id))
}

fn bring_back(cell: &Cell, images: &Path, flags: &[&str]) -> Outcome {
    let path = images.to_str().expect("UTF-8");
    detached(cell, "restore", &[&["--image-path", path], flags].concat())
}

#[test]
fn a_cell_goes_on_where_it_was() {
    if !here() {
        return;
    }
    let mut cell = counter(|c| {
        c["linux"]["resources"]["memory"] = json!({ "limit": 96 * M });
        c["linux"]["resources"]["pids"] = json!({ "limit": 77 });
    });
    let data = cell.outside("data");
    fs::write(data.join("file"), "the host's").expect("a file");
    fs::create_dir_all(data.join("sub")).expect("a folder");
    let hook_says = cell.outside("logs").join("hook");
    cell.edit(|c| {
        let script = format!("cat > {}", hook_says.display());
        c["hooks"] = json!({ "createRuntime": [
            { "path": "/bin/sh", "args": ["sh", "-c", script] }
        ]});
        let mounts = c["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({ "destination": "/data", "type": "bind",
            "source": data, "options": ["bind", "ro"] }));
        mounts.push(json!({ "destination": "/etc/one", "type": "bind",
            "source": data.join("file"), "options": ["bind"] }));
    });
    detached(&cell, "run", &[]).ok();
    beyond(&cell, 2);
    let created = cell.state()["created"].clone();

    let saved = images(&cell, "one");
    save(&cell, &saved, &[]).ok();
    let at = count(&cell);
    cell.nothing_left();
    let gone = cell.verb("state", &[]);
    assert!(gone.err.contains("does not exist"), "{gone:#?}");
    for file in ["descriptors.json", "dump.log", "inventory.img"] {
        assert!(saved.join(file).exists(), "{file}");
    }
    assert_eq!(count(&cell), at, "it goes on after its end");

    let pid_file = cell.outside("logs").join("pid");
    let work = cell.outside("logs").join("work");
    let flags = ["--pid-file", pid_file.to_str().unwrap()];
    let work_flags = ["--work-path", work.to_str().unwrap(), "--no-subreaper"];
    bring_back(&cell, &saved, &[flags.as_slice(), &work_flags].concat()).ok();
    assert_eq!(cell.status(), "running");
    assert_eq!(
        fs::read_to_string(&pid_file).unwrap(),
        cell.pid().to_string()
    );
    assert_ne!(cell.state()["created"], created);
    assert!(work.join("restore.log").exists());
    beyond(&cell, at);
    assert_eq!(cell.group_value("memory.max"), (96 * M).to_string());
    assert_eq!(cell.group_value("pids.max"), "77");
    let group = fs::read_to_string(format!("/proc/{}/cgroup", cell.pid())).unwrap();
    assert!(group.contains(&cell.id), "{group}");
    // The hook of the second time: with the restored process's pid.
    let hook: Value = serde_json::from_slice(&fs::read(&hook_says).unwrap()).unwrap();
    assert_eq!(
        (&hook["status"], &hook["pid"]),
        (&json!("creating"), &json!(cell.pid()))
    );
    // One more program finds the mounts and namespaces of before.
    let inside = ["exec", &cell.id, "/bin/hello", "each"];
    let words = "cat /data/file ; cat /etc/one ; write /data/no x ; cat /proc/kcore ; ns";
    let words: Vec<&str> = words.split(' ').collect();
    let done = outcome(cell.command(&inside).args(words));
    let got = cell_support::sections(&done.out);
    assert_eq!(got[0], (0, "the host's".to_owned()), "{done:#?}");
    assert_eq!(got[1].1, "the host's");
    assert!(got[2].1.contains("EROFS"), "{done:#?}");
    assert_eq!(got[3], (0, String::new()));
    assert_eq!(got[4].0, 0);

    // Twice is once more.
    let again = images(&cell, "two");
    save(&cell, &again, &[]).ok();
    let at = count(&cell);
    cell.nothing_left();
    bring_back(&cell, &again, &[]).ok();
    beyond(&cell, at);
}

#[test]
fn a_mount_point_that_is_missing_is_made_again() {
    if !here() {
        return;
    }
    let mut cell = counter(|_| {});
    let data = cell.outside("data");
    fs::write(data.join("file"), "x").expect("a file");
    cell.edit(|c| {
        let mounts = c["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({ "destination": "/deep/er", "type": "bind",
            "source": data, "options": ["bind"] }));
    });
    detached(&cell, "run", &[]).ok();
    beyond(&cell, 0);
    let saved = images(&cell, "one");
    save(&cell, &saved, &[]).ok();
    let at = count(&cell);
    fs::remove_dir_all(cell.root("deep")).expect("the mount point");
    bring_back(&cell, &saved, &[]).ok();
    beyond(&cell, at);
    let done =
        outcome(&mut cell.command(&["exec", &cell.id, "/bin/hello", "cat", "/deep/er/file"]));
    assert_eq!(done.out, "x", "{done:#?}");
}

#[test]
fn a_pre_dump_and_a_dump_leave_it_running() {
    if !here() {
        return;
    }
    let cell = counter(|_| {});
    detached(&cell, "run", &[]).ok();
    beyond(&cell, 0);
    let pid = cell.pid();
    let (first, second) = (images(&cell, "first"), images(&cell, "second"));
    save(&cell, &first, &["--pre-dump"]).ok();
    assert!(first.join("pagemap-1.img").exists());
    beyond(&cell, count(&cell));
    let flags = ["--parent-path", "../first", "--leave-running"];
    let before = count(&cell);
    save(&cell, &second, &flags).ok();
    let after = count(&cell);
    assert_eq!((cell.status().as_str(), cell.pid()), ("running", pid));
    beyond(&cell, after);
    assert_eq!(
        fs::read_link(second.join("parent")).unwrap(),
        Path::new("../first")
    );
    let wrong = save(&cell, &second, &["--parent-path", "../nowhere"]);
    assert!(
        wrong.code == 1 && wrong.err.contains("../nowhere"),
        "{wrong:#?}"
    );

    // The image is of then, and not of now.
    cell.verb("delete", &["--force"]).ok();
    fs::remove_file(cell.root("count")).unwrap();
    bring_back(&cell, &second, &[]).ok();
    beyond(&cell, before);
    assert_eq!(cell.status(), "running");
}

/// The streams of a cell that an engine reads: new pipes take the places of the old ones.
#[test]
fn pipes_are_connected_to_the_new_ones() {
    if !here() {
        return;
    }
    let cell = counter(|_| {});
    let piped = |verb: &str, flags: &[&str]| {
        let mut c = cell.making(verb, flags);
        c.arg("--detach").stdin(Stdio::null()).stderr(Stdio::null());
        let mut child = c
            .stdout(Stdio::piped())
            .spawn()
            .expect("gpucell can be run");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        assert!(child.wait().expect("an end").success(), "{verb}");
        lines.map(|l| l.expect("a line").parse::<u64>().expect("a number"))
    };
    let mut old = piped("run", &[]);
    assert_eq!(old.next(), Some(1));
    let saved = images(&cell, "one");
    save(&cell, &saved, &[]).ok();
    let last = old.last().expect("more numbers, and an end");
    let path = saved.to_str().expect("UTF-8");
    let mut new = piped("restore", &["--image-path", path]);
    assert_eq!(new.next(), Some(last + 1));
}

/// In the foreground its master is ours, both times.
#[test]
fn a_terminal_comes_back() {
    if !here() {
        return;
    }
    let cell = counter(|c| c["process"]["terminal"] = json!(true));
    let shown = |verb: &str, flags: &[&str]| {
        let mut c = cell.making(verb, flags);
        c.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = c.spawn().expect("gpucell can be run");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let numbers = lines.map(|l| l.expect("a line").trim().parse::<u64>().expect("a number"));
        (child, numbers)
    };
    let (mut child, mut old) = shown("run", &[]);
    assert_eq!(old.next(), Some(1));
    let saved = images(&cell, "one");
    save(&cell, &saved, &[]).ok();
    let last = old.last().expect("more numbers, and an end");
    assert_eq!(child.wait().expect("an end").code(), Some(128 + 9));
    let (mut child, mut new) = shown("restore", &["--image-path", saved.to_str().unwrap()]);
    assert_eq!(new.next(), Some(last + 1));
    // The first process of a pid namespace has no default for any other signal.
    outcome(&mut cell.command(&["kill", &cell.id, "KILL"])).ok();
    new.for_each(drop);
    assert_eq!(child.wait().expect("an end").code(), Some(128 + 9));
}

#[test]
fn a_shared_network_namespace_is_joined_again() {
    if !here() {
        return;
    }
    let keeper = Command::new("unshare")
        .args(["--net", "sleep", "1000"])
        .spawn();
    let mut keeper = keeper.expect("unshare can be run");
    let net = format!("/proc/{}/ns/net", keeper.id());
    let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
    until("a namespace", || {
        fs::metadata(&net).is_ok_and(|m| m.ino() != own)
    });
    let cell = counter(|c| {
        let list = c["linux"]["namespaces"].as_array_mut().expect("a list");
        list.retain(|n| n["type"] != "network");
        list.push(json!({ "type": "network", "path": net }));
    });
    detached(&cell, "run", &[]).ok();
    beyond(&cell, 0);
    let saved = images(&cell, "one");
    save(&cell, &saved, &[]).ok();
    let at = count(&cell);
    bring_back(&cell, &saved, &[]).ok();
    beyond(&cell, at);
    let inode = |path: &str| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&format!("/proc/{}/ns/net", cell.pid())), inode(&net));
    cell.verb("delete", &["--force"]).ok();
    keeper.kill().unwrap();
    keeper.wait().unwrap();
}

#[test]
fn what_cannot_be_dumped_goes_on() {
    if !here() {
        return;
    }
    let cell = counter(|_| {});
    // A connection whose other end is outside.
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let mut c = cell.making("run", &["--detach"]);
    c.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    c.stdout(Stdio::null()).stderr(Stdio::null());
    assert!(c.status().expect("gpucell can be run").success());
    beyond(&cell, 0);
    let pid = cell.pid();
    let saved = images(&cell, "one");
    let done = save(&cell, &saved, &[]);
    let says = format!("checkpoint of cell {}: criu failed", cell.id);
    let log = saved.join("dump.log").display().to_string();
    assert!(
        done.code == 1 && done.err.contains(&says) && done.err.contains(&log),
        "{done:#?}"
    );
    assert_eq!((cell.status().as_str(), cell.pid()), ("running", pid));
    beyond(&cell, count(&cell));
    drop(ours);
}

#[test]
fn a_restore_that_fails_leaves_nothing() {
    if !here() {
        return;
    }
    let cell = counter(|_| {});
    detached(&cell, "run", &[]).ok();
    beyond(&cell, 0);
    let saved = images(&cell, "one");
    let taken = {
        save(&cell, &saved, &["--leave-running"]).ok();
        bring_back(&cell, &saved, &[])
    };
    assert!(taken.err.contains("already exists"), "{taken:#?}");
    assert_eq!(cell.status(), "running");
    cell.verb("delete", &["--force"]).ok();

    fs::remove_file(saved.join("mm-1.img")).expect("an image");
    let done = bring_back(&cell, &saved, &[]);
    let says = format!("restore of cell {}: criu failed", cell.id);
    assert!(
        done.code == 1 && done.err.contains(&says) && done.err.contains("restore.log says"),
        "{done:#?}"
    );
    cell.nothing_left();

    let nowhere = bring_back(&cell, &images(&cell, "nowhere"), &[]);
    assert!(
        nowhere.code == 1 && nowhere.err.contains("nowhere"),
        "{nowhere:#?}"
    );
    cell.nothing_left();
}

/// In the foreground, `restore` ends as `run` does, with the program's status.
#[test]
fn a_restored_cell_is_followed_to_its_end() {
    if !here() {
        return;
    }
    let mut cell = Cell::new(|_| {});
    cell.words(&["signals"]);
    detached(&cell, "run", &[]).ok();
    let saved = images(&cell, "one");
    // It has its handlers once it says so; /dev/null doesn't tell.
    until("handlers", || {
        let status = fs::read_to_string(format!("/proc/{}/status", cell.pid())).unwrap();
        let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:"));
        u64::from_str_radix(caught.unwrap_or("0").trim(), 16).unwrap() & 1 << 14 != 0
    });
    save(&cell, &saved, &[]).ok();
    let mut c = cell.making("restore", &["--image-path", saved.to_str().unwrap()]);
    c.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = c.spawn().expect("gpucell can be run");
    until("it to run", || {
        let state = cell.verb("state", &[]);
        state.code == 0 && state.out.contains("running")
    });
    cell.verb("kill", &[]).ok();
    assert_eq!(child.wait().expect("an end").code(), Some(128 + 15));
    cell.nothing_left();
}

#[test]
fn a_paused_cell_is_saved() {
    if !here() {
        return;
    }
    let cell = counter(|_| {});
    detached(&cell, "run", &[]).ok();
    beyond(&cell, 0);
    cell.verb("pause", &[]).ok();
    let at = count(&cell);
    let saved = images(&cell, "one");
    save(&cell, &saved, &["--leave-running"]).ok();
    assert_eq!(cell.status(), "paused");
    assert_eq!(count(&cell), at);
    cell.verb("resume", &[]).ok();
    beyond(&cell, at);
}

#[test]
fn a_missing_criu_is_said_to_be_missing() {
    let cell = counter(|_| {});
    detached(&cell, "run", &[]).ok();
    let mut c = cell.command(&["checkpoint", "--image-path"]);
    c.arg(images(&cell, "one")).arg(&cell.id);
    let done = outcome(c.env("PATH", "/nowhere"));
    let says = format!("checkpoint of cell {}: criu is not installed", cell.id);
    assert!(
        done.code == 1 && done.err.contains(&says) && done.err.contains("apt install criu"),
        "{done:#?}"
    );
    assert_eq!(cell.status(), "running");
}

#[test]
fn what_has_gpus_is_refused() {
    let cell = counter(|c| {
        c["linux"]["devices"] =
            json!([{ "path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0 }]);
    });
    detached(&cell, "run", &[]).ok();
    let says = "it has GPUs (/dev/nvidia0)";
    let done = save(&cell, &images(&cell, "one"), &[]);
    assert!(done.code == 1 && done.err.contains(says), "{done:#?}");
    assert_eq!(cell.status(), "running");
    cell.verb("delete", &["--force"]).ok();
    let done = bring_back(&cell, &images(&cell, "one"), &[]);
    assert!(done.code == 1 && done.err.contains(says), "{done:#?}");
    cell.nothing_left();
}

#[test]
fn only_root_and_only_running_cells() {
    let cell = counter(|_| {});
    apart(
        cell.making("create", &[]),
        &cell.outside("logs").join("create"),
    )
    .ok();
    let done = save(&cell, &images(&cell, "one"), &[]);
    let says = format!("cell {} cannot be checkpointed in created state", cell.id);
    assert!(done.code == 1 && done.err.contains(&says), "{done:#?}");
    cell.verb("delete", &["--force"]).ok();

    let mut c = Command::new("unshare");
    c.args(["--user", "--map-root-user", GPUCELL, "--root"])
        .arg(cell.bundle.state())
        .args(["restore", "--bundle"])
        .arg(cell.bundle.path())
        .arg(&cell.id);
    let done = outcome(&mut c);
    assert!(
        done.code == 1 && done.err.contains("CRIU needs the host's root"),
        "{done:#?}"
    );
}
