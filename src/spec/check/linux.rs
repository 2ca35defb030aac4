//! `linux`: what is left once namespaces, devices, resources and seccomp have their own files
//! (config-linux.md).

use std::collections::{HashMap, HashSet};

use oci_spec::runtime::{
    Linux, LinuxIntelRdt, LinuxMemoryPolicy, LinuxNamespaceType, LinuxNetDevice,
    MemoryPolicyFlagType, MemoryPolicyModeType,
};

use super::namespaces::Namespaces;
use super::{absolute, devices, id_list, path, resources, seccomp, text, texts, word};
use crate::{Error, Result};

pub(super) fn check(
    linux: &Linux,
    namespaces: &Namespaces,
    warnings: &mut Vec<String>,
) -> Result<()> {
    for (at, paths) in [
        ("linux.maskedPaths", linux.masked_paths()),
        ("linux.readonlyPaths", linux.readonly_paths()),
    ] {
        let paths = paths.as_deref().unwrap_or_default();
        if !paths.is_empty() {
            namespaces.require(at, LinuxNamespaceType::Mount)?;
        }
        for (i, p) in paths.iter().enumerate() {
            absolute(format_args!("{at}[{i}]"), p.as_ref())?;
        }
    }
    if let Some(propagation) = linux.rootfs_propagation().as_deref() {
        rootfs_propagation(propagation, namespaces)?;
    }
    if let Some(label) = linux.mount_label() {
        text("linux.mountLabel", label)?;
    }
    time_offsets(linux, namespaces)?;
    if let Some(sysctls) = linux.sysctl() {
        for (key, value) in sysctls {
            sysctl(key, value, namespaces)?;
        }
    }
    if let Some(personality) = linux.personality() {
        // config-linux.md: "currently no flag values are supported".
        if personality.flags().as_ref().is_some_and(|f| !f.is_empty()) {
            return Err(Error::config(
                "linux.personality.flags",
                "no flag is defined yet",
            ));
        }
    }
    if let Some(policy) = linux.memory_policy() {
        memory_policy(policy)?;
    }
    if let Some(rdt) = linux.intel_rdt() {
        intel_rdt(rdt)?;
    }
    if let Some(devices) = linux.net_devices() {
        net_devices(devices, namespaces)?;
    }
    if let Some(p) = linux.cgroups_path() {
        cgroups_path(p)?;
    }
    devices::check(linux, warnings)?;
    if let Some(r) = linux.resources() {
        resources::check(r)?;
    }
    if let Some(s) = linux.seccomp() {
        seccomp::check(s)?;
    }
    Ok(())
}

fn rootfs_propagation(propagation: &str, namespaces: &Namespaces) -> Result<()> {
    const AT: &str = "linux.rootfsPropagation";
    match propagation {
        "" => return Ok(()),
        "shared" | "slave" | "private" | "unbindable" | "rshared" | "rslave" | "rprivate"
        | "runbindable" => {}
        other => {
            return Err(Error::config(
                AT,
                format!("expected shared, slave, private or unbindable, found {other:?}"),
            ));
        }
    }
    namespaces.require(AT, LinuxNamespaceType::Mount)
}

/// time_namespaces(7): two clocks, offsets written before the namespace's first process.
fn time_offsets(linux: &Linux, namespaces: &Namespaces) -> Result<()> {
    const AT: &str = "linux.timeOffsets";
    let Some(offsets) = linux.time_offsets().as_ref().filter(|o| !o.is_empty()) else {
        return Ok(());
    };
    namespaces.require(AT, LinuxNamespaceType::Time)?;
    if !namespaces.made(LinuxNamespaceType::Time) {
        return Err(Error::config(
            AT,
            "can't be set in a time namespace that is joined by path",
        ));
    }
    for (clock, offset) in offsets {
        if clock != "monotonic" && clock != "boottime" {
            return Err(Error::config(
                AT,
                format!("expected the clocks monotonic and boottime, found {clock:?}"),
            ));
        }
        if let Some(ns) = offset.nanosecs().filter(|n| *n > 999_999_999) {
            return Err(Error::config(
                format!("{AT}.{clock}.nanosecs"),
                format!("expected less than 10^9, found {ns}"),
            ));
        }
    }
    Ok(())
}

/// Which of the kernel's settings belong to a namespace (namespaces(7), ipc_namespaces(7),
/// uts_namespaces(7); Documentation/networking/ip-sysctl.rst): only these may be set, and only in
/// a namespace of the cell's own. runc has the same list.
fn sysctl(key: &str, value: &str, namespaces: &Namespaces) -> Result<()> {
    let at = || format!("linux.sysctl[{key:?}]");
    text(at(), value)?;
    word(at(), key)?;
    let name = dotted(key);
    if name.split('.').any(|part| part.is_empty() || part == "/")
        || name.split(['.', '/']).any(str::is_empty)
    {
        return Err(Error::config(
            at(),
            "expected a name such as net.core.somaxconn",
        ));
    }
    let ipc = matches!(
        name.as_str(),
        "kernel.msgmax"
            | "kernel.msgmnb"
            | "kernel.msgmni"
            | "kernel.sem"
            | "kernel.shmall"
            | "kernel.shmmax"
            | "kernel.shmmni"
            | "kernel.shm_rmid_forced"
    ) || name.starts_with("fs.mqueue.");
    if ipc {
        return namespaces.require(&at(), LinuxNamespaceType::Ipc);
    }
    if name.starts_with("net.") {
        return namespaces.require(&at(), LinuxNamespaceType::Network);
    }
    match name.as_str() {
        // Namespaced, and runtime-spec had no other place for it before 1.1.
        "kernel.domainname" => namespaces.require(&at(), LinuxNamespaceType::Uts),
        "kernel.hostname" => Err(Error::config(at(), "conflicts with hostname: set that")),
        _ => Err(Error::config(
            at(),
            "is not in a namespace of its own: setting it would change the host",
        )),
    }
}

/// sysctl(8) takes `/` between the parts as well, when it comes first; `.` and `/` then swap
/// (`net/ipv4/conf/eno2.100/rp_filter` is `net.ipv4.conf.eno2/100.rp_filter`).
fn dotted(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(i) if key.as_bytes().get(i) == Some(&b'/') => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => key.to_owned(),
    }
}

/// set_mempolicy(2) and mm/mempolicy.c, mpol_new() and sanitize_mpol_flags().
fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<()> {
    use MemoryPolicyModeType as Mode;
    let mode = policy.mode();
    let nodes = policy.nodes().as_deref().unwrap_or_default();
    let flags = policy.flags().as_deref().unwrap_or_default();
    if nodes.is_empty() {
        if !matches!(
            mode,
            Mode::MpolDefault | Mode::MpolLocal | Mode::MpolPreferred
        ) {
            return Err(Error::config(
                "linux.memoryPolicy.nodes",
                format!("is required with {mode}"),
            ));
        }
    } else {
        id_list("linux.memoryPolicy.nodes", nodes)?;
        if matches!(mode, Mode::MpolDefault | Mode::MpolLocal) {
            return Err(Error::config(
                "linux.memoryPolicy.nodes",
                format!("can't be given with {mode}"),
            ));
        }
    }
    let refuse = |why: String| Err(Error::config("linux.memoryPolicy.flags", why));
    let has = |flag| flags.contains(&flag);
    let static_nodes = has(MemoryPolicyFlagType::MpolFStaticNodes);
    let relative_nodes = has(MemoryPolicyFlagType::MpolFRelativeNodes);
    if static_nodes && relative_nodes {
        return refuse("MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other".into());
    }
    if nodes.is_empty() && (static_nodes || relative_nodes) {
        return refuse("flags about nodes need linux.memoryPolicy.nodes".into());
    }
    if has(MemoryPolicyFlagType::MpolFNumaBalancing)
        && !matches!(mode, Mode::MpolBind | Mode::MpolPreferredMany)
    {
        return refuse(format!("MPOL_F_NUMA_BALANCING can't be given with {mode}"));
    }
    Ok(())
}

fn intel_rdt(rdt: &LinuxIntelRdt) -> Result<()> {
    if let Some(id) = rdt.clos_id() {
        // It names a directory of resctrl.
        text("linux.intelRdt.closID", id)?;
        if id.is_empty() || id == "." || id == ".." || id.contains(['/', '\n']) {
            return Err(Error::config(
                "linux.intelRdt.closID",
                format!("expected the name of a directory, found {id:?}"),
            ));
        }
    }
    texts("linux.intelRdt.schemata", rdt.schemata().as_deref())?;
    for (at, schema) in [
        ("linux.intelRdt.l3CacheSchema", rdt.l3_cache_schema()),
        ("linux.intelRdt.memBwSchema", rdt.mem_bw_schema()),
    ] {
        if let Some(schema) = schema {
            text(at, schema)?;
        }
    }
    Ok(())
}

/// Kernel's IFNAMSIZ, less the NUL.
const IF_NAME_LEN: usize = 15;

fn net_devices(devices: &HashMap<String, LinuxNetDevice>, namespaces: &Namespaces) -> Result<()> {
    const AT: &str = "linux.netDevices";
    if devices.is_empty() {
        return Ok(());
    }
    namespaces.require(AT, LinuxNamespaceType::Network)?;
    let mut inside = HashSet::new();
    for (host, device) in devices {
        let at = format!("{AT}[{host:?}]");
        let cell = device.name().as_deref().filter(|n| !n.is_empty());
        let cell = cell.unwrap_or(host);
        for name in [host.as_str(), cell] {
            // net/core/dev.c, dev_valid_name()
            word(&at, name)?;
            if name.len() > IF_NAME_LEN || name == "." || name == ".." || name.contains(['/', ':'])
            {
                return Err(Error::config(
                    at,
                    format!("{name:?} can't be the name of a network device"),
                ));
            }
        }
        if !inside.insert(cell) {
            return Err(Error::config(at, format!("a second device named {cell:?}")));
        }
    }
    Ok(())
}

/// A path of the cgroup file system, or `slice:prefix:name` for systemd: neither leads upwards.
fn cgroups_path(p: &std::path::Path) -> Result<()> {
    const AT: &str = "linux.cgroupsPath";
    if p.as_os_str().is_empty() {
        return Ok(());
    }
    path(AT, p)?;
    if p.components().any(|c| c.as_os_str() == "..") {
        return Err(Error::config(AT, "holds \"..\""));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{accepted, base, refused, set};
    use serde_json::{Value, json};

    fn linux(member: &str, value: Value) -> Value {
        set(&format!("/linux/{member}"), value)
    }

    fn without(member: &str, value: Value, ns: &str) -> Value {
        let mut j = linux(member, value);
        let list = j["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|n| n["type"] != ns);
        j
    }

    #[test]
    fn masked_and_readonly_paths() {
        accepted(linux("maskedPaths", json!(["/proc/kcore"])));
        refused(
            linux("maskedPaths", json!(["/a", "b"])),
            &["linux.maskedPaths[1]"],
        );
        refused(
            without("readonlyPaths", json!(["/proc/sys"]), "mount"),
            &["linux.readonlyPaths", "mount namespace"],
        );
    }

    #[test]
    fn propagation() {
        accepted(linux("rootfsPropagation", json!("rslave")));
        accepted(without("rootfsPropagation", json!(""), "mount"));
        refused(
            linux("rootfsPropagation", json!("public")),
            &["rootfsPropagation", "public"],
        );
    }

    #[test]
    fn times() {
        let with_ns = |offsets: Value| {
            let mut j = linux("timeOffsets", offsets);
            let list = j["linux"]["namespaces"].as_array_mut().unwrap();
            list.push(json!({"type": "time"}));
            j
        };
        accepted(with_ns(
            json!({"monotonic": {"secs": -5, "nanosecs": 999_999_999}}),
        ));
        refused(with_ns(json!({"realtime": {"secs": 1}})), &["realtime"]);
        refused(
            with_ns(json!({"boottime": {"nanosecs": 1_000_000_000}})),
            &["nanosecs"],
        );
        refused(
            linux("timeOffsets", json!({"boottime": {"secs": 1}})),
            &["time namespace"],
        );
    }

    #[test]
    fn sysctls() {
        let s = |key: &str| linux("sysctl", json!({ key: "1" }));
        for ok in [
            "net.core.somaxconn",
            "net/ipv4/conf/eno2.100/rp_filter",
            "kernel.shmmax",
            "kernel/msgmax",
            "fs.mqueue.msg_max",
            "kernel.domainname",
        ] {
            accepted(s(ok));
        }
        for bad in [
            "kernel.panic",
            "vm.swappiness",
            "kernel.hostname",
            "net",
            "net..core",
            "net.core.",
            "net.core/../../kernel.panic",
            "",
            "net.a b",
        ] {
            refused(s(bad), &["linux.sysctl"]);
        }
        refused(
            without("sysctl", json!({"net.core.somaxconn": "1"}), "network"),
            &["network namespace"],
        );
        refused(
            without("sysctl", json!({"kernel.sem": "1"}), "ipc"),
            &["ipc namespace"],
        );
    }

    #[test]
    fn memory_policies() {
        let p = |j| linux("memoryPolicy", j);
        accepted(p(
            json!({"mode": "MPOL_BIND", "nodes": "0-1", "flags": ["MPOL_F_STATIC_NODES"]}),
        ));
        accepted(p(json!({"mode": "MPOL_LOCAL"})));
        refused(
            p(json!({"mode": "MPOL_BIND"})),
            &["memoryPolicy.nodes", "required"],
        );
        refused(
            p(json!({"mode": "MPOL_DEFAULT", "nodes": "0"})),
            &["memoryPolicy.nodes"],
        );
        refused(
            p(json!({"mode": "MPOL_BIND", "nodes": "a"})),
            &["memoryPolicy.nodes"],
        );
        for flags in [
            json!(["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]),
            json!(["MPOL_F_NUMA_BALANCING"]),
        ] {
            let j = json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": flags});
            refused(p(j), &["memoryPolicy.flags"]);
        }
    }

    #[test]
    fn other_members() {
        refused(
            linux("personality", json!({"domain": "LINUX32", "flags": ["X"]})),
            &["personality.flags"],
        );
        accepted(linux("personality", json!({"domain": "LINUX32"})));
        for bad in [".", "..", "a/b", ""] {
            refused(linux("intelRdt", json!({"closID": bad})), &["closID"]);
        }
        accepted(linux("intelRdt", json!({"closID": "guaranteed"})));
        for ok in ["/a/b", "system.slice:gpucell:x", "a..b", ""] {
            accepted(linux("cgroupsPath", json!(ok)));
        }
        refused(linux("cgroupsPath", json!("/a/../../b")), &["cgroupsPath"]);
    }

    #[test]
    fn network_devices() {
        let d = |j| linux("netDevices", j);
        accepted(d(json!({"eth0": {"name": "cell0"}, "eth1": {}})));
        refused(d(json!({"eth0": {"name": "a/b"}})), &["netDevices"]);
        refused(d(json!({"a-name-of-16-byte": {}})), &["netDevices"]);
        refused(
            d(json!({"eth0": {"name": "x"}, "eth1": {"name": "x"}})),
            &["second device"],
        );
        refused(
            without("netDevices", json!({"eth0": {}}), "network"),
            &["network namespace"],
        );
        accepted(base());
    }
}
