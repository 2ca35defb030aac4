//! Any bytes as the process of `exec --process`: refused or carried on, never a panic.
#![no_main]

#[path = "../steps/process.rs"]
mod process;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    process::run(data);
});
