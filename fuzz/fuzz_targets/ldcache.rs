//! Any bytes as an image's ld.so.cache: ignored or carried on, never a panic.
#![no_main]

#[path = "../steps/ldcache.rs"]
mod ldcache;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ldcache::run(data);
});
