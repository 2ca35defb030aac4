//! gpucell: an OCI container runtime with hard limits on memory, CPU, GPUs and GPU memory.
//!
//! One way through the code: config.json → [`spec`] → edits → [`plan`] → [`cell`].
//! docs/architecture.md has the picture.

pub mod cell;
pub mod cgroup;
pub mod cli;
pub mod error;
pub mod image;
pub mod nvidia;
pub mod plan;
pub mod process;
pub mod rootfs;
pub mod spec;
pub mod sys;

pub use error::{Error, Result};
