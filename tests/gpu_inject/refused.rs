//! What is asked for and can't be given is an error that says so, before anything is made.

use serde_json::json;

use crate::fakes::{Fake, VERSION};
use crate::machine::{Machine, gpu_nodes};

/// `run --bundle` fails with all of these in its words. That nothing is left, the cell's drop looks.
fn refused(m: &mut Machine, env: &[&str], words: &[&str]) {
    let before = m.cell.bundle.config["process"]["env"].clone();
    let usr = m.cell.root("/usr").exists();
    m.env(env);
    let done = m.run(&["true"]);
    m.edit(|c| c["process"]["env"] = before);
    assert_ne!(done.code, 0, "{env:?}");
    assert_eq!(done.out, "", "{done:#?}");
    for word in words {
        assert!(done.err.contains(word), "{word}: {done:#?}");
    }
    m.cell.nothing_left();
    assert_eq!(m.cell.root("/usr").exists(), usr, "{env:?}");
}

#[test]
fn gpus_nobody_has() {
    let mut m = Machine::new(2);
    for id in [
        "2",
        "GPU-00000000-0000-0000-0000-000000000000",
        "0:0",
        "0000:ff:00.0",
        "x",
    ] {
        let env = format!("NVIDIA_VISIBLE_DEVICES=0,{id}");
        refused(&mut m, &[&env], &[id]);
        let flag = format!("\"device=0,{id}\"");
        let done = m.exec(&["--gpus", &flag], &["true"]);
        assert_eq!(done.code, 125, "{done:#?}");
        assert!(done.err.contains(id), "{done:#?}");
    }
    let done = m.exec(&["--gpus", "3"], &["true"]);
    assert_eq!(done.code, 125, "{done:#?}");
    m.cell.nothing_left();
}

#[test]
fn requirements_that_do_not_hold() {
    let mut m = Machine::new(1);
    let all = "NVIDIA_VISIBLE_DEVICES=all";
    refused(
        &mut m,
        &[all, "NVIDIA_REQUIRE_CUDA=cuda>=99.1"],
        &["cuda>=99.1", "12.4"],
    );
    refused(
        &mut m,
        &[all, "NVIDIA_REQUIRE_X=driver<500 driver>=600,driver<999"],
        &["NVIDIA_REQUIRE_X", VERSION],
    );
    // An image from before NVIDIA_REQUIRE_CUDA; it asks by itself.
    refused(&mut m, &["CUDA_VERSION=99.2"], &["99.2", "CUDA_VERSION"]);
    m.env(&[
        all,
        "NVIDIA_REQUIRE_CUDA=cuda>=99.1",
        "NVIDIA_DISABLE_REQUIRE=1",
    ]);
    let has = m.nodes(&[0]);
    m.run_sees(&has, &[]);
    // The flag's GPUs have to meet them as well.
    let flags = ["--gpus", "all", "-e", "NVIDIA_DISABLE_REQUIRE=0"];
    let done = m.exec(&flags, &["true"]);
    assert_eq!(done.code, 125, "{done:#?}");
    assert!(done.err.contains("cuda>=99.1"), "{done:#?}");
}

#[test]
fn a_host_without_the_driver() {
    let mut m = Machine::new(1);
    std::fs::remove_dir_all(m.fake.path().join("proc/driver")).unwrap();
    // What an image says of itself.
    for env in ["NVIDIA_VISIBLE_DEVICES=all", "CUDA_VERSION=12.4.1"] {
        m.edit(|c| c["process"]["env"] = json!(["PATH=/bin", env]));
        let lacks = m.nodes(&[0]);
        let seen = m.run_sees(&[], &lacks);
        assert!(seen.err.contains("no NVIDIA driver is loaded"), "{seen:#?}");
        assert!(seen.err.contains(env), "{seen:#?}");
    }
    // What somebody asks for.
    m.edit(|c| c["process"]["env"] = json!(["PATH=/bin"]));
    for id in ["0", &Fake::uuid(0), "none"] {
        refused(
            &mut m,
            &[&format!("NVIDIA_VISIBLE_DEVICES={id}")],
            &["version"],
        );
    }
    for flag in ["all", "1", "device=0"] {
        let done = m.exec(&["--gpus", flag], &["true"]);
        assert_eq!(done.code, 125, "{done:#?}");
        assert!(done.err.contains("driver/nvidia/version"), "{done:#?}");
    }
    m.exec(&[], &["true"]).ok();
}

#[test]
fn the_administrator_may_turn_a_deaf_ear_to_images() {
    let mut m = Machine::new(2);
    m.config = "accept-environment-unprivileged = false\n".to_owned();
    m.env(&["NVIDIA_VISIBLE_DEVICES=0"]);
    let lacks = m.nodes(&[0, 1]);
    let seen = m.run_sees(&[], &lacks);
    assert!(
        seen.err.contains("accept-environment-unprivileged"),
        "{seen:#?}"
    );
    // The user's own word counts.
    m.exec_sees(
        &["--gpus", "device=1"],
        &m.nodes(&[1]),
        &gpu_nodes(&m, &[0]),
    );
    // A privileged cell could take them anyway.
    m.edit(|c| {
        let list = c["process"]["capabilities"]["bounding"].as_array_mut();
        list.unwrap().push(json!("CAP_SYS_ADMIN"));
    });
    let (has, lacks) = (m.nodes(&[0]), gpu_nodes(&m, &[1]));
    m.run_sees(&has, &lacks);
    // Capabilities are the administrator's to allow.
    m.config = "driver-capabilities = [\"utility\"]\n".to_owned();
    refused(
        &mut m,
        &["NVIDIA_DRIVER_CAPABILITIES=video"],
        &["video", "utility"],
    );
    m.config = "no-such-key = 1\n".to_owned();
    refused(&mut m, &[], &["no-such-key"]);
}

#[test]
fn a_driver_without_its_libraries() {
    let mut m = Machine::new(1);
    std::fs::remove_dir_all(m.fake.root().join("usr")).unwrap();
    refused(
        &mut m,
        &["NVIDIA_VISIBLE_DEVICES=all"],
        &["libcuda", VERSION],
    );
}
