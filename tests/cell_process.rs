//! What the program of a cell is given on a real kernel: identity, capabilities, limits, filter,
//! scheduling, environment, descriptors; and what its caller is told when it can't be run.

mod cell_support;
mod support;

use cell_support::Cell;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use support::outcome;
use support::programs::write_program;

fn has(text: &str, line: &str) {
    assert!(text.lines().any(|l| l == line), "no '{line}' in\n{text}");
}

#[test]
fn identity_limits_and_attributes() {
    let mut cell = Cell::new(|c| {
        c["process"]["user"] =
            json!({"uid": 1000, "gid": 1001, "additionalGids": [44, 5, 70000], "umask": 0o027});
        c["process"]["oomScoreAdj"] = json!(321);
        c["process"]["noNewPrivileges"] = json!(false);
        c["process"]["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_NPROC", "soft": 500, "hard": 600},
            {"type": "RLIMIT_STACK", "soft": 4194304, "hard": 8388608},
        ]);
        c["process"]["cwd"] = json!("/tmp");
        c["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|n| n["type"] != "uts");
        c.as_object_mut().unwrap().remove("hostname");
    });
    let got = cell.each(&[
        &["id"],
        &["env"],
        &["stat", "/proc/self/cwd"],
        &["pid"],
        &["write", "/tmp/x", "x"],
        &["stat", "/tmp/x"],
    ]);
    for line in [
        "uid 1000 1000 1000 1000",
        "gid 1001 1001 1001 1001",
        "groups 5 44 70000",
        "umask 0027",
        "oom_score_adj 321",
        "no_new_privs 0",
        "seccomp 0",
        "rlimit Max open files 100 200 files",
        "rlimit Max core file size 0 0 bytes",
        "rlimit Max processes 500 600 processes",
        "rlimit Max stack size 4194304 8388608 bytes",
        // Nothing is left in force for a user without ambient capabilities.
        "cap_permitted 0000000000000000",
        "cap_effective 0000000000000000",
        "cap_inheritable 0000000000000000",
        "cap_ambient 0000000000000000",
        // KILL and NET_BIND_SERVICE.
        "cap_bounding 0000000000000420",
    ] {
        has(&got[0].1, line);
    }
    // HOME from the cell's /etc/passwd; nothing of the caller's environment.
    let mut env: Vec<&str> = got[1].1.lines().collect();
    env.sort();
    assert_eq!(env, ["HOME=/", "PATH=/bin", "TERM=xterm"]);
    assert!(got[2].1.ends_with("-> /tmp\n"), "{got:?}");
    for line in ["pid 1", "parent 0", "group 1", "session 1"] {
        has(&got[3].1, line);
    }
    assert!(got[5].1.contains("file 0640 1000:1001"), "{got:?}");
}

#[test]
fn home_comes_from_the_cells_passwd() {
    let mut cell = Cell::new(|c| c["process"]["user"] = json!({"uid": 1000, "gid": 1000}));
    fs::write(
        cell.root("etc/passwd"),
        "root:x:0:0::/root:\nx:x:1000:1:::\ny:x:77:1::/srv/y:/bin/sh\n",
    )
    .unwrap();
    for (uid, want) in [(0, "/root"), (77, "/srv/y"), (1000, "/"), (12345, "/")] {
        cell.edit(|c| c["process"]["user"]["uid"] = json!(uid));
        let got = cell.hello(&["env"]).ok();
        has(&got.out, &format!("HOME={want}"));
    }
    cell.edit(|c| c["process"]["env"] = json!(["HOME=/given", "A=b=c", "E="]));
    assert_eq!(cell.hello(&["env"]).ok().out, "HOME=/given\nA=b=c\nE=\n");
}

#[test]
fn five_capability_sets() {
    let bits = |names: &[&str]| -> String {
        let number = |n: &str| match n {
            "CAP_CHOWN" => 0,
            "CAP_KILL" => 5,
            "CAP_SETUID" => 7,
            "CAP_NET_ADMIN" => 12,
            "CAP_SYS_CHROOT" => 18,
            other => panic!("{other}"),
        };
        format!(
            "{:016x}",
            names.iter().fold(0u64, |m, n| m | 1 << number(n))
        )
    };
    let sets = [
        "bounding",
        "permitted",
        "effective",
        "inheritable",
        "ambient",
    ];
    // What exec makes of the sets: capabilities(7), "Transformation of capabilities during execve".
    type Row<'a> = (u32, [&'a [&'a str]; 5], [&'a [&'a str]; 5]);
    let (chown, kill, setuid) = ("CAP_CHOWN", "CAP_KILL", "CAP_SETUID");
    let rows: [Row; 5] = [
        // root gets all of its bounding and inheritable sets.
        (
            0,
            [&[chown, kill], &[chown], &[], &[], &[]],
            [&[chown, kill], &[chown, kill], &[chown, kill], &[], &[]],
        ),
        (0, [&[], &[], &[], &[], &[]], [&[], &[], &[], &[], &[]]),
        // A user keeps the ambient set alone.
        (
            1000,
            [&[chown, kill], &[chown, kill], &[chown], &[kill], &[kill]],
            [&[chown, kill], &[kill], &[kill], &[kill], &[kill]],
        ),
        // Ambient without inheritable can't be: ignored.
        (
            1000,
            [&[chown], &[chown], &[chown], &[], &[chown]],
            [&[chown], &[], &[], &[], &[]],
        ),
        (
            1000,
            [
                &[setuid, "CAP_SYS_CHROOT", "CAP_NET_ADMIN"],
                &[setuid],
                &[setuid],
                &[setuid],
                &[],
            ],
            [
                &["CAP_NET_ADMIN", "CAP_SYS_CHROOT", setuid],
                &[],
                &[],
                &[setuid],
                &[],
            ],
        ),
    ];
    for nnp in [true, false] {
        for (uid, asked, seen) in &rows {
            let mut cell = Cell::new(|c| {
                c["process"]["user"] = json!({"uid": uid, "gid": uid});
                c["process"]["noNewPrivileges"] = json!(nnp);
                c["process"]["capabilities"] = sets
                    .iter()
                    .zip(asked)
                    .map(|(k, v)| (k.to_string(), json!(v)))
                    .collect::<serde_json::Map<_, _>>()
                    .into();
            });
            let got = cell.hello(&["id"]).ok();
            for (set, want) in sets.iter().zip(seen) {
                // Without new privileges root gets no more than it was left with.
                let kept = nnp && *uid == 0 && matches!(*set, "permitted" | "effective");
                let want = if kept { &asked[1] } else { want };
                assert_eq!(
                    got.value(&format!("cap_{set}")),
                    bits(want),
                    "{set} of uid {uid}, {asked:?}"
                );
            }
            assert_eq!(got.value("no_new_privs"), if nnp { "1" } else { "0" });
        }
    }
}

#[test]
fn scheduling_and_memory_placement() {
    let mut cell = Cell::new(|c| {
        c["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 7});
        c["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
        c["linux"]["personality"] = json!({"domain": "LINUX32"});
        c["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
    });
    let n = |n: i64| n.to_string();
    let (policy, nice, io) = (
        n(libc::SYS_sched_getscheduler),
        n(libc::SYS_getpriority),
        n(libc::SYS_ioprio_get),
    );
    let persona = n(libc::SYS_personality);
    let got = cell.each(&[
        &["syscall", &policy, "0"],
        &["syscall", &nice, "0", "0"],
        &["syscall", &io, "1", "0"],
        &["syscall", &persona, "4294967295"],
        &["cat", "/proc/self/numa_maps"],
    ]);
    assert_eq!(got[0].1, format!("result {}\n", libc::SCHED_BATCH));
    // The kernel's getpriority says 20 - nice (getpriority(2), NOTES).
    assert_eq!(got[1].1, "result 13\n");
    assert_eq!(got[2].1, format!("result {}\n", 2 << 13 | 6));
    assert_eq!(got[3].1, "result 8\n");
    if got[4].0 == 0 {
        assert!(got[4].1.contains(" bind:0"), "{got:?}");
    }
    for (key, value, text) in [
        (
            "ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 9}),
            "process.ioPriority",
        ),
        (
            "scheduler",
            json!({"policy": "SCHED_FIFO", "priority": 1000}),
            "scheduler",
        ),
    ] {
        let mut cell = Cell::new(|c| c["process"][key] = value.clone());
        let done = cell.hello(&["true"]);
        assert!(done.code == 1 && done.err.contains(text), "{done:#?}");
    }
}

#[test]
fn exit_codes_are_the_programs() {
    let mut cell = Cell::new(|_| {});
    for code in [0, 1, 7, 125, 127, 255] {
        let done = cell.hello(&["exit", &code.to_string()]);
        assert_eq!((done.code, done.err.as_str()), (code, ""), "{done:#?}");
        cell.nothing_left();
    }
    // Killed by a signal from outside its pid namespace.
    cell.words(&["sleep", "100"]);
    for (name, code) in [("KILL", 137), ("ABRT", 134)] {
        if name == "ABRT" {
            // The first process of a pid namespace is spared what it doesn't handle.
            cell.edit(|c| {
                c["linux"]["namespaces"]
                    .as_array_mut()
                    .unwrap()
                    .retain(|n| n["type"] != "pid")
            });
        }
        let mut run = cell.making("run", &[]);
        let child = run
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        cell_support::until("running", || {
            cell.verb("state", &[]).out.contains("\"running\"")
        });
        outcome(&mut cell.command(&["kill", &cell.id, name])).ok();
        let mut child = cell_support::Running(child);
        assert_eq!(child.0.wait().unwrap().code(), Some(code), "{name}");
    }
}

#[test]
fn signals_are_forwarded() {
    let mut cell = Cell::new(|_| {});
    cell.words(&["signals"]);
    let mut run = cell.making("run", &[]);
    let child = run
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = cell_support::Running(child);
    use std::io::{BufRead, BufReader};
    let mut lines = BufReader::new(child.0.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    assert_eq!(lines.next().as_deref(), Some("ready"));
    let pid = nix::unistd::Pid::from_raw(child.0.id() as i32);
    for n in [
        libc::SIGHUP,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGQUIT,
        libc::SIGWINCH,
        libc::SIGTERM,
    ] {
        if n == libc::SIGWINCH {
            // That one is about our own terminal.
            continue;
        }
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::try_from(n).unwrap()).unwrap();
        assert_eq!(lines.next(), Some(format!("signal {n}")));
    }
    assert_eq!(child.0.wait().unwrap().code(), Some(128 + libc::SIGTERM));
}

#[test]
fn what_cannot_be_executed_is_said_in_the_words_callers_know() {
    type Prepare = fn(&Cell);
    let rows: [(&str, Prepare, &str); 11] = [
        (
            "nonesuch",
            |_| {},
            "exec: \"nonesuch\": executable file not found in $PATH",
        ),
        (
            "/bin/nonesuch",
            |_| {},
            "exec: \"/bin/nonesuch\": no such file or directory",
        ),
        (
            "/etc/passwd",
            |_| {},
            "exec: \"/etc/passwd\": permission denied",
        ),
        ("passwd", |_| {}, "exec: \"passwd\": permission denied"),
        ("/etc", |_| {}, "exec: \"/etc\": is a directory"),
        (
            "/etc/passwd/x",
            |_| {},
            "exec: \"/etc/passwd/x\": not a directory",
        ),
        (
            "/bin/garbage",
            |c| script(c, "bin/garbage", "garbage\n"),
            "exec format error",
        ),
        (
            "/bin/lost",
            |c| script(c, "bin/lost", "#!/no/such/interpreter\n"),
            "no such file or directory",
        ),
        (
            "/bin/loop",
            |c| symlink("/bin/loop", c.root("bin/loop")).unwrap(),
            "symbolic link",
        ),
        ("/dev/null", |_| {}, "permission denied"),
        ("./hello", |_| {}, "no such file or directory"),
    ];
    for (program, prepare, text) in rows {
        let mut cell = Cell::new(|c| c["process"]["env"] = json!(["PATH=/bin:/nowhere:/etc"]));
        prepare(&cell);
        cell.edit(|c| c["process"]["args"] = json!([program, "true"]));
        let done = cell.run(&[]);
        assert_eq!(done.code, 1, "{program}: {done:#?}");
        assert!(
            done.err.to_lowercase().contains(&text.to_lowercase()),
            "{program}: no '{text}' in {done:#?}"
        );
        cell.nothing_left();
        // In two steps: what can be seen before is said by `create`, the rest by `start`.
        let created = cell.create(&[]);
        let done = if created.code == 0 {
            cell.verb("start", &[])
        } else {
            created
        };
        assert_eq!(done.code, 1, "{program}: {done:#?}");
        assert!(
            done.err.to_lowercase().contains(&text.to_lowercase()),
            "{program}: {done:#?}"
        );
    }
    let mut cell = Cell::new(|_| {});
    for (args, text) in [
        (json!([]), "process.args"),
        (json!([""]), "process.args[0]"),
        (Value::Null, "process.args"),
    ] {
        cell.edit(|c| c["process"]["args"] = args);
        let done = cell.run(&[]);
        assert!(done.code == 1 && done.err.contains(text), "{done:#?}");
    }
}

fn script(cell: &Cell, path: &str, text: &str) {
    write_program(cell.root(path), text);
}

#[test]
fn programs_are_looked_for_in_the_cells_path() {
    let mut cell = Cell::new(|_| {});
    fs::create_dir(cell.root("first")).unwrap();
    fs::create_dir(cell.root("first/hello")).unwrap();
    // A folder of that name is passed over; the working directory counts where PATH says so.
    for (path, cwd, fine) in [
        ("/first:/bin", "/", true),
        ("", "/bin", true),
        ("/etc:", "/bin", true),
        ("/first", "/bin", false),
    ] {
        cell.edit(|c| {
            c["process"]["env"] = json!([format!("PATH={path}")]);
            c["process"]["cwd"] = json!(cwd);
            c["process"]["args"] = json!(["hello", "print", "found"]);
        });
        let done = cell.run(&[]);
        assert_eq!(
            done.code == 0 && done.out == "found\n",
            fine,
            "{path}: {done:#?}"
        );
    }
    // No PATH at all: the usual places.
    cell.edit(|c| {
        c["process"]["env"] = json!([]);
        c["process"]["cwd"] = json!("/");
    });
    assert_eq!(cell.run(&[]).ok().out, "found\n");
    // A script is run by its interpreter, relative to the working directory.
    script(&cell, "etc/run", "#!/bin/hello args\n");
    cell.edit(|c| {
        c["process"]["args"] = json!(["./run", "x"]);
        c["process"]["cwd"] = json!("/etc");
    });
    assert_eq!(cell.run(&[]).ok().out, "./run\nx\n");
}

#[test]
fn the_program_inherits_the_streams_and_what_is_preserved_alone() {
    use std::os::fd::AsRawFd;
    let mut cell = Cell::new(|_| {});
    let words: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let mut each: Vec<&str> = vec!["each"];
    for n in &words {
        each.extend(["fd", n, ";"]);
    }
    cell.words(&each);
    let null = fs::File::open("/dev/null").unwrap();
    for keep in [0, 2] {
        let raw = null.as_raw_fd();
        let flags = [format!("--preserve-fds={keep}")];
        let mut run = cell.making("run", &[flags[0].as_str()]);
        // Descriptors 3, 4, 5 and 20 are open in the caller without close-on-exec.
        support_dup(&mut run, raw, &[3, 4, 5, 20]);
        let done = outcome(&mut run).ok();
        let got = cell_support::sections(&done.out);
        for (n, (_, text)) in got.iter().enumerate() {
            let want = if n < 3 + keep { "open\n" } else { "closed\n" };
            assert_eq!(text, want, "descriptor {n}, --preserve-fds={keep}");
        }
    }
}

/// Makes a command's child have these descriptors open.
fn support_dup(command: &mut std::process::Command, from: i32, to: &[i32]) {
    let shell = command.get_program().to_owned();
    let args: Vec<_> = command.get_args().map(|a| a.to_owned()).collect();
    let dups: String = to
        .iter()
        .map(|n| format!("{n}</proc/self/fd/{from} "))
        .collect();
    *command = std::process::Command::new("bash");
    command.arg("-c").arg(format!(
        "exec \"$0\" \"$@\" {}",
        dups.replace(&format!("/proc/self/fd/{from}"), "/dev/null")
    ));
    command.arg(shell).args(args);
}

#[test]
fn pipes_belong_to_the_user_and_the_keyring_is_new() {
    let mut cell = Cell::new(|c| {
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        c["linux"]["maskedPaths"] = json!([]);
        c["process"]["noNewPrivileges"] = json!(true);
    });
    let got = cell.each(&[
        &["open", "/dev/stdout", "w"],
        &["open", "/dev/stderr", "w"],
        &["cat", "/proc/keys"],
    ]);
    assert_eq!((got[0].0, got[1].0), (0, 0), "{got:?}");
    assert!(got[2].1.contains(&format!("_ses.{}", cell.id)), "{got:?}");
    cell.words(&["cat", "/proc/keys"]);
    let kept = cell.run(&["--no-new-keyring"]).ok();
    assert!(!kept.out.contains("_ses."), "{kept:#?}");
    // A file of the caller stays the caller's.
    let log = cell.outside("x").join("log");
    let mut run = cell.making("run", &[]);
    run.stdout(fs::File::create(&log).unwrap())
        .stderr(std::process::Stdio::null());
    assert!(run.status().unwrap().success());
    assert_eq!(fs::metadata(&log).unwrap().uid(), 0);
}
