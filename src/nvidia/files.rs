//! The driver's files on the host, by capability.
