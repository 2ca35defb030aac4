//! cell

pub mod child;
pub mod fault;
pub mod wire;
