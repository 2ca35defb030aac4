//! Attacks on what joins a running cell: by the processes that are in it already, by the caller's leftovers,
//! by what the cell has made of its own files. Races are tried GPUCELL_ATTACK_TRIES times (1000).

mod cell_support;
mod support;

use cell_support::{Cell, quiet};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use support::{GPUCELL, Outcome, outcome};

fn tries() -> u32 {
    std::env::var("GPUCELL_ATTACK_TRIES").map_or(1000, |n| n.parse().expect("a number"))
}

/// A running cell with this program.
fn running(words: &[&str], change: impl FnOnce(&mut Value)) -> Cell {
    let mut cell = Cell::new(change);
    cell.words(words);
    cell.detach(&[]).ok();
    cell
}

fn exec(cell: &Cell, flags: &[&str], words: &[&str]) -> Outcome {
    let mut command = cell.command(&["exec"]);
    outcome(command.args(flags).arg(&cell.id).args(words))
}

fn allow_tracing(c: &mut Value) {
    c["process"]["capabilities"] = json!({});
    for set in ["bounding", "permitted", "effective"] {
        c["process"]["capabilities"][set] = json!(["CAP_KILL", "CAP_SYS_PTRACE"]);
    }
}

fn user_namespace(c: &mut Value) {
    let list = c["linux"]["namespaces"].as_array_mut().unwrap();
    list.push(json!({"type": "user"}));
    for map in ["uidMappings", "gidMappings"] {
        c["linux"][map] = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    }
}

/// A process of the cell watches for each one that joins and tries to get at its root, its descriptors, its
/// program and its memory before it has become what it was to become (CVE-2016-9962). Gives back what
/// the attacker says.
fn hunted(change: impl FnOnce(&mut Value)) -> Outcome {
    let cell = running(&["hunt", "/stop"], change);
    for _ in 0..tries() {
        exec(&cell, &[], &["/bin/true"]).ok();
    }
    fs::write(cell.root("stop"), "").unwrap();
    cell.wait_for("stopped");
    let log = cell.bundle.path().with_file_name("log");
    let said = Outcome {
        code: 0,
        out: fs::read_to_string(log).unwrap(),
        err: String::new(),
    };
    println!("{}", said.out);
    // It was a race.
    assert!(said.number("early") * 20.0 > f64::from(tries()), "{said:?}");
    said
}

fn reached<'a>(said: &'a Outcome, ways: &[&str]) -> Vec<&'a str> {
    let lines = said.out.lines();
    lines
        .filter(|l| ways.contains(&l.split(' ').next().unwrap()))
        .collect()
}

const ALL: [&str; 6] = ["root", "cwd", "exe", "file", "fd", "memory"];

#[test]
fn the_cells_root_gets_at_nothing_that_joins() {
    let said = hunted(|_| {});
    assert_eq!(reached(&said, &ALL), Vec::<&str>::new());
}

#[test]
fn root_of_a_user_namespace_gets_at_nothing_that_joins() {
    let said = hunted(|c| {
        user_namespace(c);
        allow_tracing(c);
    });
    assert_eq!(reached(&said, &ALL), Vec::<&str>::new());
}

/// Who may trace everything in the cell may trace what joins it. That is no way out: at no moment has it a
/// root, a directory or a file of the host.
#[test]
fn who_may_trace_finds_nothing_of_the_host() {
    let said = hunted(allow_tracing);
    assert_eq!(reached(&said, &["root", "cwd", "file"]), Vec::<&str>::new());
}

/// CVE-2024-21626: a working directory that leads to the host over a descriptor, whether the runtime's own
/// or one that its caller has left open.
#[test]
fn no_working_directory_leads_out() {
    let cell = running(&["sleep", "1000"], |_| {});
    let secret = cell.outside("secret");
    fs::write(secret.join("secret"), "the host's\n").unwrap();
    let mut places: Vec<String> = (3..=20).map(|n| format!("/proc/self/fd/{n}")).collect();
    for place in [
        "/proc/self/cwd",
        "/proc/self/root",
        "/proc/1/root",
        "/proc/1/cwd",
    ] {
        places.push(place.into());
    }
    let file = cell.outside("files").join("process.json");
    let process_flag = format!("--process={}", file.display());
    let mut refused = 0;
    for (i, place) in places.iter().enumerate() {
        let link = format!("/link{i}");
        symlink(place, cell.root(&link)).unwrap();
        for cwd in [place, &link] {
            let process = json!({
                "user": {"uid": 0, "gid": 0}, "cwd": cwd, "env": [],
                "args": ["/bin/hello", "ls", "."],
            });
            fs::write(&file, process.to_string()).unwrap();
            let flag = format!("--cwd={cwd}");
            let ways: [(&[&str], &[&str]); 3] = [
                (&[&flag], &["/bin/hello", "ls", "."]),
                (&["--preserve-fds=1", &flag], &["/bin/hello", "ls", "."]),
                (&[&process_flag], &[]),
            ];
            for (flags, words) in ways {
                let mut command = Command::new("sh");
                let script = "for n in 3 4 5 6 7 8 9; do eval \"exec $n<$0\"; done; exec \"$@\"";
                command
                    .args(["-c", script])
                    .arg(&secret)
                    .args([GPUCELL, "--root"]);
                command
                    .arg(cell.bundle.state())
                    .arg("exec")
                    .args(flags)
                    .arg(&cell.id);
                let done = outcome(command.args(words));
                assert!(!done.out.contains("secret"), "{cwd} {flags:?}: {done:?}");
                assert!(
                    done.code == 255 || done.out.contains("proc\n"),
                    "{cwd} {flags:?}: {done:?}"
                );
                refused += u32::from(done.code == 255);
            }
        }
    }
    assert_eq!(
        refused as usize,
        places.len() * 6,
        "a magic link was followed"
    );
}

/// CVE-2022-29162: with inheritable capabilities left to it, a program is given more by files that have some.
#[test]
fn no_capability_is_inherited() {
    for uid in ["0", "1000"] {
        for caps in [
            json!(["CAP_KILL"]),
            json!(["CAP_KILL", "CAP_NET_BIND_SERVICE"]),
        ] {
            let cell = running(&["sleep", "1000"], |c| {
                for set in ["bounding", "permitted", "effective"] {
                    c["process"]["capabilities"][set] = caps.clone();
                }
            });
            // A caller that has some of them inheritable and ambient.
            let mut command = Command::new("setpriv");
            command.args([
                "--inh-caps=+chown,+kill,+setuid",
                "--ambient-caps=+chown,+kill",
                GPUCELL,
                "--root",
            ]);
            command.arg(cell.bundle.state());
            command.args([
                "exec",
                "-u",
                uid,
                "-c",
                "CAP_CHOWN",
                &cell.id,
                "/bin/hello",
                "id",
            ]);
            let done = outcome(&mut command).ok();
            assert_eq!(done.value("cap_inheritable"), "0000000000000000");
            assert_eq!(done.value("cap_ambient"), "0000000000000000");
            let status = fs::read_to_string(format!("/proc/{}/status", cell.pid())).unwrap();
            assert!(status.contains("CapInh:\t0000000000000000"), "{status}");
        }
    }
}

/// CVE-2026-30892 (crun): `-u 1` is user 1; and no group outside the cell's is entered.
#[test]
fn users_and_groups_are_the_ones_named() {
    let cell = running(&["sleep", "1000"], |_| {});
    fs::write(cell.root("etc/passwd"), "root:x:0:0::/:\n1:x:0:0::/:\n").unwrap();
    fs::write(cell.root("etc/group"), "root:x:0:\n1:x:0:\n").unwrap();
    for user in ["1", "1:1"] {
        let done = exec(&cell, &["-u", user], &["/bin/hello", "id"]).ok();
        assert_eq!(done.value("uid"), "1 1 1 1");
        assert_eq!(done.value("cap_effective"), "0000000000000000");
    }
    for group in ["..", "../..", "/..", "a/../../..", "pids:..", "pids:../.."] {
        let done = exec(&cell, &["--cgroup", group], &["/bin/true"]);
        assert!(
            done.code == 255 && done.err.contains("`..` would leave"),
            "{group}: {done:?}"
        );
    }
}

/// CVE-2019-16884, CVE-2025-52881: what is written to procfs goes to the host's, whatever the cell has in the
/// place of its own.
#[test]
fn a_proc_of_the_cells_own_making_is_not_written_to() {
    let cell = running(&["sleep", "1000"], |c| {
        c["process"]["oomScoreAdj"] = json!(123);
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.retain(|m| m["destination"] != "/proc");
        for list in ["maskedPaths", "readonlyPaths"] {
            c["linux"][list] = json!([]);
        }
    });
    let fake = cell.root("proc/self/oom_score_adj");
    fs::create_dir_all(fake.parent().unwrap()).unwrap();
    fs::write(&fake, "untouched").unwrap();
    let file = cell.outside("files").join("pid");
    let mut command = cell.command(&["exec", "-d", "--pid-file"]);
    command
        .arg(&file)
        .args([&cell.id, "/bin/hello", "sleep", "100"]);
    quiet(command, &cell.outside("files").join("log")).ok();
    let pid = fs::read_to_string(&file).unwrap();
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score, "123\n");
    assert_eq!(fs::read_to_string(&fake).unwrap(), "untouched");
}
