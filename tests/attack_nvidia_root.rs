//! Hostile images against the work done in a root (nvidia.md's list of CVEs of NVIDIA's container
//! toolkit): whatever an image puts where a link, a cache or a library is expected, nothing of the
//! host changes, and nothing of the image is executed or loaded by the runtime.

mod cell_support;
mod gpu_support;
mod support;

use cell_support::{Cell, HostMount, host_mounts};
use gpu_support::*;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder of the host that an attack aims at, and how it was.
struct Target {
    dir: PathBuf,
    before: Vec<String>,
}

impl Target {
    fn new(cell: &Cell) -> Target {
        let dir = cell.outside("target");
        for sub in ["lib", "conf.d", "nvidia/params-dir", "compat"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        fs::write(dir.join("cache"), "the host's").unwrap();
        fs::write(dir.join("params"), "ModifyDeviceFiles: 1\n").unwrap();
        library(
            "cc",
            &dir.join("compat"),
            "libcuda.so.999.1",
            "libcuda.so.1",
            "host compat",
        );
        let before = snapshot(&dir);
        Target { dir, before }
    }

    /// Links that lead there for whoever resolves them outside of the root.
    fn links(&self, sub: &str) -> [PathBuf; 2] {
        let absolute = self.dir.join(sub);
        let up = "../".repeat(24) + absolute.to_str().unwrap().trim_start_matches('/');
        [absolute, PathBuf::from(up)]
    }

    fn untouched(&self) {
        assert_eq!(snapshot(&self.dir), self.before);
    }
}

fn folder() -> String {
    format!("/usr/lib/{MULTIARCH}")
}

/// A root with a loader and programs, without a cache.
fn image(cell: &Cell) -> PathBuf {
    let root = cell.root("/");
    merged_usr(&root);
    glibc(&root, &folder());
    programs("cc", &root);
    root
}

const DRIVER: [&str; 3] = ["linked driver", "libcuda.so.1 driver", "libcuda.so driver"];

/// CVE-2024-0132, CVE-2025-23359.
#[test]
fn compat_that_leads_out_is_not_used() {
    type Plant = fn(&Path, &Path);
    let plant: [(&str, Plant); 5] = [
        ("library is a folder", |compat, _| {
            fs::create_dir_all(compat.join("libcuda.so.999.1")).unwrap();
        }),
        ("library is a link to the host's", |compat, to| {
            fs::create_dir_all(compat).unwrap();
            symlink(to.join("libcuda.so.999.1"), compat.join("libcuda.so.999.1")).unwrap();
        }),
        ("library is a FIFO", |compat, _| {
            fs::create_dir_all(compat).unwrap();
            let fifo = compat.join("libcuda.so.999.1");
            nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }),
        ("folder is a link to the host's", |compat, to| {
            fs::create_dir_all(compat.parent().unwrap()).unwrap();
            symlink(to, compat).unwrap();
        }),
        ("two libraries", |compat, _| {
            for v in ["998.1", "999.1"] {
                library(
                    "cc",
                    compat,
                    &format!("libcuda.so.{v}"),
                    "libcuda.so.1",
                    "image",
                );
            }
        }),
    ];
    for (what, plant) in plant {
        for which in 0..2 {
            let mut cell = Cell::new(|_| {});
            let root = image(&cell);
            let target = Target::new(&cell);
            plant(
                &root.join("usr/local/cuda/compat"),
                &target.links("compat")[which],
            );
            inject(&mut cell, "cc", &folder());
            assert_eq!(origins(&mut cell), DRIVER, "{what}");
            assert!(!printed(&root).contains("compat"), "{what}");
            target.untouched();
        }
    }
}

/// The same, with a volume that another container may change at any time: it is not looked at.
#[test]
fn compat_on_a_volume_is_not_used() {
    let mut cell = Cell::new(|_| {});
    let root = image(&cell);
    let volume = cell.outside("volume");
    library("cc", &volume, "libcuda.so.999.1", "libcuda.so.1", "volume");
    symlink("libcuda.so.999.1", volume.join("libcuda.so.1")).unwrap();
    inject(&mut cell, "cc", &folder());
    cell.edit(|c| add_bind(c, &volume, "/usr/local/cuda/compat"));
    let before = snapshot(&volume);
    assert_eq!(origins(&mut cell), DRIVER);
    assert!(!printed(&root).contains("compat"));
    assert_eq!(snapshot(&volume), before);
}

/// CVE-2024-0133, CVE-2024-0134: folders that files are mounted into, or links made in.
#[test]
fn folders_that_lead_out_change_nothing_outside() {
    let paths = [
        format!("usr/lib/{MULTIARCH}/nvidia"),
        format!("lib/firmware/nvidia/{VERSION}"),
    ];
    for path in paths {
        for which in 0..2 {
            let mut cell = Cell::new(|_| {});
            let root = image(&cell);
            let target = Target::new(&cell);
            fs::create_dir_all(root.join(&path).parent().unwrap()).unwrap();
            symlink(&target.links("lib")[which], root.join(&path)).unwrap();
            inject(&mut cell, "cc", &format!("/{path}"));
            program(&mut cell, &["/bin/true"]);
            // There is no such folder in the root, and an image may not choose which to make.
            let done = cell.run(&[]);
            assert_ne!(done.code, 0, "{done:#?}");
            target.untouched();
            // Only the hooks: nothing is mounted there that would fail first.
            cell.edit(|c| {
                c["mounts"]
                    .as_array_mut()
                    .unwrap()
                    .retain(|m| m["type"] != "bind");
            });
            let done = cell.run(&[]);
            assert_ne!(done.code, 0, "{done:#?}");
            assert!(
                done.err.contains("make link") && done.err.contains("libcuda.so"),
                "{done:#?}"
            );
            target.untouched();
        }
    }
}

/// An image's link into a volume: the folder of the host behind it gets no link, file or mode.
#[test]
fn links_into_a_volume_change_nothing_in_it() {
    let volume_of = |cell: &mut Cell, target: &Target| {
        let dir = target.dir.clone();
        cell.edit(|c| {
            let mounts = c["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": "/vol", "source": dir, "type": "bind", "options": ["rbind", "rw"]}));
        });
    };
    let cases: [(&str, &str, &[&str], bool); 4] = [
        (
            "opt/lib",
            "/vol/lib",
            &["create-symlinks", "--link", "x.so.1::/opt/lib/x.so"],
            false,
        ),
        (
            "opt/mode",
            "/vol/params",
            &["chmod", "--mode", "777", "--path", "/opt/mode"],
            false,
        ),
        (
            "etc/ld.so.conf.d",
            "/vol/conf.d",
            &["update-ldcache", "--folder", "/opt/other"],
            true,
        ),
        // The link itself gives way to the file.
        (
            "etc/ld.so.cache",
            "/vol/cache",
            &["update-ldcache", "--folder", "/opt/other"],
            true,
        ),
    ];
    for (at, to, words, fine) in cases {
        let mut cell = Cell::new(|_| {});
        let root = image(&cell);
        let target = Target::new(&cell);
        fs::create_dir_all(root.join(at).parent().unwrap()).unwrap();
        symlink(to, root.join(at)).unwrap();
        volume_of(&mut cell, &target);
        cell.edit(|c| add_hook(c, words));
        program(&mut cell, &["/bin/true"]);
        let done = cell.run(&[]);
        assert_eq!(done.code == 0, fine, "{at}: {done:#?}");
        target.untouched();
    }
    // A read-only root: the volume's file is covered in the cell, and stays as it is.
    let mut cell = Cell::new(|c| c["root"]["readonly"] = json!(true));
    let root = image(&cell);
    let target = Target::new(&cell);
    symlink("/vol/cache", root.join("etc/ld.so.cache")).unwrap();
    volume_of(&mut cell, &target);
    inject(&mut cell, "cc", "/opt/nvidia");
    assert_eq!(origins(&mut cell), DRIVER);
    target.untouched();
}

/// CVE-2025-23267.
#[test]
fn cache_and_configuration_that_lead_out_change_nothing_outside() {
    for readonly in [false, true] {
        for which in 0..2 {
            for (at, to, fine) in [
                ("etc/ld.so.cache", "cache", !readonly),
                ("etc/ld.so.conf.d", "conf.d", true),
                ("etc", "conf.d", false),
            ] {
                let mut cell = Cell::new(|c| c["root"]["readonly"] = json!(readonly));
                let root = image(&cell);
                let target = Target::new(&cell);
                if at == "etc" {
                    fs::remove_dir_all(root.join("etc")).unwrap();
                }
                symlink(&target.links(to)[which], root.join(at)).unwrap();
                inject(&mut cell, "cc", "/opt/nvidia");
                program(&mut cell, &["/bin/linked"]);
                let done = cell.run(&[]);
                assert_eq!(done.code == 0, fine, "{at} {readonly}: {done:#?}");
                target.untouched();
            }
        }
    }
}

#[test]
fn what_is_no_file_where_the_cache_belongs_is_no_trap() {
    type Plant = fn(&Path);
    let plant: [(Plant, bool); 4] = [
        (
            |at| nix::unistd::mkfifo(at, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            true,
        ),
        (|at| fs::create_dir(at).unwrap(), false),
        (|at| fs::write(at, [0xff; 4096]).unwrap(), true),
        (|at| symlink("ld.so.cache", at).unwrap(), true),
    ];
    for (plant, fine) in plant {
        let mut cell = Cell::new(|_| {});
        let root = image(&cell);
        plant(&root.join("etc/ld.so.cache"));
        inject(&mut cell, "cc", "/opt/nvidia");
        program(&mut cell, &["/bin/linked"]);
        let done = cell.run(&[]);
        assert_eq!(done.code == 0, fine, "{done:#?}");
        if !fine {
            assert!(done.err.contains("/etc/ld.so.cache"), "{done:#?}");
        }
    }
}

/// The image's /proc as a link: what is covered there is covered in the cell, if at all.
#[test]
fn proc_that_leads_out_changes_nothing_outside() {
    for which in 0..2 {
        let mut cell = Cell::new(|c| {
            c["mounts"]
                .as_array_mut()
                .unwrap()
                .retain(|m| m["destination"] != "/proc");
            c["linux"]["maskedPaths"] = json!([]);
            c["linux"]["readonlyPaths"] = json!([]);
        });
        let root = image(&cell);
        let target = Target::new(&cell);
        fs::remove_dir_all(root.join("proc")).unwrap();
        symlink(&target.links("nvidia")[which], root.join("proc")).unwrap();
        let host = cell.outside("host-proc");
        fs::create_dir_all(host.join("driver/nvidia")).unwrap();
        fs::write(host.join("driver/nvidia/params"), "ModifyDeviceFiles: 1\n").unwrap();
        let config = proc_config(&cell, &host);
        cell.edit(|c| {
            add_hook(c, &["disable-device-node-modification"]);
            add_hook(c, &["show-gpus", "--gpu", "0000:01:00.0"]);
        });
        program(&mut cell, &["/bin/true"]);
        let mut command = cell.making("run", &[]);
        support::outcome(command.env("GPUCELL_CONFIG", &config)).ok();
        target.untouched();
    }
}

/// CVE-2024-0135, CVE-2024-0136, CVE-2024-0137: nothing of the image runs before the cell's program.
#[test]
fn the_images_own_ldconfig_and_libraries_are_not_run() {
    let mut cell = Cell::new(|_| {});
    let root = image(&cell);
    let marks = cell.outside("marks");
    let mark = marks.join("ran");
    for tool in [
        "sbin/ldconfig",
        "sbin/ldconfig.real",
        "usr/bin/nvidia-cdi-hook",
        "usr/bin/nvidia-ctk",
    ] {
        let path = root.join(tool);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\ntouch {}\n", mark.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // It would leave its mark on the host if the runtime loaded it.
    let text = format!(
        "#include <fcntl.h>\n__attribute__((constructor)) static void mark(void)\n\
         {{ open(\"{}\", O_CREAT | O_WRONLY, 0600); }}\n\
         const char *gpu_origin(void) {{ return \"compat\"; }}\n",
        mark.display()
    );
    let compat = root.join("usr/local/cuda/compat");
    let args = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"];
    compile("cc", &text, &compat.join("libcuda.so.999.1"), &args);
    symlink("libcuda.so.999.1", compat.join("libcuda.so.1")).unwrap();
    inject(&mut cell, "cc", &folder());
    let found = origins(&mut cell);
    assert_eq!(found[0], "linked compat", "{found:?}");
    assert!(fs::read_dir(&marks).unwrap().next().is_none());
}

/// CVE-2025-23266: a hook that is executed gets neither the image's environment nor its folder.
#[test]
fn a_hook_sees_nothing_of_the_images_environment() {
    let mut cell = Cell::new(|_| {});
    let root = image(&cell);
    let out = cell.outside("hook").join("out");
    let script = format!("env > {0}; pwd >> {0}", out.display());
    inject(&mut cell, "cc", &folder());
    cell.edit(|c| {
        let env = c["process"]["env"].as_array_mut().unwrap();
        env.push(json!("LD_PRELOAD=/proc/self/cwd/x.so"));
        env.push(json!("LD_LIBRARY_PATH=/proc/self/cwd"));
        let hooks = c["hooks"]["createContainer"].as_array_mut().unwrap();
        hooks.push(json!({"path": "/bin/sh", "args": ["sh", "-c", script]}));
    });
    program(&mut cell, &["/bin/true"]);
    cell.run(&[]).ok();
    let seen = fs::read_to_string(&out).unwrap();
    assert!(!seen.contains("LD_"), "{seen}");
    let cwd = Path::new(seen.lines().last().unwrap());
    assert!(cwd.is_absolute() && !cwd.starts_with(&root), "{seen}");
}

/// No mount of the work in the root shows on the host, on shared mounts and with a shared root.
#[test]
fn no_mount_leaks_to_the_host() {
    for propagation in ["", "rslave", "shared", "rshared"] {
        let mut cell = Cell::new(|c| {
            c["root"]["readonly"] = json!(true);
            c["linux"]["rootfsPropagation"] = json!(propagation);
        });
        image(&cell);
        inject(&mut cell, "cc", "/opt/nvidia");
        program(&mut cell, &["/bin/linked"]);
        let dir = cell.bundle.path();
        let _shared = HostMount::new(&["--bind", dir.to_str().unwrap()], &dir);
        let made = Command::new("mount")
            .arg("--make-shared")
            .arg(&dir)
            .status();
        assert!(made.unwrap().success());
        let before = host_mounts(dir.to_str().unwrap());
        cell.create(&[]).ok();
        assert_eq!(host_mounts(dir.to_str().unwrap()), before, "{propagation}");
        cell.verb("delete", &["--force"]).ok();
        assert_eq!(cell.run(&[]).ok().out, "linked driver\n");
        assert_eq!(host_mounts(dir.to_str().unwrap()), before, "{propagation}");
    }
}
