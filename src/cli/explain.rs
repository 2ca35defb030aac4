//! `gpucell explain BUNDLE [flags]`: what is added and why, then the configuration as it would run.
//!
//! Nothing is made, mounted or locked.

use std::fmt::Write;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::exec_bundle::ExecBundle;
use super::flags::{Context, High};
use super::launch::{Bundle, resolve};
use super::people::{Setting, cell_name};
use super::{Globals, out};
use crate::Result;
use crate::spec::check;

/// Show what flags change in a bundle, and why
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  gpucell explain bundles/miniconda/ --memory 4g --cpus 2
  gpucell explain bundles/miniconda/ -u 1000 --format json | jq .edits")]
pub struct Explain {
    #[command(flatten)]
    exec: ExecBundle,
    /// text: each edit with its reason, then the resolved config.json; json: one object
    #[arg(long, value_enum, default_value = "text", hide_possible_values = true)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    /// Lines for people, the configuration below.
    Text,
    /// One object: edits, warnings, config.
    Json,
}

#[derive(Serialize)]
struct Report<'a> {
    edits: Vec<Line<'a>>,
    warnings: &'a [String],
    config: serde_json::Value,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    edit: &'a crate::spec::edit::Edit,
    text: String,
}

impl Explain {
    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        let (flags, folder, command, store) = self.exec.parts();
        let set = Setting::new(g, store.cloned());
        let bundle = Bundle::read(folder)?;
        // Without the random part, so that two explanations can be compared.
        let id = cell_name(flags, &bundle.path.to_string_lossy(), None)?;
        let etc = set.cell_etc(&id);
        let ctx = Context {
            spec: &bundle.spec,
            id: &id,
            command,
            entrypoint: None,
            dir: &etc,
        };
        let (mut high, spec) = resolve(&set, flags, &bundle, &ctx, Vec::new(), None)?;
        high.warnings.splice(0..0, bundle.warnings);
        high.warnings.extend(check::check(&spec)?);
        let res = spec.linux().as_ref().and_then(|l| l.resources().as_ref());
        let devices = res.and_then(|r| r.devices().as_ref());
        if devices.is_some_and(|d| !d.is_empty()) && !crate::sys::cred::host_root() {
            high.warnings.push(crate::cgroup::NO_FILTER.to_owned());
        }
        let config = out::stable(&spec)?;
        out::print(&match self.format {
            Format::Text => text(&high, &config)?,
            Format::Json => json(&high, config)?,
        })?;
        Ok(0)
    }
}

fn json(high: &High, config: serde_json::Value) -> Result<String> {
    let line = |edit| Line {
        edit,
        text: edit.change.to_string(),
    };
    out::pretty(&Report {
        edits: high.edits.iter().map(line).collect(),
        warnings: &high.warnings,
        config,
    })
}

fn text(high: &High, config: &serde_json::Value) -> Result<String> {
    let mut out = String::new();
    for edit in &high.edits {
        let _ = writeln!(out, "{}   [{}]", edit.change, edit.reason);
    }
    for warning in &high.warnings {
        let _ = writeln!(out, "! {warning}");
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out.push_str(&super::out::pretty(config)?);
    Ok(out)
}
