//! What a CDI file goes through before a cell gets its devices. Shared by the fuzz target and by
//! tests/spec_cdi.rs, which replays the corpus.

use gpucell::nvidia::cdi::{Format, generate, parse};

/// How far the bytes came, in the notation that takes them further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// Not a CDI file, or one that breaks a rule.
    Nothing,
    /// Accepted, and its edits are made.
    Done,
}

/// Reads the bytes in both notations; what is accepted must be written and read again unchanged.
pub fn run(data: &[u8]) -> Reached {
    [Format::Json, Format::Yaml]
        .into_iter()
        .map(|format| one(data, format))
        .max()
        .unwrap()
}

fn one(data: &[u8], format: Format) -> Reached {
    let Ok(spec) = parse(data, format) else {
        return Reached::Nothing;
    };
    for format in [Format::Json, Format::Yaml] {
        let text = generate::write(&spec, format).expect("what was read is UTF-8");
        // Aliases may have made it larger than a file may be.
        if text.len() < 1 << 20 {
            assert_eq!(parse(text.as_bytes(), format).as_ref(), Ok(&spec), "{text}");
        }
    }
    for device in spec.devices {
        let edits = device.container_edits.into_edits("fuzz");
        edits.expect("validated");
    }
    let edits = spec.container_edits.into_edits("fuzz");
    edits.expect("validated");
    Reached::Done
}
