use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// Two folders, the first of lower priority.
struct Dirs(TempDir);

impl Dirs {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["low", "high"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        Dirs(dir)
    }

    fn paths(&self) -> Vec<PathBuf> {
        vec![
            self.0.path().join("low"),
            self.0.path().join("not-there"),
            self.0.path().join("high"),
        ]
    }

    /// A file with devices, each of which sets `DEV_<name>=<mark>`; the file sets `FILE=<mark>`.
    fn write(&self, file: &str, kind: &str, devices: &[&str], mark: &str) {
        let devices: Vec<Value> = devices
            .iter()
            .map(|d| json!({"name": d, "containerEdits": {"env": [format!("DEV_{d}={mark}")]}}))
            .collect();
        self.text(
            file,
            &json!({
                "cdiVersion": "0.5.0", "kind": kind, "devices": devices,
                "containerEdits": {"env": [format!("FILE={mark}")]}
            })
            .to_string(),
        );
    }

    fn text(&self, file: &str, text: &str) {
        fs::write(self.0.path().join(file), text).unwrap();
    }

    fn resolve(&self, names: &[&str]) -> Result<Vec<String>> {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let found = resolve(&names, &self.paths())?;
        let env = |e: Edit| match e.change {
            Change::Env(pair) => pair,
            other => panic!("{other}"),
        };
        Ok(found.edits.into_iter().map(env).collect())
    }

    fn refused(&self, name: &str) -> String {
        self.resolve(&[name]).unwrap_err().to_string()
    }
}

#[test]
fn the_files_edits_come_once_and_before_the_devices() {
    let dirs = Dirs::new();
    dirs.write("low/a.json", "v/c", &["0", "1"], "a");
    dirs.write("low/b.json", "v/d", &["0"], "b");
    assert_eq!(
        dirs.resolve(&["v/c=1", "v/d=0", "v/c=0", "v/c=1"]).unwrap(),
        ["FILE=a", "DEV_1=a", "FILE=b", "DEV_0=b", "DEV_0=a"]
    );
    let edits = resolve(&["v/c=1".to_owned()], &dirs.paths()).unwrap().edits;
    let file = dirs.0.path().join("low/a.json").display().to_string();
    assert_eq!(edits[0].reason, format!("CDI v/c ({file})"));
    assert_eq!(edits[1].reason, format!("CDI v/c=1 ({file})"));
    assert!(dirs.resolve(&[]).unwrap().is_empty());
}

#[test]
fn the_later_folder_wins_device_by_device() {
    let dirs = Dirs::new();
    dirs.write("low/a.json", "v/c", &["0", "1"], "low");
    dirs.write("high/z.json", "v/c", &["0"], "high");
    assert_eq!(
        dirs.resolve(&["v/c=0"]).unwrap(),
        ["FILE=high", "DEV_0=high"]
    );
    assert_eq!(dirs.resolve(&["v/c=1"]).unwrap(), ["FILE=low", "DEV_1=low"]);
    let registry = Registry::read(&dirs.paths());
    assert!(registry.warnings().is_empty());
    let all: Vec<String> = registry
        .devices()
        .map(|(n, p)| format!("{n} {}", p.file_name().unwrap().display()))
        .collect();
    assert_eq!(all, ["v/c=0 z.json", "v/c=1 a.json"]);
}

#[test]
fn a_device_twice_in_one_folder_is_dropped_and_only_it() {
    let dirs = Dirs::new();
    dirs.write("high/a.json", "v/c", &["0", "1"], "a");
    dirs.write("high/b.yaml", "v/c", &["0", "2"], "b");
    // The lower folder's is not used instead: the later folder's should have won.
    dirs.write("low/c.json", "v/c", &["0"], "c");
    let why = dirs.refused("v/c=0");
    assert!(
        why.contains("a.json and ") && why.contains("b.yaml"),
        "{why}"
    );
    assert_eq!(Registry::read(&dirs.paths()).warnings(), [why]);
    assert_eq!(dirs.resolve(&["v/c=1"]).unwrap(), ["FILE=a", "DEV_1=a"]);
    assert_eq!(dirs.resolve(&["v/c=2"]).unwrap(), ["FILE=b", "DEV_2=b"]);
}

#[test]
fn a_later_folder_settles_a_conflict_below_it() {
    let dirs = Dirs::new();
    dirs.write("low/a.json", "v/c", &["0"], "a");
    dirs.write("low/b.json", "v/c", &["0"], "b");
    dirs.write("high/c.json", "v/c", &["0"], "c");
    assert_eq!(dirs.resolve(&["v/c=0"]).unwrap(), ["FILE=c", "DEV_0=c"]);
    assert!(Registry::read(&dirs.paths()).warnings().is_empty());
}

#[test]
fn a_broken_file_hides_no_other_and_is_named() {
    let dirs = Dirs::new();
    dirs.write("low/a.json", "v/c", &["0"], "a");
    dirs.text("low/b.json", "{\"cdiVersion\": \"0.3.0\"");
    dirs.text("high/c.yaml", "kind: v/c\ncolour: red\n");
    assert_eq!(dirs.resolve(&["v/c=0"]).unwrap(), ["FILE=a", "DEV_0=a"]);
    let warnings = Registry::read(&dirs.paths()).warnings();
    assert_eq!(warnings.len(), 2);
    assert!(warnings[0].contains("low/b.json") && warnings[1].contains("high/c.yaml"));
    let why = dirs.refused("v/c=7");
    for part in [
        "v/c=7",
        "these can't",
        "low/b.json",
        "high/c.yaml",
        "colour",
        "v/c has 0",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
}

#[test]
fn names_that_are_nowhere_or_no_names_are_errors() {
    let dirs = Dirs::new();
    assert_eq!(dirs.refused("v/c=0"), "CDI device v/c=0 is in no CDI file");
    dirs.write("low/a.json", "v/c", &["0"], "a");
    assert!(
        dirs.refused("v/c=1")
            .ends_with("in no CDI file (v/c has 0)")
    );
    assert!(dirs.refused("gpu").contains("vendor/class=device"));
    // One bad name fails all.
    assert!(dirs.resolve(&["v/c=0", "v/c=1"]).is_err());
}

#[test]
fn only_cdi_files_of_the_folder_itself_count() {
    let dirs = Dirs::new();
    fs::create_dir_all(dirs.0.path().join("low/sub.json")).unwrap();
    dirs.write("low/sub.json/a.json", "v/c", &["0"], "a");
    dirs.write("low/a.yml", "v/c", &["1"], "a");
    dirs.write("low/a.json.bak", "v/c", &["2"], "a");
    let registry = Registry::read(&dirs.paths());
    assert_eq!(registry.devices().count(), 0);
    assert!(registry.warnings().is_empty());
    // A folder that is something else.
    let warnings = Registry::read(&[dirs.0.path().join("low/a.yml")]).warnings();
    assert!(
        warnings[0].contains("a.yml") && warnings[0].contains("directory"),
        "{warnings:?}"
    );
}

#[test]
fn bind_mounts_are_id_mapped_in_a_new_user_namespace() {
    let mount = |typ: Option<&str>, options: &[&str]| {
        let mut mount = Mount::default();
        mount
            .set_destination("/m".into())
            .set_typ(typ.map(str::to_owned))
            .set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
        Edit::new("t", Change::Mount(mount))
    };
    let spec = |namespaces: Value| -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.3.0", "linux": {"namespaces": namespaces}
        }))
        .unwrap()
    };
    let mapped = |edit: Edit, spec: &Spec| {
        let mut edits = [edit];
        map_ids(&mut edits, spec);
        let [
            Edit {
                change: Change::Mount(mount),
                ..
            },
        ] = edits
        else {
            unreachable!()
        };
        mount.options().clone().unwrap().join(",")
    };
    let new = spec(json!([{"type": "mount"}, {"type": "user"}]));
    for (typ, options, want) in [
        (None, &["ro", "bind"][..], "ro,bind,idmap"),
        (None, &["rbind"], "rbind,ridmap"),
        (Some("bind"), &["ro"], "ro,idmap"),
        (Some("bind"), &["rbind"], "rbind,ridmap"),
        (Some("tmpfs"), &["ro"], "ro"),
        (None, &["bind", "ridmap"], "bind,ridmap"),
        (None, &["bind", "idmap"], "bind,idmap"),
    ] {
        assert_eq!(mapped(mount(typ, options), &new), want);
    }
    for other in [
        spec(json!([{"type": "mount"}])),
        spec(json!([{"type": "user", "path": "/proc/9/ns/user"}])),
    ] {
        assert_eq!(mapped(mount(None, &["bind"]), &other), "bind");
    }
}
