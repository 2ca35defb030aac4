//! The command line: one file a command, arguments → one call → print. No system calls here.
//!
//! Owns the top level: global flags, which of two readings `run` and `exec` get (runc's or a
//! person's), how errors are shown, and exit codes.

mod cdi;
pub mod cell_log;
mod checkpoint;
mod config;
mod docs;
mod doctor;
mod events;
mod exec_bundle;
mod exec_cell;
mod explain;
mod features;
pub mod flags;
mod gpu;
mod images;
mod init;
mod launch;
mod lifecycle;
mod log;
mod logs;
mod monitor;
mod nvidia_hook;
mod out;
mod pause;
mod people;
mod ps;
pub mod pull;
mod run_image;
pub mod setup;
mod spec;
pub mod units;
mod update;
mod volume;

use crate::cell::Store;
use crate::spec::default::OCI_VERSION;
use crate::{Error, Result};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// Global flags: runc's, and `-v`.
#[derive(Debug, Clone, Args)]
pub struct Globals {
    /// State of cells [default: /run/gpucell or $XDG_RUNTIME_DIR/gpucell]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Write errors and warnings to this file too
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Format of the log
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"], default_value = "text")]
    pub log_format: String,
    /// Log more
    #[arg(long, hide = true)]
    pub debug: bool,
    /// Say more (warnings that are otherwise only logged)
    #[arg(short, long)]
    pub verbose: bool,
    /// Let systemd make the cgroups (cgroupsPath is slice:prefix:name)
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Who makes the cgroups: cgroupfs, systemd or disabled
    #[arg(long, value_name = "MANAGER", value_parser = ["cgroupfs", "systemd", "disabled"], hide_possible_values = true)]
    pub cgroup_manager: Option<String>,
    /// Accepted for runc's callers; found out by itself
    #[arg(long, value_name = "BOOL", hide = true)]
    pub rootless: Option<String>,
    /// Accepted for runc's callers: criu is found on PATH
    #[arg(long, value_name = "FILE", hide = true)]
    pub criu: Option<String>,
}

impl Globals {
    /// The store that `--root` or the default names.
    pub fn store(&self) -> Store {
        Store::new(self.root.clone().unwrap_or_else(default_root))
    }

    /// The cgroup driver asked for.
    pub fn driver(&self) -> crate::cgroup::Driver {
        use crate::cgroup::Driver;
        match self.cgroup_manager.as_deref() {
            Some("systemd") => Driver::Systemd,
            Some("disabled") => Driver::Disabled,
            None if self.systemd_cgroup => Driver::Systemd,
            _ => Driver::Cgroupfs,
        }
    }
}

fn default_root() -> PathBuf {
    // As runc: root of a user namespace keeps its cells where its user does (podman), unless it is root by name (a
    // system of its own in a container).
    let by_name = || std::env::var_os("USER").is_some_and(|u| u == "root");
    let root = nix::unistd::geteuid().is_root();
    if root && (by_name() || crate::sys::cred::host_root()) {
        return PathBuf::from("/run/gpucell");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("gpucell"),
        None => PathBuf::from(format!("/tmp/gpucell-{}", nix::unistd::geteuid())),
    }
}

/// Runs OCI containers with hard limits on memory, CPU, GPUs and GPU memory.
#[derive(Debug, Parser)]
#[command(
    name = "gpucell",
    disable_version_flag = true,
    subcommand_required = true
)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Exec(exec_bundle::ExecBundle),
    Run(run_image::RunImage),
    Pull(pull::Args),
    Explain(explain::Explain),
    Logs(logs::Logs),
    Doctor(doctor::Doctor),
    Cdi(cdi::Cdi),
    Gpu(gpu::Gpu),
    /// Run a bundle as runc does
    #[command(name = RUNC_RUN, hide = true)]
    RunBundle(lifecycle::Run),
    #[command(name = CELL_EXEC, hide = true)]
    ExecCell(exec_cell::ExecCell),
    /// Create a cell; `start` runs its program
    Create(lifecycle::Create),
    /// Run the program of a created cell
    Start(lifecycle::Start),
    /// Print the state of a cell as JSON
    State(lifecycle::StateArgs),
    /// Send a signal to a cell
    Kill(lifecycle::Kill),
    /// Delete a cell and what it holds
    Delete(lifecycle::Delete),
    Pause(pause::Pause),
    Resume(pause::Resume),
    Update(update::Update),
    Events(events::Events),
    Ps(ps::Ps),
    /// List cells
    List(lifecycle::List),
    Features(features::Features),
    Spec(spec::Spec),
    Checkpoint(checkpoint::Checkpoint),
    Restore(checkpoint::Restore),
    Config(config::Config),
    Setup(setup::Setup),
    // For packages, which have done it already.
    #[command(hide = true)]
    Completions(docs::Completions),
    #[command(hide = true)]
    Man(docs::Man),
}

/// The whole command line, for man pages, completions and tests.
pub fn command_tree() -> clap::Command {
    Cli::command()
}

/// Name under which runc's reading of `run` is parsed.
const RUNC_RUN: &str = "run-bundle";

/// Name under which runc's reading of `exec` is parsed.
const CELL_EXEC: &str = "exec-cell";

/// Runs the command line of this process and returns its exit code.
pub fn main() -> i32 {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = nvidia_hook::by_name(&args) {
        return code;
    }
    if asks_version(&args) {
        print!("{}", version());
        return 0;
    }
    let args = reading(args);
    let usage = usage_code(&args);
    let probed = verb(&args).is_some_and(|at| args[at] == checkpoint::PROBED);
    let cli = match parse(args) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            if probed {
                checkpoint::answer_probe(&e);
            }
            return if e.use_stderr() { usage } else { 0 };
        }
    };
    let globals = cli.globals.clone();
    match dispatch(cli) {
        Ok(code) => code,
        Err(Failure { error, code }) => {
            log::error(&globals, &error);
            code
        }
    }
}

/// Parses the command line. Building the flags of all commands costs more time and memory than
/// some commands' work, so those of the hot path are parsed alone; what that can't parse
/// (a mistake, `--help`) gets the whole tree and its messages.
fn parse(args: Vec<OsString>) -> Result<Cli, clap::Error> {
    let hot = verb(&args).and_then(|at| match args[at].to_str()? {
        "create" => alone("create", &args, Command::Create),
        "start" => alone("start", &args, Command::Start),
        "state" => alone("state", &args, Command::State),
        "kill" => alone("kill", &args, Command::Kill),
        "delete" => alone("delete", &args, Command::Delete),
        RUNC_RUN => alone(RUNC_RUN, &args, Command::RunBundle),
        "exec" => alone("exec", &args, Command::Exec),
        CELL_EXEC => alone(CELL_EXEC, &args, Command::ExecCell),
        "features" => alone("features", &args, Command::Features),
        _ => None,
    });
    match hot {
        Some(cli) => Ok(cli),
        None => Cli::command()
            .try_get_matches_from(args)
            .and_then(|m| Cli::from_arg_matches(&m)),
    }
}

/// Parses with the global flags and one command.
fn alone<A: Args>(name: &'static str, args: &[OsString], command: fn(A) -> Command) -> Option<Cli> {
    let top = clap::Command::new("gpucell").disable_version_flag(true);
    let found = Globals::augment_args(top)
        .subcommand(A::augment_args(clap::Command::new(name)))
        .try_get_matches_from(args)
        .ok()?;
    let (_, inner) = found.subcommand()?;
    Some(Cli {
        globals: Globals::from_arg_matches(&found).ok()?,
        command: command(A::from_arg_matches(inner).ok()?),
    })
}

/// An error with the exit code of its command.
pub struct Failure {
    error: Error,
    code: i32,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { error, code: 1 }
    }
}

fn dispatch(cli: Cli) -> Result<i32, Failure> {
    let g = &cli.globals;
    Ok(match cli.command {
        Command::RunBundle(a) => a.run(g)?,
        Command::Create(a) => a.run(g)?,
        Command::Start(a) => a.run(g)?,
        Command::State(a) => a.run(g)?,
        Command::Kill(a) => a.run(g)?,
        Command::Delete(a) => a.run(g)?,
        Command::Pause(a) => a.run(g)?,
        Command::Resume(a) => a.run(g)?,
        Command::Update(a) => a.run(g)?,
        Command::Events(a) => a.run(g)?,
        Command::Ps(a) => a.run(g)?,
        Command::Features(a) => a.run()?,
        Command::Spec(a) => a.run()?,
        Command::Checkpoint(a) => a.run(g)?,
        Command::Restore(a) => a.run(g)?,
        Command::List(a) => a.run(g)?,
        Command::Pull(a) => pull::run(a).map(|()| 0)?,
        Command::Exec(a) => a.run(g)?,
        Command::ExecCell(a) => a.run(g)?,
        Command::Run(a) => a.run(g)?,
        Command::Explain(a) => a.run(g)?,
        Command::Logs(a) => a.run(g)?,
        Command::Doctor(a) => doctor::run(&a)?,
        Command::Cdi(a) => a.run(g)?,
        Command::Gpu(a) => a.run(g)?,
        Command::Config(a) => a.run()?,
        Command::Setup(a) => a.run()?,
        Command::Completions(a) => a.run(command_tree())?,
        Command::Man(a) => a.run(command_tree())?,
    })
}

/// The commit this was built from.
const COMMIT: &str = match option_env!("GPUCELL_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// What `--version` prints; callers read the first line's `X version V` and the `spec:` line.
fn version() -> String {
    format!(
        "gpucell version {}\ncommit: {COMMIT}\nspec: {OCI_VERSION}\n",
        env!("CARGO_PKG_VERSION"),
    )
}

/// Global flags that take a value, to find the verb.
const VALUED: [&str; 6] = [
    "--root",
    "--log",
    "--log-format",
    "--cgroup-manager",
    "--rootless",
    "--criu",
];

/// Is it `--version`, behind whatever global flags, or `version`?
fn asks_version(args: &[OsString]) -> bool {
    let end = verb(args);
    let globals = args.get(1..end.unwrap_or(args.len())).unwrap_or_default();
    globals.iter().any(|a| a == "--version" || a == "-V")
        || end.is_some_and(|at| args[at] == "version")
}

/// The index of the verb in an argument list.
fn verb(args: &[OsString]) -> Option<usize> {
    let mut i = 1;
    while let Some(arg) = args.get(i) {
        let text = arg.to_str()?;
        if !text.starts_with('-') {
            return Some(i);
        }
        i += if VALUED.contains(&text) { 2 } else { 1 };
    }
    None
}

/// The exit code of wrong usage: Docker's 125 for the commands typed as Docker's, else runc's 1.
fn usage_code(args: &[OsString]) -> i32 {
    match verb(args)
        .and_then(|at| args.get(at))
        .and_then(|v| v.to_str())
    {
        Some("exec" | "run") => launch::OWN,
        _ => 1,
    }
}

/// Decides between two readings. `run` with `--bundle`, or in a folder that holds config.json, is
/// runc's. `exec` of a name without a slash is runc's too: a cell is entered, and no bundle run.
fn reading(mut args: Vec<OsString>) -> Vec<OsString> {
    let Some(at) = verb(&args) else {
        return args;
    };
    if args[at] == "run" {
        let bundle = args[at..].iter().any(|a| {
            let a = a.to_string_lossy();
            a == "-b" || a == "--bundle" || a.starts_with("--bundle=")
        });
        if bundle || std::path::Path::new("config.json").exists() {
            args[at] = RUNC_RUN.into();
        }
    } else if args[at] == "exec" && exec_cell::names_a_cell(&args[at + 1..]) {
        args[at] = CELL_EXEC.into();
    }
    if args[at] == RUNC_RUN || args[at] == "restore" {
        // containerd gives this one as Go's flags may be given.
        for arg in &mut args[at + 1..] {
            if *arg == "-no-subreaper" {
                *arg = "--no-subreaper".into();
            }
        }
    }
    args
}
