//! Real configurations are read and checked: as `runc spec`, `crun spec` and dockerd write them.

use gpucell::spec::{check, load};

fn read(name: &str) -> load::Loaded {
    let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    load::parse(&std::fs::read(&path).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn runc_and_crun_defaults() {
    for name in [
        "runc-spec.json",
        "runc-spec-rootless.json",
        "crun-spec.json",
    ] {
        let loaded = read(name);
        assert!(loaded.warnings.is_empty(), "{name}: {:?}", loaded.warnings);
        let warnings = check::check(&loaded.spec).unwrap_or_else(|e| panic!("{name}: {e}"));
        for w in warnings {
            assert!(w.contains("ambient"), "{name}: {w}");
        }
    }
}

#[test]
fn dockers_configuration() {
    let loaded = read("docker-config.json");
    assert!(loaded.warnings.is_empty());
    assert!(check::check(&loaded.spec).unwrap().is_empty());
    let linux = loaded.spec.linux().as_ref().unwrap();
    let seccomp = linux.seccomp().as_ref().unwrap();
    assert_eq!(seccomp.architectures().as_ref().unwrap().len(), 3);
    assert_eq!(
        linux.resources().as_ref().unwrap().pids().unwrap().limit(),
        100
    );
    assert_eq!(loaded.spec.mounts().as_ref().unwrap().len(), 11);
}

#[test]
fn what_is_read_is_what_is_written() {
    for name in ["runc-spec.json", "crun-spec.json", "docker-config.json"] {
        let first = read(name).spec;
        let again = load::parse(&serde_json::to_vec(&first).unwrap()).unwrap();
        assert_eq!(again.spec, first, "{name}");
        assert!(again.warnings.is_empty());
    }
}
