//! `linux.devices`: nodes made in the cell (config-linux.md, "Devices").

use std::collections::HashMap;

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType};

use super::{absolute, id};
use crate::{Error, Result};

/// The kernel's dev_t: 12 bits for the driver, 20 for the device (include/linux/kdev_t.h).
pub(super) const MAX_MAJOR: i64 = (1 << 12) - 1;
pub(super) const MAX_MINOR: i64 = (1 << 20) - 1;

pub(super) fn check(linux: &Linux, warnings: &mut Vec<String>) -> Result<()> {
    let devices = linux.devices().as_deref().unwrap_or_default();
    let mut seen: HashMap<&std::path::Path, &LinuxDevice> = HashMap::new();
    for (i, d) in devices.iter().enumerate() {
        let at = |member: &str| format!("linux.devices[{i}].{member}");
        absolute(at("path"), d.path())?;
        match d.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U | LinuxDeviceType::B => {
                for (member, n, max) in [
                    ("major", d.major(), MAX_MAJOR),
                    ("minor", d.minor(), MAX_MINOR),
                ] {
                    if !(0..=max).contains(&n) {
                        return Err(Error::config(
                            at(member),
                            format!("expected 0 to {max}, found {n}"),
                        ));
                    }
                }
            }
            LinuxDeviceType::P => {}
            LinuxDeviceType::A => {
                return Err(Error::config(
                    at("type"),
                    "expected c, b, u or p, found \"a\"",
                ));
            }
        }
        for (member, n) in [("uid", d.uid()), ("gid", d.gid())] {
            if let Some(n) = n {
                id(&at(member), n)?;
            }
        }
        match seen.insert(d.path(), d) {
            Some(other) if other != d => {
                return Err(Error::config(
                    at("path"),
                    format!("{} is given twice, differently", d.path().display()),
                ));
            }
            Some(_) => warnings.push(format!(
                "{}: {} is given twice",
                at("path"),
                d.path().display()
            )),
            None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{accepted, refused, set};
    use serde_json::{Value, json};

    fn devices(list: Value) -> Value {
        set("/linux/devices", list)
    }

    #[test]
    fn nodes() {
        let ok = json!({"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0,
                        "fileMode": 438, "uid": 0, "gid": 0});
        accepted(devices(json!([ok, {"path": "/dev/fifo", "type": "p"}])));
        let bad = |member: &str, value: Value| {
            let mut d = ok.clone();
            d[member] = value;
            devices(json!([d]))
        };
        refused(
            bad("path", json!("dev/x")),
            &["linux.devices[0].path", "absolute"],
        );
        refused(bad("type", json!("a")), &["linux.devices[0].type"]);
        refused(bad("major", json!(-1)), &["linux.devices[0].major", "4095"]);
        refused(
            bad("minor", json!(1 << 20)),
            &["linux.devices[0].minor", "1048575"],
        );
        refused(bad("uid", json!(u32::MAX)), &["linux.devices[0].uid"]);
    }

    #[test]
    fn twice() {
        let node = |minor: i64| json!({"path": "/dev/x", "type": "c", "major": 1, "minor": minor});
        let w = accepted(devices(json!([node(3), node(3)])));
        assert_eq!(w.len(), 1);
        refused(
            devices(json!([node(3), node(5)])),
            &["linux.devices[1].path", "twice"],
        );
    }
}
