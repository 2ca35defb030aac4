//! Docker: `runtimes` and `default-runtime` in daemon.json (dockerd(8), "Daemon configuration file"), and a
//! link named nvidia-container-runtime-hook.
//!
//! dockerd offers `--gpus` if it finds a program of that name in its PATH, and then writes it into
//! config.json as a hook. gpucell does that hook's work itself and never executes it; for containers of
//! another runtime the link makes it do the same work when called.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::ser::PrettyFormatter;
use serde_json::{Map, Value, json};

use super::files::{self, Change};
use super::{Flags, NAME, Place, Plan};
use crate::{Error, Result};

const HOOK: &str = "nvidia-container-runtime-hook";

/// systemd's PATH for services (systemd.exec(5)), in which dockerd looks. The link goes to the first one
/// that belongs to the administrator and not to packages.
const PATH: [&str; 4] = ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin"];
const LINK_FOLDER: &str = "usr/local/bin";

pub(super) fn plan(flags: Flags, place: &Place) -> Result<Plan> {
    let mut plan = Plan::default();
    link(flags, place, &mut plan);
    let file = place.file("etc/docker/daemon.json", "docker/daemon.json");
    let old = files::read(&file)?;
    let new = edit(old.as_deref(), flags, &place.program)
        .map_err(|why| Error::msg(format!("{}: {why}", file.display())))?;
    plan.changes.extend(Change::file(file, old, new));
    plan.next.push(place.systemctl("restart docker"));
    plan.next.push(match (flags.remove, flags.default) {
        (true, _) => {
            "docker rm the containers made with gpucell: no other runtime knows them".into()
        }
        (_, true) => "docker run --rm hello-world".into(),
        _ => format!("docker run --rm --runtime {NAME} hello-world"),
    });
    Ok(plan)
}

fn link(flags: Flags, place: &Place, plan: &mut Plan) {
    if place.user.is_some() {
        if !flags.remove {
            plan.notes.push(format!(
                "--gpus of a rootless dockerd needs a link {HOOK} to {} in its PATH, if it knows no CDI",
                place.program
            ));
        }
        return;
    }
    let ours = |path: &Path| {
        path.read_link()
            .is_ok_and(|to| to == Path::new(&place.program))
    };
    let path = place.root.join(LINK_FOLDER).join(HOOK);
    if flags.remove {
        if ours(&path) {
            plan.changes.push(Change::Unlink { path });
        }
        return;
    }
    let there = PATH
        .iter()
        .map(|dir| place.root.join(dir).join(HOOK))
        .find(|p| p.symlink_metadata().is_ok());
    match there {
        None => plan.changes.push(Change::Link {
            path,
            target: PathBuf::from(&place.program),
        }),
        Some(p) if !ours(&p) => plan.notes.push(format!(
            "{} is there already and stays: gpucell does its work for its own cells",
            p.display()
        )),
        Some(_) => {}
    }
}

/// The new text; `None`: nothing is left to be in a file.
fn edit(old: Option<&str>, flags: Flags, program: &str) -> Result<Option<String>, String> {
    let blank = old.is_none_or(|t| t.trim().is_empty());
    let mut top: Map<String, Value> = match old {
        Some(text) if !blank => serde_json::from_str(text).map_err(|e| e.to_string())?,
        _ => Map::new(),
    };
    let before = top.clone();
    if flags.remove {
        if top.get("default-runtime").and_then(Value::as_str) == Some(NAME) {
            top.shift_remove("default-runtime");
        }
        if let Some(runtimes) = top.get_mut("runtimes") {
            let runtimes = object(runtimes, "runtimes")?;
            if runtimes.shift_remove(NAME).is_some() && runtimes.is_empty() {
                top.shift_remove("runtimes");
            }
        }
    } else {
        if flags.default {
            top.insert("default-runtime".into(), NAME.into());
        }
        let runtimes = object(top.entry("runtimes").or_insert(json!({})), "runtimes")?;
        let entry = object(
            runtimes.entry(NAME).or_insert(json!({})),
            "runtimes.gpucell",
        )?;
        entry.insert("path".into(), program.into());
        // dockerd refuses an entry that has a path and these.
        entry.shift_remove("runtimeType");
        entry.shift_remove("options");
    }
    if top == before && !(blank && flags.remove) {
        return Ok(old.map(str::to_owned));
    }
    if top.is_empty() {
        return Ok(None);
    }
    let indent = old.map_or("    ", indent);
    let mut text = Vec::new();
    let format = PrettyFormatter::with_indent(indent.as_bytes());
    let mut writer = serde_json::Serializer::with_formatter(&mut text, format);
    top.serialize(&mut writer).map_err(|e| e.to_string())?;
    text.push(b'\n');
    String::from_utf8(text).map(Some).map_err(|e| e.to_string())
}

fn object<'a>(value: &'a mut Value, name: &str) -> Result<&'a mut Map<String, Value>, String> {
    value
        .as_object_mut()
        .ok_or_else(|| format!("{name} is not an object"))
}

/// The white space before the first member, as the file has it.
fn indent(text: &str) -> &str {
    text.lines()
        .find_map(|line| {
            let rest = line.trim_start_matches([' ', '\t']);
            (rest.len() < line.len() && rest.starts_with('"'))
                .then(|| &line[..line.len() - rest.len()])
        })
        .unwrap_or("    ")
}
