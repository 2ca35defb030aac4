//! The binary under NVIDIA's names, for runtimes that execute hooks (runc, crun):
//! `nvidia-container-runtime-hook` and `nvidia-container-toolkit` (Docker's and podman's legacy hook), and
//! `nvidia-cdi-hook` and `nvidia-ctk` (the hooks of CDI files).
//!
//! Owns their arguments, exit codes and messages. The legacy hook's are those of the NVIDIA Container
//! Toolkit (`cmd/nvidia-container-runtime-hook/main.go`), whose flags are Go's: one dash or two.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Hook;

use crate::cell::live::{Inside, Waiting};
use crate::cgroup;
use crate::nvidia::hook::Work;
use crate::nvidia::live::{self, Container, State, View};
use crate::sys::cred::host_root;
use crate::{Error, Result};

const USAGE: &str = "\
Usage: nvidia-container-runtime-hook [-debug] [-version] [-config FILE] COMMAND

Commands:
  prestart   give the container of the state on stdin the GPUs it asks for
  poststart  do nothing
  poststop   do nothing

Flags:
  -config FILE  gpucell's configuration file [default: /etc/gpucell/config.toml]
  -debug        say what is done
  -version      print the version and exit
";

/// Wrong usage, as Go's flag package has it.
const WRONG: i32 = 2;

/// Runs what the program's name stands for; `None` when that isn't one of NVIDIA's.
pub(super) fn by_name(args: &[OsString]) -> Option<i32> {
    let name = Path::new(args.first()?).file_name().and_then(OsStr::to_str);
    let done = match name? {
        "nvidia-container-runtime-hook" | "nvidia-container-toolkit" => match Flags::parse(args) {
            Ok(Parsed::Print(text)) => {
                print!("{text}");
                return Some(0);
            }
            Ok(Parsed::Nothing) => return Some(0),
            Ok(Parsed::Prestart(flags)) => flags.prestart(),
            Err(why) => {
                eprint!("{why}\n{USAGE}");
                return Some(WRONG);
            }
        },
        name @ ("nvidia-cdi-hook" | "nvidia-ctk-hook" | "nvidia-ctk") => cdi_hook(name, args),
        _ => return None,
    };
    Some(match done {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("gpucell: {e}");
            1
        }
    })
}

/// The flags of `prestart`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Flags {
    debug: bool,
    config: Option<PathBuf>,
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    Print(String),
    Nothing,
    Prestart(Flags),
}

impl Flags {
    fn parse(args: &[OsString]) -> Result<Parsed, String> {
        let mut flags = Flags::default();
        let mut version = false;
        let mut words = args.iter().skip(1);
        let command = loop {
            let Some(word) = words.next() else {
                break None;
            };
            let text = word.to_string_lossy();
            let Some(flag) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')) else {
                break Some(text);
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (flag, None),
            };
            let on = match value {
                None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Some(true),
                Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Some(false),
                _ => None,
            };
            let boolean = || on.ok_or_else(|| format!("invalid value for flag -{name}"));
            match name {
                "debug" => flags.debug = boolean()?,
                "version" => version = boolean()?,
                "config" => {
                    let given = value.map(OsString::from).or_else(|| words.next().cloned());
                    let file = given.filter(|file| !file.is_empty());
                    flags.config = Some(file.ok_or("flag -config needs a file")?.into());
                }
                "h" | "help" => return Ok(Parsed::Print(USAGE.to_owned())),
                _ => return Err(format!("flag provided but not defined: -{name}")),
            }
        };
        if version {
            return Ok(Parsed::Print(super::version()));
        }
        match command.as_deref() {
            Some("prestart") => Ok(Parsed::Prestart(flags)),
            Some("poststart" | "poststop") => Ok(Parsed::Nothing),
            Some(other) => Err(format!("unknown command {other:?}")),
            None => Err("a command is missing".to_owned()),
        }
    }

    fn prestart(&self) -> Result<()> {
        let state = State::read(std::io::stdin())?;
        let container = Container::load(&state.bundle)?;
        let pid = state.process()?;
        let waiting = Waiting::open(pid)?;
        let rootless = !host_root();
        let view = View {
            config: self.config.as_deref(),
            state: &super::default_root(),
            bind_devices: rootless || waiting.user_namespace(),
            rootless,
        };
        let Some(ready) = live::prestart(&container, &view)? else {
            self.say("the container asks for no GPU");
            return Ok(());
        };
        warn(&ready.warnings);
        let plan = &ready.plan;
        self.say(&format!(
            "process {pid}: {} mounts, {} nodes, {} changes in {}",
            plan.mounts.len(),
            plan.dev.nodes.len(),
            plan.in_root.steps.len(),
            plan.root.path.to_string_lossy()
        ));
        let any = !plan.mounts.is_empty() || !plan.dev.nodes.is_empty();
        if any || !plan.in_root.steps.is_empty() {
            waiting.carry_out(plan)?;
        }
        // A rootless runtime can load no device filter, so there is none to change.
        if !rootless {
            warn(&cgroup::allow_devices(pid, &ready.rules)?);
            self.say(&format!("{} device rules", ready.rules.len()));
        }
        Ok(())
    }

    fn say(&self, text: &str) {
        if self.debug {
            eprintln!("gpucell: {text}");
        }
    }
}

fn warn(list: &[String]) {
    for text in list {
        eprintln!("gpucell: warning: {text}");
    }
}

/// A createContainer hook of a CDI file, in a container that another runtime makes.
fn cdi_hook(name: &str, args: &[OsString]) -> Result<()> {
    let words: Vec<String> = args
        .iter()
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    let mut hook = Hook::default();
    hook.set_path(Path::new("/").join(name))
        .set_args(Some(words));
    let work = Work::recognise(&hook)?.ok_or_else(|| {
        Error::msg(format!(
            "gpucell as {name} knows the hooks create-symlinks, update-ldcache, enable-cuda-compat, \
             disable-device-node-modification, update-application-profile, show-gpus and chmod"
        ))
    })?;
    let state = State::read(std::io::stdin())?;
    let container = Container::load(&state.bundle)?;
    let mut plan = live::empty_plan(&container)?;
    let inside = Inside::open(state.pid, &plan)?;
    let image = inside.image()?;
    plan.in_root = live::cdi_hook(work, &container, image.as_fd())?;
    inside.carry_out(&plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Parsed, String> {
        let args: Vec<OsString> = ["x"].iter().chain(words).map(OsString::from).collect();
        Flags::parse(&args)
    }

    #[test]
    fn flags_are_gos() {
        let prestart = |debug, config: Option<&str>| {
            Parsed::Prestart(Flags {
                debug,
                config: config.map(PathBuf::from),
            })
        };
        let rows: [(&[&str], Parsed); 8] = [
            (&["prestart"], prestart(false, None)),
            (&["-debug", "prestart"], prestart(true, None)),
            (
                &["--debug=false", "--config=/a=b", "prestart"],
                prestart(false, Some("/a=b")),
            ),
            (
                &["-config", "prestart", "prestart", "more"],
                prestart(false, Some("prestart")),
            ),
            (&["poststart"], Parsed::Nothing),
            (&["poststop"], Parsed::Nothing),
            (&["-version"], Parsed::Print(crate::cli::version())),
            (&["-h"], Parsed::Print(USAGE.to_owned())),
        ];
        for (words, want) in rows {
            assert_eq!(parse(words), Ok(want), "{words:?}");
        }
        for words in [
            &[][..],
            &["create"],
            &["-debug"],
            &["-config"],
            &["-config="],
            &["-debug=maybe", "prestart"],
            &["-x", "prestart"],
            &["-", "prestart"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn other_names_are_not_nvidias() {
        for name in ["gpucell", "/usr/bin/gpucell", "nvidia-smi", ""] {
            assert_eq!(by_name(&[name.into()]), None, "{name}");
        }
        assert_eq!(by_name(&[]), None);
        assert_eq!(
            by_name(&["/usr/bin/nvidia-container-toolkit".into()]),
            Some(2)
        );
    }
}
