//! cgroup (contract: see the module's owner).
