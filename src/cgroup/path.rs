//! Where in the hierarchies a cell's group goes.
//!
//! Owns the reading of `linux.cgroupsPath` and the default. Makes nothing.

use super::host::{Host, Mode};
use crate::error::{Error, Result};
use nix::unistd::{AccessFlags, access};
use std::fs;
use std::path::Path;

/// Longest path below a mount point. The kernel's own bound on a cgroup's path is PATH_MAX, mount
/// point included; one name may have 255 bytes.
const PATH_LEN: usize = 3000;
const NAME_LEN: usize = 255;

/// A path below a mount point: `a/b/c`, never empty, never with `..`, no slash at either end.
///
/// An absolute `cgroupsPath` is below the hierarchy's mount point (runtime-spec, "Cgroups
/// Path"). So is a relative one, as in crun, except for rootless cells (see [`own_place`]).
/// Without one, a cell gets `gpucell-ID`: directly below the mount point, since each level more
/// is charged again on every page and costs a start 0.1 ms.
///
/// # Errors
/// A configuration error for an empty path, the root itself, `..`, and names that the kernel
/// or /proc/PID/cgroup can't carry.
pub(crate) fn resolve(id: &str, path: Option<&Path>) -> Result<String> {
    const AT: &str = "linux.cgroupsPath";
    let Some(path) = path.filter(|p| !p.as_os_str().is_empty()) else {
        let name = format!("gpucell-{id}");
        check_name("the cell's id", &name)?;
        return Ok(name);
    };
    let text = path
        .to_str()
        .ok_or_else(|| Error::config(AT, "expected UTF-8"))?;
    let mut out = String::with_capacity(text.len());
    for name in text.split('/').filter(|n| !n.is_empty() && *n != ".") {
        check_name(AT, name)?;
        if !out.is_empty() {
            out.push('/');
        }
        out.push_str(name);
    }
    if out.is_empty() {
        return Err(Error::config(
            AT,
            "expected a group of the cell's own, not the root of the hierarchy",
        ));
    }
    if out.len() > PATH_LEN {
        return Err(Error::config(AT, format!("longer than {PATH_LEN} bytes")));
    }
    Ok(out)
}

fn check_name(at: &'static str, name: &str) -> Result<()> {
    let why = if name == ".." {
        "`..` would leave the place meant"
    } else if name.contains('/') {
        "expected one name, without slashes"
    } else if name.len() > NAME_LEN {
        "a name is longer than 255 bytes"
    } else if name.chars().any(char::is_control) {
        "a name has control characters"
    } else if name.starts_with("cgroup.") {
        "names that begin with `cgroup.` are the kernel's"
    } else {
        return Ok(());
    };
    Err(Error::config(at, format!("{why} ({name:?})")))
}

/// The three parts of a systemd path, `slice:prefix:name` (runc's convention).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemdPath {
    /// Slice the scope goes into; empty for the default one.
    pub slice: String,
    /// First part of the scope's name.
    pub prefix: String,
    /// Second part of the scope's name, or a whole slice name when it ends in `.slice`.
    pub name: String,
}

impl SystemdPath {
    /// Reads `slice:prefix:name`.
    ///
    /// # Errors
    /// A configuration error unless there are three parts, the last not empty, none with a
    /// slash.
    pub fn parse(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let bad = || {
            Error::config(
                "linux.cgroupsPath",
                format!("expected slice:prefix:name for the systemd driver, not {text:?}"),
            )
        };
        match parts[..] {
            [slice, prefix, name] if !name.is_empty() && !text.contains('/') => {
                for part in [slice, prefix, name] {
                    check_name("linux.cgroupsPath", part)?;
                }
                Ok(SystemdPath {
                    slice: slice.to_owned(),
                    prefix: prefix.to_owned(),
                    name: name.to_owned(),
                })
            }
            _ => Err(bad()),
        }
    }
}

/// For a rootless cell on v2: the nearest group above our own that we may make groups in and
/// that has no processes itself (the kernel lets no group both hold processes and hand out
/// controllers: admin-guide/cgroup-v2.rst, "No Internal Process Constraint"). `None` if the
/// user has no such group, for example after a plain ssh login.
pub(crate) fn own_place(host: &Host) -> Option<String> {
    if host.mode != Mode::V2 {
        return None;
    }
    let mount = host.v2.as_deref()?;
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = text.lines().find_map(|l| l.strip_prefix("0::/"))?;
    if own.split('/').any(|n| n == "..") {
        return None; // our group lies outside of our cgroup namespace's root
    }
    let mut at = own;
    while let Some((parent, _)) = at.rsplit_once('/') {
        at = parent;
        let dir = format!("{mount}/{at}");
        let writable = |file: &str| {
            let path = format!("{dir}{file}");
            access(path.as_str(), AccessFlags::W_OK).is_ok()
        };
        if writable("") && writable("/cgroup.procs") && writable("/cgroup.subtree_control") {
            let empty = fs::read(format!("{dir}/cgroup.procs")).is_ok_and(|b| b.is_empty());
            if empty {
                return Some(at.to_owned());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Result<String> {
        resolve("a", Some(Path::new(text)))
    }

    #[test]
    fn paths_land_below_the_mount() {
        assert_eq!(path("/docker/abc").unwrap(), "docker/abc");
        assert_eq!(path("docker//./abc/").unwrap(), "docker/abc");
        assert_eq!(path("a:b:c").unwrap(), "a:b:c");
        assert_eq!(resolve("x1", None).unwrap(), "gpucell-x1");
        assert_eq!(path("").unwrap(), "gpucell-a");
    }

    #[test]
    fn bad_paths_are_refused() {
        for bad in [
            "/",
            "/..",
            "a/../b",
            "..",
            "/./",
            "a\nb",
            "cgroup.procs",
            "a/\0",
        ] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
        assert!(path(&"a".repeat(256)).is_err());
        assert!(path(&"abcdef/".repeat(600)).is_err());
        assert!(resolve("../x", None).is_err());
        assert!(resolve(&"i".repeat(250), None).is_err());
    }

    #[test]
    fn systemd_paths() {
        let p = SystemdPath::parse("system.slice:docker:0123").unwrap();
        assert_eq!(
            (p.slice.as_str(), p.prefix.as_str(), p.name.as_str()),
            ("system.slice", "docker", "0123")
        );
        assert!(SystemdPath::parse(":docker:0123").is_ok());
        for bad in ["", "a", "a:b", "a:b:", "a:b:c:d", "a/b:c:d", "..:c:d"] {
            assert!(SystemdPath::parse(bad).is_err(), "{bad:?}");
        }
    }
}
