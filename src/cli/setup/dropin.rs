//! podman and CRI-O: both read a folder of further files, so that theirs stay as they are.
//! containers.conf(5) and crio.conf(5), crio.conf.d(5).

use std::path::PathBuf;

use toml_edit::{Array, Value};

use super::files::{self, Change};
use super::toml::File;
use super::{Flags, NAME, Place, Plan};
use crate::{Error, Result};

pub(super) fn podman(flags: Flags, place: &Place) -> Result<Plan> {
    let path = place.file(
        "etc/containers/containers.conf.d/50-gpucell.conf",
        "containers/containers.conf.d/50-gpucell.conf",
    );
    let list = Array::from_iter([place.program.as_str()]);
    let keys = [(vec!["engine", "runtimes", NAME], Value::from(list))];
    let mut plan = edit("podman", path, flags, &keys, &["engine", "runtime"])?;
    plan.next.push(match (flags.remove, flags.default) {
        (true, _) => {
            "podman rm the containers made with gpucell: no other runtime knows them".into()
        }
        (_, true) => "podman run --rm docker.io/library/hello-world".into(),
        _ => format!("podman --runtime {NAME} run --rm docker.io/library/hello-world"),
    });
    Ok(plan)
}

pub(super) fn crio(flags: Flags, place: &Place) -> Result<Plan> {
    place.system_only("crio")?;
    let path = place.root.join("etc/crio/crio.conf.d/50-gpucell.conf");
    let key = |name| vec!["crio", "runtime", "runtimes", NAME, name];
    let keys = [
        (key("runtime_path"), Value::from(place.program.as_str())),
        (key("runtime_type"), "oci".into()),
        // gpucell's own default, so that `gpucell list` shows them.
        (key("runtime_root"), "/run/gpucell".into()),
    ];
    let default = ["crio", "runtime", "default_runtime"];
    let mut plan = edit("crio", path, flags, &keys, &default)?;
    plan.next.push("systemctl restart crio".into());
    if !flags.remove {
        plan.next.push(format!(
            "kubectl apply a RuntimeClass with `handler: {NAME}` (docs/engines.md)"
        ));
    }
    Ok(plan)
}

/// Sets keys in a file that is ours, or removes them; `default` names the default runtime.
fn edit(
    engine: &str,
    path: PathBuf,
    flags: Flags,
    keys: &[(Vec<&str>, Value)],
    default: &[&str],
) -> Result<Plan> {
    let old = files::read(&path)?;
    let change = || {
        if flags.remove && old.is_none() {
            return Ok(None);
        }
        let mut file = File::parse(old.as_deref(), engine)?;
        for (key, value) in keys {
            match flags.remove {
                true => file.remove(key),
                false => file.set(key, value.clone())?,
            }
        }
        if flags.default {
            file.set(default, NAME)?;
        } else if flags.remove && file.get(default).and_then(|v| v.as_str()) == Some(NAME) {
            file.remove(default);
        }
        file.text()
    };
    let new = change().map_err(|why: String| Error::msg(format!("{}: {why}", path.display())))?;
    let mut plan = Plan::default();
    plan.changes.extend(Change::file(path, old, new));
    Ok(plan)
}
