//! `gpucell config`: the effective configuration as TOML, and which file it came from.

use clap::Args;

use super::out;
use crate::Result;
use crate::nvidia::config;

/// Print the effective configuration as TOML
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The file is /etc/gpucell/config.toml, or the one that GPUCELL_CONFIG names.

Example:
  gpucell config > config.toml && sudo install -D -m 644 config.toml /etc/gpucell/config.toml")]
pub struct Config {}

impl Config {
    /// Runs the command.
    pub(super) fn run(self) -> Result<i32> {
        out::print(&config::Config::load(None)?.to_toml()?)?;
        Ok(0)
    }
}
