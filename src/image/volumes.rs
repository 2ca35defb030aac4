//! Volumes that an image declares: folders of the bundle, filled with what the image has at that
//! place, and mounted over it.
//!
//! Docker gives each container fresh anonymous volumes; a bundle has one set, in `volumes/`, which
//! outlives its cells as Docker's do.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::limits::Limits;
use super::tar::show;
use super::unpack::dirs::{Dirs, clean};
use crate::{Error, Result};

/// Volumes an image may declare.
const MAX_VOLUMES: usize = 64;
/// Folders inside each other that are copied.
const MAX_DEPTH: usize = 128;

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Absolute path in the cell.
    pub target: String,
    /// Folder relative to the bundle.
    pub source: PathBuf,
}

/// Makes the volumes `targets` below `bundle`/volumes from the tree at `root`. What a bundle
/// already has is kept: it is the user's data.
pub fn make(
    bundle: &Path,
    root: &OwnedFd,
    targets: &[String],
    limits: &Limits,
) -> Result<Vec<Volume>> {
    if targets.len() > MAX_VOLUMES {
        return Err(Error::msg(format!(
            "image config: {} volumes (at most {MAX_VOLUMES})",
            targets.len()
        )));
    }
    let mut targets: Vec<Vec<u8>> = targets
        .iter()
        .map(|target| clean(target.as_bytes()))
        .collect::<Result<_>>()?;
    targets.sort();
    targets.dedup();
    let mut dirs = Dirs::new(
        root.try_clone()
            .map_err(|e| Error::step("hold", "the root folder", e))?,
    )?;
    let mut copy = Copy {
        limits: *limits,
        bytes: 0,
        entries: 0,
        links: HashMap::new(),
    };
    let mut volumes: Vec<Volume> = Vec::new();
    for target in &targets {
        let name = String::from_utf8_lossy(target).into_owned();
        if name.is_empty() {
            return Err(Error::msg("image config: the root can't be a volume"));
        }
        let mut folder = name.replace('/', "-");
        while volumes.iter().any(|v| v.source.ends_with(&folder)) {
            folder.push('_');
        }
        let source = Path::new("volumes").join(&folder);
        let path = bundle.join(&source);
        let from = dirs.need(target)?;
        if !path.exists() {
            let failed = |e| Error::step("make volume", path.display().to_string(), e);
            // Filled under another name, so that one cut off is not taken for the user's.
            let unfinished = path.with_file_name(format!(".{folder}.part"));
            std::fs::create_dir_all(bundle.join("volumes")).map_err(failed)?;
            if unfinished.exists() {
                std::fs::remove_dir_all(&unfinished).map_err(failed)?;
            }
            std::fs::create_dir(&unfinished).map_err(failed)?;
            let to = rustix::fs::open(&unfinished, FOLDER, Mode::empty())
                .map_err(|e| failed(e.into()))?;
            copy.links.clear();
            copy.folder(&to, &from.fd, &to, b".", 0)?;
            std::fs::rename(&unfinished, &path).map_err(failed)?;
        }
        volumes.push(Volume {
            target: format!("/{name}"),
            source,
        });
    }
    Ok(volumes)
}

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

struct Copy {
    limits: Limits,
    bytes: u64,
    entries: u64,
    /// Copied files with several names: (device, inode) → the copy's path in the volume.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl Copy {
    /// Copies what is in `from` to `to`, which is `path` in the volume `top`.
    fn folder(
        &mut self,
        top: &OwnedFd,
        from: &OwnedFd,
        to: &OwnedFd,
        path: &[u8],
        depth: usize,
    ) -> Result<()> {
        let failed = |e| Error::step("copy to the volume", show(path), e);
        if depth > MAX_DEPTH {
            return Err(Error::msg(format!("{}: folders too deep", show(path))));
        }
        let list = rustix::fs::openat(from, ".", FOLDER, Mode::empty()).map_err(failed)?;
        for item in rustix::fs::Dir::read_from(&list).map_err(failed)? {
            let item = item.map_err(failed)?;
            let name = item.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let mut child = path.to_vec();
            child.push(b'/');
            child.extend_from_slice(name);
            self.entry(top, from, to, name, &child, depth)?;
        }
        let stat = rustix::fs::fstat(&list).map_err(failed)?;
        metadata(&list, to, &stat).map_err(failed)
    }

    fn entry(
        &mut self,
        top: &OwnedFd,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &[u8],
        path: &[u8],
        depth: usize,
    ) -> Result<()> {
        let failed = |e| Error::step("copy to the volume", show(path), e);
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Error::msg("the image's volumes have too many entries"));
        }
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let key = (stat.st_dev, stat.st_ino);
        if kind != FileType::Directory
            && stat.st_nlink > 1
            && let Some(first) = self.links.get(&key)
        {
            return rustix::fs::linkat(top, &first[..], to, name, AtFlags::empty()).map_err(failed);
        }
        match kind {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700)).map_err(failed)?;
                let from = rustix::fs::openat(from, name, FOLDER, Mode::empty()).map_err(failed)?;
                let to = rustix::fs::openat(to, name, FOLDER, Mode::empty()).map_err(failed)?;
                return self.folder(top, &from, &to, path, depth + 1);
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source =
                    rustix::fs::openat(from, name, flags, Mode::empty()).map_err(failed)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let copy = rustix::fs::openat(to, name, flags, Mode::from_raw_mode(0o600))
                    .map_err(failed)?;
                self.content(source, copy, &stat, path)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new()).map_err(failed)?;
                rustix::fs::symlinkat(&target, to, name).map_err(failed)?;
                named_metadata(to, name, &stat).map_err(failed)?;
            }
            FileType::Socket => return Ok(()),
            kind => {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev).map_err(failed)?;
                rustix::fs::chmodat(to, name, mode, AtFlags::empty()).map_err(failed)?;
                named_metadata(to, name, &stat).map_err(failed)?;
            }
        }
        if stat.st_nlink > 1 {
            self.links.insert(key, path.to_vec());
        }
        Ok(())
    }

    fn content(&mut self, from: OwnedFd, to: OwnedFd, stat: &Stat, path: &[u8]) -> Result<()> {
        let failed = |e: std::io::Error| Error::step("copy to the volume", show(path), e);
        let (mut from, mut to) = (std::fs::File::from(from), std::fs::File::from(to));
        // std copies by copy_file_range(2) where it can.
        self.bytes += std::io::copy(&mut from, &mut to).map_err(failed)?;
        if self.bytes > self.limits.bytes {
            return Err(Error::msg("the image's volumes are larger than --max-size"));
        }
        metadata(from, &to, stat).map_err(|e| failed(e.into()))
    }
}

/// Owner (for root), mode, attributes and times, in the order that keeps each.
fn metadata(from: impl AsFd, to: impl AsFd, stat: &Stat) -> rustix::io::Result<()> {
    let to = to.as_fd();
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::fchown(to, Some(uid), Some(gid))?;
    }
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    attributes(from, to)?;
    rustix::fs::futimens(to, &times(stat))
}

fn named_metadata(dir: &OwnedFd, name: &[u8], stat: &Stat) -> rustix::io::Result<()> {
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    rustix::fs::utimensat(dir, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    }
}

/// Copies extended attributes that may be set.
fn attributes(from: impl AsFd, to: impl AsFd) -> rustix::io::Result<()> {
    let mut list = vec![0u8; 64 << 10];
    let n = match rustix::fs::flistxattr(&from, &mut list[..]) {
        Ok(n) => n,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut value = vec![0u8; 64 << 10];
    for key in list[..n].split(|&b| b == 0).filter(|key| !key.is_empty()) {
        // The host labels what it stores.
        if key == b"security.selinux" {
            continue;
        }
        let n = rustix::fs::fgetxattr(&from, key, &mut value[..])?;
        match rustix::fs::fsetxattr(&to, key, &value[..n], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
