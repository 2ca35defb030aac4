//! Replays the fuzz corpora of what images hold: no input panics, and each goes as far as its name says.

#[path = "../fuzz/steps/elf.rs"]
mod elf;
#[path = "../fuzz/steps/ldcache.rs"]
mod ldcache;

use std::fmt::Debug;

/// Replays one folder; `expected` knows what the first word of a seed's name stands for. Inputs that
/// the fuzzer found have none: they only have to end.
fn replay<R: PartialEq + Debug>(
    dir: &str,
    run: fn(&[u8]) -> R,
    expected: fn(&str) -> Option<R>,
) -> usize {
    let dir = format!("{}/fuzz/corpus/{dir}", env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let reached = run(&std::fs::read(&path).unwrap());
        if let Some(word) = name.split('-').next().and_then(expected) {
            assert_eq!(reached, word, "{name}");
            seen += 1;
        }
    }
    seen
}

#[test]
fn caches() {
    use ldcache::Reached;
    let seen = replay("ldcache", ldcache::run, |word| match word {
        "libraries" => Some(Reached::Libraries),
        "empty" => Some(Reached::Empty),
        "nothing" => Some(Reached::Nothing),
        _ => None,
    });
    assert!(seen >= 8, "{seen} seeds");
}

#[test]
fn libraries() {
    use elf::Reached;
    let seen = replay("elf", elf::run, |word| match word {
        "note" => Some(Reached::Note),
        "library" => Some(Reached::Library),
        "headers" => Some(Reached::Headers),
        "nothing" => Some(Reached::Nothing),
        _ => None,
    });
    assert!(seen >= 7, "{seen} seeds");
}
