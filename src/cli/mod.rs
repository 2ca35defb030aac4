//! The command line: one file a command, arguments → one call → print. No system calls here.

/// Runs the command line of this process and returns its exit code.
pub fn main() -> i32 {
    0
}
pub mod units;
