//! `linux.resources`: values that no controller would take, whichever version (config-linux.md,
//! "Control groups"). What one cgroup version has and the other lacks is `cgroup/`'s to say.

use oci_spec::runtime::{LinuxBlockIo, LinuxDeviceType, LinuxMemory, LinuxResources};

use super::devices::{MAX_MAJOR, MAX_MINOR};
use super::{id_list, text, word};
use crate::{Error, Result};

const AT: &str = "linux.resources";

pub(super) fn check(r: &LinuxResources) -> Result<()> {
    for (i, rule) in r.devices().iter().flatten().enumerate() {
        let at = |member: &str| format!("{AT}.devices[{i}].{member}");
        if rule.typ() == Some(LinuxDeviceType::P) {
            return Err(Error::config(at("type"), "expected a, b or c, found \"p\""));
        }
        if let Some(access) = rule.access()
            && access.chars().any(|c| !"rwm".contains(c))
        {
            return Err(Error::config(
                at("access"),
                format!("expected letters of rwm, found {access:?}"),
            ));
        }
        for (member, n, max) in [
            ("major", rule.major(), MAX_MAJOR),
            ("minor", rule.minor(), MAX_MINOR),
        ] {
            // -1 is all, as in the device controller's own `*`; Docker and runc write it so.
            if let Some(n) = n.filter(|n| !(-1..=max).contains(n)) {
                return Err(Error::config(
                    at(member),
                    format!("expected -1 (all) or 0 to {max}, found {n}"),
                ));
            }
        }
    }
    if let Some(m) = r.memory() {
        memory(m)?;
    }
    if let Some(cpu) = r.cpu() {
        for (member, list) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
            // cpuset(7) allows blanks at the end, as files read back have.
            if let Some(list) = list.as_deref().map(str::trim).filter(|l| !l.is_empty()) {
                id_list(&format!("{AT}.cpu.{member}"), list)?;
            }
        }
        if let Some(idle) = cpu.idle().filter(|i| !(0..=1).contains(i)) {
            return Err(Error::config(
                "linux.resources.cpu.idle",
                format!("expected 0 or 1, found {idle}"),
            ));
        }
    }
    if let Some(io) = r.block_io() {
        block_io(io)?;
    }
    for (i, limit) in r.hugepage_limits().iter().flatten().enumerate() {
        page_size(
            &format!("{AT}.hugepageLimits[{i}].pageSize"),
            limit.page_size(),
        )?;
        if limit.limit() < 0 {
            return Err(Error::config(
                format!("{AT}.hugepageLimits[{i}].limit"),
                format!("expected bytes, found {}", limit.limit()),
            ));
        }
    }
    for name in r.rdma().iter().flat_map(|m| m.keys()) {
        word(format_args!("{AT}.rdma[{name:?}]"), name)?;
    }
    for p in r
        .network()
        .iter()
        .flat_map(|n| n.priorities().iter().flatten())
    {
        word(format_args!("{AT}.network.priorities"), p.name())?;
    }
    for (file, value) in r.unified().iter().flatten() {
        let at = format!("{AT}.unified[{file:?}]");
        text(&at, value)?;
        word(&at, file)?;
        // The key is a file name in the cell's own group: "controller.name".
        if file.contains('/') || !file.contains('.') || file.starts_with('.') {
            return Err(Error::config(
                at,
                "expected the name of a cgroup file such as memory.high",
            ));
        }
    }
    Ok(())
}

fn memory(m: &LinuxMemory) -> Result<()> {
    for (member, n) in [
        ("limit", m.limit()),
        ("reservation", m.reservation()),
        ("swap", m.swap()),
        ("kernelTCP", m.kernel_tcp()),
    ] {
        if let Some(n) = n.filter(|n| *n < -1) {
            return Err(Error::config(
                format!("{AT}.memory.{member}"),
                format!("expected bytes or -1 (no limit), found {n}"),
            ));
        }
    }
    // config-linux.md: swap is the limit of memory + swap.
    if let (Some(limit), Some(swap)) = (m.limit(), m.swap())
        && limit > 0
        && swap > 0
        && swap < limit
    {
        return Err(Error::config(
            "linux.resources.memory.swap",
            format!("memory + swap ({swap}) is below memory.limit ({limit})"),
        ));
    }
    if let Some(n) = m.swappiness().filter(|n| *n > 100) {
        return Err(Error::config(
            "linux.resources.memory.swappiness",
            format!("expected 0 to 100, found {n}"),
        ));
    }
    Ok(())
}

fn block_io(io: &LinuxBlockIo) -> Result<()> {
    // config-linux.md: "from 10 to 1000"; 0 is the zero value.
    let weight = |at: String, w: Option<u16>| match w {
        Some(n) if n != 0 && !(10..=1000).contains(&n) => {
            Err(Error::config(at, format!("expected 10 to 1000, found {n}")))
        }
        _ => Ok(()),
    };
    let device = |at: String, major: i64, minor: i64| {
        if (0..=MAX_MAJOR).contains(&major) && (0..=MAX_MINOR).contains(&minor) {
            return Ok(());
        }
        Err(Error::config(at, format!("{major}:{minor} is no device")))
    };
    weight(format!("{AT}.blockIO.weight"), io.weight())?;
    weight(format!("{AT}.blockIO.leafWeight"), io.leaf_weight())?;
    for (i, d) in io.weight_device().iter().flatten().enumerate() {
        let at = format!("{AT}.blockIO.weightDevice[{i}]");
        device(at.clone(), d.major(), d.minor())?;
        weight(format!("{at}.weight"), d.weight())?;
        weight(format!("{at}.leafWeight"), d.leaf_weight())?;
    }
    for (name, list) in [
        ("throttleReadBpsDevice", io.throttle_read_bps_device()),
        ("throttleWriteBpsDevice", io.throttle_write_bps_device()),
        ("throttleReadIOPSDevice", io.throttle_read_iops_device()),
        ("throttleWriteIOPSDevice", io.throttle_write_iops_device()),
    ] {
        for (i, d) in list.iter().flatten().enumerate() {
            let at = format!("{AT}.blockIO.{name}[{i}]");
            device(at, d.major(), d.minor())?;
        }
    }
    Ok(())
}

/// config-linux.md: `<size><unit-prefix>B` with KB, MB or GB, the size a power of two.
fn page_size(at: &str, size: &str) -> Result<()> {
    let number = ["KB", "MB", "GB"]
        .iter()
        .find_map(|unit| size.strip_suffix(unit))
        .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|n| n.parse::<u32>().ok());
    match number {
        Some(n) if n.is_power_of_two() => Ok(()),
        _ => Err(Error::config(
            at.to_owned(),
            format!("expected a page size such as 2MB, found {size:?}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{accepted, refused, set};
    use serde_json::{Value, json};

    fn resources(member: &str, value: Value) -> Value {
        set("/linux/resources", json!({ member: value }))
    }

    #[test]
    fn device_rules() {
        let rule = |j: Value| resources("devices", json!([j]));
        accepted(rule(json!({"allow": false, "access": "rwm"})));
        accepted(rule(
            json!({"allow": true, "type": "c", "major": 195, "minor": -1}),
        ));
        refused(
            rule(json!({"allow": true, "access": "rx"})),
            &["devices[0].access"],
        );
        refused(
            rule(json!({"allow": true, "type": "p"})),
            &["devices[0].type"],
        );
        refused(
            rule(json!({"allow": true, "major": -2})),
            &["devices[0].major"],
        );
    }

    #[test]
    fn memory() {
        let m = |j| resources("memory", j);
        accepted(m(json!({"limit": -1, "swap": -1, "swappiness": 100})));
        accepted(m(json!({"limit": 10, "swap": 10})));
        refused(m(json!({"limit": -2})), &["memory.limit", "-1"]);
        refused(
            m(json!({"limit": 10, "swap": 9})),
            &["memory.swap", "below"],
        );
        refused(m(json!({"swappiness": 101})), &["swappiness"]);
    }

    #[test]
    fn cpu_io_and_pages() {
        accepted(resources(
            "cpu",
            json!({"cpus": "0-3,8", "mems": "0\n", "idle": 1}),
        ));
        refused(resources("cpu", json!({"cpus": "3-0"})), &["cpu.cpus"]);
        refused(resources("cpu", json!({"idle": 2})), &["cpu.idle"]);
        let d = |major: i64| json!([{"major": major, "minor": 0, "rate": 5}]);
        accepted(resources(
            "blockIO",
            json!({"weight": 0, "throttleReadBpsDevice": d(8)}),
        ));
        refused(
            resources("blockIO", json!({"weight": 5})),
            &["blockIO.weight", "10 to 1000"],
        );
        refused(
            resources("blockIO", json!({"throttleWriteIOPSDevice": d(-1)})),
            &["throttleWriteIOPSDevice[0]"],
        );
        let h = |size: &str| resources("hugepageLimits", json!([{"pageSize": size, "limit": 1}]));
        accepted(h("2MB"));
        for bad in ["2M", "3MB", "MB", "../2MB", "-2MB", ""] {
            refused(h(bad), &["hugepageLimits[0].pageSize"]);
        }
    }

    #[test]
    fn names_of_files() {
        accepted(resources(
            "unified",
            json!({"memory.high": "1000", "hugetlb.2MB.max": "0"}),
        ));
        for bad in ["../memory.max", "memory", ".x", "a.b/c", "a b.c", ""] {
            refused(resources("unified", json!({ bad: "1" })), &["unified"]);
        }
        accepted(resources("rdma", json!({"mlx5_1": {"hcaHandles": 3}})));
        refused(resources("rdma", json!({"a b": {}})), &["rdma"]);
    }
}
