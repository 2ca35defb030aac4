//! Thin safe wrappers over the system calls that nix lacks or wraps with allocations.
//!
//! Owns every `unsafe` of the runtime. Holds no policy: a wrapper says what the kernel says.
//! Everything here may be called in the child after clone3, so nothing allocates or takes a lock
//! (errors are a bare [`Errno`]).

pub mod bpf;
pub mod clone;
pub mod cred;
pub mod daemon;
pub mod dir;
pub mod entry;
pub mod fd;
pub mod misc;
pub mod mount;
mod nss;
pub mod pipe;
pub mod socket;
pub mod start;
pub mod tty;

use nix::errno::Errno;

/// Result of a raw call.
pub type Sys<T> = Result<T, Errno>;

/// Turns a raw return value into a result, reading errno on -1.
fn check(ret: libc::c_long) -> Sys<libc::c_long> {
    if ret < 0 { Err(Errno::last()) } else { Ok(ret) }
}
