//! `gpucell completions SHELL` and `gpucell man DIR`: made from the command tree itself.

use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use super::out;
use crate::{Error, Result};

/// Print the completion script of a shell
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  gpucell completions bash > /usr/share/bash-completion/completions/gpucell"
)]
pub struct Completions {
    /// Which shell
    shell: Shell,
}

/// Write the man pages
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  gpucell man /usr/local/share/man/man1")]
pub struct Man {
    /// Folder for them
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Completions {
    /// Runs the command.
    pub(super) fn run(self, mut tree: Command) -> Result<i32> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut tree, "gpucell", &mut script);
        out::print(&String::from_utf8_lossy(&script))?;
        Ok(0)
    }
}

impl Man {
    /// Runs the command.
    pub(super) fn run(self, tree: Command) -> Result<i32> {
        std::fs::create_dir_all(&self.dir)
            .map_err(|e| Error::step("make", self.dir.display().to_string(), e))?;
        // One page for the program and one a command that isn't hidden: gpucell.1, gpucell-exec.1.
        clap_mangen::generate_to(tree.disable_help_subcommand(true), &self.dir)
            .map_err(|e| Error::step("write man pages in", self.dir.display().to_string(), e))?;
        Ok(0)
    }
}
