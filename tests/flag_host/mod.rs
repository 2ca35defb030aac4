//! A host that is the same on every machine, and the way from a line of flags to lines of edits.
#![allow(dead_code)] // each test binary uses its part

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use clap::Parser;
use gpucell::cli::flags::{Context, Flags, High, Host, Owner, raise};
use gpucell::spec::edit::HostNode;
use gpucell::{Error, Result};
use oci_spec::runtime::{Capability, LinuxDeviceType, Spec};
use serde_json::json;

/// The fake host; fields are what the tests vary.
#[derive(Debug)]
pub struct Fake {
    pub v2: bool,
    pub swap: bool,
    pub selinux: bool,
    /// The bundle has a /dev/shm with this option.
    pub shm: Option<&'static str>,
    /// The root has an /etc (so that its files are filled in).
    pub etc: bool,
    pub cpus: u32,
}

impl Default for Fake {
    fn default() -> Self {
        Fake {
            v2: true,
            swap: true,
            selinux: false,
            shm: None,
            etc: false,
            cpus: 4,
        }
    }
}

fn missing() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

impl Host for Fake {
    fn env(&self, key: &str) -> Option<String> {
        match key {
            "FROM_CALLER" => Some("yes".into()),
            "HOME" => Some("/home/me".into()),
            _ => None,
        }
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        Ok(match path.to_str() {
            Some("/home/me/env") => "\u{feff}# comment\n\nX=1\n  Y=a b\nFROM_CALLER\nUNSET\n",
            Some("/home/me/badenv") => "A B=1\n",
            Some("/home/me/profile.json") => r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#,
            Some("/etc/hosts") => "127.0.0.1 localhost\n10.0.0.9 server # hal\n",
            Some("/etc/resolv.conf") => "nameserver 10.0.0.1\nsearch lab\noptions ndots:2",
            _ => return Err(missing()),
        }
        .to_owned())
    }

    fn root_file(&self, path: &str) -> Result<Option<String>> {
        Ok(match path {
            "/etc/passwd" => Some(
                "root:x:0:0::/root:/bin/sh\naiuser:x:1000:1001::/home/aiuser:/bin/bash\n".into(),
            ),
            "/etc/group" => Some("root:x:0:\nvideo:x:44:aiuser\n".into()),
            _ => None,
        })
    }

    fn root_has(&self, path: &str) -> bool {
        self.etc && path == "/etc"
    }

    fn capabilities(&self) -> Vec<Capability> {
        vec![Capability::Chown, Capability::Kill, Capability::SysAdmin]
    }

    fn owner(&self, path: &Path) -> io::Result<Owner> {
        let (uid, gid, dir) = match path.to_str() {
            Some("/data" | "/dev/dri" | "/dev/shm" | "/dev/mqueue") => (0, 0, true),
            Some("/home/me/sub") => (500, 501, true),
            Some("/dev/fuse" | "/dev/sda") => (0, 0, false),
            _ => return Err(missing()),
        };
        Ok(Owner { uid, gid, dir })
    }

    fn node(&self, path: &Path) -> Result<HostNode> {
        let (typ, major, minor) = match path.to_str() {
            Some("/dev/sda") => (LinuxDeviceType::B, 8, 0),
            Some("/dev/fuse") => (LinuxDeviceType::C, 10, 229),
            Some("/dev/dri/card0") => (LinuxDeviceType::C, 226, 0),
            Some("/dev/dri/renderD128") => (LinuxDeviceType::C, 226, 128),
            _ => {
                return Err(Error::step(
                    "device node",
                    path.display().to_string(),
                    missing(),
                ));
            }
        };
        Ok(HostNode {
            typ,
            major,
            minor,
            mode: 0o660,
            uid: 0,
            gid: 6,
        })
    }

    fn nodes_in(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        Ok(match dir.to_str() {
            Some("/dev") => ["dri/card0", "fuse", "gone", "pts/0", "ptmx", "shm/x", "sda"]
                .map(|name| dir.join(name))
                .to_vec(),
            _ => vec![dir.join("card0"), dir.join("renderD128")],
        })
    }

    fn cwd(&self) -> io::Result<PathBuf> {
        Ok("/home/me".into())
    }

    fn cpus(&self) -> BTreeSet<u32> {
        (0..self.cpus).collect()
    }

    fn mems(&self) -> BTreeSet<u32> {
        BTreeSet::from([0])
    }

    fn memory_v2(&self) -> bool {
        self.v2
    }

    fn swap_limit(&self) -> bool {
        self.swap
    }

    fn selinux(&self) -> bool {
        self.selinux
    }

    fn kernel(&self) -> (u32, u32) {
        (6, 12)
    }

    fn namespace_of(&self, cell: &str, namespace: &str) -> Result<PathBuf> {
        match cell {
            "other" => Ok(format!("/proc/77/ns/{namespace}").into()),
            _ => Err(Error::msg(format!("No such container: {cell}"))),
        }
    }

    fn find_init(&self) -> Result<PathBuf> {
        Ok("/usr/bin/tini-static".into())
    }

    fn volume(&self, name: &str) -> Result<PathBuf> {
        Ok(Path::new("/volumes").join(name))
    }

    fn hostname(&self) -> String {
        "hal".into()
    }
}

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    flags: Flags,
}

/// The bundle all rows are raised against.
pub fn bundle(host: &Fake) -> Spec {
    let mut spec = json!({
        "ociVersion": "1.3.0",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh"],
            "env": ["PATH=/bin", "HOME=/root"],
            "capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN", "CAP_KILL"],
                "permitted": ["CAP_CHOWN", "CAP_KILL"]
            }
        },
        "hostname": "cellhost",
        "mounts": [],
        "linux": {"namespaces": [
            {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}
        ]}
    });
    if let Some(option) = host.shm {
        spec["mounts"] = json!([{
            "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", option]
        }]);
    }
    serde_json::from_value(spec).unwrap()
}

pub fn flags(words: &[&str]) -> Flags {
    let argv = std::iter::once("x").chain(words.iter().copied());
    Line::try_parse_from(argv)
        .unwrap_or_else(|e| panic!("{words:?}: {e}"))
        .flags
}

pub fn on_words(host: &Fake, words: &[&str]) -> Result<High> {
    raise(
        &flags(words),
        &Context {
            spec: &bundle(host),
            id: "cell1",
            command: &[],
            entrypoint: None,
            dir: Path::new("/run/cell1"),
        },
        host,
    )
}

pub fn on(host: &Fake, line: &str) -> Result<High> {
    on_words(host, &line.split_whitespace().collect::<Vec<_>>())
}

pub fn lines_of(host: &Fake, words: &[&str]) -> Vec<String> {
    let high = on_words(host, words).unwrap_or_else(|e| panic!("{words:?}: {e}"));
    let show = |e: &gpucell::spec::edit::Edit| format!("{} ({})", e.change, e.reason);
    high.edits.iter().map(show).collect()
}

pub fn lines_for(host: &Fake, line: &str) -> Vec<String> {
    lines_of(host, &line.split_whitespace().collect::<Vec<_>>())
}

pub fn lines(line: &str) -> Vec<String> {
    lines_for(&Fake::default(), line)
}

pub fn refused(line: &str) -> String {
    match on(&Fake::default(), line) {
        Ok(high) => panic!("{line}: not refused: {:?}", high.edits),
        Err(e) => e.to_string(),
    }
}
