//! scripts/gpu-acceptance on a driver that isn't there: what such a one can show passes, CUDA fails, and
//! the script says so and leaves nothing behind.

mod cell_support;
mod fakes;
mod support;

use fakes::Fake;
use std::fs;
use std::path::Path;
use std::process::Command;
use support::{GPUCELL, Outcome, outcome};

fn acceptance(fake: &Fake, dir: &Path, args: &[&str]) -> Outcome {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu-acceptance");
    let mut c = Command::new("python3");
    c.arg(script)
        .args(["--gpucell", GPUCELL])
        .args(args)
        .env("GPUCELL_CONFIG", fake.config())
        .env("TMPDIR", dir);
    outcome(&mut c)
}

/// The word before a check's name.
fn verdict<'a>(done: &'a Outcome, name: &str) -> &'a str {
    let row = |l: &&str| l.get(6..).is_some_and(|rest| rest.starts_with(name));
    let line = done.out.lines().find(row);
    let line = line.unwrap_or_else(|| panic!("no row {name:?}: {done:#?}"));
    line[..6].trim()
}

fn list(fake: &Fake, gpus: u32) {
    let mut text = "#!/bin/sh\n".to_owned();
    for i in 0..gpus {
        text += &format!("echo 'GPU {i}: NVIDIA A100 (UUID: {})'\n", Fake::uuid(i));
    }
    fs::write(fake.root().join("usr/bin/nvidia-smi"), text).unwrap();
}

#[test]
fn two_gpus_without_a_driver_behind_them() {
    let fake = Fake::new(2);
    list(&fake, 2);
    // Each test its own: they run at the same time.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let done = acceptance(&fake, dir.path(), &["-n", "3"]);
    for name in [
        "nvidia-smi",
        "libcuda.so.1",
        "cell without a GPU",
        "cell with GPU 0",
        "the other GPU",
        "nodes of GPU 0 alone",
    ] {
        assert_eq!(verdict(&done, name), "pass", "{name}: {done:#?}");
    }
    // Nothing in the library can answer.
    assert_eq!(verdict(&done, "CUDA"), "FAIL", "{done:#?}");
    verdict(&done, "cost of injection");
    assert_eq!(done.code, 1, "{done:#?}");
    let mounts = cell_support::host_mounts(dir.path().to_str().unwrap());
    assert_eq!(mounts, Vec::<String>::new());
}

#[test]
fn a_missing_gpu_and_a_missing_driver_are_told() {
    let fake = Fake::new(1);
    // The program lists one GPU less than there is.
    list(&fake, 0);
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let done = acceptance(&fake, dir.path(), &["-n", "1"]);
    assert_eq!(verdict(&done, "nvidia-smi"), "FAIL", "{done:#?}");
    assert_eq!(verdict(&done, "the other GPU"), "skip", "{done:#?}");
    assert_eq!(done.code, 1);

    fs::remove_dir_all(fake.host().proc.join("driver")).unwrap();
    let done = acceptance(&fake, dir.path(), &[]);
    assert!(done.code == 2 && done.out.is_empty(), "{done:#?}");
    assert!(done.err.starts_with("gpu-acceptance: "), "{done:#?}");
}
