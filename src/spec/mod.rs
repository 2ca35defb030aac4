//! The configuration: read, checked, edited, lowered to a Plan.
//!
//! Owns everything between the text of `config.json` and the [`crate::plan`]: [`load`] reads it,
//! [`edit`] adds to it, [`check`] refuses what can be refused without looking at the host,
//! [`lower`] turns it into a Plan; [`resources`] is for changes to a cell that is there. Nothing here
//! makes a system call other than reading that one file.

pub mod check;
pub mod default;
pub mod edit;
pub mod load;
pub mod lower;
pub mod resources;
mod tolerate;
pub mod user;
