//! What is shown is what is done: `explain`, the saved configuration and the cell say the same, and
//! nothing but the cell's program is executed.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::cell_support::{mounted, sections};
use crate::machine::{Machine, gpu_nodes};
use crate::support::{GPUCELL, outcome};

fn list<'v>(value: &'v Value, pointer: &str) -> &'v [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

#[test]
fn explain_shows_what_the_cell_gets() {
    let m = Machine::new(2);
    let folder = format!("{}/", m.cell.bundle.path().display());
    let data = m.cell.outside("data");
    let flags = ["--gpus", "device=1", "--cap-add", "MKNOD"];
    let mut words = vec![
        "explain",
        "--format",
        "json",
        "--store",
        data.to_str().unwrap(),
    ];
    words.extend(flags);
    words.push(&folder);
    let said = outcome(&mut m.command(&words)).ok();
    let said: Value = serde_json::from_str(&said.out).unwrap();
    // Nothing is made by telling.
    assert!(!m.cell.root("/usr").exists());
    let has = m.nodes(&[1]);
    let devices = list(&said, "/config/linux/devices");
    let mut nodes: Vec<(String, u64, u64)> = devices
        .iter()
        .map(|d| {
            let path = d["path"].as_str().unwrap().trim_start_matches("/dev/");
            (
                path.to_owned(),
                d["major"].as_u64().unwrap(),
                d["minor"].as_u64().unwrap(),
            )
        })
        .collect();
    nodes.sort();
    assert_eq!(nodes, has);
    m.exec_sees(&flags, &has, &gpu_nodes(&m, &[0]));
    // Every mount and link of the edits is in the cell.
    let edits = list(&said, "/edits");
    let mounts: Vec<&str> = edits
        .iter()
        .filter(|e| e["kind"] == "mount" && e["reason"].as_str().unwrap().contains("--gpus"))
        .map(|e| e["value"]["destination"].as_str().unwrap())
        .collect();
    assert!(mounts.len() > 15, "{mounts:?}");
    let links: Vec<(&str, &str)> = edits
        .iter()
        .filter(|e| e["kind"] == "hook")
        .flat_map(|e| list(e, "/value/hook/args"))
        .filter_map(|arg| arg.as_str().unwrap().split_once("::"))
        .collect();
    assert!(links.len() > 10, "{links:?}");
    let mut words = vec!["each", "cat", "/proc/self/mountinfo"];
    for (_, at) in &links {
        words.extend([";", "stat", at]);
    }
    let seen = m.exec(&flags, &words).ok();
    let got = sections(&seen.out);
    for at in &mounts {
        assert!(mounted(&got[0].1, at).is_some(), "{at}");
    }
    for ((to, at), (_, said)) in links.iter().zip(&got[1..]) {
        assert!(
            said.trim_end().ends_with(&format!("-> {to}")),
            "{at}: {said}"
        );
    }
    // And no mount below the driver's that wasn't told.
    let real = m.fake.root();
    for line in got[0]
        .1
        .lines()
        .filter(|l| l.contains(real.to_str().unwrap()))
    {
        let at = line.split(' ').nth(4).unwrap();
        assert!(mounts.contains(&at), "{line}");
    }
}

#[test]
fn the_saved_configuration_holds_the_devices() {
    let mut m = Machine::new(2);
    m.env(&["NVIDIA_VISIBLE_DEVICES=1"]);
    m.cell.words(&["true"]);
    let mut create = m.cell.making("create", &[]);
    create.env("GPUCELL_CONFIG", m.file());
    let log = m.cell.outside("log").join("create");
    crate::cell_support::quiet(create, &log).ok();
    let saved = m.saved();
    let devices = list(&saved, "/linux/devices");
    for (name, major, minor) in m.nodes(&[1]) {
        let path = format!("/dev/{name}");
        let device = devices.iter().find(|d| d["path"] == *path).expect(&path);
        assert_eq!(
            (&device["major"], &device["minor"]),
            (&json!(major), &json!(minor))
        );
        let rule = list(&saved, "/linux/resources/devices").iter().any(|r| {
            r["allow"] == true && r["major"] == major && r["minor"] == minor && r["access"] == "rw"
        });
        assert!(rule, "{path}: {saved:#}");
    }
    for (name, major, minor) in gpu_nodes(&m, &[0]) {
        let is = |d: &Value| d["major"] == major && d["minor"] == minor;
        assert!(!devices.iter().any(is), "{name}");
    }
    // Discovery kept beside the cells is none of them.
    let all = outcome(&mut m.command(&["list", "--quiet"])).ok();
    assert_eq!(all.out.trim(), m.cell.id);
    m.cell.verb("delete", &["--force"]).ok();
}

/// The execve(2) and execveat(2) that succeeded.
fn executed(command: &Command, trace: &std::path::Path) -> Vec<String> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "trace=execve,execveat", "-o"]);
    strace
        .arg(trace)
        .arg(command.get_program())
        .args(command.get_args());
    for (key, value) in command.get_envs() {
        strace.env(key, value.unwrap());
    }
    outcome(&mut strace).ok();
    let text = fs::read_to_string(trace).unwrap();
    let fine = text.lines().filter(|l| l.trim_end().ends_with("= 0"));
    fine.map(str::to_owned).collect()
}

#[test]
fn nothing_is_executed_but_the_program() {
    let mut m = Machine::new(2);
    m.cell.words(&["true"]);
    let trace = m.cell.outside("trace").join("log");
    let mut command = m.cell.making("run", &[]);
    let without = executed(command.env("GPUCELL_CONFIG", m.file()), &trace);
    m.env(&[
        "NVIDIA_VISIBLE_DEVICES=all",
        "NVIDIA_DRIVER_CAPABILITIES=all",
    ]);
    m.edit(|c| {
        c["hooks"] = json!({"prestart": [{"path": "/nowhere/nvidia-container-runtime-hook",
            "args": ["nvidia-container-runtime-hook", "prestart"]}]});
    });
    for _ in 0..2 {
        let mut command = m.cell.making("run", &[]);
        let with = executed(command.env("GPUCELL_CONFIG", m.file()), &trace);
        assert_eq!(with.len(), without.len(), "{with:#?}");
        // The runtime, the same from a place out of the cell's reach, the program.
        assert_eq!(with.len(), 3, "{with:#?}");
        assert!(with[0].contains(GPUCELL), "{with:#?}");
        assert!(with[1].contains("execveat("), "{with:#?}");
        assert!(with[2].contains("\"/bin/hello\""), "{with:#?}");
    }
}
