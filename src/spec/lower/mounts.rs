//! `mounts` → mount steps: every type and option of the runtime-spec and mount(8) that the
//! kernel still has, in the terms of the new mount API.

use super::{Context, cstr, ranges};
use crate::plan::{IdMapped, IdMaps, MountStep, MountWhat};
use crate::sys::mount as m;
use crate::{Error, Result};
use oci_spec::runtime::{Mount, Spec};
use std::ffi::CString;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(super) fn mounts(
    spec: &Spec,
    ctx: &Context,
    id_maps: Option<&IdMaps>,
) -> Result<Vec<MountStep>> {
    let label = spec
        .linux()
        .as_ref()
        .and_then(|l| l.mount_label().clone())
        .filter(|l| !l.is_empty());
    let mut steps = Vec::new();
    // The files of a driver all have the same options: they are read once.
    let mut last: Option<(&Mount, Options)> = None;
    for (i, mount) in spec.mounts().iter().flatten().enumerate() {
        let same = last.take().filter(|(before, _)| {
            before.options() == mount.options() && before.typ() == mount.typ()
        });
        let (_, options) = last.insert(match same {
            Some((_, options)) => (mount, options),
            None => (mount, Options::parse(mount)),
        });
        steps.push(step(i, mount, options, ctx, id_maps, label.as_deref())?);
    }
    Ok(steps)
}

/// A member of one mount, written out only in an error.
#[derive(Clone, Copy)]
pub(crate) struct Member(pub usize, pub &'static str);

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mounts[{}].{}", self.0, self.1)
    }
}

/// What the options of one mount add up to.
#[derive(Default)]
struct Options {
    bind: bool,
    recursive: bool,
    remount: bool,
    set: u64,
    clr: u64,
    rec_set: u64,
    rec_clr: u64,
    propagation: Vec<u64>,
    copy_up: bool,
    idmap: Option<bool>,
    params: Vec<(String, Option<String>)>,
}

/// Mount attributes by their option name: set, clear. Each has a form for the whole tree, with an `r`
/// before it (runtime-spec, config.md, "Linux mount options"). Setting an access time mode clears the
/// field first, as mount_setattr(2) demands.
const ATTRIBUTES: [(&str, u64, u64); 18] = [
    ("ro", m::MOUNT_ATTR_RDONLY, 0),
    ("rw", 0, m::MOUNT_ATTR_RDONLY),
    ("nosuid", m::MOUNT_ATTR_NOSUID, 0),
    ("suid", 0, m::MOUNT_ATTR_NOSUID),
    ("nodev", m::MOUNT_ATTR_NODEV, 0),
    ("dev", 0, m::MOUNT_ATTR_NODEV),
    ("noexec", m::MOUNT_ATTR_NOEXEC, 0),
    ("exec", 0, m::MOUNT_ATTR_NOEXEC),
    ("nodiratime", m::MOUNT_ATTR_NODIRATIME, 0),
    ("diratime", 0, m::MOUNT_ATTR_NODIRATIME),
    ("nosymfollow", m::MOUNT_ATTR_NOSYMFOLLOW, 0),
    ("symfollow", 0, m::MOUNT_ATTR_NOSYMFOLLOW),
    ("noatime", m::MOUNT_ATTR_NOATIME, m::MOUNT_ATTR_ATIME),
    (
        "strictatime",
        m::MOUNT_ATTR_STRICTATIME,
        m::MOUNT_ATTR_ATIME,
    ),
    ("relatime", m::MOUNT_ATTR_RELATIME, m::MOUNT_ATTR_ATIME),
    // The kernel's default is relatime: taking another mode back ends there.
    ("atime", m::MOUNT_ATTR_RELATIME, m::MOUNT_ATTR_ATIME),
    ("norelatime", m::MOUNT_ATTR_RELATIME, m::MOUNT_ATTR_ATIME),
    ("nostrictatime", m::MOUNT_ATTR_RELATIME, m::MOUNT_ATTR_ATIME),
];

/// Propagation by its option name, as mount(2) flags.
const PROPAGATION: [(&str, u64); 8] = [
    ("private", libc::MS_PRIVATE),
    ("rprivate", libc::MS_PRIVATE | libc::MS_REC),
    ("shared", libc::MS_SHARED),
    ("rshared", libc::MS_SHARED | libc::MS_REC),
    ("slave", libc::MS_SLAVE),
    ("rslave", libc::MS_SLAVE | libc::MS_REC),
    ("unbindable", libc::MS_UNBINDABLE),
    ("runbindable", libc::MS_UNBINDABLE | libc::MS_REC),
];

/// An option that says what the mount is rather than how it behaves, and what it sets.
type Kind = (&'static str, fn(&mut Options));

const KINDS: [Kind; 6] = [
    ("bind", |o| o.bind = true),
    ("rbind", |o| {
        o.bind = true;
        o.recursive = true;
    }),
    ("remount", |o| o.remount = true),
    ("tmpcopyup", |o| o.copy_up = true),
    ("idmap", |o| o.idmap = Some(false)),
    ("ridmap", |o| o.idmap = Some(true)),
];

/// Names of mount(8) that change nothing: defaults, and the absence of a kernel flag.
const NOTHING: [&str; 7] = [
    "defaults",
    "loud",
    "silent",
    "noiversion",
    "nomand",
    "nolazytime",
    "async",
];

/// Flags that the kernel takes for every file system (fs/fs_context.c, `common_set_sb_flag`): they go
/// to it as they are.
const SUPERBLOCK: [&str; 4] = ["dirsync", "lazytime", "mand", "sync"];

/// Every option with a meaning of its own here, sorted (`features`). All others are the file system's.
pub(crate) fn known_options() -> Vec<String> {
    let attributes = || ATTRIBUTES.iter().map(|a| a.0);
    let mut names: Vec<String> = attributes()
        .chain(PROPAGATION.iter().map(|p| p.0))
        .chain(KINDS.iter().map(|k| k.0))
        .chain(NOTHING)
        .chain(SUPERBLOCK)
        .map(str::to_owned)
        .chain(attributes().map(|name| format!("r{name}")))
        .collect();
    names.sort();
    names
}

fn attribute(name: &str) -> Option<(u64, u64)> {
    let found = ATTRIBUTES.iter().find(|a| a.0 == name);
    found.map(|(_, set, clr)| (*set, *clr))
}

impl Options {
    fn parse(mount: &Mount) -> Self {
        let mut o = Options {
            bind: mount.typ().as_deref() == Some("bind"),
            ..Self::default()
        };
        for name in mount.options().iter().flatten() {
            o.add(name);
        }
        o
    }

    fn add(&mut self, name: &str) {
        if let Some((set, clr)) = attribute(name) {
            // The last of two contradicting options wins, as in mount(8).
            self.set = self.set & !clr | set;
            self.clr = self.clr & !set | clr;
        } else if let Some((set, clr)) = name.strip_prefix('r').and_then(attribute) {
            self.rec_set = self.rec_set & !clr | set;
            self.rec_clr = self.rec_clr & !set | clr;
        } else if let Some((_, flags)) = PROPAGATION.iter().find(|p| p.0 == name) {
            self.propagation.push(*flags);
        } else if let Some((_, put)) = KINDS.iter().find(|k| k.0 == name) {
            put(self);
        } else if !name.is_empty() && !NOTHING.contains(&name) {
            let (key, value) = match name.split_once('=') {
                Some((k, v)) => (k, Some(v.to_owned())),
                None => (name, None),
            };
            self.params.push((key.to_owned(), value));
        }
    }
}

fn step(
    index: usize,
    mount: &Mount,
    o: &Options,
    ctx: &Context,
    id_maps: Option<&IdMaps>,
    label: Option<&str>,
) -> Result<MountStep> {
    let at = |field| Member(index, field);
    // A relative destination is deprecated but still taken relative to / (config.md, Mounts).
    let target = Path::new("/").join(mount.destination());
    let typ = mount.typ().as_deref().unwrap_or("");
    let params = |list: &[(String, Option<String>)]| {
        list.iter()
            .map(|(k, v)| {
                let v = v.as_ref().map(|v| cstr(at("options"), v.as_bytes()));
                Ok((cstr(at("options"), k.as_bytes())?, v.transpose()?))
            })
            .collect::<Result<Vec<_>>>()
    };
    let what = if o.remount {
        MountWhat::Remount {
            params: params(&o.params)?,
        }
    } else if o.bind {
        let source = mount
            .source()
            .as_ref()
            .filter(|s| !s.as_os_str().is_empty())
            .ok_or_else(|| {
                Error::config(
                    at("source").to_string(),
                    "missing: a bind mount needs a source",
                )
            })?;
        MountWhat::Bind {
            source: cstr(at("source"), ctx.bundle.join(source).as_os_str().as_bytes())?,
            recursive: o.recursive,
        }
    } else if typ.is_empty() || typ == "none" {
        return Err(Error::config(
            at("type").to_string(),
            "missing: needs a file system type, or the option bind, rbind or remount",
        ));
    } else if typ == "cgroup" || typ == "cgroup2" {
        MountWhat::Cgroup
    } else {
        let mut list = params(&o.params)?;
        if let Some(source) = mount
            .source()
            .as_ref()
            .filter(|s| !s.as_os_str().is_empty())
        {
            let source = cstr(at("source"), source.as_os_str().as_bytes())?;
            list.insert(0, (c"source".to_owned(), Some(source)));
        }
        // procfs, sysfs and mqueue carry no context of their own (runc does the same).
        if let Some(l) = label.filter(|_| !matches!(typ, "proc" | "sysfs" | "mqueue")) {
            list.push((
                c"context".to_owned(),
                Some(cstr("linux.mountLabel", l.as_bytes())?),
            ));
        }
        if o.copy_up && typ != "tmpfs" {
            return Err(Error::config(
                at("options").to_string(),
                "tmpcopyup is for tmpfs only",
            ));
        }
        MountWhat::Fs {
            fstype: cstr(at("type"), typ.as_bytes())?,
            params: list,
            copy_up: o.copy_up,
        }
    };
    let target = cstr(at("destination"), target.as_os_str().as_bytes())?;
    under_proc(at("destination"), &target, &what)?;
    let late_readonly = o.set & m::MOUNT_ATTR_RDONLY != 0
        && matches!(&what, MountWhat::Fs { fstype, .. } if &**fstype == c"tmpfs" || &*target == c"/dev");
    Ok(MountStep {
        index,
        no_symlinks: matches!(typ, "proc" | "sysfs") && !o.bind,
        idmap: idmap(at("options"), mount, o, id_maps)?,
        target,
        what,
        late_readonly,
        set: match late_readonly {
            true => o.set & !m::MOUNT_ATTR_RDONLY,
            false => o.set,
        },
        clr: o.clr,
        rec_set: o.rec_set,
        rec_clr: o.rec_clr,
        propagation: o.propagation.clone(),
    })
}

fn idmap(
    at: Member,
    mount: &Mount,
    o: &Options,
    id_maps: Option<&IdMaps>,
) -> Result<Option<IdMapped>> {
    let own = IdMaps {
        uids: ranges(mount.uid_mappings()),
        gids: ranges(mount.gid_mappings()),
    };
    let given = !own.uids.is_empty() || !own.gids.is_empty();
    if o.idmap.is_none() && !given {
        return Ok(None);
    }
    if !o.bind {
        return Err(Error::config(
            at.to_string(),
            "only bind mounts can be id-mapped",
        ));
    }
    if given && (own.uids.is_empty() || own.gids.is_empty()) {
        return Err(Error::config(
            at.to_string(),
            "uidMappings and gidMappings must be given together",
        ));
    }
    let maps = if given {
        own
    } else {
        id_maps.cloned().ok_or_else(|| {
            Error::config(
                at.to_string(),
                "idmap needs uidMappings and gidMappings, or a new user namespace",
            )
        })?
    };
    Ok(Some(IdMapped {
        maps,
        recursive: o.idmap.unwrap_or(o.recursive),
    }))
}

/// Files of procfs that container managers lay their own version over (lxcfs and the like).
const PROC_FILES: [&[u8]; 10] = [
    b"/proc/cpuinfo",
    b"/proc/diskstats",
    b"/proc/meminfo",
    b"/proc/stat",
    b"/proc/swaps",
    b"/proc/uptime",
    b"/proc/loadavg",
    b"/proc/slabinfo",
    b"/proc/sys/kernel/ns_last_pid",
    b"/proc/sys/crypto/fips_enabled",
];

/// A mount over part of /proc could stand in for the files the runtime itself writes
/// (CVE-2019-16884): only a procfs on /proc, and binds onto a few harmless files, are allowed.
/// The child checks again by file system type, for targets that reach /proc by another name.
fn under_proc(at: Member, target: &CString, what: &MountWhat) -> Result<()> {
    let path = target.as_bytes();
    if path != b"/proc" && !path.starts_with(b"/proc/") {
        return Ok(());
    }
    let fine = match what {
        MountWhat::Fs { fstype, .. } => path == b"/proc" && fstype.as_bytes() == b"proc",
        // The child makes sure that the source of a bind onto /proc is a procfs.
        MountWhat::Bind { .. } => path == b"/proc" || proc_file(path),
        MountWhat::Remount { .. } => true,
        MountWhat::Cgroup => false,
    };
    if fine {
        return Ok(());
    }
    Err(Error::config(
        at.to_string(),
        format!(
            "{} cannot be mounted over: it is inside /proc",
            target.to_string_lossy()
        ),
    ))
}

/// A bind mount, by its type or an option (runtime-spec, config.md "Mounts").
pub(crate) fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    mount.typ().as_deref() == Some("bind") || options.iter().any(|o| o == "bind" || o == "rbind")
}

/// Whether a bind onto this file of procfs is allowed.
pub(crate) fn proc_file(path: &[u8]) -> bool {
    PROC_FILES.contains(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<MountStep> {
        let mount: Mount = serde_json::from_str(json).unwrap();
        let ctx = Context {
            bundle: Path::new("/b"),
            rootfs: Path::new("/b/rootfs"),
            id: "x",
            no_pivot: false,
            no_new_keyring: true,
            bind_devices: false,
            overlay: None,
        };
        step(3, &mount, &Options::parse(&mount), &ctx, None, None)
    }

    #[test]
    fn a_read_only_bind_with_a_relative_source() {
        let got = parse(
            r#"{"destination":"/data","source":"d","options":["rbind","ro","rprivate","noatime"]}"#,
        )
        .unwrap();
        assert_eq!(
            got,
            MountStep {
                index: 3,
                target: c"/data".into(),
                what: MountWhat::Bind {
                    source: c"/b/d".into(),
                    recursive: true
                },
                set: m::MOUNT_ATTR_RDONLY | m::MOUNT_ATTR_NOATIME,
                clr: m::MOUNT_ATTR_ATIME,
                rec_set: 0,
                rec_clr: 0,
                propagation: vec![libc::MS_PRIVATE | libc::MS_REC],
                idmap: None,
                no_symlinks: false,
                late_readonly: false,
            }
        );
    }

    #[test]
    fn a_tmpfs_with_parameters() {
        let got = parse(
            r#"{"destination":"/dev","type":"tmpfs","source":"tmpfs",
                "options":["nosuid","strictatime","mode=755","size=65536k"]}"#,
        )
        .unwrap();
        let MountWhat::Fs { fstype, params, .. } = &got.what else {
            panic!("{got:?}")
        };
        assert_eq!(fstype.as_c_str(), c"tmpfs");
        let text: Vec<_> = params
            .iter()
            .map(|(k, v)| (k.to_str().unwrap(), v.as_ref().map(|v| v.to_str().unwrap())))
            .collect();
        assert_eq!(
            text,
            [
                ("source", Some("tmpfs")),
                ("mode", Some("755")),
                ("size", Some("65536k"))
            ]
        );
        assert_eq!(got.set, m::MOUNT_ATTR_NOSUID | m::MOUNT_ATTR_STRICTATIME);
    }

    #[test]
    fn what_is_filled_becomes_read_only_last() {
        for (text, late) in [
            (
                r#"{"destination":"/dev","type":"tmpfs","options":["ro"]}"#,
                true,
            ),
            (
                r#"{"destination":"/dev","type":"devtmpfs","options":["ro"]}"#,
                true,
            ),
            (
                r#"{"destination":"/x","type":"tmpfs","options":["ro","nosuid"]}"#,
                true,
            ),
            (
                r#"{"destination":"/x","type":"tmpfs","options":["ro","rw"]}"#,
                false,
            ),
            (
                r#"{"destination":"/sys","type":"sysfs","options":["ro"]}"#,
                false,
            ),
            (
                r#"{"destination":"/dev","source":"/a","options":["rbind","ro"]}"#,
                false,
            ),
        ] {
            let got = parse(text).unwrap();
            assert_eq!(got.late_readonly, late, "{text}");
            let now = text.contains("sysfs") || text.contains("rbind");
            assert_eq!(got.set & m::MOUNT_ATTR_RDONLY != 0, now, "{text}");
        }
    }

    #[test]
    fn the_last_of_two_contradicting_options_wins() {
        let got = parse(r#"{"destination":"/a","source":"/a","options":["bind","ro","rw"]}"#);
        let got = got.unwrap();
        assert_eq!((got.set, got.clr), (0, m::MOUNT_ATTR_RDONLY));
        let got =
            parse(r#"{"destination":"/a","source":"/a","options":["bind","rro","rrw","rro"]}"#);
        let got = got.unwrap();
        assert_eq!((got.rec_set, got.rec_clr), (m::MOUNT_ATTR_RDONLY, 0));
    }

    #[test]
    fn the_known_options_are_no_parameters_of_a_file_system() {
        let names = known_options();
        for must in ["ro", "rro", "rnosymfollow", "rbind", "runbindable", "idmap"] {
            assert!(names.iter().any(|n| n == must), "{must}");
        }
        assert!(names.windows(2).all(|w| w[0] < w[1]), "{names:?}");
        for name in names {
            let mut o = Options::default();
            o.add(&name);
            let passed = SUPERBLOCK.contains(&name.as_str());
            assert_eq!(o.params.len(), usize::from(passed), "{name}");
        }
    }

    #[test]
    fn nothing_may_be_mounted_over_proc() {
        for bad in [
            r#"{"destination":"/proc","type":"tmpfs"}"#,
            r#"{"destination":"/proc/self","source":"/x","options":["bind"]}"#,
            r#"{"destination":"/proc/self/attr","type":"tmpfs"}"#,
            r#"{"destination":"proc/sys","source":"/x","options":["bind"]}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        for good in [
            r#"{"destination":"/proc","type":"proc"}"#,
            r#"{"destination":"/proc/cpuinfo","source":"/x","options":["bind"]}"#,
            r#"{"destination":"/process","type":"tmpfs"}"#,
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn idmap_needs_maps() {
        let none = r#"{"destination":"/a","source":"/a","options":["bind","idmap"]}"#;
        assert!(parse(none).is_err());
        let own = r#"{"destination":"/a","source":"/a","options":["rbind"],
            "uidMappings":[{"containerID":0,"hostID":1000,"size":1}],
            "gidMappings":[{"containerID":0,"hostID":1000,"size":1}]}"#;
        assert!(parse(own).unwrap().idmap.unwrap().recursive);
    }
}
