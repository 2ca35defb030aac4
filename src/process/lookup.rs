//! Finding the program and the home directory inside the cell, without allocating.

use crate::plan::ProcessPlan;
use crate::sys::{Sys, fd};
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

/// The first candidate that may be executed, after the root was entered. The working directory
/// must be the program's own.
///
/// Errors: ENOENT when there is none, else why the one that exists can't run.
pub fn program(p: &ProcessPlan) -> Sys<&CStr> {
    let mut reason = Errno::ENOENT;
    for path in &p.candidates {
        match executable(path) {
            Ok(()) => return Ok(path),
            Err(Errno::ENOENT) => {}
            Err(e) => {
                // A directory on the PATH that can't be searched doesn't end the search
                // (execvp(3)); it is the reason only when nothing else turns up.
                if p.candidates.len() == 1 || e == Errno::EACCES {
                    reason = e;
                }
            }
        }
    }
    Err(reason)
}

fn executable(path: &CStr) -> Sys<()> {
    let st = fd::fstatat(fd::at_cwd(), path, 0)?;
    if st.is_dir() {
        return Err(Errno::EISDIR);
    }
    if st.mode & libc::S_IFMT != libc::S_IFREG {
        return Err(Errno::EACCES);
    }
    fd::may_execute(fd::at_cwd(), path)
}

/// `HOME=` and the home directory of `uid` from the cell's /etc/passwd, or `/` (what runc gives).
/// Written into `buf`, NUL-terminated.
pub fn home<'a>(root: BorrowedFd, uid: u32, buf: &'a mut [u8; HOME_MAX]) -> &'a CStr {
    const PREFIX: &[u8] = b"HOME=";
    buf[..PREFIX.len()].copy_from_slice(PREFIX);
    let len = scan(root, uid, &mut buf[PREFIX.len()..]).unwrap_or(0);
    let len = if len == 0 {
        buf[PREFIX.len()] = b'/';
        1
    } else {
        len
    };
    buf[PREFIX.len() + len] = 0;
    CStr::from_bytes_until_nul(buf).unwrap_or(c"HOME=/")
}

/// Room for `HOME=`, a path and its NUL.
pub const HOME_MAX: usize = 1024;

/// Bytes of /etc/passwd that are looked at: an image can't make the runtime read forever.
const PASSWD_MAX: usize = 1 << 20;

/// Reads /etc/passwd in pieces; a line longer than the window is passed over.
fn scan(root: BorrowedFd, uid: u32, out: &mut [u8]) -> Sys<usize> {
    let file = fd::open_in_root(root, c"/etc/passwd", libc::O_RDONLY | libc::O_NONBLOCK)?;
    if fd::fstat(file.as_fd())?.mode & libc::S_IFMT != libc::S_IFREG {
        return Err(Errno::EINVAL);
    }
    let mut window = [0u8; 4096];
    let (mut filled, mut total, mut skipping) = (0, 0, false);
    loop {
        let n = fd::read(file.as_fd(), &mut window[filled..])?;
        filled += n;
        total += n;
        let mut start = 0;
        while let Some(len) = window[start..filled].iter().position(|b| *b == b'\n') {
            let line = &window[start..start + len];
            if !skipping && let Some(home) = home_of(line, uid, out.len()) {
                out[..home.len()].copy_from_slice(home);
                return Ok(home.len());
            }
            skipping = false;
            start += len + 1;
        }
        if n == 0 || total > PASSWD_MAX {
            let line = &window[start..filled];
            return match home_of(line, uid, out.len()) {
                Some(home) if !skipping => {
                    out[..home.len()].copy_from_slice(home);
                    Ok(home.len())
                }
                _ => Err(Errno::ENOENT),
            };
        }
        if start == 0 && filled == window.len() {
            skipping = true;
            filled = 0;
        } else {
            window.copy_within(start..filled, 0);
            filled -= start;
        }
    }
}

/// name:password:uid:gid:gecos:home:shell (passwd(5)). `room` includes the final NUL.
fn home_of(line: &[u8], uid: u32, room: usize) -> Option<&[u8]> {
    let mut fields = line.split(|b| *b == b':');
    let id = std::str::from_utf8(fields.nth(2)?).ok()?;
    if id.parse() != Ok(uid) {
        return None;
    }
    let home = fields.nth(2)?;
    (!home.is_empty() && home.len() < room && !home.contains(&0)).then_some(home)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn look(passwd: &str, uid: u32) -> String {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        let root = fs::File::open(dir.path()).unwrap();
        let mut buf = [0; HOME_MAX];
        home(root.as_fd(), uid, &mut buf)
            .to_str()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn home_comes_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\naiuser:x:1000:1000::/home/aiuser:/bin/sh";
        assert_eq!(look(passwd, 0), "HOME=/root");
        assert_eq!(look(passwd, 1000), "HOME=/home/aiuser");
        assert_eq!(look(passwd, 7), "HOME=/");
    }

    #[test]
    fn odd_passwd_files_are_harmless() {
        assert_eq!(look("", 0), "HOME=/");
        assert_eq!(look("root:x:0\n::::::\nx", 0), "HOME=/");
        let long = format!("{}:x:0:0::/bad:\nroot:x:0:0::/root:\n", "a".repeat(9000));
        assert_eq!(look(&long, 0), "HOME=/root");
        let long = format!("root:x:0:0::/{}:", "a".repeat(2000));
        assert_eq!(look(&long, 0), "HOME=/");
    }
}
