//! The Plan: a checked Spec lowered into flat lists of typed steps.
//!
//! Owns the vocabulary between `spec/lower` (which fills it) and `cell/`, `rootfs/` and
//! `process/` (which carry it out). Pure data: everything is settled here (paths as C strings,
//! flags as the kernel's numbers), so that the child allocates and decides nothing, and unit
//! tests can compare Plans. Must not open, read or ask anything.

use crate::process::seccomp;
use crate::sys::misc::SchedAttr;
use oci_spec::runtime::{LinuxIntelRdt, LinuxNetDevice};
use std::ffi::CString;

/// Everything one cell needs.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Namespaces made and joined.
    pub namespaces: Namespaces,
    /// Id maps of the new user namespace.
    pub id_maps: Option<IdMaps>,
    /// Lines for /proc/PID/timens_offsets (time_namespaces(7)), when a time namespace is made.
    pub time_offsets: Option<String>,
    /// The root file system.
    pub root: RootPlan,
    /// Mounts in the order of the configuration.
    pub mounts: Vec<MountStep>,
    /// Device nodes and links below /dev.
    pub dev: DevPlan,
    /// Paths made unreadable.
    pub masked: Vec<CString>,
    /// Paths made read-only.
    pub readonly: Vec<CString>,
    /// Kernel parameters: path below /proc/sys and value.
    pub sysctls: Vec<(CString, Vec<u8>)>,
    /// UTS names.
    pub hostname: Option<Vec<u8>>,
    /// NIS domain name.
    pub domainname: Option<Vec<u8>>,
    /// Host network interfaces moved into the cell: name outside, and the name inside.
    pub net_devices: Vec<(String, LinuxNetDevice)>,
    /// Cache and memory bandwidth allocation.
    pub intel_rdt: Option<LinuxIntelRdt>,
    /// The program.
    pub process: ProcessPlan,
    /// System call filter.
    pub seccomp: Option<seccomp::Program>,
    /// createContainer hooks: run by the child in the cell's namespaces, before pivot_root.
    pub create_container: Vec<HookPlan>,
    /// startContainer hooks: run by the child inside the cell, before the program.
    pub start_container: Vec<HookPlan>,
    /// prestart and createRuntime hooks: run by the parent.
    pub create_runtime: Vec<HookPlan>,
    /// What is made inside the root once the mounts and nodes are there; lowering leaves it empty,
    /// for it takes a look at the image ([`crate::nvidia::work`]).
    pub in_root: InRootPlan,
}

/// Everything one more process of a cell needs (`exec`).
#[derive(Debug, Clone, Default)]
pub struct ExecPlan {
    /// The program.
    pub process: ProcessPlan,
    /// System call filter.
    pub seccomp: Option<seccomp::Program>,
    /// CLONE_NEW* of the namespaces that the cell has for itself: entered without a look.
    pub own: u64,
    /// Those it may share with the caller: entered where they are not the same.
    pub perhaps: Vec<Kind>,
    /// Groups below the cell's own.
    pub groups: Vec<SubGroup>,
    /// CPUs of the runtime before it makes the process, as sched_setaffinity(2) wants them.
    pub first_cpus: Option<Vec<u64>>,
    /// CPUs of the process.
    pub cpus: Option<Vec<u64>>,
}

/// A group below a cell's own, which must exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubGroup {
    /// The v1 controller whose hierarchy is meant; none for every hierarchy.
    pub controller: Option<String>,
    /// Path below the cell's group, `a/b`; empty for the group itself.
    pub path: String,
}

/// A kind of namespace, with its clone flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Kind {
    /// mount_namespaces(7)
    Mount = libc::CLONE_NEWNS as u64,
    /// cgroup_namespaces(7)
    Cgroup = libc::CLONE_NEWCGROUP as u64,
    /// UTS
    Uts = libc::CLONE_NEWUTS as u64,
    /// IPC
    Ipc = libc::CLONE_NEWIPC as u64,
    /// user_namespaces(7)
    User = libc::CLONE_NEWUSER as u64,
    /// pid_namespaces(7)
    Pid = libc::CLONE_NEWPID as u64,
    /// network_namespaces(7)
    Network = libc::CLONE_NEWNET as u64,
    /// time_namespaces(7)
    Time = crate::sys::clone::CLONE_NEWTIME,
}

impl Kind {
    /// The name of its file in /proc/PID/ns.
    pub fn file(self) -> &'static str {
        match self {
            Kind::Mount => "mnt",
            Kind::Cgroup => "cgroup",
            Kind::Uts => "uts",
            Kind::Ipc => "ipc",
            Kind::User => "user",
            Kind::Pid => "pid",
            Kind::Network => "net",
            Kind::Time => "time",
        }
    }
}

/// Namespaces made and joined.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespaces {
    /// CLONE_NEW* of the namespaces that are made.
    pub new: u64,
    /// Existing ones, by path on the host.
    pub join: Vec<(Kind, CString)>,
}

impl Namespaces {
    /// A namespace of this kind is made.
    pub fn makes(&self, kind: Kind) -> bool {
        self.new & kind as u64 != 0
    }

    /// The path joined for this kind.
    pub fn joins(&self, kind: Kind) -> Option<&CString> {
        self.join.iter().find(|(k, _)| *k == kind).map(|(_, p)| p)
    }
}

/// The text of the id map files of user_namespaces(7), one `inside outside count` a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    /// uid_map.
    pub uids: Vec<IdRange>,
    /// gid_map.
    pub gids: Vec<IdRange>,
}

/// One line of an id map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl IdMaps {
    /// Renders one map as the kernel reads it.
    pub fn render(ranges: &[IdRange]) -> String {
        use std::fmt::Write;
        ranges.iter().fold(String::new(), |mut s, r| {
            let _ = writeln!(s, "{} {} {}", r.inside, r.outside, r.count);
            s
        })
    }
}

/// The root file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootPlan {
    /// Absolute path of the directory that becomes `/`.
    pub path: CString,
    /// Mount it read-only at the end.
    pub readonly: bool,
    /// Propagation set on the whole tree first (mount(2) flags), `linux.rootfsPropagation`.
    pub propagation: u64,
    /// Move the root over `/` and chroot instead of pivot_root (initramfs has no parent mount).
    pub no_pivot: bool,
    /// Mount an overlay as the root instead of the directory itself.
    pub overlay: Option<OverlayPlan>,
}

/// A writable layer over a shared root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayPlan {
    /// The shared, unmodified root.
    pub lower: CString,
    /// The cell's own layer.
    pub upper: CString,
    /// Scratch directory of overlayfs, on the same file system as `upper`.
    pub work: CString,
}

/// One entry of `mounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountStep {
    /// Index in the configuration's list, for messages.
    pub index: usize,
    /// Path inside the root.
    pub target: CString,
    /// What is mounted there.
    pub what: MountWhat,
    /// MOUNT_ATTR_* set and cleared on the mount itself.
    pub set: u64,
    /// See `set`.
    pub clr: u64,
    /// MOUNT_ATTR_* set on the whole tree (`rro` class).
    pub rec_set: u64,
    /// See `rec_set`.
    pub rec_clr: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE, each perhaps with MS_REC, in order.
    pub propagation: Vec<u64>,
    /// Id mapping (`idmap`, `ridmap`, or mappings given).
    pub idmap: Option<IdMapped>,
    /// The target may not be reached through a symbolic link (/proc, /sys: CVE-2019-19921).
    pub no_symlinks: bool,
    /// The mount becomes read-only when the root is complete: until then, mount points, nodes and links are
    /// made in it (as runc does with each tmpfs and with /dev).
    pub late_readonly: bool,
}

/// An id-mapped mount (mount_setattr(2), MOUNT_ATTR_IDMAP).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMapped {
    /// Maps of the user namespace to build.
    pub maps: IdMaps,
    /// The whole tree.
    pub recursive: bool,
}

/// What a mount step mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountWhat {
    /// A clone of an existing tree of the host.
    Bind {
        /// Host path.
        source: CString,
        /// rbind.
        recursive: bool,
    },
    /// A new file system.
    Fs {
        /// Type as the kernel names it.
        fstype: CString,
        /// fsconfig(2) parameters; `source` among them where given.
        params: Vec<(CString, Option<CString>)>,
        /// Copy the directory under it into it (tmpfs option of runc).
        copy_up: bool,
    },
    /// The cell's own cgroups.
    Cgroup,
    /// Change an existing mount.
    Remount {
        /// Parameters of the file system; none leaves the superblock alone.
        params: Vec<(CString, Option<CString>)>,
    },
}

/// Device nodes and links below /dev.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DevPlan {
    /// Nodes in order.
    pub nodes: Vec<Node>,
    /// Bind the host's nodes instead of making them (no mknod in a user namespace).
    pub bind: bool,
    /// Symbolic links: path inside the root, target.
    pub links: Vec<(CString, CString)>,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Path inside the root.
    pub path: CString,
    /// File type and permission bits.
    pub mode: u32,
    /// Encoded device number (makedev(3)).
    pub rdev: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Work inside the root that a recognised hook asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InRootPlan {
    /// In order.
    pub steps: Vec<InRoot>,
    /// Name for a file until it is renamed over another: nobody else's, in any folder.
    pub temp: CString,
}

/// A path in which nothing outside the cell's own file systems is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPath {
    /// The mount point (inside the root) of the file system of the cell's own that holds it, such as
    /// /dev; none when it is in the root itself.
    pub within: Option<CString>,
    /// Absolute, seen from `within`.
    pub path: CString,
}

/// One change inside the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InRoot {
    /// A symbolic link; one that says something else, or a file, is replaced.
    Symlink {
        /// Where it is.
        at: OwnPath,
        /// What it says.
        to: CString,
    },
    /// A file.
    File {
        /// Where it is.
        at: OwnPath,
        /// What it holds.
        content: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// How it gets there.
        how: How,
    },
    /// Permission bits of a file or folder that exists.
    Mode {
        /// Where it is.
        at: OwnPath,
        /// Permission bits.
        mode: u32,
    },
    /// A folder that shows only some of its folders, read-only. Nothing happens where it is missing.
    Only {
        /// Inside the root.
        path: CString,
        /// Names that stay, if they are there.
        keep: Vec<CString>,
    },
}

/// How a file gets into the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// A new file takes the old one's name, so that the cell's own tools can replace it in turn. On a
    /// read-only file system, as `Cover`.
    Replace,
    /// From a file system in memory, mounted read-only over what is there.
    Cover,
    /// As `Cover`, if there is something to cover.
    CoverExisting,
    /// As `Replace`, but not at all where that can't be.
    Optional,
}

/// The program and what it may do.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProcessPlan {
    /// argv.
    pub args: Vec<CString>,
    /// Environment.
    pub env: Vec<CString>,
    /// The environment lacks HOME: take it from the cell's /etc/passwd.
    pub needs_home: bool,
    /// Where the program may be: the path itself, or one per PATH entry.
    pub candidates: Vec<CString>,
    /// Working directory inside the root.
    pub cwd: CString,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// umask; none leaves 0022.
    pub umask: Option<u32>,
    /// Capability sets as bit masks.
    pub caps: Caps,
    /// prctl(PR_SET_NO_NEW_PRIVS).
    pub no_new_privs: bool,
    /// Resource, soft, hard.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Text for /proc/self/oom_score_adj.
    pub oom_score_adj: Option<Vec<u8>>,
    /// Text for /proc/self/attr/apparmor/exec.
    pub apparmor: Option<Vec<u8>>,
    /// Text for /proc/self/attr/exec.
    pub selinux: Option<Vec<u8>>,
    /// Class and level.
    pub io_priority: Option<(u32, u32)>,
    /// sched_setattr(2).
    pub scheduler: Option<SchedAttr>,
    /// personality(2).
    pub personality: Option<u64>,
    /// set_mempolicy(2): mode with flags, node mask.
    pub mempolicy: Option<(i32, Vec<u64>)>,
    /// A terminal is wanted.
    pub terminal: bool,
    /// Rows and columns.
    pub console_size: Option<(u16, u16)>,
    /// Name of the new session keyring; none keeps the caller's.
    pub keyring: Option<CString>,
}

/// Five capability sets (capabilities(7)); bit n is capability n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caps {
    /// Limits what exec can gain.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// May be raised.
    pub permitted: u64,
    /// Kept over exec of files with inheritable bits.
    pub inheritable: u64,
    /// Kept over exec.
    pub ambient: u64,
}

/// A hook ready to execute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookPlan {
    /// Its place in the configuration, for messages: `hooks.prestart[0]`.
    pub at: String,
    /// Program.
    pub path: CString,
    /// argv (the path alone when the configuration has none).
    pub args: Vec<CString>,
    /// Environment; empty unless given.
    pub env: Vec<CString>,
    /// Seconds until it is killed.
    pub timeout: Option<u32>,
}
