//! `gpucell pull` and registries: logins, platforms, digests, resumed and shared downloads; and
//! archives on standard input.

mod image_support;
#[path = "support/programs.rs"]
mod programs;

use programs::write_program;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use image_support::{
    Item, Layer, Layout, Registry, fails, gzip, pull, run, same_trees, sha256, tree,
};

/// testuser:testpass
const HTPASSWD: &str = "testuser:$2b$04$NWuxncLBOe8fpAmgbhjnnu1ZnUhaA23xFJWUz5GZgfdPCRtEt.IwO\n";

/// A layer of about `size` bytes that does not compress.
fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn layered(dir: &Path, tag: &str, layers: usize) -> Layout {
    let mut layout = Layout::new(dir);
    let layers = (0..layers)
        .map(|i| {
            let name = format!("file{i}");
            Layer::new().item(Item {
                name: name.as_bytes(),
                data: &noise(300_000, i as u64 + 7),
                ..Item::default()
            })
        })
        .collect();
    layout.simple(tag, layers);
    layout
}

#[test]
fn logins() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layered(&dir.path().join("layout"), "v1", 1);
    let registry = Registry::start(Some(HTPASSWD));
    registry.push(&layout.dir, "v1", "private:v1", Some("testuser:testpass"));
    let source = format!("docker://{}/private:v1", registry.host());
    let store = dir.path().join("store");
    let bundle = dir.path().join("bundle");

    let text = fails(pull(&store).arg(&source).arg(&bundle));
    assert!(text.contains("refuses access"), "{text}");
    assert!(!bundle.join("rootfs").exists());

    let docker = dir.path().join("docker");
    fs::create_dir(&docker).unwrap();
    let with_config = |json: serde_json::Value| {
        fs::write(docker.join("config.json"), json.to_string()).unwrap();
        let mut command = pull(&store);
        command
            .env("DOCKER_CONFIG", &docker)
            .arg(&source)
            .arg(&bundle)
            .arg("--force");
        command
    };
    // testuser:wrong
    let wrong = serde_json::json!({"auths": {registry.host(): {"auth": "dGVzdHVzZXI6d3Jvbmc="}}});
    let text = fails(&mut with_config(wrong));
    assert!(
        text.contains("refuses access") && !text.contains("wrong\""),
        "{text}"
    );
    let right =
        serde_json::json!({"auths": {registry.host(): {"auth": "dGVzdHVzZXI6dGVzdHBhc3M="}}});
    run(&mut with_config(right));

    // A credential helper on PATH, asked as Docker asks it.
    let helper = dir.path().join("docker-credential-test");
    write_program(
        &helper,
        "#!/bin/sh\nread server\n[ \"$1\" = get ] || exit 1\n\
         printf '{\"ServerURL\":\"%s\",\"Username\":\"testuser\",\"Secret\":\"testpass\"}' \"$server\"\n",
    );
    let path = format!(
        "{}:{}",
        dir.path().display(),
        std::env::var("PATH").unwrap()
    );
    let helpers = serde_json::json!({"credHelpers": {registry.host(): "test"}});
    run(with_config(helpers).env("PATH", &path));
    let store_of_all = serde_json::json!({"auths": {registry.host(): {}}, "credsStore": "test"});
    run(with_config(store_of_all).env("PATH", &path));
    let missing = serde_json::json!({"credHelpers": {registry.host(): "absent"}});
    let text = fails(&mut with_config(missing));
    assert!(text.contains("docker-credential-absent"), "{text}");
}

#[test]
fn platforms_digests_and_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(dir.path().join("layout"));
    for arch in ["arm64", "amd64"] {
        let tar = Layer::new().file("arch", arch).tar();
        let layers = [(gzip(&tar), tar, "+gzip")];
        layout.image(
            "multi",
            &layers,
            serde_json::json!({}),
            Some(("linux", arch)),
        );
    }
    let registry = Registry::start(None);
    run(Command::new("skopeo")
        .args([
            "copy",
            "--insecure-policy",
            "--dest-tls-verify=false",
            "-q",
            "--all",
        ])
        .arg(format!(
            "oci:{}",
            outer_index(&layout, dir.path()).display()
        ))
        .arg(format!("docker://{}/multi:v1", registry.host())));
    let store = dir.path().join("store");
    // By name: /etc/hosts or the resolver's own knowledge of localhost.
    let source = format!("localhost:{}/multi:v1", registry.port);
    let arch =
        |bundle: &str| fs::read_to_string(dir.path().join(bundle).join("rootfs/arch")).unwrap();

    run(pull(&store).arg(&source).arg(dir.path().join("host")));
    let host = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    assert_eq!(arch("host"), host);
    let text = run(pull(&store)
        .args(["--platform", "linux/arm64/v8", "--format", "json"])
        .arg(&source)
        .arg(dir.path().join("arm")));
    assert_eq!(arch("arm"), "arm64");
    let text = fails(
        pull(&store)
            .args(["--platform", "linux/riscv64"])
            .arg(&source)
            .arg(dir.path().join("none")),
    ) + &text;
    assert!(
        text.contains("no image for linux/riscv64; it has linux/"),
        "{text}"
    );
    let json = text
        .split_once('{')
        .map(|(_, rest)| format!("{{{rest}"))
        .unwrap();
    let json: serde_json::Value = serde_json::Deserializer::from_str(&json)
        .into_iter()
        .next()
        .unwrap()
        .unwrap();
    let digest = json["digest"].as_str().unwrap().to_string();

    // By digest, all of it is in the store: no registry is needed.
    let by_digest = format!("{}/multi@{digest}", registry.host());
    drop(registry);
    run(pull(&store).arg(&by_digest).arg(dir.path().join("offline")));
    assert_eq!(arch("offline"), "arm64");
    // Not so with an empty store.
    let text = fails(
        pull(&dir.path().join("empty"))
            .arg(&by_digest)
            .arg(dir.path().join("x")),
    );
    assert!(text.contains("refused"), "{text}");
}

/// A layout whose only entry is an index of all images of `layout`.
fn outer_index(layout: &Layout, dir: &Path) -> std::path::PathBuf {
    let inner = fs::read(layout.dir.join("index.json")).unwrap();
    let mut inner: serde_json::Value = serde_json::from_slice(&inner).unwrap();
    inner["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
    let inner = inner.to_string();
    let digest = layout.blob(inner.as_bytes());
    let outer = dir.join("outer");
    run(Command::new("cp").arg("-r").arg(&layout.dir).arg(&outer));
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": digest, "size": inner.len(),
    }]});
    fs::write(outer.join("index.json"), index.to_string()).unwrap();
    outer
}

#[test]
fn interrupted_and_damaged_downloads() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layered(&dir.path().join("layout"), "v1", 2);
    let registry = Registry::start(None);
    registry.push(&layout.dir, "v1", "big:v1", None);
    let source = format!("{}/big:v1", registry.host());
    let blobs: Vec<(String, Vec<u8>)> = fs::read_dir(layout.dir.join("blobs/sha256"))
        .unwrap()
        .map(|e| fs::read(e.unwrap().path()).unwrap())
        .filter(|data| data.len() > 100_000)
        .map(|data| (sha256(&data), data))
        .collect();
    assert_eq!(blobs.len(), 2);
    let hex = |digest: &str| digest.trim_start_matches("sha256:").to_string();
    let partial = |store: &Path, digest: &str| {
        store
            .join("partial")
            .join(format!("sha256-{}", hex(digest)))
    };

    // The first half of one layer is there, the other has half of something else.
    let store = dir.path().join("store");
    fs::create_dir_all(store.join("partial")).unwrap();
    let (first, second) = (&blobs[0], &blobs[1]);
    fs::write(partial(&store, &first.0), &first.1[..150_000]).unwrap();
    fs::write(partial(&store, &second.0), noise(150_000, 99)).unwrap();
    let text = fails(pull(&store).arg(&source).arg(dir.path().join("a")));
    assert!(text.contains("the content has digest"), "{text}");
    assert!(!dir.path().join("a/rootfs").exists());
    // The damaged part was thrown away: the next pull is whole.
    run(pull(&store).arg(&source).arg(dir.path().join("b")));
    assert!(
        fs::read_dir(store.join("partial"))
            .unwrap()
            .next()
            .is_none()
    );
    run(pull(&dir.path().join("fresh"))
        .arg(&source)
        .arg(dir.path().join("c")));
    same_trees(
        &dir.path().join("b/rootfs"),
        &dir.path().join("c/rootfs"),
        &[""],
    );

    // With the first half in place, the registry is asked for the rest only: what it has of that
    // half may be wrong.
    let store = dir.path().join("resumed");
    fs::create_dir_all(store.join("partial")).unwrap();
    fs::write(partial(&store, &first.0), &first.1[..150_000]).unwrap();
    let kept = registry.blob_path(&first.0);
    let mut damaged = first.1.clone();
    damaged[..100_000].fill(0);
    fs::write(&kept, &damaged).unwrap();
    run(pull(&store).arg(&source).arg(dir.path().join("d")));
    // Without it, the damage is found.
    let store = dir.path().join("damaged");
    let text = fails(pull(&store).arg(&source).arg(dir.path().join("e")));
    assert!(text.contains("the content has digest"), "{text}");
    assert!(!store.join("blobs/sha256").join(hex(&first.0)).exists());

    // A blob that a crash cut short is fetched again.
    fs::write(&kept, &first.1).unwrap();
    let store = dir.path().join("store");
    let blob = store.join("blobs/sha256").join(hex(&first.0));
    fs::write(&blob, &first.1[..1000]).unwrap();
    run(pull(&store).arg(&source).arg(dir.path().join("f")));
    assert_eq!(fs::read(&blob).unwrap(), first.1);
}

#[test]
fn pulls_at_the_same_time_share_downloads() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layered(&dir.path().join("layout"), "v1", 6);
    let registry = Registry::start(None);
    registry.push(&layout.dir, "v1", "shared:v1", None);
    let source = format!("{}/shared:v1", registry.host());
    let store = dir.path().join("store");
    let children: Vec<_> = (0..6)
        .map(|i| {
            pull(&store)
                .arg(&source)
                .arg(dir.path().join(format!("bundle{i}")))
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let first = tree(&dir.path().join("bundle0/rootfs"));
    assert_eq!(first.len(), 7);
    for i in 1..6 {
        let bundle = dir.path().join(format!("bundle{i}/rootfs"));
        same_trees(&bundle, &dir.path().join("bundle0/rootfs"), &[""]);
    }
    assert!(
        fs::read_dir(store.join("partial"))
            .unwrap()
            .next()
            .is_none()
    );
    assert!(fs::read_dir(store.join("tmp")).unwrap().next().is_none());

    // Two pulls into one bundle: one waits for nobody, it is told.
    let lock = File::open(dir.path().join("bundle0")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let text = fails(
        pull(&store)
            .arg("--force")
            .arg(&source)
            .arg(dir.path().join("bundle0")),
    );
    assert!(text.contains("is in use"), "{text}");
}

#[test]
fn mirrors_come_first_and_may_fail() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layered(&dir.path().join("layout"), "v1", 1);
    let (origin, mirror) = (Registry::start(None), Registry::start(None));
    // The image is only in the mirror, under the origin's name.
    mirror.push(&layout.dir, "v1", "team/app:v1", None);
    let store = dir.path().join("store");
    let source = format!("{}/team/app:v1", origin.host());
    let text = fails(pull(&store).arg(&source).arg(dir.path().join("none")));
    assert!(text.contains("no such"), "{text}");
    run(pull(&store)
        .args(["--mirror", &mirror.host()])
        .arg(&source)
        .arg(dir.path().join("a")));
    // Docker Hub's names too, without reaching it.
    mirror.push(&layout.dir, "v1", "library/thing:latest", None);
    run(pull(&dir.path().join("other"))
        .args(["--mirror", &mirror.host(), "thing"])
        .arg(dir.path().join("hub")));
    // A dead mirror costs a warning.
    origin.push(&layout.dir, "v1", "team/app:v1", None);
    let text = run(pull(&dir.path().join("third"))
        .args(["--mirror", "127.0.0.1:1"])
        .arg(&source)
        .arg(dir.path().join("b")));
    assert!(text.contains("warning: mirror: "), "{text}");
    same_trees(
        &dir.path().join("a/rootfs"),
        &dir.path().join("b/rootfs"),
        &[""],
    );
}

#[test]
fn archives_on_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(dir.path().join("layout"));
    layout.simple(
        "v1",
        vec![Layer::new().file("a", "1"), Layer::new().file("b", "2")],
    );
    let store = dir.path().join("store");
    let expected = dir.path().join("expected");
    run(pull(&store)
        .arg(format!("oci:{}:v1", layout.dir.display()))
        .arg(&expected));
    let check = |name: &str, source: &str, file: &Path, whole: bool| {
        let bundle = dir.path().join(name);
        run(pull(&store)
            .arg(source)
            .arg(&bundle)
            .stdin(Stdio::from(File::open(file).unwrap())));
        same_trees(&bundle.join("rootfs"), &expected.join("rootfs"), &[""]);
        let config = fs::read_to_string(bundle.join("config.json")).unwrap();
        assert_eq!(config.contains("/bin/sh"), whole, "{name}");
    };
    for (scheme, name) in [("oci-archive", "v1"), ("docker-archive", "x.example/y:v1")] {
        let file = dir.path().join(format!("{scheme}.tar"));
        run(Command::new("skopeo")
            .args(["copy", "--insecure-policy", "-q"])
            .arg(format!("oci:{}:v1", layout.dir.display()))
            .arg(format!("{scheme}:{}:{name}", file.display())));
        check(&format!("from-{scheme}"), "-", &file, true);
        let named = format!("{scheme}:-:{name}");
        check(&format!("from-{scheme}-named"), &named, &file, true);
        let packed = dir.path().join(format!("{scheme}.tar.gz"));
        fs::write(&packed, gzip(&fs::read(&file).unwrap())).unwrap();
        check(&format!("from-{scheme}.gz"), "-", &packed, true);
    }
    let root = Layer::new().file("a", "1").file("b", "2").tar();
    let file = dir.path().join("root.tar.zst");
    fs::write(&file, zstd::encode_all(&root[..], 3).unwrap()).unwrap();
    check("from-root", "-", &file, false);
    check("from-rootfs", "rootfs:-", &file, false);
    check(
        "from-file",
        &format!("rootfs:{}", file.display()),
        &file,
        false,
    );
}

/// The layout of `docker save` before Docker 25: folders by layer, a repeated layer as a link.
#[test]
fn docker_save_of_old() {
    let dir = tempfile::tempdir().unwrap();
    let first = Layer::new().file("one", "1").tar();
    let second = Layer::new().file("two", "2").file(".wh.one", "").tar();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["A=b"], "Entrypoint": ["/run"], "Cmd": null, "Volumes": null, "Labels": null},
        "rootfs": {"type": "layers", "diff_ids": [sha256(&first), sha256(&second), sha256(&first)]},
    })
    .to_string();
    let config_name = format!(
        "{}.json",
        sha256(config.as_bytes()).trim_start_matches("sha256:")
    );
    let manifest = serde_json::json!([{
        "Config": config_name, "RepoTags": ["team/old:1"],
        "Layers": ["aa/layer.tar", "bb/layer.tar", "cc/layer.tar"],
    }])
    .to_string();
    let archive = Layer::new()
        .dir("aa/", 0o755)
        .item(Item {
            name: b"aa/layer.tar",
            data: &first,
            ..Item::default()
        })
        .item(Item {
            name: b"bb/layer.tar",
            data: &second,
            ..Item::default()
        })
        .symlink("cc/layer.tar", "../aa/layer.tar")
        .item(Item {
            name: config_name.as_bytes(),
            data: config.as_bytes(),
            ..Item::default()
        })
        .item(Item {
            name: b"manifest.json",
            data: manifest.as_bytes(),
            ..Item::default()
        })
        .tar();
    let path = dir.path().join("old.tar");
    fs::write(&path, archive).unwrap();
    let store = dir.path().join("store");
    let source = format!("docker-archive:{}", path.display());
    for (number, tag) in ["", ":team/old:1", ":docker.io/team/old:1"]
        .iter()
        .enumerate()
    {
        let bundle = dir.path().join(format!("b{number}"));
        run(pull(&store).arg(format!("{source}{tag}")).arg(&bundle));
        assert!(bundle.join("rootfs/one").exists() && bundle.join("rootfs/two").exists());
        let config = fs::read_to_string(bundle.join("config.json")).unwrap();
        assert!(
            config.contains("\"/run\"") && config.contains("\"A=b\""),
            "{config}"
        );
    }
    let text = fails(
        pull(&store)
            .arg(format!("{source}:other"))
            .arg(dir.path().join("x")),
    );
    assert!(text.contains("it has team/old:1"), "{text}");
}

/// A host without certificates: a clear error, and what is in the store still serves.
#[test]
fn without_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layered(&dir.path().join("layout"), "v1", 1);
    let digest = sha256_of_manifest(&layout);
    let registry = Registry::start(None);
    registry.push(&layout.dir, "v1", "x:v1", None);
    let empty = dir.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    let bare = |store: &str| {
        let mut command = pull(&dir.path().join(store));
        command
            .env("SSL_CERT_FILE", &empty)
            .env("SSL_CERT_DIR", dir.path().join("none"));
        command
    };
    let source = format!("{}/x@{digest}", registry.host());
    let text = fails(bare("store").arg(&source).arg(dir.path().join("a")));
    assert!(
        text.contains("install the package ca-certificates"),
        "{text}"
    );
    run(pull(&dir.path().join("store"))
        .arg(&source)
        .arg(dir.path().join("b")));
    run(bare("store").arg(&source).arg(dir.path().join("c")));
}

fn sha256_of_manifest(layout: &Layout) -> String {
    let index = fs::read(layout.dir.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    index["manifests"][0]["digest"]
        .as_str()
        .unwrap()
        .to_string()
}

#[test]
fn private_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layered(&dir.path().join("layout"), "v1", 1);
    let (registry, cert) = Registry::with_tls();
    registry.push(&layout.dir, "v1", "x:v1", None);
    let source = format!("{}/x:v1", registry.host());
    let mut trusting = pull(&dir.path().join("store"));
    trusting
        .env("SSL_CERT_FILE", &cert)
        .arg(&source)
        .arg(dir.path().join("a"));
    run(&mut trusting);
    // Not trusted: refused, and not asked again without TLS.
    let text = fails(
        pull(&dir.path().join("other"))
            .arg(&source)
            .arg(dir.path().join("b")),
    );
    assert!(text.contains("certificate"), "{text}");
    fs::remove_dir_all(cert.parent().unwrap()).unwrap();
}
