//! `gpucell completions SHELL` and `gpucell man DIR`: made from the command tree itself.

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use super::out;
use crate::{Error, Result};

/// Print the completion script of a shell
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  gpucell completions bash > /usr/share/bash-completion/completions/gpucell")]
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
        pages(&tree, &self.dir)?;
        Ok(0)
    }
}

/// One page for the program and one a command that isn't hidden: `gpucell.1`, `gpucell-exec.1`.
fn pages(tree: &Command, dir: &Path) -> Result<()> {
    let mut tree = tree.clone();
    tree.build();
    page(&tree, "gpucell", dir)?;
    for sub in tree.get_subcommands() {
        if sub.is_hide_set() || sub.get_name() == "help" {
            continue;
        }
        page(sub, &format!("gpucell-{}", sub.get_name()), dir)?;
    }
    Ok(())
}

fn page(command: &Command, name: &str, dir: &Path) -> Result<()> {
    let file = format!("{name}.1");
    let failed = |e| Error::step("write man page", file.clone(), e);
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone().name(name.to_owned()))
        .render(&mut text)
        .map_err(failed)?;
    std::fs::write(dir.join(&file), text).map_err(failed)
}
