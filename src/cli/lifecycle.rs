//! runc's commands: create, start, state, kill, delete, list, run.

use super::{Globals, log};
use crate::cell::{self, CreateOptions, RunOptions, Until, create};
use crate::nvidia::cache::Driver;
use crate::nvidia::inject;
use crate::spec::{edit, load};
use crate::{Error, Result};
use clap::Args;
use oci_spec::runtime::Spec;
use std::path::{Path, PathBuf};

/// Flags that `create` and `run` share.
#[derive(Debug, Args)]
pub struct Common {
    /// Name of the cell
    pub id: String,
    /// Directory of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// AF_UNIX socket that receives the terminal's master
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// AF_UNIX socket that receives the pidfd of the first process
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Write the pid of the first process to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Don't use pivot_root (for roots on an initramfs)
    #[arg(long)]
    pub no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass this many descriptors, from 3 on, to the program
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
}

impl Common {
    fn options(self, globals: &Globals) -> Result<CreateOptions> {
        create::sanitize_fds(self.preserve_fds)?;
        Ok(CreateOptions {
            console_socket: self.console_socket,
            pidfd_socket: self.pidfd_socket,
            pid_file: self.pid_file,
            no_pivot: self.no_pivot,
            no_new_keyring: self.no_new_keyring,
            preserve_fds: self.preserve_fds,
            ..configured(globals, self.id, self.bundle)?
        })
    }
}

/// A cell as its bundle has it, with the GPUs it asks for.
pub fn configured(globals: &Globals, id: String, bundle: PathBuf) -> Result<CreateOptions> {
    let text = load::read(&bundle)?;
    let loaded = load::parse(&text)?;
    log::warnings(globals, &loaded.warnings);
    let mut spec = loaded.spec;
    let (edited, nvidia) = gpus(globals, &mut spec, &bundle)?;
    Ok(CreateOptions {
        id,
        bundle,
        spec,
        config: (!edited).then_some(text),
        nvidia,
        driver: globals.driver(),
        ..CreateOptions::default()
    })
}

/// A detached cell's terminal needs a receiver, and only a detached one's has another than us.
pub fn refuse_terminal(opts: &CreateOptions, detach: bool) -> Result<()> {
    let terminal = opts
        .spec
        .process()
        .as_ref()
        .is_some_and(|p| p.terminal().unwrap_or(false));
    if detach && terminal && opts.console_socket.is_none() {
        return Err(Error::msg(
            "cannot allocate tty if the cell is detached without setting console socket",
        ));
    }
    if !detach && opts.console_socket.is_some() {
        return Err(Error::msg(
            "cannot use console socket if the cell is not detached",
        ));
    }
    Ok(())
}

/// Gives the cell the GPUs its configuration asks for, as NVIDIA's runtime does. Returns whether the
/// configuration was changed, and the driver.
fn gpus(globals: &Globals, spec: &mut Spec, bundle: &Path) -> Result<(bool, Option<Driver>)> {
    let hook = inject::take_hook(spec);
    let Some(root) = spec.root().as_ref() else {
        return Ok((hook, None));
    };
    let wish = inject::Wish {
        hook,
        ..inject::Wish::default()
    };
    let store = globals.store();
    let cell = inject::Cell {
        rootfs: &bundle.join(root.path()),
        state: Some(store.root()),
        rootless: !crate::sys::cred::host_root(),
    };
    let found = inject::edits(spec, wish, &cell)?;
    log::warnings(globals, &found.warnings);
    edit::apply(spec, &found.edits)?;
    found.make_nodes()?;
    Ok((hook || !found.edits.is_empty(), found.driver))
}

/// `create`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  gpucell create --bundle /bundles/hello one && gpucell start one"
)]
pub struct Create {
    #[command(flatten)]
    common: Common,
}

impl Create {
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        let made = cell::create(&g.store(), self.common.options(g)?, Until::Created)?;
        log::warnings(g, &made.warnings);
        Ok(0)
    }
}

/// `run` as runc has it.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gpucell run --bundle /bundles/hello one")]
pub struct Run {
    #[command(flatten)]
    common: Common,
    /// Return once the program runs
    #[arg(short, long)]
    detach: bool,
    /// Leave the state when the program ends
    #[arg(long)]
    keep: bool,
    /// Don't take in the cell's orphans
    #[arg(long)]
    no_subreaper: bool,
}

impl Run {
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        let opts = self.common.options(g)?;
        refuse_terminal(&opts, self.detach)?;
        let how = RunOptions {
            detach: self.detach,
            keep: self.keep,
            no_subreaper: self.no_subreaper,
            interactive: true,
        };
        let outcome = cell::run(&g.store(), opts, how)?;
        log::warnings(g, &outcome.warnings);
        Ok(outcome.code)
    }
}

/// `start`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gpucell start one")]
pub struct Start {
    /// Name of the cell
    id: String,
}

impl Start {
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        cell::start(&g.store(), &self.id).map(|()| 0)
    }
}

/// `state`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gpucell state one")]
pub struct StateArgs {
    /// Name of the cell
    id: String,
}

impl StateArgs {
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        let store = g.store();
        let view = store.load(&self.id)?.view(&store);
        print_json(&view)?;
        Ok(0)
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::step("encode", "JSON", std::io::Error::other(e)))?;
    println!("{text}");
    Ok(())
}

/// `kill`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  gpucell kill one\n  gpucell kill --all one KILL")]
pub struct Kill {
    /// Name of the cell
    id: String,
    /// Signal by name or number
    #[arg(default_value = "SIGTERM")]
    signal: String,
    /// Signal every process of the cell
    #[arg(short, long)]
    all: bool,
}

impl Kill {
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        let signal = parse_signal(&self.signal)?;
        cell::kill(&g.store(), &self.id, signal, self.all).map(|()| 0)
    }
}

/// `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3`.
pub fn parse_signal(text: &str) -> Result<i32> {
    let bad = || Error::msg(format!("unknown signal {text:?}"));
    if let Ok(n) = text.parse::<i32>() {
        return if (0..=64).contains(&n) {
            Ok(n)
        } else {
            Err(bad())
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = |rest: &str| match rest {
        "" => Some(0),
        _ => rest.parse::<i32>().ok(),
    };
    // signal(7): real-time signals are named relative to both ends, 34 to 64 in glibc.
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return number(rest.trim_start_matches('+'))
            .map(|n| 34 + n)
            .filter(|n| (34..=64).contains(n))
            .ok_or_else(bad);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return number(rest.trim_start_matches('-'))
            .map(|n| 64 - n)
            .filter(|n| (34..=64).contains(n))
            .ok_or_else(bad);
    }
    format!("SIG{name}")
        .parse::<nix::sys::signal::Signal>()
        .map(|s| s as i32)
        .map_err(|_| bad())
}

/// `delete`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  gpucell delete one\n  gpucell delete --force one")]
pub struct Delete {
    /// Name of the cell
    id: String,
    /// Kill what still runs; a cell that doesn't exist is no error
    #[arg(short, long)]
    force: bool,
}

impl Delete {
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        cell::delete(&g.store(), &self.id, self.force).map(|()| 0)
    }
}

/// `list`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  gpucell list\n  gpucell list --format json")]
pub struct List {
    /// table or json
    #[arg(short, long, value_parser = ["table", "json"], default_value = "table")]
    format: String,
    /// Names only
    #[arg(short, long)]
    quiet: bool,
}

impl List {
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        let views = cell::list(&g.store())?;
        if self.quiet {
            views.iter().for_each(|v| println!("{}", v.id));
        } else if self.format == "json" {
            let text = serde_json::to_string(&views)
                .map_err(|e| Error::step("encode", "JSON", std::io::Error::other(e)))?;
            println!("{text}");
        } else {
            let width = views.iter().map(|v| v.id.len()).max().unwrap_or(0).max(2);
            println!(
                "{:width$}  {:>7}  {:8}  {:30}  {:8}  BUNDLE",
                "ID", "PID", "STATUS", "CREATED", "OWNER"
            );
            for v in &views {
                println!(
                    "{:width$}  {:>7}  {:8}  {:30}  {:8}  {}",
                    v.id,
                    v.pid,
                    v.status.to_string(),
                    v.created,
                    v.owner,
                    v.bundle.display()
                );
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        let table = [
            ("TERM", 15),
            ("SIGKILL", 9),
            ("sighup", 1),
            ("15", 15),
            ("0", 0),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ];
        for (text, want) in table {
            assert_eq!(parse_signal(text).unwrap(), want, "{text}");
        }
        for bad in ["", "NOPE", "65", "-1", "RTMIN+31", "RTMAX-x"] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }
}
