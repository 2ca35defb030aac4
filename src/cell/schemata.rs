//! New cache and memory bandwidth allocations for a live cell: lines of its resctrl group's schemata
//! (kernel: arch/x86/resctrl.rst).
//!
//! Owns what runc's `update --l3-cache-schema` and `--mem-bw-schema` do. Making and leaving the group is
//! `host_parts`' part.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxIntelRdt;
use serde_json::Value;

use crate::spec::resources::object;
use crate::{Error, Result};

/// What is to be changed; nothing by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schemata {
    /// `L3:0=ff;1=f`, several lines where code and data are apart.
    pub l3: Option<String>,
    /// `MB:0=20;1=70`.
    pub mem_bw: Option<String>,
}

impl Schemata {
    /// Whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        *self == Schemata::default()
    }

    /// The file to write, once it is sure that this host and this cell have what is asked for. `resctrl` is
    /// the mounted file system, if there is one; `rdt` the cell's own configuration.
    ///
    /// # Errors
    /// runc's, which name what is missing.
    pub(super) fn file(
        &self,
        resctrl: Option<&Path>,
        rdt: Option<&LinuxIntelRdt>,
        id: &str,
    ) -> Result<PathBuf> {
        let has = |names: &[&str]| {
            resctrl.is_some_and(|r| names.iter().any(|n| r.join("info").join(n).exists()))
        };
        if self.l3.is_some() && !has(&["L3", "L3CODE"]) {
            return Err(Error::msg("Intel RDT/CAT: l3 cache schema is not enabled"));
        }
        if self.mem_bw.is_some() && !has(&["MB"]) {
            return Err(Error::msg(
                "Intel RDT/MBA: memory bandwidth schema is not enabled",
            ));
        }
        match (resctrl, rdt) {
            (Some(root), Some(rdt)) => Ok(group(root, rdt, id).join("schemata")),
            _ => Err(Error::msg(
                "updating a non-existent Intel RDT configuration is not supported",
            )),
        }
    }

    /// Writes the lines; the kernel leaves those of other resources as they are.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let lines: Vec<&str> = [&self.l3, &self.mem_bw]
            .into_iter()
            .flatten()
            .flat_map(|s| s.lines())
            .collect();
        // One write: the kernel takes all lines or, with the reason in info/last_cmd_status, none.
        fs::write(file, format!("{}\n", lines.join("\n"))).map_err(|e| {
            Error::step(
                "write",
                format!("{:?} to {}", lines.join("; "), file.display()),
                e,
            )
        })
    }

    /// Puts them into a configuration.
    pub(super) fn merge(&self, config: &mut Value) {
        for (name, value) in [("l3CacheSchema", &self.l3), ("memBwSchema", &self.mem_bw)] {
            if let Some(value) = value {
                let rdt = object(object(config, "linux"), "intelRdt");
                rdt[name] = Value::from(value.as_str());
            }
        }
    }
}

/// The resctrl group of a cell.
pub(super) fn group(root: &Path, rdt: &LinuxIntelRdt, id: &str) -> PathBuf {
    let name = rdt.clos_id().as_deref().unwrap_or(id);
    root.join(name.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rdt(json: Value) -> LinuxIntelRdt {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn refused_as_runc_does() {
        let root = tempfile::tempdir().unwrap();
        let some = Some(root.path());
        let l3 = Schemata {
            l3: Some("L3:0=f".into()),
            mem_bw: None,
        };
        let mb = Schemata {
            l3: None,
            mem_bw: Some("MB:0=20".into()),
        };
        let own = rdt(json!({}));
        let text = |s: &Schemata, root, rdt| s.file(root, rdt, "a").unwrap_err().to_string();
        assert!(text(&l3, None, Some(&own)).contains("l3 cache schema is not enabled"));
        assert!(text(&l3, some, Some(&own)).contains("l3 cache schema is not enabled"));
        fs::create_dir_all(root.path().join("info/L3")).unwrap();
        assert!(text(&mb, some, Some(&own)).contains("bandwidth schema is not enabled"));
        assert!(text(&l3, some, None).contains("non-existent Intel RDT"));
        let file = l3.file(some, Some(&own), "a").unwrap();
        assert_eq!(file, root.path().join("a/schemata"));
        let shared = rdt(json!({"closID": "gold"}));
        let file = l3.file(some, Some(&shared), "a").unwrap();
        assert_eq!(file, root.path().join("gold/schemata"));
        let error = l3.write(&file).unwrap_err().to_string();
        assert!(error.contains("gold/schemata"), "{error}");
    }

    #[test]
    fn all_lines_are_written_at_once_and_kept() {
        let root = tempfile::tempdir().unwrap();
        let both = Schemata {
            l3: Some("L3:0=f\nL3:1=ff\n".into()),
            mem_bw: Some("MB:0=20".into()),
        };
        let file = root.path().join("schemata");
        both.write(&file).unwrap();
        assert_eq!(
            fs::read_to_string(file).unwrap(),
            "L3:0=f\nL3:1=ff\nMB:0=20\n"
        );
        let mut config = json!({"linux": {"intelRdt": {"closID": "x", "memBwSchema": "MB:0=1"}}});
        both.merge(&mut config);
        assert_eq!(
            config["linux"]["intelRdt"],
            json!({"closID": "x", "memBwSchema": "MB:0=20", "l3CacheSchema": "L3:0=f\nL3:1=ff\n"})
        );
    }
}
