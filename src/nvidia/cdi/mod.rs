//! The Container Device Interface: reading, resolving, applying and writing CDI specs.

pub mod names;

pub use names::{Name, from_annotation, parse_qualified};
