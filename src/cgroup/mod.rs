//! Control groups: a cell's limits, its device filter, and the handle by which all of its
//! processes are found, frozen and killed.
//!
//! cgroup v2 files are written directly. Where controllers are still bound to v1 (hybrid hosts
//! and v1 hosts) limits go to the v1 files; on hybrid hosts the device filter, freezing and
//! killing use the v2 mount. A limit that can't be enforced is an error naming it, never
//! skipped.
//!
//! With the systemd driver the v2 group is a scope that systemd makes (`systemd`); all else is the same.
//!
//! Flow: [`plan`] decides everything and makes nothing; [`CgroupPlan::saved`] is put on disk;
//! [`CgroupPlan::create`] makes the groups; later commands work on the saved [`CgroupState`].
//!
//! This room knows nothing of mounts, namespaces or state files.

mod create;
mod device;
mod device_v1;
mod dir;
mod enter;
mod filter;
pub mod host;
mod limits;
mod live;
mod oom;
mod oom_watch;
mod path;
mod plan;
mod remove;
mod state;
mod stats;
mod systemd;
mod update;

pub use create::Cgroup;
pub use device::{
    ALL, DEFAULT_RULES, DeviceRule, Kind, KindTable, MKNOD, READ, Table, WRITE, evaluate,
};
pub use enter::Entry;
pub use filter::{compile as compile_filter, count as count_filters};
pub use host::{Host, MOUNT, Mode, V1Mount};
pub use live::allow_devices;
pub use oom::{OomInfo, hopeless, too_low};
pub use oom_watch::OomWatch;
pub use path::SystemdPath;
pub use plan::{CgroupPlan, Driver, NO_FILTER, Request, plan, plan_on};
pub use state::{CgroupState, Group};
pub use stats::{Stats, is_gone};
pub use systemd::Scope;
