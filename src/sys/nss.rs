//! Stands in for glibc's resolver, which a static program must not reach: it loads libraries at run
//! time, and those crash in it.
//!
//! Nothing of ours calls it: names are resolved in Rust (image/registry.rs). But std and reqwest hold
//! references to it for cases that do not come up here, and the linker keeps what is referred to. With
//! these definitions glibc's are not linked at all, and a stray call ends in an error.
//! `scripts/test quick` looks into the binary for it.

use libc::{addrinfo, c_char, c_int};

/// getaddrinfo(3): always "non-recoverable failure in name resolution".
#[unsafe(no_mangle)]
pub extern "C" fn getaddrinfo(
    _node: *const c_char,
    _service: *const c_char,
    _hints: *const addrinfo,
    _found: *mut *mut addrinfo,
) -> c_int {
    libc::EAI_FAIL
}

/// freeaddrinfo(3): there is never anything to free.
#[unsafe(no_mangle)]
pub extern "C" fn freeaddrinfo(_list: *mut addrinfo) {}
