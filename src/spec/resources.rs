//! `linux.resources` by itself: what `update` is given, and how it is put into a configuration.
//!
//! Owns the reading of such a text and the merge. It must not look at the host or at the cell's groups.

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::tolerate::tree;
use super::{check, load};
use crate::{Error, Result};

/// Reads the text of a file with what config.json has as `linux.resources`, with the same tolerance and the
/// same errors.
///
/// # Errors
/// Not JSON, a property named twice, larger than [`load::MAX_SIZE`], a value of the wrong type, or one that no controller takes.
pub fn parse(text: &[u8]) -> Result<LinuxResources> {
    if text.len() as u64 > load::MAX_SIZE {
        return Err(Error::msg(format!(
            "resources: larger than the {} MiB that are read",
            load::MAX_SIZE >> 20
        )));
    }
    from_value(tree(text).map_err(|e| Error::msg(format!("resources: {e}")))?)
}

/// The same of a JSON value.
///
/// The device list is left out, as runc does: engines send one with every change, made before CDI or a hook
/// added devices, and it would take those away.
///
/// # Errors
/// As [`parse`].
pub fn from_value(value: Value) -> Result<LinuxResources> {
    // serde would take a list for an object, member by member.
    if !value.is_object() {
        return Err(Error::config("linux.resources", "expected an object"));
    }
    let config = json!({"ociVersion": "1.0.0", "linux": {"resources": value}});
    let spec = load::parse(config.to_string().as_bytes())?.spec;
    let linux = spec.linux().as_ref();
    let mut resources = linux
        .and_then(|l| l.resources().clone())
        .ok_or_else(|| Error::config("linux.resources", "expected an object, found null"))?;
    resources.set_devices(None);
    check::resources(&resources)?;
    Ok(resources)
}

/// Puts what is set in `new` into `linux.resources` of a configuration. All else stays, properties that
/// nobody here knows included.
///
/// # Errors
/// `new` can't be written as JSON.
pub fn merge(config: &mut Value, new: &LinuxResources) -> Result<()> {
    let new =
        serde_json::to_value(new).map_err(|e| Error::config("linux.resources", e.to_string()))?;
    let at = object(object(config, "linux"), "resources");
    put(at, &new);
    // How this one update was made says nothing of the next.
    if let Some(memory) = at.get_mut("memory").and_then(Value::as_object_mut) {
        memory.remove("checkBeforeUpdate");
    }
    Ok(())
}

/// A member that is an object; it is made one when it is not.
pub(crate) fn object<'a>(parent: &'a mut Value, name: &str) -> &'a mut Value {
    if !parent.is_object() {
        *parent = Value::Object(Map::new());
    }
    let member = &mut parent[name];
    if !member.is_object() {
        *member = Value::Object(Map::new());
    }
    member
}

/// Numbers that mean something when they are 0. Elsewhere 0 is "not set", as for the control files.
const ZERO_COUNTS: [&str; 8] = [
    "idle",
    "burst",
    "rate",
    "swappiness",
    "major",
    "minor",
    "hcaHandles",
    "hcaObjects",
];

fn is_set(name: &str, parent: &str, value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(s) => !s.is_empty(),
        Value::Number(n) if n.as_u64() == Some(0) => {
            ZERO_COUNTS.contains(&name) || (parent, name) == ("pids", "limit")
        }
        _ => true,
    }
}

fn put(old: &mut Value, new: &Value) {
    put_in(old, new, "");
}

fn put_in(old: &mut Value, new: &Value, parent: &str) {
    let Value::Object(new) = new else {
        *old = new.clone();
        return;
    };
    if !old.is_object() {
        *old = Value::Object(Map::new());
    }
    for (name, value) in new {
        if !is_set(name, parent, value) {
            continue;
        }
        let member = &mut old[name.as_str()];
        match value {
            Value::Object(_) => put_in(member, value, name),
            Value::Array(list) => lines(member, list),
            _ => *member = value.clone(),
        }
    }
}

/// Lists have an entry for each device, page size or interface: a new one replaces the one for the same.
fn lines(old: &mut Value, new: &[Value]) {
    let Value::Array(old) = old else {
        *old = Value::Array(new.to_vec());
        return;
    };
    let key = |v: &Value| ["major", "minor", "pageSize", "name"].map(|k| v.get(k).cloned());
    for entry in new {
        match old.iter_mut().find(|o| key(o) == key(entry)) {
            Some(o) => put(o, entry),
            None => old.push(entry.clone()),
        }
    }
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
            (r#"{"cpu":{"idle":2}}"#, "linux.resources.cpu.idle"),
        ];
        for (text, why) in rows {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        let large = format!("{{}}{}", " ".repeat(load::MAX_SIZE as usize));
        let error = parse(large.as_bytes()).unwrap_err().to_string();
        assert_eq!(error, "resources: larger than the 16 MiB that are read");
    }

    #[test]
    fn what_is_set_is_merged() {
        let rows = [
            // Values that are not set, and the text's unknown ones, stay.
            (
                r#"{"memory":{"limit":1,"swap":2,"odd":3}}"#,
                r#"{"memory":{"limit":5,"swap":0,"checkBeforeUpdate":true},"cpu":{"shares":0,"cpus":""}}"#,
                r#"{"memory":{"limit":5,"swap":2,"odd":3},"cpu":{}}"#,
            ),
            // Zeros that mean something.
            (
                r#"{"cpu":{"idle":1,"burst":9,"quota":10},"pids":{"limit":7}}"#,
                r#"{"cpu":{"idle":0,"burst":0,"quota":-1},"pids":{"limit":0}}"#,
                r#"{"cpu":{"idle":0,"burst":0,"quota":-1},"pids":{"limit":0}}"#,
            ),
            // Lists by device.
            (
                r#"{"blockIO":{"weight":10,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":5},{"major":8,"minor":16,"rate":6}]}}"#,
                r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":16,"rate":0},{"major":9,"minor":0,"rate":1}]}}"#,
                r#"{"blockIO":{"weight":10,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":5},{"major":8,"minor":16,"rate":0},{"major":9,"minor":0,"rate":1}]}}"#,
            ),
            (
                r#"{"unified":{"memory.high":"1","memory.min":"2"},"devices":[{"allow":false,"access":"rwm"}]}"#,
                r#"{"unified":{"memory.high":"max"},"devices":[{"allow":true}]}"#,
                r#"{"unified":{"memory.high":"max","memory.min":"2"},"devices":[{"allow":false,"access":"rwm"}]}"#,
            ),
        ];
        for (old, new, want) in rows {
            let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
            let mut config = json!({"linux": {"resources": value(old)}, "x": 1});
            merge(&mut config, &parse(new.as_bytes()).unwrap()).unwrap();
            assert_eq!(config["linux"]["resources"], value(want), "{new}");
            assert_eq!(config["x"], 1);
        }
        for mut config in [json!({}), json!({"linux": {"resources": null}}), json!(7)] {
            merge(&mut config, &parse(br#"{"pids":{"limit":5}}"#).unwrap()).unwrap();
            assert_eq!(config["linux"]["resources"]["pids"]["limit"], 5);
        }
    }
}
