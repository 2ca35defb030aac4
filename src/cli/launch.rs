//! From a bundle and flags to a running cell: what `exec BUNDLE/`, `run` and `explain` share.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::flags::{Context, Flags, High, raise, thread_warning};
use super::people::{Folders, Setting, write_etc};
use super::{Failure, Globals, log, monitor, units, volume};
use crate::cell::{self, CreateOptions, RunOptions};
use crate::cgroup::OomInfo;
use crate::nvidia::config::Config;
use crate::nvidia::{inject, select};
use crate::spec::{edit, load};
use crate::sys::daemon;
use crate::{Error, Result};

/// Docker's exit code for a failure of its own (docker run, "Exit status").
pub const OWN: i32 = 125;

/// An error as the people's commands exit with it: 126 and 127 when the program can't be executed, 125
/// for all else.
pub fn failure(error: Error) -> Failure {
    let code = match &error {
        Error::Exec { code, .. } => *code,
        _ => OWN,
    };
    Failure { error, code }
}

/// A bundle, read.
pub struct Bundle {
    /// Its folder, absolute.
    pub path: PathBuf,
    /// Its root, absolute.
    pub rootfs: PathBuf,
    /// Its configuration.
    pub spec: Spec,
    /// What was tolerated in it.
    pub warnings: Vec<String>,
}

impl Bundle {
    /// Reads the bundle in a folder.
    ///
    /// # Errors
    /// There is no config.json, or it is wrong.
    pub fn read(folder: &Path) -> Result<Self> {
        let show = folder.display().to_string();
        let path = std::fs::canonicalize(folder)
            .map_err(|e| Error::step("open bundle", show.clone(), e))?;
        if !path.join("config.json").exists() {
            return Err(Error::msg(format!(
                "{show} is no bundle: it holds no config.json (gpucell pull IMAGE {show} makes one)"
            )));
        }
        let loaded = load::load(&path)?;
        let root = loaded.spec.root().as_ref().map(|r| r.path().clone());
        let root = root.ok_or_else(|| Error::config("root", "missing"))?;
        Ok(Bundle {
            rootfs: path.join(root),
            path,
            spec: loaded.spec,
            warnings: loaded.warnings,
        })
    }
}

/// The flags with the bundle: the edits, and the Spec they make. What is found of GPUs is kept below
/// `state`, for the next cell.
///
/// # Errors
/// Of the flags, or of an edit.
pub fn resolve(
    set: &Setting,
    flags: &Flags,
    bundle: &Bundle,
    ctx: &Context<'_>,
    before: Vec<edit::Edit>,
    state: Option<&Path>,
) -> Result<(High, Spec)> {
    let host = set.host(&bundle.rootfs);
    let mut spec = ctx.spec.clone();
    edit::apply(&mut spec, &before)?;
    let ctx = Context {
        spec: &spec,
        ..*ctx
    };
    let mut high = raise(flags, &ctx, &host)?;
    let mut out = spec.clone();
    edit::apply(&mut out, &high.edits)?;
    high.edits.splice(0..0, before);
    gpus(flags, bundle, state, &mut high, &mut out)?;
    high.warnings.extend(thread_warning(&out, &host));
    Ok((high, out))
}

/// Adds the GPUs: those of `--gpus` and `--device vendor/class=name`, else those that the configuration
/// asks for.
fn gpus(
    flags: &Flags,
    bundle: &Bundle,
    state: Option<&Path>,
    high: &mut High,
    spec: &mut Spec,
) -> Result<()> {
    let flag = match flags.gpus.as_slice() {
        [] => None,
        list => Some(select::from_flag(list, &Config::load(None)?)?),
    };
    let names = flags.device.iter().filter(|d| select::qualified(d));
    let wish = inject::Wish {
        flag,
        cdi: names
            .map(|name| select::CdiName {
                name: name.clone(),
                from: format!("--device {name}"),
            })
            .collect(),
        hook: inject::take_hook(spec),
        ..inject::Wish::default()
    };
    let cell = inject::Cell {
        rootfs: &bundle.rootfs,
        state,
        rootless: !crate::sys::cred::host_root(),
    };
    let mut found = inject::edits(spec, wish, &cell)?;
    edit::apply(spec, &found.edits)?;
    high.edits.append(&mut found.edits);
    high.warnings.append(&mut found.warnings);
    high.gpus = found;
    Ok(())
}

/// A cell about to be made.
pub struct Launch<'a> {
    /// Global flags.
    pub globals: &'a Globals,
    /// Where cells are.
    pub set: &'a Setting,
    /// Its flags.
    pub flags: &'a Flags,
    /// What the engine gets.
    pub opts: CreateOptions,
    /// Its own folders.
    pub folders: Folders,
    /// Where its log goes when detached.
    pub log_dir: Option<PathBuf>,
    /// The bundle's lock, held while the cell lives.
    pub hold: File,
    /// Its state, log and layer stay when it ends.
    pub keep: bool,
}

/// Makes what the flags ask for beside the Spec: files of /etc, named volumes, nodes of GPUs. Returns nothing to
/// undo: the folders are the caller's, volumes stay as Docker's do.
///
/// # Errors
/// A failed write.
pub fn furnish(bundle: &Bundle, high: &High, etc: Option<&Path>) -> Result<()> {
    if let Some(dir) = etc {
        write_etc(dir, &high.files)?;
    }
    volume::make_all(&bundle.rootfs, &high.volumes)?;
    high.gpus.make_nodes()
}

impl Launch<'_> {
    /// Runs the cell, in the foreground or the background. Returns the exit code.
    ///
    /// # Errors
    /// The cell was not made, or not followed to its end.
    pub fn run(self, warnings: &[String]) -> Result<i32, Failure> {
        if !self.flags.quiet {
            warn(self.globals, warnings);
        }
        if self.flags.detach {
            self.background()
        } else {
            self.foreground()
        }
    }

    fn foreground(mut self) -> Result<i32, Failure> {
        let flags = self.flags;
        if flags.interactive && flags.tty && !std::io::stdin().is_terminal() {
            return Err(failure(Error::msg("the input device is not a TTY")));
        }
        if !flags.interactive && !flags.tty {
            self.opts.stdio[0] = Some(null().map_err(failure)?.into());
        }
        let how = RunOptions {
            detach: false,
            keep: self.keep,
            no_subreaper: false,
            interactive: flags.interactive,
        };
        let outcome = cell::run(&self.set.cells, self.opts, how).map_err(failure)?;
        self.folders.keep();
        log::warnings(self.globals, &outcome.warnings);
        if let Some(oom) = outcome.oom {
            eprintln!("gpucell: {}", oom_line(&oom));
        }
        drop(self.hold);
        Ok(outcome.code)
    }

    /// Leaves a monitor behind that is the cell's parent, writes its log and removes it with `--rm`.
    fn background(self) -> Result<i32, Failure> {
        let id = self.opts.id.clone();
        let pipe = std::io::pipe();
        let (mut answer, report) = pipe.map_err(|e| failure(Error::step("make", "pipe", e)))?;
        match daemon::fork().map_err(|e| failure(Error::step("fork", "monitor", e)))? {
            daemon::Side::Child => {
                drop(answer);
                // Never returns to main(): its output and exit code are the parent's.
                monitor::run(self, report)
            }
            daemon::Side::Parent(_) => {
                drop(report);
                // The folders are the monitor's now.
                self.folders.keep();
                let mut text = String::new();
                let read = answer.read_to_string(&mut text);
                read.map_err(|e| failure(Error::step("hear from", "monitor", e)))?;
                monitor::Report::read(&text).map_err(|(text, code)| Failure {
                    error: Error::msg(text),
                    code,
                })?;
                let _ = writeln!(std::io::stdout(), "{id}");
                Ok(0)
            }
        }
    }
}

/// Warnings a person should see: on a terminal, or with `-v`; always in the log.
fn warn(globals: &Globals, list: &[String]) {
    if !globals.verbose && std::io::stderr().is_terminal() {
        for text in list {
            eprintln!("gpucell: warning: {text}");
        }
    }
    log::warnings(globals, list);
}

/// /dev/null, for a program without `-i`.
///
/// # Errors
/// It can't be opened.
pub fn null() -> Result<File> {
    File::open("/dev/null").map_err(|e| Error::step("open", "/dev/null", e))
}

/// What is said when a cell died of its memory limit.
pub fn oom_line(oom: &OomInfo) -> String {
    let peak = oom.peak.map_or_else(String::new, |p| {
        format!(" (peak {})", units::human_exact(p))
    });
    match oom.limit {
        Some(limit) => format!(
            "cell killed by its memory limit {}{peak}",
            units::human(limit)
        ),
        None => format!("cell killed by the kernel: the machine ran out of memory{peak}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_about_memory() {
        let mut oom = OomInfo {
            limit: Some(64 << 20),
            peak: Some(64 << 20),
            kills: 1,
        };
        assert_eq!(
            oom_line(&oom),
            "cell killed by its memory limit 64 MiB (peak 64.0 MiB)"
        );
        oom.peak = None;
        assert_eq!(oom_line(&oom), "cell killed by its memory limit 64 MiB");
        oom.limit = None;
        assert!(oom_line(&oom).contains("machine"));
    }

    #[test]
    fn exit_codes_are_dockers() {
        let exec = |code| Error::Exec {
            text: "exec".into(),
            code,
        };
        assert_eq!(failure(exec(127)).code, 127);
        assert_eq!(failure(exec(126)).code, 126);
        assert_eq!(failure(Error::msg("x")).code, 125);
    }
}
