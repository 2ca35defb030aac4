//! Users and groups of a root file system: `passwd` and `group` text, and Docker's `user[:group]`.
//!
//! Pure: the caller reads the two files inside the rootfs. The C library's getpw*/getgr* are never
//! used: in a static binary they would load the host's name service modules.

use crate::{Error, Result};

/// What a `user[:group]` stands for in one rootfs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Resolved {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups: those that list the user, when no group was named.
    pub groups: Vec<u32>,
    /// Login name, when passwd has one.
    pub name: Option<String>,
    /// Home directory, when passwd has one.
    pub home: Option<String>,
}

/// The largest id: 2^31-1, as Docker and runc have it (moby/sys/user `maxID`), which keeps clear of
/// (uid_t)-1.
const MAX_ID: u32 = i32::MAX as u32;

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// passwd(5): name:password:uid:gid:gecos:home:shell. Lines that aren't such are skipped.
fn passwd_entries(text: &str) -> impl Iterator<Item = Entry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(Entry {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// group(5): name:password:gid:members.
fn group_entries(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

/// A number that may stand for an id. Text that doesn't start with a digit is `None` (a name).
fn id(text: &str, what: &str) -> Result<Option<u32>> {
    if !text.bytes().all(|b| b.is_ascii_digit()) || text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err(Error::msg(format!(
            "{what} {text}: uids and gids must be in range 0-{MAX_ID}"
        ))),
    }
}

/// Resolves `user[:group]`, names or numbers, as Docker does (moby/sys/user `GetExecUser`): a name is
/// looked up first, a number need not be in passwd; without a group it is the one of passwd, or 0.
///
/// # Errors
/// A name that isn't in the file, an id out of range.
pub fn resolve(spec: &str, passwd: &str, group: &str) -> Result<Resolved> {
    let (user, wanted) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (spec, None),
    };
    let mut out = Resolved::default();
    let number = id(user, "user")?;
    let found = if user.is_empty() {
        passwd_entries(passwd).find(|e| e.uid == 0)
    } else {
        passwd_entries(passwd)
            .find(|e| e.name == user)
            .or_else(|| passwd_entries(passwd).find(|e| Some(e.uid) == number))
    };
    match (found, number) {
        (Some(entry), _) => {
            out.uid = entry.uid;
            out.gid = entry.gid;
            out.name = Some(entry.name.to_owned());
            out.home = Some(entry.home.to_owned()).filter(|h| !h.is_empty());
        }
        (None, Some(uid)) => out.uid = uid,
        (None, None) if user.is_empty() => {}
        (None, None) => {
            return Err(Error::msg(format!(
                "unable to find user {user}: no matching entries in passwd file"
            )));
        }
    }
    match wanted {
        Some(name) => out.gid = find_group(name, group)?,
        None => {
            if let Some(name) = &out.name {
                out.groups = group_entries(group)
                    .filter(|(_, _, members)| members.split(',').any(|m| m.trim() == name))
                    .map(|(_, gid, _)| gid)
                    .collect();
            }
        }
    }
    Ok(out)
}

/// A group by name or number; a number need not be in the file.
///
/// # Errors
/// A name that isn't in the file, an id out of range.
pub fn find_group(name: &str, group: &str) -> Result<u32> {
    let number = id(name, "group")?;
    group_entries(group)
        .find(|(n, _, _)| *n == name)
        .map(|(_, gid, _)| gid)
        .or(number)
        .ok_or_else(|| {
            Error::msg(format!(
                "unable to find group {name}: no matching entries in group file"
            ))
        })
}

/// The home directory of a uid, when passwd has one.
pub fn home_of(uid: u32, passwd: &str) -> Option<&str> {
    passwd_entries(passwd)
        .find(|e| e.uid == uid)
        .map(|e| e.home)
        .filter(|h| !h.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        broken line\n\
        aiuser:x:1000:1001:AI,,,:/home/aiuser:/bin/bash\n\
        1234:x:77:78::/h:/bin/sh\n\
        nohome:x:5:5\n";
    const GROUP: &str =
        "root:x:0:\nvideo:x:44:aiuser,other\naiuser:x:1001:\nrender:x:107: other, aiuser\nodd\n";

    fn show(spec: &str) -> std::result::Result<(u32, u32, Vec<u32>), String> {
        resolve(spec, PASSWD, GROUP)
            .map(|r| (r.uid, r.gid, r.groups))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn users() {
        for (spec, uid, gid, groups) in [
            ("aiuser", 1000, 1001, vec![44, 107]),
            ("1000", 1000, 1001, vec![44, 107]),
            ("aiuser:video", 1000, 44, vec![]),
            ("aiuser:9", 1000, 9, vec![]),
            ("aiuser:", 1000, 1001, vec![44, 107]),
            ("1", 1, 0, vec![]),
            ("1:1", 1, 1, vec![]),
            ("1234", 77, 78, vec![]),
            ("", 0, 0, vec![]),
            (":video", 0, 44, vec![]),
            ("root", 0, 0, vec![]),
        ] {
            assert_eq!(show(spec), Ok((uid, gid, groups)), "{spec:?}");
        }
    }

    #[test]
    fn unknown_names_and_wild_numbers() {
        for (spec, want) in [
            ("bob", "unable to find user bob"),
            ("root:staff", "unable to find group staff"),
            ("4294967295", "must be in range"),
            ("99999999999999", "must be in range"),
            ("0:4294967295", "must be in range"),
            ("-1", "unable to find user -1"),
        ] {
            let err = show(spec).unwrap_err();
            assert!(err.contains(want), "{spec}: {err}");
        }
    }

    #[test]
    fn homes() {
        assert_eq!(home_of(1000, PASSWD), Some("/home/aiuser"));
        assert_eq!(home_of(5, PASSWD), None);
        assert_eq!(home_of(6, PASSWD), None);
        let none = resolve("3", "", "").unwrap();
        assert_eq!((none.uid, none.home), (3, None));
    }
}
