//! `gpucell spec`: the file that runc's writes, but for what is named here. No root needed.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use gpucell::spec::{check, load};
use serde_json::{Value, json};

fn spec(args: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpucell"))
        .arg("spec")
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn written(args: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let done = spec(args, dir.path());
    assert!(done.status.success() && done.stdout.is_empty(), "{done:?}");
    let text = fs::read(dir.path().join("config.json")).unwrap();
    // We read it ourselves without a warning.
    let loaded = load::parse(&text).unwrap();
    assert_eq!(loaded.warnings, [""; 0]);
    assert_eq!(check::check(&loaded.spec).unwrap(), [""; 0]);
    serde_json::from_slice(&text).unwrap()
}

/// What runc 1.1 writes, changed as src/spec/default/runc.rs says.
fn runcs(name: &str) -> Value {
    let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    config["ociVersion"] = json!("1.3.0");
    config["hostname"] = json!("gpucell");
    // Ambient capabilities without inheritable ones can't be had; newer runc names none.
    let caps = config["process"]["capabilities"].as_object_mut().unwrap();
    caps.remove("ambient");
    config
}

/// Takes a list out, for comparing it by itself.
fn take(config: &mut Value, at: &str) -> Vec<Value> {
    let list = config.pointer_mut(at).unwrap_or_else(|| panic!("{at}"));
    list.take().as_array().unwrap().clone()
}

#[test]
fn it_is_runcs() {
    for (args, name) in [
        (&[][..], "runc-spec.json"),
        (&["--rootless"], "runc-spec-rootless.json"),
    ] {
        let (mut ours, mut theirs) = (written(args), runcs(name));
        // More is masked, nothing less.
        let masked = take(&mut ours, "/linux/maskedPaths");
        for path in take(&mut theirs, "/linux/maskedPaths") {
            assert!(masked.contains(&path), "{path}");
        }
        // A cgroup namespace besides.
        let mut namespaces = take(&mut ours, "/linux/namespaces");
        namespaces.retain(|n| n["type"] != "cgroup");
        assert_eq!(namespaces, take(&mut theirs, "/linux/namespaces"));
        for (map, id) in [
            ("uidMappings", nix::unistd::geteuid().as_raw()),
            ("gidMappings", nix::unistd::getegid().as_raw()),
        ] {
            if let Some(map) = theirs["linux"].get_mut(map) {
                map[0]["hostID"] = json!(id);
            }
        }
        // The order of options is of no importance: they are told apart, not overridden.
        for config in [&mut ours, &mut theirs] {
            for mount in config["mounts"].as_array_mut().unwrap() {
                if let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) {
                    options.sort_by_key(Value::to_string);
                }
            }
        }
        assert_eq!(ours, theirs, "{name}");
    }
}

#[test]
fn the_mapped_user_is_the_caller() {
    if !nix::unistd::geteuid().is_root() {
        return; // seen by the test above, as whoever runs it
    }
    let dir = tempfile::tempdir().unwrap();
    nix::unistd::chown(dir.path(), Some(1234.into()), Some(4321.into())).unwrap();
    let program = dir.path().join("gpucell");
    fs::copy(env!("CARGO_BIN_EXE_gpucell"), &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["spec", "--rootless"]).uid(1234).gid(4321);
    assert!(command.current_dir(dir.path()).status().unwrap().success());
    let text = fs::read(dir.path().join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&text).unwrap();
    let linux = &config["linux"];
    assert_eq!(linux["uidMappings"][0]["hostID"], 1234);
    assert_eq!(linux["gidMappings"][0]["hostID"], 4321);
}

#[test]
fn nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("one")).unwrap();
    let file = dir.path().join("one/config.json");
    assert!(spec(&["-b", "one"], dir.path()).status.success());
    fs::write(&file, "mine").unwrap();
    for args in [&["--bundle", "one"][..], &["--bundle=one", "--rootless"]] {
        let done = spec(args, dir.path());
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(1));
        assert!(
            said.contains("one/config.json exists; remove it first"),
            "{said}"
        );
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let done = spec(&["-b", "none"], dir.path());
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(
        said.contains("create none/config.json: No such file"),
        "{said}"
    );
    assert_eq!(done.status.code(), Some(1));
}
