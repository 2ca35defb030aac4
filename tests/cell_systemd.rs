//! The systemd driver: a cell is a scope, its limits are known to systemd, and nothing of it is left.
//!
//! Needs systemd and pure cgroup v2. Elsewhere it is only seen that the driver says so; the rest runs in the test
//! machine (`scripts/test vm`).

mod cell_support;
mod support;

use cell_support::{Cell, quiet, until};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;
use support::{Outcome, on_v2, outcome};

const M: u64 = 1 << 20;

fn here() -> bool {
    let here = on_v2() && Path::new("/run/systemd/private").exists();
    if !here {
        eprintln!(
            "no systemd with pure cgroup v2 here: this runs in the test machine (scripts/test vm)"
        );
    }
    here
}

fn making(cell: &Cell, verb: &str, flags: &[&str]) -> Command {
    let mut c = cell.command(&[]);
    c.args(["--systemd-cgroup", verb, "--bundle"]);
    c.arg(cell.bundle.path()).args(flags).arg(&cell.id);
    c
}

fn started(cell: &Cell) {
    let log = cell.bundle.path().with_file_name("log");
    quiet(making(cell, "run", &["--detach"]), &log).ok();
}

fn unit(cell: &Cell) -> String {
    format!("gpucell-{}.scope", cell.id)
}

fn systemctl(args: &[&str]) -> Outcome {
    outcome(Command::new("systemctl").args(args))
}

fn show(unit: &str, property: &str) -> String {
    let done = systemctl(&["show", "--value", "-p", property, unit]).ok();
    done.out.trim().to_owned()
}

/// No unit of that name is loaded any more.
fn gone(unit: &str) {
    until(unit, || show(unit, "LoadState") == "not-found");
}

/// What opening a device in the cell gives: `EPERM` when it is filtered; ENXIO when there is just no driver.
fn open(cell: &Cell, path: &str) -> String {
    let mut opened = cell.command(&["exec", &cell.id, "/bin/hello", "open", path, "rw"]);
    outcome(&mut opened).out.trim().to_owned()
}

#[test]
fn elsewhere_the_driver_is_refused_clearly() {
    if on_v2() {
        return;
    }
    let cell = Cell::new(|_| {});
    let done = outcome(&mut making(&cell, "run", &[]));
    assert_eq!(done.code, 1, "{done:#?}");
    assert!(done.err.contains("systemd cgroup driver"), "{done:#?}");
    assert!(done.err.contains("--cgroup-manager cgroupfs"), "{done:#?}");
}

#[test]
fn limits_and_devices_outlive_a_daemon_reload() {
    if !here() {
        return;
    }
    let mut cell = Cell::new(|c| {
        c["linux"]["resources"] = json!({
            "memory": {"limit": 64 * M, "swap": 96 * M, "reservation": 16 * M},
            "cpu": {"quota": 50000, "period": 100000, "shares": 512, "cpus": "0", "mems": "0"},
            "pids": {"limit": 99},
            "unified": {"memory.high": (48 * M).to_string()},
            "devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 195, "minor": 0, "access": "rw"}
            ]
        });
        let node = |path: &str, minor: i64| json!({"path": path, "type": "c", "major": 195, "minor": minor});
        c["linux"]["devices"] = json!([node("/dev/yes", 0), node("/dev/no", 1)]);
        c["annotations"] = json!({
            "org.systemd.property.TimeoutStopSec": "uint64 7",
            "org.systemd.property.Description": "'a cell of the tests'",
        });
    });
    cell.words(&["sleep", "1000"]);
    started(&cell);
    let unit = unit(&cell);
    let group = format!("/system.slice/{unit}");
    assert_eq!(show(&unit, "ControlGroup"), group);
    // The stub is gone, and the cell sees its group as the root.
    let procs = fs::read_to_string(format!("/sys/fs/cgroup{group}/cgroup.procs")).unwrap();
    assert_eq!(procs.trim(), cell.pid().to_string());

    let check = |when: &str, memory: u64, cpu: &str, quota: &str, pids: &str| {
        for (file, value) in [
            ("memory.max", memory.to_string()),
            ("memory.low", (16 * M).to_string()),
            ("memory.high", (48 * M).to_string()),
            ("cpu.max", cpu.to_owned()),
            ("cpu.weight", "59".to_owned()),
            ("cpuset.cpus", "0".to_owned()),
            ("cpuset.mems", "0".to_owned()),
            ("pids.max", pids.to_owned()),
        ] {
            assert_eq!(cell.group_value(file), value, "{file} {when}");
        }
        for (property, value) in [
            ("MemoryMax", memory.to_string()),
            ("MemoryLow", (16 * M).to_string()),
            ("MemoryHigh", (48 * M).to_string()),
            ("CPUQuotaPerSecUSec", quota.to_owned()),
            ("CPUWeight", "59".to_owned()),
            ("AllowedCPUs", "0".to_owned()),
            ("AllowedMemoryNodes", "0".to_owned()),
            ("TasksMax", pids.to_owned()),
            ("DevicePolicy", "strict".to_owned()),
            ("Delegate", "yes".to_owned()),
            ("TimeoutStopUSec", "7s".to_owned()),
            ("Description", "a cell of the tests".to_owned()),
        ] {
            assert_eq!(show(&unit, property), value, "{property} {when}");
        }
        let list = show(&unit, "DeviceAllow");
        assert!(list.contains("/dev/char/195:0 rw"), "{list} {when}");
    };
    let devices = |when: &str, yes: &str, no: &str| {
        assert!(
            open(&cell, "/dev/yes").contains(yes),
            "{when}: {}",
            open(&cell, "/dev/yes")
        );
        assert!(
            open(&cell, "/dev/no").contains(no),
            "{when}: {}",
            open(&cell, "/dev/no")
        );
        assert!(!open(&cell, "/dev/null").contains("EPERM"), "{when}");
    };
    let (absent, denied) = ("ENXIO", "EPERM");
    check("at first", 64 * M, "50000 100000", "500ms", "99");
    devices("at first", absent, denied);
    systemctl(&["daemon-reload"]).ok();
    check("after a reload", 64 * M, "50000 100000", "500ms", "99");
    devices("after a reload", absent, denied);

    cell.verb(
        "update",
        &["--memory=80m", "--cpu-quota=20000", "--pids-limit=-1"],
    )
    .ok();
    systemctl(&["daemon-reload"]).ok();
    devices("after an update and a reload", absent, denied);
    for (file, value) in [
        ("memory.max", (80 * M).to_string().as_str()),
        ("cpu.max", "20000 100000"),
        ("pids.max", "max"),
    ] {
        assert_eq!(cell.group_value(file), value, "{file}");
    }
    for (property, value) in [
        ("MemoryMax", (80 * M).to_string().as_str()),
        ("CPUQuotaPerSecUSec", "200ms"),
        ("TasksMax", "infinity"),
    ] {
        assert_eq!(show(&unit, property), value, "{property}");
    }

    // Nobody has to say the driver again.
    cell.verb("pause", &[]).ok();
    assert_eq!(cell.status(), "paused");
    cell.verb("resume", &[]).ok();
    let stats = cell.verb("events", &["--stats"]).ok().out;
    assert!(stats.contains(&format!("\"limit\":{}", 80 * M)), "{stats}");
    outcome(&mut cell.command(&["kill", &cell.id, "KILL"])).ok();
    cell.wait_for("stopped");
    cell.verb("delete", &[]).ok();
    gone(&unit);
}

#[test]
fn nothing_is_left_of_a_unit() {
    if !here() {
        return;
    }
    let mut cell = Cell::new(|c| {
        c["linux"]["resources"]["pids"] = json!({"limit": 1});
    });
    // Alone in its group: the stub has no place of its own.
    cell.words(&["cat", "/proc/self/cgroup"]);
    let done = outcome(&mut making(&cell, "run", &[])).ok();
    assert!(done.out.contains("0::/\n"), "{done:#?}");
    gone(&unit(&cell));

    cell.words(&["sleep", "1000"]);
    started(&cell);
    assert_eq!(cell.group_value("pids.max"), "1");
    assert_eq!(show(&unit(&cell), "TasksMax"), "1");
    cell.verb("delete", &["--force"]).ok();
    gone(&unit(&cell));
    assert!(cell.leftovers().is_empty(), "{:?}", cell.leftovers());

    // Creations that fail: in systemd (a property it doesn't have), at a hook, at the program.
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change); 3] = [
        ("NoSuch", |c| {
            c["annotations"] = json!({"org.systemd.property.NoSuchThing": "1"})
        }),
        ("hook", |c| {
            c["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]})
        }),
        ("nowhere", |c| c["process"]["args"] = json!(["/nowhere"])),
    ];
    for (word, change) in changes {
        let mut cell = Cell::new(|_| {});
        cell.edit(change);
        let done = outcome(&mut making(&cell, "run", &[]));
        assert_ne!(done.code, 0, "{word}: {done:#?}");
        assert!(done.err.contains(word), "{word}: {done:#?}");
        gone(&unit(&cell));
        cell.nothing_left();
    }
}

#[test]
fn a_unit_of_somebody_else_is_left_alone() {
    if !here() {
        return;
    }
    let cell = Cell::new(|c| {
        c["linux"]["cgroupsPath"] = json!("gpucell-test.slice:gpucell:other");
    });
    let unit = "gpucell-other.scope";
    let other = Command::new("systemd-run")
        .args(["--scope", "--quiet", "--unit", unit, "sleep", "1000"])
        .spawn()
        .unwrap();
    let mut other = cell_support::Running(other);
    until("the other unit", || show(unit, "ActiveState") == "active");
    let done = outcome(&mut making(&cell, "run", &[]));
    assert!(done.err.contains(unit), "{done:#?}");
    cell.verb("delete", &["--force"]).ok();
    assert_eq!(show(unit, "ActiveState"), "active");
    assert!(other.0.try_wait().unwrap().is_none());
    // In its very place too.
    let mut cell = cell;
    cell.edit(|c| c["linux"]["cgroupsPath"] = json!(":gpucell:other"));
    let done = outcome(&mut making(&cell, "run", &[]));
    assert!(done.err.contains("has processes"), "{done:#?}");
    cell.verb("delete", &["--force"]).ok();
    assert!(other.0.try_wait().unwrap().is_none());
    drop(other);
    gone(unit);
    // A name is free again once its unit is gone.
    outcome(&mut making(&cell, "run", &[])).ok();
    gone(unit);
    let _ = systemctl(&["stop", "gpucell-test.slice"]);
}
