//! Any bytes as what `update --resources` reads: refused or planned, never a panic.
#![no_main]

#[path = "../steps/update.rs"]
mod update;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    update::run(data);
});
