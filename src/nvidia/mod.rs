//! NVIDIA GPUs: which ones a cell gets, and what of the driver it sees.
//!
//! Owns selection ([`select`]), requirements ([`require`]), the inventory ([`inventory`]), the driver's
//! files ([`files`]), CDI ([`cdi`]), NVIDIA's hooks done in process ([`hook`], [`work`]) and the
//! ld.so.cache ([`ldcache`]). All of it ends in container edits ([`crate::spec::edit`]): discovery
//! decides, the one edit function applies, the engine carries out.
//!
//! It must not load anything or mount, nor execute anything (no ldconfig, no hook program) but, where only
//! NVML can tell, the program that asks it ([`monitor`]).

pub mod cache;
pub mod capabilities;
pub mod cdi;
pub mod config;
pub mod elf;
pub mod files;
pub mod hook;
pub mod inject;
pub mod inventory;
pub mod ldcache;
pub mod live;
pub mod monitor;
pub mod nodes;
pub mod require;
pub mod select;
pub mod work;
