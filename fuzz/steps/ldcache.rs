//! What an image's ld.so.cache goes through: read, libraries added, written. Shared by the fuzz target
//! and by tests/spec_gpu_corpus.rs, which replays the corpus.

use gpucell::nvidia::ldcache::{Cache, Entry};
use std::borrow::Cow;

/// How far the bytes came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Not a cache.
    Nothing,
    /// A cache without a library.
    Empty,
    /// Libraries were read, and all of them written again.
    Libraries,
}

/// Runs every step as far as it goes.
pub fn run(data: &[u8]) -> Reached {
    let Some(mut cache) = Cache::parse(data) else {
        return Reached::Nothing;
    };
    let count = cache.entries.len();
    let written = cache.write();
    let again = Cache::parse(&written).expect("ours is a cache");
    assert_eq!(again.entries, cache.entries);
    let entry = |name: &'static [u8]| Entry {
        name: Cow::Borrowed(name),
        path: Cow::Owned([b"/gpucell/", name].concat()),
        flags: 0x0303,
        osversion: 0,
        hwcap: 0,
    };
    let new = [entry(b"libcuda.so.1"), entry(b"libnvidia-ml.so.1")];
    cache.put_first(new.to_vec());
    cache.put_first(new.to_vec());
    for e in &new {
        assert!(cache.entries.contains(e));
    }
    assert!(cache.entries.len() <= count + 4);
    Cache::parse(&cache.write()).expect("ours is a cache");
    if count == 0 {
        Reached::Empty
    } else {
        Reached::Libraries
    }
}
