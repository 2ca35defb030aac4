use super::*;
use crate::cgroup::{Kind, READ, WRITE};
use crate::spec::edit::{DeviceNode, HookStage};
use oci_spec::runtime::{Hook, LinuxDeviceType, Mount};
use std::ffi::CString;

#[test]
fn the_state_is_read_in_both_spellings() {
    let rows = [
        (
            r#"{"ociVersion":"1.0.2","id":"a","pid":42,"bundle":"/b","status":"created"}"#,
            Some((Some(42), "/b")),
        ),
        (
            r#"{"pid":1,"bundlePath":"/run/x/","annotations":{"k":"v"}}"#,
            Some((Some(1), "/run/x/")),
        ),
        (
            r#"{"pid":1,"bundle":"/new","bundlePath":"/old"}"#,
            Some((Some(1), "/new")),
        ),
        (r#"{"pid":0,"bundle":"/b"}"#, Some((None, "/b"))),
        (r#"{"bundle":"/b"}"#, Some((None, "/b"))),
        (r#"{"pid":-4,"bundle":"/b"}"#, None),
        (r#"{"pid":99999999999,"bundle":"/b"}"#, None),
        (r#"{"pid":"42","bundle":"/b"}"#, None),
        (r#"{"pid":42,"bundle":"b"}"#, None),
        (r#"{"pid":42}"#, None),
        ("", None),
        ("[]", None),
        ("{\"pid\":", None),
    ];
    for (text, want) in rows {
        let got = State::read(text.as_bytes()).ok();
        let got = got.as_ref().map(|s| (s.pid, s.bundle.to_str().unwrap()));
        assert_eq!(got, want, "{text}");
    }
    let long = vec![b' '; STATE_MAX as usize + 1];
    assert!(State::read(&long[..]).is_err());
}

fn hook(path: &str, args: &[&str]) -> Edit {
    let mut hook = Hook::default();
    let args = args.iter().map(|a| (*a).to_owned()).collect();
    hook.set_path(path.into()).set_args(Some(args));
    let stage = HookStage::CreateContainer;
    Edit::new("nvidia.com/gpu=0", Change::Hook { stage, hook })
}

#[test]
fn what_comes_too_late_is_refused_by_name() {
    let known = hook(
        "/usr/bin/nvidia-cdi-hook",
        &["nvidia-cdi-hook", "update-ldcache", "--folder", "/lib"],
    );
    let mount = Edit::new("r", Change::Mount(Mount::default()));
    let gids = Edit::new("r", Change::AdditionalGids(vec![44, 105]));
    let away = Edit::new("r", Change::Unmount("/var/run/x".into()));
    let mut warnings = Vec::new();
    let kept = possible(
        vec![known.clone(), gids, away, mount.clone()],
        &mut warnings,
    );
    assert_eq!(kept.unwrap(), [known, mount]);
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("44, 105"), "{warnings:?}");

    let rows = [
        (
            Edit::new("nvidia.com/gpu=0", Change::Env("A=b".into())),
            "nvidia.com/gpu=0: the variable A",
        ),
        (hook("/opt/other", &["other"]), "the hook /opt/other"),
    ];
    for (edit, says) in rows {
        let e = possible(vec![edit], &mut Vec::new()).unwrap_err();
        assert!(e.to_string().contains(says), "{e}");
    }
}

fn container() -> Container {
    let text = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},
        "process":{"cwd":"/","user":{"uid":7,"gid":8}},
        "mounts":[{"destination":"/proc","type":"proc","source":"proc"}],
        "linux":{"devices":[{"path":"/dev/fuse","type":"c","major":10,"minor":229}],
                 "resources":{"devices":[{"allow":false,"access":"rwm"}]}}}"#;
    Container {
        spec: serde_json::from_str(text).unwrap(),
        bundle: "/b".into(),
        rootfs: "/b/rootfs".into(),
    }
}

#[test]
fn a_plan_holds_the_additions_alone() {
    let c = container();
    let node = DeviceNode {
        path: "/dev/nvidia0".into(),
        typ: Some(LinuxDeviceType::C),
        major: Some(195),
        minor: Some(0),
        permissions: Some("rw".into()),
        ..DeviceNode::default()
    };
    let mut mount = Mount::default();
    mount
        .set_destination("/usr/lib/libcuda.so.1".into())
        .set_source(Some("/driver/libcuda.so.1".into()))
        .set_typ(None)
        .set_options(Some(vec!["bind".into(), "ro".into()]));
    let edits = [
        Edit::new("x", Change::Device(node)),
        Edit::new("x", Change::Mount(mount)),
    ];
    let mut added = nothing();
    added.set_process(c.spec.process().clone());
    edit::apply(&mut added, &edits).unwrap();
    let plan = lower::added(&added, &c.spec, &c.context(true)).unwrap();
    let targets: Vec<&CString> = plan.mounts.iter().map(|m| &m.target).collect();
    assert_eq!(targets, [c"/usr/lib/libcuda.so.1"]);
    assert_eq!(plan.dev.nodes.len(), 1, "{:?}", plan.dev);
    let node = &plan.dev.nodes[0];
    assert_eq!(
        (node.path.as_c_str(), node.uid, node.gid),
        (c"/dev/nvidia0", 7, 8)
    );
    assert!(plan.dev.bind && plan.dev.links.is_empty());
    assert_eq!(plan.root.path.as_c_str(), c"/b/rootfs");
    let rules = rules(&added).unwrap();
    assert_eq!(rules.len(), 1, "{rules:?}");
    let rule = rules[0];
    assert_eq!((rule.kind, rule.major), (Kind::Char, Some(195)));
    assert_eq!(
        (rule.minor, rule.access, rule.allow),
        (Some(0), READ | WRITE, true)
    );

    // The host's own /dev has the host's nodes.
    let mut spec = c.spec.clone();
    let mut dev = Mount::default();
    dev.set_destination("/dev/".into())
        .set_typ(Some("bind".into()))
        .set_source(Some("/dev".into()));
    spec.set_mounts(Some(vec![dev]));
    let plan = lower::added(&added, &spec, &c.context(false)).unwrap();
    assert!(plan.dev.nodes.is_empty());
}

#[test]
fn an_edit_without_anything_is_an_empty_plan() {
    let plan = empty_plan(&container()).unwrap();
    assert!(plan.mounts.is_empty() && plan.dev.nodes.is_empty() && plan.in_root.steps.is_empty());
    assert!(nothing().hooks().is_none() && nothing().linux().is_none());
}
