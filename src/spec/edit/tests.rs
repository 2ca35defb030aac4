use std::path::Path;

use oci_spec::runtime::{LinuxDeviceType, LinuxThrottleDeviceBuilder, Spec};
use serde_json::{Value, json};

use super::*;

fn spec(value: Value) -> Spec {
    serde_json::from_value(value).unwrap()
}

fn base() -> Spec {
    spec(json!({
        "ociVersion": "1.3.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "cwd": "/",
            "args": ["sh"],
            "env": ["PATH=/bin", "LANG=C", "EMPTY"]
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data/deep", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
        ]
    }))
}

/// Applies one change to the base and returns what differs, as JSON.
fn after(changes: &[Change]) -> Value {
    let edits: Vec<Edit> = changes
        .iter()
        .map(|c| Edit::new("test", c.clone()))
        .collect();
    let mut spec = base();
    apply(&mut spec, &edits).unwrap();
    serde_json::to_value(spec).unwrap()
}

fn bind(source: &str, dest: &str) -> Change {
    let mut mount = Mount::default();
    mount
        .set_source(Some(source.into()))
        .set_destination(dest.into())
        .set_typ(Some("bind".into()));
    Change::Mount(mount)
}

fn node(path: &str) -> DeviceNode {
    DeviceNode {
        path: path.into(),
        ..DeviceNode::default()
    }
}

#[test]
fn nothing_changes_without_edits() {
    let mut spec = base();
    apply(&mut spec, &[]).unwrap();
    assert_eq!(spec, base());
}

#[test]
fn env_replaces_the_same_key_in_place() {
    let out = after(&[
        Change::Env("LANG=de".into()),
        Change::Env("NEW=1=2".into()),
        Change::Env("EMPTY=now".into()),
    ]);
    assert_eq!(
        out["process"]["env"],
        json!(["PATH=/bin", "LANG=de", "EMPTY=now", "NEW=1=2"])
    );
}

#[test]
fn a_longer_key_is_another_key() {
    let out = after(&[
        Change::Env("LAN=x".into()),
        Change::Env("LANGUAGE=y".into()),
    ]);
    assert_eq!(
        out["process"]["env"],
        json!(["PATH=/bin", "LANG=C", "EMPTY", "LAN=x", "LANGUAGE=y"])
    );
}

#[test]
fn a_device_brings_its_rule() {
    let mut dev = node("/dev/x");
    dev.typ = Some(LinuxDeviceType::C);
    dev.major = Some(195);
    dev.minor = Some(7);
    dev.permissions = Some("rw".into());
    let out = after(&[Change::Device(dev)]);
    assert_eq!(
        out["linux"],
        json!({
            "devices": [{"path": "/dev/x", "type": "c", "major": 195, "minor": 7}],
            "resources": {"devices": [
                {"allow": true, "type": "c", "major": 195, "minor": 7, "access": "rw"}
            ]}
        })
    );
}

#[test]
fn permissions_none_is_a_node_without_a_rule_and_empty_is_the_default() {
    let mut dev = node("/dev/x");
    (dev.typ, dev.major, dev.minor) = (Some(LinuxDeviceType::C), Some(195), Some(7));
    dev.permissions = Some("none".into());
    let out = after(&[Change::Device(dev.clone())]);
    assert_eq!(out["linux"]["devices"][0]["path"], "/dev/x");
    assert_eq!(out["linux"].get("resources"), None);
    dev.permissions = Some(String::new());
    let out = after(&[Change::Device(dev)]);
    assert_eq!(out["linux"]["resources"]["devices"][0]["access"], "rwm");
}

#[test]
fn a_device_at_the_same_path_replaces() {
    let mut one = node("/dev/x");
    (one.typ, one.major, one.minor) = (Some(LinuxDeviceType::C), Some(1), Some(3));
    let mut two = one.clone();
    two.path = "/dev//x".into();
    two.minor = Some(5);
    let out = after(&[Change::Device(one), Change::Device(two)]);
    assert_eq!(
        out["linux"]["devices"],
        json!([{"path": "/dev//x", "type": "c", "major": 1, "minor": 5}])
    );
}

#[test]
fn missing_node_data_comes_from_the_host() {
    let mut dev = node("/dev/zilch");
    dev.host_path = Some("/dev/null".into());
    let out = after(&[Change::Device(dev)]);
    assert_eq!(
        out["linux"]["devices"],
        json!([{"path": "/dev/zilch", "type": "c", "major": 1, "minor": 3}])
    );
    assert_eq!(
        out["linux"]["resources"]["devices"],
        json!([{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}])
    );
}

#[test]
fn a_node_of_another_type_is_refused() {
    let mut dev = node("/dev/null");
    dev.typ = Some(LinuxDeviceType::B);
    let err = apply(&mut base(), &[Edit::new("t", Change::Device(dev))]).unwrap_err();
    assert_eq!(
        err.to_string(),
        "device /dev/null: /dev/null is a c device, b was asked for"
    );
}

#[test]
fn a_missing_node_and_a_plain_file_are_refused() {
    for (path, want) in [
        ("/dev/gpucell-no-such-node", "No such file or directory"),
        ("/proc/version", "not a device node"),
        ("relative", "not an absolute path"),
    ] {
        let err = apply(&mut base(), &[Edit::new("t", Change::Device(node(path)))]).unwrap_err();
        assert!(err.to_string().contains(want), "{path}: {err}");
    }
}

#[test]
fn a_device_belongs_to_the_cells_user() {
    let user = Change::User {
        uid: 1000,
        gid: 100,
        additional_gids: vec![44],
    };
    let mut dev = node("/dev/null");
    dev.gid = Some(7);
    let out = after(&[user, Change::Device(dev)]);
    assert_eq!(out["linux"]["devices"][0]["uid"], 1000);
    assert_eq!(out["linux"]["devices"][0]["gid"], 7);
    assert_eq!(
        out["process"]["user"],
        json!({"uid": 1000, "gid": 100, "additionalGids": [44]})
    );
}

#[test]
fn mounts_replace_and_are_sorted_by_depth() {
    let out = after(&[bind("/a", "/data"), bind("/b", "/dev/"), bind("/c", "/")]);
    let dests: Vec<&str> = out["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["destination"].as_str().unwrap())
        .collect();
    assert_eq!(dests, ["/", "/proc", "/data", "/dev/", "/data/deep"]);
}

#[test]
fn a_relative_mount_is_refused() {
    let edit = Edit::new("t", bind("/a", "data"));
    assert!(apply(&mut base(), &[edit]).is_err());
}

#[test]
fn unmount_takes_one_away() {
    let out = after(&[Change::Unmount("/data/./deep/".into())]);
    assert_eq!(out["mounts"].as_array().unwrap().len(), 2);
}

#[test]
fn gid_zero_is_ignored_and_none_twice() {
    let out = after(&[
        Change::AdditionalGids(vec![0, 44, 107]),
        Change::AdditionalGids(vec![44, 0]),
    ]);
    assert_eq!(out["process"]["user"]["additionalGids"], json!([44, 107]));
    let none = after(&[Change::AdditionalGids(vec![0])]);
    assert_eq!(none["process"]["user"], json!({"uid": 0, "gid": 0}));
}

#[test]
fn namespaces_are_added_replaced_removed() {
    let ns = |from| Change::Namespace {
        typ: LinuxNamespaceType::Network,
        from,
    };
    let new = after(&[ns(NamespaceFrom::New)]);
    assert_eq!(new["linux"]["namespaces"], json!([{"type": "network"}]));
    let path = after(&[
        ns(NamespaceFrom::New),
        ns(NamespaceFrom::Path("/proc/9/ns/net".into())),
    ]);
    assert_eq!(
        path["linux"]["namespaces"],
        json!([{"type": "network", "path": "/proc/9/ns/net"}])
    );
    let host = after(&[ns(NamespaceFrom::New), ns(NamespaceFrom::Host)]);
    assert_eq!(host["linux"]["namespaces"], json!([]));
}

#[test]
fn limits_merge_field_by_field() {
    let mut limit = LinuxMemory::default();
    limit.set_limit(Some(64 << 20));
    let mut swap = LinuxMemory::default();
    swap.set_swap(Some(128 << 20));
    let mut cpu = LinuxCpu::default();
    cpu.set_quota(Some(50_000));
    let mut set = LinuxCpu::default();
    set.set_cpus(Some("0-1".into()));
    let out = after(&[
        Change::Memory(limit),
        Change::Memory(swap),
        Change::Cpu(cpu),
        Change::Cpu(set),
        Change::Pids(100),
    ]);
    assert_eq!(
        out["linux"]["resources"],
        json!({
            "memory": {"limit": 67_108_864, "swap": 134_217_728},
            "cpu": {"quota": 50_000, "cpus": "0-1"},
            "pids": {"limit": 100}
        })
    );
}

#[test]
fn throttles_replace_the_same_device() {
    let rate = |minor, rate| {
        let device = LinuxThrottleDeviceBuilder::default()
            .major(8)
            .minor(minor)
            .rate(rate as u64)
            .build()
            .unwrap();
        Change::Throttle {
            which: Throttle::ReadIops,
            device,
        }
    };
    let out = after(&[rate(0, 10), rate(1, 20), rate(0, 30)]);
    assert_eq!(
        out["linux"]["resources"]["blockIO"]["throttleReadIOPSDevice"],
        json!([{"major": 8, "minor": 1, "rate": 20}, {"major": 8, "minor": 0, "rate": 30}])
    );
}

#[test]
fn a_spec_without_sections_gets_only_what_is_asked() {
    let mut spec = spec(json!({"ociVersion": "1.0.0"}));
    let edits = [
        Edit::new("t", Change::Args(vec!["true".into()])),
        Edit::new("t", Change::RootReadonly(true)),
    ];
    apply(&mut spec, &edits).unwrap();
    assert_eq!(
        serde_json::to_value(&spec).unwrap(),
        json!({
            "ociVersion": "1.0.0",
            "root": {"path": "rootfs", "readonly": true},
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/"}
        })
    );
}

#[test]
fn cdi_edits_become_edits() {
    let edits: ContainerEdits = serde_json::from_value(json!({
        "env": ["A=1"],
        "deviceNodes": [{"path": "/dev/nvidia0", "type": "c", "major": 195, "fileMode": 438}],
        "mounts": [{"hostPath": "/l", "containerPath": "/m", "options": ["ro", "bind"]}],
        "hooks": [{"hookName": "createContainer", "path": "/h", "args": ["h", "x"]}],
        "intelRdt": {"closID": "c"},
        "additionalGids": [44],
        "netDevices": [{"hostInterfaceName": "eth1", "name": "eth0"}]
    }))
    .unwrap();
    let mut spec = base();
    apply(&mut spec, &edits.into_edits("nvidia.com/gpu=0").unwrap()).unwrap();
    let out = serde_json::to_value(&spec).unwrap();
    assert_eq!(
        out["linux"]["netDevices"],
        json!({"eth1": {"name": "eth0"}})
    );
    assert_eq!(out["linux"]["intelRdt"], json!({"closID": "c"}));
    assert_eq!(
        out["linux"]["devices"],
        json!([{"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0, "fileMode": 438}])
    );
    assert_eq!(
        out["hooks"],
        json!({"createContainer": [{"path": "/h", "args": ["h", "x"]}]})
    );
    assert_eq!(
        out["mounts"][2],
        json!({"destination": "/m", "source": "/l", "options": ["ro", "bind"]})
    );
}

#[test]
fn cdi_refuses_what_it_does_not_know() {
    assert!(serde_json::from_value::<ContainerEdits>(json!({"envs": []})).is_err());
    let hook: ContainerEdits =
        serde_json::from_value(json!({"hooks": [{"hookName": "later", "path": "/h"}]})).unwrap();
    assert!(hook.into_edits("x").is_err());
    let env: ContainerEdits = serde_json::from_value(json!({"env": ["NOVALUE"]})).unwrap();
    assert!(env.into_edits("x").is_err());
}

#[test]
fn depth_and_sameness_of_paths() {
    for (path, want) in [
        ("/", 0),
        ("/a", 1),
        ("//a/./b/", 2),
        ("/a/../b", 1),
        ("/..", 0),
    ] {
        assert_eq!(depth(Path::new(path)), want, "{path}");
    }
    assert!(same_path(Path::new("/a/b/.."), Path::new("/a/")));
    assert!(!same_path(Path::new("/a"), Path::new("/ab")));
}
