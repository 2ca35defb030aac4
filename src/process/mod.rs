//! What the child becomes: credentials, capabilities, limits, filter, terminal.

pub mod hook;
pub mod identity;
pub mod lookup;
pub mod seccomp;
pub mod terminal;
