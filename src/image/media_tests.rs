use super::*;

fn index(platforms: &[&str]) -> Box<ImageIndex> {
    let manifests: Vec<_> = platforms
        .iter()
        .enumerate()
        .map(|(i, text)| {
            let mut entry = serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{:064x}", i), "size": 1,
            });
            if !text.is_empty() {
                let p = Platform::parse(text).unwrap();
                entry["platform"] = serde_json::json!({"os": p.os, "architecture": p.architecture});
                if let Some(variant) = p.variant {
                    entry["platform"]["variant"] = variant.into();
                }
            }
            entry
        })
        .collect();
    let json = serde_json::json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    match document("x", json.as_bytes()).unwrap() {
        Document::Index(index) => index,
        other => panic!("{other:?}"),
    }
}

fn chosen(platforms: &[&str], want: &str) -> Result<usize> {
    let index = index(platforms);
    let want = Platform::parse(want)?;
    let digest = digest_of(select("x", &index, &want)?)?;
    Ok(usize::from_str_radix(digest.hex(), 16).unwrap())
}

#[test]
fn platforms() {
    let all = [
        "linux/arm/v5",
        "linux/arm/v7",
        "linux/arm64/v8",
        "linux/amd64/v3",
        "linux/amd64",
        "unknown/unknown",
        "windows/amd64",
        "linux/386",
    ];
    assert_eq!(chosen(&all, "linux/amd64").unwrap(), 4);
    assert_eq!(chosen(&all, "x86_64").unwrap(), 4);
    assert_eq!(chosen(&all, "linux/amd64/v3").unwrap(), 3);
    assert_eq!(chosen(&all, "linux/amd64/v2").unwrap(), 4);
    assert_eq!(chosen(&all, "arm64").unwrap(), 2);
    assert_eq!(chosen(&all, "linux/arm/v7").unwrap(), 1);
    assert_eq!(chosen(&all, "linux/arm/v6").unwrap(), 0);
    assert_eq!(chosen(&all, "windows/amd64").unwrap(), 6);
    let error = chosen(&all, "linux/s390x").unwrap_err().to_string();
    assert!(
        error.contains("no image for linux/s390x; it has linux/arm/v5, "),
        "{error}"
    );
    assert!(!error.contains("unknown"), "{error}");
    // The only image, not marked at all.
    assert_eq!(chosen(&[""], "linux/s390x").unwrap(), 0);
    assert!(chosen(&["", ""], "linux/s390x").is_err());
    for wrong in ["", "/", "linux/", "a/b/c/d", "linux/arm/"] {
        assert!(Platform::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn documents_that_are_no_images() {
    let of = |json: serde_json::Value| {
        document("x", json.to_string().as_bytes())
            .unwrap_err()
            .to_string()
    };
    assert!(of(serde_json::json!({"schemaVersion": 1, "fsLayers": []})).contains("schema 1"));
    assert!(of(serde_json::json!({"schemaVersion": 3})).contains("must be 2"));
    assert!(
        of(serde_json::json!({"schemaVersion": 2, "layers": [], "manifests": []})).contains("both")
    );
    assert!(
        of(serde_json::json!({"schemaVersion": 2, "mediaType": "text/html"})).contains("text/html")
    );
    assert!(of(serde_json::json!({"schemaVersion": 2})).contains("not an image manifest"));
    assert!(of(serde_json::json!([])).contains("not an image manifest"));
    assert!(document("x", b"{").is_err());
    assert!(document("x", &vec![b' '; MAX_DOCUMENT as usize + 1]).is_err());
}

fn manifest(media_type: &str, layers: usize, diff_ids: usize) -> Result<Vec<LayerRef>> {
    let digest = format!("sha256:{}", "1".repeat(64));
    let layer = serde_json::json!({"mediaType": media_type, "digest": digest, "size": 5});
    let json = serde_json::json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 2},
        "layers": vec![layer; layers],
    });
    let Document::Manifest(manifest) = document("x", json.to_string().as_bytes())? else {
        panic!("not a manifest");
    };
    let json = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": vec![digest; diff_ids]},
    });
    let config = config("x", json.to_string().as_bytes())?;
    super::layers("x", &manifest, &config)
}

#[test]
fn layers_and_their_types() {
    for good in [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        assert_eq!(manifest(good, 2, 2).unwrap().len(), 2, "{good}");
    }
    for wrong in [
        "application/wasm",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
    ] {
        let error = manifest(wrong, 1, 1).unwrap_err().to_string();
        assert!(error.contains("not a file system layer"), "{error}");
    }
    let error = manifest("application/vnd.oci.image.layer.v1.tar", 2, 1)
        .unwrap_err()
        .to_string();
    assert!(error.contains("has 2 layers, its config 1"), "{error}");
}
