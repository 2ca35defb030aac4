//! Image config → runtime configuration (image-spec, conversion.md), on top of Docker's defaults
//! ([`crate::spec::default`]).

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{Mount, Spec};

use super::media::Platform;
use super::unpack::dirs::clean;
use super::users;
use super::volumes::Volume;
use crate::spec::{default, user};
use crate::{Error, Result};

/// Annotations that say where a bundle came from.
pub const SOURCE: &str = "io.gpucell.image.source";
pub const DIGEST: &str = "io.gpucell.image.digest";
/// Mount targets, separated by commas, that the image declares as volumes.
pub const VOLUMES: &str = "io.gpucell.image.volumes";

/// The configuration of a cell of this image, and what people should know about it. `root` is the
/// unpacked tree, in which names of users are looked up.
pub fn to_spec(
    image: &ImageConfiguration,
    root: &OwnedFd,
    volumes: &[Volume],
) -> Result<(Spec, Vec<String>)> {
    let mut warnings = Vec::new();
    let mut spec = default::docker_like();
    let empty = oci_spec::image::Config::default();
    let config = image.config().as_ref().unwrap_or(&empty);

    let mut args = config.entrypoint().clone().unwrap_or_default();
    args.extend(config.cmd().clone().unwrap_or_default());
    if args.is_empty() {
        warnings.push("the image names no command: `sh` is set".to_string());
        args.push("sh".to_string());
    }
    let who = users::resolve(root, config.user().as_deref().unwrap_or_default())?;
    let cwd = working_dir(config.working_dir().as_deref())?;
    if let Some(process) = spec.process_mut() {
        process.set_args(Some(args));
        process.set_env(Some(environment(config.env().as_deref(), &who)));
        process.set_cwd(cwd);
        // As Docker: another user than root keeps none but the bounding set, as execve(2) leaves it.
        if who.uid != 0
            && let Some(mut caps) = process.capabilities().clone()
        {
            caps.set_effective(Some(HashSet::new()));
            caps.set_permitted(Some(HashSet::new()));
            process.set_capabilities(Some(caps));
        }
        let mut set = oci_spec::runtime::User::default();
        set.set_uid(who.uid);
        set.set_gid(who.gid);
        // The primary group is listed too: without it a process could drop it and slip past a
        // deny entry for the group (CVE-2022-36109).
        let mut groups = vec![who.gid];
        groups.extend(who.groups.iter().filter(|gid| **gid != who.gid));
        set.set_additional_gids(Some(groups));
        process.set_user(set);
    }
    if let Some(mounts) = spec.mounts_mut() {
        mounts.extend(volumes.iter().map(|volume| {
            let mut mount = Mount::default();
            mount.set_destination(PathBuf::from(&volume.target));
            mount.set_typ(Some("bind".to_string()));
            // Relative to the bundle (runtime-spec config.md, "Mounts"), so that it can be moved.
            mount.set_source(Some(volume.source.clone()));
            mount.set_options(Some(vec!["rbind".to_string(), "rprivate".to_string()]));
            mount
        }));
    }
    let mut annotations = annotations(image);
    if !volumes.is_empty() {
        let targets: Vec<&str> = volumes.iter().map(|v| v.target.as_str()).collect();
        annotations.insert(VOLUMES.to_string(), targets.join(","));
    }
    spec.set_annotations(Some(annotations));

    let (os, architecture) = (image.os().to_string(), image.architecture().to_string());
    let host = Platform::host();
    if os != host.os || architecture != host.architecture {
        warnings.push(format!(
            "the image is for {os}/{architecture}, this machine is {host}"
        ));
    }
    Ok((spec, warnings))
}

/// Folders that must be there: the working directory and the volumes, as clean paths.
pub fn folders(image: &ImageConfiguration) -> Result<Vec<Vec<u8>>> {
    let Some(config) = image.config() else {
        return Ok(Vec::new());
    };
    let cwd = working_dir(config.working_dir().as_deref())?;
    let mut paths = vec![clean(cwd.as_os_str().as_encoded_bytes())?];
    for volume in config.volumes().iter().flatten() {
        paths.push(clean(volume.as_bytes())?);
    }
    Ok(paths)
}

/// The image's variables, later ones winning, with PATH and HOME where it sets none.
fn environment(env: Option<&[String]>, user: &user::Resolved) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let key = |text: &str| text.split('=').next().unwrap_or_default().to_string();
    for variable in env.unwrap_or_default() {
        // Without `=`, Docker takes a variable for unset.
        if !variable.contains('=') || variable.starts_with('=') || variable.contains('\0') {
            continue;
        }
        let name = key(variable);
        match out.iter_mut().find(|v| key(v) == name) {
            Some(old) => variable.clone_into(old),
            None => out.push(variable.clone()),
        }
    }
    let has = |out: &[String], name: &str| out.iter().any(|v| v.starts_with(name));
    if !has(&out, "PATH=") {
        out.insert(0, default::DEFAULT_PATH.to_string());
    }
    if !has(&out, "HOME=") {
        out.push(format!("HOME={}", user.home.as_deref().unwrap_or("/")));
    }
    out
}

/// An absolute working directory without `.` and `..`, which stay below the root.
fn working_dir(text: Option<&str>) -> Result<PathBuf> {
    let mut parts: Vec<&str> = Vec::new();
    for part in text.unwrap_or_default().split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part if part.contains('\0') => {
                return Err(Error::msg("image config: WorkingDir has a NUL byte"));
            }
            part => parts.push(part),
        }
    }
    Ok(Path::new("/").join(parts.join("/")))
}

/// The conversion's annotations; the image's labels win over those derived from fields.
fn annotations(image: &ImageConfiguration) -> HashMap<String, String> {
    const PREFIX: &str = "org.opencontainers.image.";
    let mut out = HashMap::new();
    let mut put = |key: &str, value: Option<String>| {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            out.insert(format!("{PREFIX}{key}"), value);
        }
    };
    put("os", Some(image.os().to_string()));
    put("architecture", Some(image.architecture().to_string()));
    put("variant", image.variant().clone());
    put("os.version", image.os_version().clone());
    put(
        "os.features",
        image.os_features().as_ref().map(|f| f.join(",")),
    );
    put("author", image.author().clone());
    put("created", image.created().clone());
    if let Some(config) = image.config() {
        put("stopSignal", config.stop_signal().clone());
        let mut ports = config.exposed_ports().clone().unwrap_or_default();
        ports.sort();
        put("exposedPorts", Some(ports.join(",")));
        out.extend(config.labels().clone().unwrap_or_default());
    }
    out
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
