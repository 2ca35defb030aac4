//! The parent's side of hooks, and the state text they read.

use super::store::Saved;
use crate::plan::HookPlan;
use crate::process::hook::{self, Outcome, Ready};
use crate::spec::lower;
use crate::sys::clone::Exit;
use crate::{Error, Result};
use oci_spec::runtime::Hook;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: &'a str,
}

#[derive(Serialize)]
struct Tail<'a> {
    bundle: &'a Path,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

/// The state as JSON in two pieces, with the pid to be written between them.
pub fn state_text(saved: &Saved, status: &str) -> Result<(Vec<u8>, Vec<u8>)> {
    let encode = |e| Error::step("encode", "state", io::Error::other(e));
    let mut head = serde_json::to_vec(&Head {
        oci_version: &saved.oci_version,
        id: &saved.id,
        status,
    })
    .map_err(encode)?;
    head.pop();
    head.extend_from_slice(b",\"pid\":");
    let mut tail = serde_json::to_vec(&Tail {
        bundle: &saved.bundle,
        annotations: &saved.annotations,
    })
    .map_err(encode)?;
    if let Some(first) = tail.first_mut() {
        *first = b',';
    }
    Ok((head, tail))
}

/// Runs hooks in the runtime's own namespaces, in order; the first failure ends it.
pub fn run(plans: &[HookPlan], saved: &Saved, status: &str) -> Result<()> {
    if plans.is_empty() {
        return Ok(());
    }
    let (head, tail) = state_text(saved, status)?;
    // A stopped cell has no process: its number may be somebody else's by now.
    let pid = if status == "stopped" { 0 } else { saved.pid }.to_string();
    for plan in plans {
        let what = format!("{} {}", plan.at, plan.path.to_string_lossy());
        let outcome = hook::run(&Ready::new(plan), &[&head, pid.as_bytes(), &tail])
            .map_err(|e| Error::step("run hook", what.clone(), e))?;
        let why = match outcome {
            Outcome::Ended(Exit::Code(0)) => continue,
            Outcome::Ended(Exit::Code(c)) => format!("exit status {c}"),
            Outcome::Ended(Exit::Signal(s)) => format!("killed by signal {s}"),
            Outcome::NoExec(e) => return Err(Error::step("run hook", what, e)),
            Outcome::TimedOut => "killed: it ran into its timeout".to_owned(),
        };
        return Err(Error::msg(format!("hook {what}: {why}")));
    }
    Ok(())
}

/// Lowers the hooks of one kind.
pub fn lowered(kind: &str, list: &Option<Vec<Hook>>) -> Result<Vec<HookPlan>> {
    list.iter()
        .flatten()
        .enumerate()
        .map(|(i, h)| lower::hook(&format!("hooks.{kind}[{i}]"), h))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_one_json_object() {
        let saved = Saved {
            oci_version: "1.3.0".into(),
            id: "a\"b".into(),
            pid: 0,
            start_time: 0,
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: String::new(),
            annotations: BTreeMap::from([("k".into(), "v".into())]),
            owner: 0,
            cgroup: Default::default(),
            driver: Default::default(),
            own_pid_ns: true,
            remove: Vec::new(),
            resctrl: Vec::new(),
            paused_created: false,
            no_new_keyring: false,
        };
        let (head, tail) = state_text(&saved, "creating").unwrap();
        let whole = [&head[..], b"42", &tail[..]].concat();
        let got: serde_json::Value = serde_json::from_slice(&whole).unwrap();
        let want = serde_json::json!({
            "ociVersion": "1.3.0", "id": "a\"b", "status": "creating", "pid": 42,
            "bundle": "/b", "annotations": {"k": "v"}
        });
        assert_eq!(got, want);
    }
}
