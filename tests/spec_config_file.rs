//! `gpucell config`: what it prints, which file it reads, and that docs/config.md describes each key. No
//! root needed.

use std::path::Path;
use std::process::{Command, Output};

use gpucell::nvidia::config::Config;

fn config(file: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpucell"));
    command.arg("config").env_remove("GPUCELL_CONFIG");
    if let Some(file) = file {
        command.env("GPUCELL_CONFIG", file);
    }
    command.output().unwrap()
}

#[test]
fn prints_the_effective_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "[nvidia]\naccept-mounts = true\n").unwrap();
    let out = config(Some(&file));
    assert!(out.status.success(), "{out:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(
        text.lines().next(),
        Some(format!("# from {file:?}").as_str())
    );
    assert!(text.contains("\naccept-mounts = true\n"), "{text}");
    assert!(text.contains("\ndriver-root = \"/\"\n"), "{text}");
    // What is printed is a file that says the same.
    let read = Config::load(Some(&file)).unwrap();
    assert_eq!(Config::parse(&text, &file).unwrap(), read);
}

#[test]
fn refuses_a_bad_file_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "[nvidia]\n\ndriver-rot = \"/\"\n").unwrap();
    let out = config(Some(&file));
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    assert!(out.stdout.is_empty(), "{out:?}");
    let said = String::from_utf8(out.stderr).unwrap();
    let start = format!("{} line 3: unknown field `driver-rot`", file.display());
    assert!(said.contains(&start), "{said}");

    let out = config(Some(&dir.path().join("none.toml")));
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.contains("none.toml: No such file"), "{said}");
}

/// docs/config.md's example is the defaults, and each key has a row.
#[test]
fn the_documentation_agrees() {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(repo.join("docs/config.md")).unwrap();
    let example = page.split("```toml\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let file = Path::new("docs/config.md");
    let read = Config::parse(example, file).unwrap();
    let defaults = Config {
        source: Some(file.into()),
        ..Config::default()
    };
    assert_eq!(read, defaults);

    let printed = Config::default().to_toml().unwrap();
    let mut keys = 0;
    for line in printed.lines().filter(|line| line.contains(" = ")) {
        let key = line.split(" = ").next().unwrap();
        assert!(page.contains(&format!("\n| `{key}` |")), "no row for {key}");
        assert!(
            example.contains(&format!("\n{key} = ")),
            "no example of {key}"
        );
        keys += 1;
    }
    assert!(keys >= 7, "{printed}");
}
