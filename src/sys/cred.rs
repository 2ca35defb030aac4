//! Identity and privileges of the calling thread: ids, capabilities, securebits, no_new_privs.
//! The raw calls, because glibc's versions signal other threads, and the child has none.

use super::{Sys, check};
use std::sync::OnceLock;

/// The first user namespace's link in /proc (PROC_USER_INIT_INO, include/linux/proc_ns.h).
const FIRST: &str = "user:[4026531837]";

/// Whether this process is root of the machine, and not of a user namespace (user_namespaces(7): the first one maps every
/// id to itself). Root of another one, as under rootless podman, may do no more than its owner.
///
/// Asked once: this process enters no user namespace, only its children do.
pub fn host_root() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        if !nix::unistd::geteuid().is_root() {
            return false;
        }
        if std::fs::read_link("/proc/self/ns/user").is_ok_and(|l| l.as_os_str() == FIRST) {
            return true;
        }
        // A kernel that numbers them otherwise, or has none.
        let Ok(text) = std::fs::read_to_string("/proc/self/uid_map") else {
            return true;
        };
        text.split_ascii_whitespace().eq(["0", "0", "4294967295"])
    })
}

/// setresuid(2) with one id for all three.
pub fn set_uid(uid: u32) -> Sys<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    Ok(())
}

/// setresgid(2) with one id for all three.
pub fn set_gid(gid: u32) -> Sys<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    Ok(())
}

/// setgroups(2).
pub fn set_groups(gids: &[u32]) -> Sys<()> {
    // SAFETY: the slice is valid for its length.
    check(unsafe { libc::syscall(libc::SYS_setgroups, gids.len(), gids.as_ptr()) })?;
    Ok(())
}

/// Keep permitted capabilities over a change from uid 0 (prctl(2), PR_SET_KEEPCAPS).
pub fn set_keepcaps(on: bool) -> Sys<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, on as libc::c_ulong, 0, 0, 0) }.into())?;
    Ok(())
}

/// No exec can gain privileges from here on (prctl(2), PR_SET_NO_NEW_PRIVS).
pub fn set_no_new_privs() -> Sys<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as libc::c_ulong, 0, 0, 0) }.into())?;
    Ok(())
}

/// PR_SET_DUMPABLE.
pub fn set_dumpable(on: bool) -> Sys<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, on as libc::c_ulong, 0, 0, 0) }.into())?;
    Ok(())
}

/// Removes a capability from the bounding set (prctl(2), PR_CAPBSET_DROP).
pub fn drop_bounding(cap: u8) -> Sys<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, cap as libc::c_ulong, 0, 0, 0) }.into())?;
    Ok(())
}

/// Raises one ambient capability (prctl(2), PR_CAP_AMBIENT).
pub fn raise_ambient(cap: u8) -> Sys<()> {
    // SAFETY: plain integers.
    check(
        unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong,
                cap as libc::c_ulong,
                0,
                0,
            )
        }
        .into(),
    )?;
    Ok(())
}

/// Clears the ambient set.
pub fn clear_ambient() -> Sys<()> {
    // SAFETY: plain integers.
    check(
        unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong,
                0,
                0,
                0,
            )
        }
        .into(),
    )?;
    Ok(())
}

/// _LINUX_CAPABILITY_VERSION_3 of include/uapi/linux/capability.h: 64-bit sets in two halves.
const CAP_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// capset(2) for the calling thread; sets are bit masks (bit = capability number).
pub fn set_caps(effective: u64, permitted: u64, inheritable: u64) -> Sys<()> {
    let header = CapHeader {
        version: CAP_VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| CapData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 takes two data elements.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

/// capget(2) for the calling thread: (effective, permitted, inheritable).
pub fn get_caps() -> Sys<(u64, u64, u64)> {
    let mut header = CapHeader {
        version: CAP_VERSION_3,
        pid: 0,
    };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 writes two data elements.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let join = |lo: u32, hi: u32| u64::from(lo) | u64::from(hi) << 32;
    Ok((
        join(data[0].effective, data[1].effective),
        join(data[0].permitted, data[1].permitted),
        join(data[0].inheritable, data[1].inheritable),
    ))
}
