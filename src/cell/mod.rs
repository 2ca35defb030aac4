//! A cell's life: create, start, run, kill, delete, and its state on disk.
//!
//! Owns the order of things. Mounts and cgroup files are other rooms'. [`create`] is the parent's
//! side of a creation, [`child`] the child's; [`checkpoint`] saves a cell and brings it back; [`mod@enter`] both sides of a process that joins later; [`ops`] and [`run`] what comes after; [`store`] the
//! state.

pub mod checkpoint;
pub mod child;
pub mod create;
mod enter;
pub mod events;
pub mod fault;
pub mod hooks;
mod host_parts;
pub mod live;
pub mod ops;
mod prepare;
mod resctrl_stats;
pub mod run;
mod schemata;
pub mod spawn;
pub mod status;
pub mod store;
mod userns;
mod view;
pub mod wire;

pub use checkpoint::{CheckpointOptions, RestoreOptions, checkpoint};
pub use create::{CreateOptions, Made, Until, create};
pub use enter::{ExecOptions, ExecOutcome, exec};
pub use events::Watched;
pub use ops::{delete, kill, pause, processes, resume, start, update};
pub use prepare::{Prepared, prepare};
pub use run::{RunOptions, RunOutcome, restore, run};
pub use schemata::Schemata;
pub use status::{Status, View, list};
pub use store::{Saved, Store};
