//! `gpucell gpu list|show`: this host's GPUs, and which cells have them.
//!
//! From procfs and the saved configurations alone: nothing is opened, so no GPU wakes up. What only NVML knows
//! (memory, load, MIG devices' UUIDs) is there with `--stats`.

use std::fmt::Write;
use std::fs;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::Value;

use super::{Globals, out, units};
use crate::cell::{Status, Store};
use crate::nvidia::config::Config;
use crate::nvidia::inventory::{Chosen, Gpu as Device, Host, Inventory, Mig};
use crate::nvidia::monitor::{self, Memory, Process, Told, Utilization};
use crate::nvidia::nodes::{self, Node, State};
use crate::nvidia::select::GpuId;
use crate::{Error, Result};

/// Show GPUs, and which cells have them
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  gpucell gpu list
  gpucell gpu show 0
  gpucell gpu list --stats
  gpucell gpu list --format json | jq '.gpus[] | select(.cells == []) | .index'")]
pub struct Gpu {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// List GPUs and MIG devices
    #[command(visible_alias = "ls")]
    List(List),
    /// Show one GPU or MIG device with its device nodes
    Show(Show),
}

#[derive(Args, Clone, Debug)]
struct List {
    /// Ask NVML for memory and load too; this wakes GPUs that nothing uses
    #[arg(long)]
    stats: bool,
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Args, Clone, Debug)]
struct Show {
    /// Ask NVML for memory, load and processes too; this wakes GPUs that nothing uses
    #[arg(long)]
    stats: bool,
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Index, GPU-UUID, MIG-UUID, PCI bus id, or GPU:MIG as 0:1
    device: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Serialize)]
struct Report {
    driver: String,
    cuda: Option<String>,
    gpus: Vec<GpuLine>,
}

#[derive(Serialize)]
struct GpuLine {
    index: u32,
    uuid: Option<String>,
    model: Option<String>,
    bus: String,
    minor: u32,
    /// Cells with the GPU's node: those with one of its MIG devices too.
    cells: Vec<String>,
    #[serde(flatten)]
    stats: Option<Stats>,
    mig: Vec<MigLine>,
}

/// With `--stats`; null: NVML doesn't say.
#[derive(Clone, Serialize)]
struct Stats {
    /// Bytes.
    memory: Option<Memory>,
    /// Percent.
    utilization: Option<Utilization>,
    processes: Vec<Process>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MigLine {
    name: String,
    gpu_instance: u32,
    compute_instance: u32,
    cells: Vec<String>,
    #[serde(flatten)]
    stats: Option<MigStats>,
}

/// With `--stats`.
#[derive(Clone, Serialize)]
struct MigStats {
    uuid: String,
    /// Bytes.
    memory: Option<Memory>,
}

#[derive(Serialize)]
struct NodeLine {
    path: String,
    major: u32,
    minor: u32,
    state: String,
}

impl Gpu {
    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        let config = Config::load(None)?;
        let inv = Inventory::read(&Host::from(&config))?;
        let holders = Holders::read(&g.store())?;
        let ask = |wanted| match wanted {
            true => monitor::ask(&config, &inv, None).map(Some),
            false => Ok(None),
        };
        let text = match self.command {
            Command::List(list) => {
                let report = report(&inv, &holders, ask(list.stats)?.as_ref())?;
                match list.format {
                    Format::Table => table(&report, list.stats),
                    Format::Json => out::pretty(&report)?,
                }
            }
            Command::Show(show) => {
                let id = GpuId::parse(&show.device)?;
                let told = ask(show.stats || id.needs_nvml())?;
                let chosen = match &told {
                    Some(told) => inv.resolve_told(&id, told)?,
                    None => inv.resolve(&id)?,
                };
                let facts = facts(&inv, &holders, &chosen, told.as_ref())?;
                match show.format {
                    Format::Table => lines(&facts),
                    Format::Json => out::pretty(&facts)?,
                }
            }
        };
        out::print(&text)?;
        Ok(0)
    }
}

/// The device nodes of the cells that are not stopped.
struct Holders(Vec<(String, Vec<(u64, u64)>)>);

impl Holders {
    fn read(store: &Store) -> Result<Self> {
        let mut all = Vec::new();
        for id in store.ids()? {
            // A cell may vanish meanwhile.
            let Ok(saved) = store.load(&id) else {
                continue;
            };
            if saved.status(store) == Status::Stopped {
                continue;
            }
            let path = store.dir(&id).join("config.json");
            let Ok(bytes) = fs::read(&path) else {
                continue;
            };
            let config: Value = serde_json::from_slice(&bytes)
                .map_err(|e| Error::msg(format!("{}: {e}", path.display())))?;
            all.push((id, devices(&config)));
        }
        Ok(Holders(all))
    }

    fn of(&self, major: Option<u32>, minor: u32) -> Vec<String> {
        let Some(major) = major else {
            return Vec::new();
        };
        let key = (u64::from(major), u64::from(minor));
        let has = |(id, nodes): &(String, Vec<_>)| nodes.contains(&key).then(|| id.clone());
        self.0.iter().filter_map(has).collect()
    }
}

/// Numbers of the character devices in a configuration: those it makes, and those that a rule allows by
/// number (their nodes may be bound).
fn devices(config: &Value) -> Vec<(u64, u64)> {
    let list = |at| config.pointer(at).and_then(Value::as_array);
    let list = |at| list(at).into_iter().flatten();
    let number = |d: &Value| {
        let denied = d.get("allow").is_some_and(|allow| allow != true);
        let character = matches!(d.get("type")?.as_str()?, "c" | "u") && !denied;
        character.then(|| Some((d.get("major")?.as_u64()?, d.get("minor")?.as_u64()?)))?
    };
    let all = list("/linux/devices").chain(list("/linux/resources/devices"));
    all.filter_map(number).collect()
}

fn mig_name(gpu: &Device, mig: &Mig) -> String {
    format!("{}:{}", gpu.index, mig.index)
}

fn stats(told: Option<&Told>, gpu: &Device) -> Result<Option<Stats>> {
    let Some(told) = told.and_then(|t| t.of(gpu)) else {
        return Ok(None);
    };
    if let Some(why) = &told.error {
        return Err(Error::msg(format!("GPU {}: NVML: {why}", gpu.index)));
    }
    Ok(Some(Stats {
        memory: told.memory,
        utilization: told.utilization,
        processes: told.processes.clone(),
    }))
}

fn mig_stats(told: Option<&Told>, gpu: &Device, mig: &Mig) -> Option<MigStats> {
    let parts = &told?.of(gpu)?.mig;
    let (gi, ci) = (mig.gpu_instance, mig.compute_instance);
    let same = parts
        .iter()
        .find(|p| (p.gpu_instance, p.compute_instance) == (gi, ci))?;
    Some(MigStats {
        uuid: same.uuid.clone(),
        memory: same.memory,
    })
}

fn report(inv: &Inventory, holders: &Holders, told: Option<&Told>) -> Result<Report> {
    let mut gpus = Vec::new();
    for gpu in &inv.gpus {
        let part = |mig: &Mig| MigLine {
            name: mig_name(gpu, mig),
            gpu_instance: mig.gpu_instance,
            compute_instance: mig.compute_instance,
            cells: holders.of(inv.majors.caps, mig.compute_instance_cap),
            stats: mig_stats(told, gpu, mig),
        };
        gpus.push(GpuLine {
            index: gpu.index,
            uuid: gpu.uuid.clone(),
            model: gpu.model.clone(),
            bus: gpu.bus.clone(),
            minor: gpu.minor,
            cells: holders.of(inv.majors.nvidia, gpu.minor),
            stats: stats(told, gpu)?,
            mig: inv.mig(gpu)?.iter().map(part).collect(),
        });
    }
    Ok(Report {
        driver: inv.driver.clone(),
        cuda: inv.cuda.clone(),
        gpus,
    })
}

/// `1.2 GiB / 80.0 GiB`.
fn used(memory: Option<Memory>) -> String {
    memory.map_or_else(
        || "-".to_owned(),
        |m| {
            format!(
                "{} / {}",
                units::human_exact(m.used),
                units::human_exact(m.total)
            )
        },
    )
}

fn percent(usage: Option<Utilization>) -> String {
    usage.map_or_else(|| "-".to_owned(), |u| format!("{} %", u.gpu))
}

fn dash(list: &[String]) -> String {
    match list {
        [] => "-".to_owned(),
        some => some.join(","),
    }
}

fn table(report: &Report, with_stats: bool) -> String {
    let mut head = vec!["INDEX", "MODEL", "UUID", "BUS", "MINOR"];
    if with_stats {
        head.extend(["MEMORY", "LOAD"]);
    }
    head.push("CELLS");
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    let none = || "-".to_owned();
    for gpu in &report.gpus {
        let mut row = vec![
            gpu.index.to_string(),
            gpu.model.clone().unwrap_or_else(none),
            gpu.uuid.clone().unwrap_or_else(none),
            gpu.bus.clone(),
            gpu.minor.to_string(),
        ];
        if with_stats {
            let stats = gpu.stats.as_ref();
            row.push(used(stats.and_then(|s| s.memory)));
            row.push(percent(stats.and_then(|s| s.utilization)));
        }
        row.push(dash(&gpu.cells));
        rows.push(row);
        for mig in &gpu.mig {
            let stats = mig.stats.as_ref();
            let mut row = vec![
                mig.name.clone(),
                format!("MIG {}/{}", mig.gpu_instance, mig.compute_instance),
                stats.map_or_else(none, |s| s.uuid.clone()),
                gpu.bus.clone(),
                gpu.minor.to_string(),
            ];
            if with_stats {
                row.extend([used(stats.and_then(|s| s.memory)), none()]);
            }
            row.push(dash(&mig.cells));
            rows.push(row);
        }
    }
    let last = rows[0].len() - 1;
    let mut width = vec![0; last];
    for row in &rows {
        for (max, cell) in width.iter_mut().zip(row) {
            *max = (*max).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(&width) {
            let _ = write!(out, "{cell:width$}  ");
        }
        let _ = writeln!(out, "{}", row[last]);
    }
    let cuda = match &report.cuda {
        Some(version) => format!(", CUDA {version}"),
        None => String::new(),
    };
    let _ = writeln!(out, "driver {}{cuda}", report.driver);
    out
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    name: String,
    model: Option<String>,
    uuid: Option<String>,
    bus: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_instance: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compute_instance: Option<u32>,
    driver: String,
    cuda: Option<String>,
    cells: Vec<String>,
    #[serde(flatten)]
    stats: Option<Stats>,
    nodes: Vec<NodeLine>,
}

fn facts(
    inv: &Inventory,
    holders: &Holders,
    chosen: &Chosen,
    told: Option<&Told>,
) -> Result<Facts> {
    let gpu = &chosen.gpu;
    // A MIG device's UUID is NVML's to tell, and so is what it has of the GPU.
    let part = chosen.mig.and_then(|mig| mig_stats(told, gpu, &mig));
    let mut stats = stats(told, gpu)?;
    if let (Some(_), Some(stats)) = (&chosen.mig, &mut stats) {
        stats.memory = part.as_ref().and_then(|p| p.memory);
        stats.utilization = None;
        let parts = chosen.mig.map(|m| (m.gpu_instance, m.compute_instance));
        let own = |p: &Process| p.gpu_instance.zip(p.compute_instance) == parts;
        stats.processes.retain(own);
    }
    let nodes = nodes::gpu_nodes(inv, chosen)?;
    Ok(Facts {
        name: match &chosen.mig {
            Some(mig) => mig_name(gpu, mig),
            None => gpu.index.to_string(),
        },
        model: gpu.model.clone(),
        uuid: match &chosen.mig {
            None => gpu.uuid.clone(),
            Some(_) => part.map(|p| p.uuid),
        },
        bus: gpu.bus.clone(),
        gpu_instance: chosen.mig.map(|m| m.gpu_instance),
        compute_instance: chosen.mig.map(|m| m.compute_instance),
        driver: inv.driver.clone(),
        cuda: inv.cuda.clone(),
        cells: match &chosen.mig {
            Some(mig) => holders.of(inv.majors.caps, mig.compute_instance_cap),
            None => holders.of(inv.majors.nvidia, gpu.minor),
        },
        stats,
        nodes: nodes.iter().map(node_line).collect::<Result<_>>()?,
    })
}

fn node_line(node: &Node) -> Result<NodeLine> {
    Ok(NodeLine {
        path: node.path.display().to_string(),
        major: node.major,
        minor: node.minor,
        state: match node.state()? {
            State::Here { mode, .. } => format!("here, mode {mode:04o}"),
            State::Stale { major, minor } => format!("stale: it is {major}:{minor}"),
            State::Other => "not a device".to_owned(),
            State::Missing => "missing: made when a cell needs it".to_owned(),
        },
    })
}

fn lines(facts: &Facts) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:17} {value}");
    };
    line("device", facts.name.clone());
    let optional = [("model", &facts.model), ("uuid", &facts.uuid)];
    for (name, value) in optional {
        if let Some(value) = value {
            line(name, value.clone());
        }
    }
    line("bus", facts.bus.clone());
    let instances = [
        ("gpu instance", facts.gpu_instance),
        ("compute instance", facts.compute_instance),
    ];
    for (name, value) in instances {
        if let Some(value) = value {
            line(name, value.to_string());
        }
    }
    line("driver", facts.driver.clone());
    if let Some(cuda) = &facts.cuda {
        line("cuda", cuda.clone());
    }
    if let Some(stats) = &facts.stats {
        line("memory", used(stats.memory));
        line("load", percent(stats.utilization));
        for process in &stats.processes {
            let memory = process
                .memory
                .map_or_else(|| "-".to_owned(), units::human_exact);
            line("process", format!("{} ({memory})", process.pid));
        }
    }
    line("cells", dash(&facts.cells));
    for node in &facts.nodes {
        let value = format!(
            "{} {}:{} ({})",
            node.path, node.major, node.minor, node.state
        );
        line("node", value);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn devices_of_a_configuration() {
        let config = json!({"linux": {"devices": [
            {"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0},
            {"path": "/dev/sda", "type": "b", "major": 195, "minor": 1},
            {"path": "/dev/x", "type": "c", "major": -1, "minor": 1},
            {"path": "/dev/p", "type": "p"},
            7
        ], "resources": {"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "access": "m"},
            {"allow": true, "type": "c", "major": 195, "minor": 2, "access": "rw"},
            {"allow": false, "type": "c", "major": 195, "minor": 3, "access": "rw"}
        ]}}});
        assert_eq!(devices(&config), [(195, 0), (195, 2)]);
        assert_eq!(devices(&json!({"linux": 1})), []);
        let holders = Holders(vec![("a".into(), vec![(195, 0)]), ("b".into(), vec![])]);
        assert_eq!(holders.of(Some(195), 0), ["a"]);
        assert!(holders.of(None, 0).is_empty());
        assert!(holders.of(Some(195), 1).is_empty());
    }
}
