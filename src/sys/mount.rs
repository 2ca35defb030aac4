//! The mount API of Linux 5.2 (fsopen, open_tree, move_mount) and 5.12 (mount_setattr),
//! pivot_root and umount2.

use super::{Sys, check};
use std::ffi::CStr;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// open_tree(2): make a detached clone.
pub const OPEN_TREE_CLONE: u32 = 1;
/// Whole tree.
pub const AT_RECURSIVE: u32 = 0x8000;
/// The path is empty: use the descriptor itself.
pub const AT_EMPTY_PATH: u32 = 0x1000;

// include/uapi/linux/mount.h
/// Read-only.
pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
/// Ignore set-id bits.
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
/// No device access.
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
/// No execution.
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;
/// All access time modes; must be cleared when one is set.
pub const MOUNT_ATTR_ATIME: u64 = 0x70;
/// Update access time relative to mtime (the default, value 0).
pub const MOUNT_ATTR_RELATIME: u64 = 0x0;
/// Never update access times.
pub const MOUNT_ATTR_NOATIME: u64 = 0x10;
/// Always update access times.
pub const MOUNT_ATTR_STRICTATIME: u64 = 0x20;
/// No directory access times.
pub const MOUNT_ATTR_NODIRATIME: u64 = 0x80;
/// Map ids by a user namespace.
pub const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
/// Don't follow symbolic links.
pub const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x0020_0000;

/// `struct mount_attr`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// MOUNT_ATTR_* to set.
    pub set: u64,
    /// MOUNT_ATTR_* to clear.
    pub clr: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE, or 0.
    pub propagation: u64,
    /// User namespace for MOUNT_ATTR_IDMAP.
    pub userns: u64,
}

fn own(fd: libc::c_long) -> OwnedFd {
    // SAFETY: only called with a descriptor the kernel has just made.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

/// open_tree(2). `flags` gets OPEN_TREE_CLOEXEC.
pub fn open_tree(dir: BorrowedFd, path: &CStr, flags: u32) -> Sys<OwnedFd> {
    // SAFETY: path is NUL-terminated. OPEN_TREE_CLOEXEC is O_CLOEXEC.
    check(unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags | libc::O_CLOEXEC as u32,
        )
    })
    .map(own)
}

/// open_tree_attr(2), Linux 6.15: clones a single mount and sets its attributes in one call. None: it has
/// to be done in two, which also tell what is wrong.
pub fn open_tree_attr(dir: BorrowedFd, path: &CStr, attr: &MountAttr) -> Option<OwnedFd> {
    /// The same on every architecture; libc doesn't know it yet.
    const SYS_OPEN_TREE_ATTR: libc::c_long = 467;
    // SAFETY: path is NUL-terminated, attr is valid for its size.
    check(unsafe {
        libc::syscall(
            SYS_OPEN_TREE_ATTR,
            dir.as_raw_fd(),
            path.as_ptr(),
            OPEN_TREE_CLONE | libc::O_CLOEXEC as u32,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })
    .ok()
    .map(own)
}

/// Clones the mount behind a descriptor into a detached tree.
pub fn clone_tree(fd: BorrowedFd, recursive: bool) -> Sys<OwnedFd> {
    let rec = if recursive { AT_RECURSIVE } else { 0 };
    open_tree(fd, c"", OPEN_TREE_CLONE | AT_EMPTY_PATH | rec)
}

/// Attaches the tree `from` onto the object `to` stands for (move_mount(2), both by descriptor).
pub fn attach(from: BorrowedFd, to: BorrowedFd) -> Sys<()> {
    const T_EMPTY_PATH: u32 = 0x40;
    move_mount(from, to, c"", T_EMPTY_PATH)
}

/// Attaches the tree `from` onto `name` in the folder `dir`. A link at the name isn't followed: it is what the
/// tree is mounted on.
pub fn attach_at(from: BorrowedFd, dir: BorrowedFd, name: &CStr) -> Sys<()> {
    move_mount(from, dir, name, 0)
}

fn move_mount(from: BorrowedFd, to: BorrowedFd, path: &CStr, flags: u32) -> Sys<()> {
    const F_EMPTY_PATH: u32 = 0x4;
    // SAFETY: NUL-terminated paths, the empty ones with the *_EMPTY_PATH flags.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from.as_raw_fd(),
            c"".as_ptr(),
            to.as_raw_fd(),
            path.as_ptr(),
            F_EMPTY_PATH | flags,
        )
    })?;
    Ok(())
}

/// mount_setattr(2) on the mount behind `fd`.
pub fn setattr(fd: BorrowedFd, recursive: bool, attr: &MountAttr) -> Sys<()> {
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: attr is valid for its size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// fsopen(2).
pub fn fsopen(fstype: &CStr) -> Sys<OwnedFd> {
    const FSOPEN_CLOEXEC: u32 = 1;
    // SAFETY: fstype is NUL-terminated.
    check(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), FSOPEN_CLOEXEC) }).map(own)
}

/// fsconfig(2): a flag (`value` none) or a string parameter.
pub fn fsconfig(fs: BorrowedFd, key: &CStr, value: Option<&CStr>) -> Sys<()> {
    const SET_FLAG: u32 = 0;
    const SET_STRING: u32 = 1;
    let (cmd, val) = match value {
        Some(v) => (SET_STRING, v.as_ptr()),
        None => (SET_FLAG, std::ptr::null()),
    };
    // SAFETY: strings are NUL-terminated; a flag takes a null value.
    check(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            fs.as_raw_fd(),
            cmd,
            key.as_ptr(),
            val,
            0,
        )
    })?;
    Ok(())
}

/// fsconfig(2) FSCONFIG_CMD_CREATE, then fsmount(2) with MOUNT_ATTR_* `attrs`.
pub fn fsmount(fs: BorrowedFd, attrs: u64) -> Sys<OwnedFd> {
    const CMD_CREATE: u32 = 6;
    const FSMOUNT_CLOEXEC: u32 = 1;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: CMD_CREATE takes null key and value.
    check(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            fs.as_raw_fd(),
            CMD_CREATE,
            null,
            null,
            0,
        )
    })?;
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), FSMOUNT_CLOEXEC, attrs) })
        .map(own)
}

/// mount(2) that only changes propagation of the tree at `path`.
pub fn set_propagation(path: &CStr, flags: u64) -> Sys<()> {
    // SAFETY: path is NUL-terminated; the other pointers may be null for this operation.
    check(
        unsafe {
            libc::mount(
                std::ptr::null(),
                path.as_ptr(),
                std::ptr::null(),
                flags,
                std::ptr::null(),
            )
        }
        .into(),
    )?;
    Ok(())
}

/// mount(2) MS_MOVE, for `--no-pivot`.
pub fn move_to_root(from: &CStr) -> Sys<()> {
    // SAFETY: strings are NUL-terminated.
    check(
        unsafe {
            libc::mount(
                from.as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_MOVE,
                std::ptr::null(),
            )
        }
        .into(),
    )?;
    Ok(())
}

/// pivot_root(".", "."): the old root ends up mounted over the new one (pivot_root(2), NOTES).
pub fn pivot_here() -> Sys<()> {
    // SAFETY: NUL-terminated strings.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    Ok(())
}

/// umount2(2).
pub fn umount(path: &CStr, flags: i32) -> Sys<()> {
    // SAFETY: path is NUL-terminated.
    check(unsafe { libc::umount2(path.as_ptr(), flags) }.into())?;
    Ok(())
}

/// The error text the kernel left in an fsopen(2) descriptor, as `e mqueue: Unknown parameter`.
pub fn fs_log(fs: BorrowedFd, buf: &mut [u8]) -> usize {
    super::fd::read(fs, buf).unwrap_or(0)
}

/// fspick(2) of the mount behind a descriptor.
pub fn fspick(fd: BorrowedFd) -> Sys<OwnedFd> {
    const FSPICK_CLOEXEC: u32 = 1;
    const FSPICK_EMPTY_PATH: u32 = 8;
    // SAFETY: an empty NUL-terminated path with FSPICK_EMPTY_PATH.
    check(unsafe {
        libc::syscall(
            libc::SYS_fspick,
            fd.as_raw_fd(),
            c"".as_ptr(),
            FSPICK_CLOEXEC | FSPICK_EMPTY_PATH,
        )
    })
    .map(own)
}

/// fsconfig(2) FSCONFIG_CMD_RECONFIGURE.
pub fn reconfigure(fs: BorrowedFd) -> Sys<()> {
    const CMD_RECONFIGURE: u32 = 7;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: the command takes null key and value.
    check(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            fs.as_raw_fd(),
            CMD_RECONFIGURE,
            null,
            null,
            0,
        )
    })?;
    Ok(())
}
