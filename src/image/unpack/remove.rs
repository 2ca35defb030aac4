//! Taking things out of the tree: whiteouts, and entries that replace others.

use std::collections::HashSet;
use std::ops::Bound;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::tar::show;
use super::Unpacker;
use super::dirs::{Dir, Dirs};
use crate::{Error, Result};

/// Directories deeper than this are moved up before they are emptied, so that a tree of any depth
/// costs a bounded number of descriptors and stack frames.
const DEPTH: usize = 64;

/// Opens a folder itself, for reading.
pub(super) const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

impl Unpacker {
    /// Removes whatever is at `name`, to make room for something else.
    pub(super) fn replace(&mut self, path: &[u8], parent: &Dir, name: &[u8]) -> Result<()> {
        let failed = |e| Error::step("replace", show(path), e);
        match self.kind_of(path, parent, name)? {
            FileType::Directory => {
                self.gone(path);
                remove_tree(&parent.fd, name).map_err(failed)
            }
            kind => {
                if kind == FileType::Symlink {
                    self.dirs.forget();
                }
                rustix::fs::unlinkat(&parent.fd, name, AtFlags::empty()).map_err(failed)
            }
        }
    }

    /// A whiteout of `name`: everything there that is not of the current layer goes.
    pub(super) fn hide(
        &mut self,
        dir: &Dir,
        dir_path: &[u8],
        name: &[u8],
        upper: &HashSet<Vec<u8>>,
    ) -> Result<()> {
        let path = join(dir_path, name);
        let failed = |e| Error::step("remove", show(&path), e);
        if !upper.contains(&path) {
            self.gone(&path);
            return match remove_tree(&dir.fd, name) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(e) => Err(failed(e)),
            };
        }
        match rustix::fs::statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let child = Dirs::new(open_dir(&dir.fd, name).map_err(failed)?)?.need(b"")?;
                self.hide_children(&child, &path, upper)
            }
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(failed(e)),
        }
    }

    /// An opaque folder: everything in it that is not of the current layer goes.
    pub(super) fn hide_children(
        &mut self,
        dir: &Dir,
        path: &[u8],
        upper: &HashSet<Vec<u8>>,
    ) -> Result<()> {
        if path.iter().filter(|&&b| b == b'/').count() > DEPTH * 4 {
            return Err(Error::msg(format!("{}: folders too deep", show(path))));
        }
        let fd = open_dir(&dir.fd, b".").map_err(|e| Error::step("list", show(path), e))?;
        let names = names(&fd).map_err(|e| Error::step("list", show(path), e))?;
        for (name, _) in names {
            self.hide(dir, path, &name, upper)?;
        }
        Ok(())
    }

    /// Forgets what was known about `path` and everything below it.
    fn gone(&mut self, path: &[u8]) {
        self.dirs.forget();
        self.late.remove(path);
        // All names that start with "PATH/" sort between "PATH/" and "PATH0".
        let (mut from, mut to) = (path.to_vec(), path.to_vec());
        from.push(b'/');
        to.push(b'/' + 1);
        let below: Vec<Vec<u8>> = self
            .late
            .range::<Vec<u8>, _>((Bound::Included(&from), Bound::Excluded(&to)))
            .map(|(path, _)| path.clone())
            .collect();
        for path in below {
            self.late.remove(&path);
        }
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    if !dir.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Removes `name` in `dir`, with everything in it, following no symbolic link.
pub fn remove_tree(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM | Errno::ACCESS) => {}
        other => return other,
    }
    let top = open_dir(&dir, name)?;
    let mut moved = 0u64;
    loop {
        empty(&top, &top, 0, &mut moved)?;
        match rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR) {
            // Deep folders were moved up into it: another round.
            Err(Errno::NOTEMPTY) if moved > 0 => moved = 0,
            other => return other,
        }
    }
}

/// Empties `dir`; folders past [`DEPTH`] are moved to `top` and left there.
fn empty(dir: &OwnedFd, top: &OwnedFd, depth: usize, moved: &mut u64) -> rustix::io::Result<()> {
    for (name, kind) in names(dir)? {
        if kind != FileType::Directory {
            match rustix::fs::unlinkat(dir, &name[..], AtFlags::empty()) {
                Ok(()) => continue,
                Err(Errno::ISDIR) => {}
                Err(e) => return Err(e),
            }
        }
        if depth >= DEPTH {
            move_up(dir, &name, top, moved)?;
            continue;
        }
        let child = open_dir(dir, &name)?;
        empty(&child, top, depth + 1, moved)?;
        drop(child);
        rustix::fs::unlinkat(dir, &name[..], AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

fn move_up(dir: &OwnedFd, name: &[u8], top: &OwnedFd, moved: &mut u64) -> rustix::io::Result<()> {
    loop {
        *moved += 1;
        let new = format!(".gpucell-removed-{moved}");
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(dir, name, top, new.as_str(), flags) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
}

/// Opens a folder for reading. One that its owner (not root) may not read is opened up first.
fn open_dir(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let stat = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|s| s.st_mode);
    match rustix::fs::openat(&dir, name, FOLDER, Mode::empty()) {
        Ok(fd) if stat(&fd)? & 0o300 == 0o300 || rustix::process::geteuid().is_root() => Ok(fd),
        Ok(_) | Err(Errno::ACCESS) => {
            // NOFOLLOW: only a folder itself, never what a link points at.
            rustix::fs::chmodat(
                &dir,
                name,
                Mode::from_raw_mode(0o700),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .or_else(|e| match e {
                // Before fchmodat2 (Linux 6.6) there is no NOFOLLOW form.
                Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL => {
                    let held = rustix::fs::openat(
                        &dir,
                        name,
                        OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC,
                        Mode::empty(),
                    )?;
                    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
                    rustix::fs::chmod(path, Mode::from_raw_mode(0o700))
                }
                e => Err(e),
            })?;
            rustix::fs::openat(&dir, name, FOLDER, Mode::empty())
        }
        Err(e) => Err(e),
    }
}

/// The names in a folder, without `.` and `..`.
fn names(dir: &OwnedFd) -> rustix::io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut out = Vec::new();
    for item in rustix::fs::Dir::read_from(dir)? {
        let item = item?;
        let name = item.file_name().to_bytes();
        if name != b"." && name != b".." {
            out.push((name.to_vec(), item.file_type()));
        }
    }
    Ok(out)
}
