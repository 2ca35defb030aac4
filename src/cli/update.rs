//! `gpucell update`: new limits for a live cell.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::{Globals, log, units};
use crate::cell::{self, Schemata};
use crate::spec::{load, resources};
use crate::{Error, Result};

/// Change the limits of a cell; what isn't named stays as it is
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpucell update --memory 2g --cpu-quota 150000 one\n  echo '{\"cpu\":{\"quota\":50000}}' | gpucell update --resources - one"
)]
pub struct Update {
    /// Name of the cell
    id: String,
    /// File with what config.json has as linux.resources. -: standard input. Other flags are ignored then
    ///
    /// The device list stays as it is in any case, as under runc: podman sends one with every change, and it
    /// lacks the devices that came by CDI.
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    #[command(flatten)]
    limits: Limits,
    /// Intel RDT: lines for the L3 cache, such as L3:0=ff;1=f
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// Intel RDT: line for memory bandwidth, such as MB:0=20;1=70
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
}

/// The flags for single limits. Each is a text: an empty one counts as not given, as under runc.
#[derive(Debug, Default, Args)]
struct Limits {
    /// Weight among others' disk traffic, 10 to 1000
    #[arg(long, value_name = "WEIGHT", allow_hyphen_values = true)]
    blkio_weight: Option<String>,
    /// Length of a period of CPU time, microseconds
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_period: Option<String>,
    /// CPU time in each period, microseconds; -1: no limit
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_quota: Option<String>,
    /// CPU time that may be saved up beyond the quota, microseconds
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_burst: Option<String>,
    /// Weight among others that want the CPU, 2 to 262144
    #[arg(long, value_name = "SHARES", allow_hyphen_values = true)]
    cpu_share: Option<String>,
    /// Length of a period of real-time CPU time, microseconds (cgroup v1)
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_rt_period: Option<String>,
    /// Real-time CPU time in each such period, microseconds (cgroup v1)
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_rt_runtime: Option<String>,
    /// CPUs to use, such as 0-3,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// 1: only CPU time that nobody else wants; 0: back to normal
    #[arg(long, value_name = "0|1", allow_hyphen_values = true)]
    cpu_idle: Option<String>,
    /// Most memory, bytes with k, m or g; -1: no limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<String>,
    /// Memory that is kept for the cell under pressure (v2), or pushed back to (v1)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_reservation: Option<String>,
    /// Most memory and swap together; -1: no limit to swap
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Accepted for runc's callers, and ignored as there
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, hide = true)]
    kernel_memory: Option<String>,
    /// Accepted for runc's callers, and ignored as there
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, hide = true)]
    kernel_memory_tcp: Option<String>,
    /// Most processes and threads; -1: no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pids_limit: Option<String>,
}

impl Update {
    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        let resources = match &self.resources {
            Some(path) => resources::parse(&read(path)?)?,
            None => self.limits.resources()?,
        };
        if self.resources.is_none() && self.limits.names_kernel_memory() {
            log::warnings(
                g,
                &["Kernel memory settings are ignored and will be removed".into()],
            );
        }
        let given = |s: Option<String>| s.filter(|s| !s.is_empty());
        let schemata = Schemata {
            l3: given(self.l3_cache_schema),
            mem_bw: given(self.mem_bw_schema),
        };
        let done = cell::update(&g.store(), &self.id, resources, &schemata)?;
        log::warnings(g, &done);
        Ok(0)
    }
}

/// Reads no more than one byte beyond what is accepted: the parser says so then.
fn read(path: &Path) -> Result<Vec<u8>> {
    let input: Result<Box<dyn Read>, io::Error> = match path.to_str() {
        Some("-") => Ok(Box::new(io::stdin())),
        _ => std::fs::File::open(path).map(|f| Box::new(f) as Box<dyn Read>),
    };
    let mut text = Vec::new();
    input
        .and_then(|file| file.take(load::MAX_SIZE + 1).read_to_end(&mut text))
        .map_err(|e| Error::step("read", path.display().to_string(), e))?;
    Ok(text)
}

/// runc's wording.
fn invalid(flag: &str, why: impl std::fmt::Display) -> Error {
    Error::msg(format!("invalid value for {flag}: {why}"))
}

fn number<N>(flag: &str, text: &str) -> Result<Value>
where
    N: std::str::FromStr + Into<Value>,
    N::Err: std::fmt::Display,
{
    let number: Result<N, _> = text.parse();
    number
        .map(Into::into)
        .map_err(|e| invalid(flag, format!("{text:?}: {e}")))
}

fn size(flag: &str, text: &str) -> Result<Value> {
    match text {
        "-1" => Ok(json!(-1)),
        _ => units::bytes(text)
            .map(Value::from)
            .map_err(|e| invalid(flag, e)),
    }
}

impl Limits {
    fn names_kernel_memory(&self) -> bool {
        let given = |s: &Option<String>| s.as_deref().is_some_and(|s| !s.is_empty());
        given(&self.kernel_memory) || given(&self.kernel_memory_tcp)
    }

    /// What the flags say, as `linux.resources`.
    fn resources(&self) -> Result<LinuxResources> {
        type Read = fn(&str, &str) -> Result<Value>;
        let text: Read = |_, text| Ok(json!(text));
        let rows: [(&str, &str, &str, &Option<String>, Read); 16] = [
            (
                "blkio-weight",
                "blockIO",
                "weight",
                &self.blkio_weight,
                number::<u16>,
            ),
            (
                "cpu-period",
                "cpu",
                "period",
                &self.cpu_period,
                number::<u64>,
            ),
            ("cpu-quota", "cpu", "quota", &self.cpu_quota, number::<i64>),
            ("cpu-burst", "cpu", "burst", &self.cpu_burst, number::<u64>),
            ("cpu-share", "cpu", "shares", &self.cpu_share, number::<u64>),
            (
                "cpu-rt-period",
                "cpu",
                "realtimePeriod",
                &self.cpu_rt_period,
                number::<u64>,
            ),
            (
                "cpu-rt-runtime",
                "cpu",
                "realtimeRuntime",
                &self.cpu_rt_runtime,
                number::<i64>,
            ),
            ("cpuset-cpus", "cpu", "cpus", &self.cpuset_cpus, text),
            ("cpuset-mems", "cpu", "mems", &self.cpuset_mems, text),
            ("cpu-idle", "cpu", "idle", &self.cpu_idle, number::<i64>),
            ("memory", "memory", "limit", &self.memory, size),
            (
                "memory-reservation",
                "memory",
                "reservation",
                &self.memory_reservation,
                size,
            ),
            ("memory-swap", "memory", "swap", &self.memory_swap, size),
            // Only read: runc refuses bad ones, and uses none.
            ("kernel-memory", "", "", &self.kernel_memory, size),
            ("kernel-memory-tcp", "", "", &self.kernel_memory_tcp, size),
            (
                "pids-limit",
                "pids",
                "limit",
                &self.pids_limit,
                number::<i64>,
            ),
        ];
        let mut all = json!({});
        for (flag, group, name, given, read) in rows {
            if let Some(text) = given.as_deref().filter(|t| !t.is_empty()) {
                let value = read(flag, text)?;
                if !group.is_empty() {
                    resources::object(&mut all, group)[name] = value;
                }
            }
        }
        resources::from_value(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(words: &[&str]) -> Result<Value, String> {
        let tree = Update::augment_args(clap::Command::new("update"));
        let words = ["update"].iter().chain(words).chain(&["one"]);
        let found = tree
            .try_get_matches_from(words)
            .map_err(|e| e.to_string())?;
        let update = <Update as clap::FromArgMatches>::from_arg_matches(&found).unwrap();
        let resources = update.limits.resources().map_err(|e| e.to_string())?;
        Ok(serde_json::to_value(resources).unwrap())
    }

    #[test]
    fn every_flag_has_its_place_and_unit() {
        let rows: [(&[&str], Value); 20] = [
            (&[], json!({})),
            (&["--blkio-weight=500"], json!({"blockIO": {"weight": 500}})),
            (
                &["--cpu-period", "50000"],
                json!({"cpu": {"period": 50000}}),
            ),
            (&["--cpu-quota", "-1"], json!({"cpu": {"quota": -1}})),
            (&["--cpu-burst=0"], json!({"cpu": {"burst": 0}})),
            (&["--cpu-share", "512"], json!({"cpu": {"shares": 512}})),
            (
                &["--cpu-rt-period=1"],
                json!({"cpu": {"realtimePeriod": 1}}),
            ),
            (
                &["--cpu-rt-runtime=2"],
                json!({"cpu": {"realtimeRuntime": 2}}),
            ),
            (&["--cpuset-cpus=0-1"], json!({"cpu": {"cpus": "0-1"}})),
            (&["--cpuset-mems=0"], json!({"cpu": {"mems": "0"}})),
            (&["--cpu-idle", "1"], json!({"cpu": {"idle": 1}})),
            (&["--memory", "64m"], json!({"memory": {"limit": 64 << 20}})),
            (&["--memory=-1"], json!({"memory": {"limit": -1}})),
            (
                &["--memory-reservation=1.5k"],
                json!({"memory": {"reservation": 1536}}),
            ),
            (&["--memory-swap", "-1"], json!({"memory": {"swap": -1}})),
            (
                &["--memory-swap", "1GiB"],
                json!({"memory": {"swap": 1 << 30}}),
            ),
            (
                &["--kernel-memory=1m", "--kernel-memory-tcp", "-1"],
                json!({}),
            ),
            (&["--pids-limit", "-1"], json!({"pids": {"limit": -1}})),
            (&["--pids-limit=0"], json!({"pids": {"limit": 0}})),
            (
                &["--memory=", "--cpu-quota=5", "--cpu-period=9"],
                json!({"cpu": {"quota": 5, "period": 9}}),
            ),
        ];
        for (words, want) in rows {
            assert_eq!(flags(words).unwrap(), want, "{words:?}");
        }
    }

    #[test]
    fn bad_values_name_their_flag() {
        let rows = [
            ("--cpu-period=-1", "invalid value for cpu-period: \"-1\""),
            ("--cpu-share=1.5", "invalid value for cpu-share"),
            ("--cpu-quota=x", "invalid value for cpu-quota"),
            ("--cpu-idle=2", "linux.resources.cpu.idle"),
            (
                "--memory=64q",
                "invalid value for memory: invalid suffix: 'q'",
            ),
            (
                "--memory=-2",
                "invalid value for memory: invalid size: '-2'",
            ),
            ("--kernel-memory=lots", "invalid value for kernel-memory"),
            ("--blkio-weight=70000", "invalid value for blkio-weight"),
            ("--pids-limit=many", "invalid value for pids-limit"),
            ("--cpuset-cpus=a", "linux.resources.cpu.cpus"),
        ];
        for (flag, why) in rows {
            let error = flags(&[flag]).unwrap_err();
            assert!(error.contains(why), "{flag}: {error}");
        }
    }
}
