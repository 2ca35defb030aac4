//! `linux.seccomp`: consistency (config-linux.md, "Seccomp"). The names and the program itself
//! are [`crate::process::seccomp`]'s.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction as Action};

use super::{absolute, text};
use crate::{Error, Result};

/// seccomp_data has six arguments (include/uapi/linux/seccomp.h).
const ARGS: usize = 6;
/// include/linux/err.h: the kernel cuts a returned errno to MAX_ERRNO.
const MAX_ERRNO: u32 = 4095;
/// The lower half of a filter's return value: SECCOMP_RET_DATA.
const MAX_DATA: u32 = 0xffff;

const AT: &str = "linux.seccomp";

pub(super) fn check(s: &LinuxSeccomp) -> Result<()> {
    errno(
        &format!("{AT}.defaultErrnoRet"),
        s.default_action(),
        s.default_errno_ret(),
    )?;
    if s.default_action() == Action::ScmpActNotify {
        return Err(Error::config(
            "linux.seccomp.defaultAction",
            "SCMP_ACT_NOTIFY can't be the default: the agent could not be reached before it answers",
        ));
    }
    let mut notify = None;
    for (i, rule) in s.syscalls().iter().flatten().enumerate() {
        let at = |member: &str| format!("{AT}.syscalls[{i}].{member}");
        if rule.names().is_empty() {
            return Err(Error::config(at("names"), "expected at least one name"));
        }
        for (j, name) in rule.names().iter().enumerate() {
            if name.is_empty() {
                return Err(Error::config(
                    at(&format!("names[{j}]")),
                    "is the empty string",
                ));
            }
        }
        errno(&at("errnoRet"), rule.action(), rule.errno_ret())?;
        for (j, arg) in rule.args().iter().flatten().enumerate() {
            if arg.index() >= ARGS {
                return Err(Error::config(
                    at(&format!("args[{j}].index")),
                    format!("expected 0 to {}, found {}", ARGS - 1, arg.index()),
                ));
            }
        }
        if rule.action() == Action::ScmpActNotify {
            notify.get_or_insert(i);
            // The filter's descriptor is handed on by write(2) under the filter itself.
            if rule.names().iter().any(|n| n == "write") {
                return Err(Error::config(
                    at("names"),
                    "write can't be SCMP_ACT_NOTIFY: nobody could be told of the filter",
                ));
            }
        }
    }

    let listener = s
        .listener_path()
        .as_deref()
        .filter(|p| !p.as_os_str().is_empty());
    match listener {
        Some(path) => absolute("linux.seccomp.listenerPath", path)?,
        None => {
            if let Some(i) = notify {
                return Err(Error::config(
                    "linux.seccomp.listenerPath",
                    format!("is required: syscalls[{i}] has the action SCMP_ACT_NOTIFY"),
                ));
            }
        }
    }
    if let Some(metadata) = s.listener_metadata().as_deref().filter(|m| !m.is_empty()) {
        text("linux.seccomp.listenerMetadata", metadata)?;
        // "This field MUST NOT be set if listenerPath is not set."
        if listener.is_none() {
            return Err(Error::config(
                "linux.seccomp.listenerMetadata",
                "can't be given without listenerPath",
            ));
        }
    }
    Ok(())
}

/// "When the action doesn't support an errno, the runtime MUST print and error and fail."
fn errno(at: &str, action: Action, value: Option<u32>) -> Result<()> {
    let Some(value) = value else {
        return Ok(());
    };
    let max = match action {
        Action::ScmpActErrno => MAX_ERRNO,
        Action::ScmpActTrace => MAX_DATA,
        other => {
            return Err(Error::config(
                at.to_owned(),
                format!("the action {other} has no errno"),
            ));
        }
    };
    if value > max {
        return Err(Error::config(
            at.to_owned(),
            format!("expected 0 to {max}, found {value}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{accepted, refused, set};
    use serde_json::{Value, json};

    fn seccomp(extra: Value) -> Value {
        let mut s = json!({"defaultAction": "SCMP_ACT_ERRNO"});
        s.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        set("/linux/seccomp", s)
    }

    fn rule(r: Value) -> Value {
        seccomp(json!({ "syscalls": [r] }))
    }

    #[test]
    fn rules() {
        accepted(seccomp(json!({"defaultErrnoRet": 38})));
        accepted(rule(
            json!({"names": ["a"], "action": "SCMP_ACT_ALLOW", "args": null}),
        ));
        refused(
            rule(json!({"names": [], "action": "SCMP_ACT_ALLOW"})),
            &["syscalls[0].names"],
        );
        refused(
            rule(json!({"names": [""], "action": "SCMP_ACT_ALLOW"})),
            &["names[0]"],
        );
        refused(
            rule(json!({"names": ["a"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1})),
            &["syscalls[0].errnoRet", "SCMP_ACT_ALLOW"],
        );
        refused(
            rule(json!({"names": ["a"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096})),
            &["syscalls[0].errnoRet", "4095"],
        );
        refused(
            rule(json!({"names": ["a"], "action": "SCMP_ACT_KILL",
                        "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]})),
            &["args[0].index"],
        );
        refused(
            seccomp(json!({"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1})),
            &["defaultErrnoRet"],
        );
    }

    #[test]
    fn notify() {
        let n = |names: Value, more: Value| {
            let mut s = json!({"syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}]});
            s.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            seccomp(s)
        };
        accepted(n(
            json!(["mkdir"]),
            json!({"listenerPath": "/run/a.sock", "listenerMetadata": "x"}),
        ));
        refused(
            n(json!(["mkdir"]), json!({})),
            &["listenerPath", "required"],
        );
        refused(
            n(json!(["mkdir"]), json!({"listenerPath": "a.sock"})),
            &["absolute"],
        );
        refused(
            n(json!(["mkdir", "write"]), json!({"listenerPath": "/a"})),
            &["syscalls[0].names", "write"],
        );
        refused(
            seccomp(json!({"listenerMetadata": "x"})),
            &["listenerMetadata"],
        );
        refused(
            seccomp(json!({"defaultAction": "SCMP_ACT_NOTIFY"})),
            &["defaultAction"],
        );
    }
}
