//! rootfs (contract: see the module's owner).
