//! Hostile images against the driver's own injection (nvidia.md's list of CVEs of NVIDIA's container
//! toolkit): its files, nodes and links go where the image says they belong, and that may be anywhere,
//! and may change at any moment. Nothing of the host changes or is seen, and no mount crosses over.

mod cell_support;
mod fakes;
mod gpu_support;
mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use cell_support::{Cell, HostMount, host_mounts, sections};
use fakes::{Fake, VERSION, shared_object};
use gpu_support::{compile, snapshot};
use serde_json::json;
use support::{Outcome, outcome};

/// A cell that asks for every GPU and all of the driver, and a folder of the host that it must not reach.
struct Attack {
    fake: Fake,
    cell: Cell,
    target: PathBuf,
    before: Vec<String>,
}

impl Attack {
    fn new() -> Attack {
        let cell = Cell::new(|c| {
            let env = c["process"]["env"].as_array_mut().unwrap();
            env.push(json!("NVIDIA_VISIBLE_DEVICES=all"));
            env.push(json!("NVIDIA_DRIVER_CAPABILITIES=all"));
        });
        let target = cell.outside("target");
        for sub in ["nvidia", "sub"] {
            fs::create_dir(target.join(sub)).unwrap();
        }
        for file in ["file", "ld.so.cache"] {
            fs::write(target.join(file), "the host's\n").unwrap();
        }
        let newer = shared_object("libcuda.so.1", true);
        fs::write(target.join("libcuda.so.999.1"), newer).unwrap();
        let before = snapshot(&target);
        let fake = Fake::new(2);
        Attack {
            fake,
            cell,
            target,
            before,
        }
    }

    /// What leads to the folder for whoever resolves it outside of the root.
    fn links(&self) -> [PathBuf; 3] {
        let absolute = self.target.to_str().unwrap();
        let up = "../".repeat(24) + absolute.trim_start_matches('/');
        // The descriptors of a careless process lead out, too.
        [
            absolute.into(),
            up.into(),
            "/proc/self/cwd/../target".into(),
        ]
    }

    /// Puts a link into the image.
    fn plant(&self, at: &str, to: &Path) {
        let at = self.cell.root(at);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&at);
        let _ = fs::remove_dir_all(&at);
        symlink(to, at).unwrap();
    }

    fn run(&mut self, words: &[&str]) -> Outcome {
        self.cell.words(words);
        let mut command = self.cell.making("run", &[]);
        outcome(command.env("GPUCELL_CONFIG", self.fake.config()))
    }

    fn untouched(&self, what: &str) {
        assert_eq!(snapshot(&self.target), self.before, "{what}");
    }
}

/// CVE-2024-0133, CVE-2024-0134, CVE-2025-23267: every folder the driver's files are mounted into.
#[test]
fn folders_that_lead_out() {
    let firmware = format!("/lib/firmware/nvidia/{VERSION}");
    for at in [
        "/usr",
        "/usr/lib64",
        "/usr/lib",
        "/usr/bin",
        "/usr/share",
        "/lib",
        "/lib/firmware",
        &firmware,
        "/run",
        "/etc",
        "/etc/ld.so.conf.d",
        "/etc/vulkan",
        "/usr/lib64/gbm",
        "/dev",
    ] {
        for which in 0..3 {
            let mut attack = Attack::new();
            attack.plant(at, &attack.links()[which]);
            let done = attack.run(&["cat", "/proc/self/mountinfo"]);
            attack.untouched(at);
            if done.code == 0 {
                assert!(!done.out.contains("/target"), "{at}: {done:#?}");
            } else {
                assert!(done.err.starts_with("gpucell: "), "{at}: {done:#?}");
            }
        }
    }
}

/// The files themselves: what is bound lies over the image's own link or file, in the cell alone.
#[test]
fn files_that_lead_out() {
    let lib = format!("/usr/lib64/libcuda.so.{VERSION}");
    let gsp = format!("/lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin");
    for at in [
        &lib,
        &gsp,
        "/usr/lib64/libcuda.so.1",
        "/usr/lib64/libcuda.so",
        "/usr/bin/nvidia-smi",
        "/etc/ld.so.cache",
        "/run/nvidia-persistenced/socket",
        "/dev/nvidia0",
        "/dev/nvidiactl",
        "/dev/nvidia-uvm",
    ] {
        for which in 0..3 {
            let mut attack = Attack::new();
            attack.plant(at, &attack.links()[which].join("file"));
            // The image's own /dev, as a bundle may have it.
            attack.cell.edit(|c| {
                let mounts = c["mounts"].as_array_mut().unwrap();
                mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
            });
            let done = attack.run(&["each", "cat", at, ";", "cat", "/proc/self/mountinfo"]);
            attack.untouched(at);
            if done.code == 0 {
                assert!(!done.out.contains("the host's"), "{at}: {done:#?}");
                assert!(!done.out.contains("/target"), "{at}: {done:#?}");
            } else {
                assert!(done.err.starts_with("gpucell: "), "{at}: {done:#?}");
            }
            // A node is never taken for granted, nor made through a link.
            if at.starts_with("/dev/") {
                assert_ne!(done.code, 0, "{at}: {done:#?}");
                assert!(done.err.contains(at), "{at}: {done:#?}");
            }
        }
    }
}

/// Exchanges two names without a pause, until dropped.
struct Swap<'s> {
    stop: &'s AtomicBool,
}

impl Drop for Swap<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// CVE-2026-24260, and the races of CVE-2024-0132 and CVE-2025-23359: another cell that has the same
/// files exchanges a folder or file for a link to the host's while this one is made.
#[test]
fn names_that_change_all_the_time() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let cases: [(&str, &str); 6] = [
        ("/usr/lib64", ""),
        ("/usr", ""),
        ("/etc", ""),
        ("/etc/ld.so.cache", "ld.so.cache"),
        (
            "/usr/local/cuda/compat/libcuda.so.999.1",
            "libcuda.so.999.1",
        ),
        ("/lib/firmware", ""),
    ];
    for (at, below) in cases {
        let mut attack = Attack::new();
        let real = attack.cell.root(at);
        if below.is_empty() {
            fs::create_dir_all(&real).unwrap();
        } else {
            fs::create_dir_all(real.parent().unwrap()).unwrap();
            // A library newer than the driver's, which would be taken.
            fs::write(&real, shared_object("libcuda.so.1", true)).unwrap();
        }
        let other = attack.cell.root("/other");
        // Never the absolute path alone: in the root it leads nowhere, and outside not far enough.
        symlink(attack.links()[1].join(below), &other).unwrap();
        let stop = AtomicBool::new(false);
        let mut outcomes = [0, 0];
        std::thread::scope(|scope| {
            let _swap = Swap { stop: &stop };
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = renameat_with(CWD, &real, CWD, &other, RenameFlags::EXCHANGE);
                    std::thread::yield_now();
                }
            });
            for _ in 0..15 {
                let done = attack.run(&["cat", "/proc/self/mountinfo"]);
                assert!(!done.out.contains("/target"), "{at}: {done:#?}");
                outcomes[usize::from(done.code != 0)] += 1;
                assert_eq!(snapshot(&attack.target), attack.before, "{at}");
                attack.cell.nothing_left();
            }
        });
        println!("{at}: {} cells made, {} refused", outcomes[0], outcomes[1]);
    }
}

/// Mounts over what its arguments name, then tells of its mounts.
const MOUNTER: &str = r#"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
int main(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        int file = !strcmp(argv[i], "bind");
        int bad = file ? mount("/bin/hello", argv[i + 1], 0, MS_BIND, 0)
                       : mount("leaked", argv[i + 1], "tmpfs", 0, 0);
        printf("%s %s\n", argv[i + 1], bad ? strerror(errno) : "mounted");
    }
    return 0;
}
"#;

/// A cell that may mount does so over what was injected; the host, whose mounts are shared, sees nothing.
/// And what the host mounts there later, the cell doesn't see.
#[test]
fn mounts_stay_on_their_side() {
    let mut attack = Attack::new();
    compile(
        "cc",
        MOUNTER,
        &attack.cell.root("/bin/mounter"),
        &["-static"],
    );
    let driver = attack.fake.root();
    // A folder of the driver, as an installation's own CDI file may bind it, beside files and sockets.
    let cdi = attack.cell.outside("cdi");
    let config = attack.cell.outside("config").join("config.toml");
    let folder = driver.join("usr/share");
    let device = json!({"cdiVersion": "0.5.0", "kind": "v.example/c", "devices": [{"name": "d",
        "containerEdits": {"mounts": [
            {"hostPath": folder, "containerPath": "/opt/share", "options": ["ro", "rbind"]}]}}]});
    fs::write(cdi.join("v.json"), device.to_string()).unwrap();
    let text =
        fs::read_to_string(attack.fake.config()).unwrap() + &format!("cdi-dirs = [{cdi:?}]\n");
    fs::write(&config, text).unwrap();

    let dir = attack.fake.path().to_owned();
    let _shared = HostMount::new(&["--bind", dir.to_str().unwrap()], &dir);
    let made = Command::new("mount")
        .arg("--make-rshared")
        .arg(&dir)
        .status();
    assert!(made.unwrap().success());
    let lib = format!("/usr/lib64/libcuda.so.{VERSION}");
    let args = [
        "/bin/mounter",
        "bind",
        &lib,
        "bind",
        "/usr/bin/nvidia-smi",
        "tmpfs",
        "/tmp/nvidia-mps",
        "bind",
        "/dev/nvidia0",
        "bind",
        "/run/nvidia-persistenced/socket",
    ];
    attack.cell.edit(|c| {
        for set in ["bounding", "effective", "permitted"] {
            let list = c["process"]["capabilities"][set].as_array_mut().unwrap();
            list.push(json!("CAP_SYS_ADMIN"));
        }
        c["process"]["args"] = json!(args);
    });
    let before = host_mounts(dir.to_str().unwrap());
    let mut command = attack.cell.making("run", &[]);
    let done = outcome(command.env("GPUCELL_CONFIG", &config)).ok();
    for at in args[1..].chunks(2) {
        assert_eq!(done.value(at[1]), "mounted", "{done:#?}");
    }
    assert_eq!(host_mounts(dir.to_str().unwrap()), before);

    let data = attack.cell.outside("data");
    let name = format!("{}/", attack.cell.bundle.path().display());
    let words = [
        "exec",
        "--store",
        data.to_str().unwrap(),
        "--device",
        "v.example/c=d",
        "--cap-add",
        "SYS_ADMIN",
        &name,
    ];
    let mut command = attack.cell.command(&words);
    command.args([
        "/bin/mounter",
        "tmpfs",
        "/opt/share",
        "tmpfs",
        "/opt/share/X11",
    ]);
    let done = outcome(command.env("GPUCELL_CONFIG", &config)).ok();
    assert_eq!(done.value("/opt/share"), "mounted", "{done:#?}");
    assert_eq!(host_mounts(dir.to_str().unwrap()), before);

    // The other way: the cell waits, the host mounts, the cell looks.
    attack.cell.words(&["sleep", "60"]);
    let log = attack.cell.outside("log").join("detached");
    let mut command = attack.cell.making("run", &["--detach"]);
    cell_support::quiet(
        {
            command.env("GPUCELL_CONFIG", &config);
            command
        },
        &log,
    )
    .ok();
    let pid = attack.cell.pid();
    let mountinfo = || fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let seen = mountinfo();
    assert!(seen.contains("/tmp/nvidia-mps"), "{seen}");
    let later = HostMount::new(&["-t", "tmpfs", "later"], &driver.join("tmp/nvidia-mps"));
    assert_eq!(mountinfo(), seen);
    drop(later);
    attack.cell.verb("delete", &["--force"]).ok();
}

/// An image's variables in messages: nothing that a terminal would act on, no line of its own.
#[test]
fn variables_are_shown_escaped() {
    let esc = "\u{1b}]0;owned\u{7}\ngpucell: all is well";
    for name in [
        "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES",
        "NVIDIA_REQUIRE_CUDA",
        "CUDA_VERSION",
        "NVIDIA_IMEX_CHANNELS",
    ] {
        let mut attack = Attack::new();
        attack.cell.edit(|c| {
            c["process"]["env"] = json!(["NVIDIA_VISIBLE_DEVICES=all", format!("{name}={esc}")]);
        });
        let done = attack.run(&["true"]);
        assert_ne!(done.code, 0, "{name}");
        assert!(!done.err.contains(['\u{1b}', '\u{7}']), "{done:#?}");
        assert_eq!(done.err.trim_end().lines().count(), 1, "{done:#?}");
    }
}

/// A FIFO or folder where a file is expected doesn't hold the runtime up.
#[test]
fn what_is_no_file_holds_nothing_up() {
    let fifo = |at: &Path| {
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        nix::unistd::mkfifo(at, nix::sys::stat::Mode::S_IRWXU).unwrap();
    };
    for at in [
        "/etc/debian_version",
        "/etc/ld.so.conf",
        "/usr/local/cuda/compat/libcuda.so.999.1",
    ] {
        let mut attack = Attack::new();
        let path = attack.cell.root(at);
        fifo(&path);
        let seen = attack.run(&["each", "ls", "/dev"]).ok();
        assert!(
            sections(&seen.out)[0].1.contains("nvidia0"),
            "{at}: {seen:#?}"
        );
    }
}
