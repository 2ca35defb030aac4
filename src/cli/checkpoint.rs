//! runc's `checkpoint` and `restore`: a cell saved by CRIU, and brought back.
//!
//! podman and CRI-O ask in two ways whether a runtime can do it: `checkpoint --help` must succeed, and
//! `restore --lsm-mount-context` must complain in runc's or crun's words ([`answer_probe`]). Both come out as a yes,
//! with or without criu: whether that is there they ask themselves.

use std::path::PathBuf;

use clap::Args;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{Globals, lifecycle, log};
use crate::cell::checkpoint::{Flags, cgroup_mode};
use crate::cell::{self, CheckpointOptions, CreateOptions, RestoreOptions, RunOptions, create};
use crate::{Error, Result};

/// The command whose complaint is read.
pub const PROBED: &str = "restore";

/// Says in runc's words that a flag lacks its value (podman: checkpoint/crutils).
pub fn answer_probe(error: &clap::Error) {
    if error.kind() != ErrorKind::InvalidValue {
        return;
    }
    if let (Some(ContextValue::String(arg)), Some(ContextValue::String(value))) = (
        error.get(ContextKind::InvalidArg),
        error.get(ContextKind::InvalidValue),
    ) && value.is_empty()
    {
        let name = arg.split([' ', '=']).next().unwrap_or(arg);
        eprintln!("flag needs an argument: {name}");
    }
}

/// Flags of both directions.
#[derive(Debug, Clone, Args)]
struct Both {
    /// Folder of CRIU's images
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    image_path: PathBuf,
    /// Folder for CRIU's logs [default: that of the images]
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    /// Allow open TCP connections
    #[arg(long)]
    tcp_established: bool,
    /// Allow Unix sockets with an end outside of the cell
    #[arg(long)]
    ext_unix_sk: bool,
    /// Allow a session or terminal from outside of the cell
    #[arg(long)]
    shell_job: bool,
    /// Allow file locks
    #[arg(long)]
    file_locks: bool,
    /// Give deleted files that are open a name again
    #[arg(long)]
    link_remap: bool,
    /// Move memory pages only when they are asked for
    #[arg(long)]
    lazy_pages: bool,
    /// What is done with the cgroups: soft, full, strict or ignore [default: soft]
    #[arg(long, value_name = "MODE")]
    manage_cgroups_mode: Option<String>,
    /// Keep a namespace empty: only network, which always is
    #[arg(long, value_name = "NAMESPACE")]
    empty_ns: Vec<String>,
    /// Take memory pages that an earlier image has out of it
    #[arg(long)]
    auto_dedup: bool,
}

impl Both {
    fn flags(self) -> Result<Flags> {
        if let Some(other) = self.empty_ns.iter().find(|n| *n != "network") {
            return Err(Error::msg(format!(
                "--empty-ns {other}: namespace {other:?} is not supported: CRIU empties network only"
            )));
        }
        Ok(Flags {
            images: self.image_path,
            work: self.work_path,
            tcp_established: self.tcp_established,
            ext_unix_sk: self.ext_unix_sk,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
            link_remap: self.link_remap,
            auto_dedup: self.auto_dedup,
            lazy_pages: self.lazy_pages,
            cgroups: cgroup_mode(self.manage_cgroups_mode.as_deref())?,
        })
    }
}

/// Save a cell by CRIU
// podman gives flags twice.
#[derive(Debug, Clone, Args)]
#[command(
    args_override_self = true,
    after_help = "The cell is gone afterwards, unless --leave-running or --pre-dump is given.\n\n\
    Examples:\n  gpucell checkpoint --image-path /var/tmp/one one\n  \
    gpucell restore --image-path /var/tmp/one --bundle /bundles/hello --detach one"
)]
pub struct Checkpoint {
    /// Name of the cell
    id: String,
    #[command(flatten)]
    both: Both,
    /// Folder of an earlier pre-dump, relative to that of the images
    #[arg(long, value_name = "DIR")]
    parent_path: Option<PathBuf>,
    /// Let the cell go on
    #[arg(long)]
    leave_running: bool,
    /// Leave out TCP connections that are being made
    #[arg(long)]
    tcp_skip_in_flight: bool,
    /// Descriptor that gets a zero byte when lazy pages can be asked for
    #[arg(long, value_name = "FD", default_value_t = -1, allow_negative_numbers = true)]
    status_fd: i32,
    /// Where memory pages are sent
    #[arg(long, value_name = "ADDRESS:PORT")]
    page_server: Option<String>,
    /// Save memory only, and let the cell go on
    #[arg(long)]
    pre_dump: bool,
}

impl Checkpoint {
    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        let how = CheckpointOptions {
            flags: self.both.flags()?,
            parent: self.parent_path,
            leave_running: self.leave_running,
            pre_dump: self.pre_dump,
            tcp_skip_in_flight: self.tcp_skip_in_flight,
            page_server: self.page_server.as_deref().map(page_server).transpose()?,
            status_fd: status_fd(self.status_fd)?,
        };
        cell::checkpoint(&g.store(), &self.id, &how).map(|()| 0)
    }
}

fn page_server(text: &str) -> Result<(String, u16)> {
    let parts = text.rsplit_once(':').and_then(|(address, port)| {
        let address = address.trim_start_matches('[').trim_end_matches(']');
        Some((address.to_owned(), port.parse().ok().filter(|p| *p > 0)?))
    });
    parts
        .filter(|(address, _)| !address.is_empty())
        .ok_or_else(|| Error::msg(format!("--page-server {text}: expected ADDRESS:PORT")))
}

/// The descriptor, if one is meant: it must be open, or one of our own files would be written to.
fn status_fd(n: i32) -> Result<Option<i32>> {
    match n {
        -1 => Ok(None),
        3.. if std::path::Path::new(&format!("/proc/self/fd/{n}")).exists() => Ok(Some(n)),
        _ => Err(Error::msg(format!(
            "invalid --status-fd {n}: it is not open"
        ))),
    }
}

/// Bring back a cell that was saved by `checkpoint`
#[derive(Debug, Clone, Args)]
#[command(
    args_override_self = true,
    after_help = "Example:\n  \
    gpucell restore --image-path /var/tmp/one --bundle /bundles/hello --detach one"
)]
pub struct Restore {
    /// Name of the cell
    id: String,
    #[command(flatten)]
    both: Both,
    /// Directory of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// AF_UNIX socket that receives the terminal's master
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Return once the cell runs
    #[arg(short, long)]
    detach: bool,
    /// Write the pid of the first process to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Don't take in the cell's orphans
    #[arg(long)]
    no_subreaper: bool,
    /// Accepted for runc's callers: CRIU enters the root
    #[arg(long)]
    no_pivot: bool,
    /// Bring TCP connections back closed
    #[arg(long)]
    tcp_close: bool,
    /// Another LSM profile than the saved one
    #[arg(long, value_name = "TYPE:NAME")]
    lsm_profile: Option<String>,
    /// Another LSM context for mounts
    #[arg(long, value_name = "CONTEXT")]
    lsm_mount_context: Option<String>,
}

impl Restore {
    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        create::sanitize_fds(0)?;
        let from = RestoreOptions {
            flags: self.both.flags()?,
            tcp_close: self.tcp_close,
            lsm_profile: self.lsm_profile,
            lsm_mount_context: self.lsm_mount_context,
        };
        let opts = CreateOptions {
            console_socket: self.console_socket,
            pid_file: self.pid_file,
            ..lifecycle::configured(g, self.id, self.bundle)?
        };
        lifecycle::refuse_terminal(&opts, self.detach)?;
        let how = RunOptions {
            detach: self.detach,
            keep: false,
            no_subreaper: self.no_subreaper,
            interactive: true,
        };
        let outcome = cell::restore(&g.store(), opts, &from, how)?;
        log::warnings(g, &outcome.warnings);
        Ok(outcome.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_server_has_an_address_and_a_port() {
        assert_eq!(page_server("10.0.0.1:27").unwrap(), ("10.0.0.1".into(), 27));
        assert_eq!(page_server("[::1]:27").unwrap(), ("::1".into(), 27));
        for bad in ["", ":1", "a", "a:", "a:0", "a:70000", "a:x"] {
            assert!(page_server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_status_descriptor_must_be_open() {
        assert_eq!(status_fd(-1).unwrap(), None);
        for bad in [-2, 0, 2, 9999] {
            assert!(status_fd(bad).is_err(), "{bad}");
        }
    }
}
