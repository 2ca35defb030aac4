//! Any bytes as a CDI file: refused or carried on, never a panic.
#![no_main]

#[path = "../steps/cdi.rs"]
mod cdi;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    cdi::run(data);
});
