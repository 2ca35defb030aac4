//! `gpucell cdi`: the CDI devices of this host, what they make of a bundle, and a file of our own.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::launch::Bundle;
use super::setup::replace;
use super::{Globals, log, out};
use crate::nvidia::cdi::{Format, Registry, generate, map_ids};
use crate::nvidia::config::Config;
use crate::nvidia::inventory::Host;
use crate::spec::{check, edit};
use crate::{Error, Result};

/// List CDI devices, show what they change in a bundle, write a CDI file
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  gpucell cdi list
  gpucell cdi apply bundles/miniconda/ nvidia.com/gpu=0 | jq .mounts
  gpucell cdi generate --output /etc/cdi/nvidia.yaml")]
pub struct Cdi {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// List the devices and the file each comes from
    List(List),
    /// Print a bundle's config.json with devices in it; nothing is written
    Apply(Apply),
    /// Write a CDI file of this host's GPUs, for other runtimes
    Generate(Generate),
}

#[derive(Args, Clone, Debug)]
struct Generate {
    /// yaml or json [default: as the file's name ends, else yaml]
    #[arg(long, value_enum, value_name = "FORMAT", hide_possible_values = true)]
    format: Option<Notation>,
    /// Write to this file, which is replaced as a whole [default: standard output]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Notation {
    Yaml,
    Json,
}

#[derive(Args, Clone, Debug)]
struct Folders {
    /// Folder of CDI files, repeatable, a later one wins [default: /etc/cdi and /var/run/cdi, or the
    /// configuration file's]
    #[arg(long = "dir", value_name = "DIR")]
    dirs: Vec<PathBuf>,
}

#[derive(Args, Clone, Debug)]
struct List {
    #[command(flatten)]
    folders: Folders,
}

#[derive(Args, Clone, Debug)]
struct Apply {
    /// Folder with a config.json
    bundle: PathBuf,
    /// Devices, as nvidia.com/gpu=0
    #[arg(required = true)]
    devices: Vec<String>,
    #[command(flatten)]
    folders: Folders,
}

impl Cdi {
    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        match self.what {
            What::List(list) => list.run(g),
            What::Apply(apply) => apply.run(g),
            What::Generate(generate) => generate.run(),
        }
    }
}

impl Folders {
    fn read(self, g: &Globals) -> Result<Registry> {
        let dirs = if self.dirs.is_empty() {
            Config::load(None)?.cdi_dirs
        } else {
            // A folder that was typed should be there.
            for dir in &self.dirs {
                std::fs::metadata(dir)
                    .map_err(|e| Error::step("CDI folder", dir.display().to_string(), e))?;
            }
            self.dirs
        };
        let registry = Registry::read(&dirs);
        let warnings = registry.warnings();
        // Always shown: without them a device is missing for no visible reason.
        let loud = Globals {
            verbose: true,
            ..g.clone()
        };
        log::warnings(&loud, &warnings);
        Ok(registry)
    }
}

impl List {
    fn run(self, g: &Globals) -> Result<i32> {
        let registry = self.folders.read(g)?;
        let lines: Vec<(String, String)> = registry
            .devices()
            .map(|(name, file)| (name.to_string(), file.display().to_string()))
            .collect();
        let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines = lines
            .iter()
            .map(|(name, file)| format!("{name:width$}  {file}\n"));
        out::print(&lines.collect::<String>())?;
        Ok(0)
    }
}

impl Apply {
    fn run(self, g: &Globals) -> Result<i32> {
        let Bundle {
            mut spec, warnings, ..
        } = Bundle::read(&self.bundle)?;
        log::warnings(g, &warnings);
        let mut edits = self.folders.read(g)?.resolve(&self.devices)?;
        if nix::unistd::geteuid().is_root() {
            map_ids(&mut edits, &spec);
        }
        edit::apply(&mut spec, &edits)?;
        log::warnings(g, &check::check(&spec)?);
        out::print(&out::pretty(&out::stable(&spec)?)?)?;
        Ok(0)
    }
}

impl Generate {
    fn run(self) -> Result<i32> {
        let asked = self.format.map(|f| match f {
            Notation::Yaml => Format::Yaml,
            Notation::Json => Format::Json,
        });
        let named = self.output.as_deref().and_then(Format::of);
        if let (Some(Format::Yaml), Some(Format::Json), Some(path)) = (asked, named, &self.output) {
            let path = path.display();
            return Err(Error::msg(format!(
                "{path}: would be read as JSON, not YAML"
            )));
        }
        let spec = generate::of_host(&Host::from(&Config::load(None)?))?;
        let text = generate::write(&spec, asked.or(named).unwrap_or(Format::Yaml))?;
        match &self.output {
            Some(path) => replace(path, &text)
                .map_err(|e| Error::step("write", path.display().to_string(), e))?,
            None => out::print(&text)?,
        }
        Ok(0)
    }
}
