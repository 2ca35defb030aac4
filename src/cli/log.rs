//! How errors and warnings reach people and callers.

use super::Globals;
use crate::Error;
use std::fs::OpenOptions;
use std::io::Write;

/// One line on stderr, and one in the log when asked.
pub fn error(globals: &Globals, error: &Error) {
    let text = error.to_string();
    eprintln!("gpucell: {text}");
    write(globals, "error", &text);
}

/// Warnings go to the log; to stderr only with `-v`.
pub fn warnings(globals: &Globals, list: &[String]) {
    for text in list {
        if globals.verbose {
            eprintln!("gpucell: warning: {text}");
        }
        write(globals, "warning", text);
    }
}

/// containerd and podman read the log as JSON: level, msg, time (RFC 3339).
fn write(globals: &Globals, level: &str, text: &str) {
    let Some(path) = &globals.log else {
        return;
    };
    let time = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Nanos, true);
    let line = if globals.log_format == "json" {
        serde_json::json!({"level": level, "msg": text, "time": time}).to_string()
    } else {
        format!("time=\"{time}\" level={level} msg={text:?}")
    };
    let file = OpenOptions::new().append(true).create(true).open(path);
    if let Err(e) = file.and_then(|mut f| writeln!(f, "{line}")) {
        eprintln!("gpucell: write log {}: {e}", path.display());
    }
}
