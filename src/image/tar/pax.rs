//! PAX extended headers: records of `LENGTH KEY=VALUE\n` before an entry's own header.

use std::io;

use super::{bad, show};

/// What a PAX extended header says.
#[derive(Default)]
pub(super) struct Pax {
    pub(super) seen: bool,
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse_major: Option<u64>,
    pub(super) sparse_name: Option<Vec<u8>>,
    pub(super) sparse_size: Option<u64>,
    pub(super) sparse_map: Vec<u64>,
    pub(super) sparse_blocks: bool,
}

impl Pax {
    /// Records `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record.
    pub(super) fn parse(&mut self, mut text: &[u8]) -> io::Result<()> {
        let wrong = || bad("a PAX header is malformed");
        self.seen = true;
        while !text.is_empty() {
            let space = text.iter().position(|&b| b == b' ').ok_or_else(wrong)?;
            let length = decimal(&text[..space]).ok_or_else(wrong)?;
            let length = usize::try_from(length).map_err(|_| wrong())?;
            if length <= space + 1 || length > text.len() || text[length - 1] != b'\n' {
                return Err(wrong());
            }
            let record = &text[space + 1..length - 1];
            text = &text[length..];
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(wrong)?;
            self.record(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let number = || {
            decimal(value).ok_or_else(|| {
                bad(format!(
                    "PAX {} is not a number: {}",
                    show(key),
                    show(value)
                ))
            })
        };
        // An empty value takes the keyword back (POSIX pax, "pax Extended Header Keyword
        // Precedence").
        let text = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => {
                self.mtime = Some(
                    time(value)
                        .ok_or_else(|| bad(format!("PAX mtime {} is wrong", show(value))))?,
                );
            }
            b"GNU.sparse.major" => self.sparse_major = Some(number()?),
            b"GNU.sparse.name" => self.sparse_name = text(),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = Some(number()?),
            b"GNU.sparse.numblocks" => self.sparse_blocks = true,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse_map.push(number()?),
            b"GNU.sparse.map" => {
                self.sparse_blocks = true;
                self.sparse_map = value
                    .split(|&b| b == b',')
                    .filter(|part| !part.is_empty())
                    .map(|part| decimal(part).ok_or_else(|| bad("PAX sparse map is wrong")))
                    .collect::<io::Result<_>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }

    pub(super) fn is_sparse(&self) -> bool {
        self.sparse_major == Some(1) || self.sparse_blocks
    }
}

pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A PAX time, `[-]SECONDS[.FRACTION]`.
pub(super) fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |&b| b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos = 0u32;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for i in 0..9 {
            let digit = fraction.get(i).map_or(0, |b| u32::from(b - b'0'));
            nanos = nanos * 10 + digit;
        }
    }
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}
