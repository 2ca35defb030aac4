//! containerd: a runtime of the CRI plugin in config.toml, versions 2 and 3 of the file
//! (containerd-config.toml(5); docs/cri/config.md of containerd).
//!
//! containerd keeps its own shim, io.containerd.runc.v2, which calls gpucell in runc's place.

use super::files::{self, Change};
use super::toml::File;
use super::{Flags, NAME, Place, Plan};
use crate::{Error, Result};

/// The name of the CRI plugin's configuration in each version of the file. containerd 2 reads both.
const PLUGINS: [(i64, &str); 2] = [
    (2, "io.containerd.grpc.v1.cri"),
    (3, "io.containerd.cri.v1.runtime"),
];

pub(super) fn plan(flags: Flags, place: &Place) -> Result<Plan> {
    place.system_only("containerd")?;
    let path = place.root.join("etc/containerd/config.toml");
    let old = files::read(&path)?;
    let mut plan = Plan::default();
    let new = edit(old.as_deref(), flags, &place.program, &mut plan)
        .map_err(|why| Error::msg(format!("{}: {why}", path.display())))?;
    plan.changes.extend(Change::file(path, old, new));
    plan.next.push("systemctl restart containerd".into());
    if !flags.remove {
        plan.next.push(format!(
            "kubectl apply a RuntimeClass with `handler: {NAME}` (docs/engines.md), or: crictl runp --runtime {NAME} pod.json"
        ));
    }
    Ok(plan)
}

fn edit(
    old: Option<&str>,
    flags: Flags,
    program: &str,
    plan: &mut Plan,
) -> Result<Option<String>, String> {
    if flags.remove && old.is_none() {
        return Ok(None);
    }
    let mut file = File::parse(old, "containerd")?;
    if file.is_blank() {
        if flags.remove {
            return Ok(old.map(str::to_owned));
        }
        file.set(&["version"], 2)?;
    }
    let version = match file.get(&["version"]) {
        None => 1,
        Some(v) => v.as_integer().ok_or("version is not a number")?,
    };
    let plugin = PLUGINS.iter().find(|(v, _)| *v == version).ok_or_else(|| {
        format!(
            "is of version {version}, and 2 and 3 are known; `containerd config migrate` prints a newer one"
        )
    })?;
    let cri = ["plugins", plugin.1, "containerd"];
    let at = |rest: &[&'static str]| [&cri[..], rest].concat();
    let (default, ours) = (at(&["default_runtime_name"]), at(&["runtimes", NAME]));
    let with = |names: &[&'static str]| [&ours[..], names].concat();
    if flags.remove {
        if file.get(&default).and_then(|v| v.as_str()) == Some(NAME) {
            file.remove(&default);
        }
        if file.get(&ours).is_some() {
            file.remove(&ours);
        }
    } else {
        // As runc's entry has it: SystemdCgroup must be what the kubelet is set to, and the rest is the
        // administrator's wish for containers.
        file.copy(&at(&["runtimes", "runc"]), &ours)?;
        file.set(&with(&["runtime_type"]), "io.containerd.runc.v2")?;
        file.set(&with(&["options", "BinaryName"]), program)?;
        let systemd = at(&["runtimes", "runc", "options", "SystemdCgroup"]);
        if let Some(on) = file.get(&systemd).and_then(|v| v.as_bool()) {
            file.set(&with(&["options", "SystemdCgroup"]), on)?;
        }
        if flags.default {
            file.set(&default, NAME)?;
        }
        let off = file.get(&["disabled_plugins"]).and_then(|v| v.as_array());
        if off.is_some_and(|list| list.iter().any(|v| v.as_str() == Some(plugin.1))) {
            plan.notes.push(
                "disabled_plugins switches the CRI plugin off in this file; Kubernetes and crictl need it".into(),
            );
        }
    }
    file.text()
}
