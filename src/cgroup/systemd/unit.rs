//! From `slice:prefix:name` to a unit's name and the place of its cgroup.
//!
//! Pure: asks nobody.

use crate::cgroup::SystemdPath;
use crate::error::{Error, Result};
use std::path::Path;

const AT: &str = "linux.cgroupsPath";
/// UNIT_NAME_MAX of systemd's src/basic/unit-name.h is 256, the closing NUL included.
const NAME_LEN: usize = 255;

/// The scope meant for a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// `docker-0123.scope`
    pub name: String,
    /// `system.slice`
    pub slice: String,
    /// Path of the cgroup below the manager's own: `system.slice/docker-0123.scope`
    pub path: String,
}

/// Reads a cell's `cgroupsPath`. Without one the unit is `gpucell-ID.scope`; without a slice it goes into
/// `system.slice`, or into the user manager's `user.slice` (as in runc).
///
/// # Errors
/// A configuration error for a path of another form, for a `.slice` as the name (a slice holds no processes), and for
/// names that systemd does not take.
pub(crate) fn unit(id: &str, path: Option<&Path>, user: bool) -> Result<Unit> {
    let named = match path.filter(|p| !p.as_os_str().is_empty()) {
        None => SystemdPath {
            slice: String::new(),
            prefix: "gpucell".into(),
            name: id.to_owned(),
        },
        Some(path) => {
            let text = path.to_str();
            SystemdPath::parse(text.ok_or_else(|| Error::config(AT, "expected UTF-8"))?)?
        }
    };
    if named.name.ends_with(".slice") {
        return Err(Error::config(
            AT,
            format!(
                "{:?} is a slice, which holds no processes itself: expected slice:prefix:name",
                named.name
            ),
        ));
    }
    let slice = match named.slice.as_str() {
        "" if user => "user.slice".to_owned(),
        "" => "system.slice".to_owned(),
        s => s.to_owned(),
    };
    let name = format!("{}-{}.scope", named.prefix, named.name);
    check(&slice)?;
    check(&name)?;
    let path = match slice_path(&slice)? {
        above if above.is_empty() => name.clone(),
        above => format!("{above}/{name}"),
    };
    Ok(Unit { name, slice, path })
}

/// systemd.unit(5): letters, digits and `:-_.\`. `@` would make it an instance of a template.
fn check(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || ":-_.\\".contains(c);
    if name.len() <= NAME_LEN && name.chars().all(fine) {
        return Ok(());
    }
    Err(Error::config(
        AT,
        format!(
            "systemd takes no unit of the name {name:?}: up to {NAME_LEN} letters, digits and : - _ . \\"
        ),
    ))
}

/// Dashes nest slices: `a-b.slice` is the cgroup `a.slice/a-b.slice`; `-.slice` is the root (systemd.slice(5)).
fn slice_path(slice: &str) -> Result<String> {
    let bad = || {
        Error::config(
            AT,
            format!("expected a slice such as system.slice or a-b.slice, not {slice:?}"),
        )
    };
    let stem = slice.strip_suffix(".slice").ok_or_else(bad)?;
    if stem == "-" {
        return Ok(String::new());
    }
    if stem.split('-').any(str::is_empty) {
        return Err(bad());
    }
    let mut out = String::new();
    let ends = stem.match_indices('-').map(|(at, _)| at);
    for end in ends.chain(std::iter::once(stem.len())) {
        if !out.is_empty() {
            out.push('/');
        }
        out.push_str(&stem[..end]);
        out.push_str(".slice");
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str, user: bool) -> Result<Unit> {
        unit("id", (path != "-").then(|| Path::new(path)), user)
    }

    #[test]
    fn paths_are_units() {
        for (path, user, slice, place) in [
            ("-", false, "system.slice", "system.slice/gpucell-id.scope"),
            ("", false, "system.slice", "system.slice/gpucell-id.scope"),
            ("-", true, "user.slice", "user.slice/gpucell-id.scope"),
            (
                "system.slice:docker:0123",
                false,
                "system.slice",
                "system.slice/docker-0123.scope",
            ),
            (":p:n", true, "user.slice", "user.slice/p-n.scope"),
            // As runc: an empty prefix leaves its dash.
            (
                "machine.slice::n",
                false,
                "machine.slice",
                "machine.slice/-n.scope",
            ),
            (
                "kubepods-besteffort-pod1_2.slice:crio:n",
                false,
                "kubepods-besteffort-pod1_2.slice",
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/crio-n.scope",
            ),
            ("-.slice:p:n", false, "-.slice", "p-n.scope"),
        ] {
            let unit = at(path, user).unwrap();
            assert_eq!(
                (unit.slice.as_str(), unit.path.as_str()),
                (slice, place),
                "{path}"
            );
            assert!(unit.path.ends_with(&unit.name));
        }
    }

    #[test]
    fn other_paths_are_refused() {
        let long = format!("system.slice:p:{}", "x".repeat(NAME_LEN));
        for bad in [
            "/a/b",
            "a",
            "a.slice:b",
            "a.slice:b:",
            "a.slice:b:c:d",
            "system:p:n",
            "a--b.slice:p:n",
            "-a.slice:p:n",
            "a-.slice:p:n",
            ".slice:p:n",
            "../x.slice:p:n",
            "system.slice:p:a/b",
            "system.slice:p:a b",
            "system.slice:p:a@b",
            "system.slice:p:pod.slice",
            &long,
        ] {
            let e = at(bad, false).unwrap_err().to_string();
            assert!(e.contains("linux.cgroupsPath"), "{bad}: {e}");
        }
        assert!(unit("a+b", None, false).is_err());
    }
}
