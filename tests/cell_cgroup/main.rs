//! Groups, limits and the device filter on the real kernel, as root.
//!
//! Runs on v2, hybrid and v1 hosts: each test asks the host first and says which mode ran.
//! Processes join as a cell's child does, by writing `0`.

mod devices;
mod helper;
mod processes;
#[path = "../support/programs.rs"]
mod programs;

use gpucell::cgroup::{self, DEFAULT_RULES, Driver, Host, Mode, Request};
use helper::{Made, TestCell, assert_clean, cpu_ticks, host, res};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// Not a test: what the children of the tests run. Does nothing in a normal run.
#[test]
fn helper_entry() {
    helper::entry();
}

#[test]
fn memory_limit_kills_a_hog() {
    let limit = 64 * MIB;
    let json = format!(r#"{{"memory":{{"limit":{limit},"swap":{limit}}}}}"#);
    let cell = TestCell::new("hog", &json);
    let status = cell.spawn("hog", "256").wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{status:?}");
    let oom = cell.state().oom().expect("memory events");
    assert_eq!(oom.limit, Some(limit));
    assert!(oom.kills >= 1, "{oom:?}");
    if let Some(peak) = oom.peak {
        assert!(peak <= limit && peak > limit * 9 / 10, "{oom:?}");
    }
    // Within the limit the same program lives.
    let status = cell.spawn("hog", "16").wait().unwrap();
    assert!(status.success(), "{status:?}");
    cell.remove();
}

#[test]
fn a_limit_too_low_says_so() {
    let cell = TestCell::new("low", r#"{"memory":{"limit":131072,"swap":131072}}"#);
    let status = cell.spawn("true", "").wait().unwrap();
    assert!(!status.success(), "started within 128 KiB?");
    let text = cgroup::too_low(cell.state()).expect("an OOM kill on record");
    assert!(
        text.contains("128 KiB") && text.contains("too low"),
        "{text}"
    );
    cell.remove();

    let cell = TestCell::new("high", r#"{"memory":{"limit":268435456}}"#);
    assert!(cell.spawn("true", "").wait().unwrap().success());
    assert_eq!(cgroup::too_low(cell.state()), None);
    cell.remove();
}

#[test]
fn half_a_cpu_is_half_a_cpu() {
    let cell = TestCell::new(
        "cpu",
        // The weight keeps other work on this machine from making the share smaller.
        r#"{"cpu":{"quota":50000,"period":100000,"shares":262144}}"#,
    );
    let mut child = cell.spawn("spin", "");
    std::thread::sleep(Duration::from_millis(500));
    let (start, before) = (Instant::now(), cpu_ticks(child.id()));
    std::thread::sleep(Duration::from_secs(5));
    let (wall, used) = (start.elapsed(), cpu_ticks(child.id()) - before);
    let share = used as f64 / 100.0 / wall.as_secs_f64(); // USER_HZ is 100
    println!(
        "mode {}: share of one CPU {:.1} %",
        host().mode,
        share * 100.0
    );
    cell.state().kill_all().unwrap();
    child.wait().unwrap();
    assert!((0.45..=0.55).contains(&share), "share {share}");
    cell.remove();
}

#[test]
fn limits_read_back() {
    let cpus = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let last = cpus.trim().rsplit(['-', ',']).next().unwrap().to_owned();
    let json = format!(
        r#"{{"memory":{{"limit":134217728,"reservation":67108864,"swap":201326592}},
            "cpu":{{"shares":2048,"quota":75000,"period":50000,"burst":10000,"cpus":"{last}","mems":"0"}},
            "pids":{{"limit":77}}}}"#
    );
    let cell = TestCell::new("back", &json);
    let cell_back = |v2: &str, v1: &str| cell.read(v2).or_else(|| cell.read(v1));
    if host().mode == Mode::V2 {
        for (file, want) in [
            ("memory.max", "134217728"),
            ("memory.low", "67108864"),
            ("cpu.weight", "174"),
            ("cpu.max", "75000 50000"),
            ("cpu.max.burst", "10000"),
            ("cpuset.cpus", last.as_str()),
            ("cpuset.mems", "0"),
            ("pids.max", "77"),
        ] {
            assert_eq!(cell.read(file).as_deref(), Some(want), "{file}");
        }
        // No such file without swap in the kernel.
        if let Some(swap) = cell.read("memory.swap.max") {
            assert_eq!(swap, "67108864");
        }
    } else {
        for (file, want) in [
            ("memory.limit_in_bytes", "134217728"),
            ("memory.soft_limit_in_bytes", "67108864"),
            ("memory.memsw.limit_in_bytes", "201326592"),
            ("cpu.shares", "2048"),
            ("cpu.cfs_quota_us", "75000"),
            ("cpu.cfs_period_us", "50000"),
            ("cpu.cfs_burst_us", "10000"),
            ("cpuset.cpus", last.as_str()),
            ("cpuset.mems", "0"),
            ("pids.max", "77"),
        ] {
            assert_eq!(cell.read(file).as_deref(), Some(want), "{file}");
        }
    }

    // An update changes what it names and nothing else, in either direction.
    let state = cell.state();
    let check = |limit: &str, quota: &str| {
        let back = cell_back("memory.max", "memory.limit_in_bytes");
        assert_eq!(back.as_deref(), Some(limit));
        let back = cell_back("cpu.max", "cpu.cfs_quota_us").unwrap();
        assert_eq!(back.split(' ').next(), Some(quota));
        assert_eq!(cell.read("pids.max").as_deref(), Some("77"));
    };
    state
        .update(&res(r#"{"memory":{"limit":67108864,"swap":67108864}}"#))
        .unwrap();
    check("67108864", "75000");
    state
        .update(&res(r#"{"memory":{"limit":268435456,"swap":536870912}}"#))
        .unwrap();
    check("268435456", "75000");
    state.update(&res(r#"{"cpu":{"quota":20000}}"#)).unwrap();
    check("268435456", "20000");
    let period = cell_back("cpu.max", "cpu.cfs_period_us").unwrap();
    assert_eq!(period.rsplit(' ').next(), Some("50000"));
    state
        .update(&res(r#"{"cpu":{"quota":9000,"burst":4000}}"#))
        .unwrap();
    check("268435456", "9000");
    state
        .update(&res(r#"{"cpu":{"quota":90000,"burst":80000}}"#))
        .unwrap();
    check("268435456", "90000");
    // The kernel's EINVAL for a quota below the burst in force, told in words.
    let e = state
        .update(&res(r#"{"cpu":{"quota":30000}}"#))
        .unwrap_err();
    assert!(e.to_string().contains("burst in force (80000)"), "{e}");
    // A failing update puts back what it changed by then.
    let bad = r#"{"memory":{"limit":100000000},"cpu":{"quota":30000,"burst":0,"cpus":"4000"}}"#;
    let e = state.update(&res(bad)).unwrap_err().to_string();
    assert!(e.contains("cpuset.cpus"), "{e}");
    check("268435456", "90000");
    cell.remove();
}

#[test]
fn v2_only_files() {
    if host().mode != Mode::V2 {
        return println!("mode {}: no v2 controllers, not run", host().mode);
    }
    let json = r#"{"cpu":{"idle":1},"unified":{
        "memory.high":"100000000","memory.min":"4096","memory.oom.group":"1","pids.max":"55"}}"#;
    let cell = TestCell::new("uni", json);
    for (file, want) in [
        ("memory.high", "99999744"), // whole pages
        ("memory.min", "4096"),
        ("memory.oom.group", "1"),
        ("pids.max", "55"),
        ("cpu.idle", "1"),
    ] {
        assert_eq!(cell.read(file).as_deref(), Some(want), "{file}");
    }
    cell.remove();
    let Some((name, dev)) = helper::disk() else {
        return println!("no disk to limit");
    };
    let (major, minor) = dev.split_once(':').unwrap();
    let of = |rate: u64| format!(r#"[{{"major":{major},"minor":{minor},"rate":{rate}}}]"#);
    let json = format!(
        r#"{{"blockIO":{{"throttleReadBpsDevice":{},"throttleWriteIOPSDevice":{}}}}}"#,
        of(1 << 20),
        of(120)
    );
    let cell = TestCell::new("io", &json);
    let want = format!("{dev} rbps=1048576 wbps=max riops=max wiops=120");
    assert_eq!(
        cell.read("io.max").as_deref(),
        Some(want.as_str()),
        "{name}"
    );
    let lift = format!(r#"{{"blockIO":{{"throttleReadBpsDevice":{}}}}}"#, of(0));
    cell.state().update(&res(&lift)).unwrap();
    let want = format!("{dev} rbps=max wbps=max riops=max wiops=120");
    assert_eq!(cell.read("io.max").as_deref(), Some(want.as_str()));
    cell.remove();
}

#[test]
fn hugepages_by_whichever_version_has_them() {
    let sizes = helper::huge_page_sizes();
    let Some(size) = sizes.first() else {
        return println!("no huge pages in this kernel");
    };
    let keep = helper::KeepControllers::new();
    let json = format!(r#"{{"hugepageLimits":[{{"pageSize":"{size}","limit":4194304}}]}}"#);
    let cell = TestCell::new("huge", &json);
    let v2 = cell.read(&format!("hugetlb.{size}.max"));
    let v1 = cell.read(&format!("hugetlb.{size}.limit_in_bytes"));
    assert_eq!(v2.or(v1).as_deref(), Some("4194304"), "{size}");
    let v2 = cell.read(&format!("hugetlb.{size}.rsvd.max"));
    let v1 = cell.read(&format!("hugetlb.{size}.rsvd.limit_in_bytes"));
    assert_eq!(
        v2.or(v1).as_deref(),
        Some("4194304"),
        "reservations of {size}"
    );
    cell.remove();
    drop(keep);
}

/// A host like this one without its cgroup2 mount, if it has these v1 controllers.
fn v1_alone(needed: &[&str]) -> Option<Host> {
    let mut h = host();
    h.mode = Mode::V1;
    h.v2 = None;
    needed.iter().all(|c| h.v1_home(c).is_some()).then_some(h)
}

#[test]
fn failures_name_the_thing_and_leave_nothing() {
    for (json, words) in [
        (r#"{"cpu":{"cpus":"4000"}}"#, &["cpuset.cpus", "4000"][..]),
        (r#"{"unified":{"nosuch.max":"1"}}"#, &["nosuch"]),
        (r#"{"unified":{"pids/../x.y":"1"}}"#, &["slashes"]),
        (
            r#"{"memory":{"swap":5}}"#,
            if v2_memory() {
                &["linux.resources.memory.swap"]
            } else {
                &["memsw"]
            },
        ),
    ] {
        let e = TestCell::try_new("fail", json)
            .err()
            .expect(json)
            .to_string();
        for w in words {
            assert!(e.contains(w), "{e} lacks {w}");
        }
        assert_clean("gpucell-test-fail");
    }
}

fn v2_memory() -> bool {
    host().v1_home("memory").is_none()
}

/// On a hybrid host seen as pure v2, controllers bound to v1 are missing by name.
#[test]
fn a_missing_controller_is_named_with_its_mount() {
    let h = host();
    let (Some(mount), Some(_)) = (h.v2.clone(), h.v1_home("memory")) else {
        return println!("mode {}: not run", h.mode);
    };
    let pure = Host {
        mode: Mode::V2,
        v1: Vec::new(),
        ..h
    };
    let json = res(r#"{"memory":{"limit":1000000}}"#);
    let plan = cgroup::plan_on(&request("test-miss", &json), &pure).unwrap();
    let e = plan
        .create(&mut Default::default())
        .unwrap_err()
        .to_string();
    assert!(e.contains("controller memory") && e.contains(&mount), "{e}");
    assert_clean("gpucell-test-miss");
}

fn request<'a>(id: &'a str, res: &'a oci_spec::runtime::LinuxResources) -> Request<'a> {
    Request {
        id,
        cgroups_path: None,
        resources: Some(res),
        extra_devices: &DEFAULT_RULES,
        annotations: None,
        driver: Driver::Cgroupfs,
        rootless: false,
    }
}

const NOBODY: u32 = 65534;

/// Without a group of his own, a user's cell runs without one, unless it asks for a limit.
#[test]
fn rootless_without_delegation() {
    use std::os::unix::process::CommandExt;
    host();
    let (_dir, exe) = helper::public_copy();
    let run = |json: &str| {
        let out = Command::new(&exe)
            .args(helper::ENTRY)
            .env_clear()
            .envs([helper::task_variable(&format!("rootless {json}"))
                .split_once('=')
                .unwrap()])
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stderr).trim().to_owned()
    };
    assert_eq!(run("{}"), "no group");
    let text = run(r#"{"pids":{"limit":7}}"#);
    assert!(text.starts_with("error: "), "{text}");
    assert!(text.contains("gpucell-test-rootless"), "{text}");
    assert_clean("gpucell-test-rootless");
}

/// With one (systemd's Delegate=, and nothing in it but a group for the user's own processes),
/// limits work as for root.
#[test]
fn rootless_in_a_delegated_group() {
    if host().mode != Mode::V2 || !fs::exists("/run/systemd/system").unwrap() {
        return println!("mode {}: no systemd on v2, not run", host().mode);
    }
    let (_dir, exe) = helper::public_copy();
    let out = Command::new("systemd-run")
        .args(["--quiet", "--wait", "--pipe", "--collect"])
        .args(["-p", "Delegate=yes", "-p", "DelegateSubgroup=own"])
        .arg(format!("--uid={NOBODY}"))
        .arg(format!(
            "--setenv={}",
            helper::task_variable(r#"rootless {"pids":{"limit":7}}"#)
        ))
        .arg(&exe)
        .args(helper::ENTRY)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    if text.contains("DelegateSubgroup") {
        return println!("systemd before 254: {text}");
    }
    assert!(
        text.contains(".service/gpucell-test-rootless pids.max 7"),
        "{text}"
    );
}

/// v1 files as libcgroups writes them, for what it writes right.
#[test]
fn v1_agrees_with_libcgroups() {
    use libcgroups::common::{CgroupManager, ControllerOpt};
    let Some(alone) = v1_alone(&["memory", "cpu", "pids", "blkio", "devices"]) else {
        return println!("mode {}: not run", host().mode);
    };
    let json = r#"{"memory":{"limit":50331648,"reservation":33554432,"swap":67108864,"swappiness":10},
        "cpu":{"shares":500,"quota":30000,"period":60000,"cpus":"0","mems":"0"},"pids":{"limit":9}}"#;
    let resources = res(json);
    let ours = TestCell::on(&alone, "ours", json, &DEFAULT_RULES);
    let theirs = Made::new(&alone, "gpucell-test-theirs");
    let manager =
        libcgroups::v1::manager::Manager::new(std::path::Path::new("/gpucell-test-theirs"))
            .unwrap();
    manager
        .apply(&ControllerOpt {
            resources: &resources,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        })
        .unwrap();
    for file in [
        "memory.limit_in_bytes",
        "memory.soft_limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.swappiness",
        "memory.oom_control",
        "cpu.shares",
        "cpu.cfs_quota_us",
        "cpu.cfs_period_us",
        "cpuset.cpus",
        "cpuset.mems",
        "pids.max",
    ] {
        let (a, b) = (ours.read(file), theirs.read(file));
        assert!(a.is_some(), "{file}");
        assert_eq!(a, b, "{file}");
    }
    ours.remove();
}

#[test]
fn creation_is_quick() {
    let h = host();
    let mut view = h.clone();
    if h.mode == Mode::Hybrid {
        view.mode = Mode::V2;
        view.v1.clear();
    }
    for (name, host) in [("as it is", &h), ("v2 alone", &view)] {
        let empty = res("{}");
        let mut times: Vec<_> = (0..40)
            .map(|_| {
                let start = Instant::now();
                let plan = cgroup::plan_on(&request("test-quick", &empty), host).unwrap();
                let made = plan.create(&mut Default::default()).unwrap();
                let create = start.elapsed();
                let start = Instant::now();
                made.state().remove().unwrap();
                (create, start.elapsed())
            })
            .collect();
        times.sort();
        let (create, remove) = times[times.len() / 2];
        println!(
            "mode {}, {name}: create {create:?}, remove {remove:?}",
            h.mode
        );
        // The best of them, since an emulated machine on a busy host is slow at times.
        assert!(times[0].0 < Duration::from_millis(20), "{:?}", times[0]);
    }
}
