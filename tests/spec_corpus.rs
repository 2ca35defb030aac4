//! Replays the fuzz corpora: no input panics, and each goes as far as its name says.

#[path = "../fuzz/steps/config.rs"]
mod config;

use config::Reached;

#[test]
fn config() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/config");
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let reached = config::run(&std::fs::read(&path).unwrap());
        // Inputs that the fuzzer found have no such prefix: they only have to end.
        let expected = match name.split('-').next() {
            Some("done") => Reached::Done,
            Some("checked") => Reached::Checked,
            Some("parsed") => Reached::Parsed,
            Some("nothing") => Reached::Nothing,
            _ => continue,
        };
        assert_eq!(reached, expected, "{name}");
        seen += 1;
    }
    assert!(seen >= 15, "{seen} seeds");
}
