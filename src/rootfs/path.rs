//! Paths inside the root: opened, and made where missing, without ever leaving it.
//!
//! A path is resolved at its own step, with earlier mounts in place, by openat2(RESOLVE_IN_ROOT |
//! RESOLVE_NO_MAGICLINKS) from the root's descriptor: symbolic links of the image resolve inside
//! the image, and /proc/self/fd/N cannot lead out (CVE-2021-30465, CVE-2024-45310).

use crate::sys::Sys;
use crate::sys::fd::{
    self, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV,
};
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// PATH_MAX (limits.h), the NUL included.
pub const PATH_MAX: usize = 4096;

/// How a path may be resolved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Symbolic links are followed inside the root.
    Follow,
    /// Any symbolic link on the way is ELOOP.
    Refuse,
    /// Symbolic links are followed inside the root, but another mount on the way is EXDEV: an image's
    /// link must not lead into a folder of the host that is bound in the cell.
    SameMount,
}

/// Opens an existing path (O_PATH).
pub fn open(root: BorrowedFd, path: &CStr, links: Links) -> Sys<OwnedFd> {
    let no_links = match links {
        Links::Follow => 0,
        Links::Refuse => RESOLVE_NO_SYMLINKS,
        Links::SameMount => RESOLVE_NO_XDEV,
    };
    fd::openat2(
        root,
        path,
        libc::O_PATH,
        0,
        RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | no_links,
    )
}

/// Opens a directory, making what is missing of it with mode 0755.
///
/// A dangling link on the way is ENOENT: making its target would let an image choose where.
pub fn ensure_dir(root: BorrowedFd, path: &CStr, links: Links) -> Sys<OwnedFd> {
    match open(root, path, links) {
        Err(Errno::ENOENT) => make_dirs(root, path.to_bytes(), links),
        other => other,
    }
}

/// Opens a non-directory, making an empty file of mode 0644 (and its directories) where missing.
pub fn ensure_file(root: BorrowedFd, path: &CStr, links: Links) -> Sys<OwnedFd> {
    match open(root, path, links) {
        Err(Errno::ENOENT) => {}
        other => return other,
    }
    let mut buf = [0u8; PATH_MAX];
    let (dir, name) = split(path.to_bytes());
    let parent = parent(root, dir, links)?;
    let name = terminated(&mut buf, name)?;
    match fd::mknodat(parent.as_fd(), name, libc::S_IFREG | 0o644, 0) {
        Ok(()) | Err(Errno::EEXIST) => open(root, path, links),
        Err(e) => Err(e),
    }
}

/// Opens the directory `dir` (bytes without the final component), making it where missing.
pub fn parent(root: BorrowedFd, dir: &[u8], links: Links) -> Sys<OwnedFd> {
    let mut buf = [0u8; PATH_MAX];
    if dir.is_empty() {
        return open(root, c"/", links);
    }
    let text = terminated(&mut buf, dir)?;
    ensure_dir(root, text, links)
}

/// Directory part and last component; trailing slashes don't count.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|b| *b != b'/').map_or(0, |i| i + 1);
    let path = &path[..end];
    match path.iter().rposition(|b| *b == b'/') {
        Some(i) => (&path[..i], &path[i + 1..]),
        None => (&[], path),
    }
}

/// Copies `bytes` into `buf` as a C string.
pub fn terminated<'a>(buf: &'a mut [u8; PATH_MAX], bytes: &[u8]) -> Sys<&'a CStr> {
    if bytes.len() >= PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    buf[..bytes.len()].copy_from_slice(bytes);
    buf[bytes.len()] = 0;
    CStr::from_bytes_until_nul(buf).map_err(|_| Errno::EINVAL)
}

fn make_dirs(root: BorrowedFd, path: &[u8], links: Links) -> Sys<OwnedFd> {
    let mut buf = [0u8; PATH_MAX];
    // Backwards to the longest prefix that exists …
    let mut end = path.len();
    let mut dir = loop {
        end = path[..end].iter().rposition(|b| *b == b'/').unwrap_or(0);
        if path[..end].iter().all(|b| *b == b'/') {
            break open(root, c"/", links)?;
        }
        match open(root, terminated(&mut buf, &path[..end])?, links) {
            Ok(fd) => break fd,
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(e),
        }
    };
    // … then forwards, one component at a time.
    while end < path.len() {
        let start = match path[end..].iter().position(|b| *b != b'/') {
            Some(skip) => end + skip,
            None => break,
        };
        let next = path[start..]
            .iter()
            .position(|b| *b == b'/')
            .map_or(path.len(), |i| start + i);
        let name = &path[start..next];
        if name != b"." && name != b".." {
            match fd::mkdirat(dir.as_fd(), terminated(&mut buf, name)?, 0o755) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(e),
            }
        }
        end = next;
        dir = open(root, terminated(&mut buf, &path[..end])?, links)?;
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, std::fs::File) {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        (dir, fd)
    }

    #[test]
    fn splits_at_the_last_component() {
        assert_eq!(split(b"/a/b/"), (&b"/a"[..], &b"b"[..]));
        assert_eq!(split(b"/a"), (&b""[..], &b"a"[..]));
        assert_eq!(split(b"a"), (&b""[..], &b"a"[..]));
        assert_eq!(split(b"//"), (&b""[..], &b""[..]));
    }

    #[test]
    fn makes_what_is_missing() {
        let (dir, fd) = root();
        ensure_dir(fd.as_fd(), c"/a/b//c/", Links::Follow).unwrap();
        assert!(dir.path().join("a/b/c").is_dir());
        ensure_file(fd.as_fd(), c"/x/y", Links::Follow).unwrap();
        assert!(dir.path().join("x/y").is_file());
        ensure_dir(fd.as_fd(), c"/../../../up", Links::Follow).unwrap();
        assert!(dir.path().join("up").is_dir());
    }

    #[test]
    fn links_stay_inside_and_dangling_ones_fail() {
        let (dir, fd) = root();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        symlink("/etc", dir.path().join("in")).unwrap();
        symlink(
            "../../../../../../tmp/gpucell-nowhere",
            dir.path().join("out"),
        )
        .unwrap();
        ensure_dir(fd.as_fd(), c"/in/deep", Links::Follow).unwrap();
        assert!(dir.path().join("etc/deep").is_dir());
        let got = ensure_dir(fd.as_fd(), c"/out/x", Links::Follow);
        assert_eq!(got.err(), Some(Errno::ENOENT));
        assert!(!std::path::Path::new("/tmp/gpucell-nowhere").exists());
        let got = ensure_dir(fd.as_fd(), c"/in", Links::Refuse);
        assert_eq!(got.err(), Some(Errno::ELOOP));
    }
}
