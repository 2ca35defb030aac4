//! The device filter (v2) and the devices controller (v1).

use crate::helper::{Nodes, TestCell, host, res};
use crate::v1_alone;
use gpucell::cgroup::{DEFAULT_RULES, DeviceRule, Kind, Mode, READ};
use std::fs;

#[test]
fn device_filter() {
    if host().mode == Mode::V1 {
        return println!("mode v1: see devices_on_v1_alone");
    }
    let nodes = Nodes::new("filter");
    let gpu = nodes.make("gpu", 195, 0);
    let null = nodes.make("null", 1, 3);
    let cell = TestCell::new("dev", r#"{"devices":[{"allow":false,"access":"rwm"}]}"#);
    cell.check_devices(&nodes, &gpu, &null);
    cell.remove();
}

/// The same on the v1 controllers alone, which a hybrid host has too.
#[test]
fn devices_on_v1_alone() {
    let Some(alone) = v1_alone(&["devices", "freezer"]) else {
        return println!("mode {}: no v1 controllers, not run", host().mode);
    };
    let nodes = Nodes::new("filter1");
    let gpu = nodes.make("gpu", 195, 0);
    let null = nodes.make("null", 1, 3);
    let deny = r#"{"devices":[{"allow":false,"access":"rwm"}]}"#;
    let cell = TestCell::on(&alone, "dev1", deny, &DEFAULT_RULES);
    cell.check_devices(&nodes, &gpu, &null);
    cell.remove();
}

#[test]
fn access_kinds_are_told_apart() {
    if host().v2.is_none() {
        return println!("mode v1: not run");
    }
    let nodes = Nodes::new("kinds");
    let null = nodes.make("null", 1, 3);
    let only_read = [DeviceRule {
        allow: true,
        kind: Kind::Char,
        major: Some(1),
        minor: Some(3),
        access: READ,
    }];
    let cell = TestCell::on(&host(), "kinds", "{}", &only_read);
    assert_eq!(cell.open(&null, "r"), 0);
    assert_eq!(cell.open(&null, "w"), libc::EPERM);
    assert_eq!(cell.open(&null, "rw"), libc::EPERM);
    assert_eq!(cell.mknod(&nodes.path("new"), 1, 3), libc::EPERM);
    // All but writing: an open for both must not slip through.
    let json = r#"{"devices":[{"allow":true,"access":"rwm"},
                  {"allow":false,"type":"c","major":1,"minor":3,"access":"w"}]}"#;
    cell.state().update(&res(json)).unwrap();
    assert_eq!(cell.open(&null, "r"), 0);
    assert_eq!(cell.open(&null, "w"), libc::EPERM);
    assert_eq!(cell.open(&null, "rw"), libc::EPERM);
    assert_eq!(cell.mknod(&nodes.path("new"), 1, 3), 0);
    fs::remove_file(nodes.path("new")).unwrap();
    cell.remove();

    let cell = TestCell::on(&host(), "kinds", json, &[]);
    assert_eq!(cell.open(&null, "r"), 0);
    assert_eq!(cell.open(&null, "w"), libc::EPERM);
    assert_eq!(cell.open(&null, "rw"), libc::EPERM);
    assert_eq!(cell.mknod(&nodes.path("new"), 1, 3), 0);
    cell.remove();
}

/// Devices are added ahead of the programs that are attached, once and again.
#[test]
fn devices_are_added_to_a_living_group() {
    if host().v2.is_none() {
        return println!("mode v1: not run");
    }
    let nodes = Nodes::new("live");
    let gpu = nodes.make("gpu", 195, 0);
    let other = nodes.make("other", 195, 1);
    let null = nodes.make("null", 1, 3);
    let cell = TestCell::new("live", r#"{"devices":[{"allow":false,"access":"rwm"}]}"#);
    let mut one = cell.spawn("sleep", "");
    let pid = one.id() as i32;
    // The shell has joined once it has become the program.
    let joined = || cell.state().procs(false).unwrap().contains(&pid);
    while !joined() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let rule = DeviceRule {
        allow: true,
        kind: Kind::Char,
        major: Some(195),
        minor: Some(0),
        access: READ,
    };
    assert_eq!(cell.open(&gpu, "r"), libc::EPERM);
    for _ in 0..2 {
        gpucell::cgroup::allow_devices(pid, &[rule]).unwrap();
        let got = cell.open(&gpu, "r");
        assert!([libc::ENXIO, 0].contains(&got), "errno {got}");
        assert_eq!(cell.open(&gpu, "rw"), libc::EPERM);
        assert_eq!(cell.open(&other, "r"), libc::EPERM);
        assert_eq!(cell.open(&null, "rw"), 0);
    }
    let filters = gpucell::cgroup::count_filters(cell.group().clone_fd().unwrap(), "test");
    assert_eq!(filters.unwrap(), 1, "replaced, not added");
    one.kill().unwrap();
    one.wait().unwrap();
    assert!(gpucell::cgroup::allow_devices(pid, &[rule]).is_err());
    cell.remove();
}
