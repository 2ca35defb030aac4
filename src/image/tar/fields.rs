//! Fields of a header block: names, numbers, the checksum.

use std::io;

use super::{BLOCK, bad};

/// Name from the header: ustar splits long ones into prefix and name.
pub(super) fn name(block: &[u8; BLOCK], out: &mut Vec<u8>) {
    if &block[257..263] == b"ustar\0" {
        let prefix = field(&block[345..500]);
        if !prefix.is_empty() {
            out.extend_from_slice(prefix);
            out.push(b'/');
        }
    }
    out.extend_from_slice(field(&block[..100]));
}

pub(super) fn field(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

pub(super) fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    let end = field(&text).len();
    text.truncate(end);
    text
}

/// The header's checksum: its bytes' sum with the sum's own field read as spaces; some old writers
/// summed signed bytes.
pub(super) fn check_sum(block: &[u8; BLOCK]) -> io::Result<()> {
    let want = number(&block[148..156], "checksum")?;
    let (mut unsigned, mut signed) = (0u64, 0i64);
    for (i, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&i) { b' ' } else { byte };
        unsigned += u64::from(byte);
        signed += i64::from(byte as i8);
    }
    if unsigned == want || i64::try_from(want) == Ok(signed) {
        Ok(())
    } else {
        Err(bad("not a tar archive, or damaged (wrong header checksum)"))
    }
}

pub(super) fn pairs(bytes: &[u8], map: &mut Vec<(u64, u64)>) -> io::Result<()> {
    for pair in bytes.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        map.push((
            number(&pair[..12], "sparse offset")?,
            number(&pair[12..], "sparse length")?,
        ));
    }
    Ok(())
}

pub(super) fn number(bytes: &[u8], what: &str) -> io::Result<u64> {
    u64::try_from(signed(bytes, what)?).map_err(|_| bad(format!("{what} is negative")))
}

/// A numeric field: octal text, or GNU's base 256 when the first bit is set.
pub(super) fn signed(bytes: &[u8], what: &str) -> io::Result<i64> {
    let wrong = || bad(format!("{what} is not a number"));
    if let [first, rest @ ..] = bytes
        && first & 0x80 != 0
    {
        // Two's complement over the field without its marker bit.
        let mut value = if first & 0x40 != 0 {
            i64::from(first & 0x7f) - 0x80
        } else {
            i64::from(first & 0x7f)
        };
        for &byte in rest {
            value = value
                .checked_mul(256)
                .and_then(|v| v.checked_add(i64::from(byte)))
                .ok_or_else(wrong)?;
        }
        return Ok(value);
    }
    let text = field(bytes).trim_ascii();
    let mut value = 0i64;
    for &byte in text {
        if !(b'0'..=b'7').contains(&byte) {
            return Err(wrong());
        }
        value = value
            .checked_mul(8)
            .and_then(|v| v.checked_add(i64::from(byte - b'0')))
            .ok_or_else(wrong)?;
    }
    Ok(value)
}
