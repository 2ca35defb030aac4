//! Any bytes as layers: refused or unpacked, never a panic, never anything outside the root.
#![no_main]

#[path = "../steps/layer.rs"]
mod layer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    layer::run(data);
});
