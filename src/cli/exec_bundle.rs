//! `gpucell exec BUNDLE/ [flags] [--] [command…]`: a bundle run in place.

use std::path::{Path, PathBuf};

use clap::Args;

use super::flags::{Context, Flags};
use super::launch::{Bundle, Launch, failure, furnish, resolve};
use super::people::{Folders, Hold, Setting, cell_name, hold_bundle, random};
use super::{Failure, Globals, log};
use crate::cell::CreateOptions;
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  gpucell exec bundles/miniconda/ --memory 4g --cpus 2 -- python train.py
  gpucell exec -it -v ./work:/home/aiuser/workspace:idmap bundles/miniconda/ bash
  gpucell exec -d --name nightly bundles/job/ && gpucell logs -f nightly
  gpucell exec -t nightly sh

A name without a / is a cell that runs already: the command is executed in it, with runc's flags
(gpucell exec-cell --help).
";

/// Run a bundle in place
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ExecBundle {
    #[command(flatten)]
    flags: Flags,
    /// Where logs and volumes are kept [default: /var/lib/gpucell, or $XDG_DATA_HOME/gpucell as a user]
    #[arg(long, value_name = "DIR", help_heading = "Cell")]
    store: Option<PathBuf>,
    /// The bundle's folder, with a / in it
    #[arg(value_name = "BUNDLE/")]
    bundle: PathBuf,
    /// The program and its arguments, instead of the bundle's own
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    command: Vec<String>,
}

impl ExecBundle {
    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32, Failure> {
        let set = Setting::new(g, self.store.clone());
        self.start(g, &set).map_err(failure)?.run(g, &set)
    }

    fn start(self, g: &Globals, set: &Setting) -> Result<Ready> {
        // A name without a slash is kept for cells, as runc's exec takes them.
        if !self.bundle.to_string_lossy().contains('/') {
            let name = self.bundle.display();
            return Err(Error::msg(format!(
                "{name} is no bundle's path: write ./{name} or {name}/ (a cell of that name takes only \
                 the flags of gpucell exec-cell --help)"
            )));
        }
        let bundle = Bundle::read(&self.bundle)?;
        log::warnings(g, &bundle.warnings);
        let from = bundle.path.to_string_lossy().into_owned();
        let id = cell_name(&self.flags, &from, Some(random()))?;
        let etc = set.cell_etc(&id);
        let ctx = Context {
            spec: &bundle.spec,
            id: &id,
            command: &self.command,
            entrypoint: None,
            dir: &etc,
        };
        let state = Some(set.cells.root());
        let (high, spec) = resolve(set, &self.flags, &bundle, &ctx, Vec::new(), state)?;
        let readonly = spec.root().as_ref().and_then(|r| r.readonly());
        let how = match readonly {
            Some(true) => Hold::Shared,
            _ => Hold::Alone,
        };
        let hold = hold_bundle(&bundle.path, how)?;
        let mut folders = Folders::default();
        let etc = match high.files.is_empty() {
            true => None,
            false => Some(folders.make(set, &id, etc, 0o711)?),
        };
        let log_dir = match self.flags.detach {
            true => Some(folders.make(set, &id, set.cell_data(&id), 0o700)?),
            false => None,
        };
        furnish(&bundle, &high, etc.as_deref())?;
        let opts = CreateOptions {
            id,
            bundle: bundle.path,
            spec,
            nvidia: high.gpus.driver,
            driver: set.driver,
            remove: folders.list(),
            ..CreateOptions::default()
        };
        Ok(Ready {
            flags: self.flags,
            opts,
            folders,
            log_dir,
            hold,
            warnings: high.warnings,
        })
    }
}

/// All made but the cell.
struct Ready {
    flags: Flags,
    opts: CreateOptions,
    folders: Folders,
    log_dir: Option<PathBuf>,
    hold: std::fs::File,
    warnings: Vec<String>,
}

impl Ready {
    fn run(self, globals: &Globals, set: &Setting) -> Result<i32, Failure> {
        // In the foreground nothing of it is worth keeping: the root is the bundle's. In the
        // background the log is, unless --rm.
        let keep = self.flags.detach && !self.flags.rm;
        Launch {
            globals,
            set,
            flags: &self.flags,
            opts: self.opts,
            folders: self.folders,
            log_dir: self.log_dir,
            hold: self.hold,
            keep,
        }
        .run(&self.warnings)
    }
}

/// The parts `explain` needs.
impl ExecBundle {
    pub(super) fn parts(&self) -> (&Flags, &Path, &[String], Option<&PathBuf>) {
        (
            &self.flags,
            &self.bundle,
            &self.command,
            self.store.as_ref(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    #[command(disable_help_flag = true)]
    struct Trial {
        #[command(flatten)]
        args: ExecBundle,
    }

    fn parse(words: &[&str]) -> ExecBundle {
        let argv = std::iter::once("exec").chain(words.iter().copied());
        Trial::try_parse_from(argv).unwrap().args
    }

    #[test]
    fn flags_stand_before_and_after_the_bundle() {
        let rows: &[(&[&str], &[&str])] = &[
            (&["b/", "-m", "4g", "--", "ls", "-l"], &["ls", "-l"]),
            (&["-m", "4g", "b/", "ls", "-l"], &["ls", "-l"]),
            (&["b/", "-m", "4g", "ls", "-m", "1"], &["ls", "-m", "1"]),
            (&["b/", "-m4g"], &[]),
            (&["-m=4g", "b/", "--", "--help"], &["--help"]),
        ];
        for (words, command) in rows {
            let args = parse(words);
            assert_eq!(args.flags.memory.as_deref(), Some("4g"), "{words:?}");
            assert_eq!(args.command, *command, "{words:?}");
            assert_eq!(args.bundle, Path::new("b/"));
        }
        let it = parse(&["-it", "--rm", "b/", "sh"]);
        assert!(it.flags.interactive && it.flags.tty && it.flags.rm);
    }

    #[test]
    fn a_folder_without_a_configuration_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let err: Error = Bundle::read(dir.path()).map(drop).unwrap_err();
        assert!(err.to_string().contains("holds no config.json"), "{err}");
    }
}
