//! The flags of `exec BUNDLE/`, `run IMAGE` and `explain`, in Docker's spelling.
//!
//! Two stages, as in ripgrep: [`Flags`] holds the text as typed (low); [`raise`] turns it, with the
//! bundle's Spec and what the [`Host`] says, into [`High`]: edits, warnings and a few switches. All
//! validation and every conflict is settled there, in Docker's words. It must not apply an edit, print,
//! or change the host.

mod env;
mod files;
mod host;
mod limits;
mod mounts;
mod namespaces;
mod profile;
mod raise;
mod security;

pub use files::EtcFile;
pub use host::{Host, Live, Owner};
pub use mounts::NewVolume;
pub use raise::{Context, High, raise, thread_warning};

use clap::Args;

/// Flags as typed. Field names are the flag names.
#[derive(Args, Clone, Debug, Default)]
pub struct Flags {
    // ---- Cell ----
    /// Name of the cell (default: made from the bundle's or the image's name)
    #[arg(long, value_name = "NAME", help_heading = "Cell")]
    pub name: Option<String>,
    /// Run in the background; output goes to the cell's log (gpucell logs NAME)
    #[arg(short, long, help_heading = "Cell")]
    pub detach: bool,
    /// Remove the cell, its log and its writable layer when it ends
    #[arg(long, help_heading = "Cell")]
    pub rm: bool,
    /// Run an init in the cell that forwards signals and reaps processes
    #[arg(long, help_heading = "Cell")]
    pub init: bool,
    /// Annotation KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Cell")]
    pub annotation: Vec<String>,
    /// Label KEY=VALUE, kept as an annotation
    #[arg(short, long, value_name = "KEY=VALUE", help_heading = "Cell")]
    pub label: Vec<String>,
    /// Parent cgroup
    #[arg(long, value_name = "PATH", help_heading = "Cell")]
    pub cgroup_parent: Option<String>,
    /// Warn about nothing
    #[arg(short, long, help_heading = "Cell")]
    pub quiet: bool,

    // ---- Process ----
    /// Keep standard input open
    #[arg(short, long, help_heading = "Process")]
    pub interactive: bool,
    /// Give the process a terminal
    #[arg(short, long, help_heading = "Process")]
    pub tty: bool,
    /// Terminal size of a detached cell, COLUMNSxROWS
    #[arg(long, value_name = "CxR", help_heading = "Process")]
    pub console_size: Option<String>,
    /// Environment KEY=VALUE; KEY alone takes the caller's value
    #[arg(short, long, value_name = "KEY[=VALUE]", help_heading = "Process")]
    pub env: Vec<String>,
    /// File of such lines
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    pub env_file: Vec<String>,
    /// User, by name or id, [:GROUP] too
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = "Process")]
    pub user: Option<String>,
    /// Supplementary group, by name or id
    #[arg(long, value_name = "GROUP", help_heading = "Process")]
    pub group_add: Vec<String>,
    /// File mode creation mask, octal
    #[arg(long, value_name = "MASK", help_heading = "Process")]
    pub umask: Option<String>,
    /// Working directory in the cell
    #[arg(short, long, value_name = "DIR", help_heading = "Process")]
    pub workdir: Option<String>,
    /// Program that the command's words become arguments of
    #[arg(long, value_name = "PROGRAM", help_heading = "Process")]
    pub entrypoint: Option<String>,
    /// Signal that asks the program to end
    #[arg(long, value_name = "SIGNAL", help_heading = "Process")]
    pub stop_signal: Option<String>,
    /// Resource limit, as nofile=1024:4096; -1 is unlimited
    #[arg(long, value_name = "TYPE=SOFT[:HARD]", help_heading = "Process")]
    pub ulimit: Vec<String>,

    // ---- Files ----
    /// Bind mount SRC:DST[:ro,z,Z,rshared,idmap…], or a named volume
    #[arg(short, long, value_name = "SRC:DST[:OPTS]", help_heading = "Files")]
    pub volume: Vec<String>,
    /// Mount type=bind|volume|tmpfs,src=…,dst=…[,readonly…]
    #[arg(long, value_name = "KEY=VALUE,…", help_heading = "Files")]
    pub mount: Vec<String>,
    /// Memory file system DST[:OPTS], as /tmp:size=64m,mode=1777
    #[arg(long, value_name = "DST[:OPTS]", help_heading = "Files")]
    pub tmpfs: Vec<String>,
    /// Read-only root
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Files")]
    pub read_only: Option<bool>,
    /// Size of /dev/shm (default: the memory limit, else 64m)
    #[arg(long, value_name = "SIZE", help_heading = "Files")]
    pub shm_size: Option<String>,

    // ---- Network and names ----
    /// host: the host's network, all of it; none: loopback only; container:NAME
    #[arg(
        long,
        visible_alias = "net",
        value_name = "MODE",
        help_heading = "Network"
    )]
    pub network: Option<String>,
    /// Host name (default: the bundle's, else the cell's name)
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub hostname: Option<String>,
    /// NIS domain name
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub domainname: Option<String>,
    /// Line for /etc/hosts, NAME:IP
    #[arg(long, value_name = "NAME:IP", help_heading = "Network")]
    pub add_host: Vec<String>,
    /// Name server
    #[arg(long, value_name = "IP", help_heading = "Network")]
    pub dns: Vec<String>,
    /// DNS search domain
    #[arg(long, value_name = "DOMAIN", help_heading = "Network")]
    pub dns_search: Vec<String>,
    /// Resolver option
    #[arg(
        long,
        visible_alias = "dns-opt",
        value_name = "OPTION",
        help_heading = "Network"
    )]
    pub dns_option: Vec<String>,

    // ---- Isolation ----
    /// Processes seen: private, host, container:NAME
    #[arg(long, value_name = "MODE", help_heading = "Isolation")]
    pub pid: Option<String>,
    /// IPC objects seen: private, shareable, host, none, container:NAME
    #[arg(long, value_name = "MODE", help_heading = "Isolation")]
    pub ipc: Option<String>,
    /// Host name seen: private, host
    #[arg(long, value_name = "MODE", help_heading = "Isolation")]
    pub uts: Option<String>,
    /// Cgroups seen: private, host
    #[arg(long, value_name = "MODE", help_heading = "Isolation")]
    pub cgroupns: Option<String>,
    /// Sysctl of the cell's namespaces
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Isolation")]
    pub sysctl: Vec<String>,
    /// Add a capability, or ALL
    #[arg(long, value_name = "CAP", help_heading = "Isolation")]
    pub cap_add: Vec<String>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "CAP", help_heading = "Isolation")]
    pub cap_drop: Vec<String>,
    /// All capabilities and devices, no filter: no isolation from root. Don't, if --cap-add or --device do
    #[arg(long, help_heading = "Isolation")]
    pub privileged: bool,
    /// seccomp=FILE|unconfined, apparmor=PROFILE, label=…, no-new-privileges, systempaths=unconfined
    #[arg(long, value_name = "OPT", help_heading = "Isolation")]
    pub security_opt: Vec<String>,
    /// Device HOST[:CELL[:rwm]], or a CDI device, as nvidia.com/gpu=0
    #[arg(long, value_name = "HOST[:CELL[:rwm]]", help_heading = "Isolation")]
    pub device: Vec<String>,
    /// Device filter rule, as 'c 1:3 rwm'
    #[arg(long, value_name = "RULE", help_heading = "Isolation")]
    pub device_cgroup_rule: Vec<String>,

    // ---- GPUs ----
    /// GPUs: all, a count, or device=0,1 | device=GPU-UUID | device=0:1 (MIG); with ,capabilities=…
    #[arg(long, value_name = "GPUS", help_heading = "GPUs")]
    pub gpus: Vec<String>,

    // ---- Memory ----
    /// Memory limit, as 512m or 4g
    #[arg(short, long, value_name = "SIZE", help_heading = "Memory")]
    pub memory: Option<String>,
    /// Memory and swap together; -1: swap without limit (default: twice the memory)
    #[arg(
        long,
        value_name = "SIZE",
        allow_hyphen_values = true,
        help_heading = "Memory"
    )]
    pub memory_swap: Option<String>,
    /// Slow the cell down above this size rather than kill it (cgroup v2)
    #[arg(long, value_name = "SIZE", help_heading = "Memory")]
    pub memory_high: Option<String>,
    /// Soft limit
    #[arg(long, value_name = "SIZE", help_heading = "Memory")]
    pub memory_reservation: Option<String>,
    /// 0 to 100; -1: the host's (cgroup v1)
    #[arg(
        long,
        value_name = "N",
        allow_hyphen_values = true,
        help_heading = "Memory"
    )]
    pub memory_swappiness: Option<i64>,
    /// Pause instead of kill at the limit (cgroup v1; on v2 use --memory-high)
    #[arg(long, help_heading = "Memory")]
    pub oom_kill_disable: bool,
    /// Preference of the OOM killer, -1000 to 1000
    #[arg(
        long,
        value_name = "N",
        allow_hyphen_values = true,
        help_heading = "Memory"
    )]
    pub oom_score_adj: Option<i64>,
    /// Huge page limit, as 2MB:1g
    #[arg(long, value_name = "PAGE:SIZE", help_heading = "Memory")]
    pub hugetlb: Vec<String>,

    // ---- CPU, processes, I/O ----
    /// CPUs' worth of time, as 1.5
    #[arg(long, value_name = "N", help_heading = "CPU, processes, I/O")]
    pub cpus: Option<String>,
    /// Length of a CFS period, microseconds
    #[arg(
        long,
        value_name = "USEC",
        allow_hyphen_values = true,
        help_heading = "CPU, processes, I/O"
    )]
    pub cpu_period: Option<i64>,
    /// CPU time in each period, microseconds
    #[arg(
        long,
        value_name = "USEC",
        allow_hyphen_values = true,
        help_heading = "CPU, processes, I/O"
    )]
    pub cpu_quota: Option<i64>,
    /// Relative weight when CPUs are short (default of the kernel: 1024)
    #[arg(
        short,
        long,
        value_name = "N",
        allow_hyphen_values = true,
        help_heading = "CPU, processes, I/O"
    )]
    pub cpu_shares: Option<i64>,
    /// CPUs it may run on, as 0-3,8
    #[arg(long, value_name = "LIST", help_heading = "CPU, processes, I/O")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes it may use
    #[arg(long, value_name = "LIST", help_heading = "CPU, processes, I/O")]
    pub cpuset_mems: Option<String>,
    /// Processes and threads; -1: no limit
    #[arg(
        long,
        value_name = "N",
        allow_hyphen_values = true,
        help_heading = "CPU, processes, I/O"
    )]
    pub pids_limit: Option<i64>,
    /// Relative I/O weight, 10 to 1000
    #[arg(long, value_name = "N", help_heading = "CPU, processes, I/O")]
    pub blkio_weight: Option<u16>,
    /// The same for one device, as /dev/sda:500
    #[arg(long, value_name = "DEV:N", help_heading = "CPU, processes, I/O")]
    pub blkio_weight_device: Vec<String>,
    /// Bytes a second read from a device, as /dev/sda:10mb
    #[arg(long, value_name = "DEV:RATE", help_heading = "CPU, processes, I/O")]
    pub device_read_bps: Vec<String>,
    /// Bytes a second written to it
    #[arg(long, value_name = "DEV:RATE", help_heading = "CPU, processes, I/O")]
    pub device_write_bps: Vec<String>,
    /// Operations a second read from it
    #[arg(long, value_name = "DEV:RATE", help_heading = "CPU, processes, I/O")]
    pub device_read_iops: Vec<String>,
    /// Operations a second written to it
    #[arg(long, value_name = "DEV:RATE", help_heading = "CPU, processes, I/O")]
    pub device_write_iops: Vec<String>,
    /// Any cgroup v2 file, as memory.low=1073741824
    #[arg(long, value_name = "FILE=VALUE", help_heading = "CPU, processes, I/O")]
    pub cgroup_conf: Vec<String>,
}

/// Docker's wording of a bad flag value (spf13/pflag).
pub(crate) fn invalid(value: &str, flag: &str, why: impl std::fmt::Display) -> crate::Error {
    crate::Error::msg(format!(
        "invalid argument {value:?} for \"{flag}\" flag: {why}"
    ))
}
