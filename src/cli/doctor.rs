//! `gpucell doctor`: what this host can do, and what to do about what it can't.
//!
//! Owns the command and its two forms, table and JSON. [`checks`] does the judging, from what
//! [`look::Look`] reads; nothing is changed and no program is started.

mod checks;
mod look;

use std::fmt::Write;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::Result;

/// Show what this host can do
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  gpucell doctor --format json | jq '.checks[] | select(.state != \"ok\")'"
)]
pub struct Doctor {
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
}

/// Table for people, JSON for programs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
#[allow(missing_docs)]
pub enum Format {
    Table,
    Json,
}

/// How good a thing is here.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Works in part, or in an older way.
    Degraded,
    /// Not there.
    Missing,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Degraded => "degraded",
            State::Missing => "missing",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Check {
    /// Group of lines.
    pub area: &'static str,
    /// What was looked at.
    pub name: String,
    /// The verdict.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do, when it isn't ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// Without this no cell runs at all.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub essential: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    ok: usize,
    degraded: usize,
    missing: usize,
    checks: &'a [Check],
}

/// Prints the report. The exit code is 1 when something is missing without which no cell runs.
///
/// # Errors
/// None but failing to write.
pub fn run(args: &Doctor) -> Result<i32> {
    let checks = checks::all(&look::Live);
    let text = match args.format {
        Format::Table => table(&checks),
        Format::Json => json(&checks)?,
    };
    super::out::print(&text)?;
    let broken = |c: &Check| c.essential && c.state == State::Missing;
    Ok(i32::from(checks.iter().any(broken)))
}

fn count(checks: &[Check], state: State) -> usize {
    checks.iter().filter(|c| c.state == state).count()
}

fn json(checks: &[Check]) -> Result<String> {
    let report = Report {
        ok: count(checks, State::Ok),
        degraded: count(checks, State::Degraded),
        missing: count(checks, State::Missing),
        checks,
    };
    super::out::pretty(&report)
}

fn table(checks: &[Check]) -> String {
    let mut out = String::new();
    let width = checks
        .iter()
        .map(|c| c.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut area = "";
    for check in checks {
        if check.area != area {
            area = check.area;
            let _ = writeln!(out, "{area}");
        }
        let state = check.state.word();
        let _ = writeln!(out, "  {state:<8}  {:<width$}  {}", check.name, check.found);
        if let Some(advice) = &check.advice {
            let _ = writeln!(out, "  {:<8}  {:<width$}  → {advice}", "", "");
        }
    }
    let _ = writeln!(
        out,
        "{} ok, {} degraded, {} missing",
        count(checks, State::Ok),
        count(checks, State::Degraded),
        count(checks, State::Missing)
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let checks = [
            Check {
                area: "kernel",
                name: "release".into(),
                state: State::Ok,
                found: "6.1".into(),
                advice: None,
                essential: true,
            },
            Check {
                area: "programs",
                name: "criu".into(),
                state: State::Missing,
                found: "not on PATH".into(),
                advice: Some("apt install criu".into()),
                essential: false,
            },
        ];
        assert_eq!(
            table(&checks),
            "kernel\n  ok        release  6.1\nprograms\n  missing   criu     not on PATH\n            \
             \u{20}        → apt install criu\n1 ok, 0 degraded, 1 missing\n"
        );
        let json: serde_json::Value = serde_json::from_str(&json(&checks).unwrap()).unwrap();
        assert_eq!(json["missing"], 1);
        assert_eq!(json["checks"][1]["advice"], "apt install criu");
        assert_eq!(json["checks"][1].get("essential"), None);
    }
}
