//! Hooks → commands ready to execute.

use super::cstr;
use crate::nvidia::hook::Work;
use crate::plan::HookPlan;
use crate::{Error, Result};
use oci_spec::runtime::{Hook, Spec};
use std::os::unix::ffi::OsStrExt;

/// The hooks that take part in creation; poststart and poststop are read from the saved
/// configuration when their time comes.
#[derive(Default)]
pub(super) struct Hooks {
    /// The work of NVIDIA's hooks, in their order. They are in none of the lists: it is done without executing
    /// them.
    pub works: Vec<Work>,
    pub create_runtime: Vec<HookPlan>,
    pub create_container: Vec<HookPlan>,
    pub start_container: Vec<HookPlan>,
}

pub(super) fn hooks(spec: &Spec) -> Result<Hooks> {
    let Some(h) = spec.hooks() else {
        return Ok(Hooks::default());
    };
    #[allow(deprecated)]
    let prestart = h.prestart();
    let mut works = Vec::new();
    let mut create_runtime = list("prestart", prestart, &mut works)?;
    create_runtime.extend(list("createRuntime", h.create_runtime(), &mut works)?);
    Ok(Hooks {
        create_runtime,
        create_container: list("createContainer", h.create_container(), &mut works)?,
        start_container: list("startContainer", h.start_container(), &mut works)?,
        works,
    })
}

fn list(name: &str, hooks: &Option<Vec<Hook>>, works: &mut Vec<Work>) -> Result<Vec<HookPlan>> {
    let mut out = Vec::new();
    for (i, h) in hooks.iter().flatten().enumerate() {
        let at = format!("hooks.{name}[{i}]");
        // In a started cell the program would be the image's own file, whatever its name.
        let work = match name {
            "startContainer" => None,
            _ => recognise(&at, h)?,
        };
        match work {
            Some(work) => works.push(work),
            None => out.push(hook(&at, h)?),
        }
    }
    Ok(out)
}

/// The work of NVIDIA's hooks among those that run before the cell counts as created, in their order.
pub fn works(spec: &Spec) -> Result<Vec<Work>> {
    let Some(h) = spec.hooks() else {
        return Ok(Vec::new());
    };
    #[allow(deprecated)]
    let lists = [
        ("prestart", h.prestart()),
        ("createRuntime", h.create_runtime()),
        ("createContainer", h.create_container()),
    ];
    let mut out = Vec::new();
    for (name, list) in lists {
        for (i, h) in list.iter().flatten().enumerate() {
            out.extend(recognise(&format!("hooks.{name}[{i}]"), h)?);
        }
    }
    Ok(out)
}

fn recognise(at: &str, h: &Hook) -> Result<Option<Work>> {
    // A relative path is a mistake, and said to be one by [`hook`].
    if !h.path().is_absolute() {
        return Ok(None);
    }
    Work::recognise(h).map_err(|e| Error::config(at.to_owned(), e.to_string()))
}

/// One hook. `at` is its JSON path.
pub fn hook(at: &str, h: &Hook) -> Result<HookPlan> {
    if !h.path().is_absolute() {
        return Err(Error::config(format!("{at}.path"), "must be absolute"));
    }
    let path = cstr(format_args!("{at}.path"), h.path().as_os_str().as_bytes())?;
    let strings = |what: &str, list: &Option<Vec<String>>| {
        list.iter()
            .flatten()
            .map(|s| cstr(format_args!("{at}.{what}"), s.as_bytes()))
            .collect::<Result<Vec<_>>>()
    };
    let mut args = strings("args", h.args())?;
    if args.is_empty() {
        args.push(path.clone());
    }
    let timeout = match h.timeout() {
        None => None,
        Some(t) if t <= 0 => {
            return Err(Error::config(
                format!("{at}.timeout"),
                "must be greater than zero (seconds)",
            ));
        }
        Some(t) => Some(u32::try_from(t).unwrap_or(u32::MAX)),
    };
    Ok(HookPlan {
        at: at.to_owned(),
        path,
        args,
        env: strings("env", h.env())?,
        timeout,
    })
}
