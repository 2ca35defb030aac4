//! Where it runs: namespaces and control groups.

use super::{Live, has};
use crate::support::on_v2;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

const KINDS: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

fn namespaces(c: &mut Value) -> &mut Vec<Value> {
    c["linux"]["namespaces"].as_array_mut().unwrap()
}

fn add_user_namespace(c: &mut Value) {
    namespaces(c).push(json!({"type": "user"}));
    for map in ["uidMappings", "gidMappings"] {
        c["linux"][map] = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    }
}

/// The program is in all namespaces and groups of the cell's first process.
fn beside_the_first(live: &Live) {
    let done = live.exec(&[], &["each", "ns", ";", "pid"]).ok();
    for kind in KINDS {
        let Ok(link) = fs::read_link(format!("/proc/{}/ns/{kind}", live.init)) else {
            continue;
        };
        has(&done.out, &format!("{kind} {}", link.display()));
    }
    let pid = live.sleeper(&[]);
    let groups = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(groups(pid), groups(live.init));
    let text = groups(pid);
    assert!(text.contains(&live.cell.id), "{text}");
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/root")).unwrap(),
        fs::read_link(format!("/proc/{}/root", live.init)).unwrap()
    );
}

#[test]
fn in_a_cell_with_namespaces_of_its_own() {
    let live = Live::new(|_| {});
    beside_the_first(&live);
    let done = live.exec(&[], &["each", "pid", ";", "cat", "/proc/self/cgroup"]);
    let done = done.ok();
    // Its parent is outside; it leads its session.
    has(&done.out, "parent 0");
    let pid = done.value("pid");
    assert_ne!(pid, "1");
    has(&done.out, &format!("session {pid}"));
    // Of the groups it sees its own as the root of all.
    for line in done.out.lines().filter(|l| l.contains(':')) {
        assert!(line.ends_with(":/"), "{line}");
    }
}

#[test]
fn in_a_cell_that_shares_some_with_the_host() {
    for kept in [
        &["mount"][..],
        &["mount", "pid"],
        &["mount", "network", "uts", "ipc"],
    ] {
        let live = Live::new(|c| {
            namespaces(c).retain(|n| kept.contains(&n["type"].as_str().unwrap()));
            c.as_object_mut().unwrap().remove("hostname");
        });
        beside_the_first(&live);
    }
}

#[test]
fn in_a_cell_that_joined_anothers() {
    let other = Live::new(|_| {});
    let live = Live::new(|c| {
        for n in namespaces(c) {
            let kind = match n["type"].as_str().unwrap() {
                "network" => "net",
                "mount" | "cgroup" => continue,
                kind => kind,
            };
            n["path"] = json!(format!("/proc/{}/ns/{kind}", other.init));
        }
        c.as_object_mut().unwrap().remove("hostname");
    });
    beside_the_first(&live);
}

/// runc#4635: exec into a time namespace failed, for it can't be entered with others by one call of old.
#[test]
fn in_a_cell_with_a_time_of_its_own() {
    let live = Live::new(|c| {
        namespaces(c).push(json!({"type": "time"}));
        c["linux"]["timeOffsets"] = json!({"boottime": {"secs": 86400, "nanosecs": 0}});
    });
    beside_the_first(&live);
    let up = |text: &str| -> f64 { text.split(' ').next().unwrap().parse().unwrap() };
    let inside = live.exec(&[], &["cat", "/proc/uptime"]).ok().out;
    let here = fs::read_to_string("/proc/uptime").unwrap();
    let off = up(&inside) - up(&here);
    assert!((86390.0..86410.0).contains(&off), "{off}");
}

#[test]
fn in_a_cell_with_a_user_namespace() {
    let live = Live::new(|c| {
        add_user_namespace(c);
        c["process"]["oomScoreAdj"] = json!(5);
        c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 78}]);
    });
    beside_the_first(&live);
    let done = live.exec(&[], &["id"]).ok();
    for line in [
        "uid 0 0 0 0",
        "gid 0 0 0 0",
        "oom_score_adj 5",
        "rlimit Max open files 77 78 files",
        "cap_inheritable 0000000000000000",
        "cap_bounding 0000000000000420",
    ] {
        has(&done.out, line);
    }
    let done = live.exec(&["-u", "5:6", "-t"], &["id"]).ok();
    let out = done.out.replace("\r\n", "\n");
    has(&out, "uid 5 5 5 5");
    let pid = live.sleeper(&["-u", "7"]);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    has(&status, "Uid:\t100007\t100007\t100007\t100007");
    // One that isn't mapped.
    let err = live.refused(&["-u", "70000"], &["/bin/true"]);
    assert!(err.contains("70000 is in no mapping"), "{err}");
}

/// Folders of the cell's groups, one a hierarchy.
fn groups(live: &Live) -> Vec<PathBuf> {
    let tasks = live.cell.group_file("tasks");
    let procs = live.cell.group_file("cgroup.procs");
    let mut all: Vec<PathBuf> = [tasks, procs]
        .into_iter()
        .flatten()
        .map(|f| f.parent().unwrap().to_owned())
        .collect();
    all.dedup();
    all
}

/// A hierarchy's line of /proc/PID/cgroup.
fn line(pid: i32, controller: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let found = text.lines().find_map(|l| {
        let (_, rest) = l.split_once(':')?;
        let (list, path) = rest.split_once(':')?;
        list.split(',').any(|c| c == controller).then_some(path)
    });
    found
        .unwrap_or_else(|| panic!("no {controller} in {text}"))
        .to_owned()
}

#[test]
fn in_a_group_below_the_cells() {
    let live = Live::new(|c| c["linux"]["resources"]["pids"] = json!({"limit": 100}));
    let v2 = v2_group(&live);
    fs::create_dir_all(v2.join("sub/deep")).unwrap();
    let pid = live.sleeper(&["--cgroup", "sub/deep"]);
    assert_eq!(line(pid, ""), format!("{}/sub/deep", line(live.init, "")));
    assert_eq!(line(live.sleeper(&["--cgroup=/"]), ""), line(live.init, ""));
    for (flag, why) in [
        ("../..", "`..`"),
        ("sub/../..", "`..`"),
        ("nonesuch", "no such cgroup"),
        ("nonesuch:sub", "nonesuch"),
        (":sub", "empty <controller> prefix"),
    ] {
        let err = live.refused(&[&format!("--cgroup={flag}")], &["/bin/true"]);
        assert!(err.contains(why), "{flag}: {err}");
    }
    if on_v2() {
        let err = live.refused(&["--cgroup=pids:sub"], &["/bin/true"]);
        assert!(err.contains("one hierarchy"), "{err}");
        return;
    }
    // Each of v1's controllers by its name.
    let pids = live.cell.group_file("pids.max").expect("pids on v1");
    fs::create_dir(pids.with_file_name("mine")).unwrap();
    let pid = live.sleeper(&["--cgroup", "pids:mine"]);
    assert_eq!(
        line(pid, "pids"),
        format!("{}/mine", line(live.init, "pids"))
    );
    assert_eq!(line(pid, "memory"), line(live.init, "memory"));
    let err = live.refused(&["--cgroup=memory:mine"], &["/bin/true"]);
    assert!(
        err.contains("mine") && err.contains("No such file"),
        "{err}"
    );
}

fn v2_group(live: &Live) -> PathBuf {
    let mount = match on_v2() {
        true => "/sys/fs/cgroup",
        false => "/sys/fs/cgroup/unified",
    };
    let dir = PathBuf::from(format!("{mount}{}", line(live.init, "")));
    assert!(
        dir.join("cgroup.procs").exists(),
        "{dir:?} {:?}",
        groups(live)
    );
    dir
}

/// A cell that made groups of its own and moved its first process into one: its own group hands out
/// controllers and takes no process (EBUSY).
#[test]
fn beside_the_first_when_the_cells_group_takes_none() {
    let live = Live::new(|c| {
        // A v2 controller that hybrid hosts have there too.
        c["linux"]["resources"]["hugepageLimits"] = json!([{"pageSize": "2MB", "limit": 0}]);
    });
    let v2 = v2_group(&live);
    let have = fs::read_to_string(v2.join("cgroup.controllers")).unwrap();
    let Some(controller) = have
        .split_whitespace()
        .find(|c| *c == "hugetlb" || *c == "memory")
    else {
        assert!(!on_v2(), "no controller in {v2:?}: {have:?}");
        println!("skipped: the host's v2 tree has no controller for cells");
        return;
    };
    let sub = v2.join("init");
    fs::create_dir(&sub).unwrap();
    fs::write(sub.join("cgroup.procs"), live.init.to_string()).unwrap();
    fs::write(v2.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    beside_the_first(&live);
    assert!(line(live.init, "").ends_with("/init"));
    // A group that was asked for by name is not replaced by another.
    let err = live.refused(&["--cgroup=/"], &["/bin/true"]);
    assert!(err.contains("busy"), "{err}");
}
