//! Which cgroup hierarchies this host has, and where they are mounted.
//!
//! Owns detection only. A host with cgroup2 at /sys/fs/cgroup, which is every current
//! distribution, is known by one statfs; /proc/self/mountinfo is read for all others.

use crate::error::{Error, Result};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use std::fs;

/// Where systemd and everyone else mount cgroups (file-hierarchy(7)).
pub const MOUNT: &str = "/sys/fs/cgroup";

/// How a host divides controllers between the two versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Only cgroup v2.
    V2,
    /// v1 controllers, and a cgroup2 mount beside them, which then carries the device filter,
    /// freezing and killing.
    Hybrid,
    /// Only cgroup v1.
    V1,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::V2 => "v2",
            Mode::Hybrid => "hybrid",
            Mode::V1 => "v1",
        })
    }
}

/// One mounted v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1Mount {
    /// Its controllers, such as `cpu` and `cpuacct` (mounted together), or `name=systemd`.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: String,
}

/// The hierarchies of this host, as this process sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// How controllers are divided.
    pub mode: Mode,
    /// Mount point of cgroup2.
    pub v2: Option<String>,
    /// v1 hierarchies.
    pub v1: Vec<V1Mount>,
}

impl Host {
    /// Looks at this host.
    ///
    /// # Errors
    /// No cgroup file system is mounted, or /proc/self/mountinfo can't be read.
    pub fn detect() -> Result<Self> {
        if statfs(MOUNT).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC) {
            return Ok(Host {
                mode: Mode::V2,
                v2: Some(MOUNT.to_owned()),
                v1: Vec::new(),
            });
        }
        let text = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|e| Error::step("read", "/proc/self/mountinfo", e))?;
        Self::from_mountinfo(&text)
    }

    /// Reads mountinfo (proc_pid_mountinfo(5)).
    ///
    /// # Errors
    /// No cgroup file system is in it.
    pub fn from_mountinfo(text: &str) -> Result<Self> {
        let (mut v2, mut v1) = (None, Vec::<V1Mount>::new());
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - cgroup") else {
                continue;
            };
            let Some(mount) = left.split(' ').nth(4).and_then(unescape) else {
                continue;
            };
            // After " - ": file system type, source, super options.
            let mut right = right.split(' ');
            match right.next() {
                Some("2") => v2 = v2.or(Some(mount)),
                Some("") => {
                    let options = right.nth(1).unwrap_or("");
                    let controllers = v1_controllers(options);
                    // Mounted twice (in some container's root, say): the first one counts.
                    let known = v1.iter().any(|m| m.controllers == controllers);
                    if !controllers.is_empty() && !known {
                        v1.push(V1Mount { controllers, mount });
                    }
                }
                _ => {}
            }
        }
        let real_v1 = v1
            .iter()
            .any(|m| m.controllers.iter().any(|c| !c.starts_with("name=")));
        let mode = match (&v2, real_v1) {
            (Some(_), true) => Mode::Hybrid,
            (Some(_), false) => Mode::V2,
            (None, true) => Mode::V1,
            (None, false) => {
                return Err(Error::unsupported(
                    "a cgroup for the cell",
                    format!("no cgroup file system is mounted (expected at {MOUNT})"),
                ));
            }
        };
        Ok(Host { mode, v2, v1 })
    }

    /// The v1 hierarchy that a controller is bound to. Controllers go by their v1 names here.
    pub fn v1_home(&self, controller: &str) -> Option<&V1Mount> {
        self.v1
            .iter()
            .find(|m| m.controllers.iter().any(|c| c == controller))
    }
}

/// Controllers among a v1 mount's super options.
fn v1_controllers(options: &str) -> Vec<String> {
    const KNOWN: [&str; 14] = [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "blkio",
        "pids",
        "hugetlb",
        "net_cls",
        "net_prio",
        "perf_event",
        "rdma",
        "misc",
    ];
    options
        .split(',')
        .filter(|o| KNOWN.contains(o) || o.starts_with("name="))
        .map(str::to_owned)
        .collect()
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> Option<String> {
    if !field.contains('\\') {
        return Some(field.to_owned());
    }
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] == b'\\' {
            let digits = field.get(i + 1..i + 4)?;
            out.push(u8::from_str_radix(digits, 8).ok()?);
            i += 4;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
23 1 0:2 / / rw - rootfs rootfs rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
50 31 0:32 / /var/lib/x/rootfs/sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
51 31 0:32 / /mnt/odd\\040name rw - cgroup cgroup rw,pids
";

    #[test]
    fn hybrid_is_read_from_mountinfo() {
        let h = Host::from_mountinfo(HYBRID).unwrap();
        assert_eq!(h.mode, Mode::Hybrid);
        assert_eq!(h.v2.as_deref(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(
            h.v1_home("cpuacct").unwrap().mount,
            "/sys/fs/cgroup/cpu,cpuacct"
        );
        assert_eq!(h.v1_home("memory").unwrap().mount, "/sys/fs/cgroup/memory");
        assert_eq!(h.v1_home("pids").unwrap().mount, "/mnt/odd name");
        assert_eq!(
            h.v1_home("name=systemd").unwrap().mount,
            "/sys/fs/cgroup/systemd"
        );
        assert_eq!(h.v1_home("hugetlb"), None);
        assert_eq!(h.v1.len(), 4);
    }

    #[test]
    fn other_modes() {
        let only = |drop: &str| {
            let text: String = HYBRID
                .lines()
                .filter(|l| !l.contains(drop))
                .map(|l| format!("{l}\n"))
                .collect();
            Host::from_mountinfo(&text)
        };
        assert_eq!(only("cgroup2").unwrap().mode, Mode::V1);
        let h = Host::from_mountinfo("41 31 0:38 / /cg rw - cgroup2 none rw\n").unwrap();
        assert_eq!((h.mode, h.v2.as_deref()), (Mode::V2, Some("/cg")));
        assert!(only(" - cgroup").is_err());
        assert!(Host::from_mountinfo("").is_err());
    }

    #[test]
    fn strange_escapes_are_no_panic() {
        for line in ["\\", "\\04", "\\999", "a\\0é0", "\\377"] {
            let text = format!("1 2 0:1 / {line} rw - cgroup2 none rw\n");
            let _ = Host::from_mountinfo(&text);
        }
    }
}
