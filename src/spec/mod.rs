//! The configuration: read, checked, edited, lowered to a Plan.

pub mod lower;
