//! `gpucell update`: new limits for a live cell.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use oci_spec::runtime::LinuxResources;

use super::{Globals, log};
use crate::spec::load;
use crate::{Error, Result, cell};

/// Change the limits of a cell
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  echo '{\"cpu\":{\"quota\":50000,\"period\":100000}}' | gpucell update --resources - one"
)]
pub struct Update {
    /// Name of the cell
    id: String,
    /// File with what config.json has as linux.resources; what isn't in it stays as it is. -: standard input
    ///
    /// The device list stays as it is in any case, as under runc: podman sends one with every change, and it
    /// lacks the devices that came by CDI.
    #[arg(short, long, value_name = "FILE")]
    resources: PathBuf,
}

impl Update {
    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        let resources = parse(&read(&self.resources)?)?;
        log::warnings(g, &cell::update(&g.store(), &self.id, &resources)?);
        Ok(0)
    }
}

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

/// Reads the limits as part of a configuration, so that the same is tolerated and errors say the same.
/// Without the device list: podman's is from before CDI, and would take the GPUs away.
fn parse(text: &[u8]) -> Result<LinuxResources> {
    let value: serde_json::Value =
        serde_json::from_slice(text).map_err(|e| Error::msg(format!("resources: {e}")))?;
    let config = serde_json::json!({"ociVersion": "1.0.0", "linux": {"resources": value}});
    let spec = load::parse(config.to_string().as_bytes())?.spec;
    let linux = spec.linux().as_ref();
    let mut resources = linux
        .and_then(|l| l.resources().clone())
        .ok_or_else(|| Error::config("linux.resources", "expected an object, found null"))?;
    resources.set_devices(None);
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_read_as_in_a_configuration() {
        // As containerd's shim passes Docker's.
        let docker = r#"{"devices":null,"memory":{},"cpu":{"shares":0,"quota":100000,"period":100000},"blockIO":{"weight":0}}"#;
        let cpu = parse(docker.as_bytes()).unwrap().cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(100_000), Some(100_000)));
        let podman = r#"{"devices":[{"allow":false,"access":"rwm"}],"pids":{"limit":2048}}"#;
        let resources = parse(podman.as_bytes()).unwrap();
        assert!(resources.devices().is_none() && resources.pids().is_some());
        let rows = [
            ("", "EOF"),
            ("null", "linux.resources"),
            ("7", "linux.resources"),
            ("{}}", "trailing"),
            (
                r#"{"memory":{"limit":"much"}}"#,
                "linux.resources.memory.limit",
            ),
        ];
        for (text, why) in rows {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
