use oci_spec::runtime::Hook;

use super::*;

fn hook(path: &str, args: &[&str]) -> Hook {
    let mut hook = Hook::default();
    hook.set_path(path.into());
    hook.set_args(Some(args.iter().map(|a| (*a).to_owned()).collect()));
    hook
}

fn cdi_hook(rest: &[&str]) -> Hook {
    hook(PROGRAM, &[&["nvidia-cdi-hook"], rest].concat())
}

fn read(rest: &[&str]) -> Option<Work> {
    Work::recognise(&cdi_hook(rest)).unwrap()
}

fn refused(rest: &[&str]) -> String {
    Work::recognise(&cdi_hook(rest)).unwrap_err().to_string()
}

fn links(all: &[(&str, &str)]) -> Work {
    Work::Symlinks(all.iter().map(|(t, l)| (t.into(), l.into())).collect())
}

#[test]
fn every_program_name_in_any_folder() {
    let want = Some(Work::LdCache(vec!["/usr/lib64".into()]));
    let rest = ["update-ldcache", "--folder", "/usr/lib64"];
    for (path, first) in [
        ("/usr/bin/nvidia-cdi-hook", &["nvidia-cdi-hook"][..]),
        ("/nix/store/abc/bin/nvidia-cdi-hook", &["anything"]),
        ("/usr/bin/nvidia-ctk", &["nvidia-ctk", "hook"]),
        (
            "/usr/local/nvidia/toolkit/nvidia-ctk",
            &["nvidia-ctk", "--debug=false", "hook"],
        ),
        ("/usr/bin/nvidia-ctk-hook", &["nvidia-ctk-hook"]),
    ] {
        let hook = hook(path, &[first, &rest].concat());
        assert_eq!(Work::recognise(&hook).unwrap(), want, "{path}");
    }
}

#[test]
fn other_programs_and_other_commands_are_left_alone() {
    for (path, args) in [
        // The name is the file's: what argv[0] says is only text.
        ("/bin/sh", &["nvidia-cdi-hook", "update-ldcache"][..]),
        ("/usr/bin/nvidia-ctk", &["nvidia-ctk", "cdi", "list"]),
        ("/usr/bin/nvidia-ctk", &["nvidia-ctk", "update-ldcache"]),
        ("/usr/bin/nvidia-ctk", &["nvidia-ctk"]),
        ("/usr/bin/nvidia-cdi-hook", &["nvidia-cdi-hook"]),
        ("/usr/bin/nvidia-cdi-hook", &["nvidia-cdi-hook", "new-work"]),
        ("/usr/bin/nvidia-cdi-hook", &["nvidia-cdi-hook", "--help"]),
        ("/usr/bin/nvidia-cdi-hook", &[]),
    ] {
        assert_eq!(
            Work::recognise(&hook(path, args)).unwrap(),
            None,
            "{args:?}"
        );
    }
    let mut bare = Hook::default();
    bare.set_path("/usr/bin/nvidia-cdi-hook".into());
    assert_eq!(Work::recognise(&bare).unwrap(), None);
}

#[test]
fn flags_as_the_toolkit_spells_them() {
    let want = Some(links(&[("a.so.1", "/l/a.so"), ("../b", "/l/c/b")]));
    for args in [
        &["--link", "a.so.1::/l/a.so", "--link", "../b::/l/c/b"][..],
        &["--link=a.so.1::/l/a.so", "--link=../b::/l/c/b"],
        &["-link", "a.so.1::/l/a.so", "-link=../b::/l/c/b"],
        &["--link", "a.so.1::/l/a.so,../b::/l/c/b"],
        // Twice the same, and a relative place: from the root.
        &[
            "--link=a.so.1::l/a.so,../b::/l/c/b",
            "--link=a.so.1::/l/a.so",
        ],
        &[
            "--container-spec",
            "-",
            "--link=a.so.1::/l/a.so,../b::/l/c/b",
        ],
        &["--debug", "--link=a.so.1::/l/a.so,../b::/l/c/b"],
    ] {
        assert_eq!(
            read(&[&["create-symlinks"], args].concat()),
            want,
            "{args:?}"
        );
    }
    assert_eq!(
        read(&[
            "enable-cuda-compat",
            "--host-driver-version=580.95.05",
            "--host-cuda-version=13.0",
            "--cuda-compat-container-root=/usr/local/cuda/compat",
        ]),
        Some(Work::CudaCompat {
            host_driver: "580.95.05".into()
        })
    );
    assert_eq!(
        read(&["update-ldcache", "--ldconfig-path", "/sbin/ldconfig"]),
        Some(Work::LdCache(Vec::new()))
    );
    assert_eq!(
        read(&["chmod", "--mode", "755", "--path", "/dev/dri", "--path=dev"]),
        Some(Work::Chmod {
            mode: 0o755,
            paths: vec!["/dev/dri".into(), "/dev".into()]
        })
    );
}

#[test]
fn what_only_the_program_can_do_is_left_to_it() {
    for args in [
        &["create-symlinks", "--csv-filename", "/etc/l4t.csv"][..],
        &["create-symlinks", "--container-spec", "/tmp/state"],
        &["disable-device-node-modification", "--container-spec=/s"],
        &["enable-cuda-compat", "--host-cuda-version", "12.4"],
        &["enable-cuda-compat"],
        &[
            "enable-cuda-compat",
            "--host-driver-version=550.54",
            "--cuda-compat-container-root=/opt/compat",
        ],
    ] {
        assert_eq!(read(args), None, "{args:?}");
    }
}

#[test]
fn bad_arguments_of_a_known_command_are_errors() {
    for (args, want) in [
        (&["create-symlinks", "--links", "a::b"][..], "--links"),
        (&["create-symlinks", "--link"], "needs a value"),
        (&["create-symlinks", "--link", "a"], "TARGET::LINK"),
        (&["create-symlinks", "--link", "a::b::c"], "TARGET::LINK"),
        (&["create-symlinks", "--link", "::b"], "TARGET::LINK"),
        (&["create-symlinks", "--link", "a::"], "TARGET::LINK"),
        (&["create-symlinks", "--link", "a::b\0c"], "NUL"),
        (&["create-symlinks", "a::b"], "unexpected argument"),
        (&["create-symlinks", "--"], "unexpected argument"),
        (&["update-ldcache", "--folder", "lib"], "absolute"),
        (&["update-ldcache", "--folder="], "absolute"),
        (&["update-ldcache", "--mode", "755"], "--mode"),
        (
            &["enable-cuda-compat", "--host-driver-version=5x"],
            "\"5x\"",
        ),
        (
            &["enable-cuda-compat", "--host-driver-version=5."],
            "\"5.\"",
        ),
        (&["disable-device-node-modification", "--x=1"], "--x"),
        (&["chmod", "--path", "/dev"], "--mode \"\""),
        (&["chmod", "--mode", "789", "--path", "/dev"], "octal"),
        (&["chmod", "--mode", "+755"], "octal"),
        (&["chmod", "--mode", "77777"], "octal"),
        (&["chmod", "--mode", "755", "--path", " "], "empty"),
    ] {
        let why = refused(args);
        assert!(why.contains(want), "{args:?}: {why}");
        assert!(
            why.starts_with("hook /usr/bin/nvidia-cdi-hook ") && why.contains(args[0]),
            "{why}"
        );
        assert!(!why.contains('\0'), "{why:?}");
    }
}

#[test]
fn written_work_is_read_back() {
    for work in [
        links(&[
            ("libcuda.so.1", "/usr/lib/libcuda.so"),
            ("../x", "/y z/x=1"),
        ]),
        links(&[]),
        Work::LdCache(vec!["/usr/lib64".into(), "/usr/lib".into()]),
        Work::LdCache(Vec::new()),
        Work::CudaCompat {
            host_driver: "550.163.01".into(),
        },
        Work::KeepDeviceNodes,
        Work::ApplicationProfile,
        Work::Chmod {
            mode: 0o755,
            paths: vec!["/dev/dri".into()],
        },
    ] {
        let edit = work.to_hook();
        assert_eq!(edit.hook_name, "createContainer");
        let mut hook = Hook::default();
        hook.set_path(edit.path).set_args(Some(edit.args));
        assert_eq!(Work::recognise(&hook).unwrap(), Some(work));
    }
}

#[test]
fn written_as_the_toolkit_writes_it() {
    let edit = links(&[(
        "../libnvidia-allocator.so.1",
        "/usr/lib64/gbm/nvidia-drm_gbm.so",
    )]);
    let edit = edit.to_hook();
    assert_eq!(edit.path.to_str(), Some("/usr/bin/nvidia-cdi-hook"));
    assert_eq!(
        edit.args,
        [
            "nvidia-cdi-hook",
            "create-symlinks",
            "--link",
            "../libnvidia-allocator.so.1::/usr/lib64/gbm/nvidia-drm_gbm.so"
        ]
    );
}

#[test]
fn a_path_that_the_command_line_cannot_hold_is_refused() {
    for work in [
        links(&[("a::b", "/l")]),
        links(&[("a,b", "/l")]),
        Work::LdCache(vec!["/a,b".into()]),
    ] {
        let edit = work.to_hook();
        let mut hook = Hook::default();
        hook.set_path(edit.path).set_args(Some(edit.args));
        assert!(Work::recognise(&hook).is_err(), "{work:?}");
    }
}

#[test]
fn the_profile_is_a_mask_of_minors() {
    assert_eq!(application_profile([]), None);
    assert_eq!(application_profile([64, 255]), None);
    assert_eq!(
        application_profile([0, 5, 63, 64]).unwrap(),
        r#"{"profiles":[{"name":"_container_","settings":["EGLVisibleDGPUDevices",0x8000000000000021]}],"rules":[{"pattern":[],"profile":"_container_"}]}"#
    );
}

#[test]
fn the_gpus_shown_are_bus_addresses() {
    let all = ["show-gpus", "--gpu", "0000:01:00.0", "--gpu=0000:02:00.0"];
    let want = Work::OnlyGpus(vec!["0000:01:00.0".into(), "0000:02:00.0".into()]);
    assert_eq!(read(&all), Some(want));
    assert_eq!(read(&["show-gpus"]), Some(Work::OnlyGpus(Vec::new())));
    for bad in ["", "..", "a/b"] {
        assert!(refused(&["show-gpus", "--gpu", bad]).contains("bus address"));
    }
}
