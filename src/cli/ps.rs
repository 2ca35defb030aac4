//! `gpucell ps`: the processes of a cell, as ps(1) on the host shows them.

use std::process::Command;

use clap::Args;

use super::{Globals, out};
use crate::{Error, Result, cell};

/// List the processes of a cell
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpucell ps one\n  gpucell ps --format json one\n  gpucell ps one -o pid,rss,args"
)]
pub struct Ps {
    /// table, or json: the process ids on the host
    #[arg(short, long, value_parser = ["table", "json"], default_value = "table")]
    format: String,
    /// Name of the cell; then arguments for ps(1) [default: -ef]
    #[arg(value_names = ["ID", "PS ARGUMENT"], required = true, trailing_var_arg = true)]
    operands: Vec<String>,
}

impl Ps {
    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        let (id, args) = self
            .operands
            .split_first()
            .ok_or_else(|| Error::msg("the name of a cell is missing"))?;
        let pids = cell::processes(&g.store(), id)?;
        let text = if self.format == "json" {
            let list: Vec<String> = pids.iter().map(ToString::to_string).collect();
            format!("[{}]\n", list.join(","))
        } else {
            only(&ps(args)?, &pids)?
        };
        out::print(&text)?;
        Ok(0)
    }
}

/// What ps(1) says of all processes.
fn ps(args: &[String]) -> Result<String> {
    let mut command = Command::new("ps");
    match args.is_empty() {
        true => command.arg("-ef"),
        false => command.args(args),
    };
    let done = command.output().map_err(|e| {
        let what = "(for --format table; --format json does without it)";
        Error::step("run", format!("ps {what}"), e)
    })?;
    if !done.status.success() {
        let said = [done.stdout, done.stderr].concat();
        return Err(Error::msg(format!(
            "ps {}: {}: {}",
            args.join(" "),
            done.status,
            String::from_utf8_lossy(&said).trim()
        )));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// The title and the lines of these processes. The title says which column holds the process id.
fn only(table: &str, pids: &[i32]) -> Result<String> {
    let mut lines = table.lines();
    let title = lines.next().unwrap_or_default();
    let column = title
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or_else(|| Error::msg("couldn't find PID field in ps output"))?;
    let mut text = format!("{title}\n");
    for line in lines {
        let pid = line.split_whitespace().nth(column);
        if pid
            .and_then(|p| p.parse().ok())
            .is_some_and(|p| pids.contains(&p))
        {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_the_pid_column() {
        let table = "USER   PID CMD\nroot    12 a 7\nroot     7 b\n\nx\n";
        assert_eq!(
            only(table, &[7, 99]).unwrap(),
            "USER   PID CMD\nroot     7 b\n"
        );
        assert!(only("USER CMD\nroot a\n", &[7]).is_err());
        assert!(only("", &[7]).is_err());
    }
}
