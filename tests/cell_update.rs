//! `update`: each limit arrives in its file, the others stay, and what is saved of the cell follows.

mod cell_support;
mod support;

use cell_support::Cell;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::process::Stdio;
use support::{Outcome, on_v2};

const M: u64 = 1 << 20;

fn sleeper(resources: Value) -> Cell {
    let mut cell = Cell::new(|c| {
        for (name, value) in resources.as_object().unwrap() {
            c["linux"]["resources"][name] = value.clone();
        }
    });
    cell.words(&["sleep", "100"]);
    cell.detach(&[]).ok();
    cell
}

/// The file for this machine's version of cgroups.
fn file<'a>(v1: &'a str, v2: &'a str) -> &'a str {
    if on_v2() { v2 } else { v1 }
}

fn saved(cell: &Cell) -> Value {
    let path = cell.bundle.state().join(&cell.id).join("config.json");
    let config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    config["linux"]["resources"].clone()
}

fn from_stdin(cell: &Cell, text: &[u8]) -> Outcome {
    let mut child = cell
        .command(&["update", "--resources=-", &cell.id])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may stop reading before the end.
    let _ = child.stdin.take().unwrap().write_all(text);
    let done = child.wait_with_output().unwrap();
    Outcome {
        code: done.status.code().unwrap(),
        out: String::from_utf8_lossy(&done.stdout).into(),
        err: String::from_utf8_lossy(&done.stderr).into(),
    }
}

#[test]
fn one_after_the_other_and_none_undoes_another() {
    let cell = sleeper(json!({"pids": {"limit": 99}}));
    let memory = file("memory.limit_in_bytes", "memory.max");
    let low = file("memory.soft_limit_in_bytes", "memory.low");
    let max = || match on_v2() {
        true => cell.group_value("cpu.max"),
        false => format!(
            "{} {}",
            cell.group_value("cpu.cfs_quota_us"),
            cell.group_value("cpu.cfs_period_us")
        ),
    };
    let mut want = vec![("pids.max".to_owned(), "99".to_owned())];
    let mut step = |flags: &[&str], name: &str, value: &str| {
        cell.verb("update", flags).ok();
        want.retain(|(n, _)| n != name);
        want.push((name.to_owned(), value.to_owned()));
        for (name, value) in &want {
            let found = if name == "cpu" {
                max()
            } else {
                cell.group_value(name)
            };
            assert_eq!(found, *value, "{name} after {flags:?}");
        }
    };
    step(&[], "pids.max", "99");
    step(&["--memory", "64m"], memory, &(64 * M).to_string());
    step(&["--memory-reservation=16m"], low, &(16 * M).to_string());
    step(&["--cpu-quota", "30000"], "cpu", "30000 100000");
    step(&["--cpu-period=50000"], "cpu", "30000 50000");
    step(&["--cpu-quota", "20000"], "cpu", "20000 50000");
    step(
        &["--cpu-burst", "5000"],
        file("cpu.cfs_burst_us", "cpu.max.burst"),
        "5000",
    );
    step(
        &["--cpu-share=512"],
        file("cpu.shares", "cpu.weight"),
        file("512", "59"),
    );
    step(&["--cpuset-cpus", "0"], "cpuset.cpus", "0");
    step(&["--cpuset-mems=0"], "cpuset.mems", "0");
    step(&["--pids-limit", "-1"], "pids.max", "max");
    step(
        &["--pids-limit=7", "--kernel-memory", "1g"],
        "pids.max",
        "7",
    );
    step(&["--memory=80m"], memory, &(80 * M).to_string());
    let done = from_stdin(
        &cell,
        br#"{"memory":{"limit":67108864},"devices":null,"cpu":{"shares":0}}"#,
    );
    done.ok();
    step(&[], memory, &(64 * M).to_string());

    let now = saved(&cell);
    let all = json!({"limit": 64 * M, "reservation": 16 * M});
    assert_eq!(now["memory"], all);
    assert_eq!(
        now["cpu"],
        json!({"quota": 20000, "period": 50000, "burst": 5000, "shares": 512, "cpus": "0", "mems": "0"})
    );
    assert_eq!(now["pids"], json!({"limit": 7}));
    assert!(now["devices"].is_array(), "{now}");
}

#[test]
fn an_idle_cell_says_why_it_takes_no_weight() {
    let cell = sleeper(json!({}));
    if cell.group_file("cpu.idle").is_none() {
        let done = cell.verb("update", &["--cpu-idle", "1"]);
        assert!(done.code == 1 && done.err.contains("cpu.idle"), "{done:#?}");
        return;
    }
    cell.verb("update", &["--cpu-idle", "1"]).ok();
    assert_eq!(cell.group_value("cpu.idle"), "1");
    let done = cell.verb("update", &["--cpu-share", "100"]);
    assert!(
        done.code == 1 && done.err.contains("the cell is idle"),
        "{done:#?}"
    );
    cell.verb("update", &["--cpu-idle=0", "--cpu-share=1024"])
        .ok();
    assert_eq!(cell.group_value("cpu.idle"), "0");
    assert_eq!(saved(&cell)["cpu"], json!({"idle": 0, "shares": 1024}));
}

#[test]
fn memory_and_swap_together_stay_what_they_were() {
    let swap = file("memory.memsw.limit_in_bytes", "memory.swap.max");
    let cell = sleeper(json!({"memory": {"limit": 64 * M}}));
    if cell.group_file(swap).is_none() {
        let done = cell.verb("update", &["--memory-swap", "96m"]);
        assert!(done.code == 1 && done.err.contains(swap), "{done:#?}");
        return;
    }
    cell.verb("update", &["--memory-swap", "96m"]).ok();
    let of = |v1: u64, v2: u64| (if on_v2() { v2 } else { v1 } * M).to_string();
    assert_eq!(cell.group_value(swap), of(96, 32));
    cell.verb("update", &["--memory", "80m"]).ok();
    assert_eq!(cell.group_value(swap), of(96, 16));
    let done = cell.verb("update", &["--memory", "128m"]);
    assert!(
        done.code == 1 && done.err.contains("memory.swap"),
        "{done:#?}"
    );
    assert_eq!(cell.group_value(swap), of(96, 16));
    cell.verb("update", &["--memory=128m", "--memory-swap=128m"])
        .ok();
    assert_eq!(cell.group_value(swap), of(128, 0));
    cell.verb("update", &["--memory=-1", "--memory-swap=-1"])
        .ok();
    assert_eq!(saved(&cell)["memory"], json!({"limit": -1, "swap": -1}));
}

#[test]
fn what_fails_changes_nothing() {
    let cell = sleeper(json!({"pids": {"limit": 50}}));
    let before = saved(&cell);
    let rows: [(&[&str], &str); 8] = [
        (&["--pids-limit=60", "--cpuset-cpus=4000"], "cpuset.cpus"),
        (
            &["--pids-limit=60", "--cpu-burst=x"],
            "invalid value for cpu-burst",
        ),
        (&["--pids-limit=60", "--blkio-weight=5"], "10 to 1000"),
        (&["--memory", "64parsecs"], "invalid value for memory"),
        (
            &["--l3-cache-schema", "L3:0=f"],
            "l3 cache schema is not enabled",
        ),
        (
            &["--mem-bw-schema=MB:0=20"],
            "memory bandwidth schema is not enabled",
        ),
        (
            &["--resources", "/nonesuch"],
            "read /nonesuch: No such file",
        ),
        (&["--nonesuch"], "unexpected argument"),
    ];
    for (flags, why) in rows {
        if why.contains("schema") && std::path::Path::new("/sys/fs/resctrl/info").exists() {
            continue;
        }
        let done = cell.verb("update", flags);
        assert!(
            done.code == 1 && done.err.contains(why),
            "{flags:?}: {done:#?}"
        );
        assert_eq!(cell.group_value("pids.max"), "50", "{flags:?}");
    }
    // Before the bound it would have been a valid text.
    let mut large = br#"{"pids":{"limit":60}}"#.to_vec();
    large.resize((16 << 20) + 2, b' ');
    let done = from_stdin(&cell, &large);
    assert!(
        done.code == 1 && done.err.contains("larger than the 16 MiB"),
        "{done:#?}"
    );
    large.truncate(16 << 20);
    from_stdin(&cell, &large).ok();
    assert_eq!(cell.group_value("pids.max"), "60");
    let mut now = saved(&cell);
    now["pids"] = before["pids"].clone();
    assert_eq!(now, before);
}

#[test]
fn only_a_live_cell_is_updated() {
    let mut cell = Cell::new(|_| {});
    let done = cell.verb("update", &["--pids-limit=5"]);
    assert!(
        done.code == 1 && done.err.contains("does not exist"),
        "{done:#?}"
    );
    cell.words(&["sleep", "100"]);
    cell.create(&[]).ok();
    cell.verb("update", &["--pids-limit=5"]).ok();
    assert_eq!(cell.group_value("pids.max"), "5");
    cell.bundle.gpucell(&["kill", &cell.id, "KILL"]).ok();
    cell.wait_for("stopped");
    let done = cell.verb("update", &["--pids-limit=6"]);
    assert!(
        done.code == 1 && done.err.contains("container not running"),
        "{done:#?}"
    );
}
