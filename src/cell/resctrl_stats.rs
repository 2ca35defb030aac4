//! What resctrl tells of a cell (kernel: arch/x86/resctrl.rst), as `runc events` prints it.
//!
//! Owns the reading of the group's files. Making, changing and leaving the group are `host_parts` and
//! `schemata`.

use super::schemata::group;
use crate::{Error, Result};
use oci_spec::runtime::LinuxIntelRdt;
use serde::Serialize;
use std::fs;
use std::io;
use std::path::Path;

/// `intel_rdt` of an event; empty for a cell without.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rdt {
    #[serde(skip_serializing_if = "Option::is_none")]
    l3_cache_info: Option<L3Info>,
    #[serde(skip_serializing_if = "String::is_empty")]
    l3_cache_schema_root: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    l3_cache_schema: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_bw_info: Option<BandwidthInfo>,
    #[serde(skip_serializing_if = "String::is_empty")]
    mem_bw_schema_root: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    mem_bw_schema: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    schemata: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mbm_stats: Option<Vec<Bandwidth>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmt_stats: Option<Vec<Occupancy>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct L3Info {
    cbm_mask: String,
    min_cbm_bits: u64,
    num_closids: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct BandwidthInfo {
    bandwidth_gran: u64,
    delay_linear: u64,
    min_bandwidth: u64,
    num_closids: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Bandwidth {
    mbm_total_bytes: u64,
    mbm_local_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Occupancy {
    llc_occupancy: u64,
}

/// Reads them for a cell. `root` is where resctrl is mounted.
///
/// # Errors
/// A file that should be there can't be read or understood.
pub(super) fn read(root: &Path, rdt: &LinuxIntelRdt, id: &str) -> Result<Rdt> {
    let own = group(root, rdt, id);
    let lines = |dir: &Path| -> Result<Vec<String>> {
        let text = text(&dir.join("schemata"))?;
        Ok(text.trim_end().split('\n').map(str::to_owned).collect())
    };
    // As runc: the last line of a kind, blanks off.
    let last = |lines: &[String], kind: &str| {
        let found = lines.iter().rev().find(|l| l.contains(kind));
        found.map(|l| l.trim().to_owned()).unwrap_or_default()
    };
    let (all, mine) = (lines(root)?, lines(&own)?);
    let mut out = Rdt::default();
    let info = root.join("info");
    if let Some(dir) = ["L3", "L3CODE"]
        .map(|n| info.join(n))
        .into_iter()
        .find(|d| d.exists())
    {
        out.l3_cache_info = Some(L3Info {
            cbm_mask: text(&dir.join("cbm_mask"))?.trim().to_owned(),
            min_cbm_bits: number(&dir.join("min_cbm_bits"))?,
            num_closids: number(&dir.join("num_closids"))?,
        });
        out.l3_cache_schema_root = last(&all, "L3");
        out.l3_cache_schema = last(&mine, "L3");
    }
    let dir = info.join("MB");
    if dir.exists() {
        out.mem_bw_info = Some(BandwidthInfo {
            bandwidth_gran: number(&dir.join("bandwidth_gran"))?,
            delay_linear: number(&dir.join("delay_linear"))?,
            min_bandwidth: number(&dir.join("min_bandwidth"))?,
            num_closids: number(&dir.join("num_closids"))?,
        });
        out.mem_bw_schema_root = last(&all, "MB");
        out.mem_bw_schema = last(&mine, "MB");
    }
    out.schemata = mine;
    if let Ok(features) = fs::read_to_string(info.join("L3_MON/mon_features")) {
        let watched = match rdt.enable_monitoring() {
            Some(true) => own.join("mon_groups").join(id),
            // Of the whole group then, in which others may be.
            _ => own,
        };
        monitoring(&watched.join("mon_data"), &features, &mut out)?;
    }
    Ok(out)
}

/// One folder of `mon_data` for each L3 cache.
fn monitoring(data: &Path, features: &str, out: &mut Rdt) -> Result<()> {
    let has = |name: &str| features.lines().any(|l| l == name);
    let (total, local) = (has("mbm_total_bytes"), has("mbm_local_bytes"));
    let occupancy = has("llc_occupancy");
    let list =
        fs::read_dir(data).map_err(|e| Error::step("read", data.display().to_string(), e))?;
    let mut dirs: Vec<_> = list
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.is_dir())
        .collect();
    dirs.sort();
    let get = |there: bool, dir: &Path, name: &str| match there {
        true => number(&dir.join(name)),
        false => Ok(0),
    };
    for dir in &dirs {
        if total || local {
            out.mbm_stats.get_or_insert_default().push(Bandwidth {
                mbm_total_bytes: get(total, dir, "mbm_total_bytes")?,
                mbm_local_bytes: get(local, dir, "mbm_local_bytes")?,
            });
        }
        if occupancy {
            out.cmt_stats.get_or_insert_default().push(Occupancy {
                llc_occupancy: get(true, dir, "llc_occupancy")?,
            });
        }
    }
    Ok(())
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| Error::step("read", path.display().to_string(), e))
}

fn number(path: &Path) -> Result<u64> {
    let text = text(path)?;
    text.trim().parse().map_err(|_| {
        let why = io::Error::new(
            io::ErrorKind::InvalidData,
            format!("found {:?}", text.trim()),
        );
        Error::step("read", path.display().to_string(), why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn as_runc_prints_it() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("schemata", "    MB:0=100\n    L3:0=fff\n");
        put("gold/schemata", "    MB:0=20\n    L3:0=f\n");
        put("info/L3/cbm_mask", "fff\n");
        put("info/L3/min_cbm_bits", "1\n");
        put("info/L3/num_closids", "16\n");
        put("info/MB/bandwidth_gran", "10\n");
        put("info/MB/delay_linear", "1\n");
        put("info/MB/min_bandwidth", "10\n");
        put("info/MB/num_closids", "8\n");
        put(
            "info/L3_MON/mon_features",
            "llc_occupancy\nmbm_total_bytes\n",
        );
        for (cache, n) in [("mon_L3_00", "1"), ("mon_L3_01", "2")] {
            let dir = format!("gold/mon_groups/one/mon_data/{cache}");
            put(&format!("{dir}/llc_occupancy"), n);
            put(&format!("{dir}/mbm_total_bytes"), n);
        }
        let rdt = serde_json::from_value(json!({"closID": "gold", "enableMonitoring": true}));
        let got = read(root.path(), &rdt.unwrap(), "one").unwrap();
        assert_eq!(
            serde_json::to_value(got).unwrap(),
            json!({
                "l3_cache_info": {"cbm_mask": "fff", "min_cbm_bits": 1, "num_closids": 16},
                "l3_cache_schema_root": "L3:0=fff",
                "l3_cache_schema": "L3:0=f",
                "mem_bw_info": {"bandwidth_gran": 10, "delay_linear": 1, "min_bandwidth": 10, "num_closids": 8},
                "mem_bw_schema_root": "MB:0=100",
                "mem_bw_schema": "MB:0=20",
                "schemata": ["    MB:0=20", "    L3:0=f"],
                "mbm_stats": [{"mbm_total_bytes": 1, "mbm_local_bytes": 0}, {"mbm_total_bytes": 2, "mbm_local_bytes": 0}],
                "cmt_stats": [{"llc_occupancy": 1}, {"llc_occupancy": 2}],
            })
        );
        put("info/L3/num_closids", "many\n");
        let rdt = serde_json::from_value(json!({"closID": "gold"})).unwrap();
        let error = read(root.path(), &rdt, "one").unwrap_err().to_string();
        assert!(error.contains("num_closids"), "{error}");
        assert_eq!(serde_json::to_value(Rdt::default()).unwrap(), json!({}));
    }
}
