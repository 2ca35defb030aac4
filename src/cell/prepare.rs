//! What is decided of a creation before its first effect.
//!
//! Reads the configuration, the image and the host; makes nothing.

use super::create::CreateOptions;
use super::view;
use crate::cgroup::{self, CgroupPlan};
use crate::nvidia::config::Config;
use crate::nvidia::hook::Work;
use crate::nvidia::work;
use crate::plan::{InRootPlan, Plan, RootPlan};
use crate::rootfs::CgroupView;
use crate::spec::{check, lower};
use crate::sys::cred::host_root;
use crate::{Error, Result};
use std::ffi::{CString, OsStr};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A configuration made ready: all that is decided before the first effect.
pub struct Prepared {
    /// The Plan.
    pub plan: Plan,
    /// The groups.
    pub cgroup: CgroupPlan,
    /// What was tolerated.
    pub warnings: Vec<String>,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) view: CgroupView,
    pub(super) parent_mount: Option<CString>,
    /// The caller is not the machine's root.
    pub(super) rootless: bool,
}

/// Checks and lowers a configuration. Makes nothing.
pub fn prepare(opts: &CreateOptions) -> Result<Prepared> {
    super::store::check_id(&opts.id)?;
    let spec = &opts.spec;
    let mut warnings = check::check(spec)?;
    let bundle = canonical("bundle", &opts.bundle)?;
    let root = spec
        .root()
        .as_ref()
        .ok_or_else(|| Error::config("root", "missing"))?;
    let rootfs = canonical("root.path", &bundle.join(root.path()))?;
    if !rootfs.is_dir() {
        return Err(Error::config("root.path", "is not a directory"));
    }
    let rootless = !host_root();
    let linux = spec.linux().as_ref();
    let cgroup = cgroup::plan(&cgroup::Request {
        id: &opts.id,
        cgroups_path: linux.and_then(|l| l.cgroups_path().as_deref()),
        resources: linux.and_then(|l| l.resources().as_ref()),
        extra_devices: &cgroup::DEFAULT_RULES,
        annotations: spec.annotations().as_ref(),
        driver: opts.driver,
        rootless,
    })?;
    warnings.extend(cgroup.warnings().iter().cloned());
    let (mut plan, works) = lower::lower(
        spec,
        &lower::Context {
            id: &opts.id,
            rootfs: &rootfs,
            bundle: &bundle,
            no_pivot: opts.no_pivot,
            no_new_keyring: opts.no_new_keyring,
            bind_devices: rootless,
            overlay: opts.overlay.clone(),
        },
    )?;
    if !works.is_empty() {
        plan.in_root = in_root(&works, opts, &bundle, &plan.root)?;
    }
    if let Some(s) = &plan.seccomp {
        warnings.extend(s.warnings.iter().cloned());
    }
    view::refuse(spec, &plan)?;
    let view = view::cgroup_view(&plan, &cgroup, rootless)?;
    let parent_mount = view::parent_mount(&plan)?;
    Ok(Prepared {
        plan,
        cgroup,
        warnings,
        bundle,
        rootfs,
        view,
        parent_mount,
        rootless,
    })
}

/// Takes the look at the image that the work of recognised hooks needs. With an overlay that is the
/// shared directory: the cell's own layer is still empty.
fn in_root(
    works: &[Work],
    opts: &CreateOptions,
    bundle: &Path,
    root: &RootPlan,
) -> Result<InRootPlan> {
    let path = root.overlay.as_ref().map_or(&root.path, |o| &o.lower);
    let held = work::hold(Path::new(OsStr::from_bytes(path.to_bytes())))?;
    let proc = match &opts.nvidia {
        Some(driver) => driver.inventory.host().proc.clone(),
        None => Config::load(None)?.proc_root,
    };
    work::lower(
        works,
        &work::Cell {
            root: held.as_fd(),
            spec: &opts.spec,
            bundle,
            proc: &proc,
            driver: opts.nvidia.as_ref(),
        },
    )
}

fn canonical(what: &str, path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path)
        .map_err(|e| Error::step(format!("open {what}"), path.display().to_string(), e))
}
