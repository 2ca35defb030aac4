//! Any bytes as a manifest and an image config: refused or carried on, never a panic.
#![no_main]

#[path = "../steps/manifest.rs"]
mod manifest;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    manifest::run(data);
});
