//! What CRIU is asked for: a cell's Plan and runc's flags as CRIU's options.
//!
//! Pure: everything that must be looked up is given. The names under which things of the host's are kept in an
//! image are runc's, so that an image of one can be restored by the other.

use super::{Flags, RestoreOptions};
use crate::plan::{Kind, MountWhat, Plan};
use crate::{Error, Result};
use protobuf::EnumOrUnknown;
use rust_criu::rust_criu_protobuf::rpc::{
    Cgroup_root, Criu_cg_mode, Criu_opts, Ext_mount_map, Inherit_fd, Join_namespace,
};
use std::collections::BTreeMap;
use std::ffi::CStr;

/// CRIU's most talkative level that is of use.
const LOG_LEVEL: i32 = 4;
/// CRIU's configuration, as runc has it read. One that is missing is no error to CRIU.
const CONFIG: &str = "/etc/criu/runc.conf";
/// Names another configuration, or, empty, none (runc).
const CONFIG_ANNOTATION: &str = "org.criu.config";
/// What covers masked files, and the name it has in an image.
const NULL: &str = "/dev/null";

/// A mount that shows something of the host's: where it is in the cell, and what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Path in the cell.
    pub at: String,
    /// Path on the host.
    pub source: String,
}

/// A mount of one v1 hierarchy in a cell without a cgroup namespace: its name, and the group's path.
pub type V1Bind = (String, String);

/// The mounts of a cell that show something of the host's. `inside` follows links in the cell's root.
///
/// # Errors
/// An id-mapped mount, which CRIU would restore without its mapping; a path that is no UTF-8.
pub fn externals(
    plan: &Plan,
    v1: &[V1Bind],
    inside: &dyn Fn(&CStr) -> String,
) -> Result<Vec<External>> {
    let mut all = Vec::new();
    for step in &plan.mounts {
        if step.idmap.is_some() {
            return Err(Error::unsupported(
                format!("a checkpoint with mounts[{}]", step.index),
                "CRIU doesn't keep the mapping of an id-mapped mount",
            ));
        }
        match &step.what {
            MountWhat::Bind { source, .. } => all.push(External {
                at: inside(&step.target),
                source: text(source)?,
            }),
            MountWhat::Cgroup => {
                let at = inside(&step.target);
                all.extend(v1.iter().map(|(name, path)| External {
                    at: format!("{at}/{name}"),
                    source: path.clone(),
                }));
            }
            MountWhat::Fs { .. } | MountWhat::Remount { .. } => {}
        }
    }
    // Bound from the host in a user namespace; no harm where they are nodes.
    for node in &plan.dev.nodes {
        all.push(External {
            at: inside(&node.path),
            source: text(&node.path)?,
        });
    }
    Ok(all)
}

fn text(path: &CStr) -> Result<String> {
    path.to_str().map(str::to_owned).map_err(|_| {
        Error::unsupported(
            format!("a checkpoint with {}", path.to_string_lossy()),
            "CRIU takes paths in UTF-8 only",
        )
    })
}

fn external(key: &str, value: &str) -> Ext_mount_map {
    Ext_mount_map {
        key: Some(key.to_owned()),
        val: Some(value.to_owned()),
        ..Ext_mount_map::default()
    }
}

/// What both directions are told.
fn both(flags: &Flags, annotations: &BTreeMap<String, String>) -> Criu_opts {
    Criu_opts {
        log_level: Some(LOG_LEVEL),
        notify_scripts: Some(true),
        orphan_pts_master: Some(true),
        manage_cgroups: Some(true),
        manage_cgroups_mode: Some(EnumOrUnknown::new(flags.cgroups)),
        shell_job: Some(flags.shell_job),
        tcp_established: Some(flags.tcp_established),
        ext_unix_sk: Some(flags.ext_unix_sk),
        file_locks: Some(flags.file_locks),
        link_remap: Some(flags.link_remap),
        auto_dedup: Some(flags.auto_dedup),
        lazy_pages: Some(flags.lazy_pages),
        // Interfaces and addresses are the engine's to make.
        empty_ns: Some(libc::CLONE_NEWNET as u32),
        config_file: match annotations.get(CONFIG_ANNOTATION).map(String::as_str) {
            None => Some(CONFIG.to_owned()),
            Some("") => None,
            Some(file) => Some(file.to_owned()),
        },
        ..Criu_opts::default()
    }
}

/// The name under which an image knows a namespace that isn't the cell's own.
fn ns_key(kind: Kind) -> &'static str {
    match kind {
        Kind::Network => "extRootNetNS",
        _ => "extRootPidNS",
    }
}

/// The kinds that CRIU leaves alone when they are joined; other kinds it restores, or joins itself.
pub const LEFT_ALONE: [Kind; 2] = [Kind::Network, Kind::Pid];

/// A cell to be saved.
pub struct Dump<'a> {
    /// Its first process.
    pub pid: i32,
    /// Its root on the host.
    pub root: &'a str,
    /// From the configuration.
    pub annotations: &'a BTreeMap<String, String>,
    /// Its mounts of the host's.
    pub externals: &'a [External],
    /// Masked paths that are files in the cell.
    pub masked: &'a [String],
    /// Joined namespaces of [`LEFT_ALONE`], with their inodes.
    pub namespaces: &'a [(Kind, u64)],
    /// The group by which it is frozen.
    pub freezer: Option<String>,
}

/// Options that save a cell; the folders and what only some flags want are still to be set.
pub fn dump(cell: &Dump, flags: &Flags) -> Criu_opts {
    let mounts = cell.externals.iter().map(|m| external(&m.at, &m.at));
    let masks = cell.masked.iter().map(|path| external(path, NULL));
    Criu_opts {
        pid: Some(cell.pid),
        root: Some(cell.root.to_owned()),
        log_file: Some("dump.log".to_owned()),
        ext_mnt: mounts.chain(masks).collect(),
        external: cell
            .namespaces
            .iter()
            .map(|(kind, inode)| format!("{}[{inode}]:{}", kind.file(), ns_key(*kind)))
            .collect(),
        freeze_cgroup: cell.freezer.clone(),
        ..both(flags, cell.annotations)
    }
}

/// A cell to be restored.
pub struct Restore<'a> {
    /// Its root, a mount point in CRIU's mount namespace.
    pub root: &'a str,
    /// From the configuration.
    pub annotations: &'a BTreeMap<String, String>,
    /// Its mounts of the host's.
    pub externals: &'a [External],
    /// Its Plan has masked paths.
    pub masks: bool,
    /// Joined namespaces of [`LEFT_ALONE`] and the descriptors by which CRIU has them.
    pub inherited: &'a [(Kind, i32)],
    /// Other joined namespaces: kind and path.
    pub joined: &'a [(Kind, String)],
    /// /proc/PID/cgroup of a process in the cell's groups.
    pub groups: &'a str,
    /// What the standard streams were when it was saved.
    pub descriptors: &'a [String],
}

/// Options that restore a cell; the folders are still to be set.
pub fn restore(cell: &Restore, how: &RestoreOptions) -> Criu_opts {
    let mounts = cell.externals.iter().map(|m| external(&m.at, &m.source));
    let masks = cell.masks.then(|| external(NULL, NULL));
    let fds = cell
        .inherited
        .iter()
        .map(|(kind, fd)| (ns_key(*kind).to_owned(), *fd));
    Criu_opts {
        root: Some(cell.root.to_owned()),
        log_file: Some("restore.log".to_owned()),
        // The restored first process is our child, and not CRIU's.
        rst_sibling: Some(true),
        evasive_devices: Some(true),
        ext_mnt: mounts.chain(masks).collect(),
        inherit_fd: fds
            .chain(inherited(cell.descriptors))
            .map(|(key, fd)| Inherit_fd {
                key: Some(key),
                fd: Some(fd),
                ..Inherit_fd::default()
            })
            .collect(),
        join_ns: cell
            .joined
            .iter()
            .map(|(kind, path)| Join_namespace {
                ns: Some(kind.file().to_owned()),
                ns_file: Some(path.clone()),
                ..Join_namespace::default()
            })
            .collect(),
        cg_root: roots(cell.groups),
        tcp_close: Some(how.tcp_close),
        lsm_profile: how.lsm_profile.clone(),
        lsm_mount_context: how.lsm_mount_context.clone(),
        ..both(&how.flags, cell.annotations)
    }
}

/// How CRIU's names for files of the host's begin.
const FILE: &str = "file[";

/// Streams that were pipes, or files of the host's, are replaced by ours.
fn inherited(descriptors: &[String]) -> impl Iterator<Item = (String, i32)> {
    (0..3)
        .zip(descriptors)
        .filter(|(_, was)| was.starts_with("pipe:") || was.starts_with(FILE))
        .map(|(n, was)| (was.clone(), n))
}

/// The streams that are files of the host's.
pub fn files(descriptors: &[String]) -> impl Iterator<Item = String> {
    descriptors.iter().filter(|d| d.starts_with(FILE)).cloned()
}

/// The groups of /proc/PID/cgroup (cgroups(7)), each for the one that CRIU saved in the same hierarchy.
fn roots(text: &str) -> Vec<Cgroup_root> {
    let mut out = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        out.extend(controllers.split(',').map(|controller| Cgroup_root {
            ctrl: Some(controller.to_owned()),
            path: Some(path.to_owned()),
            ..Cgroup_root::default()
        }));
    }
    out
}

/// runc's names for what CRIU does with groups.
///
/// # Errors
/// Another name.
pub fn cgroup_mode(name: Option<&str>) -> Result<Criu_cg_mode> {
    Ok(match name {
        None => Criu_cg_mode::DEFAULT,
        Some("soft") => Criu_cg_mode::SOFT,
        Some("full") => Criu_cg_mode::FULL,
        Some("strict") => Criu_cg_mode::STRICT,
        Some("ignore") => Criu_cg_mode::IGNORE,
        Some(other) => {
            return Err(Error::msg(format!(
                "--manage-cgroups-mode {other}: expected soft, full, strict or ignore"
            )));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{load, lower};
    use std::path::Path;

    fn plan(mounts: &str) -> Plan {
        let json = format!(
            r#"{{"ociVersion":"1.2.0","root":{{"path":"r"}},"process":{{"user":{{"uid":0,"gid":0}},
            "args":["/x"],"cwd":"/"}},"mounts":[{mounts}],
            "linux":{{"namespaces":[{{"type":"mount"}},{{"type":"pid"}}],"maskedPaths":["/proc/kcore"]}}}}"#
        );
        let spec = load::parse(json.as_bytes()).unwrap().spec;
        let context = lower::Context {
            id: "a",
            rootfs: Path::new("/b/r"),
            bundle: Path::new("/b"),
            no_pivot: false,
            no_new_keyring: false,
            bind_devices: false,
            overlay: None,
        };
        lower::lower(&spec, &context).unwrap().0
    }

    const MOUNTS: &str = r#"{"destination":"/proc","type":"proc","source":"proc"},
        {"destination":"/data","type":"bind","source":"/srv/data","options":["rbind"]},
        {"destination":"/etc/hosts","source":"hosts","options":["bind"]},
        {"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup"}"#;

    fn lexical(path: &CStr) -> String {
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn mounts_of_the_hosts_are_found() {
        let v1 = [("memory".to_owned(), "/sys/fs/cgroup/memory/a".to_owned())];
        let found = externals(&plan(MOUNTS), &v1, &lexical).unwrap();
        let pairs: Vec<(&str, &str)> = found
            .iter()
            .map(|e| (e.at.as_str(), e.source.as_str()))
            .filter(|(at, _)| !at.starts_with("/dev/"))
            .collect();
        let want = [
            ("/data", "/srv/data"),
            ("/etc/hosts", "/b/hosts"),
            ("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/a"),
        ];
        assert_eq!(pairs, want);
        // Nodes the cell may have bound.
        assert!(
            found
                .iter()
                .any(|e| e.at == "/dev/null" && e.source == "/dev/null")
        );
    }

    #[test]
    fn an_id_mapped_mount_is_refused() {
        let mount = r#"{"destination":"/d","source":"/s","options":["bind","idmap"],
            "uidMappings":[{"containerID":0,"hostID":5,"size":1}],
            "gidMappings":[{"containerID":0,"hostID":5,"size":1}]}"#;
        let said = externals(&plan(mount), &[], &lexical)
            .unwrap_err()
            .to_string();
        assert!(said.contains("mounts[0]"), "{said}");
    }

    fn none() -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    #[test]
    fn a_dump_keeps_places_and_a_restore_gives_sources() {
        let found = externals(&plan(MOUNTS), &[], &lexical).unwrap();
        let flags = Flags {
            tcp_established: true,
            cgroups: Criu_cg_mode::STRICT,
            ..Flags::default()
        };
        let annotations = none();
        let out = dump(
            &Dump {
                pid: 7,
                root: "/b/r",
                annotations: &annotations,
                externals: &found,
                masked: &["/proc/kcore".to_owned()],
                namespaces: &[(Kind::Network, 12), (Kind::Pid, 13)],
                freezer: Some("/sys/fs/cgroup/a".to_owned()),
            },
            &flags,
        );
        let pair = |m: &Ext_mount_map| (m.key().to_owned(), m.val().to_owned());
        let mounts: Vec<_> = out.ext_mnt.iter().map(pair).collect();
        assert!(mounts.contains(&("/data".to_owned(), "/data".to_owned())));
        assert!(mounts.contains(&("/proc/kcore".to_owned(), "/dev/null".to_owned())));
        assert_eq!(
            out.external,
            ["net[12]:extRootNetNS", "pid[13]:extRootPidNS"]
        );
        assert_eq!((out.pid(), out.root()), (7, "/b/r"));
        assert!(out.tcp_established() && !out.shell_job() && !out.leave_running());
        assert_eq!(out.manage_cgroups_mode(), Criu_cg_mode::STRICT);
        assert_eq!(out.freeze_cgroup(), "/sys/fs/cgroup/a");
        assert_eq!(out.config_file(), CONFIG);
        assert_eq!(out.empty_ns(), libc::CLONE_NEWNET as u32);

        let was = ["pipe:[5]", "/dev/null", "file[1f:4]"].map(str::to_owned);
        assert_eq!(files(&was).collect::<Vec<_>>(), ["file[1f:4]"]);
        let how = RestoreOptions {
            flags,
            tcp_close: true,
            ..RestoreOptions::default()
        };
        let back = restore(
            &Restore {
                root: "/b/r",
                annotations: &annotations,
                externals: &found,
                masks: true,
                inherited: &[(Kind::Network, 9)],
                joined: &[(Kind::Ipc, "/proc/3/ns/ipc".to_owned())],
                groups: "4:cpu,cpuacct:/x\n1:name=systemd:/y\n0::/z:1\nnoise\n",
                descriptors: &was,
            },
            &how,
        );
        let mounts: Vec<_> = back.ext_mnt.iter().map(pair).collect();
        assert!(mounts.contains(&("/data".to_owned(), "/srv/data".to_owned())));
        assert!(mounts.contains(&("/dev/null".to_owned(), "/dev/null".to_owned())));
        let fds: Vec<_> = back
            .inherit_fd
            .iter()
            .map(|f| (f.key().to_owned(), f.fd()))
            .collect();
        let want = [("extRootNetNS", 9), ("pipe:[5]", 0), ("file[1f:4]", 2)];
        assert_eq!(fds, want.map(|(k, n)| (k.to_owned(), n)));
        let groups: Vec<_> = back.cg_root.iter().map(|g| (g.ctrl(), g.path())).collect();
        let want = [
            ("cpu", "/x"),
            ("cpuacct", "/x"),
            ("name=systemd", "/y"),
            ("", "/z:1"),
        ];
        assert_eq!(groups, want);
        let joined: Vec<_> = back.join_ns.iter().map(|j| (j.ns(), j.ns_file())).collect();
        assert_eq!(joined, [("ipc", "/proc/3/ns/ipc")]);
        assert!(back.rst_sibling() && back.evasive_devices() && back.tcp_close());
    }

    #[test]
    fn the_configuration_of_criu_is_runcs_or_the_annotations() {
        for (value, want) in [("", None), ("/c.conf", Some("/c.conf"))] {
            let annotations = BTreeMap::from([(CONFIG_ANNOTATION.to_owned(), value.to_owned())]);
            let out = both(&Flags::default(), &annotations);
            assert_eq!(out.config_file.as_deref(), want);
        }
    }

    #[test]
    fn modes_of_groups_have_runcs_names() {
        assert_eq!(cgroup_mode(None).unwrap(), Criu_cg_mode::DEFAULT);
        assert_eq!(cgroup_mode(Some("ignore")).unwrap(), Criu_cg_mode::IGNORE);
        assert!(cgroup_mode(Some("hard")).is_err());
    }
}
