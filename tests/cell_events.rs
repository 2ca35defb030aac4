//! `events`: the figures of a real cell, its OOM kills, and the end of the stream.

mod cell_support;
mod support;

use cell_support::{Cell, until};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};
use support::on_v2;

const M: u64 = 1 << 20;

fn cell(words: &[&str]) -> Cell {
    let mut cell = Cell::new(|c| {
        c["linux"]["resources"]["memory"] = json!({"limit": 64 * M});
        c["linux"]["resources"]["pids"] = json!({"limit": 20});
    });
    cell.words(words);
    cell
}

fn follow(cell: &Cell, interval: &str) -> (Child, BufReader<ChildStdout>) {
    let mut child = cell
        .command(&["events", "--interval", interval, &cell.id])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

fn next(out: &mut BufReader<ChildStdout>) -> Option<Value> {
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    (!line.is_empty()).then(|| serde_json::from_str(&line).expect("a line of JSON"))
}

#[track_caller]
fn ends_well(mut child: Child) {
    let end = Instant::now() + Duration::from_secs(10);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            panic!("events goes on");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut err = String::new();
    let _ = child.stderr.take().unwrap().read_to_string(&mut err);
    assert!(status.success() && err.is_empty(), "{status}: {err}");
}

#[test]
fn figures_of_now() {
    let cell = cell(&["spin", "60"]);
    cell.detach(&[]).ok();
    let stats = || -> Value {
        let done = cell.verb("events", &["--stats"]).ok();
        assert_eq!(done.out.lines().count(), 1);
        serde_json::from_str(&done.out).unwrap()
    };
    let cpu = |v: &Value| v["data"]["cpu"]["usage"]["total"].as_u64().unwrap_or(0);
    until("CPU time", || cpu(&stats()) > 1_000_000);
    let seen = stats();
    assert_eq!(
        (&seen["type"], &seen["id"]),
        (&json!("stats"), &json!(cell.id))
    );
    let data = &seen["data"];
    assert_eq!(data["pids"]["limit"], 20);
    let now = data["pids"]["current"].to_string();
    assert_eq!(now, cell.group_value("pids.current"));
    let memory = &data["memory"];
    assert_eq!(memory["usage"]["limit"], 64 * M);
    let usage = memory["usage"]["usage"].as_u64().unwrap();
    assert!((1..64 * M).contains(&usage), "{memory}");
    assert!(memory["raw"].as_object().unwrap().len() > 10, "{memory}");
    assert_eq!(data["network_interfaces"], Value::Null);
    assert_eq!(data["intel_rdt"], json!({}));
    assert!(data["cpuset"]["sched_relax_domain_level"].is_i64());
    if !on_v2() {
        let percpu = data["cpu"]["usage"]["percpu"].as_array().unwrap();
        let sum: u64 = percpu.iter().filter_map(Value::as_u64).sum();
        assert_eq!(sum, cpu(&seen), "{percpu:?}");
        assert!(!data["cpuset"]["cpus"].as_array().unwrap().is_empty());
    }
    // Pressure is there exactly where the kernel has it.
    for what in ["cpu", "memory"] {
        let file = cell.group_file(&format!("{what}.pressure"));
        let there = file.is_some_and(|f| std::fs::read(f).is_ok());
        assert_eq!(
            data[what]["psi"]["some"].is_object() || data[what]["psi"].is_object(),
            there
        );
    }
    cell_support::until("its time to go on", || cpu(&stats()) > cpu(&seen));
    // A paused one and a created one have figures too.
    cell.verb("pause", &[]).ok();
    stats();
}

#[test]
fn the_stream_ends_with_the_cell() {
    let cell = cell(&["sleep", "100"]);
    cell.create(&[]).ok();
    let (child, mut out) = follow(&cell, "30ms");
    for _ in 0..3 {
        assert_eq!(next(&mut out).unwrap()["type"], "stats");
    }
    cell.verb("start", &[]).ok();
    assert_eq!(next(&mut out).unwrap()["data"]["pids"]["current"], 1);
    cell.bundle.gpucell(&["kill", &cell.id, "KILL"]).ok();
    while let Some(event) = next(&mut out) {
        assert_eq!(event["type"], "stats");
    }
    ends_well(child);

    let done = cell.verb("events", &[]);
    let text = format!("container with id {} is not running", cell.id);
    assert!(done.code == 1 && done.err.contains(&text), "{done:#?}");
    cell.verb("delete", &[]).ok();
    let done = cell.verb("events", &["--stats"]);
    assert!(
        done.code == 1 && done.err.contains("does not exist"),
        "{done:#?}"
    );

    // Deleted by force in the middle.
    cell.detach(&[]).ok();
    let (child, mut out) = follow(&cell, "10ms");
    next(&mut out).unwrap();
    cell.verb("delete", &["--force"]).ok();
    while next(&mut out).is_some() {}
    ends_well(child);
}

#[test]
fn out_of_memory() {
    let cell = cell(&["hog", "256m"]);
    cell.create(&[]).ok();
    let (child, mut out) = follow(&cell, "1h");
    // It watches as soon as its descriptors are open.
    let pid = child.id();
    let file = if on_v2() {
        "memory.events"
    } else {
        "memory.oom_control"
    };
    until("events watches", || {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .flatten();
        fds.filter_map(|f| std::fs::read_link(f.path()).ok())
            .any(|l| l.ends_with(file))
    });
    std::thread::sleep(Duration::from_millis(50));
    cell.verb("start", &[]).ok();
    assert_eq!(
        next(&mut out).unwrap(),
        json!({"type": "oom", "id": cell.id})
    );
    assert_eq!(next(&mut out), None);
    ends_well(child);
    cell.wait_for("stopped");
}

#[test]
fn nobody_reads_any_more() {
    let cell = cell(&["sleep", "100"]);
    cell.detach(&[]).ok();
    let (child, out) = follow(&cell, "1h");
    drop(out);
    ends_well(child);
    let (child, mut out) = follow(&cell, "10ms");
    next(&mut out).unwrap();
    drop(out);
    ends_well(child);
}

#[test]
fn bad_intervals() {
    let cell = cell(&["sleep", "100"]);
    cell.detach(&[]).ok();
    for (interval, text) in [
        ("0", "duration interval must be greater than 0"),
        ("-5s", "invalid value for interval"),
        ("5", "missing unit in duration"),
        ("soon", "invalid duration"),
    ] {
        let done = cell.verb("events", &[&format!("--interval={interval}")]);
        assert!(
            done.code == 1 && done.err.contains(text),
            "{interval}: {done:#?}"
        );
    }
}
