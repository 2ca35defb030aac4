//! Any bytes as a library of an image: ignored or read, never a panic.
#![no_main]

#[path = "../steps/elf.rs"]
mod elf;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    elf::run(data);
});
