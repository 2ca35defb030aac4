//! The runtime, or its child, is killed at the entry of each of its system calls in turn. After
//! `delete --force` nothing may be left: no mount, group, process, state, file or device program.
//!
//! The points are found by tracing a run that is not killed. By itself it takes a sample of them, spread
//! evenly; GPUCELL_CRASH_POINTS is how many of each series, `all` for every one. GPUCELL_CRASH_DRIVER is
//! the cgroup driver (cgroupfs), GPUCELL_CRASH_KINDS which cells (docker,user,gpu,gpu-cold). Needs root.

#[path = "../cell_support/mod.rs"]
mod cell_support;
#[path = "../device_programs/mod.rs"]
mod device_programs;
#[path = "../fakes/mod.rs"]
mod fakes;
#[path = "../support/mod.rs"]
mod support;

mod trace;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use cell_support::Cell;
use fakes::Fake;
use serde_json::{Value, json};
use support::{GPUCELL, Outcome, outcome};
use trace::{Whom, run};

/// Kills of a docker-like `create` that must fall between its first effect and its exit.
const WANTED: u32 = 80;

/// A cell to treat badly.
struct Victim {
    cell: Cell,
    env: Vec<(String, String)>,
    driver: Vec<String>,
    /// What is known of the GPUs' driver is forgotten before each command.
    cold: bool,
    fake: Option<Fake>,
}

fn docker(c: &mut Value) {
    c["process"]["args"] = json!(["/bin/hello", "sleep", "100"]);
    c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 512, "hard": 512}]);
    c["process"]["oomScoreAdj"] = json!(100);
    c["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["kexec_load", "bpf"], "action": "SCMP_ACT_ERRNO"}],
    });
    let resources = &mut c["linux"]["resources"];
    resources["memory"] = json!({"limit": 256 << 20});
    resources["cpu"] = json!({"quota": 50000, "period": 100_000, "shares": 512});
    resources["pids"] = json!({"limit": 100});
    let rules = resources["devices"].as_array_mut().unwrap();
    rules.push(json!({"allow": true, "type": "c", "major": 241, "minor": minor(), "access": "r"}));
}

/// A device number by which the device programs of these cells are told from those of others.
fn minor() -> u32 {
    500_000 + std::process::id() % 500_000
}

fn user_namespace(c: &mut Value) {
    docker(c);
    let list = c["linux"]["namespaces"].as_array_mut().unwrap();
    list.push(json!({"type": "user"}));
    for map in ["uidMappings", "gidMappings"] {
        c["linux"][map] = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    }
}

impl Victim {
    fn new(kind: &str) -> Victim {
        let cell = Cell::new(if kind == "user" {
            user_namespace
        } else {
            docker
        });
        let mut victim = Victim {
            cell,
            env: Vec::new(),
            driver: Vec::new(),
            cold: kind == "gpu-cold",
            fake: None,
        };
        if kind.starts_with("gpu") {
            let fake = Fake::new(2);
            let file = fake.config().display().to_string();
            victim.env.push(("GPUCELL_CONFIG".into(), file));
            victim.cell.edit(|c| {
                let env = c["process"]["env"].as_array_mut().unwrap();
                env.push(json!("NVIDIA_VISIBLE_DEVICES=all"));
            });
            victim.fake = Some(fake);
        }
        let driver = std::env::var("GPUCELL_CRASH_DRIVER").unwrap_or_else(|_| "cgroupfs".into());
        if driver == "systemd" {
            let id = victim.cell.id.clone();
            let path = format!("system.slice:gpucell:{id}");
            victim
                .cell
                .edit(|c| c["linux"]["cgroupsPath"] = json!(path));
        }
        victim.driver = vec!["--cgroup-manager".into(), driver];
        victim
    }

    /// `gpucell --root STATE --cgroup-manager DRIVER WORD...`
    fn argv(&self, words: &[&str]) -> Vec<String> {
        let root = self.cell.bundle.state().display().to_string();
        let mut argv = vec![GPUCELL.to_owned(), "--root".to_owned(), root];
        argv.extend(self.driver.iter().cloned());
        argv.extend(words.iter().map(|&w| w.to_owned()));
        argv
    }

    fn gpucell(&self, words: &[&str]) -> Outcome {
        let argv = self.argv(words);
        let mut command = std::process::Command::new(&argv[0]);
        command.args(&argv[1..]);
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        // A created cell keeps the streams open.
        if matches!(words[0], "create" | "run") {
            let log = self.cell.bundle.path().with_file_name("log");
            return cell_support::quiet(command, &log);
        }
        outcome(&mut command)
    }

    fn bundle(&self) -> String {
        self.cell.bundle.path().display().to_string()
    }

    /// A runtime that was killed in the middle of a call or of its clean-up can be followed by anything:
    /// the cell is deleted, without any flag that was given before.
    fn delete(&self) {
        let words = ["delete", "--force", &self.cell.id];
        let root = self.cell.bundle.state();
        let mut command = std::process::Command::new(GPUCELL);
        let done = outcome(command.arg("--root").arg(root).args(words));
        assert_eq!(done.code, 0, "{done:?}");
    }

    /// What there is of the cell, and of what all cells share.
    fn traces(&self) -> BTreeSet<String> {
        let mut all: BTreeSet<String> = self.cell.leftovers().into_iter().collect();
        files(&self.cell.bundle.path(), &mut all);
        if self.driver[1] == "systemd" {
            let list = ["list-units", "--all", "--plain", "--no-legend", "gpucell-*"];
            let mut command = std::process::Command::new("systemctl");
            let units = outcome(command.args(list)).out;
            all.extend(units.lines().map(|l| format!("unit {l}")));
        }
        all
    }

    /// Nothing but `before` is there, at the latest after two seconds: the kernel takes its time.
    fn settled(&self, before: &BTreeSet<String>, what: &str) {
        let end = Instant::now() + Duration::from_secs(2);
        loop {
            let now = self.traces();
            if now == *before {
                return;
            }
            if Instant::now() > end {
                let new: Vec<_> = now.difference(before).collect();
                let old: Vec<_> = before.difference(&now).collect();
                panic!("{what}: left behind {new:#?}, missing {old:#?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The files of a folder with their types and sizes.
fn files(dir: &Path, out: &mut BTreeSet<String>) {
    for e in fs::read_dir(dir).unwrap().flatten() {
        let meta = e.path().symlink_metadata().unwrap();
        let size = if meta.is_file() { meta.len() } else { 0 };
        out.insert(format!(
            "file {} {:?} {size}",
            e.path().display(),
            meta.file_type()
        ));
        if meta.is_dir() {
            files(&e.path(), out);
        }
    }
}

/// The device programs of these cells that are loaded in this kernel.
fn device_programs() -> Vec<String> {
    // The filter compares both numbers at once.
    let found = device_programs::with_number((241 << 20 | minor()) as i32);
    found
        .iter()
        .map(|id| format!("device program {id}"))
        .collect()
}

/// A command that is killed, on a cell that is in the state it needs.
struct Attempt {
    name: &'static str,
    before: &'static [&'static str],
    words: fn(&Victim) -> Vec<String>,
}

const CREATE: &str = "create";
const DETACH: &str = "run";

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|&w| w.to_owned()).collect()
}

const COMMANDS: [Attempt; 7] = [
    Attempt {
        name: "create",
        before: &[],
        words: |v| words(&["create", "--bundle", &v.bundle(), &v.cell.id]),
    },
    Attempt {
        name: "start",
        before: &[CREATE],
        words: |v| words(&["start", &v.cell.id]),
    },
    Attempt {
        name: "run",
        before: &[],
        words: |v| words(&["run", "--detach", "--bundle", &v.bundle(), &v.cell.id]),
    },
    Attempt {
        name: "exec",
        before: &[DETACH],
        words: |v| words(&["exec", &v.cell.id, "/bin/hello", "true"]),
    },
    Attempt {
        name: "pause",
        before: &[DETACH],
        words: |v| words(&["pause", &v.cell.id]),
    },
    Attempt {
        name: "update",
        before: &[DETACH],
        words: |v| {
            let file = v.cell.bundle.path().with_file_name("update.json");
            let text = json!({
                "memory": {"limit": 128 << 20},
                "cpu": {"quota": 20000, "period": 100_000},
                "pids": {"limit": 50},
            });
            fs::write(&file, text.to_string()).unwrap();
            words(&["update", "-r", &file.display().to_string(), &v.cell.id])
        },
    },
    Attempt {
        name: "delete",
        before: &[DETACH],
        words: |v| words(&["delete", "--force", &v.cell.id]),
    },
];

/// Points to kill at: all of them, or a sample spread evenly.
fn points(calls: u32, sample: u32) -> Vec<u32> {
    match std::env::var("GPUCELL_CRASH_POINTS").ok().as_deref() {
        Some("all") => (1..=calls).collect(),
        text => {
            let n = text.map_or(sample, |t| t.parse().expect("a number or all"));
            (0..n.min(calls))
                .map(|i| 1 + i * calls / n.min(calls))
                .collect()
        }
    }
}

/// Kills one command at the points of one of its processes. Gives back how many kills left a cell's state
/// behind: those came after the first effect and before the runtime's own end of it.
fn series(victim: &Victim, command: &Attempt, child: bool, sample: u32) -> u32 {
    let prepare = || {
        if victim.cold {
            let _ = fs::remove_file(victim.cell.bundle.state().join("nvidia.cache"));
        }
        for &verb in command.before {
            let mut make = vec![verb];
            if verb == DETACH {
                make.push("--detach");
            }
            let bundle = victim.bundle();
            make.extend(["--bundle", &bundle, &victim.cell.id]);
            let done = victim.gpucell(&make);
            assert_eq!(done.code, 0, "{done:?}");
        }
    };
    let whom = || match (child, command.name) {
        (false, _) => Whom::Runtime,
        (true, "start") => Whom::Waiting(victim.cell.pid()),
        (true, _) => Whom::Child,
    };
    let argv = victim.argv(
        &(command.words)(victim)
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>(),
    );
    // Twice without: the first time mount points are made in the image, caches written.
    let whole = || {
        prepare();
        assert!(command.before.is_empty() || !device_programs().is_empty());
        let whole = run(&argv, &victim.env, whom(), None);
        assert_eq!(whole.code, Some(0), "{argv:?}: {whole:?}");
        victim.delete();
        victim.cell.nothing_left();
        whole
    };
    // What is known of the GPUs' driver is kept, and trusted, when it is no longer brand-new.
    let known = victim.cell.bundle.state().join("nvidia.cache");
    while victim.fake.is_some() && !victim.cold && !known.exists() {
        whole();
    }
    let (mut last, mut now) = (whole(), whole());
    while !victim.cold && last.calls.abs_diff(now.calls) > now.calls / 10 {
        (last, now) = (now, whole());
    }
    let whole = now;
    let gone = || device_programs().is_empty();
    cell_support::until("the kernel to free the device program", gone);
    let before = victim.traces();

    let start = Instant::now();
    let (mut killed, mut effects) = (0, 0);
    let list = points(whole.calls, sample);
    for &at in &list {
        prepare();
        let seen = run(&argv, &victim.env, whom(), Some(at));
        let state = victim.cell.bundle.state().join(&victim.cell.id);
        let what = format!(
            "{} {}, killed at call {at} of {}, {:?}",
            command.name,
            if child { "child" } else { "runtime" },
            whole.calls,
            seen.killed_in,
        );
        killed += u32::from(seen.killed_in.is_some());
        effects += u32::from(seen.killed_in.is_some() && state.exists());
        if command.name == "create" && seen.killed_in.is_some() {
            second(victim, state.exists(), &what);
        }
        victim.delete();
        victim.settled(&before, &what);
    }
    // Once a series: the kernel frees the program of a removed group only after a while.
    cell_support::until("the kernel to free the device programs", gone);
    // Another order of the calls may leave the last ones out.
    assert!(killed * 10 >= list.len() as u32 * 9, "{killed} of {list:?}");
    println!(
        "{:7} {:8} {killed:4} kills at {} calls, {effects} left to undo, {:.1} s",
        command.name,
        if child { "child" } else { "runtime" },
        whole.calls,
        start.elapsed().as_secs_f64()
    );
    effects
}

/// Another `create` of the same name, without a `delete`: refused in one line, or it does its work.
fn second(victim: &Victim, exists: bool, what: &str) {
    let bundle = victim.bundle();
    let done = victim.gpucell(&["create", "--bundle", &bundle, &victim.cell.id]);
    if exists {
        assert_eq!(done.code, 1, "{what}: {done:?}");
        assert!(
            done.err.contains("already exists") && done.err.lines().count() == 1,
            "{what}: {done:?}"
        );
    } else {
        assert_eq!(done.code, 0, "{what}: {done:?}");
    }
}

fn all(kind: &str, sample: u32) {
    if std::env::var("GPUCELL_CRASH_KINDS").is_ok_and(|k| !k.split(',').any(|k| k == kind)) {
        return;
    }
    let victim = Victim::new(kind);
    println!("{kind}, {}", victim.driver[1]);
    for command in &COMMANDS {
        if victim.cold && command.name != "create" {
            continue;
        }
        // Of a create there are more: it is the one with the most to undo.
        let create = command.name == "create";
        let n = if create && kind == "docker" {
            120
        } else {
            sample
        };
        let effects = series(&victim, command, false, n);
        if create && kind == "docker" && std::env::var_os("GPUCELL_CRASH_POINTS").is_none() {
            assert!(
                effects >= WANTED,
                "only {effects} kills after the first effect"
            );
        }
        if matches!(command.name, "create" | "start" | "run" | "exec") {
            series(&victim, command, true, sample);
        }
    }
}

// One after the other: device programs are counted for the whole machine.
#[test]
fn what_is_killed_anywhere_is_undone() {
    all("docker", 8);
    all("user", 5);
    all("gpu", 5);
    all("gpu-cold", 5);
}
