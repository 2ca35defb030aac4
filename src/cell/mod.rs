//! cell

pub mod fault;
