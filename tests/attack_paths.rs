//! Images and configurations built to make a runtime reach outside the cell, one test a known attack.
//! The racing ones are in attack_races, those on the runtime's own file in attack_self_exe.

mod cell_support;
mod support;

use cell_support::Cell;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

fn mounts(config: &mut Value) -> &mut Vec<Value> {
    config["mounts"].as_array_mut().expect("mounts")
}

fn bind(to: &str, from: &Path) -> Value {
    json!({"destination": to, "source": from, "options": ["rbind"]})
}

fn without_dev(config: &mut Value) {
    mounts(config).retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
}

/// The names in a folder of the host.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a folder").flatten();
    entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}

/// CVE-2019-19921, CVE-2023-28642: /proc or /sys of the image a link, so that what is written there later
/// (labels, parameters) goes elsewhere.
#[test]
fn proc_and_sys_of_the_image_may_not_be_links() {
    for name in ["proc", "sys"] {
        let mut cell = Cell::new(|_| {});
        let trap = cell.outside("trap");
        fs::remove_dir(cell.root(name)).unwrap();
        symlink("/mnt", cell.root(name)).unwrap();
        let done = cell.hello(&["true"]);
        assert_eq!(done.code, 1, "{done:#?}");
        let told = format!("/{name}: Too many levels of symbolic links");
        assert!(done.err.contains(&told), "{done:#?}");
        assert!(names(&trap).is_empty());
    }
}

/// CVE-2019-16884, CVE-2023-27561, CVE-2019-18837 (crun), CVE-2025-54867 (youki): a volume over /proc or over
/// part of it, by its own name or another.
#[test]
fn no_volume_lies_over_proc() {
    for (to, link) in [
        ("/proc", None),
        ("/proc/self/attr", None),
        ("/proc/sys/kernel", None),
        ("/mnt/../proc/self", None),
        ("/link", Some("/proc")),
        ("/link/self/attr", Some("/proc")),
        ("/link/exec", Some("/proc/self/attr")),
    ] {
        let mut cell = Cell::new(|_| {});
        let volume = cell.outside("volume");
        fs::create_dir_all(volume.join("self/attr")).unwrap();
        cell.edit(|c| mounts(c).push(bind(to, &volume)));
        if let Some(link_to) = link {
            symlink(link_to, cell.root("link")).unwrap();
        }
        let done = cell.hello(&["true"]);
        assert_eq!(done.code, 1, "{to}: {done:#?}");
        assert!(
            done.err.contains("/proc") || done.err.contains("/link"),
            "{to}: {done:#?}"
        );
        cell.nothing_left();
    }
}

/// CVE-2025-52881, CVE-2025-62596 (youki): a kernel parameter that is written must land in procfs: not in a
/// file of another kind, nor in another parameter.
#[test]
fn parameters_are_written_to_procfs_only() {
    let before = fs::read_to_string(CORE_PATTERN).unwrap();
    let mut cell = Cell::new(|c| c["linux"]["sysctl"] = json!({"kernel.domainname": "|/bin/evil"}));
    let volume = cell.outside("volume");
    fs::write(volume.join("domainname"), "untouched").unwrap();
    // The folder of parameters is the volume's, where a bind would have it.
    cell.edit(|c| {
        mounts(c).push(bind("/proc/sys/kernel", &volume));
    });
    assert_eq!(cell.hello(&["true"]).code, 1);
    assert_eq!(
        fs::read_to_string(volume.join("domainname")).unwrap(),
        "untouched"
    );
    // A name that leads from one parameter to another.
    for name in [
        "kernel/../kernel/core_pattern",
        "../sys/kernel/core_pattern",
        "kernel.core_pattern",
    ] {
        let mut cell = Cell::new(|c| c["linux"]["sysctl"] = json!({name: "|/bin/evil"}));
        let done = cell.hello(&["true"]);
        assert_eq!(done.code, 1, "{name}: {done:#?}");
        assert!(done.err.contains("sysctl"), "{name}: {done:#?}");
    }
    assert_eq!(fs::read_to_string(CORE_PATTERN).unwrap(), before);
}

/// CVE-2021-43784: so many or so long maps that a length overflows.
#[test]
fn oversized_maps_are_refused() {
    let map = |n: u32| {
        let one = |i: u32| json!({"containerID": i, "hostID": i + 100_000, "size": 1});
        (0..n).map(one).collect::<Vec<_>>()
    };
    for n in [341, 70_000] {
        let mut cell = Cell::new(|c| {
            let list = c["linux"]["namespaces"].as_array_mut().unwrap();
            list.push(json!({"type": "user"}));
            c["linux"]["uidMappings"] = json!(map(n));
            c["linux"]["gidMappings"] = json!(map(1));
        });
        let done = cell.hello(&["id"]);
        assert_eq!(done.code, 1, "{n}: {done:#?}");
        // Said by us, before there is a process; not by the kernel, on the file of one.
        let told = format!("uidMappings: {n} mappings, at most 340");
        assert!(done.err.contains(&told), "{n}: {done:#?}");
        assert!(done.err.len() < 1000, "{n}: {}", done.err.len());
        cell.nothing_left();
    }
}

/// CVE-2022-29162, CVE-2022-27650 (crun), CVE-2025-27612 (youki): inheritable capabilities that nobody
/// asked for.
#[test]
fn nothing_is_inheritable_unless_asked() {
    let mut cell = Cell::new(|c| {
        let caps = ["CAP_CHOWN", "CAP_SYS_ADMIN"];
        c["process"]["capabilities"] =
            json!({"bounding": caps, "permitted": caps, "effective": caps});
    });
    let done = cell.hello(&["id"]).ok();
    assert_eq!(
        done.value("cap_inheritable"),
        "0000000000000000",
        "{done:#?}"
    );
    assert_eq!(done.value("cap_ambient"), "0000000000000000", "{done:#?}");
}

/// CVE-2024-21626: a working directory that is a descriptor of the host's which leaked into the child, and
/// the descriptors themselves.
#[test]
fn no_working_directory_leads_out() {
    let mut cell = Cell::new(|_| {});
    for n in 0..24 {
        cell.edit(|c| c["process"]["cwd"] = json!(format!("/proc/self/fd/{n}")));
        let done = cell.hello(&["ls", "."]);
        assert_ne!(done.code, 0, "{n}: {done:#?}");
        assert!(
            done.err.contains(&format!("/proc/self/fd/{n}: ")),
            "{n}: {done:#?}"
        );
    }
    symlink("/proc/self/fd/8/../../..", cell.root("way")).unwrap();
    cell.edit(|c| c["process"]["cwd"] = json!("/way"));
    assert_ne!(cell.hello(&["ls", "."]).code, 0);
    for (cwd, text) in [("/etc/passwd", "Not a directory"), ("relative", "absolute")] {
        cell.edit(|c| c["process"]["cwd"] = json!(cwd));
        let done = cell.hello(&["true"]);
        assert!(done.code == 1 && done.err.contains(text), "{done:#?}");
    }
}

#[test]
fn no_descriptor_leaks_into_the_program() {
    let mut cell = Cell::new(|_| {});
    // What a careless caller leaves open: the host's root.
    let root = fs::File::open("/").unwrap();
    let moved = nix::fcntl::fcntl(&root, nix::fcntl::FcntlArg::F_DUPFD(20)).unwrap();
    let done = cell.hello(&["ls", "/proc/self/fd"]).ok();
    // The last one is the listing's own.
    let got: Vec<&str> = done.out.split_whitespace().collect();
    assert_eq!(got, ["0", "1", "2", "3"], "{done:#?}");
    // SAFETY: the number is this test's own, made above.
    assert_eq!(unsafe { libc::close(moved) }, 0);
}

/// CVE-2025-31133, CVE-2025-62161 (youki): the image's /dev/null a link to a parameter of the kernel's, and
/// a masked file over which it would be mounted; CVE-2026-88264 (crun): no mount on /dev at all.
#[test]
fn links_where_nodes_belong_are_refused() {
    let before = fs::read_to_string(CORE_PATTERN).unwrap();
    for (name, to) in [
        ("null", CORE_PATTERN),
        ("zero", "/etc/passwd"),
        ("tty", "../../../../tmp/x"),
    ] {
        let mut cell = Cell::new(|c| {
            without_dev(c);
            c["linux"]["maskedPaths"] = json!(["/etc/group"]);
        });
        let link = cell.root(&format!("dev/{name}"));
        symlink(to, &link).unwrap();
        let passwd = fs::metadata(cell.root("etc/passwd")).unwrap();
        let done = cell.hello(&["true"]);
        assert_eq!(done.code, 1, "{done:#?}");
        let told = format!("/dev/{name}: File exists");
        assert!(done.err.contains(&told), "{done:#?}");
        assert_eq!(fs::read_to_string(CORE_PATTERN).unwrap(), before);
        assert!(link.is_symlink());
        let now = fs::metadata(cell.root("etc/passwd")).unwrap();
        assert_eq!((now.mode(), now.len()), (passwd.mode(), passwd.len()));
    }
}

/// What hides a file is the host's /dev/null, whatever the cell's is.
#[test]
fn what_is_masked_is_empty() {
    for null in ["file", "link", "other"] {
        let mut cell = Cell::new(|c| {
            c["linux"]["maskedPaths"] = json!(["/etc/group"]);
            // A /dev of the host: nothing is made in it.
            without_dev(c);
        });
        let dev = cell.outside("dev");
        match null {
            "file" => fs::write(dev.join("null"), "secret\n").unwrap(),
            "link" => symlink("/etc/passwd", dev.join("null")).unwrap(),
            _ => {}
        }
        cell.edit(|c| mounts(c).push(bind("/dev", &dev)));
        let got = cell.each(&[&["stat", "/etc/group"], &["cat", "/etc/group"]]);
        assert!(
            got[0].1.contains("char ") && got[0].1.contains("dev=1:3"),
            "{got:?}"
        );
        assert_eq!(got[1].1, "", "{got:?}");
    }
}

/// CVE-2026-41579: the image's /dev leads into a folder of the host, where nothing is made or removed.
#[test]
fn nothing_is_made_in_a_dev_that_is_not_the_cells() {
    // A bound /dev: left as it is.
    let mut cell = Cell::new(|_| {});
    let host = cell.outside("dev");
    cell.edit(|c| {
        without_dev(c);
        mounts(c).push(bind("/dev/", &host));
        c["linux"]["devices"] = json!([{"path": "/dev/x", "type": "c", "major": 1, "minor": 3}]);
    });
    assert_eq!(cell.hello(&["ls", "/dev"]).ok().out, "");
    assert_eq!(names(&host), Vec::<String>::new());

    // A link of the image to a folder where the host's is bound.
    let mut cell = Cell::new(|_| {});
    let host = cell.outside("volume");
    fs::write(host.join("ptmx"), "the host's").unwrap();
    fs::remove_dir(cell.root("dev")).unwrap();
    symlink("/mnt", cell.root("dev")).unwrap();
    cell.edit(|c| {
        without_dev(c);
        mounts(c).push(bind("/mnt", &host));
    });
    let done = cell.hello(&["true"]);
    assert_eq!(names(&host), ["ptmx"], "{done:#?}");
    assert_eq!(done.code, 1, "{done:#?}");
    assert!(
        done.err.contains("/dev/null") || done.err.contains("/dev:"),
        "{done:#?}"
    );
}

/// CVE-2025-52565, CVE-2026-88265 (crun): a file of the image's in the terminal's place.
#[test]
fn an_images_file_is_not_taken_for_the_terminal() {
    let terminal = |c: &mut Value| c["process"]["terminal"] = json!(true);
    let mut cell = Cell::new(|c| {
        terminal(c);
        without_dev(c);
    });
    fs::create_dir(cell.root("dev/pts")).unwrap();
    symlink("/etc/passwd", cell.root("dev/pts/ptmx")).unwrap();
    let done = cell.hello(&["pid"]);
    assert!(done.code == 1 && done.err.contains("terminal"), "{done:#?}");

    let mut cell = Cell::new(|c| {
        terminal(c);
        mounts(c).retain(|m| m["destination"] != "/dev");
    });
    let passwd = fs::read(cell.root("etc/passwd")).unwrap();
    symlink("/etc/passwd", cell.root("dev/console")).unwrap();
    let done = cell.hello(&["pid"]);
    assert!(done.code == 1 && done.err.contains("terminal"), "{done:#?}");
    assert_eq!(fs::read(cell.root("etc/passwd")).unwrap(), passwd);
}
