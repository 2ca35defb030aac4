//! `gpucell exec [flags] CELL COMMAND…`: one more process in a cell, as runc's exec.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::Args;

use super::{Failure, Globals, log};
use crate::cell::{self, ExecOptions, create};
use crate::spec::lower::exec::Changes;
use crate::{Error, Result};

/// runc's exit code for everything that keeps the program from being executed.
const FAILED: i32 = 255;

const EXAMPLES: &str = "\
Examples:
  gpucell exec one ps aux
  gpucell exec -t -e TERM=xterm -u aiuser --cwd /tmp one bash
  gpucell exec --process process.json --detach --pid-file pid one
";

/// Execute a program in a cell
#[derive(Args, Clone, Debug)]
#[command(
    override_usage = "gpucell exec [OPTIONS] CELL COMMAND [ARG]...\n       gpucell exec [OPTIONS] --process FILE CELL",
    after_help = EXAMPLES
)]
pub struct ExecCell {
    /// The process as JSON, as config.json has it below `process`
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Working directory in the cell
    #[arg(long, value_name = "DIR", short_alias = 'w', alias = "workdir")]
    cwd: Option<String>,
    /// Environment NAME=VALUE
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give the program a terminal
    #[arg(short, long)]
    tty: bool,
    /// Accepted for those used to Docker: standard input is passed on anyway
    #[arg(short, long, hide = true)]
    interactive: bool,
    /// User UID[:GID], or by the names of the cell
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Supplementary group, added to the cell's
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// Return once the program is executed
    #[arg(short, long)]
    detach: bool,
    /// AF_UNIX socket that receives the terminal's master
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// AF_UNIX socket that receives the pidfd of the program
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
    /// Write the pid of the program to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// The program can gain no privileges
    #[arg(long)]
    no_new_privs: bool,
    /// Capability added to the cell's
    #[arg(short, long, value_name = "CAP")]
    cap: Vec<String>,
    /// Pass this many descriptors, from 3 on, to the program
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Existing cgroup below the cell's to run in; with cgroup v1 one for each controller
    #[arg(long, value_name = "[CONTROLLER:]PATH")]
    cgroup: Vec<String>,
    /// Also into a paused cell: the program waits until it is resumed
    #[arg(long)]
    ignore_paused: bool,
    /// Accepted for runc's callers: orphans are never taken in
    #[arg(long, hide = true)]
    no_subreaper: bool,
    /// The cell, then the program and its arguments
    #[arg(value_names = ["CELL", "COMMAND"], required = true, trailing_var_arg = true)]
    operands: Vec<String>,
}

impl ExecCell {
    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32, Failure> {
        let fail = |error| Failure {
            error,
            code: FAILED,
        };
        let opts = self.options().map_err(fail)?;
        let outcome = cell::exec(&g.store(), &opts).map_err(fail)?;
        log::warnings(g, &outcome.warnings);
        Ok(outcome.code)
    }

    fn options(self) -> Result<ExecOptions> {
        create::sanitize_fds(self.preserve_fds)?;
        let (id, args) = self
            .operands
            .split_first()
            .ok_or_else(|| Error::msg("the name of a cell is missing"))?;
        if args.is_empty() && self.process.is_none() {
            return Err(Error::msg(format!(
                "no program given to execute in cell {id}"
            )));
        }
        let text = |t: Option<String>| t.filter(|t| !t.is_empty());
        Ok(ExecOptions {
            id: id.clone(),
            process: self.process,
            changes: Changes {
                args: args.to_vec(),
                cwd: text(self.cwd),
                env: self.env,
                tty: self.tty,
                user: None,
                additional_gids: self.additional_gids,
                label: text(self.process_label),
                apparmor: text(self.apparmor),
                no_new_privs: self.no_new_privs,
                caps: self.cap,
            },
            user: text(self.user),
            groups: self.cgroup,
            console_socket: self.console_socket,
            pidfd_socket: self.pidfd_socket,
            pid_file: self.pid_file,
            detach: self.detach,
            preserve_fds: self.preserve_fds,
            ignore_paused: self.ignore_paused,
        })
    }
}

/// Flags that take a value; a test compares them with the parser's.
const VALUED: [&str; 14] = [
    "process",
    "cwd",
    "workdir",
    "env",
    "user",
    "additional-gids",
    "console-socket",
    "pidfd-socket",
    "pid-file",
    "process-label",
    "apparmor",
    "cap",
    "preserve-fds",
    "cgroup",
];
const VALUED_SHORT: &str = "pweugc";
/// Flags that take none.
const PLAIN: [&str; 6] = [
    "tty",
    "interactive",
    "detach",
    "no-new-privs",
    "ignore-paused",
    "no-subreaper",
];
const PLAIN_SHORT: &str = "tid";

/// Whether what follows `exec` names a cell: its first operand has no slash, and all flags before it
/// are among runc's. Parsing both ways to find out would cost more than the rest of the command line.
pub(super) fn names_a_cell(rest: &[OsString]) -> bool {
    let mut rest = rest.iter().map(OsString::as_os_str);
    while let Some(arg) = rest.next() {
        match flag(arg) {
            Flag::Operand => return is_name(arg),
            Flag::End => return rest.next().is_some_and(is_name),
            Flag::Plain => {}
            Flag::Valued => {
                rest.next();
            }
            Flag::Unknown => return false,
        }
    }
    false
}

fn is_name(arg: &OsStr) -> bool {
    !arg.as_encoded_bytes().contains(&b'/')
}

enum Flag {
    Operand,
    /// `--`
    End,
    Plain,
    /// The next argument is its value.
    Valued,
    Unknown,
}

fn flag(arg: &OsStr) -> Flag {
    let Some(text) = arg.to_str() else {
        return Flag::Operand;
    };
    if text == "--" {
        return Flag::End;
    }
    if let Some(long) = text.strip_prefix("--") {
        let (name, value) = match long.split_once('=') {
            Some((name, _)) => (name, true),
            None => (long, false),
        };
        return match (VALUED.contains(&name), value) {
            (true, true) => Flag::Plain,
            (true, false) => Flag::Valued,
            (false, false) if PLAIN.contains(&name) => Flag::Plain,
            _ => Flag::Unknown,
        };
    }
    let Some(cluster) = text.strip_prefix('-').filter(|c| !c.is_empty()) else {
        return Flag::Operand;
    };
    for (at, c) in cluster.char_indices() {
        if VALUED_SHORT.contains(c) {
            // `-u1000`, or the value comes next.
            return match at + c.len_utf8() == cluster.len() {
                true => Flag::Valued,
                false => Flag::Plain,
            };
        }
        if !PLAIN_SHORT.contains(c) {
            return Flag::Unknown;
        }
    }
    Flag::Plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::collections::BTreeSet;

    #[derive(Parser)]
    struct Trial {
        #[command(flatten)]
        args: ExecCell,
    }

    #[test]
    fn the_first_operand_decides() {
        let cells: &[&[&str]] = &[
            &["one", "ls"],
            &["one", "./x/"],
            &["-t", "one"],
            &["-td", "--cwd", "/tmp", "one", "ls", "/"],
            &["-it", "one", "sh"],
            &["--process=/f/p.json", "one"],
            &["-p", "/f/p.json", "-d", "one"],
            &["-u1000", "-eA=/b", "one"],
            &["-tu", "1000", "one"],
            &["--", "one"],
            &["-e", "A=b", "-e", "x/", "one"],
        ];
        for words in cells {
            let args: Vec<OsString> = words.iter().map(Into::into).collect();
            assert!(names_a_cell(&args), "{words:?}");
            // And it is parsed as it was read.
            if *words != ["--", "one"] {
                let argv = std::iter::once(&"exec").chain(words.iter());
                let got = Trial::try_parse_from(argv).unwrap().args;
                assert_eq!(got.operands[0], "one", "{words:?}");
            }
        }
        let bundles: &[&[&str]] = &[
            &[],
            &["--help"],
            &["one/"],
            &["./one", "ls"],
            &["-t", "-e", "A=b", "x/"],
            &["-m", "4g", "one"],
            &["--memory=4g", "one"],
            &["--tty=true", "one"],
            &["--", "/a/b"],
            &["-p"],
        ];
        for words in bundles {
            let args: Vec<OsString> = words.iter().map(Into::into).collect();
            assert!(!names_a_cell(&args), "{words:?}");
        }
    }

    #[test]
    fn the_tables_are_the_parsers() {
        let command = ExecCell::augment_args(clap::Command::new("exec"));
        let (mut valued, mut plain) = (BTreeSet::new(), BTreeSet::new());
        let (mut valued_short, mut plain_short) = (BTreeSet::new(), BTreeSet::new());
        for arg in command.get_arguments().filter(|a| !a.is_positional()) {
            let takes = arg.get_action().takes_values();
            let (long, short) = match takes {
                true => (&mut valued, &mut valued_short),
                false => (&mut plain, &mut plain_short),
            };
            long.extend(arg.get_long_and_visible_aliases().unwrap_or_default());
            long.extend(arg.get_all_aliases().unwrap_or_default());
            short.extend(arg.get_short_and_visible_aliases().unwrap_or_default());
            short.extend(arg.get_all_short_aliases().unwrap_or_default());
        }
        assert_eq!(valued, BTreeSet::from(VALUED));
        assert_eq!(plain, BTreeSet::from(PLAIN));
        assert_eq!(valued_short, VALUED_SHORT.chars().collect());
        assert_eq!(plain_short, PLAIN_SHORT.chars().collect());
    }

    #[test]
    fn what_follows_the_cell_is_the_commands() {
        let argv = ["exec", "-t", "one", "ls", "-t", "--cwd", "x", "--", "-u"];
        let got = Trial::try_parse_from(argv).unwrap().args;
        assert_eq!(got.operands, ["one", "ls", "-t", "--cwd", "x", "--", "-u"]);
        assert!(got.tty && got.cwd.is_none());
    }
}
