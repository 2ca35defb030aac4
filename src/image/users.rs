//! Users and groups of an image, from its own /etc/passwd and /etc/group.
//!
//! Parsed here because a static binary has no name service, and because the names are the image's,
//! not the host's. File formats: passwd(5), group(5).

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::unpack::dirs::in_root;
use crate::{Error, Result};

/// Largest passwd or group file read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// A user as a process needs it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolved {
    pub uid: u32,
    pub gid: u32,
    /// Groups besides `gid`, from the group file; none where the user was given with a group.
    pub groups: Vec<u32>,
    pub name: Option<String>,
    pub home: Option<String>,
}

/// Resolves `USER[:GROUP]`, each a name or a number, in the tree at `root`, as Docker does
/// (image-spec config.md, "User"). Empty means root. A number needs no entry; a name does.
pub fn resolve(root: &OwnedFd, user: &str) -> Result<Resolved> {
    let passwd = file_in_root(root, b"etc/passwd")?;
    let group = file_in_root(root, b"etc/group")?;
    resolve_in(&passwd, &group, user)
}

fn resolve_in(passwd: &str, group: &str, text: &str) -> Result<Resolved> {
    let (user, group_part) = match text.split_once(':') {
        Some((user, group)) => (user, group),
        None => (text, ""),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = id(user);
    let entry = passwd
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid: u32 = id(fields.nth(1)?)?;
            let gid: u32 = id(fields.next()?)?;
            Some((name, uid, gid, fields.nth(1).unwrap_or_default()))
        })
        // A user may be called "1000": the name goes first, as in Docker.
        .find(|(name, uid, ..)| *name == user || Some(*uid) == number);
    let mut found = match (entry, number) {
        (Some((name, uid, gid, home)), _) => Resolved {
            uid,
            gid,
            groups: Vec::new(),
            name: Some(name.to_string()),
            home: Some(home.to_string()).filter(|h| !h.is_empty()),
        },
        (None, Some(uid)) => Resolved {
            uid,
            ..Resolved::default()
        },
        (None, None) => {
            return Err(Error::msg(format!(
                "user {user:?} is not in the image's /etc/passwd"
            )));
        }
    };
    let groups = group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid: u32 = id(fields.nth(1)?)?;
        Some((name, gid, fields.next().unwrap_or_default()))
    });
    if group_part.is_empty() {
        if let Some(name) = &found.name {
            found.groups = groups
                .filter(|(.., members)| members.split(',').any(|m| m == name))
                .map(|(_, gid, _)| gid)
                .filter(|gid| *gid != found.gid)
                .collect();
            found.groups.sort_unstable();
            found.groups.dedup();
        }
        return Ok(found);
    }
    let number = id(group_part);
    found.gid = groups
        .filter(|(name, gid, _)| *name == group_part || Some(*gid) == number)
        .map(|(_, gid, _)| gid)
        .next()
        .or(number)
        .ok_or_else(|| {
            Error::msg(format!(
                "group {group_part:?} is not in the image's /etc/group"
            ))
        })?;
    Ok(found)
}

/// A numeric id; 4294967295 is no id (setuid(2) reads it as "unchanged").
fn id(text: &str) -> Option<u32> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|&id| id != u32::MAX)
}

/// A text file of the tree; empty if there is none. Links are followed inside the root; anything
/// but a regular file is taken for none, and not opened: opening a device or fifo acts on it.
pub fn file_in_root(root: &OwnedFd, path: &[u8]) -> Result<String> {
    let name = String::from_utf8_lossy(path);
    let failed = |e: Errno| Error::step("read the image's", name.to_string(), e);
    let held = match in_root(root, path, OFlags::PATH) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(String::new()),
        Err(e) => return Err(failed(e)),
    };
    let stat = rustix::fs::fstat(&held).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(String::new());
    }
    let mut data = Vec::new();
    std::fs::File::open(format!("/proc/self/fd/{}", held.as_raw_fd()))
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut data))
        .map_err(|e| Error::step("read the image's", name.to_string(), e))?;
    Ok(String::from_utf8_lossy(&data).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        aiuser:x:1000:1001::/home/aiuser:/bin/bash\n\
        broken:x:abc:0::/:\n\
        2000:x:77:78::/seven:\n";
    const GROUP: &str =
        "root:x:0:\nvideo:x:44:aiuser,other\nai:x:1001:aiuser\nrender:x:105:aiuser\n";

    fn of(text: &str) -> Resolved {
        resolve_in(PASSWD, GROUP, text).unwrap()
    }

    #[test]
    fn names_numbers_and_groups() {
        let user = of("aiuser");
        assert_eq!((user.uid, user.gid), (1000, 1001));
        assert_eq!(user.groups, [44, 105]);
        assert_eq!(user.home.as_deref(), Some("/home/aiuser"));
        assert_eq!(of("1000"), user);
        let user = of("aiuser:video");
        assert_eq!((user.gid, user.groups.len()), (44, 0));
        assert_eq!(of("aiuser:7").gid, 7);
        assert_eq!((of("").uid, of("").home.as_deref()), (0, Some("/root")));
        let stranger = of("4242:4343");
        assert_eq!(
            (stranger.uid, stranger.gid, stranger.home),
            (4242, 4343, None)
        );
        assert_eq!(of("4242").gid, 0);
        // A name of digits beats the number.
        assert_eq!(of("2000").uid, 77);
    }

    #[test]
    fn unknown_names_are_errors() {
        for wrong in ["nobody", "broken", "aiuser:nogroup", "4294967295", "-1"] {
            assert!(resolve_in(PASSWD, GROUP, wrong).is_err(), "{wrong}");
        }
    }
}
