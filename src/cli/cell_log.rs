//! A cell's log: the writer of a detached cell, the reader of `gpucell logs`.
//!
//! Format: one line an entry, as the Kubernetes CRI has it (CRI logging, "kubelet and container runtime
//! log format"): `2026-11-24T09:00:00.000000001Z stdout F text`, with `P` for a piece whose line goes on. The file
//! is kept below [`MAX`]: then it becomes `log.1`, the one before is dropped. So a cell's log takes at
//! most twice that.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Largest size of one log file, bytes.
pub const MAX: u64 = 64 << 20;

/// Longest piece of a line, bytes (Docker's and the CRI's 16 KiB).
const PIECE: usize = 16 << 10;

/// File name in the cell's folder.
pub const NAME: &str = "log";

/// Locked (flock(2)) as long as somebody writes the log: the cell's end alone doesn't tell a follower
/// that all of it is written.
const WRITER: &str = "writer";

/// The file before the present one.
pub const OLD: &str = "log.1";

/// Where a piece of output came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Out,
    /// Standard error.
    Err,
}

impl Stream {
    fn word(self) -> &'static str {
        match self {
            Stream::Out => "stdout",
            Stream::Err => "stderr",
        }
    }
}

/// Writes the log of one cell.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    file: File,
    size: u64,
    max: u64,
    _lock: File,
    /// The unfinished lines of stdout and stderr.
    rest: [Vec<u8>; 2],
}

fn open(dir: &Path) -> io::Result<File> {
    File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(dir.join(NAME))
}

impl Writer {
    /// Opens the log in a cell's folder.
    ///
    /// # Errors
    /// The file can't be opened.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Self::with_max(dir, MAX)
    }

    fn with_max(dir: &Path, max: u64) -> io::Result<Self> {
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join(WRITER))?;
        lock.lock()?;
        let file = open(dir)?;
        let size = file.metadata()?.len();
        Ok(Writer {
            dir: dir.to_owned(),
            file,
            size,
            max,
            _lock: lock,
            rest: Default::default(),
        })
    }

    /// Takes output as it comes; whole lines are written, the rest waits for its end.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn push(&mut self, stream: Stream, data: &[u8]) -> io::Result<()> {
        let now = stamp();
        let mut out = Vec::new();
        let mut data = data;
        let rest = self.rest_of(stream);
        while !data.is_empty() {
            let room = PIECE.saturating_sub(rest.len());
            let end = data
                .iter()
                .position(|b| *b == b'\n')
                .filter(|end| *end <= room);
            if let Some(end) = end {
                let (line, tail) = data.split_at(end);
                rest.extend(line);
                entry(&mut out, &now, stream, 'F', rest);
                rest.clear();
                data = tail.get(1..).unwrap_or_default();
            } else if data.len() < room {
                rest.extend(data);
                break;
            } else {
                let (piece, tail) = data.split_at(room);
                rest.extend(piece);
                entry(&mut out, &now, stream, 'P', rest);
                rest.clear();
                data = tail;
            }
        }
        self.write(&out)
    }

    fn rest_of(&mut self, stream: Stream) -> &mut Vec<u8> {
        let [out, err] = &mut self.rest;
        match stream {
            Stream::Out => out,
            Stream::Err => err,
        }
    }

    /// Writes what has no line end yet, at the end of the output.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn finish(&mut self) -> io::Result<()> {
        for stream in [Stream::Out, Stream::Err] {
            let rest = std::mem::take(self.rest_of(stream));
            if !rest.is_empty() {
                let mut out = Vec::new();
                entry(&mut out, &stamp(), stream, 'P', &rest);
                self.write(&out)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, entries: &[u8]) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let more = entries.len() as u64;
        if self.size > 0 && self.size + more > self.max {
            std::fs::rename(self.dir.join(NAME), self.dir.join(OLD))?;
            self.file = open(&self.dir)?;
            self.size = 0;
        }
        self.file.write_all(entries)?;
        self.size += more;
        Ok(())
    }
}

fn entry(out: &mut Vec<u8>, now: &str, stream: Stream, tag: char, text: &[u8]) {
    out.extend(format!("{now} {} {tag} ", stream.word()).into_bytes());
    out.extend(text);
    out.push(b'\n');
}

/// RFC 3339 with nanoseconds, UTC.
fn stamp() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Nanos, true)
}

/// Whether the log in a cell's folder has a writer.
pub fn is_written(dir: &Path) -> bool {
    File::open(dir.join(WRITER))
        .is_ok_and(|f| matches!(f.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)))
}

/// One entry, as read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry<'a> {
    /// RFC 3339.
    pub time: &'a str,
    /// Where it came from.
    pub stream: Stream,
    /// A whole line, or its end.
    pub full: bool,
    /// Without the line end.
    pub text: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads one line of the file, with its line end. `None` for a line that isn't an entry (the disk
    /// was full, say).
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n")?;
        let mut parts = line.splitn(4, |b| *b == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Out,
            b"stderr" => Stream::Err,
            _ => return None,
        };
        let full = match parts.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        let text = parts.next()?;
        Some(Entry {
            time,
            stream,
            full,
            text,
        })
    }
}

/// Reads a log from its oldest entry on, and over to the next file when the log was turned.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    files: Vec<PathBuf>,
    open: Option<BufReader<File>>,
    line: Vec<u8>,
}

impl Reader {
    /// Opens the log in a cell's folder.
    ///
    /// # Errors
    /// There is none (ENOENT), or it can't be read.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let (new, old) = (dir.join(NAME), dir.join(OLD));
        new.metadata()?;
        let mut files = vec![new];
        if old.exists() {
            files.push(old);
        }
        Ok(Reader {
            dir: dir.to_owned(),
            files,
            open: None,
            line: Vec::new(),
        })
    }

    /// The next line with its line end, or `None` when there is no more for now.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn next_line(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            let Some(file) = &mut self.open else {
                let Some(path) = self.files.pop() else {
                    return Ok(None);
                };
                self.open = Some(BufReader::new(File::open(path)?));
                continue;
            };
            let start = file.stream_position()?;
            self.line.clear();
            file.read_until(b'\n', &mut self.line)?;
            if self.line.ends_with(b"\n") {
                // The borrow checker wants the buffer looked up again.
                return Ok(Some(&self.line));
            }
            // Half an entry: the writer is at it.
            file.seek(SeekFrom::Start(start))?;
            if self.files.is_empty() && !self.turned()? {
                return Ok(None);
            }
            self.open = None;
        }
    }

    /// The open file is no longer the present one: read it to its end, then go over.
    fn turned(&mut self) -> io::Result<bool> {
        let Some(open) = &self.open else {
            return Ok(false);
        };
        let path = self.dir.join(NAME);
        let now = match path.metadata() {
            Ok(now) => now,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        let ours = open.get_ref().metadata()?;
        if (now.dev(), now.ino()) == (ours.dev(), ours.ino()) {
            return Ok(false);
        }
        self.files.push(path);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(dir: &Path) -> Vec<(Stream, bool, String)> {
        let mut reader = Reader::open(dir).unwrap();
        let mut out = Vec::new();
        while let Some(line) = reader.next_line().unwrap() {
            let e = Entry::parse(line).unwrap();
            let text = String::from_utf8_lossy(e.text).into_owned();
            out.push((e.stream, e.full, text));
        }
        out
    }

    #[test]
    fn lines_and_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Writer::open(dir.path()).unwrap();
        log.push(Stream::Out, b"one\ntw").unwrap();
        log.push(Stream::Err, b"oops\n\n").unwrap();
        log.push(Stream::Out, b"o\nlast").unwrap();
        log.finish().unwrap();
        assert!(is_written(dir.path()));
        drop(log);
        assert!(!is_written(dir.path()));
        assert_eq!(
            all(dir.path()),
            [
                (Stream::Out, true, "one".into()),
                (Stream::Err, true, "oops".into()),
                (Stream::Err, true, "".into()),
                (Stream::Out, true, "two".into()),
                (Stream::Out, false, "last".into()),
            ]
        );
    }

    #[test]
    fn long_lines_are_cut_and_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Writer::open(dir.path()).unwrap();
        let text: Vec<u8> = (0..100_000_u32).map(|i| b'a' + (i % 26) as u8).collect();
        for chunk in text.chunks(7_001) {
            log.push(Stream::Out, chunk).unwrap();
        }
        log.push(Stream::Out, b"\nnext\n").unwrap();
        log.finish().unwrap();
        let got = all(dir.path());
        let (next, long) = got.split_last().unwrap();
        assert_eq!(next.2, "next");
        let joined: String = long.iter().map(|e| e.2.as_str()).collect();
        assert_eq!(joined.as_bytes(), text);
        assert!(long.iter().all(|e| e.2.len() <= PIECE));
        let ends: Vec<bool> = long.iter().map(|e| e.1).collect();
        assert_eq!(ends.iter().filter(|full| **full).count(), 1);
        assert_eq!(ends.last(), Some(&true));
    }

    #[test]
    fn a_log_is_turned_and_read_across() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Writer::with_max(dir.path(), 200).unwrap();
        log.push(Stream::Out, b"first\n").unwrap();
        let mut reader = Reader::open(dir.path()).unwrap();
        let next = |reader: &mut Reader| {
            let line = reader.next_line().unwrap()?.to_owned();
            Some(String::from_utf8_lossy(Entry::parse(&line).unwrap().text).into_owned())
        };
        assert_eq!(next(&mut reader).unwrap(), "first");
        assert_eq!(next(&mut reader), None);
        for i in 0..5 {
            log.push(Stream::Out, format!("line {i}\n").as_bytes())
                .unwrap();
        }
        // 200 bytes hold three entries: one turn, the follower misses nothing.
        for i in 0..5 {
            assert_eq!(next(&mut reader).unwrap(), format!("line {i}"));
        }
        assert_eq!(next(&mut reader), None);
        for i in 0..50 {
            log.push(Stream::Err, format!("{i}\n").as_bytes()).unwrap();
        }
        let size = |name| dir.path().join(name).metadata().unwrap().len();
        assert!(size(NAME) <= 200 && size(OLD) <= 200);
        assert_eq!(all(dir.path()).last().unwrap().2, "49");
    }

    #[test]
    fn what_is_no_entry() {
        for line in [
            "",
            "\n",
            "x\n",
            "t stdout F",
            "t stdlog F x\n",
            "t stdout Q x\n",
        ] {
            assert_eq!(Entry::parse(line.as_bytes()), None, "{line:?}");
        }
        let entry = Entry::parse(b"t stderr F a b  c\n").unwrap();
        assert_eq!(entry.text, b"a b  c");
    }

    #[test]
    fn no_log_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let err = Reader::open(dir.path()).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::NotFound);
    }
}
