//! The way of a GPU into a cell on a driver that isn't there, on a real kernel: what is asked for is in
//! the cell and opens (there is no driver behind it: ENXIO), everything else is not, and can't be made.
//! Needs root. Each test looks that it leaves nothing behind.

#[path = "../cell_support/mod.rs"]
mod cell_support;
#[path = "../fakes/mod.rs"]
mod fakes;
#[path = "../gpu_support/mod.rs"]
mod gpu_support;
#[path = "../support/mod.rs"]
mod support;

mod asked;
mod machine;
mod refused;
mod roots;
mod same;
