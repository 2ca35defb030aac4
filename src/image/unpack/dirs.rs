//! Directories of the tree being unpacked, held open and looked up by their name in the layer.
//!
//! Owns the one way a name from a layer becomes a descriptor: openat2 from the root's descriptor
//! with RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS, so a symbolic link on the way leads to where it
//! would lead inside the image and never outside (openat2(2)).

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::super::tar::show;
use crate::{Error, Result};

/// Directories kept open at most; a process may hold 1024 descriptors by default.
const KEEP: usize = 256;

/// An open directory (O_PATH).
pub struct Dir {
    pub fd: OwnedFd,
    /// New entries take this directory's group, new directories its set-group-id bit (mkdir(2)).
    pub setgid: bool,
}

/// The open directories of one root.
pub struct Dirs {
    root: Rc<Dir>,
    open: HashMap<Vec<u8>, Rc<Dir>>,
    last: Option<(Vec<u8>, Rc<Dir>)>,
}

impl Dirs {
    /// `root` is the root directory's descriptor.
    pub fn new(root: OwnedFd) -> Result<Self> {
        Ok(Dirs {
            root: Rc::new(held(root, b"/")?),
            open: HashMap::new(),
            last: None,
        })
    }

    /// The directory `path` (clean: no leading slash, `.` or `..`; empty for the root), or `None`
    /// if there is none or something else is in its place.
    pub fn find(&mut self, path: &[u8]) -> Result<Option<Rc<Dir>>> {
        if let Some(dir) = self.cached(path) {
            return Ok(Some(dir));
        }
        match open_dir(&self.root.fd, path) {
            Ok(fd) => {
                let dir = Rc::new(held(fd, path)?);
                self.remember(path, &dir);
                Ok(Some(dir))
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(Error::step("open folder", show(path), e)),
        }
    }

    /// The directory `path`, made (with its parents, root's, mode 0755) where it is missing.
    pub fn need(&mut self, path: &[u8]) -> Result<Rc<Dir>> {
        if let Some(dir) = self.find(path)? {
            return Ok(dir);
        }
        let (parent_path, name) = split(path);
        let parent = self.need(parent_path)?;
        match rustix::fs::mkdirat(&parent.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                return Err(Error::msg(format!(
                    "{} is used as a folder, but is a file or a symbolic link that leads to no \
                     folder of the image",
                    show(path)
                )));
            }
            Err(e) => return Err(Error::step("make folder", show(path), e)),
        }
        self.enter(&parent, path, name)
    }

    /// Opens `name` in `parent`, a directory just made and known as `path`.
    pub fn enter(&mut self, parent: &Dir, path: &[u8], name: &[u8]) -> Result<Rc<Dir>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent.fd, name, flags, Mode::empty())
            .map_err(|e| Error::step("open folder", show(path), e))?;
        let dir = Rc::new(held(fd, path)?);
        self.remember(path, &dir);
        Ok(dir)
    }

    /// Forgets what names lead to: to be called when a directory or a symbolic link goes away or
    /// appears where one could be cached.
    pub fn forget(&mut self) {
        self.open.clear();
        self.last = None;
    }

    fn cached(&mut self, path: &[u8]) -> Option<Rc<Dir>> {
        if path.is_empty() {
            return Some(self.root.clone());
        }
        if let Some((last, dir)) = &self.last
            && last == path
        {
            return Some(dir.clone());
        }
        let dir = self.open.get(path)?.clone();
        self.last = Some((path.to_vec(), dir.clone()));
        Some(dir)
    }

    fn remember(&mut self, path: &[u8], dir: &Rc<Dir>) {
        if self.open.len() >= KEEP {
            self.open.clear();
        }
        self.open.insert(path.to_vec(), dir.clone());
        self.last = Some((path.to_vec(), dir.clone()));
    }
}

fn held(fd: OwnedFd, path: &[u8]) -> Result<Dir> {
    let stat = rustix::fs::fstat(&fd).map_err(|e| Error::step("look at", show(path), e))?;
    Ok(Dir {
        fd,
        setgid: stat.st_mode & 0o2000 != 0,
    })
}

fn open_dir(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    in_root(root, path, OFlags::PATH | OFlags::DIRECTORY)
}

/// Opens `path` inside `root`. EAGAIN means that a rename raced with the walk (openat2(2)): tried
/// again a bounded number of times.
pub fn in_root(root: &OwnedFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(
            root,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        ) {
            Err(Errno::AGAIN) if tries < 32 => tries += 1,
            other => return other,
        }
    }
}

/// Parent and last name of a clean, non-empty path.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// A name from a layer as a clean path relative to the root: no leading slash, no empty or `.`
/// parts. Absolute names mean the image's root, as every unpacker takes them; a `..` part is
/// refused, since no image tool writes one.
pub fn clean(name: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len());
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                return Err(Error::msg(format!(
                    "{}: a name with \"..\" may lead out of the image",
                    show(name)
                )));
            }
            part if part.contains(&0) => {
                return Err(Error::msg(format!(
                    "{}: a name with a NUL byte",
                    show(name)
                )));
            }
            part => {
                if !out.is_empty() {
                    out.push(b'/');
                }
                out.extend_from_slice(part);
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_and_refuses() {
        assert_eq!(clean(b"./a//b/./c/").unwrap(), b"a/b/c");
        assert_eq!(clean(b"/etc/passwd").unwrap(), b"etc/passwd");
        assert_eq!(clean(b"./").unwrap(), b"");
        assert_eq!(clean(b"..a/b..").unwrap(), b"..a/b..");
        for wrong in [&b".."[..], b"../x", b"a/../b", b"/..", b"a/..", b"a\0b"] {
            assert!(clean(wrong).is_err(), "{}", show(wrong));
        }
    }

    #[test]
    fn splits() {
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"a"), (&b""[..], &b"a"[..]));
    }
}
