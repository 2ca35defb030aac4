//! `gpucell pause`, `gpucell resume`.

use clap::Args;

use super::Globals;
use crate::{Result, cell};

/// Stop all processes of a cell where they are
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gpucell pause one && gpucell resume one")]
pub struct Pause {
    /// Name of the cell
    id: String,
}

impl Pause {
    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        cell::pause(&g.store(), &self.id).map(|()| 0)
    }
}

/// Let a paused cell go on
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gpucell resume one")]
pub struct Resume {
    /// Name of the cell
    id: String,
}

impl Resume {
    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        cell::resume(&g.store(), &self.id).map(|()| 0)
    }
}
