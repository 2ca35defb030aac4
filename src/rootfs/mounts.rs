//! Carries out mount steps with the new mount API: every tree is made detached, given its
//! attributes, and only then attached.

use super::path::{self, Links};
use super::{PROC_SUPER_MAGIC, copyup};
use crate::cell::fault::{At, DETAIL, Fault, Stage, Step};
use crate::plan::{MountStep, MountWhat};
use crate::spec::lower::proc_file;
use crate::sys::mount::{self as m, MountAttr};
use crate::sys::{Sys, fd};
use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Trees that the parent opened: one slot per mount step, empty where the child opens the
/// source itself.
pub type Trees = Vec<Option<OwnedFd>>;

/// What a `cgroup` mount shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupView {
    /// The unified hierarchy: a mount of its own in a cgroup namespace, else a bind of the
    /// host's mount (a fresh mount outside a namespace waits for RCU: 16.5 against 2.5 ms).
    V2 {
        /// Where the host has it.
        host: CString,
        /// The cell has its own cgroup namespace.
        namespace: bool,
        /// Whatever the mount's options say.
        read_only: bool,
    },
    /// A tmpfs with one directory per v1 hierarchy.
    V1(Vec<V1Mount>),
    /// No cgroup file system on this host.
    None,
}

/// One v1 hierarchy (or the unified one of a hybrid host) below a `cgroup` mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V1Mount {
    /// Directory name (`memory`, `cpu,cpuacct`).
    pub name: CString,
    /// Links beside it (`cpu` → `cpu,cpuacct`).
    pub links: Vec<CString>,
    /// Mount options of a fresh mount in a cgroup namespace; none for the unified hierarchy.
    pub options: Vec<(CString, Option<CString>)>,
    /// Type: cgroup or cgroup2.
    pub fstype: CString,
    /// Without a cgroup namespace: the cell's own directory on the host, to bind.
    pub bind: Option<CString>,
}

/// Opens, sets propagation of and id-maps the sources that the child cannot: all binds when there
/// is a user namespace, id-mapped ones always. `userns` builds a user namespace with given maps.
pub fn open_trees(
    steps: &[MountStep],
    in_userns: bool,
    mut userns: impl FnMut(&crate::plan::IdMaps) -> Sys<OwnedFd>,
) -> Step<Trees> {
    steps
        .iter()
        .enumerate()
        .map(|(i, step)| {
            let MountWhat::Bind { source, recursive } = &step.what else {
                return Ok(None);
            };
            if step.idmap.is_none() && !in_userns {
                return Ok(None);
            }
            let tree = match clone_source(source, *recursive) {
                // A caller without privileges: the child has them, in its own namespaces.
                Err(Errno::EPERM) if step.idmap.is_none() => return Ok(None),
                other => other.at(Stage::MountSource, i)?,
            };
            if let Some(map) = &step.idmap {
                let ns = userns(&map.maps).at(Stage::MountAttr, i)?;
                let attr = MountAttr {
                    set: m::MOUNT_ATTR_IDMAP,
                    userns: std::os::fd::AsRawFd::as_raw_fd(&ns) as u64,
                    ..MountAttr::default()
                };
                m::setattr(tree.as_fd(), map.recursive, &attr).at(Stage::MountAttr, i)?;
            }
            Ok(Some(tree))
        })
        .collect()
}

fn clone_source(source: &CStr, recursive: bool) -> Sys<OwnedFd> {
    let rec = if recursive { m::AT_RECURSIVE } else { 0 };
    m::open_tree(fd::at_cwd(), source, m::OPEN_TREE_CLONE | rec)
}

/// Carries out every mount step in order.
pub fn all(
    root: BorrowedFd,
    steps: &[MountStep],
    trees: &[Option<OwnedFd>],
    cgroup: &CgroupView,
) -> Step {
    let mut folder = None;
    for (i, step) in steps.iter().enumerate() {
        let given = trees.get(i).and_then(|t| t.as_ref());
        match &step.what {
            MountWhat::Bind { source, recursive } => match given {
                Some(tree) => {
                    bind_attributes(tree.as_fd(), step, i)?;
                    bind(root, step, i, tree.as_fd(), &mut folder)?;
                }
                None => {
                    let tree = bind_source(source, *recursive, step, i)?;
                    bind(root, step, i, tree.as_fd(), &mut folder)?;
                }
            },
            MountWhat::Fs {
                fstype,
                params,
                copy_up,
            } => {
                folder = None;
                new_fs(root, step, i, fstype, params, *copy_up)?;
            }
            MountWhat::Cgroup => {
                folder = None;
                cgroups(root, step, i, cgroup)?;
            }
            MountWhat::Remount { params } => remount(root, step, i, params)?,
        }
    }
    Ok(())
}

fn links(step: &MountStep) -> Links {
    if step.no_symlinks {
        Links::Refuse
    } else {
        Links::Follow
    }
}

/// The folder of a file that is a target, not on procfs. Files bound one after the other mostly
/// share it (a driver has sixty), and binding a file can't cover a folder: it is kept until a step that can.
struct Folder<'a> {
    path: &'a [u8],
    fd: OwnedFd,
}

impl Folder<'_> {
    /// Is the step's target in this folder?
    fn holds(&self, step: &MountStep) -> bool {
        !step.no_symlinks && self.path == path::split(step.target.to_bytes()).0
    }

    /// Binds the tree of a file onto a file of this folder by its name alone, if it lies in that very folder:
    /// no link, and nothing mounted on it. It is made where it is missing. False: nothing was bound, the
    /// target has to be looked up from the root.
    fn bind(&self, step: &MountStep, tree: BorrowedFd) -> bool {
        let target = step.target.as_bytes_with_nul();
        // A path that ends with a slash has none.
        let at = target.iter().rposition(|b| *b == b'/').map_or(0, |i| i + 1);
        let Ok(name) = CStr::from_bytes_with_nul(&target[at..]) else {
            return false;
        };
        let dir = self.fd.as_fd();
        match fd::is_own_file(dir, name) {
            Ok(true) => {}
            Err(Errno::ENOENT) => {
                let of_file = fd::fstat(tree).is_ok_and(|source| !source.is_dir());
                if !of_file || fd::mknodat(dir, name, libc::S_IFREG | 0o644, 0).is_err() {
                    return false;
                }
            }
            _ => return false,
        }
        // Should it have become a link meanwhile, this one doesn't follow it.
        m::attach_at(tree, dir, name).is_ok()
    }
}

fn bind<'a>(
    root: BorrowedFd,
    step: &'a MountStep,
    i: usize,
    tree: BorrowedFd,
    folder: &mut Option<Folder<'a>>,
) -> Step {
    let held = folder.as_ref().filter(|f| f.holds(step));
    if held.is_some_and(|f| f.bind(step, tree)) {
        return Ok(());
    }
    let target = if fd::fstat(tree).at(Stage::MountSource, i)?.is_dir() {
        *folder = None;
        path::ensure_dir(root, &step.target, links(step))
    } else {
        if held.is_none() {
            *folder = open_folder(root, step);
            if folder.as_ref().is_some_and(|f| f.bind(step, tree)) {
                return Ok(());
            }
        }
        path::ensure_file(root, &step.target, links(step))
    }
    .at(Stage::MountTarget, i)?;
    let on_proc = step.target.as_bytes() == b"/proc";
    if on_proc && fd::fs_magic(tree).at(Stage::MountSource, i)? != PROC_SUPER_MAGIC {
        return Err(Fault::new(Stage::MountNotProc, i, Errno::EPERM));
    }
    not_in_proc(step, i, target.as_fd())?;
    m::attach(tree, target.as_fd()).at(Stage::MountAttach, i)
}

/// A clone of a source with its attributes.
fn bind_source(source: &CStr, recursive: bool, step: &MountStep, i: usize) -> Step<OwnedFd> {
    let done =
        single_attributes(step).and_then(|attr| m::open_tree_attr(fd::at_cwd(), source, &attr));
    if let Some(tree) = done {
        return Ok(tree);
    }
    let tree = clone_source(source, recursive).at(Stage::MountSource, i)?;
    bind_attributes(tree.as_fd(), step, i)?;
    Ok(tree)
}

/// What one call can set on the bind of a single mount: private unless told otherwise, else what is
/// mounted in the cell below it would show up on the host.
fn single_attributes(step: &MountStep) -> Option<MountAttr> {
    let recursive = matches!(
        step.what,
        MountWhat::Bind {
            recursive: true,
            ..
        }
    );
    let given = step.propagation.as_slice();
    let single = !recursive && step.rec_set | step.rec_clr == 0 && given.len() <= 1;
    single.then(|| MountAttr {
        set: step.set,
        clr: step.clr,
        propagation: given.first().unwrap_or(&libc::MS_PRIVATE) & !libc::MS_REC,
        ..MountAttr::default()
    })
}

/// Attributes and propagation of a source.
fn bind_attributes(tree: BorrowedFd, step: &MountStep, i: usize) -> Step {
    if let Some(attr) = single_attributes(step) {
        return m::setattr(tree, false, &attr).at(Stage::MountAttr, i);
    }
    if step.propagation.is_empty() {
        let private = MountAttr {
            propagation: libc::MS_PRIVATE,
            ..MountAttr::default()
        };
        m::setattr(tree, true, &private).at(Stage::MountAttr, i)?;
    }
    attributes(tree, step, i)
}

/// The folder of a step's target, when it can serve the next one: not below a path where links are
/// refused, not procfs.
fn open_folder<'a>(root: BorrowedFd, step: &'a MountStep) -> Option<Folder<'a>> {
    let (path, _) = path::split(step.target.to_bytes());
    if path.is_empty() || step.no_symlinks || proc_file(step.target.to_bytes()) {
        return None;
    }
    let fd = path::parent(root, path, Links::Follow).ok()?;
    let magic = fd::fs_magic(fd.as_fd()).ok()?;
    (magic != PROC_SUPER_MAGIC).then_some(Folder { path, fd })
}

/// Attributes and propagation of a tree that already exists.
fn attributes(tree: BorrowedFd, step: &MountStep, i: usize) -> Step {
    if step.set | step.clr != 0 {
        let attr = MountAttr {
            set: step.set,
            clr: step.clr,
            ..MountAttr::default()
        };
        m::setattr(tree, false, &attr).at(Stage::MountAttr, i)?;
    }
    recursive_attributes(tree, step, i)
}

fn recursive_attributes(tree: BorrowedFd, step: &MountStep, i: usize) -> Step {
    if step.rec_set | step.rec_clr != 0 {
        let attr = MountAttr {
            set: step.rec_set,
            clr: step.rec_clr,
            ..MountAttr::default()
        };
        m::setattr(tree, true, &attr).at(Stage::MountAttr, i)?;
    }
    for flags in &step.propagation {
        let attr = MountAttr {
            propagation: flags & !libc::MS_REC,
            ..MountAttr::default()
        };
        m::setattr(tree, flags & libc::MS_REC != 0, &attr).at(Stage::MountAttr, i)?;
    }
    Ok(())
}

/// The second half of the check in `spec::lower`: a target that reaches procfs by another name
/// (a link, `..`) is refused by the file system it turned out to be on.
fn not_in_proc(step: &MountStep, i: usize, target: BorrowedFd) -> Step {
    let name = step.target.as_bytes();
    if name == b"/proc" || proc_file(name) {
        return Ok(());
    }
    if fd::fs_magic(target).at(Stage::MountTarget, i)? == PROC_SUPER_MAGIC {
        return Err(Fault::new(Stage::MountInProc, i, Errno::EPERM));
    }
    Ok(())
}

type Params = [(CString, Option<CString>)];

fn new_fs(
    root: BorrowedFd,
    step: &MountStep,
    i: usize,
    fstype: &CStr,
    params: &Params,
    copy_up: bool,
) -> Step {
    let tree = make_fs(fstype, params, step.set, i)?;
    let target = path::ensure_dir(root, &step.target, links(step)).at(Stage::MountTarget, i)?;
    not_in_proc(step, i, target.as_fd())?;
    if copy_up {
        copyup::copy(target.as_fd(), tree.as_fd()).at(Stage::CopyUp, i)?;
    }
    recursive_attributes(tree.as_fd(), step, i)?;
    m::attach(tree.as_fd(), target.as_fd()).at(Stage::MountAttach, i)
}

/// Makes a detached file system; a fault carries what the kernel wrote into the fs context's log.
fn make_fs(fstype: &CStr, params: &Params, attrs: u64, i: usize) -> Step<OwnedFd> {
    let fs = m::fsopen(fstype).at(Stage::MountMake, i)?;
    let made = params
        .iter()
        .try_for_each(|(k, v)| m::fsconfig(fs.as_fd(), k, v.as_deref()))
        .and_then(|()| m::fsmount(fs.as_fd(), attrs));
    made.map_err(|e| with_log(fs.as_fd(), i, e))
}

fn with_log(fs: BorrowedFd, i: usize, errno: nix::errno::Errno) -> Fault {
    let mut fault = Fault::new(Stage::MountMake, i, errno);
    let mut buf = [0u8; DETAIL];
    let n = m::fs_log(fs, &mut buf[..DETAIL - 1]);
    fault.detail[..n].copy_from_slice(&buf[..n]);
    fault
}

fn remount(root: BorrowedFd, step: &MountStep, i: usize, params: &Params) -> Step {
    let target = path::open(root, &step.target, links(step)).at(Stage::MountTarget, i)?;
    if !params.is_empty() {
        let fs = m::fspick(target.as_fd()).at(Stage::MountMake, i)?;
        params
            .iter()
            .try_for_each(|(k, v)| m::fsconfig(fs.as_fd(), k, v.as_deref()))
            .and_then(|()| m::reconfigure(fs.as_fd()))
            .map_err(|e| with_log(fs.as_fd(), i, e))?;
    }
    attributes(target.as_fd(), step, i)
}

fn cgroups(root: BorrowedFd, step: &MountStep, i: usize, view: &CgroupView) -> Step {
    match view {
        CgroupView::V2 {
            host,
            namespace,
            read_only,
        } => {
            let tree = if *namespace {
                make_fs(c"cgroup2", &[], step.set, i)?
            } else {
                let tree = clone_source(host, true).at(Stage::MountCgroup, i)?;
                let ro = match read_only {
                    true => libc::MOUNT_ATTR_RDONLY,
                    false => 0,
                };
                let attr = MountAttr {
                    set: step.set | ro,
                    clr: step.clr & !ro,
                    propagation: libc::MS_PRIVATE,
                    ..MountAttr::default()
                };
                m::setattr(tree.as_fd(), true, &attr).at(Stage::MountCgroup, i)?;
                tree
            };
            let target =
                path::ensure_dir(root, &step.target, links(step)).at(Stage::MountTarget, i)?;
            not_in_proc(step, i, target.as_fd())?;
            recursive_attributes(tree.as_fd(), step, i)?;
            m::attach(tree.as_fd(), target.as_fd()).at(Stage::MountAttach, i)
        }
        CgroupView::V1(list) => v1(root, step, i, list),
        CgroupView::None => Err(Fault::new(Stage::MountCgroup, i, Errno::ENODEV)),
    }
}

/// A tmpfs whose directories are the hierarchies, made read-only at the end when asked.
fn v1(root: BorrowedFd, step: &MountStep, i: usize, list: &[V1Mount]) -> Step {
    let attrs = step.set & !m::MOUNT_ATTR_RDONLY;
    let fs = m::fsopen(c"tmpfs").at(Stage::MountCgroup, i)?;
    m::fsconfig(fs.as_fd(), c"mode", Some(c"755")).at(Stage::MountCgroup, i)?;
    let tmpfs = m::fsmount(fs.as_fd(), attrs).at(Stage::MountCgroup, i)?;
    let target = path::ensure_dir(root, &step.target, links(step)).at(Stage::MountTarget, i)?;
    not_in_proc(step, i, target.as_fd())?;
    m::attach(tmpfs.as_fd(), target.as_fd()).at(Stage::MountAttach, i)?;
    for h in list {
        let tree = match &h.bind {
            None => make_fs(&h.fstype, &h.options, step.set, i)?,
            Some(dir) => {
                let tree = clone_source(dir, false).at(Stage::MountCgroup, i)?;
                let attr = MountAttr {
                    set: step.set,
                    propagation: libc::MS_PRIVATE,
                    ..MountAttr::default()
                };
                m::setattr(tree.as_fd(), false, &attr).at(Stage::MountCgroup, i)?;
                tree
            }
        };
        fd::mkdirat(tmpfs.as_fd(), &h.name, 0o755).at(Stage::MountCgroup, i)?;
        let dir = fd::openat(tmpfs.as_fd(), &h.name, libc::O_PATH, 0).at(Stage::MountCgroup, i)?;
        m::attach(tree.as_fd(), dir.as_fd()).at(Stage::MountAttach, i)?;
        for link in &h.links {
            fd::symlinkat(&h.name, tmpfs.as_fd(), link).at(Stage::MountCgroup, i)?;
        }
    }
    if step.set & m::MOUNT_ATTR_RDONLY != 0 {
        let attr = MountAttr {
            set: m::MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        m::setattr(tmpfs.as_fd(), false, &attr).at(Stage::MountAttr, i)?;
    }
    Ok(())
}
