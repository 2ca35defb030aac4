use serde_json::{Value, json};

use super::*;

/// A file that uses every field, in the newest version.
fn full() -> Value {
    json!({
        "cdiVersion": "1.1.0",
        "kind": "vendor.com/net.gpu",
        "annotations": {"a": "b"},
        "devices": [{
            "name": "0:1",
            "annotations": {"c": "d"},
            "containerEdits": {
                "env": ["A=1"],
                "deviceNodes": [{
                    "path": "/dev/x", "hostPath": "/dev/y", "type": "c", "major": 195, "minor": 7,
                    "fileMode": 438, "permissions": "rw", "uid": 1, "gid": 2
                }],
                "mounts": [{
                    "hostPath": "/a", "containerPath": "/b", "type": "none", "options": ["ro", "bind"]
                }],
                "hooks": [{
                    "hookName": "createContainer", "path": "/h", "args": ["h"], "env": ["B=2"],
                    "timeout": 3
                }],
                "additionalGids": [44],
                "intelRdt": {
                    "closID": "c", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20",
                    "schemata": ["L3:0=f"], "enableMonitoring": true
                },
                "netDevices": [{"hostInterfaceName": "eth1", "name": "eth0"}]
            }
        }],
        "containerEdits": {"env": ["C=3"]}
    })
}

fn minimal() -> Value {
    json!({
        "cdiVersion": "0.3.0",
        "kind": "v/c",
        "devices": [{"name": "d", "containerEdits": {"env": ["A=1"]}}]
    })
}

fn read(value: &Value) -> Result<CdiSpec, String> {
    parse(value.to_string().as_bytes(), Format::Json)
}

/// `minimal` with one value set at a JSON pointer whose parent is there.
fn with(base: Value, at: &str, value: Value) -> Value {
    let mut base = base;
    let (parent, key) = at.rsplit_once('/').unwrap();
    match base.pointer_mut(parent).unwrap() {
        Value::Object(map) => {
            map.insert(key.to_owned(), value);
        }
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
        _ => unreachable!(),
    }
    base
}

#[test]
fn every_field_is_read_and_written_again() {
    let spec = read(&full()).unwrap();
    assert_eq!(serde_json::to_value(&spec).unwrap(), full());
    let yaml = yaml_serde::to_string(&spec).unwrap();
    assert_eq!(parse(yaml.as_bytes(), Format::Yaml).unwrap(), spec);
    let spec = read(&minimal()).unwrap();
    assert_eq!(serde_json::to_value(&spec).unwrap(), minimal());
}

#[test]
fn yaml_as_people_and_the_toolkit_write_it() {
    let text = "---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
containerEdits:
  env: &env
  - NVIDIA_VISIBLE_DEVICES=void
devices:
- name: 0       # no quotes
  containerEdits:
    deviceNodes:
    - {path: /dev/nvidia0, permissions: rw}
- name: \"1\"
  containerEdits:
    env: *env
";
    let spec = parse(text.as_bytes(), Format::Yaml).unwrap();
    assert_eq!(spec.devices[0].name, "0");
    assert_eq!(
        spec.devices[1].container_edits.env,
        spec.container_edits.env
    );
}

#[test]
fn an_unknown_field_is_an_error_with_its_place() {
    for at in [
        "/colour",
        "/containerEdits/colour",
        "/devices/0/colour",
        "/devices/0/containerEdits/colour",
        "/devices/0/containerEdits/deviceNodes/0/colour",
        "/devices/0/containerEdits/mounts/0/colour",
        "/devices/0/containerEdits/hooks/0/colour",
        "/devices/0/containerEdits/intelRdt/colour",
        "/devices/0/containerEdits/netDevices/0/colour",
    ] {
        let bad = with(full(), at, json!(1));
        let yaml = yaml_serde::to_string(&bad).unwrap();
        let place = at
            .trim_end_matches("colour")
            .replace("/0", "[0]")
            .trim_matches('/')
            .replace('/', ".");
        for why in [
            read(&bad).unwrap_err(),
            parse(yaml.as_bytes(), Format::Yaml).unwrap_err(),
        ] {
            assert!(why.contains("unknown field `colour`"), "{at}: {why}");
            assert!(why.contains(&place), "{at}: {why}");
        }
    }
}

#[test]
fn a_field_needs_its_version() {
    let edits = "/devices/0/containerEdits";
    for (at, value, needs, field) in [
        (
            "/mounts",
            json!([{"hostPath": "/a", "containerPath": "/b", "type": "none"}]),
            "0.4.0",
            "mounts[0].type",
        ),
        (
            "/deviceNodes",
            json!([{"path": "/a", "hostPath": "/b"}]),
            "0.5.0",
            "deviceNodes[0].hostPath",
        ),
        ("/additionalGids", json!([0]), "0.7.0", "additionalGids"),
        ("/intelRdt", json!({}), "0.7.0", "intelRdt"),
        (
            "/intelRdt",
            json!({"schemata": []}),
            "1.1.0",
            "intelRdt.schemata",
        ),
        (
            "/intelRdt",
            json!({"enableMonitoring": true}),
            "1.1.0",
            "enableMonitoring",
        ),
        (
            "/netDevices",
            json!([{"hostInterfaceName": "a", "name": "b"}]),
            "1.1.0",
            "netDevices",
        ),
    ] {
        check_version(
            with(minimal(), &format!("{edits}{at}"), value.clone()),
            needs,
            field,
        );
        // The same in the edits of the file.
        let base = with(minimal(), "/containerEdits", json!({}));
        let field = format!("containerEdits.{field}");
        if !field.contains("enableMonitoring") {
            check_version(
                with(base, &format!("/containerEdits{at}"), value),
                needs,
                &field,
            );
        }
    }
    for (at, value, needs, field) in [
        ("/kind", json!("v/c.d"), "0.6.0", "kind"),
        ("/annotations", json!({"a": "b"}), "0.6.0", "annotations"),
        (
            "/devices/0/annotations",
            json!({"a": "b"}),
            "0.6.0",
            "devices[0].annotations",
        ),
        ("/devices/0/name", json!("0"), "0.5.0", "devices[0].name"),
    ] {
        check_version(with(minimal(), at, value), needs, field);
    }
}

/// Every version below `needs` is refused with the field and the version, every other one accepted.
fn check_version(spec: Value, needs: &str, field: &str) {
    for version in [
        "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
    ] {
        let got = read(&with(spec.clone(), "/cdiVersion", json!(version)));
        if version < needs {
            let why = got.unwrap_err();
            assert!(
                why.contains(field) && why.contains(&format!("needs cdiVersion {needs}")),
                "{version} {field}: {why}"
            );
        } else {
            got.unwrap();
        }
    }
    let spec = read(&with(spec, "/cdiVersion", json!("v1.1.0"))).unwrap();
    assert_eq!(spec.needs().0.as_str(), needs);
}

#[test]
fn unknown_versions_are_refused() {
    for version in [
        "", "0.1.0", "0.2.0", "0.9.0", "1.2.0", "1.1", "vv1.1.0", "1.1.0-rc",
    ] {
        let why = read(&with(minimal(), "/cdiVersion", json!(version))).unwrap_err();
        assert!(why.starts_with("cdiVersion: "), "{why}");
    }
}

#[test]
fn broken_rules_name_their_field() {
    let edits = "/devices/0/containerEdits";
    for (at, value, want) in [
        ("/kind", json!("novendor"), "kind: "),
        ("/kind", json!("v/1c"), "kind: "),
        ("/devices", json!([]), "devices: at least one"),
        ("/devices/0/name", json!("-a"), "devices[0].name: "),
        ("/devices/0/name", json!(7), "devices[0].name: invalid type"),
        (
            edits,
            json!({}),
            "devices[0].containerEdits: a device needs",
        ),
        ("/E/env", json!(["A=1", "NO"]), "E.env[1]: \"NO\""),
        ("/E/env", json!(["=x"]), "E.env[0]: "),
        (
            "/E/deviceNodes",
            json!([{"path": "dev/x"}]),
            "E.deviceNodes[0].path: ",
        ),
        (
            "/E/deviceNodes",
            json!([{"path": ""}]),
            "E.deviceNodes[0].path: ",
        ),
        (
            "/E/deviceNodes",
            json!([{}]),
            "E.deviceNodes[0]: missing field `path`",
        ),
        (
            "/E/deviceNodes",
            json!([{"path": "/a", "type": "x"}]),
            "E.deviceNodes[0].type: ",
        ),
        (
            "/E/deviceNodes",
            json!([{"path": "/a", "type": "a"}]),
            "E.deviceNodes[0].type: ",
        ),
        (
            "/E/deviceNodes",
            json!([{"path": "/a", "uid": -1}]),
            "E.deviceNodes[0].uid: ",
        ),
        (
            "/E/deviceNodes",
            json!([{"path": "/a", "permissions": "rx"}]),
            "E.deviceNodes[0].permissions: ",
        ),
        (
            "/E/mounts",
            json!([{"hostPath": "", "containerPath": "/b"}]),
            "E.mounts[0].hostPath: ",
        ),
        (
            "/E/mounts",
            json!([{"hostPath": "/a", "containerPath": "b"}]),
            "E.mounts[0].containerPath: ",
        ),
        (
            "/E/hooks",
            json!([{"hookName": "later", "path": "/h"}]),
            "E.hooks[0].hookName: \"later\"",
        ),
        (
            "/E/hooks",
            json!([{"hookName": "prestart", "path": "h"}]),
            "E.hooks[0].path: ",
        ),
        (
            "/E/hooks",
            json!([{"hookName": "prestart", "path": "/h", "timeout": 0}]),
            "E.hooks[0].timeout: ",
        ),
        (
            "/E/hooks",
            json!([{"hookName": "prestart", "path": "/h", "env": ["X"]}]),
            "E.hooks[0].env[0]: ",
        ),
        (
            "/E/intelRdt",
            json!({"closID": "a/b"}),
            "E.intelRdt.closID: ",
        ),
        (
            "/E/intelRdt",
            json!({"closID": ".."}),
            "E.intelRdt.closID: ",
        ),
        (
            "/E/netDevices",
            json!([{"hostInterfaceName": "a"}]),
            "E.netDevices[0].name: ",
        ),
        (
            "/E/netDevices",
            json!([{"hostInterfaceName": "a", "name": "x"},
            {"hostInterfaceName": "a", "name": "y"}]),
            "E.netDevices[1].hostInterfaceName: ",
        ),
        (
            "/E/netDevices",
            json!([{"hostInterfaceName": "a", "name": "x"},
            {"hostInterfaceName": "b", "name": "x"}]),
            "E.netDevices[1].name: ",
        ),
    ] {
        let want = want.replace("E.", "devices[0].containerEdits.");
        let base = with(minimal(), "/cdiVersion", json!("1.1.0"));
        let why = read(&with(base, &at.replace("/E", edits), value)).unwrap_err();
        assert!(why.starts_with(&want), "want {want}: {why}");
    }
    let twice = json!([
        {"name": "d", "containerEdits": {"env": ["A=1"]}},
        {"name": "d", "containerEdits": {"env": ["A=1"]}}
    ]);
    let why = read(&with(minimal(), "/devices", twice)).unwrap_err();
    assert_eq!(why, "devices[1].name: \"d\" is there twice");
}

#[test]
fn what_is_no_cdi_file_is_an_error_in_both_notations() {
    for text in [
        "",
        "[]",
        "null",
        "7",
        "{",
        "{}",
        "x: [",
        "---\n---\n",
        "\u{0}",
        "a: *b",
        "\t",
        "&a [*a]",
        "{\"cdiVersion\":\"0.3.0\",\"cdiVersion\":\"0.3.0\"}",
        "{\"kind\":\"\u{1b}[31m\"}",
    ] {
        for format in [Format::Json, Format::Yaml] {
            let why = parse(text.as_bytes(), format).unwrap_err();
            assert!(
                !why.is_empty() && !why.contains(char::is_control),
                "{why:?}"
            );
        }
    }
    assert!(parse(b"\xff\xfe", Format::Yaml).is_err());
    let two = format!("{}\n{}", minimal(), minimal());
    assert!(parse(two.as_bytes(), Format::Json).is_err());
    let two = format!("{}\n---\n{}", minimal(), minimal());
    assert!(parse(two.as_bytes(), Format::Yaml).is_err());
    let deep = "[".repeat(100_000);
    for format in [Format::Json, Format::Yaml] {
        assert!(parse(format!("{{\"devices\":{deep}").as_bytes(), format).is_err());
        assert!(parse(&vec![b' '; MAX_SIZE as usize + 1], format).is_err());
    }
}

#[test]
fn no_text_keeps_the_parser_busy() {
    let most = MAX_SIZE as usize;
    let fill = |unit: &str| unit.repeat(most / unit.len());
    for text in [
        fill("["),
        fill("{"),
        format!("{}{}", "[".repeat(MAX_BRACKETS), "]".repeat(MAX_BRACKETS)),
        "{a: ".repeat(MAX_BRACKETS),
        fill("%TAG !a! x\n"),
        fill("%TAG !a! x\r"),
        fill("%TAG !a! x\u{85}"),
        fill("%TAG !a! x\u{2028}"),
        fill("- "),
        fill("? "),
        fill("a: "),
        fill("\"\\x41"),
        fill("&a "),
        fill("!a "),
        fill("a\n"),
        fill("|\n"),
        fill("#\n"),
        fill("---\n"),
        fill("a: 1\n"),
        fill(" \n"),
        format!("[{}", fill("a,")),
        format!("x: |\n{}", " ".repeat(most - 10)),
    ] {
        let start = std::time::Instant::now();
        let cut = text.floor_char_boundary(most);
        assert!(parse(&text.as_bytes()[..cut], Format::Yaml).is_err());
        let took = start.elapsed();
        // Generous: a slow machine without optimisation. What was quadratic took minutes.
        assert!(took.as_secs() < 20, "{took:?} {:?}", &text[..12]);
    }
}

#[test]
fn aliases_cannot_fill_the_memory() {
    // Few aliases to much text, which the parser's own bound on repetitions lets through.
    let head = "cdiVersion: 0.3.0\nkind: v/c\n";
    let big = "x".repeat(300_000);
    let aliases = "*a, ".repeat(10_000);
    let text =
        format!("{head}devices:\n- name: d\n  containerEdits:\n    env: [&a A={big}, {aliases}]\n");
    let why = parse(text.as_bytes(), Format::Yaml).unwrap_err();
    assert!(why.contains("aliases make it larger"), "{why}");
    // Aliases of aliases.
    let mut text = format!("{head}annotations:\n  a0: &a0 [{}]\n", "x, ".repeat(10));
    for i in 1..30 {
        let last = format!("*a{}", i - 1);
        text += &format!("  a{i}: &a{i} [{}]\n", [&*last; 10].join(", "));
    }
    let why = parse(text.as_bytes(), Format::Yaml).unwrap_err();
    assert!(
        why.contains("aliases make it larger") || why.contains("repetition limit"),
        "{why}"
    );
}

#[test]
fn reading_names_the_file_and_takes_regular_files_only() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("a.json"), minimal().to_string()).unwrap();
    read_ok(&at("a.json"));
    std::os::unix::fs::symlink("a.json", at("link.yaml")).unwrap();
    read_ok(&at("link.yaml"));
    std::fs::write(at("b.json"), "{").unwrap();
    nix::unistd::mkfifo(&at("c.yaml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let big = std::fs::File::create(at("d.json")).unwrap();
    big.set_len(MAX_SIZE + 1).unwrap();
    for (name, why) in [
        ("b.json", "EOF"),
        ("c.yaml", "not a regular file"),
        ("d.json", "1 MiB"),
        ("e.json", "No such file"),
    ] {
        let format = Format::of(&at(name)).unwrap();
        let e = super::read(&at(name), format).unwrap_err().to_string();
        assert!(e.contains(name) && e.contains(why), "{e}");
    }
    for other in ["a.yml", "a.JSON", "json", "a", ".json"] {
        assert_eq!(Format::of(Path::new(other)), None, "{other}");
    }
}

fn read_ok(path: &Path) {
    super::read(path, Format::of(path).unwrap()).unwrap();
}
