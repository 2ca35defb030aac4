//! Saving a cell by CRIU, and bringing it back.
//!
//! Owns the order of both, what is refused, and the one file in an image that isn't CRIU's:
//! `descriptors.json`, runc's list of what the standard streams were. [`mod@restore`] is the way back, [`request`]
//! what CRIU is asked for, [`facts`] what must be looked up for that, [`criu`] how CRIU is asked.

mod criu;
mod facts;
mod request;
mod restore;

pub use request::cgroup_mode;
pub use restore::restore;

use super::ops::{self, load_config};
use super::status::Status;
use super::store::{Saved, Store};
use crate::plan::Plan;
use crate::spec::lower;
use crate::sys::{cred, fd};
use crate::{Error, Result};
use criu::{Criu, Folder, Notice};
use facts::{Root, inodes, masked, streams, v1_binds};
use oci_spec::runtime::Spec;
use protobuf::{EnumOrUnknown, MessageField};
use rust_criu::rust_criu_protobuf::rpc::{
    Criu_cg_mode, Criu_features, Criu_opts, Criu_page_server_info, Criu_pre_dump_mode,
    Criu_req_type,
};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Where runc keeps what the standard streams were.
const DESCRIPTORS: &str = "descriptors.json";

/// runc's flags that both directions have, as criu(8) explains them.
#[derive(Debug, Clone)]
pub struct Flags {
    /// Folder of the images.
    pub images: PathBuf,
    /// Folder of the logs; none: that of the images.
    pub work: Option<PathBuf>,
    /// Open TCP connections are no error.
    pub tcp_established: bool,
    /// Neither are Unix sockets whose other end is outside.
    pub ext_unix_sk: bool,
    /// Nor a session or terminal from outside.
    pub shell_job: bool,
    /// Nor file locks.
    pub file_locks: bool,
    /// Deleted files that are open get a name again.
    pub link_remap: bool,
    /// Pages that an earlier image has are taken out of it.
    pub auto_dedup: bool,
    /// Pages are sent when they are asked for.
    pub lazy_pages: bool,
    /// What is done with the groups.
    pub cgroups: Criu_cg_mode,
}

impl Default for Flags {
    fn default() -> Self {
        Flags {
            images: PathBuf::new(),
            work: None,
            tcp_established: false,
            ext_unix_sk: false,
            shell_job: false,
            file_locks: false,
            link_remap: false,
            auto_dedup: false,
            lazy_pages: false,
            cgroups: Criu_cg_mode::DEFAULT,
        }
    }
}

/// How to save.
#[derive(Debug, Clone, Default)]
pub struct CheckpointOptions {
    /// For both directions.
    pub flags: Flags,
    /// Folder of an earlier pre-dump, relative to that of the images.
    pub parent: Option<PathBuf>,
    /// The cell goes on.
    pub leave_running: bool,
    /// Save memory alone, and let the cell go on.
    pub pre_dump: bool,
    /// TCP connections that are being made are left out.
    pub tcp_skip_in_flight: bool,
    /// Address and port to which pages are sent.
    pub page_server: Option<(String, u16)>,
    /// A descriptor of ours that gets a zero byte when lazy pages can be asked for.
    pub status_fd: Option<i32>,
}

/// How to restore.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// For both directions.
    pub flags: Flags,
    /// TCP connections come back closed.
    pub tcp_close: bool,
    /// `TYPE:NAME` of another LSM profile than the saved one.
    pub lsm_profile: Option<String>,
    /// Another LSM context of the mounts.
    pub lsm_mount_context: Option<String>,
}

/// Saves a cell. Unless it is to go on, it is gone afterwards, as under runc: its processes, its groups and its
/// state.
///
/// # Errors
/// The cell doesn't run, or has what CRIU can't save (GPUs, id-mapped mounts, a writable layer of gpucell's
/// own); criu is missing or fails: then the cell goes on.
pub fn checkpoint(store: &Store, id: &str, how: &CheckpointOptions) -> Result<()> {
    let lock = store.lock(id)?;
    let saved = store.load(id)?;
    let status = saved.status(store);
    if !matches!(status, Status::Running | Status::Paused) {
        return Err(Error::msg(format!(
            "cell {id} cannot be checkpointed in {status} state"
        )));
    }
    let what = format!("checkpoint of cell {id}");
    let spec = load_config(&lock)?;
    refuse(&what, &spec)?;
    if !saved.remove.is_empty() {
        return Err(Error::unsupported(
            what,
            "its root is a writable layer that goes with the cell: make it by `gpucell create`",
        ));
    }
    let program = criu::find(&what)?;
    let (plan, _) = lower::lower(
        &spec,
        &lower::Context {
            id,
            rootfs: &saved.rootfs,
            bundle: &saved.bundle,
            no_pivot: false,
            no_new_keyring: saved.no_new_keyring,
            bind_devices: false,
            overlay: None,
        },
    )?;
    make_folder(&how.flags.images)?;
    let folders = Folders::open(&how.flags)?;
    let mut opts = options(&saved, &plan, how, &folders, &program)?;
    if !how.pre_dump {
        let streams = streams(saved.pid)?;
        write_descriptors(&how.flags.images, &streams)?;
        opts.external.extend(request::files(&streams));
    }
    dump(&what, &program, opts, how, &folders).inspect_err(|_| {
        // A CRIU that was killed leaves it frozen.
        if status == Status::Running {
            let _ = saved.cgroup.thaw();
        }
    })?;
    if how.leave_running || how.pre_dump {
        return Ok(());
    }
    ops::kill_and_wait(&saved)?;
    ops::destroy(&lock, &saved)
}

/// What neither direction can do.
fn refuse(what: &str, spec: &Spec) -> Result<()> {
    if !cred::host_root() {
        return Err(Error::unsupported(
            what.to_owned(),
            "CRIU needs the host's root; rootless cells can't be saved",
        ));
    }
    match gpu(spec)? {
        None => Ok(()),
        Some(sign) => Err(Error::unsupported(
            what.to_owned(),
            format!("it has GPUs ({sign}), and what their driver holds can't be saved by CRIU"),
        )),
    }
}

/// What shows that a cell has GPUs.
fn gpu(spec: &Spec) -> Result<Option<String>> {
    let nvidia = |path: &Path| path.as_os_str().as_bytes().starts_with(b"/dev/nvidia");
    let linux = spec.linux().as_ref();
    let nodes = linux.and_then(|l| l.devices().as_ref());
    let nodes = nodes.into_iter().flatten().map(|d| d.path().clone());
    let binds = spec.mounts().iter().flatten();
    let binds = binds.filter_map(|m| m.source().clone());
    if let Some(path) = nodes.chain(binds).find(|p| nvidia(p)) {
        return Ok(Some(path.display().to_string()));
    }
    let hooks = lower::works(spec)?;
    Ok((!hooks.is_empty()).then(|| "NVIDIA's hook".to_owned()))
}

/// The folders CRIU works in.
struct Folders {
    images: Folder,
    work: Option<Folder>,
    log_dir: PathBuf,
}

impl Folders {
    /// Opens them. A missing one for logs is made, for root alone.
    fn open(flags: &Flags) -> Result<Folders> {
        if let Some(dir) = &flags.work {
            make_folder(dir)?;
        }
        Ok(Folders {
            images: Folder::open(&flags.images)?,
            work: flags.work.as_deref().map(Folder::open).transpose()?,
            log_dir: flags.work.as_ref().unwrap_or(&flags.images).clone(),
        })
    }

    /// For [`Criu::start`].
    fn list(&self) -> Vec<&Folder> {
        [Some(&self.images), self.work.as_ref()]
            .into_iter()
            .flatten()
            .collect()
    }

    fn tell(&self, opts: &mut Criu_opts) {
        opts.images_dir_fd = Some(self.images.number());
        opts.work_dir_fd = self.work.as_ref().map(Folder::number);
    }

    /// An error of CRIU's with what its log says.
    fn explain(&self, what: &str, log: &str, e: Error) -> Error {
        let said = criu::last_words(&self.log_dir.join(log));
        Error::msg(format!("{what}: {e}; {said}"))
    }
}

fn make_folder(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| Error::step("make", path.display().to_string(), e))
}

fn options(
    saved: &Saved,
    plan: &Plan,
    how: &CheckpointOptions,
    folders: &Folders,
    program: &Path,
) -> Result<Criu_opts> {
    let root = Root::open(&saved.rootfs)?;
    // A pre-dump doesn't look at mounts.
    let (externals, masked) = match how.pre_dump {
        true => (Vec::new(), Vec::new()),
        false => (
            request::externals(plan, &v1_binds(plan, &saved.cgroup), &|p| root.inside(p))?,
            masked(saved.pid, &plan.masked)?,
        ),
    };
    let mut opts = request::dump(
        &request::Dump {
            pid: saved.pid,
            root: root.text()?,
            annotations: &saved.annotations,
            externals: &externals,
            masked: &masked,
            namespaces: &inodes(plan)?,
            freezer: saved.cgroup.freezer_path(),
        },
        &how.flags,
    );
    folders.tell(&mut opts);
    opts.leave_running = Some(how.leave_running);
    opts.tcp_skip_in_flight = Some(how.tcp_skip_in_flight);
    if let Some((address, port)) = &how.page_server {
        opts.ps = MessageField::some(Criu_page_server_info {
            address: Some(address.clone()),
            port: Some((*port).into()),
            ..Criu_page_server_info::default()
        });
    }
    if let Some(parent) = &how.parent {
        opts.parent_img = Some(parent_folder(&how.flags.images, parent)?);
        opts.track_mem = Some(true);
    }
    let wish = Criu_features {
        mem_track: how.pre_dump.then_some(true),
        lazy_pages: how.flags.lazy_pages.then_some(true),
        ..Criu_features::default()
    };
    if how.pre_dump {
        opts.pre_dump_mode = Some(EnumOrUnknown::new(Criu_pre_dump_mode::SPLICE));
        opts.track_mem = Some(true);
    }
    if wish.mem_track() || wish.lazy_pages() {
        criu::can(program, &wish)?;
    }
    Ok(opts)
}

/// The folder of an earlier pre-dump, as CRIU wants it: relative to the images.
fn parent_folder(images: &Path, parent: &Path) -> Result<String> {
    if parent.is_absolute() {
        return Err(Error::msg(format!(
            "--parent-path {}: must be relative to --image-path",
            parent.display()
        )));
    }
    Folder::open(&images.join(parent))?;
    let text = parent.to_str().map(str::to_owned);
    text.ok_or_else(|| Error::msg("--parent-path: CRIU takes paths in UTF-8 only"))
}

fn dump(
    what: &str,
    program: &Path,
    opts: Criu_opts,
    how: &CheckpointOptions,
    folders: &Folders,
) -> Result<()> {
    let kind = match how.pre_dump {
        true => Criu_req_type::PRE_DUMP,
        false => Criu_req_type::DUMP,
    };
    let mut status_fd = how.status_fd;
    let mut told = |notice: Notice| match (notice.stage, status_fd.take()) {
        ("status-ready", Some(n)) => {
            let end = fd::adopt(n);
            fd::write_all(end.as_fd(), &[0])
                .map_err(|e| Error::step("write to", format!("--status-fd {n}"), e))
        }
        (_, other) => {
            status_fd = other;
            Ok(())
        }
    };
    let mut ask = || -> Result<()> {
        let mut criu = Criu::start(program, &folders.list(), None)?;
        criu.ask(&criu::ask_with(kind, opts.clone()), &mut told)?;
        // After a pre-dump it waits for the next one, and says that there is none by its status.
        criu.end()?;
        Ok(())
    };
    ask().map_err(|e| folders.explain(what, "dump.log", e))
}

/// Writes down what the standard streams are: as runc does (`pipe:[123]`, `/dev/pts/0`), and files of the host's
/// (its /dev/null, a log) by the name that CRIU has for them.
fn write_descriptors(images: &Path, streams: &[String]) -> Result<()> {
    let path = images.join(DESCRIPTORS);
    let fail = |e: io::Error| Error::step("write", path.display().to_string(), e);
    let text = serde_json::to_vec(streams).map_err(|e| fail(e.into()))?;
    fs::write(&path, text).map_err(fail)
}

/// Reads it again.
fn read_descriptors(images: &Path) -> Result<Vec<String>> {
    let path = images.join(DESCRIPTORS);
    let fail = |e: io::Error| Error::step("read", path.display().to_string(), e);
    serde_json::from_slice(&fs::read(&path).map_err(fail)?).map_err(|e| fail(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_written_as_runc_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        write_descriptors(dir.path(), &streams(me).unwrap()).unwrap();
        let links = read_descriptors(dir.path()).unwrap();
        let own = |n| fs::read_link(format!("/proc/self/fd/{n}")).unwrap();
        // Our own are on our own mounts, whatever they are.
        let own: Vec<String> = (0..3).map(|n| own(n).to_string_lossy().into()).collect();
        assert_eq!(links, own);
        fs::write(dir.path().join(DESCRIPTORS), "{").unwrap();
        assert!(read_descriptors(dir.path()).is_err());
    }

    #[test]
    fn a_cell_with_gpus_is_known() {
        let spec = |text: &str| -> Spec { serde_json::from_str(text).unwrap() };
        let none = spec(r#"{"ociVersion":"1.2.0"}"#);
        assert_eq!(gpu(&none).unwrap(), None);
        let node = spec(
            r#"{"ociVersion":"1.2.0","linux":{"devices":[
            {"path":"/dev/nvidia0","type":"c","major":195,"minor":0}]}}"#,
        );
        assert_eq!(gpu(&node).unwrap().as_deref(), Some("/dev/nvidia0"));
        let bind = spec(
            r#"{"ociVersion":"1.2.0","mounts":[
            {"destination":"/dev/x","source":"/dev/nvidiactl","options":["bind"]}]}"#,
        );
        assert_eq!(gpu(&bind).unwrap().as_deref(), Some("/dev/nvidiactl"));
        let hook = spec(
            r#"{"ociVersion":"1.2.0","hooks":{"createContainer":[
            {"path":"/usr/bin/nvidia-ctk","args":["nvidia-ctk","hook","update-ldcache"]}]}}"#,
        );
        assert!(gpu(&hook).unwrap().is_some());
    }

    #[test]
    fn a_parent_is_a_folder_beside_the_images() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("one")).unwrap();
        fs::create_dir_all(dir.path().join("two")).unwrap();
        let images = dir.path().join("two");
        assert_eq!(
            parent_folder(&images, Path::new("../one")).unwrap(),
            "../one"
        );
        assert!(parent_folder(&images, Path::new("../none")).is_err());
        assert!(parent_folder(&images, dir.path()).is_err());
    }
}
