//! The cell's root: mounts, nodes, masks, pivot, all on a held root descriptor.
//!
//! Runs in the child after clone3: nothing here allocates. No path is resolved twice; a
//! descriptor of a target lives only for its own step.

mod copyup;
mod dev;
mod inject;
mod mask;
mod mounts;
pub mod path;
mod root;

pub use dev::{console, make as make_dev};
pub use inject::inject;
pub use mask::{HostNull, mask, readonly, readonly_mounts};
pub use mounts::{CgroupView, Trees, V1Mount, all as mount_all, open_trees};
pub use root::{attach, pivot, set_propagation};

/// f_type of procfs (include/uapi/linux/magic.h).
pub const PROC_SUPER_MAGIC: i64 = 0x9fa0;
/// f_type of devpts.
pub const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
