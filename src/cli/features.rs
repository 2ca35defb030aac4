//! `gpucell features`: what this build can do, for engines that ask before they use it
//! (runtime-spec, features.md).
//!
//! Every list comes from the table that the code itself looks things up in. It asks the host one thing,
//! which seccomp flags its kernel has: features.md wants that.

use clap::Args;
use serde_json::{Value, json};

use super::out;
use crate::nvidia::cdi::ANNOTATION_PREFIX;
use crate::process::seccomp::names::{ACTIONS, ARCHS, FLAGS, OPERATORS};
use crate::spec::check::HOOKS;
use crate::spec::lower::{MEMORY_FLAGS, MEMORY_MODES, NAMESPACES, known_options};
use crate::spec::{default::OCI_VERSION, load::OLDEST_VERSION};
use crate::{Result, sys};

/// Print what this build can do as JSON
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gpucell features | grep -A 2 idmap")]
pub struct Features {}

impl Features {
    /// Runs the command.
    pub(super) fn run(self) -> Result<i32> {
        out::print(&out::pretty(&features())?)?;
        Ok(0)
    }
}

/// The first members of a table.
fn first<A: Copy, B>(table: &[(A, B)]) -> Vec<A> {
    table.iter().map(|row| row.0).collect()
}

/// Annotations that change what is done: for engines that let users set some.
fn unsafe_annotations() -> Vec<&'static str> {
    vec![ANNOTATION_PREFIX, "org.systemd.property."]
}

fn features() -> Value {
    let mut caps: Vec<_> = caps::all().into_iter().collect();
    caps.sort_by_key(|c| c.index());
    let caps: Vec<String> = caps.iter().map(ToString::to_string).collect();
    let here: Vec<_> = FLAGS
        .iter()
        .filter(|(_, flag)| {
            // This one is only valid along with a listener.
            let with = match *flag == libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV as u32 {
                true => libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32,
                false => 0,
            };
            sys::misc::seccomp_flag(flag | with)
        })
        .map(|(name, _)| name)
        .collect();
    json!({
        "ociVersionMin": OLDEST_VERSION,
        "ociVersionMax": OCI_VERSION,
        "hooks": HOOKS,
        "mountOptions": known_options(),
        "linux": {
            "namespaces": first(&NAMESPACES),
            "capabilities": caps,
            "cgroup": {
                "v1": true,
                "v2": true,
                "systemd": true,
                "systemdUser": true,
                "rdma": true,
            },
            "seccomp": {
                "enabled": true,
                "actions": first(&ACTIONS),
                "operators": first(&OPERATORS),
                "archs": first(&ARCHS),
                "knownFlags": first(&FLAGS),
                "supportedFlags": here,
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {"modes": first(&MEMORY_MODES), "flags": first(&MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
        },
        "annotations": {
            "io.gpucell.version": env!("CARGO_PKG_VERSION"),
            "io.gpucell.commit": super::COMMIT,
        },
        "potentiallyUnsafeConfigAnnotations": unsafe_annotations(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The specification's own type reads it, and loses nothing it knows.
    #[test]
    fn the_specification_reads_it() {
        let ours = features();
        let read: oci_spec::runtime::Features = serde_json::from_value(ours.clone()).unwrap();
        let back = serde_json::to_value(&read).unwrap();
        for at in [
            "/ociVersionMin",
            "/hooks",
            "/mountOptions",
            "/linux/namespaces",
            "/linux/capabilities",
            "/linux/seccomp/actions",
            "/linux/seccomp/archs",
            "/linux/seccomp/operators",
            "/linux/mountExtensions/idmap/enabled",
        ] {
            assert_eq!(ours.pointer(at), back.pointer(at), "{at}");
            assert!(ours.pointer(at).is_some(), "{at}");
        }
    }
}
