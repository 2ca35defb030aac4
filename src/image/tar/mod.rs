//! A streaming tar reader for layers: ustar, old V7, GNU and PAX headers.
//!
//! Owns the format only: it hands out one entry's header and data at a time and touches no file
//! system. The `tar` crate is not used here because a layer is hostile input: it reads an extended
//! header of any size into memory, and it does not know PAX sparse files.
//!
//! Formats: POSIX.1-2017 `pax` (ustar and pax interchange formats), GNU tar manual
//! "Basic Tar Format" and "Sparse Formats".

mod fields;
mod pax;

use std::io::{self, BufRead};

use self::fields::{check_sum, field, name, number, pairs, signed, until_nul};
use self::pax::Pax;

/// Longest extended header or sparse map, in bytes (Go's archive/tar has the same bound).
pub const MAX_EXTENSION: u64 = 1 << 20;

const BLOCK: usize = 512;

/// A source of tar bytes that may be able to skip cheaply.
pub trait Stream: BufRead {
    /// Moves `n` bytes ahead; an error if the stream ends before.
    fn skip(&mut self, mut n: u64) -> io::Result<()> {
        while n > 0 {
            let got = self.fill_buf()?.len();
            if got == 0 {
                return Err(truncated());
            }
            let step = usize::try_from(n).unwrap_or(usize::MAX).min(got);
            self.consume(step);
            n -= step as u64;
        }
        Ok(())
    }
}

impl Stream for io::BufReader<std::fs::File> {
    fn skip(&mut self, n: u64) -> io::Result<()> {
        let n = i64::try_from(n).map_err(|_| bad("an entry is too large"))?;
        self.seek_relative(n)
    }
}

impl Stream for &[u8] {}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry's header, extended headers applied.
#[derive(Debug, Clone)]
pub struct Entry {
    pub kind: Kind,
    /// Name as stored, trailing slashes included.
    pub path: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub link: Vec<u8>,
    /// Permission bits with set-id and sticky bits (07777).
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Modification time: seconds since the epoch and nanoseconds.
    pub mtime: (i64, u32),
    /// The file's size in bytes, holes included.
    pub size: u64,
    /// Device numbers: major, minor.
    pub device: (u32, u32),
    /// Extended attributes (PAX `SCHILY.xattr.`): name without the prefix, value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// For a sparse file: where its stored bytes belong, `(offset, length)`, ascending.
    pub sparse: Option<Vec<(u64, u64)>>,
}

impl Default for Entry {
    fn default() -> Self {
        Entry {
            kind: Kind::File,
            path: Vec::new(),
            link: Vec::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            device: (0, 0),
            xattrs: Vec::new(),
            sparse: None,
        }
    }
}

/// Reads a tar stream entry by entry.
pub struct Reader<R> {
    input: R,
    entry: Entry,
    /// Data bytes of the current entry not read yet.
    left: u64,
    /// Padding after them.
    padding: u64,
    /// Bytes of the stream read so far.
    offset: u64,
    done: bool,
}

impl<R: Stream> Reader<R> {
    pub fn new(input: R) -> Self {
        Reader {
            input,
            entry: Entry::default(),
            left: 0,
            padding: 0,
            offset: 0,
            done: false,
        }
    }

    /// The header of the entry that the last [`Reader::advance`] reached.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Where the current entry's data starts in the stream, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many data bytes of the current entry are stored in the stream and not read yet.
    pub fn stored(&self) -> u64 {
        self.left
    }

    /// Gives the stream back (after the end: at the byte behind the end marker's first block).
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Goes to the next entry; `false` at the end of the archive.
    pub fn advance(&mut self) -> io::Result<bool> {
        if self.done {
            return Ok(false);
        }
        let rest = self.left + self.padding;
        self.skip(rest)?;
        (self.left, self.padding) = (0, 0);

        let mut pax = Pax::default();
        let mut long_name = None;
        let mut long_link = None;
        loop {
            let mut block = [0u8; BLOCK];
            if !self.read_block(&mut block)? {
                self.done = true;
                if pax.seen || long_name.is_some() || long_link.is_some() {
                    return Err(truncated());
                }
                return Ok(false);
            }
            if block.iter().all(|&b| b == 0) {
                // One zero block ends an archive (POSIX wants two; every reader is content).
                self.done = true;
                return Ok(false);
            }
            check_sum(&block)?;
            let size = number(&block[124..136], "size")?;
            match block[156] {
                b'L' => long_name = Some(self.extension(size)?),
                b'K' => long_link = Some(self.extension(size)?),
                b'x' => {
                    let text = self.extension(size)?;
                    pax.parse(&text)?;
                }
                // Global headers carry comments; no image tool gives them a meaning.
                b'g' => {
                    self.extension(size)?;
                }
                kind => {
                    self.header(&block, kind, size, pax, long_name, long_link)?;
                    return Ok(true);
                }
            }
        }
    }

    /// The next piece of the current entry's stored data, at most what is buffered; empty at its
    /// end. Call [`Reader::consume`] with the number of bytes used.
    pub fn data(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let buffer = self.input.fill_buf()?;
        if buffer.is_empty() {
            return Err(truncated());
        }
        let n = usize::try_from(self.left).unwrap_or(usize::MAX);
        Ok(&buffer[..n.min(buffer.len())])
    }

    /// Marks `n` bytes of the last [`Reader::data`] as used.
    pub fn consume(&mut self, n: usize) {
        self.input.consume(n);
        self.left -= n as u64;
        self.offset += n as u64;
    }

    fn header(
        &mut self,
        block: &[u8; BLOCK],
        kind: u8,
        size: u64,
        mut pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> io::Result<()> {
        let stored = pax.size.unwrap_or(size);
        let entry = &mut self.entry;
        entry.path.clear();
        match pax.path.take().or_else(|| long_name.map(until_nul)) {
            Some(path) => entry.path = path,
            None => name(block, &mut entry.path),
        }
        match pax.link.take().or_else(|| long_link.map(until_nul)) {
            Some(link) => entry.link = link,
            None => {
                entry.link.clear();
                entry.link.extend_from_slice(field(&block[157..257]));
            }
        }
        let id = |pax: Option<u64>, range: std::ops::Range<usize>, what: &str| {
            let value = match pax {
                Some(value) => value,
                None => number(&block[range], what)?,
            };
            // 4294967295 is chown's "leave it": no owner a file can have.
            u32::try_from(value)
                .ok()
                .filter(|&v| v != u32::MAX)
                .ok_or_else(|| bad(format!("{what} {value} is not a 32-bit id")))
        };
        entry.uid = id(pax.uid, 108..116, "uid")?;
        entry.gid = id(pax.gid, 116..124, "gid")?;
        entry.mode = (number(&block[100..108], "mode")? & 0o7777) as u32;
        entry.mtime = match pax.mtime {
            Some(time) => time,
            None => (signed(&block[136..148], "mtime")?, 0),
        };
        entry.kind = match kind {
            // V7 archives mark directories by a trailing slash only.
            b'0' | 0 if entry.path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return Err(bad(format!(
                    "{}: entry type {:?} is not one an image may hold",
                    show(&entry.path),
                    other as char
                )));
            }
        };
        entry.device = (0, 0);
        if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            let part = |range: std::ops::Range<usize>| {
                u32::try_from(number(&block[range], "device number")?)
                    .map_err(|_| bad("a device number is too large"))
            };
            entry.device = (part(329..337)?, part(337..345)?);
        }
        entry.xattrs = std::mem::take(&mut pax.xattrs);
        entry.sparse = None;
        entry.size = stored;
        // Only files have data. (Some writers give hard links and directories a size: for a hard
        // link the data is really there in PAX archives of `pax -o`, which no image tool writes.)
        self.left = if entry.kind == Kind::File { stored } else { 0 };
        if entry.kind != Kind::File {
            entry.size = 0;
        }
        self.padding = pad(self.left);
        if kind == b'S' {
            self.gnu_sparse(block)
        } else if self.entry.kind == Kind::File && pax.is_sparse() {
            self.pax_sparse(pax)
        } else {
            Ok(())
        }
    }

    /// Old GNU format: four pairs in the header, more in extension blocks.
    fn gnu_sparse(&mut self, block: &[u8; BLOCK]) -> io::Result<()> {
        let real = number(&block[483..495], "sparse size")?;
        let mut map = Vec::new();
        let mut more = block[482] != 0;
        pairs(&block[386..482], &mut map)?;
        while more {
            if map.len() as u64 * 24 > MAX_EXTENSION {
                return Err(bad("a sparse map is too long"));
            }
            let mut next = [0u8; BLOCK];
            if !self.read_block(&mut next)? {
                return Err(truncated());
            }
            pairs(&next[..504], &mut map)?;
            more = next[504] != 0;
        }
        self.set_sparse(map, real)
    }

    /// PAX formats 0.0, 0.1 (map in the extended header) and 1.0 (map before the data).
    fn pax_sparse(&mut self, pax: Pax) -> io::Result<()> {
        if let Some(name) = pax.sparse_name {
            self.entry.path = name;
        }
        let real = pax
            .sparse_size
            .ok_or_else(|| bad("a sparse file has no size"))?;
        let mut numbers = pax.sparse_map;
        if pax.sparse_major == Some(1) {
            let count = self.map_number()?;
            if count.saturating_mul(4) > MAX_EXTENSION {
                return Err(bad("a sparse map is too long"));
            }
            numbers.clear();
            for _ in 0..count * 2 {
                let value = self.map_number()?;
                numbers.push(value);
            }
            // The map fills whole blocks. `left` still counts from the block boundary that the
            // data started at.
            let stored = self.entry.size;
            let used = stored - self.left;
            let fill = pad(used);
            if fill > self.left {
                return Err(bad("a sparse map is longer than its entry"));
            }
            self.skip(fill)?;
            self.left -= fill;
        }
        if !numbers.len().is_multiple_of(2) {
            return Err(bad("a sparse map is cut off"));
        }
        let map = numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect();
        self.set_sparse(map, real)
    }

    /// A decimal number and its newline from the entry's data.
    fn map_number(&mut self) -> io::Result<u64> {
        let mut value = 0u64;
        for digits in 0..21 {
            let byte = *self
                .data()?
                .first()
                .ok_or_else(|| bad("a sparse map is longer than its entry"))?;
            self.consume(1);
            match byte {
                b'\n' if digits > 0 => return Ok(value),
                b'0'..=b'9' => {
                    value = value
                        .checked_mul(10)
                        .and_then(|v| v.checked_add(u64::from(byte - b'0')))
                        .ok_or_else(|| bad("a sparse map has a wrong number"))?;
                }
                _ => break,
            }
        }
        Err(bad("a sparse map has a wrong number"))
    }

    fn set_sparse(&mut self, mut map: Vec<(u64, u64)>, real: u64) -> io::Result<()> {
        let (mut end, mut stored) = (0u64, 0u64);
        for &(offset, len) in &map {
            let next = offset.checked_add(len).filter(|&next| next <= real);
            match next {
                Some(next) if offset >= end => end = next,
                _ => return Err(bad("a sparse map is out of order or past the file's end")),
            }
            stored += len;
        }
        if stored != self.left || real > i64::MAX as u64 {
            return Err(bad("a sparse map does not fit its entry"));
        }
        map.retain(|&(_, len)| len > 0);
        self.entry.size = real;
        self.entry.sparse = Some(map);
        Ok(())
    }

    /// Reads the data of an extended header, with its padding.
    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(bad(format!(
                "an extended header of {size} bytes (at most {MAX_EXTENSION})"
            )));
        }
        let mut data = Vec::with_capacity(size as usize);
        while (data.len() as u64) < size {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Err(truncated());
            }
            let n = buffer.len().min(size as usize - data.len());
            data.extend_from_slice(&buffer[..n]);
            self.input.consume(n);
        }
        self.offset += size;
        self.skip(pad(size))?;
        Ok(data)
    }

    fn skip(&mut self, n: u64) -> io::Result<()> {
        self.input.skip(n)?;
        self.offset += n;
        Ok(())
    }

    /// `false` at a clean end of the stream.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> io::Result<bool> {
        let mut have = 0;
        while have < BLOCK {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return if have == 0 {
                    Ok(false)
                } else {
                    Err(truncated())
                };
            }
            let n = buffer.len().min(BLOCK - have);
            block[have..have + n].copy_from_slice(&buffer[..n]);
            self.input.consume(n);
            have += n;
        }
        self.offset += BLOCK as u64;
        Ok(true)
    }
}

fn pad(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}

fn bad(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut off")
}

/// A name from an archive for a message: printable, of bounded length.
pub fn show(name: &[u8]) -> String {
    let mut text: String = String::from_utf8_lossy(&name[..name.len().min(200)])
        .escape_debug()
        .collect();
    if name.len() > 200 {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;
