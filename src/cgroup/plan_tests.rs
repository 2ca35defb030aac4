//! Plans for hosts made up here, compared as data. Nothing is made.

use super::*;
use crate::cgroup::DEFAULT_RULES;
use crate::cgroup::host::V1Mount;

fn res(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

fn host(mode: Mode) -> Host {
    let v1 = |c: &[&str], at: &str| V1Mount {
        controllers: c.iter().map(|c| (*c).to_owned()).collect(),
        mount: format!("/nowhere/{at}"),
    };
    Host {
        mode,
        v2: (mode != Mode::V1).then(|| "/nowhere/unified".to_owned()),
        v1: if mode == Mode::V2 {
            Vec::new()
        } else {
            vec![
                v1(&["cpu", "cpuacct"], "cpu,cpuacct"),
                v1(&["memory"], "memory"),
                v1(&["pids"], "pids"),
                v1(&["blkio"], "blkio"),
                v1(&["devices"], "devices"),
                v1(&["freezer"], "freezer"),
                v1(&["net_cls", "net_prio"], "net"),
                v1(&["name=systemd"], "systemd"),
            ]
        },
    }
}

fn request<'a>(res: Option<&'a LinuxResources>, path: Option<&'a str>) -> Request<'a> {
    Request {
        id: "a1",
        cgroups_path: path.map(Path::new),
        resources: res,
        extra_devices: &DEFAULT_RULES,
        annotations: None,
        driver: Driver::Cgroupfs,
        rootless: false,
    }
}

fn writes(p: &CgroupPlan) -> Vec<String> {
    let list = p.writes();
    list.iter().map(|(f, v)| format!("{f}={v}")).collect()
}

const LIMITS: &str = r#"{"memory":{"limit":4096},"cpu":{"quota":5000},"pids":{"limit":3}}"#;

#[test]
fn v2_has_one_group() {
    let r = res(LIMITS);
    let p = plan_on(&request(Some(&r), None), &host(Mode::V2)).unwrap();
    assert_eq!(p.saved().paths(), ["/nowhere/unified/gpucell-a1"]);
    assert_eq!(
        writes(&p),
        [
            "/nowhere/unified/gpucell-a1/memory.max=4096",
            "/nowhere/unified/gpucell-a1/cpu.max=5000 100000",
            "/nowhere/unified/gpucell-a1/pids.max=3"
        ]
    );
    assert!(p.filter().is_some() && p.saved().filter);
}

#[test]
fn hybrid_joins_what_limits_and_counts() {
    let r = res(LIMITS);
    let p = plan_on(&request(Some(&r), Some("/x/y")), &host(Mode::Hybrid)).unwrap();
    let dirs = ["unified", "cpu,cpuacct", "memory", "pids", "blkio"];
    assert_eq!(p.saved().paths(), dirs.map(|d| format!("/nowhere/{d}/x/y")));
    assert_eq!(
        writes(&p),
        [
            "/nowhere/cpu,cpuacct/x/y/cpu.cfs_quota_us=5000",
            "/nowhere/memory/x/y/memory.limit_in_bytes=4096",
            "/nowhere/pids/x/y/pids.max=3"
        ]
    );
    assert!(p.filter().is_some());
    assert_eq!(p.saved().v1[0].parents, ["x"]);
    // One asked for by name is joined too.
    let r = res(r#"{"network":{"classID":7}}"#);
    let p = plan_on(&request(Some(&r), None), &host(Mode::Hybrid)).unwrap();
    assert!(
        p.saved()
            .paths()
            .contains(&"/nowhere/net/gpucell-a1".to_owned())
    );
}

#[test]
fn v1_alone_needs_freezer_and_devices() {
    let p = plan_on(&request(None, None), &host(Mode::V1)).unwrap();
    let dirs = [
        "cpu,cpuacct",
        "memory",
        "pids",
        "blkio",
        "devices",
        "freezer",
        "systemd",
    ];
    assert_eq!(
        p.saved().paths(),
        dirs.map(|d| format!("/nowhere/{d}/gpucell-a1"))
    );
    assert!(p.filter().is_none() && p.saved().filter);
    assert_eq!(writes(&p)[0], "/nowhere/devices/gpucell-a1/devices.deny=a");

    let mut h = host(Mode::V1);
    h.v1.retain(|m| m.controllers != ["devices"] && m.controllers != ["memory"]);
    let e = plan_on(&request(None, None), &h).unwrap_err().to_string();
    assert!(e.contains("devices"), "{e}");
    let r = res(LIMITS);
    let e = plan_on(&request(Some(&r), None), &h)
        .unwrap_err()
        .to_string();
    assert!(e.contains("controller memory is not mounted"), "{e}");
    let r = res(r#"{"unified":{"memory.high":"1"}}"#);
    let e = plan_on(&request(Some(&r), None), &host(Mode::V1))
        .unwrap_err()
        .to_string();
    assert!(e.contains("memory.high"), "{e}");
}

#[test]
fn privileged_and_rootless_have_no_filter() {
    let r = res(r#"{"devices":[{"allow":true,"access":"rwm"}]}"#);
    let p = plan_on(&request(Some(&r), None), &host(Mode::V2)).unwrap();
    assert!(p.filter().is_none() && !p.saved().filter);
    assert!(p.warnings().is_empty());

    let r = res(r#"{"devices":[{"allow":false,"access":"rwm"}]}"#);
    let req = Request {
        rootless: true,
        ..request(Some(&r), Some("/given"))
    };
    let p = plan_on(&req, &host(Mode::V2)).unwrap();
    assert!(p.filter().is_none());
    assert!(p.warnings()[0].contains("devices"), "{:?}", p.warnings());
}

#[test]
fn bad_device_entries_are_named() {
    for (entry, words) in [
        (r#"{"allow":true}"#, "devices[0].access"),
        (r#"{"allow":true,"access":"rx"}"#, "devices[0].access"),
        (
            r#"{"allow":true,"access":"r","type":"p"}"#,
            "devices[0].type",
        ),
        (
            r#"{"allow":true,"access":"r","major":-2}"#,
            "devices[0].major",
        ),
        (
            r#"{"allow":true,"access":"r","minor":4294967296}"#,
            "devices[0].minor",
        ),
    ] {
        let r = res(&format!(r#"{{"devices":[{entry}]}}"#));
        let e = plan_on(&request(Some(&r), None), &host(Mode::V2)).unwrap_err();
        assert!(e.to_string().contains(words), "{e}");
    }
}

#[test]
fn other_drivers() {
    let r = res(LIMITS);
    let with = |driver, res| Request {
        driver,
        ..request(res, Some("system.slice:docker:0"))
    };
    let e = plan(&with(Driver::Disabled, Some(&r)))
        .unwrap_err()
        .to_string();
    assert!(e.contains("memory.max"), "{e}");
    let p = plan(&with(Driver::Disabled, None)).unwrap();
    assert!(p.saved().paths().is_empty());
    // Nothing to make, and all later commands have nothing to do.
    let made = p.create(&mut Default::default()).unwrap();
    let state = made.state();
    assert!(made.clone_fd().is_none() && made.join_files().is_empty());
    state.kill_all().unwrap();
    state.thaw().unwrap();
    assert!(state.is_empty().unwrap() && !state.is_frozen().unwrap());
    assert!(state.freeze().is_err());
    assert_eq!(state.oom(), None);
    state.remove().unwrap();
    state.update(&LinuxResources::default()).unwrap();
    assert!(
        state
            .update(&r)
            .unwrap_err()
            .to_string()
            .contains("without cgroups")
    );
}

#[test]
fn a_scope_is_planned_without_asking_systemd() {
    let r = res(LIMITS);
    let set = HashMap::from([(
        "org.systemd.property.TimeoutStopSec".to_owned(),
        "7".to_owned(),
    )]);
    let with = |path| Request {
        driver: Driver::Systemd,
        annotations: Some(&set),
        ..request(Some(&r), path)
    };
    let p = plan_on(&with(Some("a-b.slice:docker:0")), &host(Mode::V2)).unwrap();
    let saved = p.saved();
    let group = saved.v2.as_ref().unwrap();
    assert_eq!(group.path, "a.slice/a-b.slice/docker-0.scope");
    assert_eq!(group.parents, [""; 0]);
    assert_eq!(saved.scope.as_ref().unwrap().unit, "docker-0.scope");
    let text = serde_json::to_string(&saved).unwrap();
    assert_eq!(serde_json::from_str::<CgroupState>(&text).unwrap(), saved);
    // The files are written as without systemd, and the unit is told of them.
    let plain = plan_on(&request(Some(&r), None), &host(Mode::V2)).unwrap();
    assert_eq!(p.v2_writes, plain.v2_writes);
    assert_eq!(p.filter(), plain.filter());
    let names: Vec<&str> = p
        .scope
        .iter()
        .flat_map(|s| &s.properties)
        .map(|p| p.name.as_str())
        .collect();
    for name in ["Slice", "MemoryMax", "DevicePolicy", "TimeoutStopUSec"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert!(plain.saved().scope.is_none() && plain.scope.is_none());
    for mode in [Mode::Hybrid, Mode::V1] {
        let e = plan_on(&with(None), &host(mode)).unwrap_err().to_string();
        assert!(e.contains("cgroup v2") && e.contains("cgroupfs"), "{e}");
    }
    assert!(plan_on(&with(Some("/a/b")), &host(Mode::V2)).is_err());
}

#[test]
fn saved_state_survives_the_disk() {
    let r = res(LIMITS);
    for mode in [Mode::V2, Mode::Hybrid, Mode::V1] {
        let saved = plan_on(&request(Some(&r), Some("a/b")), &host(mode))
            .unwrap()
            .saved();
        let text = serde_json::to_string(&saved).unwrap();
        assert_eq!(serde_json::from_str::<CgroupState>(&text).unwrap(), saved);
    }
    // Fields may be missing: an older version's file, a cell without groups.
    let empty: CgroupState = serde_json::from_str("{}").unwrap();
    assert_eq!(empty, CgroupState::default());
}
