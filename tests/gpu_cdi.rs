//! `gpucell cdi` on a driver that isn't there: the file that is written, listed and applied.

mod cdi_schema;
mod fakes;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use cdi_schema::violations;
use fakes::Fake;
use gpucell::nvidia::cdi::{Format, generate, parse};
use serde_json::{Value, json};

/// Runs `gpucell cdi …`.
fn cdi(fake: &Fake, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpucell"))
        .arg("cdi")
        .args(args)
        .env("GPUCELL_CONFIG", fake.config())
        .output()
        .unwrap()
}

fn text(output: Output) -> String {
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

fn show(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_file_names_every_gpu_by_index_and_uuid() {
    let fake = Fake::new(2);
    let spec = generate::of_host(&fake.host()).unwrap();
    let names: Vec<&str> = spec.devices.iter().map(|d| &*d.name).collect();
    let (first, second) = (Fake::uuid(0), Fake::uuid(1));
    assert_eq!(names, ["0", &first, "1", &second, "all"]);
    let has = |device: usize, gpu: u32| {
        let node = format!("/dev/nvidia{}", fake.minor(gpu));
        let edits = &spec.devices[device].container_edits;
        edits
            .device_nodes
            .iter()
            .any(|n| n.path.ends_with(node.trim_start_matches('/')))
    };
    assert!(has(0, 0) && !has(0, 1) && has(2, 1) && !has(2, 0));
    assert!(has(4, 0) && has(4, 1));
    let env = &spec.container_edits.env;
    assert!(env.contains(&"NVIDIA_VISIBLE_DEVICES=void".to_owned()));
    // Both notations hold it, and hold the same.
    let yaml = text(cdi(&fake, &["generate"]));
    assert_eq!(parse(yaml.as_bytes(), Format::Yaml).unwrap(), spec);
    let json = text(cdi(&fake, &["generate", "--format", "json"]));
    assert_eq!(parse(json.as_bytes(), Format::Json).unwrap(), spec);
}

#[test]
fn a_split_gpu_is_its_mig_devices() {
    let fake = Fake::new(2);
    fake.mig(1, 3, 0);
    fake.mig(1, 4, 0);
    let spec = generate::of_host(&fake.host()).unwrap();
    let names: Vec<&str> = spec.devices.iter().map(|d| &*d.name).collect();
    assert_eq!(names, ["0", &Fake::uuid(0), "1:0", "1:1", "all"]);
    assert_eq!(spec.cdi_version, "0.5.0");
}

#[test]
fn what_is_generated_holds_against_the_published_schema() {
    let none: [String; 0] = [];
    for (gpus, split) in [(1, false), (2, true), (8, false)] {
        let fake = Fake::new(gpus);
        if split {
            fake.mig(1, 3, 0);
        }
        let json = text(cdi(&fake, &["generate", "--format", "json"]));
        assert_eq!(violations(&json), none, "{gpus} GPUs");
        // The schema, and the tool that reads it, find what is wrong.
        let mut wrong: Value = serde_json::from_str(&json).unwrap();
        wrong["containerEdits"]["mounts"][0]["hostPath"] = json!(7);
        wrong["devices"][0]["containerEdits"]["deviceNodes"][0]["major"] = json!("195");
        wrong.as_object_mut().unwrap().remove("kind");
        let found = violations(&wrong.to_string()).join("\n");
        for place in [
            "containerEdits/mounts/0/hostPath",
            "deviceNodes/0/major",
            "'kind'",
        ] {
            assert!(found.contains(place), "{place}: {found}");
        }
    }
}

#[test]
fn what_is_generated_is_listed() {
    let fake = Fake::new(1);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nvidia.json");
    fs::write(&file, "old").unwrap();
    assert_eq!(text(cdi(&fake, &["generate", "--output", show(&file)])), "");
    // The old file is replaced, in the notation of its name, and nothing is left beside it.
    assert!(fs::read_to_string(&file).unwrap().starts_with('{'));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let why = refused(cdi(
        &fake,
        &["generate", "--format", "yaml", "--output", show(&file)],
    ));
    assert!(why.contains("JSON"), "{why}");

    let list = text(cdi(&fake, &["list", "--dir", show(dir.path())]));
    let names: Vec<&str> = list.lines().map(|l| l.split(' ').next().unwrap()).collect();
    let uuid = format!("nvidia.com/gpu={}", Fake::uuid(0));
    assert_eq!(names, ["nvidia.com/gpu=0", &uuid, "nvidia.com/gpu=all"]);
    assert!(list.lines().all(|l| l.ends_with(show(&file))));

    let why = refused(cdi(&fake, &["list", "--dir", "/gpucell/not/there"]));
    assert!(why.contains("/gpucell/not/there"), "{why}");
}

#[test]
fn apply_prints_the_configuration_and_writes_nothing() {
    let fake = Fake::new(1);
    let dir = tempfile::tempdir().unwrap();
    let (bundle, dirs) = (dir.path().join("b"), dir.path().join("cdi"));
    fs::create_dir_all(bundle.join("rootfs")).unwrap();
    fs::create_dir(&dirs).unwrap();
    let config = json!({
        "ociVersion": "1.3.0", "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh"]},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}
    })
    .to_string();
    fs::write(bundle.join("config.json"), &config).unwrap();
    let edits = json!({
        "env": ["A=1"], "deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null"}],
        "mounts": [{"hostPath": "/usr", "containerPath": "/m", "options": ["ro", "rbind"]}]
    });
    let file = json!({
        "cdiVersion": "0.5.0", "kind": "v/c",
        "devices": [{"name": "d", "containerEdits": edits}]
    });
    fs::write(dirs.join("v.json"), file.to_string()).unwrap();
    fs::write(dirs.join("w.yaml"), "broken: [").unwrap();

    let apply = |device: &str| {
        cdi(
            &fake,
            &["apply", show(&bundle), device, "--dir", show(&dirs)],
        )
    };
    let output = apply("v/c=d");
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(warned.contains("w.yaml"), "{warned}");
    let spec: Value = serde_json::from_str(&text(output)).unwrap();
    assert_eq!(spec["process"]["env"], json!(["A=1"]));
    assert_eq!(spec["mounts"][0]["options"], json!(["ro", "rbind"]));
    let node = json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 3});
    assert_eq!(spec["linux"]["devices"], json!([node]));
    assert_eq!(
        fs::read_to_string(bundle.join("config.json")).unwrap(),
        config
    );

    let why = refused(apply("v/c=other"));
    assert!(why.contains("v/c=other") && why.contains("w.yaml"), "{why}");
    assert!(why.contains("v/c has d"), "{why}");
}
