//! `mounts` and what else is done to the cell's tree of mounts (config.md, "Mounts").

use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use super::namespaces::{Namespaces, check_mappings};
use super::{path, text, texts};
use crate::spec::lower::{Member, is_bind};
use crate::{Error, Result};

/// Options that make a mount without a file system type.
const WITHOUT_TYPE: [&str; 3] = ["bind", "rbind", "remount"];

pub(super) fn check(
    spec: &Spec,
    namespaces: &Namespaces,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    if !mounts.is_empty() {
        namespaces.require("mounts", LinuxNamespaceType::Mount)?;
    }
    if spec.root().as_ref().and_then(|r| r.readonly()) == Some(true) {
        namespaces.require("root.readonly", LinuxNamespaceType::Mount)?;
    }
    for (i, mount) in mounts.iter().enumerate() {
        one(i, mount, namespaces, warnings)?;
    }
    Ok(())
}

fn one(
    index: usize,
    mount: &Mount,
    namespaces: &Namespaces,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let member = |name| Member(index, name);
    path(member("destination"), mount.destination())?;
    if !mount.destination().has_root() {
        // config.md says MUST be absolute; runc takes it as relative to / with a warning.
        warnings.push(format!(
            "mounts[{index}].destination: {:?} is relative, which is deprecated: taken as relative to /",
            mount.destination().display().to_string()
        ));
    }
    let kind = mount.typ().as_deref().unwrap_or_default();
    text(member("type"), kind)?;
    let source = mount.source().as_deref();
    if let Some(source) = source.filter(|s| !s.as_os_str().is_empty()) {
        path(member("source"), source)?;
    }
    let options = mount.options().as_deref().unwrap_or_default();
    texts(member("options"), Some(options))?;

    let has = |wanted: &str| options.iter().any(|o| o == wanted);
    let bind = is_bind(mount);
    if bind && source.is_none_or(|s| s.as_os_str().is_empty()) {
        return Err(Error::config(
            member("source").to_string(),
            "is required for a bind mount",
        ));
    }
    if kind.is_empty() && !WITHOUT_TYPE.iter().any(|o| has(o)) {
        return Err(Error::config(
            member("type").to_string(),
            "is required unless the options have bind or rbind",
        ));
    }

    // config.md, "POSIX-platform Mounts": the two go together.
    let uids = mount.uid_mappings().as_deref().unwrap_or_default();
    let gids = mount.gid_mappings().as_deref().unwrap_or_default();
    if uids.is_empty() != gids.is_empty() {
        let missing = if uids.is_empty() {
            "uidMappings"
        } else {
            "gidMappings"
        };
        return Err(Error::config(
            member(missing).to_string(),
            "uidMappings and gidMappings are given together or not at all",
        ));
    }
    check_mappings(member("uidMappings"), uids)?;
    check_mappings(member("gidMappings"), gids)?;
    if !uids.is_empty() && !bind {
        return Err(Error::config(
            member("uidMappings").to_string(),
            "an id-mapped mount must be a bind mount",
        ));
    }
    // "If there are no uidMappings and gidMappings specified and the container isn't using user
    // namespaces, an error MUST be returned."
    if (has("idmap") || has("ridmap"))
        && uids.is_empty()
        && !namespaces.has(LinuxNamespaceType::User)
    {
        return Err(Error::config(
            member("options").to_string(),
            "idmap needs uidMappings and gidMappings, or a user namespace",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{accepted, base, refused, set};
    use serde_json::{Value, json};

    fn mount(m: Value) -> Value {
        set(
            "/mounts",
            json!([{"destination": "/proc", "type": "proc"}, m]),
        )
    }

    #[test]
    fn members() {
        accepted(mount(
            json!({"destination": "/x", "source": "a", "options": ["rbind", "ro"]}),
        ));
        refused(
            mount(json!({"destination": "", "type": "tmpfs"})),
            &["mounts[1].destination"],
        );
        refused(
            mount(json!({"destination": "/x"})),
            &["mounts[1].type", "required"],
        );
        refused(
            mount(json!({"destination": "/x", "type": "bind"})),
            &["mounts[1].source", "required"],
        );
        refused(
            mount(json!({"destination": "/x\0", "type": "tmpfs"})),
            &["mounts[1].destination", "NUL"],
        );
        refused(
            mount(json!({"destination": "/x", "type": "tmpfs", "options": ["ro", "a\0"]})),
            &["mounts[1].options[1]"],
        );
        let w = accepted(mount(json!({"destination": "x/y", "type": "tmpfs"})));
        assert!(w[0].contains("deprecated"));
    }

    #[test]
    fn id_mapped_mounts() {
        let map = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        let with = |extra: Value| {
            let mut m = json!({"destination": "/x", "source": "/x", "options": ["bind"]});
            m.as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            mount(m)
        };
        accepted(with(json!({"uidMappings": map, "gidMappings": map})));
        refused(
            with(json!({"uidMappings": map})),
            &["mounts[1].gidMappings", "together"],
        );
        refused(
            with(json!({"options": [], "type": "tmpfs", "uidMappings": map, "gidMappings": map})),
            &["bind mount"],
        );
        refused(
            with(json!({"options": ["bind", "idmap"]})),
            &["mounts[1].options", "idmap"],
        );
    }

    #[test]
    fn without_a_mount_namespace_the_host_is_not_mounted_upon() {
        let mut j = base();
        j["linux"]["namespaces"] = json!([{"type": "pid"}]);
        accepted(j.clone());
        j["root"]["readonly"] = json!(true);
        refused(j.clone(), &["root.readonly", "mount namespace"]);
        j["root"]["readonly"] = json!(false);
        j["mounts"] = json!([{"destination": "/proc", "type": "proc"}]);
        refused(j, &["mounts: needs a mount namespace"]);
    }
}
