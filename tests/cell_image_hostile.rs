//! Hostile images: each attack ends in a clear error, or does no more than it could inside the
//! image; nothing outside is read, written or changed. Needs root, so that no permission hides a
//! missing check.

mod image_support;
#[path = "support/programs.rs"]
mod programs;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use image_support::{Item, Layer, Layout, fails, gzip, pull, run, sha256};

/// A place with something outside the bundle that an attack could reach.
struct Scene {
    dir: tempfile::TempDir,
    before: String,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("victim"), "untouched").unwrap();
        fs::create_dir(outside.join("folder")).unwrap();
        fs::write(outside.join("folder/file"), "untouched").unwrap();
        let before = state(&outside);
        Scene { dir, before }
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    fn command(&self, layers: Vec<Layer>) -> Command {
        let mut layout = Layout::new(self.dir.path().join("layout"));
        layout.simple("x", layers);
        let mut command = pull(&self.dir.path().join("store"));
        command
            .arg(format!("oci:{}:x", layout.dir.display()))
            .arg(self.bundle());
        command
    }

    /// The pull must fail, saying `why`, and leave neither a tree nor anything outside.
    fn refused(self, why: &str, layers: Vec<Layer>) {
        let command = self.command(layers);
        self.refused_by(why, command);
    }

    fn refused_by(self, why: &str, mut command: Command) {
        let text = fails(&mut command);
        assert!(text.contains(why), "expected {why:?} in: {text}");
        assert_eq!(text.lines().count(), 1, "one line: {text}");
        let left: Vec<_> = fs::read_dir(self.bundle())
            .map(|dir| dir.map(|e| e.unwrap().file_name()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "left behind: {left:?}");
        self.unharmed();
    }

    /// The pull succeeds, and what the attack did stayed inside.
    fn confined(self, layers: Vec<Layer>, check: impl Fn(&Path)) {
        run(&mut self.command(layers));
        check(&self.bundle().join("rootfs"));
        self.unharmed();
    }

    fn unharmed(&self) {
        assert_eq!(state(&self.outside()), self.before);
    }
}

/// Names, modes, owners, times and contents of the outside.
fn state(dir: &Path) -> String {
    image_support::tree(dir)
        .into_iter()
        .map(|(path, text)| format!("{} {text}\n", path.display()))
        .collect()
}

#[test]
fn names_with_dots_are_refused() {
    for name in [
        "../outside/new",
        "a/../../outside/new",
        "..",
        "a/..",
        "./../x",
    ] {
        Scene::new().refused("\"..\"", vec![Layer::new().file(name, "evil")]);
    }
    Scene::new().refused(
        "\"..\"",
        vec![Layer::new().hardlink("h", "../outside/victim")],
    );
    Scene::new().refused("\"..\"", vec![Layer::new().dir("../outside/new/", 0o777)]);
}

#[test]
fn absolute_names_mean_the_image() {
    let scene = Scene::new();
    let outside = scene.outside().display().to_string();
    let inside = outside.trim_start_matches('/').to_string();
    scene.confined(
        vec![
            Layer::new().file(&format!("{outside}/victim"), "evil"),
            Layer::new().hardlink("link", &format!("{outside}/victim")),
        ],
        |root| {
            assert_eq!(
                fs::read(root.join(&inside).join("victim")).unwrap(),
                b"evil"
            );
            assert_eq!(fs::read(root.join("link")).unwrap(), b"evil");
        },
    );
}

#[test]
fn symbolic_links_as_parents_stay_inside() {
    // A link that leads to no folder of the image.
    let scene = Scene::new();
    let outside = scene.outside().display().to_string();
    let esc = || Layer::new().symlink("esc", &outside);
    scene.refused(
        "leads to no folder of the image",
        vec![esc().file("esc/new", "evil")],
    );
    Scene::new().refused(
        "leads to no folder of the image",
        vec![esc(), Layer::new().file("esc/deeper/new", "evil")],
    );
    let up = "../".repeat(40);
    Scene::new().refused(
        "leads to no folder of the image",
        vec![
            Layer::new()
                .symlink("esc", &format!("{up}{}", outside.trim_start_matches('/')))
                .file("esc/new", "evil"),
        ],
    );
    // Magic links of /proc do not exist inside, and would not be followed.
    Scene::new().refused(
        "leads to no folder of the image",
        vec![
            Layer::new()
                .symlink("esc", "/proc/self/root/tmp")
                .file("esc/new", "evil"),
        ],
    );
    // A loop.
    Scene::new().refused(
        "open folder",
        vec![
            Layer::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", "evil"),
        ],
    );
    // `..` to the root is the image's root.
    Scene::new().confined(
        vec![
            Layer::new()
                .dir("etc/", 0o755)
                .symlink("esc", &format!("{up}etc"))
                .file("esc/inside", "ok"),
        ],
        |root| assert_eq!(fs::read(root.join("etc/inside")).unwrap(), b"ok"),
    );
}

#[test]
fn links_are_replaced_not_followed() {
    let scene = Scene::new();
    let outside = scene.outside().display().to_string();
    scene.confined(
        vec![
            Layer::new()
                .symlink("file", &format!("{outside}/victim"))
                .symlink("folder", &outside)
                .symlink("second", &outside)
                .file("file", "new")
                .dir("folder/", 0o777)
                .file("folder/victim", "new"),
            Layer::new()
                .dir("second/", 0o777)
                .file("second/victim", "new"),
        ],
        |root| {
            for path in ["file", "folder/victim", "second/victim"] {
                assert_eq!(fs::read(root.join(path)).unwrap(), b"new");
                assert!(
                    root.join(path)
                        .parent()
                        .unwrap()
                        .metadata()
                        .unwrap()
                        .is_dir()
                );
            }
        },
    );
}

/// A folder is listed under one name, then replaced under another: what is set at the end must
/// not go through the link that is there by then.
#[test]
fn late_metadata_does_not_follow() {
    let scene = Scene::new();
    let outside = scene.outside().display().to_string();
    scene.confined(
        vec![
            Layer::new()
                .dir("real/", 0o755)
                .symlink("alias", "real")
                .item(Item {
                    kind: b'5',
                    name: b"alias/x/",
                    mode: 0o777,
                    mtime: 1,
                    ..Item::default()
                }),
            Layer::new()
                .file("real/.wh.x", "")
                .symlink("real/x", &outside),
        ],
        |root| assert!(root.join("real/x").is_symlink()),
    );
}

#[test]
fn whiteouts_stay_inside() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh...", "a/.wh."] {
        Scene::new().refused(
            "a whiteout must name an entry",
            vec![Layer::new().dir("a/", 0o755), Layer::new().file(name, "")],
        );
    }
    let scene = Scene::new();
    let outside = scene.outside().display().to_string();
    scene.confined(
        vec![
            Layer::new()
                .symlink("esc", &outside)
                .symlink("victim", &format!("{outside}/victim"))
                .dir("holder/", 0o755)
                .symlink("holder/esc", &outside),
            Layer::new()
                .file("esc/.wh.victim", "")
                .file("esc/folder/.wh..wh..opq", "")
                .file("esc/.wh..wh..opq", "")
                .file(".wh.victim", "")
                .file(".wh.holder", ""),
        ],
        |root| {
            assert!(root.join("esc").is_symlink());
            assert!(!root.join("victim").is_symlink() && !root.join("holder").exists());
        },
    );
}

#[test]
fn hard_links_reach_only_the_image() {
    let scene = Scene::new();
    let outside = scene.outside().display().to_string();
    let layer = || Layer::new().symlink("esc", &outside);
    scene.refused(
        "which the image does not hold",
        vec![layer().hardlink("h", "esc/victim")],
    );
    Scene::new().refused(
        "which the image does not hold",
        vec![Layer::new().hardlink("h", "/etc/passwd")],
    );
    Scene::new().refused(
        "make hard link",
        vec![Layer::new().dir("d/", 0o755).hardlink("h", "d")],
    );
    // A second name for the link itself, not for what it points at; writing over it is harmless.
    let scene = Scene::new();
    let victim = format!("{}/victim", scene.outside().display());
    scene.confined(
        vec![
            Layer::new().symlink("l", &victim).hardlink("h", "l"),
            Layer::new().file("h", "new"),
        ],
        |root| {
            assert_eq!(fs::read(root.join("h")).unwrap(), b"new");
            assert!(root.join("l").is_symlink());
        },
    );
}

#[test]
fn bombs_are_stopped_at_their_bound() {
    let zeros = vec![0u8; 64 << 20];
    let item = |name: &'static [u8]| Item {
        name,
        data: &zeros,
        ..Item::default()
    };
    let scene = Scene::new();
    let mut command = scene.command(vec![
        Layer::new().item(item(b"a")),
        Layer::new().item(item(b"b")),
    ]);
    command.args(["--max-size", "100m"]);
    scene.refused_by("unpacks to more than 104857600 bytes (--max-size)", command);

    let mut many = Layer::new();
    for i in 0..200 {
        many = many.file(&format!("f{i}"), "");
    }
    let scene = Scene::new();
    let mut command = scene.command(vec![many]);
    command.args(["--max-entries", "100"]);
    scene.refused_by("more than 100 entries (--max-entries)", command);

    // 1.2 GiB of zeros out of a few hundred kilobytes of zstd.
    let scene = Scene::new();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let big = 1200u64 << 20;
    let head = Layer::new()
        .item(Item {
            name: b"bomb",
            ..Item::default()
        })
        .tar();
    let mut head = head[..512].to_vec();
    head[124..136].copy_from_slice(format!("{big:011o}\0").as_bytes());
    head[148..156].fill(b' ');
    let sum: u32 = head.iter().map(|&b| u32::from(b)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    encoder.write_all(&head).unwrap();
    for _ in 0..1200 {
        encoder.write_all(&zeros[..1 << 20]).unwrap();
    }
    let stored = encoder.finish().unwrap();
    let mut layout = Layout::new(scene.dir.path().join("layout"));
    layout.image(
        "x",
        &[(stored, Vec::new(), "+zstd")],
        serde_json::json!({}),
        None,
    );
    let mut command = pull(&scene.dir.path().join("store"));
    command
        .arg(format!("oci:{}:x", layout.dir.display()))
        .arg(scene.bundle());
    scene.refused_by("times its compressed size (--max-ratio)", command);
}

#[test]
fn oversized_headers_are_refused_before_they_fill_memory() {
    // An extended header and a long name that claim 8 GiB.
    for kind in [b'x', b'L', b'K', b'g'] {
        let good = Layer::new()
            .item(Item {
                kind,
                name: b"h",
                ..Item::default()
            })
            .tar();
        let mut head = good[..512].to_vec();
        head[124..136].copy_from_slice(b"100000000000");
        head[148..156].fill(b' ');
        let sum: u32 = head.iter().map(|&b| u32::from(b)).sum();
        head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Scene::new().refused("an extended header of", vec![Layer::new().raw(&head)]);
    }
}

#[test]
fn damaged_content_is_refused() {
    let layer = || Layer::new().file("f", "content");
    let with = |change: &dyn Fn(&Layout, &str)| {
        let scene = Scene::new();
        let mut layout = Layout::new(scene.dir.path().join("layout"));
        layout.simple("x", vec![layer()]);
        let digest = sha256(&gzip(&layer().tar()));
        change(&layout, &digest);
        let mut command = pull(&scene.dir.path().join("store"));
        command
            .arg(format!("oci:{}:x", layout.dir.display()))
            .arg(scene.bundle());
        (scene, command)
    };
    let blob =
        |layout: &Layout, digest: &str| layout.dir.join("blobs").join(digest.replace(':', "/"));

    let (scene, command) = with(&|layout, digest| {
        fs::write(
            blob(layout, digest),
            gzip(&Layer::new().file("f", "changed").tar()),
        )
        .unwrap();
    });
    scene.refused_by("its digest should be", command);

    let (scene, command) = with(&|layout, digest| {
        let path = blob(layout, digest);
        let data = fs::read(&path).unwrap();
        fs::write(path, &data[..data.len() / 2]).unwrap();
    });
    scene.refused_by("read layer", command);

    let (scene, command) = with(&|layout, digest| {
        fs::remove_file(blob(layout, digest)).unwrap();
    });
    scene.refused_by("No such file", command);

    // A layer whose stored digest is right but whose content is not what the config promises.
    let scene = Scene::new();
    let mut layout = Layout::new(scene.dir.path().join("layout"));
    let tar = layer().tar();
    let layers = [(gzip(&tar), Layer::new().file("f", "other").tar(), "+gzip")];
    layout.image("x", &layers, serde_json::json!({}), None);
    let mut command = pull(&scene.dir.path().join("store"));
    command
        .arg(format!("oci:{}:x", layout.dir.display()))
        .arg(scene.bundle());
    scene.refused_by("its diff ID should be", command);
}

#[test]
fn the_config_reaches_only_the_image() {
    for (config, why) in [
        (serde_json::json!({"User": "root2"}), "unable to find user"),
        (
            serde_json::json!({"Volumes": {"/esc": {}}}),
            "leads to no folder",
        ),
        (serde_json::json!({"Volumes": {"/../x": {}}}), "\"..\""),
        (
            serde_json::json!({"Volumes": {"/": {}}}),
            "the root can't be a volume",
        ),
        (
            serde_json::json!({"WorkingDir": "/esc/new"}),
            "leads to no folder",
        ),
    ] {
        let scene = Scene::new();
        let outside = scene.outside().display().to_string();
        fs::write(scene.outside().join("passwd"), "root2:x:0:0::/:/bin/sh\n").unwrap();
        let before = state(&scene.outside());
        let tar = Layer::new()
            .dir("etc/", 0o755)
            .symlink("etc/passwd", &format!("{outside}/passwd"))
            .symlink("etc/group", "/dev/zero")
            .symlink("esc", &outside)
            .tar();
        let mut layout = Layout::new(scene.dir.path().join("layout"));
        layout.image("x", &[(gzip(&tar), tar, "+gzip")], config, None);
        let text = fails(
            pull(&scene.dir.path().join("store"))
                .arg(format!("oci:{}:x", layout.dir.display()))
                .arg(scene.bundle()),
        );
        assert!(text.contains(why), "{text}");
        assert!(!scene.bundle().join("rootfs").exists());
        assert_eq!(state(&scene.outside()), before);
    }
}

#[test]
fn a_user_makes_no_devices() {
    let scene = Scene::new();
    let device = || {
        Layer::new()
            .item(Item {
                kind: b'3',
                name: b"null",
                mode: 0o666,
                device: (1, 3),
                ..Item::default()
            })
            .item(Item {
                kind: b'5',
                name: b"closed/",
                mode: 0o555,
                uid: 7,
                gid: 8,
                ..Item::default()
            })
            .file("closed/inside", "x")
            .item(Item {
                name: b"after",
                data: b"y",
                mode: 0o400,
                xattrs: &[("user.a", b"1")],
                ..Item::default()
            })
    };
    let mut layout = Layout::new(scene.dir.path().join("layout"));
    layout.simple("x", vec![device(), Layer::new().file("closed/more", "z")]);
    let nobody = scene.dir.path().join("home");
    fs::create_dir(&nobody).unwrap();
    std::os::unix::fs::chown(&nobody, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(scene.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // A copy, since the build's folder may be closed to others.
    let binary = scene.dir.path().join("gpucell");
    programs::install(env!("CARGO_BIN_EXE_gpucell"), &binary);
    let command = |more: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
            .arg(&binary)
            .args(["pull", "--store"])
            .arg(nobody.join("store"))
            .args(more)
            .arg(format!("oci:{}:x", layout.dir.display()))
            .arg(nobody.join("bundle"));
        command.env("DOCKER_CONFIG", "/nonexistent");
        command
    };
    let text = fails(&mut command(&[]));
    assert!(
        text.contains("null: the image holds a device node, which only root can make"),
        "{text}"
    );
    assert!(!nobody.join("bundle/rootfs").exists());
    let text = run(&mut command(&["--skip-devices"]));
    assert!(
        text.contains("1 device nodes of the image were left out"),
        "{text}"
    );
    let root = nobody.join("bundle/rootfs");
    let closed = root.join("closed").metadata().unwrap();
    assert_eq!((closed.mode() & 0o7777, closed.uid()), (0o555, 65534));
    assert_eq!(fs::read(root.join("closed/more")).unwrap(), b"z");
    let after = &image_support::tree(&root)[Path::new("after")];
    assert!(
        after.starts_with("mode=100400") && after.contains("user.a"),
        "{after}"
    );
    // It can be replaced, closed folders and all.
    run(&mut command(&["--skip-devices", "--force"]));
    scene.unharmed();
}

#[test]
fn overlay_attributes_are_not_the_images_to_set() {
    let scene = Scene::new();
    let text = run(&mut scene.command(vec![Layer::new().item(Item {
        kind: b'5',
        name: b"d/",
        mode: 0o755,
        xattrs: &[("trusted.overlay.redirect", b"/etc"), ("user.kept", b"1")],
        ..Item::default()
    })]));
    assert!(
        text.contains("trusted.overlay.redirect of d was left out"),
        "{text}"
    );
    let tree = image_support::tree(&scene.bundle().join("rootfs"));
    let line = &tree[Path::new("d")];
    assert!(
        line.contains("user.kept") && !line.contains("overlay"),
        "{line}"
    );
}

/// Other users of the host must not reach set-id programs of an image.
#[test]
fn a_new_bundle_is_closed_to_others() {
    let scene = Scene::new();
    run(&mut scene.command(vec![Layer::new().item(Item {
        name: b"su",
        mode: 0o4755,
        ..Item::default()
    })]));
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode(&scene.bundle()), 0o700);
    assert_eq!(mode(&scene.bundle().join("rootfs/su")), 0o4755);
}

#[test]
fn a_bundle_that_is_a_link_or_busy_is_handled() {
    let scene = Scene::new();
    // rootfs is a link out of the bundle: not followed, not replaced without --force.
    fs::create_dir(scene.bundle()).unwrap();
    symlink(scene.outside(), scene.bundle().join("rootfs")).unwrap();
    let text = fails(&mut scene.command(vec![Layer::new().file("victim", "evil")]));
    assert!(text.contains("has a root file system already"), "{text}");
    run(scene
        .command(vec![Layer::new().file("victim", "new")])
        .arg("--force"));
    assert!(!scene.bundle().join("rootfs").is_symlink());
    assert_eq!(
        fs::read(scene.bundle().join("rootfs/victim")).unwrap(),
        b"new"
    );
    scene.unharmed();
}
