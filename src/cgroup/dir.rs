//! One cgroup directory, held by descriptor, and the few things done to it.
//!
//! Owns the calls on control files. Every file is reached through the held descriptor, so a
//! path is walked once.

use nix::dir::Dir as NixDir;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A held directory (O_PATH: enough for CLONE_INTO_CGROUP and for attaching programs).
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    /// For messages.
    pub path: String,
}

impl Dir {
    pub fn open(path: &str) -> io::Result<Self> {
        Ok(Dir {
            fd: open_dir(nix::fcntl::AT_FDCWD, path)?,
            path: path.to_owned(),
        })
    }

    pub fn sub(&self, name: &str) -> io::Result<Self> {
        Ok(Dir {
            fd: open_dir(self.fd.as_fd(), name)?,
            path: format!("{}/{name}", self.path),
        })
    }

    pub fn mkdir(&self, name: &str) -> io::Result<()> {
        Ok(mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755))?)
    }

    pub fn rmdir(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir)?)
    }

    /// Writes in one call, as control files want it.
    pub fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let mut f = self.file(file, OFlag::O_WRONLY)?;
        let n = f.write(value.as_bytes())?;
        if n == value.len() {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }

    pub fn read(&self, file: &str) -> io::Result<String> {
        let mut text = String::new();
        self.file(file, OFlag::O_RDONLY)?
            .read_to_string(&mut text)?;
        Ok(text)
    }

    pub fn file(&self, name: &str, flags: OFlag) -> io::Result<File> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY;
        Ok(openat(&self.fd, name, flags, Mode::empty())?.into())
    }

    pub fn has(&self, file: &str) -> bool {
        nix::unistd::faccessat(
            &self.fd,
            file,
            nix::unistd::AccessFlags::F_OK,
            AtFlags::empty(),
        )
        .is_ok()
    }

    /// Names of the groups directly below.
    pub fn children(&self) -> io::Result<Vec<String>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = NixDir::openat(&self.fd, ".", flags, Mode::empty())?;
        let mut out = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            if entry.file_type() != Some(nix::dir::Type::Directory) {
                continue;
            }
            // The kernel allows any bytes but newline. Names that are not UTF-8 can't be made by
            // us, and a cell that makes one gets an error at removal rather than a wrong name.
            match entry.file_name().to_str() {
                Ok("." | "..") => {}
                Ok(name) => out.push(name.to_owned()),
                Err(_) => return Err(io::Error::from_raw_os_error(libc::EILSEQ)),
            }
        }
        Ok(out)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open_dir(at: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    Ok(openat(at, path, flags, Mode::empty())?)
}
