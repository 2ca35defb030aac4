//! The Container Device Interface: reading, resolving and writing CDI files.
//!
//! Owns the names ([`names`]), the files ([`spec`], [`load`], [`validate`]), the folders ([`registry`])
//! and the writing of our own file ([`generate`]). All that a device makes of a cell is in
//! [`crate::spec::edit::ContainerEdits`]; [`crate::spec::edit::apply`] makes it. It must not apply
//! anything and must not look at the host but for the CDI folders.
//!
//! The crate `container-device-interface` (1.1.1, Apache-2.0, CNCF's own; its repository moved in August
//! 2026) knows the versions up to 1.1.0, refuses unknown fields and edits the same oci-spec types. It is
//! not taken because it applies devices to a Spec itself, where ours must come as single edits with a
//! reason that `explain` shows; because it parses with serde_yaml, archived since 2024, and bounds
//! neither the file nor what aliases make of it; because its errors don't name the field; and for its
//! weight: a JSON schema engine by default, regex, semver, anyhow, and a process-wide cache behind a
//! mutex where a runtime reads the folders once. What our edit types leave to do is the files here.
//!
//! YAML is read with `yaml_serde` (MIT or Apache-2.0, kept by the YAML organisation, which took over
//! serde_yaml; last release August 2026; one dependency that was not in the tree already). `serde-saphyr`
//! is all safe Rust and has budgets, but brings encoding_rs' tables and annotate-snippets; yaml-rust2 and
//! saphyr-parser have no serde front.

pub mod generate;
pub mod load;
pub mod names;
pub mod registry;
pub mod spec;
pub mod validate;

pub use load::{Format, parse};
pub use names::{ANNOTATION_PREFIX, Name, parse_qualified};
pub use registry::{Registry, Resolved, map_ids, resolve};
pub use spec::{CdiSpec, Device, Version};
