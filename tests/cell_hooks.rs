//! The six hooks on a real kernel: when and where they run, what they are given, and what their
//! failure does.

mod cell_support;
mod support;

use cell_support::Cell;
use serde_json::{Value, json};
use std::fs;
use std::time::Instant;

/// In the order of the life cycle, with the status that the state on stdin must have.
const HOST: [(&str, &str); 5] = [
    ("prestart", "creating"),
    ("createRuntime", "creating"),
    ("createContainer", "creating"),
    ("poststart", "running"),
    ("poststop", "stopped"),
];

/// A hook of the host that writes what it sees into files.
fn note(dir: &std::path::Path, name: &str, more: &str) -> Value {
    let d = dir.display();
    let script = format!(
        "echo {name} >>{d}/order; cat >{d}/{name}.state; /usr/bin/env >{d}/{name}.env; \
         /usr/bin/readlink /proc/self/ns/mnt /proc/self/ns/net >{d}/{name}.ns; \
         /usr/bin/test -e {d}/bundle/rootfs/proc/self && echo mounted >{d}/{name}.proc; \
         /bin/ls /proc/self/fd >{d}/{name}.fds; {more}"
    );
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["GIVEN=yes"]})
}

fn with_hooks() -> Cell {
    let mut cell = Cell::new(|c| {
        c["annotations"] = json!({"a": "b"});
        // Runs in the cell: its program must be there.
        c["hooks"]["startContainer"] =
            json!([{"path": "/bin/hello", "args": ["hello", "write", "/started", "x"], "env": []}]);
    });
    let dir = cell.bundle.path().parent().unwrap().to_path_buf();
    cell.edit(|c| {
        for (name, _) in HOST {
            c["hooks"][name] = json!([note(&dir, name, ""), note(&dir, &format!("{name}-2"), "")]);
        }
    });
    cell.words(&["sleep", "100"]);
    cell
}

fn read(cell: &Cell, file: &str) -> String {
    fs::read_to_string(cell.bundle.path().with_file_name(file)).unwrap_or_default()
}

fn order(cell: &Cell) -> Vec<String> {
    let text = read(cell, "order");
    text.lines()
        .map(str::to_owned)
        .filter(|l| !l.ends_with("-2"))
        .collect()
}

#[test]
fn each_at_its_time_with_the_state_and_nothing_else() {
    let cell = with_hooks();
    cell.create(&[]).ok();
    assert_eq!(
        order(&cell),
        ["prestart", "createRuntime", "createContainer"]
    );
    assert!(!cell.root("started").exists());
    let pid = cell.pid();
    cell.verb("start", &[]).ok();
    assert_eq!(order(&cell)[3..], ["poststart"]);
    assert!(cell.root("started").exists(), "startContainer did not run");
    cell.verb("delete", &["-f"]).ok();
    assert_eq!(order(&cell)[4..], ["poststop"]);
    // Both of each kind, in the order of the list.
    let all = read(&cell, "order");
    let all: Vec<&str> = all.lines().collect();
    assert_eq!(all.len(), 10, "{all:?}");
    assert!(
        all.chunks(2).all(|c| c[1] == format!("{}-2", c[0])),
        "{all:?}"
    );

    let own = |ns: &str| {
        fs::read_link(format!("/proc/self/ns/{ns}"))
            .unwrap()
            .display()
            .to_string()
    };
    for (name, status) in HOST {
        let state: Value =
            serde_json::from_str(&read(&cell, &format!("{name}.state"))).expect(name);
        assert_eq!(state["status"], status, "{name}");
        assert_eq!(state["id"], json!(cell.id), "{name}");
        assert_eq!(
            state["pid"],
            if name == "poststop" {
                json!(0)
            } else {
                json!(pid)
            },
            "{name}"
        );
        assert_eq!(state["bundle"], json!(cell.bundle.path()), "{name}");
        assert_eq!(state["annotations"], json!({"a": "b"}), "{name}");
        let env = read(&cell, &format!("{name}.env"));
        let foreign = |l: &&str| {
            !["GIVEN=", "PWD=", "SHLVL=", "_="]
                .iter()
                .any(|p| l.starts_with(p))
        };
        assert_eq!(
            env.lines().filter(foreign).collect::<Vec<_>>(),
            Vec::<&str>::new(),
            "{name}"
        );
        assert!(env.contains("GIVEN=yes"), "{name}");
        let ns = read(&cell, &format!("{name}.ns"));
        let seen: Vec<&str> = ns.lines().collect();
        let inside = name == "createContainer";
        assert_eq!(seen[0] == own("mnt"), !inside, "{name}: mount namespace");
        assert_eq!(seen[1] == own("net"), !inside, "{name}: network namespace");
        // createContainer runs with the mounts made, before pivot_root.
        assert_eq!(
            read(&cell, &format!("{name}.proc")).trim() == "mounted",
            inside,
            "{name}"
        );
        // Streams, and what ls itself opened.
        let fds = read(&cell, &format!("{name}.fds"));
        assert!(
            fds.lines().all(|n| n.parse::<u32>().unwrap() <= 3),
            "{name}: {fds:?}"
        );
    }
}

#[test]
fn run_calls_them_all() {
    let mut cell = with_hooks();
    cell.hello(&["stat", "/started"]).ok();
    let want: Vec<&str> = HOST.iter().map(|h| h.0).collect();
    assert_eq!(order(&cell), want);
}

#[test]
fn a_failing_hook_undoes_the_cell() {
    let kinds = [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
    ];
    let ways: [(Value, &str); 4] = [
        (json!({"path": "/bin/false"}), "exit status 1"),
        (
            json!({"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $$"]}),
            "signal 9",
        ),
        (json!({"path": "/not/there"}), "No such file or directory"),
        (
            json!({"path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1}),
            "timeout",
        ),
    ];
    for kind in kinds {
        for (hook, text) in &ways {
            if *text == "timeout" && !matches!(kind, "createRuntime" | "createContainer") {
                continue; // a second each
            }
            let mut cell = Cell::new(|_| {});
            let dir = cell.bundle.path().parent().unwrap().to_path_buf();
            let mut hook = hook.clone();
            if kind == "startContainer" {
                // What the cell has.
                match *text {
                    "exit status 1" => {
                        hook = json!({"path": "/bin/hello", "args": ["hello", "false"]})
                    }
                    "No such file or directory" => {}
                    _ => continue,
                }
            }
            cell.words(&["sleep", "100"]).edit(|c| {
                c["hooks"][kind] = json!([hook]);
                c["hooks"]["poststop"] = json!([note(&dir, "poststop", "")]);
            });
            let begin = Instant::now();
            let created = cell.create(&[]);
            let late = matches!(kind, "startContainer" | "poststart");
            assert_eq!(
                created.code,
                i32::from(!late),
                "{kind}, {text}: {created:#?}"
            );
            let said = if late {
                cell.verb("start", &[])
            } else {
                created
            };
            assert_eq!(said.code, 1, "{kind}, {text}: {said:#?}");
            assert!(said.err.contains(text), "{kind}: no '{text}' in {said:#?}");
            assert!(said.err.contains(kind), "{kind}: {said:#?}");
            assert!(begin.elapsed().as_secs() < 20, "the timeout did not hold");
            if late {
                cell.wait_for("stopped");
                cell.verb("delete", &[]).ok();
            }
            cell.nothing_left();
            assert_eq!(order(&cell), ["poststop"], "{kind}, {text}");
            // The same in one go.
            let run = cell.run(&[]);
            assert!(
                run.code == 1 && run.err.contains(text),
                "{kind}, {text}: {run:#?}"
            );
            cell.nothing_left();
        }
    }
}

#[test]
fn a_failing_poststop_hook_is_a_warning_and_the_rest_run() {
    let mut cell = Cell::new(|_| {});
    let dir = cell.bundle.path().parent().unwrap().to_path_buf();
    cell.edit(|c| {
        c["hooks"]["poststop"] = json!([{"path": "/bin/false"}, note(&dir, "poststop", "")]);
    });
    let done = cell.hello(&["exit", "5"]);
    assert_eq!(done.code, 5, "{done:#?}");
    assert!(
        done.err.contains("warning") && done.err.contains("poststop"),
        "{done:#?}"
    );
    assert_eq!(order(&cell), ["poststop"]);
    cell.nothing_left();
    for (hook, text) in [
        (json!({"path": "relative"}), "hooks.prestart[0].path"),
        (
            json!({"path": "/bin/true", "timeout": 0}),
            "hooks.prestart[0].timeout",
        ),
        (
            json!({"path": "/bin/true", "timeout": -1}),
            "hooks.prestart[0].timeout",
        ),
    ] {
        let mut cell = Cell::new(|c| c["hooks"]["prestart"] = json!([hook]));
        let done = cell.hello(&["true"]);
        assert!(done.code == 1 && done.err.contains(text), "{done:#?}");
    }
}

#[test]
fn a_hook_need_not_read_its_state() {
    let mut cell = Cell::new(|c| {
        // More than a pipe holds.
        c["annotations"] = json!({"long": "x".repeat(200_000)});
        c["hooks"]["createRuntime"] =
            json!([{"path": "/bin/sh", "args": ["sh", "-c", "exec <&-; sleep 0.1"]}]);
        c["hooks"]["createContainer"] = json!([{"path": "/bin/true"}]);
        c["hooks"]["startContainer"] = json!([{"path": "/bin/true"}]);
        // The first process of a pid namespace would be spared the SIGPIPE.
        c["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|n| n["type"] != "pid");
    });
    cell.hello(&["true"]).ok();
    cell.edit(|c| c["hooks"] = json!({"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "30"], "timeout": 1}]}));
    let begin = Instant::now();
    let done = cell.hello(&["true"]);
    assert!(done.code == 1 && done.err.contains("timeout"), "{done:#?}");
    assert!(
        begin.elapsed().as_secs() < 10,
        "writing the state waited for the hook"
    );
}
