//! `gpucell gpu` and `gpucell doctor` on a driver that isn't there.

mod fakes;

use std::fs;

use fakes::{CAPS, Fake, LIB, VERSION};

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("not root: device nodes are not tested");
    }
    root
}

/// `gpucell gpu …` on the fake host.
fn gpucell(fake: &Fake, args: &[&str]) -> (i32, String, String) {
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_gpucell"))
        .env("GPUCELL_CONFIG", fake.config())
        .arg("--root")
        .arg(fake.path().join("state"))
        .args(args)
        .output()
        .unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (
        done.status.code().unwrap(),
        text(done.stdout),
        text(done.stderr),
    )
}

#[test]
fn the_list_says_who_has_what() {
    let fake = Fake::new(2);
    fake.mig(1, 2, 0);
    let cap = fake.cap(1, 2, Some(0));
    // Two cells as the store keeps them; both are alive as long as we are.
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let start = stat
        .rsplit(") ")
        .next()
        .unwrap()
        .split(' ')
        .nth(19)
        .unwrap();
    for (id, devices) in [
        (
            "whole",
            r#"[{"path":"/dev/nvidia1","type":"c","major":195,"minor":1}]"#.to_owned(),
        ),
        (
            "part",
            format!(
                r#"[{{"path":"/dev/nvidia0","type":"c","major":195,"minor":0}},
                    {{"path":"/dev/nvidia-caps/nvidia-cap{cap}","type":"c","major":{CAPS},"minor":{cap}}}]"#
            ),
        ),
    ] {
        let pid = std::process::id();
        fake.put(
            format!("state/{id}/state.json"),
            format!(
                r#"{{"ociVersion":"1.3.0","id":"{id}","pid":{pid},"startTime":{start},"bundle":"/b",
                "rootfs":"/r","created":"2026-01-01T00:00:00Z","owner":0,"cgroup":{},
                "driver":"cgroupfs","ownPidNs":true}}"#,
                serde_json::to_string(&gpucell::cgroup::CgroupState::default()).unwrap()
            ),
        );
        fake.put(
            format!("state/{id}/config.json"),
            format!(r#"{{"linux":{{"devices":{devices}}}}}"#),
        );
    }
    let (code, out, err) = gpucell(&fake, &["gpu", "list", "--format", "json"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let list: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(list["driver"], VERSION);
    assert_eq!(list["gpus"][0]["cells"], serde_json::json!(["whole"]));
    assert_eq!(list["gpus"][0]["minor"], 1);
    assert_eq!(list["gpus"][1]["mig"][0]["name"], "1:0");
    assert_eq!(
        list["gpus"][1]["mig"][0]["cells"],
        serde_json::json!(["part"])
    );

    let (_, out, _) = gpucell(&fake, &["gpu", "list"]);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 1 + 3 + 1, "{out}");
    assert!(lines[1].starts_with("0      NVIDIA A100-SXM4-40GB") && lines[1].ends_with("whole"));
    assert!(lines[4].contains("CUDA 12.4"));

    let (code, out, _) = gpucell(&fake, &["gpu", "show", "1:0"]);
    assert_eq!(code, 0);
    assert!(
        out.contains(&format!("/dev/nvidia-caps/nvidia-cap{cap} {CAPS}:{cap}")),
        "{out}"
    );
    assert!(out.contains("part"));
    let (code, _, err) = gpucell(&fake, &["gpu", "show", "7"]);
    assert!(code == 1 && err.contains("doesn't exist"), "{err}");
}

#[test]
fn doctor_looks_at_the_configured_host() {
    let fake = Fake::new(1);
    fake.library(LIB, "libcuda.so.555.42.02", "libcuda.so.1", true);
    let (_, out, _) = gpucell(&fake, &["doctor", "--format", "json"]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    let line = |name: &str| {
        let all = report["checks"].as_array().unwrap();
        all.iter()
            .find(|c| c["name"] == name)
            .unwrap_or_else(|| panic!("no {name}: {out}"))
    };
    assert_eq!(
        line("nvidia driver")["found"],
        format!("{VERSION}, CUDA 12.4")
    );
    assert_eq!(line("driver libraries")["state"], "degraded");
    assert!(
        line("driver libraries")["advice"]
            .as_str()
            .unwrap()
            .contains("555.42.02")
    );
    let uvm = fake.path().join("dev/nvidia-uvm").display().to_string();
    assert_eq!(line(&uvm)["state"], if root() { "ok" } else { "degraded" });
}
