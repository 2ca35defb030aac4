//! The driver's libraries in root file systems of every kind: the image's own loader finds them, and
//! nothing of the image, nor a variable of the environment, had to be prepared for it.

mod cell_support;
mod gpu_support;
mod support;

use cell_support::Cell;
use gpu_support::*;
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

const FOUND: [&str; 3] = ["linked driver", "libcuda.so.1 driver", "libcuda.so driver"];

fn debian_folder() -> String {
    format!("/usr/lib/{MULTIARCH}")
}

/// Debian: merged /usr, multiarch, ld.so.conf.d, a cache.
fn debian(root: &Path) {
    merged_usr(root);
    glibc(root, &debian_folder());
    fs::write(root.join("etc/debian_version"), "12.1\n").unwrap();
    fs::create_dir_all(root.join("etc/ld.so.conf.d")).unwrap();
    fs::write(
        root.join("etc/ld.so.conf"),
        "include /etc/ld.so.conf.d/*.conf\n",
    )
    .unwrap();
    let conf = format!(
        "/usr/local/lib/{MULTIARCH}\n/lib/{MULTIARCH}\n{}\n",
        debian_folder()
    );
    fs::write(root.join("etc/ld.so.conf.d/multiarch.conf"), conf).unwrap();
    ldconfig(root);
    programs("cc", root);
}

#[test]
fn debian_finds_the_driver() {
    let mut cell = Cell::new(|_| {});
    let root = cell.root("/");
    debian(&root);
    inject(&mut cell, "cc", &debian_folder());
    assert_eq!(origins(&mut cell), FOUND);
    // The links are there, relative as the hook and ldconfig make them.
    let link = |name: &str| fs::read_link(root.join(&debian_folder()[1..]).join(name)).unwrap();
    assert_eq!(
        link("libcuda.so.1"),
        Path::new(&format!("libcuda.so.{VERSION}"))
    );
    assert_eq!(link("libcuda.so"), Path::new("libcuda.so.1"));
    // What the image's cache had is still in it.
    assert!(printed(&root).contains("libc.so.6 "), "{}", printed(&root));
    // The folder is one of the image's own: no drop-in.
    assert!(!root.join("etc/ld.so.conf.d/00-gpucell.conf").exists());
    // No temporary name is left.
    let names = fs::read_dir(root.join("etc")).unwrap().flatten();
    assert!(
        !names
            .map(|e| e.file_name())
            .any(|n| n.to_string_lossy().starts_with(".gpucell"))
    );
}

#[test]
fn a_later_ldconfig_in_the_cell_keeps_the_driver() {
    let mut cell = Cell::new(|_| {});
    let root = cell.root("/");
    debian(&root);
    copy("/usr/sbin/ldconfig", &root.join("usr/sbin/ldconfig"));
    // A folder the image knows nothing of, as with a driver at a place of its own.
    inject(&mut cell, "cc", "/opt/nvidia/lib");
    program(&mut cell, &["/usr/sbin/ldconfig"]);
    cell.run(&[]).ok();
    let conf = fs::read_to_string(root.join("etc/ld.so.conf.d/00-gpucell.conf")).unwrap();
    assert_eq!(conf, "/opt/nvidia/lib\n");
    // The bind mount is gone with its cell, so that what ldconfig saw is only seen in its cache.
    let cache = printed(&root);
    assert!(
        cache.contains("libcuda.so.1 ") && cache.contains("libc.so.6 "),
        "{cache}"
    );
    assert!(!cache.contains("gpucell "), "ldconfig wrote it: {cache}");
    assert_eq!(origins(&mut cell), FOUND);
}

#[test]
fn without_the_hooks_nothing_is_found() {
    let mut cell = Cell::new(|_| {});
    debian(&cell.root("/"));
    inject(&mut cell, "cc", "/opt/nvidia/lib");
    cell.edit(|c| c["hooks"]["createContainer"] = json!([]));
    program(&mut cell, &["/bin/linked"]);
    let done = cell.run(&[]);
    assert_eq!(done.code, 127, "{done:#?}");
    assert!(done.err.contains("libcuda.so.1"), "{done:#?}");
}

#[test]
fn red_hats_layout_finds_the_driver() {
    let mut cell = Cell::new(|_| {});
    let root = cell.root("/");
    merged_usr(&root);
    glibc(&root, "/usr/lib64");
    // This machine's loader doesn't search lib64 by itself: all comes from the cache.
    fs::write(root.join("etc/ld.so.conf"), "/usr/lib64\n").unwrap();
    ldconfig(&root);
    programs("cc", &root);
    inject(&mut cell, "cc", "/usr/lib64");
    assert_eq!(origins(&mut cell), FOUND);
}

#[test]
fn distroless_without_a_cache_finds_the_driver() {
    // Two folders: one the loader searches anyway, one it doesn't.
    for folder in [
        format!("/lib/{MULTIARCH}"),
        "/usr/local/nvidia/lib64".to_owned(),
    ] {
        for readonly in [false, true] {
            let mut cell = Cell::new(|c| c["root"]["readonly"] = json!(readonly));
            let root = cell.root("/");
            glibc(&root, &format!("/lib/{MULTIARCH}"));
            programs("cc", &root);
            assert!(!root.join("etc/ld.so.cache").exists());
            inject(&mut cell, "cc", &folder);
            assert_eq!(origins(&mut cell), FOUND, "{folder} {readonly}");
        }
    }
}

#[test]
fn musl_finds_the_driver() {
    let loader = format!("ld-musl-{}.so.1", std::env::consts::ARCH);
    let host = [
        format!("/lib/{loader}"),
        format!("/lib/{}-linux-musl/libc.so", std::env::consts::ARCH),
    ];
    let from = host.iter().find(|p| Path::new(p).exists());
    let from = from.expect("musl's loader: apt-get install musl-tools");
    for own in [None, Some("/lib:/usr/lib\n")] {
        let mut cell = Cell::new(|_| {});
        let root = cell.root("/");
        copy(from, &root.join("lib").join(&loader));
        symlink(
            &loader,
            root.join("lib")
                .join(format!("libc.musl-{}.so.1", std::env::consts::ARCH)),
        )
        .unwrap();
        fs::write(root.join("etc/alpine-release"), "3.20.0\n").unwrap();
        let path = root.join(format!("etc/ld-musl-{}.path", std::env::consts::ARCH));
        if let Some(text) = own {
            fs::write(&path, text).unwrap();
        }
        programs("musl-gcc", &root);
        inject(&mut cell, "musl-gcc", "/usr/lib64");
        assert_eq!(origins(&mut cell), FOUND);
        let text = fs::read_to_string(&path).unwrap();
        let default = own.map_or("/lib:/usr/local/lib:/usr/lib", str::trim_end);
        assert_eq!(text, format!("{default}\n/usr/lib64\n"));
        // glibc's cache is nothing to musl.
        assert!(!root.join("etc/ld.so.cache").exists());
    }
}

#[test]
fn a_libcuda_of_the_image_comes_second() {
    let dirs = [debian_folder(), "/opt/cuda/lib".to_owned()];
    for dir in dirs {
        let mut cell = Cell::new(|_| {});
        let root = cell.root("/");
        debian(&root);
        fs::write(
            root.join("etc/ld.so.conf.d/000-own.conf"),
            format!("{dir}\n"),
        )
        .unwrap();
        // Newer than the driver's: ldconfig would prefer it.
        let own = root.join(&dir[1..]);
        library("cc", &own, "libcuda.so.999.1", "libcuda.so.1", "image");
        symlink("libcuda.so.1", own.join("libcuda.so")).unwrap();
        ldconfig(&root);
        inject(&mut cell, "cc", &debian_folder());
        assert_eq!(origins(&mut cell), FOUND, "{dir}");
        assert!(own.join("libcuda.so.999.1").exists());
    }
}

#[test]
fn a_plain_file_of_the_soname_gives_way() {
    let mut cell = Cell::new(|_| {});
    let root = cell.root("/");
    debian(&root);
    library(
        "cc",
        &root.join(&debian_folder()[1..]),
        "libcuda.so.1",
        "libcuda.so.1",
        "image",
    );
    ldconfig(&root);
    inject(&mut cell, "cc", &debian_folder());
    assert_eq!(origins(&mut cell), FOUND);
}

#[test]
fn compat_libraries_come_first_when_they_are_newer() {
    for (version, first) in [
        ("570.10.01", "compat"),
        ("545.10.01", "driver"),
        ("550.200.01", "driver"),
    ] {
        let mut cell = Cell::new(|_| {});
        let root = cell.root("/");
        debian(&root);
        // As in NVIDIA's images: two links on the way.
        let compat = root.join("usr/local/cuda-12.9/compat");
        let file = format!("libcuda.so.{version}");
        library("cc", &compat, &file, "libcuda.so.1", "compat");
        symlink(&file, compat.join("libcuda.so.1")).unwrap();
        symlink("libcuda.so.1", compat.join("libcuda.so")).unwrap();
        fs::create_dir_all(root.join("etc/alternatives")).unwrap();
        symlink("/usr/local/cuda-12.9", root.join("etc/alternatives/cuda")).unwrap();
        symlink("/etc/alternatives/cuda", root.join("usr/local/cuda")).unwrap();
        inject(&mut cell, "cc", &debian_folder());
        let expected = FOUND.map(|line| line.replace("driver", first));
        assert_eq!(origins(&mut cell), expected, "{version}");
    }
}

#[test]
fn a_read_only_root_finds_the_driver_and_is_not_written() {
    let mut cell = Cell::new(|c| c["root"]["readonly"] = json!(true));
    let root = cell.root("/");
    debian(&root);
    let before = fs::read(root.join("etc/ld.so.cache")).unwrap();
    inject(&mut cell, "cc", "/opt/nvidia/lib");
    assert_eq!(origins(&mut cell), FOUND);
    assert_eq!(fs::read(root.join("etc/ld.so.cache")).unwrap(), before);
    assert!(!root.join("etc/ld.so.conf.d/00-gpucell.conf").exists());
    // The mount over it can't be written either, nor is the file system it came from in sight.
    let got = cell.each(&[
        &["write", "/etc/ld.so.cache", "x"],
        &["cat", "/proc/self/mountinfo"],
        &["ls", "/"],
    ]);
    assert_ne!(got[0].0, 0, "{got:?}");
    let over = cell_support::mounted(&got[1].1, "/etc/ld.so.cache").unwrap();
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(
            over.options.iter().any(|o| o == option),
            "{:?}",
            over.options
        );
    }
    assert!(over.propagation.is_empty(), "{:?}", over.propagation);
    assert_eq!(
        got[1]
            .1
            .lines()
            .filter(|l| l.split(' ').nth(4) == Some("/"))
            .count(),
        1
    );
    assert!(got[2].1.contains("bin"), "{got:?}");
}

#[test]
fn a_bound_folder_of_libraries_is_found() {
    let mut cell = Cell::new(|_| {});
    let root = cell.root("/");
    debian(&root);
    let host = cell.outside("driver");
    let file = format!("libcuda.so.{VERSION}");
    library("cc", &host, &file, "libcuda.so.1", "driver");
    symlink(&file, host.join("libcuda.so.1")).unwrap();
    symlink("libcuda.so.1", host.join("libcuda.so")).unwrap();
    let before = snapshot(&host);
    cell.edit(|c| {
        add_bind(c, &host, "/opt/driver/lib");
        add_hook(c, &["update-ldcache", "--folder", "/opt/driver/lib"]);
    });
    assert_eq!(origins(&mut cell), FOUND);
    assert_eq!(snapshot(&host), before);
}

#[test]
fn params_are_covered_and_other_gpus_hidden() {
    // A root without procfs, so that the driver's folder can be made by hand.
    let mut cell = Cell::new(|c| {
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.retain(|m| m["destination"] != "/proc");
        c["linux"]["maskedPaths"] = json!([]);
        c["linux"]["readonlyPaths"] = json!([]);
    });
    let dir = cell.root("/proc/driver/nvidia");
    for gpu in ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"] {
        fs::create_dir_all(dir.join("gpus").join(gpu)).unwrap();
        fs::write(dir.join("gpus").join(gpu).join("information"), gpu).unwrap();
    }
    fs::write(dir.join("params"), "ModifyDeviceFiles: 1\n").unwrap();
    let host = cell.outside("host-proc");
    fs::create_dir_all(host.join("driver/nvidia")).unwrap();
    let text = "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileMode: 438\n";
    fs::write(host.join("driver/nvidia/params"), text).unwrap();
    let config = proc_config(&cell, &host);
    cell.edit(|c| {
        add_hook(c, &["disable-device-node-modification"]);
        add_hook(
            c,
            &[
                "show-gpus",
                "--gpu",
                "0000:02:00.0",
                "--gpu",
                "0000:09:00.0",
            ],
        );
    });
    cell.words(&[
        "each",
        "cat",
        "/proc/driver/nvidia/params",
        ";",
        "ls",
        "/proc/driver/nvidia/gpus",
        ";",
        "cat",
        "/proc/driver/nvidia/gpus/0000:02:00.0/information",
        ";",
        "write",
        "/proc/driver/nvidia/params",
        "x",
    ]);
    let mut command = cell.making("run", &[]);
    command.env("GPUCELL_CONFIG", &config);
    let done = support::outcome(&mut command).ok();
    let got = cell_support::sections(&done.out);
    assert_eq!(got[0].1, text.replace("Files: 1", "Files: 0"), "{done:#?}");
    assert_eq!(got[1].1.trim(), "0000:02:00.0");
    assert_eq!(got[2].1.trim(), "0000:02:00.0");
    assert_ne!(got[3].0, 0);
    assert_eq!(
        fs::read_to_string(dir.join("params")).unwrap(),
        "ModifyDeviceFiles: 1\n"
    );
}

#[test]
fn links_and_modes_in_the_cells_own_dev() {
    let mut cell = Cell::new(|c| {
        add_hook(
            c,
            &[
                "create-symlinks",
                "--link",
                "../card1::/dev/dri/by-path/pci-0000:02:00.0-card",
            ],
        );
        add_hook(
            c,
            &[
                "chmod",
                "--mode",
                "750",
                "--path",
                "/dev/dri",
                "--path",
                "/dev/missing",
            ],
        );
    });
    let got = cell.each(&[&["ls", "/dev/dri/by-path"], &["stat", "/dev/dri"]]);
    assert_eq!(got[0].1.trim(), "pci-0000:02:00.0-card");
    assert!(got[1].1.contains("750"), "{got:?}");
}
