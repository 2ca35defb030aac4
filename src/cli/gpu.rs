//! `gpucell gpu list|show`: this host's GPUs, and which cells have them.
//!
//! From procfs and the saved configurations alone: nothing is opened, so no GPU wakes up, and nothing is
//! printed that isn't known that way (memory and load are not).

use std::fmt::Write;
use std::fs;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::Value;

use super::{Globals, out};
use crate::cell::{Status, Store};
use crate::nvidia::config::Config;
use crate::nvidia::inventory::{Chosen, Gpu as Device, Host, Inventory, Mig};
use crate::nvidia::nodes::{self, Node, State};
use crate::nvidia::select::GpuId;
use crate::{Error, Result};

/// Show GPUs, and which cells have them
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  gpucell gpu list
  gpucell gpu show 0
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
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Args, Clone, Debug)]
struct Show {
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Index, GPU-UUID, PCI bus id, or GPU:MIG as 0:1
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
    mig: Vec<MigLine>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MigLine {
    name: String,
    gpu_instance: u32,
    compute_instance: u32,
    cells: Vec<String>,
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
        let text = match self.command {
            Command::List(list) => {
                let report = report(&inv, &holders)?;
                match list.format {
                    Format::Table => table(&report),
                    Format::Json => out::pretty(&report)?,
                }
            }
            Command::Show(show) => {
                let chosen = inv.resolve(&GpuId::parse(&show.device)?)?;
                let facts = facts(&inv, &holders, &chosen)?;
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

fn report(inv: &Inventory, holders: &Holders) -> Result<Report> {
    let mut gpus = Vec::new();
    for gpu in &inv.gpus {
        let part = |mig: &Mig| MigLine {
            name: mig_name(gpu, mig),
            gpu_instance: mig.gpu_instance,
            compute_instance: mig.compute_instance,
            cells: holders.of(inv.majors.caps, mig.compute_instance_cap),
        };
        gpus.push(GpuLine {
            index: gpu.index,
            uuid: gpu.uuid.clone(),
            model: gpu.model.clone(),
            bus: gpu.bus.clone(),
            minor: gpu.minor,
            cells: holders.of(inv.majors.nvidia, gpu.minor),
            mig: inv.mig(gpu)?.iter().map(part).collect(),
        });
    }
    Ok(Report {
        driver: inv.driver.clone(),
        cuda: inv.cuda.clone(),
        gpus,
    })
}

fn dash(list: &[String]) -> String {
    match list {
        [] => "-".to_owned(),
        some => some.join(","),
    }
}

fn table(report: &Report) -> String {
    let mut rows = vec![["INDEX", "MODEL", "UUID", "BUS", "MINOR", "CELLS"].map(str::to_owned)];
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    for gpu in &report.gpus {
        rows.push([
            gpu.index.to_string(),
            or_dash(&gpu.model),
            or_dash(&gpu.uuid),
            gpu.bus.clone(),
            gpu.minor.to_string(),
            dash(&gpu.cells),
        ]);
        for mig in &gpu.mig {
            let what = format!("MIG {}/{}", mig.gpu_instance, mig.compute_instance);
            let none = || "-".to_owned();
            rows.push([
                mig.name.clone(),
                what,
                none(),
                gpu.bus.clone(),
                gpu.minor.to_string(),
                dash(&mig.cells),
            ]);
        }
    }
    let mut width = [0; 5];
    for row in &rows {
        for (max, cell) in width.iter_mut().zip(row) {
            *max = (*max).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(width) {
            let _ = write!(out, "{cell:width$}  ");
        }
        let _ = writeln!(out, "{}", row[5]);
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
    nodes: Vec<NodeLine>,
}

fn facts(inv: &Inventory, holders: &Holders, chosen: &Chosen) -> Result<Facts> {
    let gpu = &chosen.gpu;
    let nodes = nodes::gpu_nodes(inv, chosen)?;
    Ok(Facts {
        name: match &chosen.mig {
            Some(mig) => mig_name(gpu, mig),
            None => gpu.index.to_string(),
        },
        model: gpu.model.clone(),
        // A MIG device has one of its own, which only NVML knows.
        uuid: gpu.uuid.clone().filter(|_| chosen.mig.is_none()),
        bus: gpu.bus.clone(),
        gpu_instance: chosen.mig.map(|m| m.gpu_instance),
        compute_instance: chosen.mig.map(|m| m.compute_instance),
        driver: inv.driver.clone(),
        cuda: inv.cuda.clone(),
        cells: match &chosen.mig {
            Some(mig) => holders.of(inv.majors.caps, mig.compute_instance_cap),
            None => holders.of(inv.majors.nvidia, gpu.minor),
        },
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
