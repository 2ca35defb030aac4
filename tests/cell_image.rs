//! `gpucell pull` against the tools people have: skopeo pushes to a real registry, umoci unpacks
//! the same image, and the trees must be equal. Needs root (owners, device nodes).

mod image_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use image_support::{Item, Layer, Layout, Registry, gzip, pull, run, same_trees, tree};

fn umoci_unpack(layout: &Path, tag: &str, bundle: &Path) {
    run(Command::new("umoci")
        .arg("unpack")
        .arg("--image")
        .arg(format!("{}:{tag}", layout.display()))
        .arg(bundle));
}

/// A Debian root as an archive: the one that the stand-in's bundle is made of, fetched once for all.
fn debian() -> PathBuf {
    let make = Path::new(env!("CARGO_MANIFEST_DIR")).join("bundles/miniconda/make");
    let made = Command::new(make)
        .args(["--stand-in", "--prepare"])
        .output();
    let made = made.unwrap();
    assert!(made.status.success(), "{made:?}");
    PathBuf::from(String::from_utf8(made.stdout).unwrap().trim_end())
}

fn debian_layout(dir: &Path) -> Layout {
    let tar = fs::read(debian()).unwrap();
    let mut layout = Layout::new(dir);
    let config = serde_json::json!({"Cmd": ["bash"]});
    layout.image("v1", &[(gzip(&tar), tar, "+gzip")], config, None);
    layout
}

/// Five layers that use each other: whiteouts, opaque folders before and after their entries,
/// replaced kinds, links across layers, attributes, times.
fn five_layers() -> Vec<Layer> {
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = format!("deep/{}/{}", "a".repeat(120), "b".repeat(200));
    let big: String = "0123456789abcdef".repeat(200_000);
    let first = Layer::new()
        .item(Item {
            kind: b'5',
            name: b"./",
            mode: 0o755,
            mtime: 1_600_000_000,
            ..Item::default()
        })
        .dir("bin/", 0o755)
        .dir("usr/", 0o755)
        .dir("usr/lib/", 0o755)
        .symlink("lib", "usr/lib")
        .dir("run/", 0o755)
        .dir("run/lock/", 0o1777)
        .dir("var/", 0o755)
        .symlink("var/run", "/run")
        .symlink("dangling", "/nowhere/at/all")
        .item(Item {
            name: b"bin/su",
            data: b"set-id",
            mode: 0o6755,
            mtime: 1_600_000_001,
            nanos: 123_456_789,
            ..Item::default()
        })
        .item(Item {
            name: b"bin/ping",
            data: b"caps",
            mode: 0o755,
            xattrs: &[
                ("security.capability", capability),
                ("user.note", b"line\nline = x"),
            ],
            ..Item::default()
        })
        .item(Item {
            name: b"bin/secret",
            data: b"x",
            mode: 0o000,
            uid: 1234,
            gid: 5678,
            ..Item::default()
        })
        .item(Item {
            kind: b'5',
            name: b"shared/",
            mode: 0o2775,
            gid: 50,
            ..Item::default()
        })
        .item(Item {
            name: b"shared/of-group",
            data: b"y",
            mode: 0o664,
            gid: 51,
            ..Item::default()
        })
        .dir("shared/sub/", 0o755)
        .item(Item {
            name: b"old",
            data: b"before the epoch",
            mtime: -86_400,
            ..Item::default()
        })
        .item(Item {
            name: b"far",
            data: b"large ids",
            uid: 3_000_000_000,
            gid: 2_500_000_000,
            ..Item::default()
        })
        .item(Item {
            kind: b'6',
            name: b"pipe",
            mode: 0o620,
            gid: 5,
            ..Item::default()
        })
        .item(Item {
            kind: b'3',
            name: b"null",
            mode: 0o666,
            device: (1, 3),
            ..Item::default()
        })
        .item(Item {
            kind: b'4',
            name: b"disk",
            mode: 0o660,
            device: (259, 70_000),
            ..Item::default()
        })
        .file("empty", "")
        .file("big", &big)
        .file(&long, "long name")
        .file("one", "linked")
        .hardlink("two", "one")
        .hardlink("bin/three", "/one")
        .hardlink("also-dangling", "dangling")
        .dir("gone/", 0o755)
        .file("gone/a", "a")
        .dir("gone/deep/", 0o700)
        .file("gone/deep/b", "b")
        .dir("opaque/", 0o755)
        .file("opaque/lower", "l")
        .dir("opaque/sub/", 0o755)
        .file("opaque/sub/lower", "l")
        .dir("late/", 0o755)
        .file("late/lower", "l")
        .file("late/kept", "lower")
        .dir("late/sub/", 0o755)
        .file("late/sub/lower", "l")
        .file("becomes-dir", "f")
        .dir("becomes-file/", 0o755)
        .file("becomes-file/x", "x")
        .symlink("becomes-real", "bin")
        .dir("becomes-link/", 0o755)
        .file("becomes-link/y", "y")
        .item(Item {
            kind: b'5',
            name: b"attributes/",
            mode: 0o755,
            xattrs: &[("user.a", b"1"), ("user.b", b"2")],
            ..Item::default()
        })
        .file("tree/a/b/c/file", "parents are not listed");
    let second = Layer::new()
        .file(".wh.gone", "")
        .file("bin/.wh.three", "")
        .file(".wh.dangling", "")
        .file(".wh.never-was", "")
        .item(Item {
            kind: b'5',
            name: b"becomes-dir/",
            mode: 0o711,
            mtime: 1_650_000_000,
            ..Item::default()
        })
        .file("becomes-dir/inside", "i")
        .file("becomes-file", "now a file")
        .dir("becomes-real/", 0o755)
        .file("becomes-real/r", "r")
        .symlink("becomes-link", "usr")
        .file("tree/.wh.a", "")
        .file("tree/a/new", "n");
    let third = Layer::new()
        .dir("opaque/", 0o750)
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/upper", "u")
        .dir("late/", 0o755)
        .file("late/upper", "u")
        .file("late/kept", "upper")
        .dir("late/sub/", 0o755)
        .file("late/sub/upper", "u")
        .file("late/.wh..wh..opq", "");
    let fourth = Layer::new()
        .hardlink("to-lower", "big")
        .file("two", "no longer the same file")
        .file("bin/.wh.su", "")
        .item(Item {
            name: b"bin/su.renamed",
            data: b"set-id",
            mode: 0o4755,
            ..Item::default()
        })
        .item(Item {
            kind: b'5',
            name: b"attributes/",
            mode: 0o700,
            uid: 33,
            gid: 33,
            mtime: 1_660_000_000,
            xattrs: &[("user.b", b"3")],
            ..Item::default()
        })
        .item(Item {
            kind: b'5',
            name: b"shared/",
            mode: 0o755,
            ..Item::default()
        });
    let fifth = Layer::new()
        .file("lib/through-link", "in usr/lib")
        .file("var/run/lock/absolute", "in run/lock")
        .dir("gone/", 0o755)
        .file("gone/again", "g")
        .file("opaque/lower", "back")
        .file("./dotted//twice", "cleaned")
        .file("one", "");
    vec![first, second, third, fourth, fifth]
}

#[test]
fn five_layers_equal_umoci_through_a_registry() {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(dir.path().join("layout"));
    layout.simple("five", five_layers());
    let registry = Registry::start(None);
    registry.push(&layout.dir, "five", "five:v1", None);

    let bundle = dir.path().join("ours");
    let store = dir.path().join("store");
    run(pull(&store)
        .arg(format!("docker://{}/five:v1", registry.host()))
        .arg(&bundle));
    umoci_unpack(&layout.dir, "five", &dir.path().join("theirs"));
    let deep = format!("deep/{}", "a".repeat(120));
    // Folders that no layer lists have the time of unpacking. umoci loses two times that a layer
    // does list: the root's, and that of a folder which an opaque mark after it empties.
    let timeless = ["", "deep", &deep, "tree", "tree/a", "dotted", "late/sub"];
    let ours = |bundle: &Path| tree(&bundle.join("rootfs"))[Path::new("late/sub")].clone();
    assert!(ours(&bundle).contains("mtime=1700000000.0"));
    same_trees(
        &bundle.join("rootfs"),
        &dir.path().join("theirs/rootfs"),
        &timeless,
    );

    // The same from the layout itself, and from the archives that skopeo makes of it.
    for (scheme, tag) in [
        ("oci", ":five"),
        ("oci-archive", ":five"),
        ("docker-archive", ""),
    ] {
        let source = if scheme == "oci" {
            format!("oci:{}{tag}", layout.dir.display())
        } else {
            let file = dir.path().join(scheme);
            let name = if scheme == "oci-archive" {
                "five"
            } else {
                "x.example/five:v1"
            };
            run(Command::new("skopeo")
                .args(["copy", "--insecure-policy", "-q"])
                .arg(format!("oci:{}:five", layout.dir.display()))
                .arg(format!("{scheme}:{}:{name}", file.display())));
            format!("{scheme}:{}{tag}", file.display())
        };
        let bundle = dir.path().join(format!("from-{scheme}"));
        run(pull(&store).arg(&source).arg(&bundle));
        same_trees(
            &bundle.join("rootfs"),
            &dir.path().join("theirs/rootfs"),
            &timeless,
        );
    }
}

#[test]
fn debian_equals_umoci_and_is_no_slower() {
    let dir = roomy();
    let layout = debian_layout(&dir.path().join("layout"));
    let (ours, theirs) = race("Debian", &layout, "v1", dir.path());
    same_trees(&ours.join("rootfs"), &theirs.join("rootfs"), &[]);

    let registry = Registry::start(None);
    registry.push(&layout.dir, "v1", "library/debian:v1", None);
    let source = format!("{}/library/debian:v1", registry.host());
    let pulled = dir.path().join("pulled");
    run(pull(&dir.path().join("fresh")).arg(&source).arg(&pulled));
    same_trees(&ours.join("rootfs"), &pulled.join("rootfs"), &[]);
}

#[test]
fn a_killed_pull_leaves_no_half_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(dir.path().join("layout"));
    let mut layer = Layer::new();
    for i in 0..5000 {
        layer = layer.file(&format!("d{}/f{i}", i % 50), "some content");
    }
    layout.simple("x", vec![layer]);
    let source = format!("oci:{}:x", layout.dir.display());
    let (store, bundle) = (dir.path().join("store"), dir.path().join("bundle"));
    let mut killed = 0;
    for round in 1..=8 {
        let mut child = pull(&store).arg(&source).arg(&bundle).spawn().unwrap();
        // Into the middle of the unpacking, at a different place each time.
        let started = Instant::now();
        while !bundle.join(".unpacking/rootfs/d0").exists() && started.elapsed().as_secs() < 5 {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(3 * round));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            fs::remove_dir_all(&bundle).unwrap();
            continue;
        }
        killed += 1;
        // Whole or not at all (the kill may come between the last rename and the exit).
        if bundle.join("rootfs").exists() {
            assert!(bundle.join("config.json").exists());
            assert_eq!(fs::read_dir(bundle.join("rootfs")).unwrap().count(), 50);
            fs::remove_dir_all(&bundle).unwrap();
        }
    }
    assert!(killed > 0, "no pull was caught half-way");
    run(pull(&store).arg(&source).arg(&bundle));
    assert!(!bundle.join(".unpacking").exists());
    assert_eq!(fs::read_dir(bundle.join("rootfs")).unwrap().count(), 50);
}

/// conda keeps each package's files in pkgs/ and links them to their places.
#[test]
fn conda_shaped_hard_links_equal_umoci() {
    let dir = roomy();
    let mut base = Layer::new().dir("opt/", 0o755).dir("opt/conda/", 0o755);
    let mut links = Layer::new();
    for package in 0..40 {
        for file in 0..100 {
            let body = format!("package {package} file {file}\n").repeat(40);
            let from = format!("opt/conda/pkgs/package-{package}-1.0-0/lib/python3.10/m{file}.py");
            let to = format!("opt/conda/lib/python3.10/site-packages/p{package}/m{file}.py");
            base = base.file(&from, &body);
            links = links.hardlink(&to, &from);
        }
        base = base.file(
            &format!("opt/conda/conda-meta/package-{package}.json"),
            "{}",
        );
    }
    let mut layout = Layout::new(dir.path().join("layout"));
    layout.simple("conda", vec![base, links]);
    let (bundle, theirs) = race("conda's hard links", &layout, "conda", dir.path());
    // No layer lists the folders: their times are those of unpacking.
    let ours = tree(&bundle.join("rootfs"));
    let folders: Vec<&str> = ours
        .iter()
        .filter(|(_, text)| text.starts_with("mode=4"))
        .map(|(path, _)| path.to_str().unwrap())
        .collect();
    same_trees(&bundle.join("rootfs"), &theirs.join("rootfs"), &folders);
}

/// A folder in memory where there is room: a busy disk would decide a race, and take minutes.
fn roomy() -> TempDir {
    let memory = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(memory).is_ok_and(|s| s.f_bavail * s.f_frsize > 3 << 30);
    match room {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

/// Unpacks the same layout with gpucell and umoci, turn by turn, and compares the medians. One round
/// is enough when it took half of umoci's time: no noise makes up for that. What the last round unpacked
/// stays in `dir`: (ours, umoci's).
fn race(what: &str, layout: &Layout, tag: &str, dir: &Path) -> (PathBuf, PathBuf) {
    let bundles = (dir.join("ours"), dir.join("theirs"));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let source = format!("oci:{}:{tag}", layout.dir.display());
    for round in 1..=3 {
        ours.push(timed(|| {
            run(pull(&dir.join("store")).arg(&source).arg(&bundles.0));
        }));
        theirs.push(timed(|| umoci_unpack(&layout.dir, tag, &bundles.1)));
        if round == 3 || ours[0] * 2 < theirs[0] {
            break;
        }
        for bundle in [&bundles.0, &bundles.1] {
            fs::remove_dir_all(bundle).unwrap();
        }
    }
    let rounds = ours.len();
    let (ours, theirs) = (median(&ours), median(&theirs));
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    let profile = match cfg!(debug_assertions) {
        true => "debug",
        false => "release",
    };
    println!(
        "unpack {what}, {rounds} rounds: gpucell ({profile}) {ours:.2?}, umoci {theirs:.2?}, ratio {ratio:.2}"
    );
    assert!(ratio <= 1.0, "{what}: ratio {ratio:.2} to umoci");
    bundles
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}
