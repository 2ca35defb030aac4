//! docs/oci.md is held against the command line and the specification's types: what it names is there, and
//! what is there is named. No root needed.

use std::collections::{BTreeSet, HashMap};
use std::fs;

use gpucell::cli::command_tree;
use oci_spec::runtime::Spec;

fn page() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/oci.md")).unwrap()
}

/// The cells of the table below a heading.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let page = page();
    let part = page.split(&format!("\n## {heading}\n")).nth(1).unwrap();
    let part = part.split("\n## ").next().unwrap();
    let table = part.lines().filter(|l| l.starts_with('|'));
    let rows: Vec<Vec<String>> = table
        .skip(2)
        .map(|l| {
            let cells = l.trim_matches('|').split('|');
            cells.map(|c| c.trim().to_owned()).collect()
        })
        .collect();
    assert!(rows.len() > 20, "{heading}");
    rows
}

/// Text between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

const STATES: [&str; 6] = [
    "yes",
    "accepted",
    "refused",
    "unproved",
    "cgroup v1",
    "`-v`",
];

#[test]
fn every_flag_of_runcs_commands_has_its_row() {
    let mut named: HashMap<String, BTreeSet<String>> = HashMap::new();
    for row in rows("Commands and flags") {
        let [command, flags, state] = &row[..] else {
            panic!("{row:?}");
        };
        assert!(STATES.iter().any(|s| state.starts_with(s)), "{row:?}");
        let set = named.entry(command.clone()).or_default();
        for flag in quoted(flags) {
            let fresh = set.insert(flag.to_owned());
            assert!(fresh && flag.starts_with("--"), "{row:?}");
        }
    }
    let tree = command_tree();
    let find = |name: &str| match name {
        "global" => &tree,
        // runc's readings go by names of their own.
        "run" => tree.find_subcommand("run-bundle").unwrap(),
        "exec" => tree.find_subcommand("exec-cell").unwrap(),
        _ => tree
            .find_subcommand(name)
            .unwrap_or_else(|| panic!("{name} is no command")),
    };
    for (command, named) in &named {
        let ours: BTreeSet<String> = find(command)
            .get_arguments()
            .filter_map(|a| a.get_long())
            .filter(|l| *l != "help")
            .map(|l| format!("--{l}"))
            .collect();
        assert_eq!(&ours, named, "{command}: the command line and its rows");
    }
    // runc's commands (runc(8)).
    let runcs = "checkpoint create delete events exec features kill list pause ps restore resume run spec start state update";
    for command in runcs.split(' ') {
        assert!(named.contains_key(command), "{command} has no row");
    }
}

/// A configuration in which everything is set that the types know would be long; the types say the names of
/// their members by themselves, one level at a time, when they refuse a wrong one.
#[test]
fn properties_are_the_specifications() {
    let mut named = BTreeSet::new();
    for row in rows("config.json") {
        let [names, state] = &row[..] else {
            panic!("{row:?}");
        };
        assert!(!state.is_empty());
        named.extend(quoted(names).into_iter().map(str::to_owned));
    }
    // All members of the objects that the table goes through, as oci-spec writes them when they are set.
    let text = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/everything.json"
    ))
    .unwrap();
    let everything: Spec = serde_json::from_str(&text).unwrap();
    let tree = serde_json::to_value(&everything).unwrap();
    let given: serde_json::Value = serde_json::from_str(&text).unwrap();
    for at in ["", "/process", "/linux", "/linux/resources"] {
        let (read, given) = (tree.pointer(at).unwrap(), given.pointer(at).unwrap());
        for name in given.as_object().unwrap().keys() {
            assert!(
                read.get(name).is_some(),
                "{at}/{name} is no property of the specification's"
            );
            let path = format!("{}/{name}", at)
                .trim_start_matches('/')
                .replace('/', ".");
            let row = named.iter().any(|n| {
                *n == path
                    || *n == *name
                    || n.starts_with(&format!("{path}."))
                    || n.starts_with(&format!("{path}["))
            });
            assert!(row, "{path} has no row");
        }
    }
}
