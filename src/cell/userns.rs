//! Id maps of user namespaces: written directly with privileges, by newuidmap and newgidmap
//! (shadow-utils) without.

use crate::plan::{IdMaps, IdRange};
use crate::sys::clone::{self, Clone3};
use crate::sys::{Sys, pipe};
use crate::{Error, Result};
use nix::errno::Errno;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

/// Writes the maps of a process that has just made its user namespace.
pub fn write_maps(pid: i32, maps: &IdMaps) -> Result<()> {
    let euid = nix::unistd::geteuid().as_raw();
    let egid = nix::unistd::getegid().as_raw();
    if euid == 0 {
        put(pid, "uid_map", &IdMaps::render(&maps.uids))?;
        return put(pid, "gid_map", &IdMaps::render(&maps.gids));
    }
    if own_id_only(&maps.uids, euid) {
        put(pid, "uid_map", &IdMaps::render(&maps.uids))?;
    } else {
        helper("newuidmap", pid, &maps.uids)?;
    }
    if own_id_only(&maps.gids, egid) {
        // The kernel wants setgroups given up first (user_namespaces(7)).
        put(pid, "setgroups", "deny")?;
        put(pid, "gid_map", &IdMaps::render(&maps.gids))
    } else {
        helper("newgidmap", pid, &maps.gids)
    }
}

fn own_id_only(ranges: &[IdRange], id: u32) -> bool {
    matches!(ranges, [r] if r.outside == id && r.count == 1)
}

fn put(pid: i32, file: &str, text: &str) -> Result<()> {
    let path = format!("/proc/{pid}/{file}");
    fs::write(&path, text).map_err(|e| Error::step("write id map", path, e))
}

/// newuidmap(1): checks /etc/subuid for the caller, then writes the map.
fn helper(program: &str, pid: i32, ranges: &[IdRange]) -> Result<()> {
    let mut cmd = Command::new(program);
    cmd.arg(pid.to_string());
    for r in ranges {
        cmd.args([r.inside, r.outside, r.count].map(|n| n.to_string()));
    }
    let fail = |e: io::Error| Error::step("run", program.to_owned(), e);
    let out = cmd.output().map_err(fail)?;
    if out.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&out.stderr);
    Err(Error::msg(format!(
        "{program} refused the id map ({}): see /etc/subuid and /etc/subgid",
        text.trim()
    )))
}

/// A user namespace with these maps, for an id-mapped mount; nobody lives in it.
pub fn namespace(maps: &IdMaps) -> Sys<OwnedFd> {
    let (read, write) = pipe::pair()?;
    let args = Clone3 {
        flags: libc::CLONE_NEWUSER as u64,
        cgroup: None,
    };
    let child = clone::clone3(&args, || {
        // The inherited write end would keep the read below from ever ending.
        let _ = clone::set_pdeathsig(libc::SIGKILL);
        let raw = std::os::fd::AsRawFd::as_raw_fd(&write) as u32;
        let _ = crate::sys::fd::close_range(raw, raw);
        let mut byte = [0];
        let _ = crate::sys::fd::read(read.as_fd(), &mut byte);
        0
    })?;
    let path = format!("/proc/{}/ns/user", child.pid);
    let opened = write_maps(child.pid, maps)
        .map_err(|e| Errno::from_raw(e.errno().unwrap_or(libc::EINVAL)))
        .and_then(|()| {
            fs::File::open(path)
                .map(OwnedFd::from)
                .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
        });
    drop(write);
    clone::wait_pidfd(child.pidfd.as_fd())?;
    opened
}
