//! The life of a cell as its callers see it: runc's commands with their texts and codes, the states
//! in between, and that a creation that fails anywhere leaves nothing.

mod cell_support;
mod support;

use cell_support::{Cell, quiet, until};
use serde_json::{Value, json};
use std::fs;
use std::process::Stdio;

fn sleeper() -> Cell {
    let mut cell = Cell::new(|c| c["annotations"] = json!({"org.example.who": "me"}));
    cell.words(&["sleep", "100"]);
    cell
}

#[test]
fn created_started_killed_deleted() {
    let cell = sleeper();
    let pid_file = cell.outside("x").join("pid");
    cell.create(&["--pid-file", pid_file.to_str().unwrap()])
        .ok();
    let state = cell.state();
    let pid = state["pid"].as_i64().unwrap();
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), pid.to_string());
    let keys: Vec<&str> = state
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        keys,
        [
            "ociVersion",
            "id",
            "pid",
            "status",
            "bundle",
            "rootfs",
            "created",
            "annotations",
            "owner"
        ]
    );
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], json!(cell.id));
    assert_eq!(state["bundle"], json!(cell.bundle.path()));
    assert_eq!(state["rootfs"], json!(cell.bundle.rootfs()));
    assert_eq!(state["annotations"], json!({"org.example.who": "me"}));
    assert_eq!(state["owner"], "root");
    assert!(state["created"].as_str().unwrap().ends_with('Z'), "{state}");
    // The program does not run yet: the runtime's own process waits, and not in the bundle.
    let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert!(!exe.ends_with("bin/hello"), "{exe:?}");

    cell.verb("start", &[]).ok();
    assert_eq!(cell.status(), "running");
    assert_eq!(cell.pid() as i64, pid);
    assert!(
        fs::read_link(format!("/proc/{pid}/exe"))
            .unwrap()
            .ends_with("bin/hello")
    );
    let again = cell.verb("start", &[]);
    assert!(
        again.code == 1
            && again
                .err
                .contains("cannot start an already running container"),
        "{again:#?}"
    );
    let refused = cell.verb("delete", &[]);
    assert!(
        refused.code == 1 && refused.err.contains("that is not stopped: running"),
        "{refused:#?}"
    );
    assert_eq!(cell.status(), "running");

    let kill = |signal: &str| cell.bundle.gpucell(&["kill", &cell.id, signal]);
    assert!(kill("NONESUCH").err.contains("unknown signal"));
    assert_eq!(kill("0").code, 0);
    kill("KILL").ok();
    cell.wait_for("stopped");
    assert_eq!(cell.state()["pid"], 0);
    let late = kill("KILL");
    assert!(
        late.code == 1 && late.err.contains("container not running"),
        "{late:#?}"
    );
    let late = cell.verb("start", &[]);
    assert!(late.code == 1 && late.err.contains("stopped"), "{late:#?}");
    cell.verb("delete", &[]).ok();
    cell.nothing_left();
}

#[test]
fn what_is_not_there_is_said_so() {
    let cell = Cell::new(|_| {});
    for verb in ["state", "start", "kill", "delete"] {
        let done = cell.verb(verb, &[]);
        assert!(
            done.code == 1 && done.err.contains("does not exist"),
            "{verb}: {done:#?}"
        );
    }
    cell.verb("delete", &["--force"]).ok();
    for id in ["", "..", "a/b", "a b", &"x".repeat(300)] {
        let done = cell.bundle.gpucell(&[
            "create",
            "--bundle",
            cell.bundle.path().to_str().unwrap(),
            id,
        ]);
        assert!(
            done.code == 1 && done.err.contains("invalid container ID"),
            "{id}: {done:#?}"
        );
    }
    let done = cell
        .bundle
        .gpucell(&["create", "--bundle", "/not/there", "x"]);
    assert!(
        done.code == 1 && done.err.contains("/not/there"),
        "{done:#?}"
    );
    assert_eq!(cell.bundle.gpucell(&["list", "-q"]).ok().out, "");
}

#[test]
fn deleting_what_is_not_stopped() {
    let cell = sleeper();
    // A created cell has run nothing: it goes without force, as with runc.
    for flags in [&[][..], &["--force"]] {
        cell.create(&[]).ok();
        cell.verb("delete", flags).ok();
        cell.nothing_left();
    }
    cell.detach(&[]).ok();
    cell.verb("delete", &["--force"]).ok();
    cell.nothing_left();
    // The kill of a created cell ends it as well.
    cell.create(&[]).ok();
    cell.bundle.gpucell(&["kill", &cell.id, "KILL"]).ok();
    cell.wait_for("stopped");
    cell.verb("delete", &[]).ok();
    cell.nothing_left();
}

#[test]
fn listed() {
    let (one, two) = (sleeper(), sleeper());
    let root = one.bundle.state();
    one.create(&[]).ok();
    let mut other = std::process::Command::new(support::GPUCELL);
    other
        .arg("--root")
        .arg(&root)
        .args(["run", "--detach", "--bundle"])
        .arg(two.bundle.path())
        .arg(&two.id);
    quiet(other, &one.outside("x").join("log")).ok();
    let ids = one.bundle.gpucell(&["list", "-q"]).ok().out;
    assert_eq!(ids.lines().collect::<Vec<_>>(), [&one.id, &two.id]);
    let list: Value =
        serde_json::from_str(&one.bundle.gpucell(&["list", "--format", "json"]).ok().out).unwrap();
    assert_eq!(
        (&list[0]["status"], &list[1]["status"]),
        (&json!("created"), &json!("running"))
    );
    let table = one.bundle.gpucell(&["list"]).ok().out;
    assert!(
        table.lines().count() == 3 && table.starts_with("ID"),
        "{table}"
    );
    one.bundle.gpucell(&["delete", "-f", &two.id]).ok();
}

#[test]
fn run_in_the_foreground_leaves_nothing_and_keep_leaves_the_state() {
    let mut cell = Cell::new(|_| {});
    cell.hello(&["true"]).ok();
    cell.nothing_left();
    cell.words(&["exit", "3"]);
    assert_eq!(cell.run(&["--keep"]).code, 3);
    assert_eq!(cell.status(), "stopped");
    let again = cell.run(&[]);
    assert!(
        again.code == 1 && again.err.contains("already exists"),
        "{again:#?}"
    );
    assert_eq!(
        cell.status(),
        "stopped",
        "a refused second creation is no harm to the first"
    );
    cell.verb("delete", &[]).ok();
    // A process that outlives the first one, without a pid namespace of its own, goes with the cell.
    cell.edit(|c| {
        c["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|n| n["type"] != "pid")
    });
    cell.words(&["tasks", "3"]).run(&[]).ok();
    cell.nothing_left();
}

#[test]
fn one_of_many_concurrent_creations_wins() {
    let cell = sleeper();
    let children: Vec<_> = (0..6)
        .map(|_| {
            let mut c = cell.making("create", &[]);
            c.stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped());
            c.spawn().unwrap()
        })
        .collect();
    // The winner's process keeps its streams: only the losers' end is waited for.
    let mut won = 0;
    for mut child in children {
        if child.wait().unwrap().success() {
            won += 1;
        } else {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut text).unwrap();
            assert!(text.contains("already exists"), "{text}");
        }
    }
    assert_eq!(won, 1);
    assert_eq!(cell.status(), "created");
    cell.verb("start", &[]).ok();
    cell.verb("delete", &["-f"]).ok();
}

#[test]
fn a_pid_that_passed_to_somebody_else_is_not_the_cells() {
    let cell = sleeper();
    cell.detach(&[]).ok();
    let old = cell.pid();
    // As after a reboot or a wrap-around: the number is in use, by a process that started at another time;
    // /proc/PID/stat counts it in ticks of 10 ms.
    std::thread::sleep(std::time::Duration::from_millis(30));
    let mut other = cell_support::Running(
        std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap(),
    );
    let file = cell.bundle.state().join(&cell.id).join("state.json");
    let mut saved: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let real = saved.clone();
    saved["pid"] = json!(other.0.id());
    fs::write(&file, saved.to_string()).unwrap();
    assert_eq!(cell.status(), "stopped");
    let killed = cell.bundle.gpucell(&["kill", &cell.id, "KILL"]);
    assert!(
        killed.code == 1 && killed.err.contains("container not running"),
        "{killed:#?}"
    );
    cell.verb("delete", &["-f"]).ok();
    assert!(
        other.0.try_wait().unwrap().is_none(),
        "a stranger was killed"
    );
    assert_eq!(real["pid"], json!(old));
    until("the cell's own process is gone", || {
        !std::path::Path::new(&format!("/proc/{old}/ns")).exists()
    });
}

#[test]
fn damaged_state_is_an_error_and_can_be_forced_away() {
    let cell = sleeper();
    let dir = cell.bundle.state().join(&cell.id);
    // Cut off between the making of the directory and the first state.
    fs::create_dir_all(&dir).unwrap();
    let done = cell.verb("state", &[]);
    assert!(
        done.code == 1 && done.err.contains("does not exist"),
        "{done:#?}"
    );
    cell.verb("delete", &["-f"]).ok();
    assert!(!dir.exists());
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("state.json"), "{\"pid\":").unwrap();
    let done = cell.verb("state", &[]);
    assert!(
        done.code == 1 && done.err.contains("state.json"),
        "{done:#?}"
    );
    assert_eq!(cell.bundle.gpucell(&["list", "-q"]).code, 0);
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_creation_that_fails_leaves_nothing() {
    // One row a stage: what is wrong, and the word that says so.
    type Change = fn(&mut Value);
    let rows: [(Change, &str); 17] = [
        (|c| c["root"]["path"] = json!("nowhere"), "nowhere"),
        (
            |c| c["linux"]["namespaces"][1] = json!({"type": "network", "path": "/nowhere"}),
            "/nowhere",
        ),
        (
            |c| c["linux"]["cgroupsPath"] = json!("/../x"),
            "cgroupsPath",
        ),
        (
            |c| c["linux"]["resources"]["cpu"] = json!({"cpus": "9999"}),
            "cpu",
        ),
        (
            |c| c["linux"]["resources"]["memory"] = json!({"limit": 1}),
            "memory",
        ),
        (
            |c| c["linux"]["sysctl"] = json!({"kernel.shmmax": "x"}),
            "shmmax",
        ),
        (|c| c["mounts"][0]["options"] = json!(["nonesuch"]), "/proc"),
        (
            |c| {
                c["mounts"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!({"destination": "/m", "source": "/nowhere", "options": ["bind"]}))
            },
            "/nowhere",
        ),
        (
            |c| {
                c["linux"]["devices"] =
                    json!([{"path": "/bin/hello/x", "type": "c", "major": 1, "minor": 3}])
            },
            "/bin/hello/x",
        ),
        (|c| c["process"]["cwd"] = json!("/bin/hello"), "/bin/hello"),
        (
            |c| c["linux"]["maskedPaths"] = json!(["/etc/passwd\u{0}"]),
            "maskedPaths",
        ),
        (
            |c| c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 5}]),
            "process.rlimits[0]",
        ),
        (
            |c| {
                c["process"]["rlimits"] =
                    json!([{"type": "RLIMIT_NOFILE", "soft": 1u64 << 40, "hard": 1u64 << 40}])
            },
            "resource limit",
        ),
        (|c| c["process"]["oomScoreAdj"] = json!(5000), "oomScoreAdj"),
        (
            |c| c["process"]["args"] = json!(["nonesuch"]),
            "executable file not found",
        ),
        (|c| c["process"]["terminal"] = json!(true), "console"),
        (
            |c| c["process"]["scheduler"] = json!({"policy": "SCHED_RR", "priority": 0}),
            "scheduler",
        ),
    ];
    for (change, text) in rows {
        let mut cell = sleeper();
        cell.edit(change);
        for verb in ["create", "run"] {
            if text == "console" && verb == "run" {
                continue;
            }
            let done = quiet(cell.making(verb, &[]), &cell.outside("x").join("log"));
            assert_eq!(done.code, 1, "{verb}, {text}: {done:#?}");
            assert!(done.err.contains(text), "{verb}: no '{text}' in {done:#?}");
            assert_eq!(
                done.err.trim_end().lines().count(),
                1,
                "one line says why: {done:#?}"
            );
            cell.nothing_left();
        }
    }
    // The files around it.
    let cell = sleeper();
    for flags in [
        ["--pid-file", "/nowhere/pid"],
        ["--pidfd-socket", "/nowhere/socket"],
        ["--console-socket", "/nowhere/socket"],
    ] {
        let done = cell.create(&flags);
        assert!(done.code == 1, "{flags:?}: {done:#?}");
        cell.nothing_left();
    }
}

#[test]
fn a_creation_that_is_killed_can_be_deleted() {
    let cell = sleeper();
    // At ever later moments: before the first effect, in the middle, after the end.
    for ms in (0..20).map(|n| n * 2) {
        let mut c = cell.making("create", &[]);
        c.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = c.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(ms));
        child.kill().unwrap();
        child.wait().unwrap();
        cell.verb("delete", &["--force"]).ok();
        cell.nothing_left();
    }
}
