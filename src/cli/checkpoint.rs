//! runc's `checkpoint` and `restore`. gpucell has neither: they take CRIU, and a cell's GPUs could not be
//! saved by it. Every flag of runc's is understood, so that the answer is this and no complaint about a flag.
//!
//! podman and CRI-O ask in two ways whether a runtime can do it: `checkpoint --help` must succeed, and
//! `restore --lsm-mount-context` must complain in runc's or crun's words. Both get a no (see
//! [`Checkpoint::PROBED`]), so that they say so themselves and stop nothing before they find out.

use clap::{Arg, ArgAction, Args};

use super::Globals;
use crate::{Error, Result};

/// A flag: its name, the name of its value if it has one, what runc does with it.
type Flag = (&'static str, Option<&'static str>, &'static str);

const BOTH: [Flag; 9] = [
    ("image-path", Some("DIR"), "Folder of CRIU's images"),
    ("work-path", Some("DIR"), "Folder for CRIU's logs"),
    ("tcp-established", None, "Allow open TCP connections"),
    ("ext-unix-sk", None, "Allow external Unix sockets"),
    ("shell-job", None, "Allow shell jobs"),
    ("lazy-pages", None, "Restore memory pages lazily"),
    ("file-locks", None, "Handle file locks"),
    (
        "manage-cgroups-mode",
        Some("MODE"),
        "soft, full, strict or ignore",
    ),
    ("auto-dedup", None, "Deduplicate memory images"),
];

const CHECKPOINT: [Flag; 8] = [
    ("parent-path", Some("DIR"), "Folder of an earlier pre-dump"),
    ("leave-running", None, "Leave the cell running"),
    ("status-fd", Some("FD"), "Told when lazy pages are ready"),
    ("page-server", Some("ADDRESS:PORT"), "Where pages are sent"),
    ("pre-dump", None, "Save memory only; leave the cell running"),
    (
        "tcp-skip-in-flight",
        None,
        "Skip TCP connections being made",
    ),
    ("link-remap", None, "Handle deleted files that are open"),
    (
        "empty-ns",
        Some("NAMESPACE"),
        "Don't save what is in this namespace",
    ),
];

const RESTORE: [Flag; 9] = [
    (
        "console-socket",
        Some("SOCKET"),
        "Receives the terminal's master",
    ),
    ("pid-file", Some("FILE"), "Gets the pid"),
    ("no-subreaper", None, "Don't take in orphans"),
    ("no-pivot", None, "Don't use pivot_root"),
    (
        "empty-ns",
        Some("NAMESPACE"),
        "Don't restore what is in this namespace",
    ),
    ("lsm-profile", Some("TYPE:NAME"), "LSM profile"),
    ("lsm-mount-context", Some("CONTEXT"), "LSM mount context"),
    ("link-remap", None, "Handle deleted files that were open"),
    ("tcp-close", None, "Close TCP connections"),
];

fn flags(own: &'static [Flag]) -> impl Iterator<Item = Arg> {
    BOTH.iter().chain(own).map(|(name, value, help)| {
        let arg = Arg::new(name).long(name).help(help);
        match value {
            Some(value) => arg.value_name(value).action(ArgAction::Append),
            None => arg.action(ArgAction::SetTrue),
        }
    })
}

/// Not supported: save a cell by CRIU
#[derive(Args, Clone, Debug)]
#[command(args(flags(&CHECKPOINT)), after_help = "gpucell has no checkpoints.")]
pub struct Checkpoint {
    /// Name of the cell
    id: String,
}

/// Not supported: restore a cell that was saved by CRIU
#[derive(Args, Clone, Debug)]
#[command(
    args(flags(&RESTORE)),
    arg(Arg::new("bundle").short('b').long("bundle").value_name("DIR").help("Directory of the bundle")),
    arg(Arg::new("detach").short('d').long("detach").action(ArgAction::SetTrue).help("Return at once")),
    after_help = "gpucell has no checkpoints."
)]
pub struct Restore {
    /// Name of the cell
    id: String,
}

impl Checkpoint {
    /// The command whose `--help` fails, after it has printed.
    pub(super) const PROBED: &str = "checkpoint";

    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        let store = g.store();
        store.load(&self.id)?;
        Err(refused("checkpoint of", &self.id))
    }
}

impl Restore {
    /// Runs the command.
    pub(super) fn run(self) -> Result<i32> {
        Err(refused("restore of", &self.id))
    }
}

fn refused(what: &str, id: &str) -> Error {
    Error::unsupported(
        format!("{what} cell {id}"),
        "gpucell has no checkpoints (CRIU)",
    )
}
