//! `--init`: the host's tini, docker-init or catatonit, to be bind mounted into the cell.
//!
//! gpucell's own binary is never put into a cell (CVE-2019-5736), so the init is a helper of the host.
//! It must be statically linked: the cell's root need not have the host's C library.

use std::path::PathBuf;

use crate::{Error, Result};

/// Where distributions and Docker put them; tini's static build first.
const PLACES: [&str; 9] = [
    "/usr/bin/tini-static",
    "/usr/local/bin/tini-static",
    "/usr/bin/docker-init",
    "/usr/libexec/docker/docker-init",
    "/usr/local/bin/docker-init",
    "/usr/libexec/podman/catatonit",
    "/usr/bin/catatonit",
    "/usr/bin/tini",
    "/sbin/tini",
];

/// The first statically linked init of the host.
///
/// # Errors
/// There is none; the text names the package.
pub fn find() -> Result<PathBuf> {
    PLACES
        .iter()
        .map(PathBuf::from)
        .find(|path| read_head(path).is_some_and(|head| is_static(&head)))
        .ok_or_else(|| {
            Error::unsupported(
                "--init",
                "no statically linked tini, docker-init or catatonit on this host; install one \
                 (Debian: apt install tini)",
            )
        })
}

fn read_head(path: &std::path::Path) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut head = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(4096).read_to_end(&mut head).ok()?;
    Some(head)
}

/// Whether an ELF file names no program interpreter, so that it needs no dynamic loader (elf(5): a
/// program header of type PT_INTERP). Program headers stand right behind the ELF header.
fn is_static(head: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let bytes = |at: usize, len: usize| head.get(at..at.checked_add(len)?);
    let half = |at| Some(u16::from_le_bytes(bytes(at, 2)?.try_into().ok()?));
    let word = |at| Some(u32::from_le_bytes(bytes(at, 4)?.try_into().ok()?));
    let long = |at| Some(u64::from_le_bytes(bytes(at, 8)?.try_into().ok()?));
    // 64-bit, little endian: all that gpucell is built for.
    if head.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, 1]) {
        return false;
    }
    let read = || {
        let start = usize::try_from(long(32)?).ok()?; // e_phoff
        let size = usize::from(half(54)?); // e_phentsize
        let count = usize::from(half(56)?); // e_phnum
        let mut found = false;
        for i in 0..count {
            let at = i.checked_mul(size)?.checked_add(start)?;
            found |= word(at)? == PT_INTERP;
        }
        Some(!found && count > 0)
    };
    read().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(types: &[u32]) -> Vec<u8> {
        let mut out = vec![0_u8; 64 + 56 * types.len()];
        out[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        out[32] = 64;
        out[54] = 56;
        out[56] = types.len() as u8;
        for (i, typ) in types.iter().enumerate() {
            out[64 + 56 * i..][..4].copy_from_slice(&typ.to_le_bytes());
        }
        out
    }

    #[test]
    fn static_and_dynamic() {
        assert!(is_static(&elf(&[1, 1, 4])));
        assert!(!is_static(&elf(&[1, 3, 4])));
        assert!(!is_static(&elf(&[])));
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(&elf(&[1])[..66]));
        let mut wild = elf(&[1]);
        wild[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(!is_static(&wild));
    }
}
