//! By whatever name GPUs are asked for, the cell has those and no others.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::fakes::{CAPS, Fake, VERSION};
use crate::machine::{Machine, gpu_nodes, others};

/// The number that this host's other drivers for GPUs have.
const OTHERS: u64 = 510;

#[test]
fn by_the_environment_of_a_bundle() {
    for count in [1, 2, 8] {
        let all: Vec<u32> = (0..count).collect();
        let mut rows = vec![
            ("all".to_owned(), all.clone()),
            ("0".to_owned(), vec![0]),
            (Fake::uuid(count - 1), vec![count - 1]),
            (Fake::bus(0), vec![0]),
            ("none".to_owned(), vec![]),
        ];
        if count == 8 {
            let two = format!(" 6, {},6", Fake::uuid(3));
            rows.push((two, vec![6, 3]));
        }
        for (value, gpus) in rows {
            let mut m = Machine::new(count);
            m.env(&[&format!("NVIDIA_VISIBLE_DEVICES={value}")]);
            let has = m.nodes(&gpus);
            let lacks = gpu_nodes(&m, &others(count, &gpus));
            m.run_sees(&has, &lacks);
            // The second time all mount points, links and files are there.
            m.run_sees(&has, &lacks);
        }
    }
}

#[test]
fn nothing_asked_is_nothing_given() {
    for env in [
        None,
        Some("NVIDIA_VISIBLE_DEVICES="),
        Some("NVIDIA_VISIBLE_DEVICES=void"),
        Some("NVIDIA_VISIBLE_DEVICES=0,void"),
    ] {
        let mut m = Machine::new(2);
        m.env(env.as_slice());
        let lacks = m.nodes(&[0, 1]);
        m.run_sees(&[], &lacks);
        assert!(!m.cell.root("/usr").exists(), "{env:?}");
    }
}

#[test]
fn by_the_flag_of_docker() {
    let m = Machine::new(8);
    let uuid = format!("device={}", Fake::uuid(2));
    let rows: [(&[&str], &str, &[u32]); 6] = [
        (&["--gpus", "all"], "all", &[0, 1, 2, 3, 4, 5, 6, 7]),
        (&["--gpus", "2"], "0,1", &[0, 1]),
        (&["--gpus", "device=5"], "5", &[5]),
        (&["--gpus", "\"device=0,7\""], "0,7", &[0, 7]),
        (&["--gpus", &uuid], &uuid["device=".len()..], &[2]),
        // The flag is the user's, the variable the image's.
        (
            &["-e", "NVIDIA_VISIBLE_DEVICES=1", "--gpus", "device=5"],
            "5",
            &[5],
        ),
    ];
    for (flags, value, gpus) in rows {
        let has = m.nodes(gpus);
        let lacks = gpu_nodes(&m, &others(8, gpus));
        m.exec_sees(flags, &has, &lacks);
        let env = m.exec(flags, &["env"]).ok().out;
        let line = format!("NVIDIA_VISIBLE_DEVICES={value}");
        assert!(env.lines().any(|l| l == line), "{flags:?}: {env}");
    }
    m.exec_sees(
        &["-e", "NVIDIA_VISIBLE_DEVICES=1"],
        &m.nodes(&[1]),
        &gpu_nodes(&m, &others(8, &[1])),
    );
    m.exec_sees(&[], &[], &m.nodes(&[0, 7]));
}

#[test]
fn mig_devices_come_with_their_two_capabilities() {
    let mut m = Machine::new(2);
    for (gpu, gi, ci) in [(1, 2, 0), (1, 2, 1), (1, 5, 0)] {
        m.fake.mig(gpu, gi, ci);
    }
    let rest = m.caps(&[(1, 2, 1), (1, 5, 0)]);
    let mut has = m.nodes(&[1]);
    has.extend(m.caps(&[(1, 2, 0)]));
    let mut lacks = gpu_nodes(&m, &[0]);
    lacks.extend(rest.into_iter().filter(|n| !has.contains(n)));
    m.env(&["NVIDIA_VISIBLE_DEVICES=1:0"]);
    m.run_sees(&has, &lacks);
    // A split GPU as a whole: all its parts.
    let mut has = m.nodes(&[1]);
    has.extend(m.caps(&[(1, 2, 0), (1, 2, 1), (1, 5, 0)]));
    m.exec_sees(&["--gpus", "device=1"], &has, &gpu_nodes(&m, &[0]));
    // MIG's control: only for a privileged cell.
    let mut m = Machine::new(1);
    m.env(&[
        "NVIDIA_VISIBLE_DEVICES=all",
        "NVIDIA_MIG_MONITOR_DEVICES=all",
    ]);
    let done = m.run(&["true"]);
    assert_ne!(done.code, 0);
    assert!(done.err.contains("NVIDIA_MIG_MONITOR_DEVICES"), "{done:#?}");
    m.edit(|c| {
        let list = c["process"]["capabilities"]["bounding"].as_array_mut();
        list.unwrap().push(json!("CAP_SYS_ADMIN"));
    });
    let mut has = m.nodes(&[0]);
    has.push(("nvidia-caps/nvidia-cap2".to_owned(), CAPS, 2));
    m.run_sees(&has, &[("nvidia-caps/nvidia-cap1".to_owned(), CAPS, 1)]);
}

#[test]
fn channels_and_switches_add_their_nodes() {
    let mut m = Machine::new(2);
    for (name, minor) in [
        ("nvidia-fs0", 0),
        ("nvidia-nvswitch0", 1),
        ("nvidia-nvswitchctl", 2),
    ] {
        assert!(m.fake.node(name, OTHERS, minor, 0o666));
    }
    m.env(&[
        "NVIDIA_VISIBLE_DEVICES=1",
        "NVIDIA_IMEX_CHANNELS=0,7",
        "NVIDIA_NVSWITCH=enabled",
    ]);
    let mut has = m.nodes(&[1]);
    has.extend(Machine::channels(&[0, 7]));
    has.push(("nvidia-nvswitch0".to_owned(), OTHERS, 1));
    has.push(("nvidia-nvswitchctl".to_owned(), OTHERS, 2));
    let mut lacks = gpu_nodes(&m, &[0]);
    lacks.extend(Machine::channels(&[1]));
    lacks.push(("nvidia-fs0".to_owned(), OTHERS, 0));
    m.run_sees(&has, &lacks);
}

#[test]
fn by_cdi_names() {
    let mut m = Machine::new(2);
    let dir = m.cell.outside("cdi");
    m.config = format!("cdi-dirs = [{dir:?}]\n");
    let file = dir.join("nvidia.yaml");
    let output = file.to_str().unwrap();
    let words = ["cdi", "generate", "--output", output];
    crate::support::outcome(&mut m.command(&words)).ok();
    // All capabilities are in the file: nvidia-modeset, too.
    let with_modeset = |m: &Machine, gpus: &[u32]| {
        let mut has = m.nodes(gpus);
        has.push(("nvidia-modeset".to_owned(), 195, 254));
        has
    };
    let lacks = gpu_nodes(&m, &[0]);
    let has = with_modeset(&m, &[1]);
    let uuid = format!("nvidia.com/gpu={}", Fake::uuid(1));
    for name in ["nvidia.com/gpu=1", &uuid] {
        m.exec_sees(&["--device", name], &has, &lacks);
    }
    m.exec_sees(
        &[
            "--device",
            "nvidia.com/gpu=0",
            "--device",
            "nvidia.com/gpu=1",
        ],
        &with_modeset(&m, &[0, 1]),
        &[],
    );
    // The annotation goes before the environment.
    m.env(&["NVIDIA_VISIBLE_DEVICES=0"]);
    m.edit(|c| c["annotations"] = json!({"cdi.k8s.io/plugin_x": "nvidia.com/gpu=1"}));
    m.run_sees(&has, &lacks);
    // A name nobody knows.
    let done = m.exec(&["--device", "nvidia.com/gpu=7"], &["true"]);
    assert_ne!(done.code, 0);
    assert!(done.err.contains("nvidia.com/gpu=7"), "{done:#?}");
    // Another vendor's device, beside GPUs of the driver.
    let other = r#"{"cdiVersion": "0.5.0", "kind": "v.example/c", "devices": [{"name": "d",
        "containerEdits": {"env": ["CDI=yes"]}}]}"#;
    fs::write(dir.join("other.json"), other).unwrap();
    let flags = ["--device", "v.example/c=d", "--gpus", "device=1"];
    m.edit(|c| c["annotations"] = json!({}));
    m.exec_sees(&flags, &m.nodes(&[1]), &lacks);
    let env = m.exec(&flags, &["env"]).ok().out;
    assert!(env.lines().any(|l| l == "CDI=yes"), "{env}");
}

#[test]
fn by_the_hook_that_docker_adds() {
    let mut m = Machine::new(2);
    let seen = m.cell.outside("hook").join("seen");
    let other = format!("cat > {}", seen.display());
    m.env(&["NVIDIA_VISIBLE_DEVICES=1"]);
    m.edit(|c| {
        c["hooks"] = json!({"prestart": [
            {"path": "/nowhere/nvidia-container-runtime-hook",
             "args": ["nvidia-container-runtime-hook", "prestart"], "env": ["PATH=/usr/bin"]},
            {"path": "/bin/sh", "args": ["sh", "-c", other]}
        ]});
    });
    let (has, lacks) = (m.nodes(&[1]), gpu_nodes(&m, &[0]));
    m.run_sees(&has, &lacks);
    assert!(fs::read_to_string(&seen).unwrap().contains("ociVersion"));
    // Docker's users mean it: no driver is an error, not a warning.
    m.edit(|c| c["process"]["env"] = json!(["NVIDIA_VISIBLE_DEVICES=all"]));
    fs::remove_file(m.fake.path().join("proc/driver/nvidia/version")).unwrap();
    let done = m.run(&["true"]);
    assert_ne!(done.code, 0, "{done:#?}");
}

#[test]
fn groups_that_own_a_node_are_the_programs() {
    let mut m = Machine::new(2);
    m.restrict("nvidia1", 195, 1, 4444);
    m.restrict("nvidia0", 195, 0, 5555);
    m.env(&["NVIDIA_VISIBLE_DEVICES=0"]); // minor 1
    let seen = m.run(&["each", "id", ";", "stat", "/dev/nvidia1"]).ok();
    let groups: Vec<&str> = seen.value("groups").split(' ').collect();
    assert!(
        groups.contains(&"4444") && !groups.contains(&"5555"),
        "{seen:#?}"
    );
    assert!(
        seen.out.contains("/dev/nvidia1 char 0660 0:4444 "),
        "{seen:#?}"
    );
}

#[test]
fn nodes_the_host_lacks_are_in_the_cell() {
    let mut m = Machine::new(1);
    for name in ["nvidia-uvm", "nvidia-uvm-tools", "nvidiactl"] {
        fs::remove_file(m.fake.path().join("dev").join(name)).unwrap();
    }
    // A node from before the module was loaded again.
    assert!(m.fake.node("nvidia0", 195, 9, 0o666));
    m.env(&["NVIDIA_VISIBLE_DEVICES=0"]);
    let has = m.nodes(&[0]);
    m.run_sees(&has, &[]);
}

#[test]
fn files_of_the_driver_are_there_and_stay_as_they_are() {
    let mut m = Machine::new(1);
    m.env(&["NVIDIA_VISIBLE_DEVICES=all"]);
    let lib = format!("/usr/lib64/libcuda.so.{VERSION}");
    let firmware = format!("/lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin");
    let seen = m
        .run(&[
            "each",
            "stat",
            &lib,
            ";",
            "stat",
            "/usr/lib64/libcuda.so.1",
            ";",
            "stat",
            "/usr/bin/nvidia-smi",
            ";",
            "write",
            &lib,
            "x",
            ";",
            "cat",
            &firmware,
            ";",
            "cat",
            "/proc/self/mountinfo",
        ])
        .ok();
    let got = crate::cell_support::sections(&seen.out);
    assert!(got[0].1.contains(" file "), "{seen:#?}");
    assert!(
        got[1]
            .1
            .trim_end()
            .ends_with(&format!("-> libcuda.so.{VERSION}")),
        "{seen:#?}"
    );
    assert!(got[2].1.contains(" file 0755"), "{seen:#?}");
    assert_eq!(got[3].1.trim(), "EROFS 30");
    assert_eq!(got[4].1.trim(), "gsp_ga10x.bin");
    let over = crate::cell_support::mounted(&got[5].1, &lib).unwrap();
    for option in ["ro", "nosuid", "nodev"] {
        assert!(over.has(option), "{over:?}");
    }
    assert!(over.propagation.is_empty(), "{over:?}");
    let socket = "/run/nvidia-persistenced/socket";
    let over = crate::cell_support::mounted(&got[5].1, socket).unwrap();
    assert!(over.has("noexec") && over.has("rw"), "{over:?}");
    // The mount points are empty files.
    let point = fs::metadata(m.cell.root(&lib)).unwrap();
    assert_eq!((point.len(), point.permissions().mode() & 0o022), (0, 0));
}
