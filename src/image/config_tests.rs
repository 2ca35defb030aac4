use super::*;

/// A tree with users, and an image config over it.
fn convert(config: serde_json::Value) -> Result<(Spec, Vec<String>)> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    std::fs::write(
        dir.path().join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\naiuser:x:1000:1000::/home/aiuser:/bin/bash\n",
    )
    .unwrap();
    std::fs::write(
        dir.path().join("etc/group"),
        "video:x:44:aiuser\naiuser:x:1000:\n",
    )
    .unwrap();
    let json = serde_json::json!({
        "created": "2026-01-02T03:04:05Z", "author": "someone",
        "architecture": Platform::host().architecture, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    let image = super::super::media::config("x", json.to_string().as_bytes())?;
    let root = rustix::fs::open(
        dir.path(),
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let volumes: Vec<Volume> = image
        .config()
        .as_ref()
        .and_then(|c| c.volumes().clone())
        .unwrap_or_default()
        .into_iter()
        .map(|target| Volume {
            source: PathBuf::from("volumes").join(target.trim_matches('/').replace('/', "-")),
            target,
        })
        .collect();
    to_spec(&image, &root, &volumes)
}

#[test]
fn a_full_config() {
    let (spec, warnings) = convert(serde_json::json!({
        "User": "aiuser", "ExposedPorts": {"8888/tcp": {}, "53/udp": {}},
        "Env": ["A=1", "PATH=/opt/conda/bin:/bin", "A=2", "NOVALUE"],
        "Entrypoint": ["/tini", "--"], "Cmd": ["python"],
        "Volumes": {"/home/aiuser/workspace": {}}, "WorkingDir": "/home/aiuser/workspace/../x",
        "Labels": {"a": "b", "org.opencontainers.image.author": "label"}, "StopSignal": "SIGINT",
    }))
    .unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &["/tini", "--", "python"]);
    assert_eq!(
        process.env().as_ref().unwrap(),
        &["A=2", "PATH=/opt/conda/bin:/bin", "HOME=/home/aiuser"]
    );
    assert_eq!(process.cwd(), Path::new("/home/aiuser/x"));
    let user = process.user();
    assert_eq!((user.uid(), user.gid()), (1000, 1000));
    assert_eq!(user.additional_gids().as_ref().unwrap(), &[1000, 44]);
    let caps = process.capabilities().as_ref().unwrap();
    assert!(caps.effective().as_ref().unwrap().is_empty());
    assert_eq!(caps.bounding().as_ref().unwrap().len(), 14);
    let mount = spec.mounts().as_ref().unwrap().last().unwrap();
    assert_eq!(mount.destination(), Path::new("/home/aiuser/workspace"));
    assert_eq!(
        mount.source().as_deref(),
        Some(Path::new("volumes/home-aiuser-workspace"))
    );
    let annotations = spec.annotations().as_ref().unwrap();
    let get = |key: &str| annotations.get(key).map(String::as_str);
    assert_eq!(
        get("org.opencontainers.image.exposedPorts"),
        Some("53/udp,8888/tcp")
    );
    assert_eq!(get("org.opencontainers.image.stopSignal"), Some("SIGINT"));
    assert_eq!(
        get("org.opencontainers.image.created"),
        Some("2026-01-02T03:04:05Z")
    );
    // Labels win.
    assert_eq!(get("org.opencontainers.image.author"), Some("label"));
    assert_eq!(get("a"), Some("b"));
    assert_eq!(get(VOLUMES), Some("/home/aiuser/workspace"));
}

#[test]
fn an_empty_config_and_null_fields() {
    let (spec, warnings) = convert(serde_json::json!({
        "Cmd": null, "Entrypoint": null, "Env": null, "Volumes": null, "Labels": null,
        "ExposedPorts": null, "User": "", "WorkingDir": "",
    }))
    .unwrap();
    assert!(warnings[0].contains("names no command"), "{warnings:?}");
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &["sh"]);
    assert_eq!(process.cwd(), Path::new("/"));
    assert_eq!(
        process.env().as_ref().unwrap(),
        &[default::DEFAULT_PATH, "HOME=/root"]
    );
    assert_eq!(process.user().uid(), 0);
    let caps = process.capabilities().as_ref().unwrap();
    assert_eq!(caps.effective(), caps.bounding());
}

#[test]
fn wrong_users_are_errors() {
    assert!(convert(serde_json::json!({"User": "nobody-here"})).is_err());
    assert!(convert(serde_json::json!({"User": "aiuser:nogroup-here"})).is_err());
    assert!(convert(serde_json::json!({"WorkingDir": "a\u{0}b", "Cmd": ["x"]})).is_err());
}

#[test]
fn working_directories_are_absolute() {
    let of = |text| working_dir(Some(text)).unwrap();
    assert_eq!(of(""), Path::new("/"));
    assert_eq!(of("work"), Path::new("/work"));
    assert_eq!(of("/a/../../b/./c//"), Path::new("/b/c"));
}
