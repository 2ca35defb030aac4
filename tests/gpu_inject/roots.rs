//! Roots and namespaces of every kind: read-only, in a user namespace, below a writable layer.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use serde_json::json;

use crate::cell_support::{mounted, sections};
use crate::fakes::{Fake, VERSION};
use crate::gpu_support::snapshot;
use crate::machine::{Machine, gpu_nodes};
use crate::support::programs::install;
use crate::support::{GPUCELL, outcome};

#[test]
fn a_read_only_root() {
    let mut m = Machine::new(2);
    m.env(&["NVIDIA_VISIBLE_DEVICES=1"]);
    m.edit(|c| c["root"]["readonly"] = json!(true));
    let (has, lacks) = (m.nodes(&[1]), gpu_nodes(&m, &[0]));
    m.run_sees(&has, &lacks);
    let before = snapshot(&m.cell.bundle.rootfs());
    m.run_sees(&has, &lacks);
    assert_eq!(snapshot(&m.cell.bundle.rootfs()), before);
    let seen = m
        .run(&[
            "each",
            "write",
            "/usr/lib64/x",
            "x",
            ";",
            "stat",
            "/etc/ld.so.cache",
        ])
        .ok();
    let got = sections(&seen.out);
    assert_eq!(got[0].1.trim(), "EROFS 30", "{seen:#?}");
    assert!(got[1].1.contains(" file 0644 "), "{seen:#?}");
}

#[test]
fn a_user_namespace_gets_the_hosts_nodes() {
    const BASE: u32 = 100_000;
    let mut m = Machine::new(2);
    m.env(&["NVIDIA_VISIBLE_DEVICES=1"]);
    m.edit(|c| {
        let list = c["linux"]["namespaces"].as_array_mut().unwrap();
        list.push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": BASE, "size": 65536}]);
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map;
    });
    for entry in snapshot(&m.cell.bundle.rootfs()) {
        let path = entry.split(' ').next().unwrap();
        std::os::unix::fs::lchown(path, Some(BASE), Some(BASE)).unwrap();
    }
    let parent = m.cell.bundle.path();
    for dir in [parent.parent().unwrap(), &parent, m.fake.path()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    chown(m.cell.bundle.path(), Some(BASE), Some(BASE)).unwrap();
    // Nodes that aren't there are made on the host, to be bound.
    fs::remove_file(m.fake.path().join("dev/nvidia-uvm-tools")).unwrap();
    // Old numbers under the right name must not be bound.
    assert!(m.fake.node("nvidia-uvm", 195, 9, 0o666));
    let has = m.nodes(&[1]);
    m.run_sees(&has, &[]);
    let lib = format!("/usr/lib64/libcuda.so.{VERSION}");
    let seen = m
        .run(&[
            "each",
            "cat",
            "/proc/self/mountinfo",
            ";",
            "stat",
            &lib,
            ";",
            "mknod",
            "/dev/own",
            "195",
            "1",
        ])
        .ok();
    let got = sections(&seen.out);
    for (name, ..) in &has {
        let over = mounted(&got[0].1, &format!("/dev/{name}"));
        assert!(over.is_some_and(|o| !o.has("nodev")), "{name}: {seen:#?}");
    }
    // Ids are mapped: root's files are root's, as far as the file system can.
    assert!(got[1].1.contains(" 0:0 "), "{seen:#?}");
    assert_eq!(got[2].1.trim(), "EPERM 1", "{seen:#?}");
}

/// Somebody without any privilege: nodes are bound, and those that are missing can't be made.
#[test]
fn an_unprivileged_runtime_binds_the_nodes() {
    const USER: u32 = 65534;
    let mut m = Machine::new(2);
    m.env(&["NVIDIA_VISIBLE_DEVICES=1"]);
    m.edit(|c| {
        let list = c["linux"]["namespaces"].as_array_mut().unwrap();
        list.push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map;
        // There is only one group.
        for mount in c["mounts"].as_array_mut().unwrap() {
            if let Some(options) = mount["options"].as_array_mut() {
                options.retain(|o| o != "gid=5");
            }
        }
    });
    let has = m.nodes(&[1]);
    let words = m.questions(&has, &[]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    m.cell.words(&words);
    let folder = m.cell.outside("programs");
    let program = folder.join("gpucell");
    install(GPUCELL, &program);
    let config = m.file();
    let top = folder.parent().unwrap().to_owned();
    for entry in snapshot(&top) {
        let path = entry.split(' ').next().unwrap();
        std::os::unix::fs::lchown(path, Some(USER), Some(USER)).unwrap();
    }
    fs::set_permissions(m.fake.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let run = |id: &str| {
        let mut command = Command::new("setpriv");
        let user = USER.to_string();
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
        command.arg(&program).arg("--root").arg(top.join("state"));
        command.args(["run", "--bundle"]).arg(m.cell.bundle.path());
        outcome(command.arg(id).env("GPUCELL_CONFIG", &config))
    };
    let seen = run(&m.cell.id);
    m.check(&seen, &has, &[]);
    fs::remove_file(m.fake.path().join("dev/nvidia-uvm")).unwrap();
    let done = run(&m.cell.id);
    assert_ne!(done.code, 0, "{done:#?}");
    assert!(
        done.err.contains("nvidia-uvm") && done.err.contains("nvidia-modprobe"),
        "{done:#?}"
    );
}

#[test]
fn a_layer_of_its_own_keeps_the_image_as_it_is() {
    let m = Machine::new(2);
    let folder = format!("{}/", m.cell.bundle.path().display());
    let data = m.cell.outside("data");
    let before = snapshot(&m.cell.bundle.rootfs());
    let (has, lacks) = (m.nodes(&[0]), gpu_nodes(&m, &[1]));
    let words = m.questions(&has, &lacks);
    for readonly in [false, true] {
        let mut all = vec!["run", "--rm", "--store", data.to_str().unwrap()];
        all.extend(["--gpus", "device=0", "--cap-add", "MKNOD"]);
        if readonly {
            all.push("--read-only");
        }
        all.extend([folder.as_str(), "/bin/hello"]);
        all.extend(words.iter().map(String::as_str));
        let seen = outcome(&mut m.command(&all));
        m.check(&seen, &has, &lacks);
        assert_eq!(snapshot(&m.cell.bundle.rootfs()), before);
    }
}

#[test]
fn folders_of_other_gpus_are_hidden() {
    let mut m = Machine::new(3);
    m.edit(|c| {
        // A root without procfs, so that the driver's folder can be made by hand.
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.retain(|m| m["destination"] != "/proc");
        c["linux"]["maskedPaths"] = json!([]);
        c["linux"]["readonlyPaths"] = json!([]);
    });
    let from = m.fake.path().join("proc/driver");
    let to = m.cell.root("/proc/driver");
    let done = Command::new("cp").arg("-r").args([&from, &to]).status();
    assert!(done.unwrap().success());
    for (value, gpus) in [
        ("1", vec![1]),
        ("2,0", vec![0, 2]),
        ("all", vec![0, 1, 2]),
        ("none", vec![]),
    ] {
        m.edit(|c| c["process"]["env"] = json!([format!("NVIDIA_VISIBLE_DEVICES={value}")]));
        let seen = m
            .run(&[
                "each",
                "ls",
                "/proc/driver/nvidia/gpus",
                ";",
                "cat",
                "/proc/driver/nvidia/params",
                ";",
                "write",
                "/proc/driver/nvidia/params",
                "x",
            ])
            .ok();
        let got = sections(&seen.out);
        let names: Vec<&str> = got[0].1.lines().collect();
        let wanted: Vec<String> = gpus.into_iter().map(Fake::bus).collect();
        assert_eq!(names, wanted, "{value}");
        assert!(got[1].1.contains("ModifyDeviceFiles: 0\n"), "{seen:#?}");
        assert_ne!(got[2].0, 0, "{seen:#?}");
    }
}

#[test]
fn debians_folders_are_used_where_debian_is() {
    let mut m = Machine::new(1);
    fs::write(m.cell.root("/etc/debian_version"), "12.1\n").unwrap();
    m.env(&["NVIDIA_VISIBLE_DEVICES=all"]);
    let lib = format!("{}/libcuda.so.{VERSION}", crate::fakes::LIB);
    let seen = m.run(&["stat", &lib]).ok();
    assert!(seen.out.contains(" file "), "{seen:#?}");
    assert!(!m.cell.root("/usr/lib64").exists());
}
