//! The root file system of a cell on a real kernel: mounts, nodes, masks, the root itself, and the
//! path rules. Every test looks from inside, and nothing may show on the host afterwards.

mod cell_support;
mod support;

use cell_support::{Cell, HostMount, host_mounts, mounted};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use support::on_v2;

fn add(config: &mut Value, mount: Value) {
    config["mounts"].as_array_mut().expect("mounts").push(mount);
}

fn bind(to: &str, from: &std::path::Path, options: &[&str]) -> Value {
    json!({"destination": to, "type": "bind", "source": from, "options": options})
}

const TABLE: &str = "/proc/self/mountinfo";

#[test]
fn file_systems_are_mounted_as_asked() {
    let mut cell = Cell::new(|c| {
        add(
            c,
            json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        );
        add(
            c,
            json!({"destination": "/mnt/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "nr_inodes=100", "mode=1750", "uid=7", "gid=8", "noexec", "noatime", "nosymfollow"]}),
        );
        add(
            c,
            json!({"destination": "/mnt/deep/er", "type": "tmpfs", "source": "x", "options": ["ro"]}),
        );
    });
    let got = cell.each(&[
        &["cat", TABLE],
        &["stat", "/mnt/t", "/dev/ptmx", "/dev/pts/ptmx", "/dev/shm"],
        &["write", "/mnt/deep/er/x", "x"],
        &["ls", "/dev/mqueue"],
        &["stat", "/sys/fs/cgroup"],
    ]);
    let table = &got[0].1;
    // Mount point, type, options of the mount, options of the file system.
    let want: &[(&str, &str, &[&str], &[&str])] = &[
        ("/proc", "proc", &["rw", "nosuid", "nodev", "noexec"], &[]),
        (
            "/dev",
            "tmpfs",
            &["rw", "nosuid"],
            &["size=65536k", "mode=755"],
        ),
        (
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec"],
            &["gid=5", "mode=620", "ptmxmode=666"],
        ),
        (
            "/dev/shm",
            "tmpfs",
            &["nosuid", "nodev", "noexec"],
            &["size=65536k"],
        ),
        ("/dev/mqueue", "mqueue", &["nosuid", "nodev", "noexec"], &[]),
        ("/sys", "sysfs", &["ro", "nosuid", "nodev", "noexec"], &[]),
        (
            "/mnt/t",
            "tmpfs",
            &["rw", "noexec", "noatime", "nosymfollow"],
            &["size=1024k", "nr_inodes=100", "mode=1750", "uid=7", "gid=8"],
        ),
        ("/mnt/deep/er", "tmpfs", &["ro"], &[]),
        (
            "/sys/fs/cgroup",
            if on_v2() { "cgroup2" } else { "tmpfs" },
            &["ro", "nosuid", "nodev", "noexec"],
            &[],
        ),
    ];
    for (point, fstype, options, superblock) in want {
        let m = mounted(table, point).unwrap_or_else(|| panic!("no {point} in\n{table}"));
        assert_eq!(m.fstype, *fstype, "{point}");
        for o in *options {
            assert!(m.has(o), "{point}: no {o} in {m:?}");
        }
        for o in *superblock {
            assert!(
                m.superblock.iter().any(|s| s == o),
                "{point}: no {o} in {m:?}"
            );
        }
    }
    // /dev asks for strictatime: no access time option shows.
    assert!(!mounted(table, "/dev").unwrap().has("relatime"));
    if !on_v2() {
        for v1 in ["memory", "pids", "unified"] {
            let m = mounted(table, &format!("/sys/fs/cgroup/{v1}")).expect("a v1 hierarchy");
            assert!(m.fstype.starts_with("cgroup") && m.has("ro"), "{v1}: {m:?}");
        }
    }
    let stat: Vec<&str> = got[1].1.lines().collect();
    assert!(stat[0].starts_with("/mnt/t dir 1750 7:8"), "{stat:?}");
    assert!(stat[1].ends_with("-> pts/ptmx"), "{stat:?}");
    assert!(stat[2].contains("char 0666"), "{stat:?}");
    assert!(stat[3].contains("dir 1777"), "{stat:?}");
    assert_eq!(got[2].1, "EROFS 30\n");
}

#[test]
fn bind_options_reach_the_mount_and_the_mounts_below_it() {
    // Options, then what the bound mount and the one below it must have (`!` must not have).
    type Row = (
        &'static [&'static str],
        &'static [&'static str],
        &'static [&'static str],
    );
    let rows: &[Row] = &[
        (&["bind"], &["rw", "!noexec"], &["none"]),
        (&["rbind"], &["rw"], &["rw", "nosuid"]),
        (&["rbind", "ro"], &["ro"], &["rw"]),
        (&["rbind", "rro"], &["ro"], &["ro", "nosuid"]),
        (&["rbind", "ro", "rw"], &["rw"], &["rw"]),
        (&["rbind", "rro", "rrw"], &["rw"], &["rw"]),
        (
            &["rbind", "rnoexec", "rnodev", "nosuid"],
            &["noexec", "nodev", "nosuid"],
            &["noexec", "nodev"],
        ),
        (&["rbind", "rsuid"], &["rw"], &["!nosuid"]),
        (&["rbind", "rnoatime"], &["noatime"], &["noatime"]),
        (&["rbind", "noatime"], &["noatime"], &["!noatime"]),
        (
            &["rbind", "rnosymfollow", "rnodiratime"],
            &["nosymfollow", "nodiratime"],
            &["nosymfollow", "nodiratime"],
        ),
        (&["rbind", "noexec", "exec"], &["!noexec"], &["!noexec"]),
    ];
    let mut cell = Cell::new(|_| {});
    let from = cell.outside("source");
    fs::create_dir(from.join("sub")).unwrap();
    let _sub = HostMount::new(&["-t", "tmpfs", "-o", "nosuid", "tmpfs"], &from.join("sub"));
    cell.edit(|c| {
        for (i, (options, ..)) in rows.iter().enumerate() {
            add(c, bind(&format!("/mnt/{i}"), &from, options));
        }
    });
    let table = &cell.each(&[&["cat", TABLE]])[0].1;
    for (i, (options, top, below)) in rows.iter().enumerate() {
        for (point, want) in [(format!("/mnt/{i}"), top), (format!("/mnt/{i}/sub"), below)] {
            let Some(m) = mounted(table, &point) else {
                assert_eq!(*want, ["none"], "{options:?}: {point} is missing");
                continue;
            };
            for o in *want {
                let fine = match o.strip_prefix('!') {
                    Some(o) => !m.has(o),
                    None => m.has(o),
                };
                assert!(fine, "{options:?}: {o} at {point}: {m:?}");
            }
            // Whatever the host has, nothing of the cell may go back to it.
            assert!(
                !m.propagation.contains(&"shared".to_owned()),
                "{options:?}: {m:?}"
            );
        }
    }
}

#[test]
fn propagation_of_binds() {
    let mut cell = Cell::new(|_| {});
    let from = cell.outside("source");
    let _shared = HostMount::new(&["-t", "tmpfs", "tmpfs"], &from);
    let done = std::process::Command::new("mount")
        .arg("--make-shared")
        .arg(&from)
        .status();
    assert!(done.unwrap().success());
    let rows: &[(&str, &[&str])] = &[
        ("private", &[]),
        ("rprivate", &[]),
        ("slave", &["master"]),
        ("rslave", &["master"]),
        ("shared", &["shared", "master"]),
        ("rshared", &["shared", "master"]),
        ("unbindable", &["unbindable"]),
        ("runbindable", &["unbindable"]),
    ];
    cell.edit(|c| {
        for (kind, _) in rows {
            add(c, bind(&format!("/mnt/{kind}"), &from, &["rbind", kind]));
        }
        add(c, bind("/mnt/none", &from, &["rbind"]));
        // What is mounted on a private bind must not show on the host.
        add(
            c,
            json!({"destination": "/mnt/none/in", "type": "tmpfs", "source": "tmpfs"}),
        );
    });
    cell.words(&["sleep", "60"]).create(&[]).ok();
    let host = host_mounts(&from.to_string_lossy());
    assert_eq!(
        host,
        [from.to_string_lossy().into_owned()],
        "mounts went back to the host"
    );
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", cell.pid())).unwrap();
    for (kind, want) in rows {
        let m = mounted(&table, &format!("/mnt/{kind}")).expect(kind);
        assert_eq!(m.propagation, *want, "{kind}");
    }
    assert!(mounted(&table, "/mnt/none").unwrap().propagation.is_empty());
    cell.verb("delete", &["-f"]).ok();
}

#[test]
fn propagation_of_the_root() {
    // With the bundle on a shared mount, as on every systemd host.
    let rows: &[(&str, &[&str])] = &[
        ("", &["master"]),
        ("private", &[]),
        ("rprivate", &[]),
        ("slave", &["master"]),
        ("rslave", &["master"]),
        ("shared", &["shared"]),
        ("rshared", &["shared"]),
        ("unbindable", &["unbindable"]),
        ("runbindable", &["unbindable"]),
    ];
    let mut cell = Cell::new(|_| {});
    let dir = cell.bundle.path().parent().unwrap().to_path_buf();
    let _shared = HostMount::new(&["--bind", dir.to_str().unwrap()], &dir);
    let done = std::process::Command::new("mount")
        .arg("--make-shared")
        .arg(&dir)
        .status();
    assert!(done.unwrap().success());
    for (kind, want) in rows {
        cell.edit(|c| c["linux"]["rootfsPropagation"] = json!(kind));
        let created = cell.words(&["sleep", "60"]).create(&[]);
        assert_eq!(created.code, 0, "{kind}: {created:#?}");
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", cell.pid())).unwrap();
        assert_eq!(
            mounted(&table, "/").expect("a root").propagation,
            *want,
            "{kind:?}\n{table}"
        );
        let host = host_mounts(&dir.to_string_lossy());
        assert_eq!(host.len(), 1, "{kind}: on the host: {host:?}");
        cell.verb("delete", &["-f"]).ok();
    }
}

#[test]
fn id_mapped_binds() {
    let map = |fs: u32, seen: u32| json!([{"containerID": fs, "hostID": seen, "size": 10}]);
    let mut cell = Cell::new(|_| {});
    let from = cell.outside("source");
    fs::write(from.join("f"), "x").unwrap();
    chown(from.join("f"), Some(1003), Some(1004)).unwrap();
    fs::create_dir(from.join("sub")).unwrap();
    let _sub = HostMount::new(
        &["-t", "tmpfs", "-o", "uid=1003", "tmpfs"],
        &from.join("sub"),
    );
    cell.edit(|c| {
        for (to, options) in [
            ("/mnt/one", &["rbind", "idmap"][..]),
            ("/mnt/all", &["rbind", "ridmap"]),
            ("/mnt/implied", &["bind"]),
        ] {
            let mut m = bind(to, &from, options);
            m["uidMappings"] = map(1000, 50);
            m["gidMappings"] = map(1000, 60);
            add(c, m);
        }
    });
    let got = &cell.each(&[&[
        "stat",
        "/mnt/one/f",
        "/mnt/one/sub",
        "/mnt/all/f",
        "/mnt/all/sub",
        "/mnt/implied/f",
    ]])[0]
        .1;
    let owners: Vec<&str> = got.lines().filter_map(|l| l.split(' ').nth(3)).collect();
    assert_eq!(
        owners,
        ["53:64", "1003:0", "53:64", "53:65534", "53:64"],
        "{got}"
    );
    // The maps of the cell's own user namespace, with what is made inside owned outside by root.
    let mut cell = Cell::new(|c| {
        c["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "user"}));
        c["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 200000, "size": 65536}]);
        c["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 200000, "size": 65536}]);
    });
    let from = cell.outside("source");
    fs::set_permissions(&from, fs::Permissions::from_mode(0o755)).unwrap();
    let dir = cell.bundle.path().parent().unwrap().to_path_buf();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    cell.edit(|c| add(c, bind("/mnt", &from, &["bind", "idmap"])));
    let got = cell.each(&[&["write", "/mnt/made", "x"], &["stat", "/mnt/made"]]);
    assert_eq!(got[0].0, 0, "{got:?}");
    assert!(got[1].1.contains(" 0:0 "), "{got:?}");
    let outside = fs::metadata(from.join("made")).unwrap();
    assert_eq!((outside.uid(), outside.gid()), (0, 0));
}

#[test]
fn tmpcopyup_copies_what_lies_under_it() {
    let mut cell = Cell::new(|c| {
        add(
            c,
            json!({"destination": "/up", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "nodev"]}),
        );
    });
    let up = cell.root("up");
    fs::create_dir_all(up.join("d/e")).unwrap();
    fs::write(up.join("d/e/f"), vec![b'y'; 300_000]).unwrap();
    fs::set_permissions(up.join("d/e/f"), fs::Permissions::from_mode(0o4711)).unwrap();
    chown(up.join("d"), Some(12), Some(13)).unwrap();
    symlink("../nowhere", up.join("l")).unwrap();
    fs::set_permissions(&up, fs::Permissions::from_mode(0o1711)).unwrap();
    let got = cell.each(&[
        &["stat", "/up", "/up/d", "/up/d/e/f", "/up/l"],
        &["write", "/up/d/new", "x"],
        &["cat", TABLE],
    ]);
    let stat: Vec<&str> = got[0].1.lines().collect();
    assert!(stat[0].contains("dir 1711 0:0"), "{stat:?}");
    assert!(stat[1].contains("dir 0755 12:13"), "{stat:?}");
    assert!(stat[2].contains("file 4711 0:0 size=300000"), "{stat:?}");
    assert!(stat[3].ends_with("-> ../nowhere"), "{stat:?}");
    assert!(mounted(&got[2].1, "/up").unwrap().has("nodev"));
    assert!(!up.join("d/new").exists(), "the image was written to");
}

/// podman's --read-only-tmpfs=false: what lies in a read-only /dev or tmpfs is made all the same.
#[test]
fn a_read_only_dev_is_filled_first() {
    let mut cell = Cell::new(|c| {
        let mounts = c["mounts"].as_array_mut().unwrap();
        let dev = mounts.iter_mut().find(|m| m["destination"] == "/dev");
        dev.unwrap()["options"]
            .as_array_mut()
            .unwrap()
            .push(json!("ro"));
        let up = json!(["ro", "tmpcopyup"]);
        add(
            c,
            json!({"destination": "/up", "type": "tmpfs", "source": "tmpfs", "options": up}),
        );
        add(
            c,
            json!({"destination": "/up/in", "type": "tmpfs", "source": "tmpfs"}),
        );
    });
    fs::create_dir_all(cell.root("up")).unwrap();
    fs::write(cell.root("up/f"), "f").unwrap();
    let got = cell.each(&[
        &["stat", "/dev/ptmx", "/dev/null", "/dev/shm", "/up/f"],
        &["cat", TABLE],
        &["write", "/dev/x", "x"],
        &["write", "/up/x", "x"],
        &["write", "/up/in/x", "x"],
        &["write", "/dev/shm/x", "x"],
    ]);
    assert_eq!(got[0].1.lines().count(), 4, "{}", got[0].1);
    for (point, ro) in [
        ("/dev", true),
        ("/up", true),
        ("/up/in", false),
        ("/dev/shm", false),
    ] {
        assert_eq!(mounted(&got[1].1, point).unwrap().has("ro"), ro, "{point}");
    }
    let answers: Vec<&str> = got[2..].iter().map(|g| g.1.as_str()).collect();
    assert_eq!(answers, ["EROFS 30\n", "EROFS 30\n", "ok\n", "ok\n"]);
}

#[test]
fn overlay_as_a_mount_and_under_the_root() {
    let mut cell = Cell::new(|_| {});
    let (low, up, work) = (
        cell.outside("low"),
        cell.outside("up"),
        cell.outside("work"),
    );
    fs::write(low.join("f"), "from below\n").unwrap();
    cell.edit(|c| {
        let options = [
            format!("lowerdir={}", low.display()),
            format!("upperdir={}", up.display()),
            format!("workdir={}", work.display()),
        ];
        add(c, json!({"destination": "/mnt", "type": "overlay", "source": "overlay", "options": options}));
    });
    let got = cell.each(&[&["cat", "/mnt/f"], &["write", "/mnt/g", "new"]]);
    assert_eq!(got[0].1, "from below\n");
    assert_eq!(fs::read_to_string(up.join("g")).unwrap(), "new\n");
    assert!(!low.join("g").exists());
    // `run DIR/` lays a layer of the cell's own over the bundle's root, and removes it.
    cell.words(&["each", "write", "/made", "x", ";", "stat", "/made"]);
    let dir = format!("{}/", cell.bundle.path().display());
    let name = format!("--name={}", cell.id);
    let done = cell.bundle.gpucell(&["run", "--rm", &name, &dir]).ok();
    assert!(done.out.contains("/made file"), "{done:#?}");
    assert!(!cell.root("made").exists(), "the bundle was written to");
}

#[test]
fn remounts_change_what_is_there() {
    let mut cell = Cell::new(|c| {
        add(
            c,
            json!({"destination": "/tmp", "type": "tmpfs", "options": ["remount", "ro", "size=2m"]}),
        );
        add(
            c,
            json!({"destination": "/dev/shm", "options": ["remount", "bind", "ro", "noexec"], "source": "none"}),
        );
    });
    let got = cell.each(&[
        &["cat", TABLE],
        &["write", "/tmp/x", "x"],
        &["write", "/dev/shm/x", "x"],
    ]);
    let tmp = mounted(&got[0].1, "/tmp").unwrap();
    assert!(tmp.superblock.contains(&"size=2048k".to_owned()), "{tmp:?}");
    assert_eq!(got[1].1, "EROFS 30\n", "{tmp:?}");
    assert_eq!(got[2].1, "EROFS 30\n");
}

#[test]
fn masked_and_read_only_paths() {
    let mut cell = Cell::new(|c| {
        c["linux"]["maskedPaths"] = json!([
            "/secret",
            "/secrets",
            "/not/there",
            "/bin/hello/below",
            "/etc/link"
        ]);
        c["linux"]["readonlyPaths"] = json!(["/keep", "/keep.txt", "/not/there", "/proc/sys"]);
    });
    fs::write(cell.root("secret"), "s").unwrap();
    fs::create_dir(cell.root("secrets")).unwrap();
    fs::write(cell.root("secrets/s"), "s").unwrap();
    fs::create_dir(cell.root("keep")).unwrap();
    fs::write(cell.root("keep.txt"), "k\n").unwrap();
    // A link to a file outside resolves inside, where nothing is.
    symlink("/../../../../../../etc/hostname", cell.root("etc/link")).unwrap();
    let got = cell.each(&[
        &["stat", "/secret"],
        &["ls", "/secrets"],
        &["write", "/secrets/x", "x"],
        &["cat", "/keep.txt"],
        &["write", "/keep.txt", "x"],
        &["write", "/keep/x", "x"],
        &["write", "/proc/sys/kernel/hostname", "x"],
        &["write", "/elsewhere", "x"],
    ]);
    assert!(
        got[0].1.contains("char ") && got[0].1.contains("dev=1:3"),
        "{got:?}"
    );
    assert_eq!(got[1], (0, String::new()));
    assert_eq!(got[2].1, "EROFS 30\n");
    assert_eq!(got[3].1, "k\n");
    for i in [4, 5, 6] {
        assert_eq!(got[i].1, "EROFS 30\n", "{i}");
    }
    assert_eq!(got[7].0, 0);
    // A device of the image in place of its /dev/null is not what hides things (CVE-2025-31133).
    assert_eq!(fs::read_to_string(cell.root("secret")).unwrap(), "s");
}

#[test]
fn read_only_root_and_no_pivot() {
    let mut cell = Cell::new(|c| c["root"]["readonly"] = json!(true));
    let look: &[&[&str]] = &[
        &["write", "/x", "x"],
        &["write", "/tmp/x", "x"],
        &["ls", "/"],
        &["stat", "/.."],
    ];
    for flags in [&[][..], &["--no-pivot"]] {
        let joined = look.join(&";");
        cell.words(&["each"].into_iter().chain(joined).collect::<Vec<_>>());
        let got = cell_support::sections(&cell.run(flags).ok().out);
        assert_eq!(got[0].1, "EROFS 30\n", "{flags:?}");
        assert_eq!(got[1].0, 0, "{flags:?}");
        assert!(
            got[2].1.contains("mnt") && !got[2].1.contains("home"),
            "{got:?}"
        );
    }
    cell.edit(|c| c["root"]["readonly"] = json!(false));
    let done = cell.words(&["write", "/x", "x"]).run(&["--no-pivot"]);
    assert_eq!(done.ok().out, "ok\n");
    assert!(cell.root("x").exists());
}
