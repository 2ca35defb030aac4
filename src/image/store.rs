//! The blob store on disk: verified content by digest, shared by all pulls of a user.
//!
//! Layout: `blobs/ALGORITHM/HEX` holds complete, verified blobs; `partial/` downloads under way,
//! each locked (flock(2)) by the pull that writes it; `tmp/` short-lived files.
//!
//! A blob appears by rename(2), so readers see it whole or not at all. Nothing is synced: after a
//! power failure a blob may be short, which its size tells, or wrong, which its layer's diff ID
//! tells.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::digest::{Digest, Hasher};
use crate::{Error, Result};

/// A blob store.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store of this user: /var/lib/gpucell for root, else `$XDG_DATA_HOME/gpucell`
    /// (XDG Base Directory Specification; `~/.local/share` when unset).
    pub fn default_path() -> PathBuf {
        if rustix::process::geteuid().is_root() {
            return PathBuf::from("/var/lib/gpucell");
        }
        let absolute = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|p| p.is_absolute())
        };
        absolute("XDG_DATA_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
            .unwrap_or_else(std::env::temp_dir)
            .join("gpucell")
    }

    /// Opens the store at `root`, made where missing.
    pub fn open(root: &Path) -> Result<Self> {
        // The root may hold more than blobs, which others may reach; blobs of private images are
        // for their owner only.
        for (folder, mode) in [
            ("", 0o711),
            ("blobs", 0o700),
            ("blobs/sha256", 0o700),
            ("blobs/sha512", 0o700),
            ("partial", 0o700),
            ("tmp", 0o700),
        ] {
            let path = root.join(folder);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(&path)
                .map_err(|e| {
                    Error::step("make the store's folder", path.display().to_string(), e)
                })?;
        }
        Ok(Store {
            root: root.to_path_buf(),
        })
    }

    /// Where a blob is or will be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.root
            .join("blobs")
            .join(digest.algorithm())
            .join(digest.hex())
    }

    /// Whether the blob is here. One of another size than `size` (bytes) was cut off by a crash
    /// and counts as missing.
    pub fn has(&self, digest: &Digest, size: Option<u64>) -> bool {
        fs::metadata(self.path(digest))
            .is_ok_and(|m| m.is_file() && size.is_none_or(|size| m.len() == size))
    }

    /// Opens a blob for reading.
    pub fn read(&self, digest: &Digest) -> Result<File> {
        File::open(self.path(digest)).map_err(|e| Error::step("open blob", digest.as_str(), e))
    }

    /// A small blob, if it is here and intact.
    pub fn document(&self, digest: &Digest, max: u64) -> Option<Vec<u8>> {
        let mut data = Vec::new();
        let file = File::open(self.path(digest)).ok()?;
        file.take(max + 1).read_to_end(&mut data).ok()?;
        let mut hasher = digest.hasher();
        hasher.update(&data);
        (hasher.finish() == *digest).then_some(data)
    }

    /// Adds a small blob.
    pub fn put(&self, digest: &Digest, data: &[u8]) -> Result<()> {
        if self.has(digest, Some(data.len() as u64)) {
            return Ok(());
        }
        let path = self.path(digest);
        let name = format!("put-{}-{}", std::process::id(), digest.hex());
        let tmp = self.root.join("tmp").join(name);
        fs::write(&tmp, data)
            .and_then(|()| fs::rename(&tmp, &path))
            .map_err(|e| {
                let _ = fs::remove_file(&tmp);
                Error::step("store blob", path.display().to_string(), e)
            })
    }

    /// Takes a blob out, because it turned out to be damaged.
    pub fn discard(&self, digest: &Digest) {
        let _ = fs::remove_file(self.path(digest));
    }

    /// A temporary file without a name: it goes when it is closed.
    pub fn scratch(&self) -> Result<File> {
        let dir = self.root.join("tmp");
        let failed = |e: io::Error| Error::step("make a file in", dir.display().to_string(), e);
        let unnamed = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_TMPFILE)
            .open(&dir);
        match unnamed {
            // Not every file system has O_TMPFILE (open(2)).
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
                let path = dir.join(format!("scratch-{}", std::process::id()));
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
                    .map_err(failed)?;
                fs::remove_file(&path).map_err(failed)?;
                Ok(file)
            }
            other => other.map_err(failed),
        }
    }

    /// Starts or goes on with the download of a blob. `Busy` if another pull is at it.
    pub fn partial(&self, digest: &Digest, size: u64) -> Result<Claim> {
        let path =
            self.root
                .join("partial")
                .join(format!("{}-{}", digest.algorithm(), digest.hex()));
        let failed = |e: io::Error| Error::step("open download", path.display().to_string(), e);
        loop {
            if self.has(digest, Some(size)) {
                return Ok(Claim::Here);
            }
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .open(&path)
                .map_err(failed)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(Claim::Busy),
                Err(e) => return Err(failed(e.into())),
            }
            // Between open and lock the other pull may have finished and renamed the file.
            let held = file.metadata().map_err(failed)?;
            if fs::metadata(&path).is_ok_and(|m| m.ino() == held.ino() && m.dev() == held.dev()) {
                let mut partial = Partial {
                    store: self.clone(),
                    digest: digest.clone(),
                    size,
                    path,
                    file,
                    hasher: digest.hasher(),
                    length: 0,
                };
                partial.resume()?;
                return Ok(Claim::Mine(Box::new(partial)));
            }
        }
    }
}

/// The answer to [`Store::partial`].
pub enum Claim {
    /// The blob is complete.
    Here,
    /// Another process or thread downloads it.
    Busy,
    /// Ours to download; other pulls wait until this is dropped.
    Mine(Box<Partial>),
}

/// A download under way.
pub struct Partial {
    store: Store,
    digest: Digest,
    size: u64,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    length: u64,
}

impl Partial {
    /// Bytes present.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Takes in what an earlier download left.
    fn resume(&mut self) -> Result<()> {
        let failed = |e| Error::step("read download", self.path.display().to_string(), e);
        if self.file.metadata().map_err(failed)?.len() > self.size {
            return self.restart();
        }
        let mut buffer = vec![0u8; 256 << 10];
        loop {
            let n = self.file.read(&mut buffer).map_err(failed)?;
            if n == 0 {
                return Ok(());
            }
            self.hasher.update(&buffer[..n]);
            self.length += n as u64;
        }
    }

    /// Throws away what is there.
    pub fn restart(&mut self) -> Result<()> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(|e| Error::step("empty download", self.path.display().to_string(), e))?;
        self.hasher = self.digest.hasher();
        self.length = 0;
        Ok(())
    }

    /// Adds bytes; more than the descriptor promised are refused at once.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        if self.length + data.len() as u64 > self.size {
            self.restart()?;
            return Err(Error::msg(format!(
                "blob {}: more than the {} bytes that its manifest says",
                self.digest, self.size
            )));
        }
        self.file
            .write_all(data)
            .map_err(|e| Error::step("write", self.path.display().to_string(), e))?;
        self.hasher.update(data);
        self.length += data.len() as u64;
        Ok(())
    }

    /// Verifies the whole and moves it to its place. A wrong one is thrown away.
    pub fn commit(mut self: Box<Self>) -> Result<()> {
        if self.length != self.size {
            return Err(Error::msg(format!(
                "blob {}: {} bytes instead of {}",
                self.digest, self.length, self.size
            )));
        }
        let hasher = std::mem::replace(&mut self.hasher, self.digest.hasher());
        let got = hasher.finish();
        if got != self.digest {
            self.restart()?;
            return Err(Error::msg(format!(
                "blob {}: the content has digest {got}",
                self.digest
            )));
        }
        let path = self.store.path(&self.digest);
        fs::rename(&self.path, &path)
            .map_err(|e| Error::step("store blob", path.display().to_string(), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mine(store: &Store, digest: &Digest, size: u64) -> Box<Partial> {
        match store.partial(digest, size).unwrap() {
            Claim::Mine(partial) => partial,
            _ => panic!("not ours"),
        }
    }

    #[test]
    fn resumes_verifies_and_locks() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = Digest::of(b"hello world");
        let mut partial = mine(&store, &digest, 11);
        partial.write(b"hello ").unwrap();
        assert!(matches!(store.partial(&digest, 11).unwrap(), Claim::Busy));
        drop(partial);

        let mut partial = mine(&store, &digest, 11);
        assert_eq!(partial.length(), 6);
        partial.write(b"world").unwrap();
        partial.commit().unwrap();
        assert!(matches!(store.partial(&digest, 11).unwrap(), Claim::Here));
        assert_eq!(store.document(&digest, 100).unwrap(), b"hello world");
        assert!(
            fs::read_dir(dir.path().join("partial"))
                .unwrap()
                .next()
                .is_none()
        );
    }

    #[test]
    fn wrong_content_is_thrown_away() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = Digest::of(b"good");
        let mut partial = mine(&store, &digest, 4);
        partial.write(b"evil").unwrap();
        let error = partial.commit().unwrap_err().to_string();
        assert!(error.contains("the content has digest"), "{error}");
        let mut partial = mine(&store, &digest, 4);
        assert_eq!(partial.length(), 0);
        assert!(partial.write(b"too long").is_err());
        assert!(!store.has(&digest, None));
    }

    #[test]
    fn a_short_blob_counts_as_missing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = Digest::of(b"whole");
        fs::write(store.path(&digest), b"who").unwrap();
        assert!(!store.has(&digest, Some(5)));
        assert!(store.document(&digest, 10).is_none());
        store.put(&digest, b"whole").unwrap();
        assert!(store.has(&digest, Some(5)));
    }
}
