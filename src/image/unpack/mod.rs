//! Layers → root file system, in a directory held by its descriptor.
//!
//! Owns how a layer changes a tree (image-spec, layer.md): entries, whiteouts, metadata. Every
//! name is looked up by [`dirs`]; nothing here sees a path of the host. It never reads a layer's
//! compression or digest ([`super::inflate`]).
//!
//! The order of work on a file is open, write, owner, attributes, mode, times: chown(2) clears the
//! set-id bits and file capabilities, and a write changes the times. Times of directories are set
//! at the very end, since every entry made in a directory changes them.

mod attrs;
pub mod dirs;
mod files;
mod remove;

pub use remove::remove_tree;

use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use self::dirs::{Dir, Dirs, clean, split};
use super::limits::Limits;
use super::tar::{Entry, Kind, Reader, Stream, show};
use crate::{Error, Result};

/// Prefix of a whiteout: `.wh.NAME` removes NAME of the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of names that aufs kept for itself; images of that time may hold some.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Marks a folder as opaque: nothing of the layers below shows in it.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// How to unpack.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    pub limits: Limits,
    /// Leave device nodes out instead of failing where they can't be made.
    pub skip_devices: bool,
}

/// What is set on a directory at the end.
struct Late {
    mtime: (i64, u32),
    /// The mode, where it may forbid its owner to fill the directory (not root).
    mode: Option<u32>,
}

/// Unpacks layers, lowest first, into one directory.
pub struct Unpacker {
    root: OwnedFd,
    dirs: Dirs,
    options: Options,
    /// Owners can be set, and permissions do not hinder.
    privileged: bool,
    uid: u32,
    gid: u32,
    /// A file made with mode M really gets M: (umask, no default ACL about).
    umask: u32,
    exact_modes: bool,
    late: BTreeMap<Vec<u8>, Late>,
    /// Names of the current layer and their parents, which its own whiteouts spare. Not kept for
    /// the lowest layer, which has nothing below it.
    upper: Option<HashSet<Vec<u8>>>,
    entries: u64,
    skipped_devices: u64,
    warnings: Vec<String>,
    observer: Option<Observer>,
}

/// Told the number of entries now and then.
pub type Observer = Box<dyn Fn(u64)>;

/// What an unpacking did that people should know.
#[derive(Debug, Default)]
pub struct Summary {
    pub entries: u64,
    pub warnings: Vec<String>,
}

impl Unpacker {
    /// `root` is an empty directory that nobody else writes to.
    pub fn new(root: OwnedFd, options: Options) -> Result<Self> {
        let again = root
            .try_clone()
            .map_err(|e| Error::step("hold", "the root folder", e))?;
        let umask = attrs::umask();
        Ok(Unpacker {
            dirs: Dirs::new(again)?,
            options,
            privileged: rustix::process::geteuid().is_root(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            umask: umask.unwrap_or(0o777),
            exact_modes: umask.is_some() && !attrs::has_default_acl(&root),
            root,
            late: BTreeMap::new(),
            upper: None,
            entries: 0,
            skipped_devices: 0,
            warnings: Vec::new(),
            observer: None,
        })
    }

    /// Has `observer` called while entries are unpacked.
    pub fn observe(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    /// Unpacks a layer over what is there. `lowest` says that nothing is.
    pub fn layer<R: Stream>(&mut self, input: R, lowest: bool) -> Result<()> {
        self.upper = (!lowest).then(HashSet::new);
        self.each(input, true)
    }

    /// Unpacks a plain root archive, in which whiteout names mean nothing.
    pub fn archive<R: Stream>(&mut self, input: R) -> Result<()> {
        self.upper = None;
        self.each(input, false)
    }

    /// Makes folders (clean paths) that the image's config asks for, where they are missing.
    pub fn folders(&mut self, paths: &[Vec<u8>]) -> Result<()> {
        paths
            .iter()
            .try_for_each(|path| self.dirs.need(path).map(drop))
    }

    /// Sets what had to wait for the last entry: modes and times of directories, deepest first.
    pub fn finish(mut self) -> Result<Summary> {
        for (path, late) in std::mem::take(&mut self.late).into_iter().rev() {
            let (parent, name) = split(&path);
            let name = if name.is_empty() { b"." } else { name };
            let Some(parent) = self.dirs.find(parent)? else {
                continue;
            };
            if let Some(mode) = late.mode {
                // By a descriptor: under another spelling the folder may have been replaced by a
                // symbolic link, and chmod follows those.
                match rustix::fs::openat(&parent.fd, name, remove::FOLDER, Mode::empty())
                    .and_then(|dir| rustix::fs::fchmod(dir, Mode::from_raw_mode(mode)))
                {
                    Ok(()) => {}
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                    Err(e) => return Err(Error::step("set the mode of", show(&path), e)),
                }
            }
            match attrs::times_at(&parent.fd, name, late.mtime) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(Error::step("set the time of", show(&path), e)),
            }
        }
        if self.skipped_devices > 0 {
            self.warnings.push(format!(
                "{} device nodes of the image were left out",
                self.skipped_devices
            ));
        }
        Ok(Summary {
            entries: self.entries,
            warnings: self.warnings,
        })
    }

    fn each<R: Stream>(&mut self, input: R, whiteouts: bool) -> Result<()> {
        let mut reader = Reader::new(input);
        let failed = |e| Error::step("read", "the archive", e);
        while reader.advance().map_err(failed)? {
            self.entries += 1;
            if self.entries > self.options.limits.entries {
                return Err(Error::msg(format!(
                    "the image has more than {} entries (--max-entries)",
                    self.options.limits.entries
                )));
            }
            if self.entries.is_multiple_of(256)
                && let Some(observer) = &self.observer
            {
                observer(self.entries);
            }
            let path = clean(&reader.entry().path)?;
            let (parent, name) = split(&path);
            if whiteouts && name.starts_with(WHITEOUT) {
                self.whiteout(parent, name)?;
                continue;
            }
            self.entry(&mut reader, &path)?;
            if let Some(upper) = &mut self.upper {
                mark(upper, &path);
            }
        }
        Ok(())
    }

    /// Carries out a whiteout, `name` with its prefix, in folder `parent`.
    fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<()> {
        let removed = if name == OPAQUE {
            None
        } else if name.starts_with(WHITEOUT_META) {
            return Ok(());
        } else {
            let hidden = &name[WHITEOUT.len()..];
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Error::msg(format!(
                    "{}: a whiteout must name an entry of its folder",
                    show(name)
                )));
            }
            Some(hidden)
        };
        // Nothing is below the lowest layer.
        let Some(upper) = self.upper.take() else {
            return Ok(());
        };
        let done = match self.dirs.find(parent)? {
            Some(dir) => match removed {
                Some(hidden) => self.hide(&dir, parent, hidden, &upper),
                None => self.hide_children(&dir, parent, &upper),
            },
            None => Ok(()),
        };
        self.upper = Some(upper);
        done
    }

    /// Makes one entry at `path` (clean).
    fn entry<R: Stream>(&mut self, reader: &mut Reader<R>, path: &[u8]) -> Result<()> {
        if path.is_empty() {
            return self.root_entry(reader.entry());
        }
        let (parent_path, name) = split(path);
        let parent = self.dirs.need(parent_path)?;
        match reader.entry().kind {
            Kind::Directory => self.directory(reader.entry(), path, &parent),
            Kind::File => self.file(reader, path, &parent),
            Kind::HardLink => self.hard_link(reader.entry(), path, &parent),
            Kind::Symlink => {
                let entry = reader.entry();
                self.make(path, &parent, name, "make symbolic link", || {
                    rustix::fs::symlinkat(entry.link.as_slice(), &parent.fd, name)
                })?;
                self.node_metadata(entry, path, &parent, name, false)
            }
            Kind::Fifo => self.node(reader.entry(), path, &parent, FileType::Fifo),
            Kind::CharDevice => {
                self.device(reader.entry(), path, &parent, FileType::CharacterDevice)
            }
            Kind::BlockDevice => self.device(reader.entry(), path, &parent, FileType::BlockDevice),
        }
    }

    /// The entry for the root itself (`./`): only its metadata counts.
    fn root_entry(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(Error::msg("the image's root is not a folder"));
        }
        let root = self.dirs.need(b"")?;
        self.directory_metadata(entry, b"", &root, b".", true)?;
        self.dirs = Dirs::new(
            self.root
                .try_clone()
                .map_err(|e| Error::step("hold", "the root folder", e))?,
        )?;
        Ok(())
    }

    fn directory(&mut self, entry: &Entry, path: &[u8], parent: &Dir) -> Result<()> {
        let (_, name) = split(path);
        let mode = Mode::from_raw_mode(self.directory_mode(entry.mode) & 0o777);
        let mut merged = false;
        match rustix::fs::mkdirat(&parent.fd, name, mode) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                if self.kind_of(path, parent, name)? == FileType::Directory {
                    merged = true;
                } else {
                    self.replace(path, parent, name)?;
                    rustix::fs::mkdirat(&parent.fd, name, mode)
                        .map_err(|e| Error::step("make folder", show(path), e))?;
                }
            }
            Err(e) => return Err(Error::step("make folder", show(path), e)),
        }
        self.directory_metadata(entry, path, parent, name, merged)?;
        if merged {
            // Its set-group-id bit may be another than the one remembered.
            self.dirs.forget();
        } else {
            self.dirs.enter(parent, path, name)?;
        }
        Ok(())
    }

    /// A directory that root fills may have any mode at once; anyone else needs rwx until the end.
    fn directory_mode(&self, mode: u32) -> u32 {
        if self.privileged { mode } else { mode | 0o700 }
    }

    fn directory_metadata(
        &mut self,
        entry: &Entry,
        path: &[u8],
        parent: &Dir,
        name: &[u8],
        existed: bool,
    ) -> Result<()> {
        self.own(entry, path, parent, name, existed)?;
        let now = self.directory_mode(entry.mode);
        if existed || parent.setgid || !self.exact(now) {
            rustix::fs::chmodat(&parent.fd, name, Mode::from_raw_mode(now), AtFlags::empty())
                .map_err(|e| Error::step("set the mode of", show(path), e))?;
        }
        if existed && !path.is_empty() {
            attrs::clear(&parent.fd, name)
                .map_err(|e| Error::step("clear the attributes of", show(path), e))?;
        }
        self.set_xattrs(entry, path, parent, name)?;
        self.late.insert(
            path.to_vec(),
            Late {
                mtime: entry.mtime,
                mode: (now != entry.mode).then_some(entry.mode),
            },
        );
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, path: &[u8], parent: &Dir) -> Result<()> {
        let target = clean(&entry.link)?;
        if target == path {
            return Ok(());
        }
        let (target_parent, target_name) = split(&target);
        let missing = || {
            Error::msg(format!(
                "{}: a hard link to {}, which the image does not hold",
                show(path),
                show(&entry.link)
            ))
        };
        if target_name.is_empty() {
            return Err(missing());
        }
        let from = self.dirs.find(target_parent)?.ok_or_else(missing)?;
        let (_, name) = split(path);
        // No AT_SYMLINK_FOLLOW: a link to a symbolic link is a second name for that link itself.
        let link = || rustix::fs::linkat(&from.fd, target_name, &parent.fd, name, AtFlags::empty());
        match link() {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(Errno::NOENT) => return Err(missing()),
            Err(e) => return Err(Error::step("make hard link", show(path), e)),
        }
        if attrs::same_file(&from.fd, target_name, &parent.fd, name) {
            return Ok(());
        }
        self.replace(path, parent, name)?;
        match link() {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => Err(missing()),
            Err(e) => Err(Error::step("make hard link", show(path), e)),
        }
    }

    fn device(&mut self, entry: &Entry, path: &[u8], parent: &Dir, kind: FileType) -> Result<()> {
        if self.options.skip_devices {
            self.skipped_devices += 1;
            return Ok(());
        }
        if !self.privileged {
            return Err(Error::msg(format!(
                "{}: the image holds a device node, which only root can make (leave them out with \
                 --skip-devices)",
                show(path)
            )));
        }
        self.node(entry, path, parent, kind)
    }

    fn node(&mut self, entry: &Entry, path: &[u8], parent: &Dir, kind: FileType) -> Result<()> {
        let (_, name) = split(path);
        let device = match kind {
            FileType::Fifo => 0,
            _ => rustix::fs::makedev(entry.device.0, entry.device.1),
        };
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        self.make(path, parent, name, "make node", || {
            rustix::fs::mknodat(&parent.fd, name, kind, mode, device)
        })?;
        self.node_metadata(entry, path, parent, name, true)
    }

    /// Makes something; what is in its place is removed first.
    fn make(
        &mut self,
        path: &[u8],
        parent: &Dir,
        name: &[u8],
        step: &'static str,
        call: impl Fn() -> rustix::io::Result<()>,
    ) -> Result<()> {
        let failed = |e| Error::step(step, show(path), e);
        match call() {
            Err(Errno::EXIST) => {
                self.replace(path, parent, name)?;
                call().map_err(failed)
            }
            other => other.map_err(failed),
        }
    }

    fn kind_of(&self, path: &[u8], parent: &Dir, name: &[u8]) -> Result<FileType> {
        rustix::fs::statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            .map(|stat| FileType::from_raw_mode(stat.st_mode))
            .map_err(|e| Error::step("look at", show(path), e))
    }
}

/// Adds `path` and its parents.
fn mark(upper: &mut HashSet<Vec<u8>>, path: &[u8]) {
    let mut path = path;
    while !path.is_empty() && upper.insert(path.to_vec()) {
        path = split(path).0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn an_entry_marks_its_parents() {
        let mut upper = HashSet::new();
        super::mark(&mut upper, b"a/b/c");
        super::mark(&mut upper, b"a/d");
        let mut all: Vec<_> = upper.into_iter().collect();
        all.sort();
        assert_eq!(all, [&b"a"[..], b"a/b", b"a/b/c", b"a/d"]);
    }
}
