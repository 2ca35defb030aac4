//! The base Spec of a bundle that gpucell makes itself (`pull`, `spec`, `run IMAGE`): what Docker
//! gives a container started without flags.
//!
//! Owns the default values only. It reads nothing of the host: two calls give the same Spec.

pub mod runc;
pub mod seccomp;

use std::collections::HashSet;
use std::path::PathBuf;

use oci_spec::runtime::{
    Capability, Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespace,
    LinuxNamespaceType, LinuxResources, LinuxSeccomp, Mount, Process, Root, Spec, User,
};

/// The runtime-spec version that the Specs made here declare.
pub const OCI_VERSION: &str = "1.3.0";

/// `PATH` of a process whose image sets none (Docker's `DefaultPathEnv`).
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Size of `/dev/shm` in bytes when nobody says otherwise (Docker's `DefaultShmSize`).
pub const DEFAULT_SHM_SIZE: u64 = 64 << 20;

/// Docker's default capabilities (moby `oci/caps/defaults.go`).
pub const DEFAULT_CAPABILITIES: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// Paths under /proc and /sys that show the host's hardware, keys or timings (moby
/// `oci/defaults.go`, without the entries that depend on the number of CPUs).
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Character devices every cell may use: `(major, minor)`, `None` for all minors. Numbers from the
/// kernel's `Documentation/admin-guide/devices.txt`.
const DEVICES: [(i64, Option<i64>); 9] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(1)), // console
    (5, Some(2)), // ptmx
    (136, None),  // pts
];

/// What Docker gives a container started without flags, with three differences that docs/ names:
/// the network namespace is the host's, `no_new_privs` is on, and cgroups get their own namespace
/// on v1 hosts too.
///
/// `root.path` is `rootfs`, `process.args` is `["sh"]`; no resource limit is set. No rlimits either:
/// like Docker's, a cell inherits them.
pub fn docker_like() -> Spec {
    let mut spec = Spec::default();
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs"));
    root.set_readonly(Some(false));
    spec.set_version(OCI_VERSION.to_string());
    spec.set_root(Some(root));
    spec.set_hostname(None);
    spec.set_process(Some(process()));
    spec.set_mounts(Some(mounts()));
    spec.set_annotations(None);
    spec.set_linux(Some(linux()));
    spec
}

/// The seccomp profile of a bundle that gpucell makes: Docker's, for the default capabilities.
pub fn default_seccomp() -> LinuxSeccomp {
    seccomp::profile(&DEFAULT_CAPABILITIES)
}

fn process() -> Process {
    let caps: HashSet<Capability> = DEFAULT_CAPABILITIES.into_iter().collect();
    let mut set = LinuxCapabilities::default();
    set.set_bounding(Some(caps.clone()));
    set.set_effective(Some(caps.clone()));
    set.set_permitted(Some(caps));
    // Inheritable stays empty (CVE-2022-24769), ambient too: a non-root user starts without any.
    set.set_inheritable(Some(HashSet::new()));
    set.set_ambient(Some(HashSet::new()));

    let mut process = Process::default();
    process.set_terminal(Some(false));
    process.set_user(User::default());
    process.set_args(Some(vec!["sh".to_string()]));
    process.set_env(Some(vec![DEFAULT_PATH.to_string()]));
    process.set_cwd(PathBuf::from("/"));
    process.set_capabilities(Some(set));
    process.set_rlimits(None);
    process.set_no_new_privileges(Some(true));
    process
}

fn mounts() -> Vec<Mount> {
    let shm = format!("size={DEFAULT_SHM_SIZE}");
    [
        ("/proc", "proc", "nosuid noexec nodev"),
        ("/dev", "tmpfs", "nosuid strictatime mode=755 size=65536k"),
        (
            "/dev/pts",
            "devpts",
            "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5",
        ),
        ("/sys", "sysfs", "nosuid noexec nodev ro"),
        ("/sys/fs/cgroup", "cgroup", "ro nosuid noexec nodev"),
        ("/dev/mqueue", "mqueue", "nosuid noexec nodev"),
        ("/dev/shm", "shm", "nosuid noexec nodev mode=1777"),
    ]
    .into_iter()
    .map(|(destination, kind, options)| {
        let mut options: Vec<String> = options.split(' ').map(str::to_string).collect();
        let (typ, source) = if kind == "shm" {
            options.push(shm.clone());
            ("tmpfs", "shm")
        } else {
            (kind, kind)
        };
        let mut mount = Mount::default();
        mount.set_destination(PathBuf::from(destination));
        mount.set_typ(Some(typ.to_string()));
        mount.set_source(Some(PathBuf::from(source)));
        mount.set_options(Some(options));
        mount
    })
    .collect()
}

fn linux() -> Linux {
    let namespaces = [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Cgroup,
    ]
    .into_iter()
    .map(|typ| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ);
        namespace
    })
    .collect();

    let mut resources = LinuxResources::default();
    resources.set_devices(Some(device_rules()));

    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces));
    linux.set_resources(Some(resources));
    linux.set_devices(None);
    linux.set_masked_paths(Some(MASKED.map(str::to_string).to_vec()));
    linux.set_readonly_paths(Some(READONLY.map(str::to_string).to_vec()));
    linux.set_seccomp(Some(default_seccomp()));
    linux
}

/// Deny all, then the nodes every cell has.
fn device_rules() -> Vec<LinuxDeviceCgroup> {
    let rule = |allow, typ, major, minor, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow);
        rule.set_typ(typ);
        rule.set_major(major);
        rule.set_minor(minor);
        rule.set_access(Some(access.to_string()));
        rule
    };
    let mut rules = vec![rule(false, None, None, None, "rwm")];
    rules.extend(
        DEVICES
            .iter()
            .map(|&(major, minor)| rule(true, Some(LinuxDeviceType::C), Some(major), minor, "rwm")),
    );
    rules
}

/// `config.json`'s text for a Spec: indented, and the same for the same Spec. (oci-spec keeps
/// capabilities in hash sets and annotations in hash maps, whose order changes from run to run.)
pub fn to_json(spec: &Spec) -> crate::Result<String> {
    let bad = |e: serde_json::Error| crate::Error::msg(format!("write config.json: {e}"));
    let mut value = serde_json::to_value(spec).map_err(bad)?;
    if let Some(sets) = value
        .pointer_mut("/process/capabilities")
        .and_then(|v| v.as_object_mut())
    {
        for set in sets.values_mut().filter_map(|v| v.as_array_mut()) {
            set.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
    for map in ["/annotations", "/linux/sysctl", "/linux/resources/unified"] {
        if let Some(map) = value.pointer_mut(map).and_then(|v| v.as_object_mut()) {
            map.sort_keys();
        }
    }
    let mut text = serde_json::to_string_pretty(&value).map_err(bad)?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_network_namespace_and_no_limits() {
        let spec = docker_like();
        let linux = spec.linux().as_ref().unwrap();
        let kinds: Vec<_> = linux
            .namespaces()
            .as_ref()
            .unwrap()
            .iter()
            .map(|n| n.typ())
            .collect();
        assert!(!kinds.contains(&LinuxNamespaceType::Network));
        assert!(!kinds.contains(&LinuxNamespaceType::User));
        assert_eq!(kinds.len(), 5);
        let resources = linux.resources().as_ref().unwrap();
        assert!(resources.memory().is_none() && resources.cpu().is_none());
    }

    #[test]
    fn first_device_rule_denies_all() {
        let rules = device_rules();
        assert!(!rules[0].allow() && rules[0].major().is_none());
        assert!(rules[1..].iter().all(|r| r.allow()));
    }

    #[test]
    fn json_is_stable_and_parses_back() {
        let text = to_json(&docker_like()).unwrap();
        assert_eq!(text, to_json(&docker_like()).unwrap());
        let back: Spec = serde_json::from_str(&text).unwrap();
        assert_eq!(back, docker_like());
        assert!(text.contains("\"size=67108864\""));
        assert!(text.contains("\"ociVersion\": \"1.3.0\""));
        // Only what was set is written: no empty user mappings, no uid of a wrong kind.
        assert!(!text.contains("uidMappings"));
    }
}
