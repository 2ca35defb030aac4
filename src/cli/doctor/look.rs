//! What `doctor` reads, behind a trait so that the judging is tested on made-up hosts.

use std::path::{Path, PathBuf};

/// Reads the host.
pub(super) trait Look {
    /// Text of a file; `None` when it can't be read.
    fn read(&self, path: &str) -> Option<String>;
    /// Whether a path is there.
    fn exists(&self, path: &str) -> bool;
    /// Whether the caller may write to a path.
    fn writable(&self, path: &str) -> bool;
    /// A program on PATH (and in the sbin directories, which a user's PATH may lack).
    fn program(&self, name: &str) -> Option<PathBuf>;
    /// `uname -r`.
    fn release(&self) -> String;
    /// Effective user id.
    fn uid(&self) -> u32;
    /// Login name of the caller, when the environment has it.
    fn user(&self) -> Option<String>;
    /// The init that `--init` would take.
    fn init(&self) -> Option<PathBuf>;
}

/// This host.
pub(super) struct Live;

impl Look for Live {
    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(path).ok()
    }

    fn exists(&self, path: &str) -> bool {
        Path::new(path).exists()
    }

    fn writable(&self, path: &str) -> bool {
        nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok()
    }

    fn program(&self, name: &str) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let extra = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        std::env::split_paths(&path)
            .chain(extra)
            .map(|dir| dir.join(name))
            .find(|p| nix::unistd::access(p, nix::unistd::AccessFlags::X_OK).is_ok())
    }

    fn release(&self) -> String {
        nix::sys::utsname::uname()
            .map(|u| u.release().to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    fn uid(&self) -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    fn user(&self) -> Option<String> {
        std::env::var("USER").ok()
    }

    fn init(&self) -> Option<PathBuf> {
        crate::cli::init::find().ok()
    }
}
