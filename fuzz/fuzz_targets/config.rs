//! Any bytes as a `config.json`: refused or carried on, never a panic.
#![no_main]

#[path = "../steps/config.rs"]
mod config;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    config::run(data);
});
