//! Namespaces of a cell on a real kernel: made, joined by path, with what belongs to them (names,
//! kernel parameters, clocks, id maps).

mod cell_support;
mod support;

use cell_support::{Cell, Running, until};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const KINDS: [(&str, &str); 8] = [
    ("cgroup", "cgroup"),
    ("ipc", "ipc"),
    ("mount", "mnt"),
    ("network", "net"),
    ("pid", "pid"),
    ("time", "time"),
    ("user", "user"),
    ("uts", "uts"),
];

fn own(file: &str) -> String {
    let link = fs::read_link(format!("/proc/self/ns/{file}")).expect("a namespace");
    link.to_string_lossy().into_owned()
}

fn namespaces(config: &mut Value, list: &[&str]) {
    config["linux"]["namespaces"] = list.iter().map(|t| json!({"type": t})).collect();
}

fn join(config: &mut Value, kind: &str, path: &str) {
    let list = config["linux"]["namespaces"]
        .as_array_mut()
        .expect("a list");
    list.retain(|n| n["type"] != kind);
    list.push(json!({"type": kind, "path": path}));
}

fn identity_maps(config: &mut Value) {
    for map in ["uidMappings", "gidMappings"] {
        config["linux"][map] = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    }
}

/// A process in namespaces of its own, made by unshare(1); its pid.
fn holder(flags: &[&str]) -> (Running, u32) {
    let mut c = Command::new("unshare");
    let child = c
        .args(flags)
        .args(["sleep", "120"])
        .stdin(Stdio::null())
        .spawn();
    let child = Running(child.expect("unshare(1)"));
    let pid = child.0.id();
    let name = format!("/proc/{pid}/comm");
    until("unshare", || {
        fs::read_to_string(&name).is_ok_and(|c| c.trim() == "sleep")
    });
    (child, pid)
}

#[test]
fn every_kind_is_made_or_shared_with_the_host() {
    let mut cell = Cell::new(|c| {
        namespaces(c, &KINDS.map(|k| k.0));
        identity_maps(c);
    });
    let inside = cell.hello(&["ns"]).ok();
    for (kind, file) in KINDS {
        assert_ne!(inside.value(file), own(file), "{kind} is the host's");
    }
    // Only the mount namespace is a must.
    cell.edit(|c| {
        namespaces(c, &["mount"]);
        for key in ["uidMappings", "gidMappings"] {
            c["linux"].as_object_mut().unwrap().remove(key);
        }
        c.as_object_mut().unwrap().remove("hostname");
    });
    let inside = cell.hello(&["ns"]).ok();
    for (kind, file) in KINDS {
        assert_eq!(inside.value(file) == own(file), kind != "mount", "{kind}");
    }
}

#[test]
fn every_kind_is_joined_by_path() {
    let (_held, pid) = holder(&[
        "-m",
        "-u",
        "-i",
        "-n",
        "-C",
        "-T",
        "--propagation",
        "unchanged",
    ]);
    for (kind, file) in KINDS {
        if matches!(kind, "user" | "pid") {
            continue;
        }
        let path = format!("/proc/{pid}/ns/{file}");
        let mut cell = Cell::new(|c| {
            join(c, kind, &path);
            if kind == "uts" {
                c.as_object_mut().unwrap().remove("hostname");
            }
        });
        let want = fs::read_link(&path).unwrap().to_string_lossy().into_owned();
        let inside = cell.hello(&["ns"]).ok();
        assert_eq!(inside.value(file), want, "{kind}");
        for (other, file) in KINDS {
            // The rest is as it was.
            if other != kind && matches!(other, "ipc" | "network" | "pid") {
                assert_ne!(inside.value(file), own(file), "{other} with {kind} joined");
            }
        }
    }
}

#[test]
fn joining_another_cells_namespaces() {
    let mut first = Cell::new(|_| {});
    first.words(&["sleep", "100"]).detach(&[]).ok();
    let pid = first.pid();
    let mut second = Cell::new(|c| {
        for (kind, file) in [
            ("pid", "pid"),
            ("network", "net"),
            ("ipc", "ipc"),
            ("uts", "uts"),
        ] {
            join(c, kind, &format!("/proc/{pid}/ns/{file}"));
        }
        c.as_object_mut().unwrap().remove("hostname");
    });
    let got = second.each(&[
        &["ns"],
        &["ls", "/proc"],
        &["pid"],
        &["cat", "/proc/sys/kernel/hostname", "/proc/1/cmdline"],
    ]);
    let theirs = |file: &str| {
        fs::read_link(format!("/proc/{pid}/ns/{file}"))
            .unwrap()
            .display()
            .to_string()
    };
    for file in ["pid", "net", "ipc", "uts"] {
        assert!(
            got[0].1.contains(&format!("{file} {}", theirs(file))),
            "{file}: {got:?}"
        );
    }
    assert!(got[1].1.lines().any(|l| l == "1"), "{got:?}");
    assert!(got[2].1.lines().any(|l| l == "parent 0"), "{got:?}");
    assert!(!got[2].1.contains("pid 1\n"), "{got:?}");
    assert!(
        got[3].1.starts_with("hello\n") && got[3].1.contains("sleep\x00100"),
        "{got:?}"
    );
    // The second's end is not the first's.
    assert_eq!(first.status(), "running");
    first.verb("delete", &["-f"]).ok();
}

#[test]
fn user_namespaces_are_made_with_their_maps() {
    let mut cell = Cell::new(|c| {
        namespaces(
            c,
            &["mount", "pid", "user", "ipc", "uts", "network", "cgroup"],
        );
        c["linux"]["uidMappings"] = json!([
            {"containerID": 0, "hostID": 100000, "size": 1000},
            {"containerID": 1000, "hostID": 300000, "size": 10},
        ]);
        c["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 200000, "size": 2000}]);
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [44, 45]});
        c["process"]["oomScoreAdj"] = json!(500);
        c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]);
    });
    open_to_all(&cell);
    let got = cell.each(&[
        &["cat", "/proc/self/uid_map", "/proc/self/gid_map"],
        &["id"],
        &["stat", "/proc/self", "/dev/pts", "/tmp"],
    ]);
    let maps: Vec<Vec<&str>> = got[0]
        .1
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(
        maps,
        [
            ["0", "100000", "1000"],
            ["1000", "300000", "10"],
            ["0", "200000", "2000"]
        ]
    );
    for line in [
        "uid 1000 1000 1000 1000",
        "gid 1000 1000 1000 1000",
        "groups 44 45",
        "oom_score_adj 500",
        "rlimit Max open files 77 99 files",
    ] {
        assert!(
            got[1].1.lines().any(|l| l == line),
            "no '{line}' in {got:?}"
        );
    }
    // Bad maps are refused before anything is made.
    for (maps, text) in [
        (json!([]), "linux.uidMappings"),
        (
            json!([{"containerID": 5, "hostID": 100000, "size": 10}]),
            "process.user.uid",
        ),
        (
            json!([{"containerID": 0, "hostID": 1, "size": 4294967295u32}, {"containerID": 5, "hostID": 9, "size": 2}]),
            "linux.uidMappings",
        ),
    ] {
        cell.edit(|c| c["linux"]["uidMappings"] = maps);
        let done = cell.hello(&["true"]);
        assert!(
            done.code == 1 && done.err.contains(text),
            "{text}: {done:#?}"
        );
    }
}

/// The way to the root must be open to the mapped root.
fn open_to_all(cell: &Cell) {
    use std::os::unix::fs::PermissionsExt;
    let dir = cell.bundle.path().parent().unwrap().to_path_buf();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn existing_user_namespaces_are_joined() {
    let (_held, pid) = holder(&["-U", "-n", "-i", "-u"]);
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{file}"), "0 100000 65536\n").unwrap();
    }
    let mut cell = Cell::new(|c| {
        join(c, "user", &format!("/proc/{pid}/ns/user"));
        join(c, "network", &format!("/proc/{pid}/ns/net"));
        join(c, "ipc", &format!("/proc/{pid}/ns/ipc"));
        c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]);
    });
    open_to_all(&cell);
    for _ in 0..3 {
        let got = cell.each(&[
            &["ns"],
            &["id"],
            &["cat", "/proc/self/uid_map"],
            &["write", "/dev/null", "x"],
        ]);
        for file in ["user", "net", "ipc"] {
            let theirs = fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap();
            assert!(
                got[0].1.contains(&format!("{file} {}", theirs.display())),
                "{got:?}"
            );
        }
        assert!(
            got[1].1.contains("uid 0 0 0 0") && got[1].1.contains("files 77 99")
                || got[1].1.contains("open files 77 99"),
            "{got:?}"
        );
        let map: Vec<&str> = got[2].1.split_whitespace().collect();
        assert_eq!(map, ["0", "100000", "65536"]);
        assert_eq!(got[3].0, 0, "{got:?}");
    }
    // Life goes on as with any cell.
    cell.words(&["sleep", "100"]).create(&[]).ok();
    assert_eq!(cell.status(), "created");
    cell.verb("start", &[]).ok();
    assert_eq!(cell.status(), "running");
    cell.verb("delete", &["-f"]).ok();
}

#[test]
fn clocks_are_set_off() {
    let uptime = || -> f64 {
        let text = fs::read_to_string("/proc/uptime").unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    };
    let mut cell = Cell::new(|c| {
        c["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "time"}));
        c["linux"]["timeOffsets"] = json!({"boottime": {"secs": 86400, "nanosecs": 0}, "monotonic": {"secs": 3600, "nanosecs": 500}});
    });
    let got = cell.each(&[
        &["cat", "/proc/uptime"],
        &["cat", "/proc/self/timens_offsets"],
    ]);
    let inside: f64 = got[0].1.split(' ').next().unwrap().parse().unwrap();
    let off = inside - uptime();
    assert!((86300.0..86500.0).contains(&off), "{off}");
    let offsets: Vec<Vec<&str>> = got[1]
        .1
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(
        offsets,
        [["monotonic", "3600", "500"], ["boottime", "86400", "0"]]
    );
    // The runtime itself stays in its own: the state's start time is the host's.
    cell.words(&["sleep", "100"]).detach(&[]).ok();
    assert_eq!(cell.status(), "running");
    cell.verb("delete", &["-f"]).ok();
    cell.edit(|c| c["linux"]["timeOffsets"] = json!({"realtime": {"secs": 1}}));
    let done = cell.hello(&["true"]);
    assert!(done.code == 1 && done.err.contains("realtime"), "{done:#?}");
}

#[test]
fn names_and_kernel_parameters_are_the_cells_own() {
    let host = || {
        [
            "kernel/hostname",
            "kernel/domainname",
            "kernel/shmmax",
            "net/ipv4/ip_forward",
            "fs/mqueue/msg_max",
        ]
        .map(|f| fs::read_to_string(Path::new("/proc/sys").join(f)).unwrap_or_default())
    };
    let before = host();
    let mut cell = Cell::new(|c| {
        c["hostname"] = json!("alice");
        c["domainname"] = json!("wonder.land");
        c["linux"]["sysctl"] = json!({
            "kernel.shmmax": "123456", "net.ipv4.ip_forward": "1", "net/ipv4/conf/lo.x/x": "",
            "fs.mqueue.msg_max": "42",
        });
        c["linux"]["sysctl"]
            .as_object_mut()
            .unwrap()
            .remove("net/ipv4/conf/lo.x/x");
    });
    let got = &cell.each(&[&[
        "cat",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/domainname",
        "/proc/sys/kernel/shmmax",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/fs/mqueue/msg_max",
    ]])[0];
    assert_eq!(got.1, "alice\nwonder.land\n123456\n1\n42\n");
    assert_eq!(host(), before);
    for (change, text) in [
        (json!({"vm.swappiness": "1"}), "vm.swappiness"),
        (
            json!({"kernel.shmmax": "x"}),
            "kernel/shmmax: Invalid argument",
        ),
        (json!({"kernel.msg_nonesuch": "1"}), "kernel"),
        (json!({"net/../kernel/core_pattern": "x"}), "core_pattern"),
    ] {
        cell.edit(|c| c["linux"]["sysctl"] = change);
        let done = cell.hello(&["true"]);
        assert!(
            done.code == 1 && done.err.contains(text),
            "{text}: {done:#?}"
        );
    }
    assert_eq!(host(), before);
}

#[test]
fn loopback_is_up_and_alone() {
    let mut cell = Cell::new(|_| {});
    let got = cell.each(&[
        &["cat", "/proc/net/dev"],
        &["ls", "/sys/class/net"],
        &["cat", "/proc/net/fib_trie"],
    ]);
    assert_eq!(got[0].1.lines().count(), 3, "{got:?}");
    assert!(got[2].1.contains("127.0.0.1"), "lo is down: {got:?}");
}

#[test]
fn impossible_namespaces_are_refused_by_name() {
    let mut cell = Cell::new(|_| {});
    let file = cell.outside("x").join("file");
    fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    type Change<'a> = &'a dyn Fn(&mut Value);
    let table: &[(Change, &str)] = &[
        (
            &|c| {
                namespaces(c, &["pid", "uts"]);
                c["mounts"] = json!([]);
                c["linux"]["maskedPaths"] = json!([]);
                c["linux"]["readonlyPaths"] = json!([]);
                c["root"]["readonly"] = json!(false);
            },
            "mount namespace",
        ),
        (
            &|c| namespaces(c, &["mount", "pid", "pid"]),
            "linux.namespaces[2]",
        ),
        (
            &|c| join(c, "network", "/proc/self/ns/nonesuch"),
            "/proc/self/ns/nonesuch: No such file",
        ),
        (
            &|c| join(c, "network", "/proc/self/ns/ipc"),
            "is not a net namespace",
        ),
        (&|c| join(c, "network", file), "file"),
        (&|c| join(c, "network", "relative"), "linux.namespaces"),
        (
            &|c| {
                namespaces(c, &["mount"]);
                c["hostname"] = json!("x");
            },
            "hostname",
        ),
        (
            &|c| {
                namespaces(c, &["mount", "uts"]);
                c["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
            },
            "net.ipv4.ip_forward",
        ),
    ];
    let plain = cell.bundle.config.clone();
    for (change, text) in table {
        cell.edit(|c| {
            *c = plain.clone();
            change(c);
        });
        let done = cell.hello(&["true"]);
        assert!(
            done.code == 1 && done.err.contains(text),
            "{text}: {done:#?}"
        );
        cell.nothing_left();
    }
}
