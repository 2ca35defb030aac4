//! Paths inside the root of a cell on a real kernel: device nodes, default links, mount points that
//! are missing or reached through links.

mod cell_support;
mod support;

use cell_support::Cell;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

fn mounts(config: &mut Value) -> &mut Vec<Value> {
    config["mounts"].as_array_mut().expect("mounts")
}

fn bind(to: &str, from: &Path) -> Value {
    json!({"destination": to, "source": from, "options": ["rbind"]})
}

/// The names in a folder of the host.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a folder").flatten();
    entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn device_nodes_have_the_mode_and_owner_asked_for() {
    let mut cell = Cell::new(|c| {
        c["linux"]["devices"] = json!([
            {"path": "/dev/c", "type": "c", "major": 195, "minor": 300, "fileMode": 0o640, "uid": 12, "gid": 34},
            {"path": "/dev/b", "type": "b", "major": 7, "minor": 0},
            {"path": "/dev/p", "type": "p", "fileMode": 0o622},
            {"path": "/dev/u", "type": "u", "major": 1, "minor": 5, "fileMode": 0o4666},
            {"path": "/dev/in/a/folder", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
            {"path": "/elsewhere", "type": "c", "major": 1, "minor": 3},
            {"path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600, "gid": 9},
            {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
        ]);
        // Whatever the caller's mask.
        c["process"]["user"]["umask"] = json!(0o077);
    });
    let nodes = [
        "c",
        "b",
        "p",
        "u",
        "in/a/folder",
        "../elsewhere",
        "zero",
        "null",
        "full",
        "random",
        "urandom",
        "tty",
    ];
    let links = ["fd", "stdin", "stdout", "stderr", "ptmx"];
    let paths: Vec<String> = nodes
        .iter()
        .chain(&links)
        .map(|n| format!("/dev/{n}"))
        .collect();
    let words: Vec<&str> = ["stat"]
        .into_iter()
        .chain(paths.iter().map(String::as_str))
        .collect();
    let got = &cell.each(&[&words])[0].1;
    let want = [
        "char 0640 12:34 size=0 dev=195:300",
        "block 0666 0:0 size=0 dev=7:0",
        "fifo 0622 0:0 size=0 dev=0:0",
        "char 4666 0:0 size=0 dev=1:5",
        "char 0600 0:0 size=0 dev=1:3",
        "char 0666 0:0 size=0 dev=1:3",
        "char 0600 0:9 size=0 dev=1:5",
        "char 0666 0:0 size=0 dev=1:3",
        "char 0666 0:0 size=0 dev=1:7",
        "char 0666 0:0 size=0 dev=1:8",
        "char 0666 0:0 size=0 dev=1:9",
        "char 0666 0:0 size=0 dev=5:0",
        "-> /proc/self/fd",
        "-> /proc/self/fd/0",
        "-> /proc/self/fd/1",
        "-> /proc/self/fd/2",
        "-> pts/ptmx",
    ];
    for (line, want) in got.lines().zip(want) {
        assert!(line.ends_with(want), "{line}, not {want}");
    }
    assert_eq!(got.lines().count(), want.len(), "{got}");
    assert!(
        cell.root("elsewhere")
            .metadata()
            .unwrap()
            .file_type()
            .is_char_device()
    );
}

#[test]
fn in_a_user_namespace_the_hosts_nodes_are_bound() {
    let mut cell = Cell::new(|c| {
        c["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "user"}));
        for map in ["uidMappings", "gidMappings"] {
            c["linux"][map] = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
        }
    });
    let got = cell.each(&[
        &["stat", "/dev/null", "/dev/urandom"],
        &["write", "/dev/null", "x"],
        &["open", "/dev/zero"],
    ]);
    assert!(
        got[0].1.contains("dev=1:3") && got[0].1.contains("dev=1:9"),
        "{got:?}"
    );
    assert_eq!((got[1].0, got[2].0), (0, 0), "{got:?}");
}

#[test]
fn mount_points_are_made_and_stay_inside() {
    let mut cell = Cell::new(|_| {});
    let (from, trap) = (cell.outside("from"), cell.outside("trap"));
    fs::write(from.join("file"), "data\n").unwrap();
    symlink(format!("/../../../..{}", trap.display()), cell.root("out")).unwrap();
    symlink("../..//mnt", cell.root("etc/inside")).unwrap();
    // What the absolute link points to, inside.
    fs::create_dir_all(cell.root(trap.to_str().unwrap())).unwrap();
    cell.edit(|c| {
        mounts(c).retain(|m| m["destination"] != "/tmp");
        mounts(c).extend([
            bind("/new/file", &from.join("file")),
            bind("/new/folder", &from),
            bind("/out/x/y", &from),
            bind("/etc/inside/z", &from.join("file")),
            bind("/a/../../../b", &from),
            bind("relative", &from),
        ]);
        c["process"]["cwd"] = json!("/made/for/cwd");
    });
    let seen = format!("{}/x/y/file", trap.display());
    let got = cell.each(&[
        &[
            "cat",
            "/new/file",
            "/new/folder/file",
            "/out/x/y/file",
            &seen,
            "/mnt/z",
            "/b/file",
            "/relative/file",
        ],
        &["stat", "/proc/self/cwd"],
    ]);
    assert_eq!(got[0].1, "data\n".repeat(7), "{got:?}");
    assert!(got[1].1.ends_with("-> /made/for/cwd\n"), "{got:?}");
    assert_eq!(names(&trap), Vec::<String>::new(), "made on the host");
    let mode = |p: &str| cell.root(p).metadata().unwrap().mode() & 0o7777;
    assert_eq!(
        (mode("new"), mode("new/file"), mode("made/for/cwd")),
        (0o755, 0o644, 0o755)
    );
}

/// Files bound into one folder one after the other go by their names alone, where that is the same.
#[test]
fn files_of_one_folder_are_bound_each_where_it_belongs() {
    let mut cell = Cell::new(|_| {});
    let from = cell.outside("from");
    for n in 1..=6 {
        fs::write(from.join(n.to_string()), format!("{n}\n")).unwrap();
    }
    fs::create_dir(from.join("dir")).unwrap();
    fs::write(from.join("dir/in"), "dir\n").unwrap();
    for folder in ["many", "other"] {
        fs::create_dir(cell.root(folder)).unwrap();
    }
    for file in ["many/old", "many/again", "other/file"] {
        fs::write(cell.root(file), "image\n").unwrap();
    }
    symlink("../other/file", cell.root("many/link")).unwrap();
    symlink("many", cell.root("short")).unwrap();
    cell.edit(|c| {
        mounts(c).extend([
            bind("/many/new", &from.join("1")),
            bind("/many/old", &from.join("2")),
            // What the link points to, as anywhere else.
            bind("/many/link", &from.join("3")),
            bind("/many/again", &from.join("4")),
            bind("/many/again", &from.join("5")),
            bind("/many/dir", &from.join("dir")),
            bind("/many/dir/in", &from.join("6")),
            bind("/short/too", &from.join("1")),
        ]);
    });
    let got = cell.each(&[
        &[
            "cat",
            "/many/new",
            "/many/old",
            "/other/file",
            "/many/again",
            "/many/dir/in",
            "/many/too",
        ],
        &["stat", "/many/link"],
    ]);
    assert_eq!(got[0].1, "1\n2\n3\n5\n6\n1\n", "{got:?}");
    assert!(got[1].1.contains("-> ../other/file"), "{got:?}");

    // A folder onto a file.
    cell.edit(|c| mounts(c).push(bind("/many/old", &from)));
    let done = cell.hello(&["true"]);
    assert!(
        done.code == 1 && done.err.contains("/many/old"),
        "{done:#?}"
    );
    cell.nothing_left();
}

#[test]
fn what_cannot_be_mounted_there_is_refused_by_name() {
    let plain = |to: &str| json!({"destination": to, "source": "/etc", "options": ["bind"]});
    type Prepare = fn(&Cell);
    let rows: [(Value, Prepare, &str); 12] = [
        (
            json!({"destination": "/proc", "type": "tmpfs", "source": "t"}),
            |_| {},
            "inside /proc",
        ),
        (plain("/proc/self/attr"), |_| {}, "inside /proc"),
        (plain("/proc"), |_| {}, "only a proc file system"),
        (
            plain("/link/self"),
            |c| symlink("/proc", c.root("link")).unwrap(),
            "inside /proc",
        ),
        (plain("/mnt/../proc/self"), |_| {}, "/proc"),
        (
            json!({"destination": "/mnt", "source": "/not/there", "options": ["bind"]}),
            |_| {},
            "/not/there: No such file or directory",
        ),
        (
            json!({"destination": "/mnt", "type": "nonesuch"}),
            |_| {},
            "/mnt: No such device",
        ),
        (
            json!({"destination": "/mnt", "type": "tmpfs", "options": ["size=oops"]}),
            |_| {},
            "/mnt",
        ),
        (
            json!({"destination": "/mnt", "type": "tmpfs", "options": ["nonesuch=1"]}),
            |_| {},
            "nonesuch",
        ),
        (
            json!({"destination": "/etc/passwd", "type": "tmpfs"}),
            |_| {},
            "/etc/passwd",
        ),
        (plain("/etc/passwd/x"), |_| {}, "Not a directory"),
        (
            plain("/dangling"),
            |c| symlink("/nowhere/x", c.root("dangling")).unwrap(),
            "/dangling",
        ),
    ];
    for (mount, prepare, text) in rows {
        let mut cell = Cell::new(|c| mounts(c).push(mount.clone()));
        prepare(&cell);
        let done = cell.hello(&["true"]);
        assert_eq!(done.code, 1, "{mount}: {done:#?}");
        assert!(done.err.contains(text), "{mount}: no '{text}' in {done:#?}");
        assert!(
            done.err.contains("mounts[7]"),
            "{mount}: which one? {done:#?}"
        );
        cell.nothing_left();
    }
}

/// An image that has the right nodes itself is fine.
#[test]
fn nodes_of_the_image_are_taken() {
    let mut cell = Cell::new(|c| {
        mounts(c).retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"))
    });
    for _ in 0..2 {
        let got = cell.hello(&["stat", "/dev/null", "/dev/fd"]).ok();
        assert!(
            got.out.contains("dev=1:3") && got.out.contains("-> /proc/self/fd"),
            "{got:#?}"
        );
    }
}
