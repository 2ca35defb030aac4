//! `-e` and `--env-file`, and the variables that follow from other flags.

use super::{Flags, Host, invalid};
use crate::{Error, Result};

/// The variables asked for, files first and `-e` after, each with its reason: Docker's order, so that
/// `-e` wins.
pub(super) fn variables(flags: &Flags, host: &dyn Host) -> Result<Vec<(String, String)>> {
    let mut out = Vec::new();
    for file in &flags.env_file {
        let text = host
            .read(file.as_ref())
            .map_err(|e| Error::step("--env-file", file.clone(), e))?;
        let bad = |why: String| invalid(file, "--env-file", why);
        for pair in file_lines(&text, host).map_err(bad)? {
            out.push((format!("--env-file {file}"), pair));
        }
    }
    for text in &flags.env {
        if text.is_empty() || text.starts_with('=') {
            let why = format!("invalid environment variable: {text}");
            return Err(invalid(text, "-e, --env", why));
        }
        no_nul(text).map_err(|why| invalid(text, "-e, --env", why))?;
        if let Some(pair) = complete(text, host) {
            let key = pair.split('=').next().unwrap_or_default();
            out.push((format!("-e {key}"), pair));
        }
    }
    Ok(out)
}

/// The lines of an environment file (docker/cli `pkg/kvfile`): comments and empty lines out, blanks
/// before the name dropped, a name alone taken from the caller.
fn file_lines(text: &str, host: &dyn Host) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for line in text.lines() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = line.split('=').next().unwrap_or(line);
        if key.contains(char::is_whitespace) {
            return Err(format!("variable '{key}' contains whitespaces"));
        }
        if key.is_empty() {
            return Err(format!("no variable name on line '{line}'"));
        }
        no_nul(line)?;
        out.extend(complete(line, host));
    }
    Ok(out)
}

/// An environment string ends at its first NUL: one inside would cut the value short.
fn no_nul(text: &str) -> Result<(), String> {
    if text.contains('\0') {
        return Err("contains a NUL byte".to_owned());
    }
    Ok(())
}

/// `KEY=VALUE` as it is; `KEY` with the caller's value, or nothing when the caller has none.
fn complete(text: &str, host: &dyn Host) -> Option<String> {
    if text.contains('=') {
        return Some(text.to_owned());
    }
    host.env(text).map(|value| format!("{text}={value}"))
}
