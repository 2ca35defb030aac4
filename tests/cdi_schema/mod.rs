//! Files held against the published JSON schema of CDI (tests/fixtures/cdi-schema), by Python's jsonschema
//! (Debian's python3-jsonschema).

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const CHECK: &str = r#"
import json, pathlib, sys
import jsonschema
folder = pathlib.Path(sys.argv[1])
schema = json.loads((folder / "schema.json").read_text())
resolver = jsonschema.RefResolver(folder.as_uri() + "/", schema)
found = json.load(sys.stdin)
for e in jsonschema.Draft7Validator(schema, resolver=resolver).iter_errors(found):
    print("/".join(map(str, e.absolute_path)) + ": " + e.message)
"#;

/// What is wrong with a CDI file in JSON, one line each.
pub fn violations(json: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cdi-schema");
    let mut python = Command::new("python3")
        .args(["-W", "ignore", "-c", CHECK])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut stdin = python.stdin.take().unwrap();
    stdin.write_all(json.as_bytes()).unwrap();
    drop(stdin);
    let done = python.wait_with_output().unwrap();
    assert!(
        done.status.success(),
        "jsonschema: apt-get install python3-jsonschema"
    );
    let text = String::from_utf8(done.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}
