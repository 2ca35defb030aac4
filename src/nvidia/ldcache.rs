//! glibc's ld.so.cache: read the image's, write a new one.
//!
//! Owns the three formats that ldconfig(8) has written (`old` of libc5 and glibc before 2.2, `compat`:
//! the new one hidden in the old one's strings, and `new`), as elf/cache.c and
//! sysdeps/generic/dl-cache.h of glibc define them. Always writes `new`, which every loader since
//! glibc 2.2 reads. The bytes read are an image's: bounded, never trusted. Must not open files.

use super::elf::{self, Class, Elf};
use std::borrow::Cow;
use std::cmp::Ordering;

/// The largest cache read; a full desktop's has 300 KiB.
pub const CACHE_MAX: usize = 4 << 20;
/// Most bytes of names and paths kept: entries may share them, so that a small file could ask for
/// gigabytes.
const STRINGS_MAX: usize = 8 << 20;
/// PATH_MAX: longer names can't be opened.
const STRING_MAX: usize = 4096;

const MAGIC_OLD: &[u8] = b"ld.so-1.7.0";
const MAGIC_NEW: &[u8] = b"glibc-ld.so.cache1.1";
/// `struct cache_file`: magic, padded, and the number of entries; then 12 bytes an entry.
const OLD_HEADER: usize = 16;
const OLD_ENTRY: usize = 12;
/// `struct cache_file_new`; then 24 bytes an entry.
const NEW_HEADER: usize = 48;
const NEW_ENTRY: usize = 24;
/// `cache_extension_magic`; the sections' numbers are those of `enum cache_extension_tag`.
const EXTENSION_MAGIC: u32 = 0xeaa4_2174;
const TAG_GENERATOR: u32 = 0;
const TAG_HWCAPS: u32 = 1;
/// `cache_file_new_flags_endian_little`: both machines we run on are little-endian.
const ENDIAN_LITTLE: u32 = 2;
/// `DL_CACHE_HWCAP_EXTENSION`: the low half of `hwcap` counts into the hwcaps section.
const HWCAP_EXTENSION: u64 = 1 << 62;
/// The bits beside it that hold an ISA level.
const HWCAP_ISA_LEVEL: u64 = 0x3ff << 32;

/// One library.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry<'a> {
    /// What programs ask for: a SONAME.
    pub name: Cow<'a, [u8]>,
    /// Where it is.
    pub path: Cow<'a, [u8]>,
    /// Kind and ABI: see [`flags`].
    pub flags: i32,
    /// Least kernel, as old ldconfigs noted it; 0 is any.
    pub osversion: u32,
    /// Hardware capabilities it needs; 0 is none.
    pub hwcap: u64,
}

/// A whole cache.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cache<'a> {
    /// In the loader's order, which searches by halving.
    pub entries: Vec<Entry<'a>>,
    /// Names of glibc-hwcaps subdirectories, which [`Entry::hwcap`] counts into.
    pub hwcaps: Vec<&'a [u8]>,
    /// Who wrote it.
    pub generator: Option<&'a [u8]>,
}

/// [`flags`] of a 64-bit library of this machine.
#[cfg(target_arch = "x86_64")]
pub const NATIVE: i32 = 0x0303;
#[cfg(target_arch = "aarch64")]
pub const NATIVE: i32 = 0x0a03;

/// The loader's kind of a library (FLAG_* of glibc's ldconfig.h): libc6, with the machine's ABI; none
/// when glibc has no loader for it on the machines we run on.
pub fn flags(elf: &Elf) -> Option<i32> {
    // EF_ARM_ABI_FLOAT_HARD of elf.h.
    const ARM_HARD_FLOAT: u32 = 0x400;
    const LIBC6: i32 = 0x0003;
    if elf.kind != elf::ET_DYN || !elf.dynamic {
        return None;
    }
    let abi = match (elf.machine, elf.class) {
        (elf::EM_X86_64, Class::Bits64) => 0x0300,
        (elf::EM_X86_64, Class::Bits32) => 0x0800,
        (elf::EM_386, Class::Bits32) => 0x0000,
        (elf::EM_AARCH64, Class::Bits64) => 0x0a00,
        (elf::EM_ARM, Class::Bits32) if elf.flags & ARM_HARD_FLOAT != 0 => 0x0900,
        (elf::EM_ARM, Class::Bits32) => 0x0b00,
        _ => return None,
    };
    Some(LIBC6 | abi)
}

impl<'a> Cache<'a> {
    /// Reads a cache; none when a loader would ignore it (not a cache, truncated, other byte order),
    /// or when it holds more than any real one. Entries that point outside of it are left out, as the
    /// loader does.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() > CACHE_MAX {
            return None;
        }
        if bytes.starts_with(MAGIC_NEW) {
            return Self::parse_new(bytes, 0);
        }
        if !bytes.starts_with(MAGIC_OLD) {
            return None;
        }
        let count = u32_at(bytes, OLD_HEADER - 4)? as usize;
        let end = OLD_HEADER.checked_add(count.checked_mul(OLD_ENTRY)?)?;
        let strings = bytes.get(end..)?;
        // Aligned for the 64-bit numbers in it.
        let new = end.next_multiple_of(8);
        if bytes.get(new..).is_some_and(|b| b.starts_with(MAGIC_NEW)) {
            return Self::parse_new(bytes, new);
        }
        let mut cache = Cache::default();
        let mut kept = 0;
        for i in 0..count {
            let at = OLD_HEADER + i * OLD_ENTRY;
            let entry = Entry {
                name: Cow::Borrowed(&[]),
                path: Cow::Borrowed(&[]),
                flags: u32_at(bytes, at)? as i32,
                osversion: 0,
                hwcap: 0,
            };
            let (name, path) = (u32_at(bytes, at + 4)?, u32_at(bytes, at + 8)?);
            cache.keep(entry, strings, name, path, &mut kept)?;
        }
        Some(cache)
    }

    /// The new format, which begins at `start` of the file.
    fn parse_new(file: &'a [u8], start: usize) -> Option<Self> {
        let bytes = file.get(start..)?;
        let count = u32_at(bytes, 20)? as usize;
        // Zero: written before glibc 2.33.
        if !matches!(bytes.get(28)? & 3, 0 | 2) {
            return None;
        }
        let end = NEW_HEADER.checked_add(count.checked_mul(NEW_ENTRY)?)?;
        if end > bytes.len() {
            return None;
        }
        let mut cache = Cache::default();
        let mut kept = 0;
        for i in 0..count {
            let at = NEW_HEADER + i * NEW_ENTRY;
            let entry = Entry {
                name: Cow::Borrowed(&[]),
                path: Cow::Borrowed(&[]),
                flags: u32_at(bytes, at)? as i32,
                osversion: u32_at(bytes, at + 12)?,
                hwcap: u64::from(u32_at(bytes, at + 16)?)
                    | u64::from(u32_at(bytes, at + 20)?) << 32,
            };
            let (name, path) = (u32_at(bytes, at + 4)?, u32_at(bytes, at + 8)?);
            cache.keep(entry, bytes, name, path, &mut kept)?;
        }
        cache.extensions(file, bytes);
        Some(cache)
    }

    /// Adds an entry whose strings are at these offsets; none when the strings outgrow their limit.
    fn keep(
        &mut self,
        entry: Entry<'a>,
        strings: &'a [u8],
        name: u32,
        path: u32,
        kept: &mut usize,
    ) -> Option<()> {
        if let (Some(name), Some(path)) = (string_at(strings, name), string_at(strings, path)) {
            *kept += name.len() + path.len();
            self.entries.push(Entry {
                name: Cow::Borrowed(name),
                path: Cow::Borrowed(path),
                ..entry
            });
        }
        (*kept <= STRINGS_MAX).then_some(())
    }

    /// The sections behind the strings. Their offsets count from the file's start, those of hwcaps
    /// strings from the new format's. What is broken here is left out: the loader does so too.
    fn extensions(&mut self, file: &'a [u8], bytes: &'a [u8]) -> Option<()> {
        let at = u32_at(bytes, 32)? as usize;
        if at == 0 || u32_at(file, at)? != EXTENSION_MAGIC {
            return None;
        }
        // More than the two that exist would be new ones, which nobody else needs.
        for i in 0..u32_at(file, at + 4)?.min(16) as usize {
            let section = at + 8 + i * 16;
            let (tag, offset) = (u32_at(file, section)?, u32_at(file, section + 8)? as usize);
            let len = u32_at(file, section + 12)? as usize;
            let data = file.get(offset..offset.checked_add(len)?)?;
            match tag {
                TAG_GENERATOR if len <= STRING_MAX => self.generator = Some(data),
                TAG_HWCAPS if len <= STRING_MAX => {
                    self.hwcaps = (0..len / 4)
                        .map(|i| u32_at(data, i * 4).and_then(|at| string_at(bytes, at)))
                        .collect::<Option<_>>()?;
                }
                _ => {}
            }
        }
        Some(())
    }

    /// Adds entries, the first of them first where several have the same name, and all of them before
    /// those that are already there. An entry of the same name, kind and path is replaced.
    pub fn put_first(&mut self, new: Vec<Entry<'a>>) {
        // Not sorted by the library's sort: libcmp overflows as C does, and is then no total order.
        for entry in new.into_iter().rev() {
            let at = self
                .entries
                .partition_point(|old| self.order(old, &entry) == Ordering::Less);
            let known = self.entries[at..]
                .iter()
                .take_while(|old| libcmp(&old.name, &entry.name) == Ordering::Equal)
                .position(|old| {
                    (old.flags, old.hwcap) == (entry.flags, 0) && old.path == entry.path
                });
            match known {
                Some(i) => self.entries[at..=at + i].rotate_right(1),
                None => self.entries.insert(at, entry),
            }
        }
    }

    /// ldconfig's order: names backwards, higher kinds first, glibc-hwcaps first and by name, then the
    /// more capabilities the sooner.
    fn order(&self, a: &Entry, b: &Entry) -> Ordering {
        libcmp(&b.name, &a.name)
            .then(b.flags.cmp(&a.flags))
            .then_with(|| match (self.hwcap_name(a), self.hwcap_name(b)) {
                (Some(x), Some(y)) => x.cmp(y),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => b
                    .hwcap
                    .count_ones()
                    .cmp(&a.hwcap.count_ones())
                    .then(b.hwcap.cmp(&a.hwcap)),
            })
    }

    fn hwcap_name(&self, e: &Entry) -> Option<&'a [u8]> {
        if e.hwcap & !HWCAP_ISA_LEVEL & !0xffff_ffff != HWCAP_EXTENSION {
            return None;
        }
        let index = e.hwcap as u32 as usize;
        Some(self.hwcaps.get(index).copied().unwrap_or_default())
    }

    /// The file, in the new format. A name that ends its path shares the path's bytes.
    pub fn write(&self) -> Vec<u8> {
        let strings_at = NEW_HEADER + self.entries.len() * NEW_ENTRY;
        let mut out = Vec::with_capacity(strings_at + self.entries.len() * 64 + 256);
        let mut strings: Vec<u8> = Vec::with_capacity(self.entries.len() * 64);
        let mut add = |text: &[u8]| {
            let at = (strings_at + strings.len()) as u32;
            strings.extend_from_slice(text);
            strings.push(0);
            at
        };
        out.extend_from_slice(MAGIC_NEW);
        // The length of the strings and the place of the extensions follow below.
        for n in [self.entries.len() as u32, 0, ENDIAN_LITTLE, 0, 0, 0, 0] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        for e in &self.entries {
            let path = add(&e.path);
            let name = match e.path.ends_with(&e.name) {
                true => path + (e.path.len() - e.name.len()) as u32,
                false => add(&e.name),
            };
            for n in [e.flags as u32, name, path, e.osversion] {
                out.extend_from_slice(&n.to_le_bytes());
            }
            out.extend_from_slice(&e.hwcap.to_le_bytes());
        }
        let hwcaps: Vec<u32> = self.hwcaps.iter().map(|name| add(name)).collect();
        put_u32(&mut out, 24, strings.len() as u32);
        out.extend_from_slice(&strings);
        out.resize(out.len().next_multiple_of(4), 0);
        let extensions = out.len() as u32;
        put_u32(&mut out, 32, extensions);
        self.write_extensions(&mut out, &hwcaps);
        out
    }

    fn write_extensions(&self, out: &mut Vec<u8>, hwcaps: &[u32]) {
        let own = concat!("gpucell ", env!("CARGO_PKG_VERSION")).as_bytes();
        let generator = self.generator.unwrap_or(own);
        let sections: u32 = if hwcaps.is_empty() { 1 } else { 2 };
        let hwcaps_at = out.len() as u32 + 8 + sections * 16;
        let hwcaps_len = hwcaps.len() as u32 * 4;
        let generator_at = hwcaps_at + hwcaps_len;
        for n in [EXTENSION_MAGIC, sections] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        for n in [TAG_GENERATOR, 0, generator_at, generator.len() as u32] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        if sections == 2 {
            for n in [TAG_HWCAPS, 0, hwcaps_at, hwcaps_len] {
                out.extend_from_slice(&n.to_le_bytes());
            }
        }
        for n in hwcaps {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(generator);
    }
}

/// `_dl_cache_libcmp`: byte by byte, runs of digits by their number. C's `char` is signed on x86 and
/// unsigned on Arm, and its `int` wraps around.
pub fn libcmp(a: &[u8], b: &[u8]) -> Ordering {
    let (mut i, mut j) = (0, 0);
    let at = |s: &[u8], i: usize| s.get(i).copied().unwrap_or(0);
    let number = |s: &[u8], i: &mut usize| {
        let mut n = 0i32;
        while at(s, *i).is_ascii_digit() {
            n = n.wrapping_mul(10).wrapping_add((at(s, *i) - b'0').into());
            *i += 1;
        }
        n
    };
    loop {
        let (x, y) = (at(a, i), at(b, j));
        match (x.is_ascii_digit(), y.is_ascii_digit()) {
            (true, true) => match number(a, &mut i).wrapping_sub(number(b, &mut j)) {
                0 => {}
                n => return n.cmp(&0),
            },
            (true, false) => return Ordering::Greater,
            (false, true) if x != 0 => return Ordering::Less,
            _ if x != y || x == 0 => return (x as libc::c_char).cmp(&(y as libc::c_char)),
            _ => {
                i += 1;
                j += 1;
            }
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

fn put_u32(bytes: &mut [u8], at: usize, n: u32) {
    bytes[at..at + 4].copy_from_slice(&n.to_le_bytes());
}

/// The C string at an offset.
fn string_at(bytes: &[u8], at: u32) -> Option<&[u8]> {
    let rest = bytes.get(at as usize..)?;
    let rest = &rest[..rest.len().min(STRING_MAX)];
    let end = rest.iter().position(|b| *b == 0)?;
    Some(&rest[..end])
}

#[cfg(test)]
#[path = "ldcache_tests.rs"]
mod tests;
