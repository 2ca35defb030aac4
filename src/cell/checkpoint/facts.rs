//! What must be looked up of a cell and its host before CRIU can be asked: links in its root, masked paths,
//! namespaces, open files.

use super::request::{LEFT_ALONE, V1Bind};
use crate::cgroup::{CgroupState, Mode};
use crate::plan::{Kind, Plan};
use crate::rootfs::path::{self, Links};
use crate::sys::fd;
use crate::{Error, Result};
use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The namespaces that CRIU leaves alone, by inode.
pub fn inodes(plan: &Plan) -> Result<Vec<(Kind, u64)>> {
    let mut out = Vec::new();
    for kind in LEFT_ALONE {
        if let Some(path) = plan.namespaces.joins(kind) {
            let path = host_path(path);
            let meta = fs::metadata(path)
                .map_err(|e| Error::step("examine namespace", path.display().to_string(), e))?;
            out.push((kind, meta.ino()));
        }
    }
    Ok(out)
}

/// A path of the Plan's.
pub fn host_path(path: &CStr) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()))
}

/// What a `cgroup` mount is made of where the cell sees the host's v1 hierarchies.
pub fn v1_binds(plan: &Plan, cgroup: &CgroupState) -> Vec<V1Bind> {
    let ns = &plan.namespaces;
    let apart = ns.makes(Kind::Cgroup) || ns.joins(Kind::Cgroup).is_some();
    if apart || cgroup.mode == Some(Mode::V2) {
        return Vec::new();
    }
    cgroup
        .v1
        .iter()
        .chain(&cgroup.v2)
        .filter_map(|g| {
            let name = Path::new(&g.mount).file_name()?.to_str()?;
            Some((name.to_owned(), g.full_path()))
        })
        .collect()
}

/// The masked paths that are files: those that are folders lie under a file system of their own.
pub fn masked(pid: i32, paths: &[CString]) -> Result<Vec<String>> {
    let show = format!("/proc/{pid}/root");
    let fail = |e: Errno| Error::step("open", show.clone(), e);
    let root = CString::new(show.as_str()).map_err(|_| fail(Errno::EINVAL))?;
    let root = fd::open_host(&root, libc::O_PATH | libc::O_DIRECTORY).map_err(fail)?;
    let mut files = Vec::new();
    for path in paths {
        match path::open(root.as_fd(), path, Links::Follow).and_then(|f| fd::fstat(f.as_fd())) {
            Ok(st) if !st.is_dir() => files.push(path.to_string_lossy().into_owned()),
            // What doesn't exist was not masked.
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(e) => {
                let what = format!("masked path {}", path.to_string_lossy());
                return Err(Error::step("examine", what, e));
            }
        }
    }
    Ok(files)
}

/// A cell's root on the host, to follow links in.
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Opens it.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(path: &Path) -> Result<Root> {
        let fail = |e: Errno| Error::step("open root", path.display().to_string(), e);
        let text = crate::cell::create::c_path(path)?;
        Ok(Root {
            fd: fd::open_host(&text, libc::O_PATH | libc::O_DIRECTORY).map_err(fail)?,
            path: path.to_owned(),
        })
    }

    /// Its path.
    ///
    /// # Errors
    /// It is no UTF-8.
    pub fn text(&self) -> Result<&str> {
        self.path.to_str().ok_or_else(|| {
            Error::unsupported(
                format!("a checkpoint with root {}", self.path.display()),
                "CRIU takes paths in UTF-8 only",
            )
        })
    }

    /// Where a path leads in the root, as far as it is there: what is mounted in a file system of the cell's own
    /// has no place yet, and keeps its name.
    pub fn inside(&self, target: &CStr) -> String {
        let target = host_path(target);
        for head in target.ancestors() {
            let Some(real) = self.real(head) else {
                continue;
            };
            let tail = target.strip_prefix(head).unwrap_or(Path::new(""));
            let whole = Path::new("/").join(real).join(tail);
            return whole.to_string_lossy().trim_end_matches('/').to_owned();
        }
        target.to_string_lossy().into_owned()
    }

    fn real(&self, path: &Path) -> Option<PathBuf> {
        let text = CString::new(path.as_os_str().as_bytes()).ok()?;
        let found = path::open(self.fd.as_fd(), &text, Links::Follow).ok()?;
        let link = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
        link.strip_prefix(&self.path).ok().map(Path::to_path_buf)
    }
}

/// What the standard streams of a process are. One that is closed is an empty text.
pub fn streams(pid: i32) -> Result<Vec<String>> {
    let file = format!("/proc/{pid}/mountinfo");
    let mounts = fs::read_to_string(&file).map_err(|e| Error::step("read", file, e))?;
    let name = |n: i32| -> io::Result<String> {
        let link = fs::read_link(format!("/proc/{pid}/fd/{n}"))?;
        let link = link.to_string_lossy().into_owned();
        let meta = fs::metadata(format!("/proc/{pid}/fd/{n}"))?;
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{n}"))?;
        Ok(external_file(&link, &meta, &info, &mounts).unwrap_or(link))
    };
    (0..3)
        .map(|n| match name(n) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            other => other
                .map_err(|e| Error::step("examine", format!("descriptor {n} of process {pid}"), e)),
        })
        .collect()
}

/// CRIU's name for an open file on a mount that isn't the cell's (criu(8), `--external`, `file[mnt_id:inode]`).
/// Terminals are another matter: `--shell-job`.
fn external_file(link: &str, meta: &fs::Metadata, info: &str, mounts: &str) -> Option<String> {
    let kind = meta.file_type();
    let memory = kind.is_char_device() && nix::sys::stat::major(meta.rdev()) == 1;
    if !link.starts_with('/') || !(kind.is_file() || kind.is_fifo() || memory) {
        return None;
    }
    let id = info.lines().find_map(|l| l.strip_prefix("mnt_id:"))?.trim();
    if mounts.lines().any(|l| l.split(' ').next() == Some(id)) {
        return None;
    }
    let id: u32 = id.parse().ok()?;
    Some(format!("file[{id:x}:{:x}]", meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_in_the_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        fs::create_dir_all(path.join("run/lock")).unwrap();
        std::os::unix::fs::symlink("/run", path.join("var")).unwrap();
        std::os::unix::fs::symlink("../../../..", path.join("up")).unwrap();
        let root = Root::open(&path).unwrap();
        for (given, want) in [
            (c"/var/lock", "/run/lock"),
            (c"/var/lock/new/deep", "/run/lock/new/deep"),
            (c"/up/run", "/run"),
            (c"/none/x", "/none/x"),
            (c"/run", "/run"),
        ] {
            assert_eq!(root.inside(given), want, "{given:?}");
        }
    }

    #[test]
    fn files_of_other_mounts_have_crius_names() {
        let mounts = "25 1 8:1 / / rw - ext4 x rw\n26 25 0:5 / /dev rw - tmpfs x rw\n";
        let name = |path: &str, id: u32| {
            let info = format!("pos:\t0\nflags:\t00\nmnt_id:\t{id}\nino:\t4\n");
            external_file(path, &fs::metadata(path).unwrap(), &info, mounts)
        };
        let ino = fs::metadata("/dev/null").unwrap().ino();
        assert_eq!(name("/dev/null", 31), Some(format!("file[1f:{ino:x}]")));
        assert_eq!(name("/dev/null", 26), None);
        assert!(name("/proc/self/exe", 31).is_some());
        // A terminal, a folder.
        assert_eq!(name("/dev/ptmx", 31), None);
        assert_eq!(name("/", 31), None);
    }
}
