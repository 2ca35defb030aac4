//! What the child becomes: credentials, capabilities, limits, filter, terminal.

pub mod seccomp;
