//! The protocol of the socket pair between the runtime and the child it makes.
//!
//! One packet a message, a kind first. The child speaks [`FAULT`], [`READY`], [`HOOKS`],
//! [`NOTIFY`]; the parent answers [`GO`]. End of file from the child means that it executed the
//! program; from the parent, that it is gone, and the child leaves.

/// A fault follows ([`super::fault::Fault::encode`]).
pub const FAULT: u32 = 1;
/// The cell is made and waits for `start`.
pub const READY: u32 = 2;
/// The namespaces and mounts are made: time for network interfaces, resctrl, prestart and
/// createRuntime hooks.
pub const HOOKS: u32 = 3;
/// The seccomp listener descriptor is attached.
pub const NOTIFY: u32 = 4;
/// Go on. Carries the child's pid as the host sees it.
pub const GO: u32 = 5;

/// A message without payload.
pub fn plain(kind: u32) -> [u8; 4] {
    kind.to_ne_bytes()
}

/// GO with the child's pid.
pub fn go(pid: i32) -> [u8; 8] {
    let mut out = [0; 8];
    out[..4].copy_from_slice(&GO.to_ne_bytes());
    out[4..].copy_from_slice(&pid.to_ne_bytes());
    out
}

/// The kind of a received message.
pub fn kind(msg: &[u8]) -> u32 {
    match msg {
        [a, b, c, d, ..] => u32::from_ne_bytes([*a, *b, *c, *d]),
        _ => 0,
    }
}

/// The pid of a GO.
pub fn pid(msg: &[u8]) -> i32 {
    match msg {
        [_, _, _, _, a, b, c, d] => i32::from_ne_bytes([*a, *b, *c, *d]),
        _ => 0,
    }
}
