//! NVIDIA's hooks in a container that another runtime makes: what they are to do there.
//!
//! Owns the reading of the state that a hook gets, and the way from the container's configuration to a
//! Plan of mounts, nodes and in-root work, and to device rules. All that can be refused is refused here.
//! It must not enter the container ([`crate::cell::live`] does), nor change its groups
//! ([`crate::cgroup::allow_devices`]).

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::Deserialize;

use super::config::Config;
use super::hook::Work;
use super::inject::{self, Injection, Wish};
use super::work;
use crate::cgroup::DeviceRule;
use crate::plan::{InRootPlan, Plan};
use crate::spec::edit::{self, Change, Edit};
use crate::spec::{load, lower};
use crate::{Error, Result};

/// A longer state is refused: 1 MiB. Docker's, with every annotation of a pod, has 10 KiB.
const STATE_MAX: u64 = 1 << 20;

/// What a hook is told on its standard input (runtime-spec, runtime.md "State").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The container's first process, by the runtime's numbering. crun says 0 to createContainer hooks.
    pub pid: Option<i32>,
    /// The bundle, absolute.
    pub bundle: PathBuf,
}

#[derive(Deserialize)]
struct Written {
    pid: Option<i64>,
    bundle: Option<PathBuf>,
    /// Its name in runtime-spec 1.0.0-rc1 and before.
    #[serde(rename = "bundlePath")]
    bundle_path: Option<PathBuf>,
}

impl State {
    /// Reads the state to its end.
    ///
    /// # Errors
    /// It can't be read, is no JSON object, or lacks an absolute bundle; the process is no process id.
    pub fn read(from: impl Read) -> Result<State> {
        let bad = |why: String| Error::msg(format!("the container's state on stdin: {why}"));
        let mut text = Vec::new();
        from.take(STATE_MAX + 1)
            .read_to_end(&mut text)
            .map_err(|e| Error::step("read", "the container's state", e))?;
        if text.len() as u64 > STATE_MAX {
            return Err(bad(format!("longer than {STATE_MAX} bytes")));
        }
        let state: Written = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        let pid = i32::try_from(state.pid.unwrap_or(0)).ok();
        let bundle = state.bundle.or(state.bundle_path);
        Ok(State {
            pid: match pid.filter(|pid| *pid >= 0) {
                Some(pid) => (pid != 0).then_some(pid),
                None => return Err(bad("pid is no process id".into())),
            },
            bundle: bundle
                .filter(|path| path.is_absolute())
                .ok_or_else(|| bad("bundle is missing, or is no absolute path".into()))?,
        })
    }

    /// The process, for a hook that enters it.
    ///
    /// # Errors
    /// The runtime named none.
    pub fn process(&self) -> Result<i32> {
        self.pid.ok_or_else(|| {
            Error::msg("the container's state on stdin: pid is missing, and this hook needs it")
        })
    }
}

/// The configuration that a container is being made from.
#[derive(Debug)]
pub struct Container {
    /// As the bundle has it.
    pub spec: Spec,
    /// Absolute, links resolved.
    pub bundle: PathBuf,
    /// Absolute, links resolved, as the runtime sees it.
    pub rootfs: PathBuf,
}

impl Container {
    /// Reads a bundle. The configuration isn't checked: that was its runtime's business.
    ///
    /// # Errors
    /// As [`load::load`]; the root is missing or no directory.
    pub fn load(bundle: &Path) -> Result<Container> {
        let canonical = |what: &'static str, path: &Path| {
            let shown = path.display().to_string();
            fs::canonicalize(path).map_err(|e| Error::step(what, shown, e))
        };
        let bundle = canonical("open bundle", bundle)?;
        let spec = load::load(&bundle)?.spec;
        let root = spec.root().as_ref();
        let root = root.ok_or_else(|| Error::config("root", "missing"))?;
        let rootfs = canonical("open root.path", &bundle.join(root.path()))?;
        if !rootfs.is_dir() {
            return Err(Error::config("root.path", "is not a directory"));
        }
        Ok(Container {
            spec,
            bundle,
            rootfs,
        })
    }

    fn context(&self, bind_devices: bool) -> lower::Context<'_> {
        lower::Context {
            id: "",
            rootfs: &self.rootfs,
            bundle: &self.bundle,
            no_pivot: false,
            no_new_keyring: true,
            bind_devices,
            overlay: None,
        }
    }
}

/// How the hook sees the container.
#[derive(Debug)]
pub struct View<'a> {
    /// Our configuration file, where it isn't the default one.
    pub config: Option<&'a Path>,
    /// The runtime's state root, where discovery is kept.
    pub state: &'a Path,
    /// Nodes can't be made there: it has a user namespace of its own, or so have we.
    pub bind_devices: bool,
    /// We are not root of the host.
    pub rootless: bool,
}

/// The GPUs of a container, ready to be carried out.
#[derive(Debug, Default)]
pub struct Ready {
    /// Mounts, nodes and in-root work. Nothing else is in it.
    pub plan: Plan,
    /// What its device rules must allow.
    pub rules: Vec<DeviceRule>,
    /// What is tolerated.
    pub warnings: Vec<String>,
}

/// Decides what `nvidia-container-runtime-hook prestart` does. `None`: the container asks for no GPU, and
/// nothing of the host was read.
///
/// # Errors
/// As [`inject::edits`]; and what is asked for and can't be given to a container that exists already:
/// variables, network interfaces, Intel RDT, other hooks.
pub fn prestart(container: &Container, view: &View) -> Result<Option<Ready>> {
    let spec = &container.spec;
    let wish = Wish {
        hook: true,
        config: view.config.map(Path::to_owned),
        ..Wish::default()
    };
    let cell = inject::Cell {
        rootfs: &container.rootfs,
        state: Some(view.state),
        rootless: view.rootless,
    };
    let found = inject::edits(spec, wish, &cell)?;
    if found.edits.is_empty() {
        let warnings = found.warnings;
        return Ok((!warnings.is_empty()).then(|| Ready {
            warnings,
            ..Ready::default()
        }));
    }
    if view.bind_devices {
        found.make_nodes()?;
    }
    let Injection {
        edits,
        mut warnings,
        driver,
        ..
    } = found;
    let edits = possible(edits, &mut warnings)?;
    let mut added = nothing();
    // Owners of nodes come from the process.
    added.set_process(spec.process().clone());
    edit::apply(&mut added, &edits)?;
    let mut whole = spec.clone();
    edit::apply(&mut whole, &edits)?;

    let mut plan = lower::added(&added, &whole, &container.context(view.bind_devices))?;
    let works = lower::works(&added)?;
    if !works.is_empty() {
        let root = work::hold(&container.rootfs)?;
        let config = Config::load(view.config)?;
        plan.in_root = work::lower(
            &works,
            &work::Cell {
                root: root.as_fd(),
                spec: &whole,
                bundle: &container.bundle,
                proc: &config.proc_root,
                driver: driver.as_ref(),
            },
        )?;
    }
    Ok(Some(Ready {
        plan,
        rules: rules(&added)?,
        warnings,
    }))
}

/// Decides what `nvidia-cdi-hook X` does. `root` is the image's root without the mounts in it.
///
/// # Errors
/// As [`work::lower`].
pub fn cdi_hook(work: Work, container: &Container, root: BorrowedFd) -> Result<InRootPlan> {
    let config = Config::load(None)?;
    work::lower(
        &with_those_before(work, &container.spec)?,
        &work::Cell {
            root,
            spec: &container.spec,
            bundle: &container.bundle,
            proc: &config.proc_root,
            driver: None,
        },
    )
}

/// The cache of libraries is of one piece: what is in it, and in which order, depends on the links and the
/// compatibility folder of the hooks before. Those did their work already, and doing it again changes
/// nothing.
fn with_those_before(work: Work, spec: &Spec) -> Result<Vec<Work>> {
    let of_cache = |w: &Work| matches!(w, Work::LdCache(_) | Work::CudaCompat { .. });
    let mut works = Vec::new();
    if of_cache(&work) {
        let hooks = spec.hooks().as_ref();
        let list = hooks.and_then(|h| h.create_container().as_ref());
        for hook in list.into_iter().flatten() {
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

/// The Plan's part that both hooks share: where the root is.
///
/// # Errors
/// The path holds a NUL byte.
pub fn empty_plan(container: &Container) -> Result<Plan> {
    lower::added(&nothing(), &nothing(), &container.context(false))
}

/// A configuration that says nothing.
fn nothing() -> Spec {
    let mut spec = Spec::default();
    spec.set_root(None)
        .set_mounts(None)
        .set_process(None)
        .set_hostname(None)
        .set_hooks(None)
        .set_annotations(None)
        .set_linux(None);
    spec
}

/// The edits that can be made to a container whose process waits already; the others are refused, or
/// told where NVIDIA's own hook leaves them out too.
fn possible(edits: Vec<Edit>, warnings: &mut Vec<String>) -> Result<Vec<Edit>> {
    let mut out = Vec::with_capacity(edits.len());
    for edit in edits {
        let late = match &edit.change {
            Change::Device(_) | Change::Mount(_) | Change::DeviceRule(_) => None,
            Change::Hook { hook, .. } => match Work::recognise(hook)? {
                Some(_) => None,
                None => Some(format!("the hook {}", hook.path().display())),
            },
            // The mounts of /dev/null that name devices: they are made, and do no harm.
            Change::Unmount(_) => continue,
            // The nodes can still be used by root, and by those who are in the group already.
            Change::AdditionalGids(gids) => {
                let gids: Vec<String> = gids.iter().map(u32::to_string).collect();
                warnings.push(format!(
                    "{}: the container's process can't be put into group {} any more",
                    edit.reason,
                    gids.join(", ")
                ));
                continue;
            }
            Change::Env(pair) => Some(format!(
                "the variable {}",
                pair.split('=').next().unwrap_or_default()
            )),
            Change::NetDevice(device) => {
                Some(format!("the interface {}", device.host_interface_name))
            }
            _ => Some("a change of its configuration".to_owned()),
        };
        if let Some(what) = late {
            return Err(Error::unsupported(
                format!("{}: {what}", edit.reason),
                "the container is made already: let gpucell be its runtime, or its engine resolve the \
                 CDI device",
            ));
        }
        out.push(edit);
    }
    Ok(out)
}

/// The device rules of the edits. The default configuration of the crate has none.
fn rules(added: &Spec) -> Result<Vec<DeviceRule>> {
    let linux = added.linux().as_ref();
    let resources = linux.and_then(|l| l.resources().as_ref());
    let list = resources.and_then(|r| r.devices().as_deref());
    let list = list.unwrap_or_default().iter().enumerate();
    list.map(|(i, entry)| DeviceRule::from_spec(entry, i))
        .collect()
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
