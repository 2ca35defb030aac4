//! The config.json that `gpucell spec` writes: what `runc spec` writes, to be edited by a person.
//!
//! The differences: the specification's version, the host name, more masked paths, and always a cgroup
//! namespace (runc asks for one on pure cgroup v2 only).

use std::collections::HashSet;
use std::path::PathBuf;

use oci_spec::runtime::{
    Capability, Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxIdMappingBuilder, LinuxNamespace,
    LinuxNamespaceType, LinuxResources, Mount, PosixRlimitBuilder, PosixRlimitType, Process, Root,
    Spec, User,
};

use super::{DEFAULT_PATH, MASKED, OCI_VERSION, READONLY};

/// The user of the host that a rootless cell's root is.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// The configuration. With an owner: one that needs no privileges, in a user namespace that maps only
/// them, without a network namespace (nobody could set the network up) and device rules.
pub fn runc_like(rootless: Option<Owner>) -> Spec {
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs"));
    root.set_readonly(Some(true));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_string());
    spec.set_process(Some(process()));
    spec.set_root(Some(root));
    spec.set_hostname(Some("gpucell".to_string()));
    spec.set_mounts(Some(mounts(rootless.is_some())));
    spec.set_annotations(None);
    spec.set_linux(Some(linux(rootless)));
    spec
}

fn process() -> Process {
    let caps: HashSet<Capability> = [
        Capability::AuditWrite,
        Capability::Kill,
        Capability::NetBindService,
    ]
    .into();
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(caps.clone()));
    sets.set_effective(Some(caps.clone()));
    sets.set_permitted(Some(caps));
    sets.set_inheritable(None);
    sets.set_ambient(None);
    // oci-spec gives this type and the next nothing but a builder, which fails on a missing field.
    let files = PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .hard(1024_u64)
        .soft(1024_u64)
        .build();

    let mut process = Process::default();
    process.set_terminal(Some(true));
    process.set_user(User::default());
    process.set_args(Some(vec!["sh".to_string()]));
    process.set_env(Some(vec![
        DEFAULT_PATH.to_string(),
        "TERM=xterm".to_string(),
    ]));
    process.set_cwd(PathBuf::from("/"));
    process.set_capabilities(Some(sets));
    process.set_rlimits(files.ok().map(|f| vec![f]));
    process.set_no_new_privileges(Some(true));
    process
}

fn mounts(rootless: bool) -> Vec<Mount> {
    // The group tty (5) is not mapped for a single user; a sysfs of one's own needs a network namespace.
    let (pts, sys) = match rootless {
        false => (
            "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5",
            ["sysfs", "sysfs", "nosuid noexec nodev ro"],
        ),
        true => (
            "nosuid noexec newinstance ptmxmode=0666 mode=0620",
            ["none", "/sys", "rbind nosuid noexec nodev ro"],
        ),
    };
    [
        ["/proc", "proc", "proc", ""],
        [
            "/dev",
            "tmpfs",
            "tmpfs",
            "nosuid strictatime mode=755 size=65536k",
        ],
        ["/dev/pts", "devpts", "devpts", pts],
        [
            "/dev/shm",
            "tmpfs",
            "shm",
            "nosuid noexec nodev mode=1777 size=65536k",
        ],
        ["/dev/mqueue", "mqueue", "mqueue", "nosuid noexec nodev"],
        ["/sys", sys[0], sys[1], sys[2]],
        [
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            "nosuid noexec nodev relatime ro",
        ],
    ]
    .into_iter()
    .map(|[destination, typ, source, options]| {
        let mut mount = Mount::default();
        mount.set_destination(PathBuf::from(destination));
        mount.set_typ(Some(typ.to_string()));
        mount.set_source(Some(PathBuf::from(source)));
        let options: Vec<String> = options.split_whitespace().map(str::to_string).collect();
        mount.set_options((!options.is_empty()).then_some(options));
        mount
    })
    .collect()
}

fn linux(rootless: Option<Owner>) -> Linux {
    use LinuxNamespaceType as Kind;
    let mut kinds = vec![
        Kind::Pid,
        Kind::Network,
        Kind::Ipc,
        Kind::Uts,
        Kind::Mount,
        Kind::Cgroup,
    ];
    if rootless.is_some() {
        kinds.retain(|kind| *kind != Kind::Network);
        kinds.push(Kind::User);
    }
    let namespaces = kinds.into_iter().map(|kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    });
    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces.collect()));
    linux.set_devices(None);
    linux.set_masked_paths(Some(MASKED.map(str::to_string).to_vec()));
    linux.set_readonly_paths(Some(READONLY.map(str::to_string).to_vec()));
    linux.set_resources(None);
    match rootless {
        Some(owner) => {
            let one = |id| {
                let map = LinuxIdMappingBuilder::default()
                    .host_id(id)
                    .container_id(0_u32)
                    .size(1_u32)
                    .build();
                map.ok().map(|map| vec![map])
            };
            linux.set_uid_mappings(one(owner.uid));
            linux.set_gid_mappings(one(owner.gid));
        }
        None => {
            // The nodes that every cell has are allowed without being named.
            let mut none = LinuxDeviceCgroup::default();
            none.set_allow(false);
            none.set_access(Some("rwm".to_string()));
            let mut resources = LinuxResources::default();
            resources.set_devices(Some(vec![none]));
            linux.set_resources(Some(resources));
        }
    }
    linux
}
