//! Replays the fuzz corpora of images: no input panics or reaches outside its root, and each ends as
//! its name says.

#[path = "../fuzz/steps/layer.rs"]
mod layer;
#[path = "../fuzz/steps/manifest.rs"]
mod manifest;

/// The inputs of a corpus, by name.
fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let dir = format!("{}/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(&path).unwrap())
        })
        .collect()
}

#[test]
fn manifests() {
    use manifest::Reached;
    let mut named = 0;
    for (name, data) in corpus("manifest") {
        let reached = manifest::run(&data);
        let expected = match name.split('-').next() {
            Some("done") => Reached::Done,
            Some("index") => Reached::Index,
            Some("manifest") => Reached::Manifest,
            Some("nothing") => Reached::Nothing,
            // Found by the fuzzer: it only has to end.
            _ => continue,
        };
        assert_eq!(reached, expected, "{name}");
        named += 1;
    }
    assert!(named >= 10, "{named} seeds");
}

#[test]
fn layers() {
    use layer::Reached;
    let mut named = 0;
    for (name, data) in corpus("layer") {
        let reached = layer::run(&data);
        let expected = match name.split('-').next() {
            Some("done") => Reached::Done,
            Some("refused") => Reached::Refused,
            _ => continue,
        };
        assert_eq!(reached, expected, "{name}");
        named += 1;
    }
    assert!(named >= 15, "{named} seeds");
}
