//! Replays the fuzz corpora: no input panics, and each goes as far as its name says.

#[path = "../fuzz/steps/config.rs"]
mod config;
#[path = "../fuzz/steps/process.rs"]
mod process;
#[path = "../fuzz/steps/update.rs"]
mod update;

/// Runs each input of a corpus; inputs that the fuzzer found have no such prefix: they only have to end.
fn replay<R: Copy + PartialEq + std::fmt::Debug>(
    name: &str,
    run: impl Fn(&[u8]) -> R,
    prefixes: &[(&str, R)],
) {
    let dir = format!("{}/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let reached = run(&std::fs::read(&path).unwrap());
        let prefix = name.split('-').next();
        if let Some((_, expected)) = prefixes.iter().find(|(p, _)| Some(*p) == prefix) {
            assert_eq!(reached, *expected, "{name}");
            seen += 1;
        }
    }
    assert!(seen >= 15, "{seen} seeds");
}

#[test]
fn config() {
    use config::Reached::{Checked, Done, Nothing, Parsed};
    let prefixes = [
        ("done", Done),
        ("checked", Checked),
        ("parsed", Parsed),
        ("nothing", Nothing),
    ];
    replay("config", config::run, &prefixes);
}

#[test]
fn process() {
    use process::Reached::{Done, Nothing, Parsed};
    let prefixes = [("done", Done), ("parsed", Parsed), ("nothing", Nothing)];
    replay("process", process::run, &prefixes);
}

#[test]
fn update() {
    use update::Reached::{Both, Nothing, One, Read};
    let prefixes = [
        ("both", Both),
        ("one", One),
        ("read", Read),
        ("nothing", Nothing),
    ];
    replay("update", update::run, &prefixes);
}
