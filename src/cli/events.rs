//! `gpucell events`: what a cell uses, and its OOM kills, a line of JSON each.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

use clap::Args;

use super::{Globals, units};
use crate::cell::{Watched, events::Event};
use crate::{Error, Result};

/// Figures are not taken more often than this: reading them costs the host too.
const SHORTEST: Duration = Duration::from_millis(10);

/// Print what a cell uses, and when it runs out of memory, as JSON
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpucell events --stats one\n  gpucell events --interval 1s one"
)]
pub struct Events {
    /// Name of the cell
    id: String,
    /// Time between two lines, such as 500ms or 1m30s (10ms at least)
    #[arg(long, value_name = "TIME", default_value = "5s")]
    interval: String,
    /// One line with what it uses now, and no more
    #[arg(long)]
    stats: bool,
}

impl Events {
    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        let interval = units::duration(&self.interval)
            .map_err(|e| Error::msg(format!("invalid value for interval: {e}")))?;
        if interval.is_zero() {
            return Err(Error::msg("duration interval must be greater than 0"));
        }
        let cell = Watched::open(&g.store(), &self.id)?;
        if self.stats {
            line(&cell.stats()?)?;
            return Ok(0);
        }
        let out = std::io::stdout();
        cell.follow(interval.max(SHORTEST), out.as_fd(), &mut line)?;
        Ok(0)
    }
}

/// Writes one event; false when nobody reads any more.
fn line(event: &Event<'_>) -> Result<bool> {
    let mut text = serde_json::to_string(event).map_err(|e| Error::msg(format!("JSON: {e}")))?;
    text.push('\n');
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Error::step("write", "standard output", e)),
    }
}
