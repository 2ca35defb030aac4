//! Regular files: their content and metadata, by the open descriptor.

use std::os::fd::OwnedFd;

use rustix::fs::{Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::super::tar::{Entry, Reader, Stream, show};
use super::dirs::{Dir, split};
use super::{Unpacker, attrs};
use crate::{Error, Result};

impl Unpacker {
    pub(super) fn file<R: Stream>(
        &mut self,
        reader: &mut Reader<R>,
        path: &[u8],
        parent: &Dir,
    ) -> Result<()> {
        let file = self.create(reader.entry(), path, parent)?;
        write_data(reader, &file, path)?;

        let entry = reader.entry();
        if self.foreign_owner(entry, parent) {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            rustix::fs::fchown(&file, Some(uid), Some(gid))
                .map_err(|e| attrs::not_owned(entry, path, e))?;
        }
        for (key, value) in &entry.xattrs {
            let set = || rustix::fs::fsetxattr(&file, &key[..], value, XattrFlags::empty());
            self.xattr(path, key, set)?;
        }
        if !self.exact(entry.mode) || self.opened_up(entry) {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode))
                .map_err(|e| Error::step("set the mode of", show(path), e))?;
        }
        rustix::fs::futimens(&file, &attrs::stamps(entry.mtime))
            .map_err(|e| Error::step("set the time of", show(path), e))
    }

    /// Whether the file must be made with more permissions than it keeps: fsetxattr(2) goes by the
    /// file's mode, not by the descriptor's.
    fn opened_up(&self, entry: &Entry) -> bool {
        !self.privileged && !entry.xattrs.is_empty()
    }

    /// A new file, never an existing one: what is in its place is unlinked first, so that other
    /// names of it (hard links of the layers below) keep their content.
    fn create(&mut self, entry: &Entry, path: &[u8], parent: &Dir) -> Result<OwnedFd> {
        let (_, name) = split(path);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // With write permission missing the descriptor can still be written to, but only root could
        // set attributes.
        let more = if self.opened_up(entry) { 0o600 } else { 0 };
        let mode = Mode::from_raw_mode(entry.mode & 0o777 | more);
        let open = || rustix::fs::openat(&parent.fd, name, flags, mode);
        let failed = |e| Error::step("make file", show(path), e);
        match open() {
            Err(Errno::EXIST) => {
                self.replace(path, parent, name)?;
                open().map_err(failed)
            }
            other => other.map_err(failed),
        }
    }
}

fn write_data<R: Stream>(reader: &mut Reader<R>, file: &OwnedFd, path: &[u8]) -> Result<()> {
    let failed = |e| Error::step("write", show(path), e);
    let read_failed = |e| Error::step("read", show(path), e);
    let Some(map) = reader.entry().sparse.clone() else {
        loop {
            let data = reader.data().map_err(read_failed)?;
            if data.is_empty() {
                return Ok(());
            }
            match rustix::io::write(file, data) {
                Ok(n) => reader.consume(n),
                Err(Errno::INTR) => {}
                Err(e) => return Err(failed(e)),
            }
        }
    };
    for (mut offset, mut left) in map {
        while left > 0 {
            let data = reader.data().map_err(read_failed)?;
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
            if n == 0 {
                return Err(Error::msg(format!("{}: its data is cut off", show(path))));
            }
            match rustix::io::pwrite(file, &data[..n], offset) {
                Ok(n) => {
                    reader.consume(n);
                    offset += n as u64;
                    left -= n as u64;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(failed(e)),
            }
        }
    }
    rustix::fs::ftruncate(file, reader.entry().size).map_err(failed)
}
