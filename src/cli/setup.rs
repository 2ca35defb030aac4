//! `gpucell setup ENGINE`: makes gpucell known to a container engine, in the engine's own configuration.
//!
//! Owns the arguments, what is shown, and what is said to do next. The files below it plan, one an engine;
//! nothing is written before everything is planned. It starts and stops no engine.

mod containerd;
mod docker;
mod dropin;
mod files;
mod toml;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::out;
use crate::{Error, Result};
pub use files::Change;
pub(super) use files::replace;

/// The runtime's name in every engine.
pub const NAME: &str = "gpucell";

/// Make gpucell a runtime of Docker, containerd, podman or CRI-O
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  gpucell setup docker --dry-run
  sudo gpucell setup docker --default && sudo systemctl restart docker
  sudo gpucell setup containerd
  gpucell setup podman
  sudo gpucell setup docker --remove")]
pub struct Setup {
    #[command(subcommand)]
    engine: Engine,
}

/// An engine that can be set up.
#[derive(Clone, Debug, Subcommand)]
pub enum Engine {
    /// /etc/docker/daemon.json, and the link that dockerd looks for before it offers --gpus
    Docker(Flags),
    /// /etc/containerd/config.toml, for Kubernetes and crictl
    Containerd(Flags),
    /// A file in /etc/containers/containers.conf.d
    Podman(Flags),
    /// A file in /etc/crio/crio.conf.d
    Crio(Flags),
}

/// What is to be done with an engine's configuration.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Flags {
    /// Show what would change; write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Make it the runtime of every container that names none
    #[arg(long)]
    pub default: bool,
    /// Take gpucell out of the configuration again
    #[arg(long, conflicts_with = "default")]
    pub remove: bool,
}

/// Where the engines' files are.
#[derive(Clone, Debug)]
pub struct Place {
    /// The folder that stands for `/`.
    pub root: PathBuf,
    /// The configuration folder (`~/.config`) of a user whose own engine is set up; `None`: the system's.
    pub user: Option<PathBuf>,
    /// The runtime's program, as the engine is to call it.
    pub program: String,
}

/// All that would change, and what a person should know.
#[derive(Debug, Default)]
pub struct Plan {
    /// Files and links, in the order they are to be changed in.
    pub changes: Vec<Change>,
    /// One line each.
    pub notes: Vec<String>,
    /// Commands for the person to type next, when something changed.
    pub next: Vec<String>,
}

impl Setup {
    /// Runs the command.
    pub(super) fn run(self) -> Result<i32> {
        let flags = self.engine.flags();
        let plan = plan(&self.engine, &Place::here()?)?;
        let mut text: String = plan.changes.iter().map(Change::show).collect();
        if plan.changes.is_empty() {
            text += match flags.remove {
                true => "gpucell is not in this configuration: nothing to change\n",
                false => "gpucell is in this configuration: nothing to change\n",
            };
        }
        for note in &plan.notes {
            text += &format!("note: {note}\n");
        }
        // What is about to change is shown before it does.
        out::print(&text)?;
        if plan.changes.is_empty() {
            return Ok(0);
        }
        if flags.dry_run {
            out::print("nothing was written (--dry-run)\n")?;
            return Ok(0);
        }
        for change in &plan.changes {
            change.make()?;
        }
        let next: String = plan.next.iter().map(|n| format!("  {n}\n")).collect();
        out::print(&format!("written; next:\n{next}"))?;
        Ok(0)
    }
}

impl Engine {
    fn flags(&self) -> Flags {
        match self {
            Engine::Docker(f) | Engine::Containerd(f) | Engine::Podman(f) | Engine::Crio(f) => *f,
        }
    }
}

/// What setting an engine up would change. Writes nothing.
///
/// # Errors
/// A file that can't be read or isn't valid, with the line; an engine that only root can set up.
pub fn plan(engine: &Engine, place: &Place) -> Result<Plan> {
    match engine {
        Engine::Docker(flags) => docker::plan(*flags, place),
        Engine::Containerd(flags) => containerd::plan(*flags, place),
        Engine::Podman(flags) => dropin::podman(*flags, place),
        Engine::Crio(flags) => dropin::crio(*flags, place),
    }
}

impl Place {
    /// This host: the system's files for root, else the caller's own.
    fn here() -> Result<Place> {
        let user = match nix::unistd::geteuid().is_root() {
            true => None,
            false => Some(config_home().ok_or_else(|| {
                Error::msg("setup: neither XDG_CONFIG_HOME nor HOME is set to an absolute path")
            })?),
        };
        Ok(Place {
            root: "/".into(),
            user,
            program: program()?,
        })
    }

    /// A file of the system's, or of the user's where an engine has such.
    fn file(&self, system: &str, user: &str) -> PathBuf {
        match &self.user {
            Some(home) => home.join(user),
            None => self.root.join(system),
        }
    }

    /// Refuses an engine that runs as root only.
    fn system_only(&self, engine: &str) -> Result<()> {
        match self.user {
            Some(_) => Err(Error::msg(format!(
                "setup {engine}: its configuration is root's; run as root"
            ))),
            None => Ok(()),
        }
    }

    /// How systemd is called for an engine's service.
    fn systemctl(&self, what: &str) -> String {
        match self.user {
            Some(_) => format!("systemctl --user {what}"),
            None => format!("systemctl {what}"),
        }
    }
}

/// XDG base directory specification.
fn config_home() -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))
}

/// This program's path. If PATH has it under the name gpucell, that one: it outlives an upgrade that moves
/// the file behind a link.
fn program() -> Result<String> {
    let this = std::env::current_exe()
        .and_then(std::fs::canonicalize)
        .map_err(|e| Error::step("find", "this program's file", e))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let named = std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(NAME))
        .find(|file| std::fs::canonicalize(file).is_ok_and(|f| f == this));
    let found = named.unwrap_or(this);
    text(&found).map(str::to_owned)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| Error::msg(format!("setup: {path:?} is not UTF-8")))
}
