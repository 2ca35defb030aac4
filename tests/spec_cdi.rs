//! CDI files: the fuzz corpus replayed, and devices of a folder applied to a configuration.

#[path = "../fuzz/steps/cdi.rs"]
mod cdi_steps;

use std::path::Path;

use cdi_steps::Reached;
use gpucell::nvidia::cdi::resolve;
use gpucell::spec::edit::apply;
use oci_spec::runtime::Spec;
use serde_json::json;

#[test]
fn corpus() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/cdi");
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let reached = cdi_steps::run(&std::fs::read(&path).unwrap());
        // Inputs that the fuzzer found have no such prefix: they only have to end.
        let expected = match name.split('-').next() {
            Some("done") => Reached::Done,
            Some("nothing") => Reached::Nothing,
            _ => continue,
        };
        assert_eq!(reached, expected, "{name}");
        seen += 1;
    }
    assert!(seen >= 15, "{seen} seeds");
}

/// What the toolkit's own file makes of a configuration: the file's edits and the device's, each in
/// the place that the runtime specification has for it.
#[test]
fn a_device_of_the_toolkits_file_in_a_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/cdi");
    let seed = Path::new(corpus).join("done-toolkit-yaml");
    // Its uvm node is not on every host.
    let text = std::fs::read_to_string(seed).unwrap();
    let text = text.replace("/dev/nvidia-uvm", "/dev/null");
    std::fs::write(dir.path().join("nvidia.yaml"), text).unwrap();

    let names = ["nvidia.com/gpu=0".to_owned()];
    let found = resolve(&names, &[dir.path().to_owned()]).unwrap();
    assert!(found.warnings.is_empty());
    let mut spec: Spec = serde_json::from_value(json!({
        "ociVersion": "1.3.0",
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh"],
            "env": ["NVIDIA_VISIBLE_DEVICES=all"]}
    }))
    .unwrap();
    apply(&mut spec, &found.edits).unwrap();
    let spec = serde_json::to_value(spec).unwrap();
    assert_eq!(
        spec["process"]["env"],
        json!(["NVIDIA_VISIBLE_DEVICES=void"])
    );
    assert_eq!(
        spec["linux"]["devices"],
        json!([
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
            {"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0, "fileMode": 438}
        ])
    );
    let rule = |major, minor, access| json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": access});
    assert_eq!(
        spec["linux"]["resources"]["devices"],
        json!([rule(1, 3, "rw"), rule(195, 0, "rwm")])
    );
    assert_eq!(
        spec["mounts"][0]["destination"],
        "/usr/lib64/libcuda.so.550.163.01"
    );
    assert_eq!(
        spec["hooks"]["createContainer"][0]["args"],
        json!([
            "nvidia-cdi-hook",
            "update-ldcache",
            "--folder",
            "/usr/lib64"
        ])
    );
}
