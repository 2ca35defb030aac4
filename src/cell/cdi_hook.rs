//! NVIDIA's hook program, for other runtimes: the work of one hook on the root of a cell that is being made.
//!
//! Under gpucell itself such a hook is never executed. Others run it as a createContainer hook (runtime-spec,
//! `config.md`, "POSIX-platform Hooks"): in the cell's mount namespace, its mounts made, before
//! pivot_root(2), the state of the cell on standard input. It reads the cell's configuration and changes
//! the root by the same steps as the engine.

use super::fault;
use crate::nvidia::config::Config;
use crate::nvidia::hook::Work;
use crate::nvidia::work;
use crate::spec::load;
use crate::sys::{fd, misc};
use crate::{Error, Result, rootfs};
use oci_spec::runtime::{HookBuilder, Spec};
use serde::Deserialize;
use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The largest state read; one has a few hundred bytes and the annotations.
const STATE_MAX: u64 = 1 << 20;

/// Of the state (runtime-spec, `runtime.md`, "State"). Runtimes before 1.0 say `bundlePath`.
#[derive(Deserialize)]
struct State {
    #[serde(alias = "bundlePath")]
    bundle: PathBuf,
}

/// Is a program of this name called as NVIDIA's hook?
pub fn is_name(program: &Path) -> bool {
    let name = program.file_name().and_then(|n| n.to_str());
    matches!(
        name,
        Some("nvidia-cdi-hook" | "nvidia-ctk-hook" | "nvidia-ctk")
    )
}

/// Does the work that the arguments say (the first is the program's name) on the cell whose state is read.
///
/// # Errors
/// As [`Work::recognise`]; work that isn't known; the state or the configuration can't be read; a step in
/// the root failed.
pub fn run(args: Vec<String>, state: impl Read) -> Result<()> {
    let work = known(args)?;
    let bundle = bundle(state)?;
    let spec = load::load(&bundle)?.spec;
    let works = with_context(work, &spec)?;
    let root = spec
        .root()
        .as_ref()
        .ok_or_else(|| Error::config("root", "is missing"))?;
    let path = bundle.join(root.path());
    let fail = |e: io::Error| Error::step("open", path.display().to_string(), e);
    let c_path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::config("root.path", "contains a NUL byte"))?;
    let held = fd::open_host(&c_path, libc::O_PATH | libc::O_DIRECTORY)
        .map_err(|e| fail(io::Error::from(e)))?;
    let config = Config::load(None)?;
    let plan = work::lower(
        &works,
        &work::Cell {
            root: held.as_fd(),
            spec: &spec,
            bundle: &bundle,
            proc: &config.proc_root,
        },
    )?;
    // The modes of what is made are meant as they stand.
    misc::umask(0);
    rootfs::inject(held.as_fd(), &plan).map_err(|fault| {
        let (step, object) = fault::in_root(plan.steps.get(fault.index as usize));
        Error::step(step, object, io::Error::from_raw_os_error(fault.errno))
    })
}

fn known(args: Vec<String>) -> Result<Work> {
    let program = args.first().cloned().unwrap_or_default();
    let words = args[1.min(args.len())..].join(" ");
    let hook = HookBuilder::default()
        .path(&program)
        .args(args)
        .build()
        .map_err(|e| Error::msg(format!("{program}: {e}")))?;
    Work::recognise(&hook)?.ok_or_else(|| {
        Error::msg(format!(
            "{program} {words}: not among what gpucell does under this name"
        ))
    })
}

/// The cache of libraries is of one piece: what is in it, and in which order, depends on the links and the
/// compatibility folder of the hooks before. Those did their work already, and doing it again changes
/// nothing.
fn with_context(work: Work, spec: &Spec) -> Result<Vec<Work>> {
    let of_cache = |w: &Work| matches!(w, Work::LdCache(_) | Work::CudaCompat { .. });
    let mut works = Vec::new();
    if of_cache(&work) {
        let hooks = spec.hooks().as_ref();
        for hook in hooks
            .and_then(|h| h.create_container().as_ref())
            .into_iter()
            .flatten()
        {
            match Work::recognise(hook)? {
                Some(one) if one == work => break,
                Some(one) if of_cache(&one) || matches!(one, Work::Symlinks(_)) => works.push(one),
                _ => {}
            }
        }
    }
    works.push(work);
    Ok(works)
}

fn bundle(state: impl Read) -> Result<PathBuf> {
    let mut text = Vec::new();
    state
        .take(STATE_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|e| Error::step("read", "the cell's state on standard input", e))?;
    let bad = |why: String| Error::msg(format!("the cell's state on standard input: {why}"));
    if text.len() as u64 > STATE_MAX {
        return Err(bad(format!(
            "more than the {} MiB that are read",
            STATE_MAX >> 20
        )));
    }
    let state: State = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    if !state.bundle.is_absolute() {
        return Err(bad(format!(
            "bundle: {:?} is not an absolute path",
            state.bundle
        )));
    }
    Ok(state.bundle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn called_by_name() {
        let rows = [
            ("/usr/bin/nvidia-cdi-hook", true),
            ("nvidia-ctk", true),
            ("nvidia-ctk-hook", true),
            ("/usr/bin/gpucell", false),
            ("/nvidia-ctk/gpucell", false),
            ("", false),
        ];
        for (name, yes) in rows {
            assert_eq!(is_name(Path::new(name)), yes, "{name}");
        }
    }

    #[test]
    fn work_that_is_not_known_is_an_error() {
        let rows = [
            ("nvidia-cdi-hook", "not among"),
            ("nvidia-cdi-hook dance", "dance: not among"),
            ("nvidia-ctk cdi generate", "not among"),
            ("nvidia-cdi-hook create-symlinks --link x", "TARGET::LINK"),
            // Another cell's state than the one on standard input.
            (
                "nvidia-cdi-hook chmod --mode 755 --container-spec /x",
                "not among",
            ),
        ];
        for (line, why) in rows {
            let error = known(words(line)).unwrap_err().to_string();
            assert!(error.contains(why), "{line}: {error}");
        }
        let good = words("/usr/bin/nvidia-ctk hook update-ldcache --folder /usr/lib64");
        assert_eq!(
            known(good).unwrap(),
            Work::LdCache(vec!["/usr/lib64".into()])
        );
    }

    #[test]
    fn the_cache_knows_the_hooks_before_it() {
        let hook = |line: &str| {
            let args = serde_json::to_string(&words(line)).unwrap();
            format!(r#"{{"path":"/usr/bin/nvidia-cdi-hook","args":{args}}}"#)
        };
        let lines = [
            "h create-symlinks --link a::/b",
            "h disable-device-node-modification",
            "h enable-cuda-compat --host-driver-version=550.1",
            "h update-ldcache --folder /l",
            "h create-symlinks --link c::/d",
        ];
        let hooks = lines.map(hook).join(",");
        let text = format!(r#"{{"ociVersion":"1.2.0","hooks":{{"createContainer":[{hooks}]}}}}"#);
        let spec: Spec = serde_json::from_str(&text).unwrap();
        let link = Work::Symlinks(vec![("a".into(), "/b".into())]);
        let compat = Work::CudaCompat {
            host_driver: "550.1".into(),
        };
        let cache = Work::LdCache(vec!["/l".into()]);
        let alone = with_context(link.clone(), &spec).unwrap();
        assert_eq!(alone, std::slice::from_ref(&link));
        assert_eq!(
            with_context(cache.clone(), &spec).unwrap(),
            [link, compat, cache]
        );
    }

    #[test]
    fn the_bundle_is_read_from_the_state() {
        let rows = [
            (r#"{"ociVersion":"1.2.0","bundle":"/b"}"#, Ok("/b")),
            (r#"{"bundlePath":"/b"}"#, Ok("/b")),
            (r#"{"bundle":"b"}"#, Err("not an absolute path")),
            (r#"{}"#, Err("missing field `bundle`")),
            ("", Err("EOF")),
        ];
        for (text, want) in rows {
            match (bundle(text.as_bytes()), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, Path::new(want)),
                (Err(e), Err(want)) => assert!(e.to_string().contains(want), "{text}: {e}"),
                (got, want) => panic!("{text}: {got:?}, not {want:?}"),
            }
        }
        let long = vec![b' '; STATE_MAX as usize + 1];
        assert!(bundle(&long[..]).unwrap_err().to_string().contains("MiB"));
    }
}
