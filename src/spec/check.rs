//! Refuses what can be refused without looking at the host.
//!
//! Owns: every rule of runtime-spec 1.3, and of the kernel interfaces behind it, that can be
//! decided from the configuration alone. An error names the JSON path and what was expected;
//! what is doubtful but harmless is returned as a warning. Nothing here reads a file, and nothing
//! is changed: what passes is carried out as it stands.
//!
//! Whether this host can do it (kernel, controllers, LSMs, files that exist) is decided later.

mod devices;
mod linux;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod seccomp;

use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use oci_spec::runtime::{Hook, Hooks, LinuxNamespaceType, LinuxResources, Process, Spec};

use crate::{Error, Result};
use namespaces::Namespaces;

/// Checks limits by themselves, as `update` gets them.
///
/// # Errors
/// As [`check`].
pub fn resources(resources: &LinuxResources) -> Result<()> {
    resources::check(resources)
}

/// Checks a configuration for `create`. Returns what deserves a warning, one line each.
///
/// # Errors
/// [`Error::Config`] with the JSON path of the first rule broken.
pub fn check(spec: &Spec) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let root = spec
        .root()
        .as_ref()
        .ok_or_else(|| Error::config("root", "is required"))?;
    path("root.path", root.path())?;

    let namespaces = Namespaces::new(spec.linux().as_ref())?;
    uts_names(spec, &namespaces)?;
    mounts::check(spec, &namespaces, &mut warnings)?;
    match spec.process() {
        Some(p) => {
            process::check(p, &mut warnings)?;
            namespaces.ids_mapped(p)?;
        }
        None => return Err(Error::config("process", "is required")),
    }
    if let Some(hooks) = spec.hooks() {
        check_hooks(hooks)?;
    }
    for (key, value) in spec.annotations().iter().flatten() {
        if key.is_empty() {
            return Err(Error::config("annotations", "a key is the empty string"));
        }
        text(format_args!("annotations[{key:?}]"), value)?;
    }
    if let Some(l) = spec.linux() {
        linux::check(l, &namespaces, &mut warnings)?;
    }
    Ok(warnings)
}

/// Checks one more process for a cell of this configuration. Returns warnings.
///
/// # Errors
/// As [`check`]; the JSON paths start with `process`.
pub fn check_process(process: &Process, cell: &Spec) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    process::check(process, &mut warnings)?;
    Namespaces::new(cell.linux().as_ref())?.ids_mapped(process)?;
    Ok(warnings)
}

/// Kernel's `__NEW_UTS_LEN` (include/uapi/linux/utsname.h): longest host or domain name, bytes.
const UTS_LEN: usize = 64;

fn uts_names(spec: &Spec, namespaces: &Namespaces) -> Result<()> {
    for (at, name) in [
        ("hostname", spec.hostname()),
        ("domainname", spec.domainname()),
    ] {
        let Some(name) = name.as_deref().filter(|n| !n.is_empty()) else {
            continue;
        };
        text(at, name)?;
        if name.len() > UTS_LEN {
            return Err(Error::config(at, format!("longer than {UTS_LEN} bytes")));
        }
        namespaces.require(at, LinuxNamespaceType::Uts)?;
    }
    Ok(())
}

/// The kinds of hooks, in the order in which they run (config.md, "POSIX-platform Hooks").
pub(crate) const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// config.md, "POSIX-platform Hooks".
#[allow(deprecated)] // prestart: deprecated, not removed; NVIDIA's and others' still use it.
fn check_hooks(hooks: &Hooks) -> Result<()> {
    let lists: [&Option<Vec<Hook>>; 6] = [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    for (name, list) in HOOKS.iter().zip(lists) {
        for (i, hook) in list.iter().flatten().enumerate() {
            let at = |member: &str| format!("hooks.{name}[{i}].{member}");
            absolute(at("path"), hook.path())?;
            texts(at("args"), hook.args().as_deref())?;
            texts(at("env"), hook.env().as_deref())?;
            if let Some(seconds) = hook.timeout().filter(|t| *t <= 0) {
                return Err(Error::config(
                    at("timeout"),
                    format!("expected seconds greater than zero, found {seconds}"),
                ));
            }
        }
    }
    Ok(())
}

/// Strings end in C strings: a NUL would cut them, so that what was checked is not what is used.
fn text(at: impl Display, value: &str) -> Result<()> {
    if value.bytes().any(|b| b == 0) {
        return Err(Error::config(at.to_string(), "holds a NUL character"));
    }
    Ok(())
}

fn texts(at: impl Display, values: Option<&[String]>) -> Result<()> {
    for (i, value) in values.unwrap_or_default().iter().enumerate() {
        if value.bytes().any(|b| b == 0) {
            return Err(Error::config(format!("{at}[{i}]"), "holds a NUL character"));
        }
    }
    Ok(())
}

/// Text that ends up as one field of a line in a kernel file.
fn word(at: impl Display, value: &str) -> Result<()> {
    if value.is_empty() || value.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Error::config(
            at.to_string(),
            format!("expected one word, found {value:?}"),
        ));
    }
    Ok(())
}

/// A path that is given, and holds no NUL.
fn path(at: impl Display, value: &Path) -> Result<()> {
    let bytes = value.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err(Error::config(at.to_string(), "is required"));
    }
    if bytes.contains(&0) {
        return Err(Error::config(at.to_string(), "holds a NUL character"));
    }
    if bytes.len() >= libc::PATH_MAX as usize {
        return Err(Error::config(
            at.to_string(),
            format!("a path of {} bytes or more", libc::PATH_MAX),
        ));
    }
    Ok(())
}

fn absolute(at: impl Display, value: &Path) -> Result<()> {
    path(&at, value)?;
    if !value.has_root() {
        return Err(Error::config(
            at.to_string(),
            format!(
                "expected an absolute path, found {:?}",
                value.display().to_string()
            ),
        ));
    }
    Ok(())
}

/// An id that setuid(2) and its kin take: -1 means "leave as it is" there.
fn id(at: &str, value: u32) -> Result<()> {
    if value == u32::MAX {
        return Err(Error::config(
            at.to_string(),
            format!("{value} is (u32)-1, which no user or group can have"),
        ));
    }
    Ok(())
}

/// A list in the format of cpuset(7), "0-3,7", of which the kernel says EINVAL when it is off.
fn id_list(at: &str, list: &str) -> Result<()> {
    let wrong = || {
        Error::config(
            at.to_string(),
            format!("expected a list such as 0-3,7, found {list:?}"),
        )
    };
    for item in list.split(',') {
        let (low, high) = item.split_once('-').unwrap_or((item, item));
        let number = |text: &str| {
            Some(text)
                .filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|t| t.parse::<u32>().ok())
        };
        match (number(low), number(high)) {
            (Some(low), Some(high)) if low <= high => {}
            _ => return Err(wrong()),
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::spec::load;

    /// A valid configuration with the members of `linux` and `top` added or replaced.
    pub(crate) fn parsed(json: serde_json::Value) -> Spec {
        load::parse(json.to_string().as_bytes()).unwrap().spec
    }

    /// The smallest configuration with all namespaces, over which tests lay their own members.
    pub(crate) fn base() -> serde_json::Value {
        serde_json::json!({
            "ociVersion": "1.3.0",
            "root": {"path": "rootfs"},
            "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}},
            "linux": {"namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "mount"}, {"type": "cgroup"}
            ]}
        })
    }

    /// `base()` with one value set at a JSON pointer.
    pub(crate) fn set(pointer: &str, value: serde_json::Value) -> serde_json::Value {
        let mut json = base();
        let mut at = &mut json;
        for key in pointer.trim_start_matches('/').split('/') {
            at = &mut at[key];
        }
        *at = value;
        json
    }

    /// Expects an error whose text has every one of `parts`.
    pub(crate) fn refused(json: serde_json::Value, parts: &[&str]) {
        match check(&parsed(json.clone())) {
            Ok(_) => panic!("accepted: {json}"),
            Err(e) => {
                for part in parts {
                    assert!(e.to_string().contains(part), "{e}: lacks {part:?}");
                }
            }
        }
    }

    /// Expects no error; gives the warnings.
    pub(crate) fn accepted(json: serde_json::Value) -> Vec<String> {
        match check(&parsed(json.clone())) {
            Ok(w) => w,
            Err(e) => panic!("{e}: {json}"),
        }
    }

    use serde_json::json;

    #[test]
    fn base_passes_without_warnings() {
        assert!(accepted(base()).is_empty());
    }

    #[test]
    fn required_members() {
        for (drop, at) in [
            ("root", "root: is required"),
            ("process", "process: is required"),
        ] {
            let mut j = base();
            j.as_object_mut().unwrap().remove(drop);
            refused(j, &[at]);
        }
        refused(set("/root/path", json!("")), &["root.path: is required"]);
        refused(set("/root/path", json!("a\0b")), &["root.path", "NUL"]);
    }

    #[test]
    fn host_names() {
        refused(set("/hostname", json!("a".repeat(65))), &["hostname", "64"]);
        let mut j = set("/domainname", json!("example"));
        j["linux"]["namespaces"] = json!([{"type": "mount"}]);
        refused(j, &["domainname", "uts namespace"]);
        accepted(set("/hostname", json!("cell")));
    }

    #[test]
    fn hooks() {
        let hook = |h| set("/hooks", json!({ "createRuntime": [h] }));
        accepted(hook(
            json!({"path": "/bin/true", "timeout": 5, "env": ["A=b"]}),
        ));
        refused(
            hook(json!({"path": "bin/true"})),
            &["hooks.createRuntime[0].path", "absolute"],
        );
        refused(
            hook(json!({"path": "/x", "timeout": 0})),
            &["timeout", "greater than zero"],
        );
        refused(
            hook(json!({"path": "/x", "args": ["a", "\0"]})),
            &["args[1]"],
        );
    }

    #[test]
    fn annotations() {
        refused(set("/annotations", json!({"": "x"})), &["annotations"]);
        accepted(set("/annotations", json!({"a.b": ""})));
    }

    #[test]
    fn lists() {
        for ok in ["0", "0-3", "0,2,4-7", "1-1"] {
            id_list("x", ok).unwrap();
        }
        for bad in [
            "",
            ",",
            "3-1",
            "a",
            "1-",
            "-1",
            "+1",
            "1-2-3",
            "0,",
            "99999999999",
        ] {
            assert!(id_list("x", bad).is_err(), "{bad}");
        }
    }
}
