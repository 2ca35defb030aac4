//! Archives of images: an index of a tar file's members, read in place.
//!
//! Owns finding and reading members. What they mean is [`super::layout`]'s and
//! [`super::docker_archive`]'s.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::inflate::{self, Compression};
use super::limits::Limits;
use super::store::Store;
use super::tar::{Kind, Reader, show};
use super::unpack::dirs::clean;
use crate::{Error, Result};

/// Members an archive may have. An image has a few for each layer.
const MAX_MEMBERS: usize = 100_000;

#[derive(Debug)]
enum Member {
    Data { offset: u64, size: u64 },
    Link(Vec<u8>),
    Other,
}

/// A tar file and where its members are.
#[derive(Debug)]
pub struct Archive {
    name: String,
    file: Arc<File>,
    members: HashMap<Vec<u8>, Member>,
}

impl Archive {
    /// Indexes the archive at `path`. A compressed one is inflated to a temporary file first.
    pub fn open(path: &Path, store: &Store, limits: &Limits) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::step("open", &name, e))?;
        let kind = file.metadata().map_err(|e| Error::step("open", &name, e))?;
        if !kind.is_file() {
            // A pipe can't be read twice.
            return Self::spool(name, Box::new(file), store, limits);
        }
        let mut head = [0u8; 8];
        let n = file
            .read_at(&mut head, 0)
            .map_err(|e| Error::step("read", &name, e))?;
        match inflate::compression(&head[..n]).map_err(|e| Error::step("read", &name, e))? {
            Compression::None => Self::index(name, file),
            _ => Self::spool(name, Box::new(file), store, limits),
        }
    }

    /// Copies a stream, inflated, to a temporary file and indexes that: an archive's list of
    /// contents is usually its last member.
    pub fn spool(
        name: String,
        source: Box<dyn Read + Send>,
        store: &Store,
        limits: &Limits,
    ) -> Result<Self> {
        let failed = |e| Error::step("read", &name, e);
        let mut file = store.scratch()?;
        let mut decoder = inflate::decoder(source).map_err(failed)?;
        let mut buffer = vec![0u8; 256 << 10];
        let mut total = 0u64;
        loop {
            let n = match decoder.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(failed(e)),
            };
            total += n as u64;
            limits.check(&name, 0, total, u64::MAX)?;
            io::Write::write_all(&mut file, &buffer[..n])
                .map_err(|e| Error::step("write", "a temporary file in the store", e))?;
        }
        Self::index(name, file)
    }

    fn index(name: String, mut file: File) -> Result<Self> {
        let failed = |e| Error::step("read archive", &name, e);
        let length = file.metadata().map_err(failed)?.len();
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let again = file.try_clone().map_err(failed)?;
        let mut reader = Reader::new(BufReader::with_capacity(64 << 10, again));
        let mut members = HashMap::new();
        while reader.advance().map_err(failed)? {
            let entry = reader.entry();
            let member = match entry.kind {
                Kind::File if entry.sparse.is_none() => Member::Data {
                    offset: reader.offset(),
                    size: entry.size,
                },
                Kind::Symlink | Kind::HardLink => Member::Link(link_target(
                    &entry.path,
                    &entry.link,
                    entry.kind == Kind::Symlink,
                )),
                _ => Member::Other,
            };
            if let Member::Data { offset, size } = member
                && offset.saturating_add(size) > length
            {
                return Err(Error::msg(format!("{name}: the archive is cut off")));
            }
            // A later member of the same name replaces the earlier one, as in any tar file.
            // A name with ".." can be no member that anything asks for.
            if let Ok(path) = clean(&entry.path) {
                members.insert(path, member);
            }
            if members.len() > MAX_MEMBERS {
                // Far more than an image: it is a root file system, which is read as a stream.
                break;
            }
        }
        Ok(Archive {
            name,
            file: Arc::new(file),
            members,
        })
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn has(&self, member: &str) -> bool {
        self.find(member).is_some()
    }

    /// A reader for the whole archive.
    pub fn whole(&self) -> Result<Box<dyn Read + Send>> {
        let size = self
            .file
            .metadata()
            .map_err(|e| Error::step("read archive", &self.name, e))?
            .len();
        Ok(Box::new(Region {
            file: self.file.clone(),
            at: 0,
            left: size,
        }))
    }

    /// A reader for one member and its size in bytes.
    pub fn open_member(&self, member: &str) -> Result<(Box<dyn Read + Send>, u64)> {
        let (offset, size) = self.find(member).ok_or_else(|| {
            Error::msg(format!(
                "{}: has no file {}",
                self.name,
                show(member.as_bytes())
            ))
        })?;
        let region = Region {
            file: self.file.clone(),
            at: offset,
            left: size,
        };
        Ok((Box::new(region), size))
    }

    /// `docker save` of old replaced repeated layers by links: a few are followed.
    fn find(&self, member: &str) -> Option<(u64, u64)> {
        let mut name = clean(member.as_bytes()).ok()?;
        for _ in 0..8 {
            match self.members.get(&name)? {
                Member::Data { offset, size } => return Some((*offset, *size)),
                Member::Link(target) => name = target.clone(),
                Member::Other => return None,
            }
        }
        None
    }
}

/// A link's target as a member's name: a symbolic link's is relative to its folder.
fn link_target(path: &[u8], link: &[u8], symbolic: bool) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    if symbolic && !link.starts_with(b"/") {
        parts.extend(path.split(|&b| b == b'/'));
        parts.pop();
    }
    for part in link.split(|&b| b == b'/') {
        if part == b".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.retain(|part| !part.is_empty() && *part != b".");
    parts.join(&b'/')
}

/// A part of a file, read by position so that several readers don't disturb each other.
struct Region {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Region {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let n = self.file.read_at(&mut buffer[..want], self.at)?;
        if n == 0 && want > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive became shorter",
            ));
        }
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::link_target;

    #[test]
    fn links_are_relative_to_their_folder() {
        assert_eq!(
            link_target(b"a/layer.tar", b"../b/layer.tar", true),
            b"b/layer.tar"
        );
        assert_eq!(
            link_target(b"a/layer.tar", b"b/layer.tar", false),
            b"b/layer.tar"
        );
        assert_eq!(
            link_target(b"a/x", b"../../../etc/passwd", true),
            b"etc/passwd"
        );
    }
}
