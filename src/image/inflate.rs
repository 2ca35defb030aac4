//! Layers to tar bytes: reads, verifies and decompresses layers on a thread of its own, so that
//! the next bytes (and the next layer) are ready while the current ones are written.
//!
//! Owns decompression, digests and the size bounds. It never interprets the tar stream.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::digest::{Digest, HashReader, Hasher};
use super::limits::Limits;
use super::tar::Stream;
use crate::{Error, Result};

/// Bytes handed over at once.
const PIECE: usize = 256 << 10;
/// Pieces that may wait: 8 MiB of memory for reading ahead.
const AHEAD: usize = 32;

/// Opens a layer's bytes as stored. It may wait, for a download to end for instance.
pub type Open = Box<dyn FnOnce() -> Result<Box<dyn Read + Send>> + Send>;

/// One layer to inflate.
pub struct Layer {
    /// What messages call it.
    pub name: String,
    pub open: Open,
    /// Digest of the stored bytes, if they were not verified before.
    pub digest: Option<Digest>,
    /// Digest of the inflated bytes (the config's `rootfs.diff_ids`).
    pub diff_id: Option<Digest>,
}

enum Piece {
    Data(Vec<u8>),
    End,
    Failed(Error),
}

/// The inflated bytes of a list of layers, one after the other. As [`BufRead`] it ends with each
/// layer; [`Inflated::next_layer`] goes on to the next.
pub struct Inflated {
    pieces: Receiver<Piece>,
    spare: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
    failed: Option<Error>,
    worker: Option<JoinHandle<()>>,
}

impl Inflated {
    /// Starts inflating `layers` in order.
    pub fn start(layers: Vec<Layer>, limits: Limits) -> Result<Self> {
        let (send, pieces) = sync_channel(AHEAD);
        let (spare, reuse) = sync_channel(AHEAD);
        let worker = std::thread::Builder::new()
            .name("inflate".into())
            .spawn(move || work(layers, limits, &send, &reuse))
            .map_err(|e| Error::step("start", "the inflating thread", e))?;
        Ok(Inflated {
            pieces,
            spare,
            current: Vec::new(),
            at: 0,
            ended: false,
            failed: None,
            worker: Some(worker),
        })
    }

    /// Reads the rest of the current layer, so that it is verified to its last byte, and goes on to
    /// the next. The error is the worker's own: which layer, and what is wrong with it.
    pub fn next_layer(&mut self) -> Result<()> {
        while self.fill().is_ok_and(|data| !data.is_empty()) {
            self.at = self.current.len();
        }
        match self.failed.take() {
            Some(error) => Err(error),
            None => {
                self.ended = false;
                Ok(())
            }
        }
    }

    /// The worker's error, if it is the reason for a failed read.
    pub fn take_error(&mut self) -> Option<Error> {
        self.failed.take()
    }

    fn fill(&mut self) -> io::Result<&[u8]> {
        while self.at == self.current.len() && !self.ended && self.failed.is_none() {
            let used = std::mem::take(&mut self.current);
            if used.capacity() > 0 {
                // Full only if the worker has plenty: then the buffer is simply dropped.
                let _ = self.spare.try_send(used);
            }
            self.at = 0;
            match self.pieces.recv() {
                Ok(Piece::Data(data)) => self.current = data,
                Ok(Piece::End) => self.ended = true,
                Ok(Piece::Failed(error)) => self.failed = Some(error),
                Err(_) => self.failed = Some(Error::msg("the inflating thread died")),
            }
        }
        if self.failed.is_some() {
            return Err(io::Error::other("the layer can't be read"));
        }
        Ok(&self.current[self.at..])
    }
}

impl Drop for Inflated {
    fn drop(&mut self) {
        // The worker stops at its next send once nobody receives. It may be waiting for a download:
        // it is not joined, it ends with the process or with the download.
        let (_, dead) = sync_channel(0);
        self.pieces = dead;
        drop(self.worker.take());
    }
}

impl Read for Inflated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let data = self.fill()?;
        let n = data.len().min(buffer.len());
        buffer[..n].copy_from_slice(&data[..n]);
        self.at += n;
        Ok(n)
    }
}

impl BufRead for Inflated {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.fill()
    }

    fn consume(&mut self, n: usize) {
        self.at = (self.at + n).min(self.current.len());
    }
}

impl Stream for &mut Inflated {}

/// Sends every layer's bytes; ends early when the receiver is gone or a layer is wrong.
fn work(layers: Vec<Layer>, limits: Limits, send: &SyncSender<Piece>, reuse: &Receiver<Vec<u8>>) {
    let mut before = 0;
    for layer in layers {
        match inflate(layer, &limits, before, send, reuse) {
            Ok(Some(inflated)) => before += inflated,
            Ok(None) => return,
            Err(error) => {
                let _ = send.send(Piece::Failed(error));
                return;
            }
        }
    }
}

/// `None` if nobody listens any more, else the layer's inflated size.
fn inflate(
    layer: Layer,
    limits: &Limits,
    before: u64,
    send: &SyncSender<Piece>,
    reuse: &Receiver<Vec<u8>>,
) -> Result<Option<u64>> {
    let Layer {
        name,
        open,
        digest,
        diff_id,
    } = layer;
    let failed = |e: io::Error| Error::step("read layer", name.as_str(), e);
    let stored = HashReader::new(open()?, digest.as_ref().map(Digest::hasher));
    let mut source = Decoder::new(stored).map_err(failed)?;
    let mut hasher = diff_id.as_ref().map(Digest::hasher);
    let mut inflated = 0u64;
    loop {
        let mut buffer = reuse.try_recv().unwrap_or_default();
        buffer.resize(PIECE, 0);
        let mut have = 0;
        while have < PIECE {
            match source.read(&mut buffer[have..]) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(e)),
            }
        }
        buffer.truncate(have);
        if have == 0 {
            break;
        }
        inflated += have as u64;
        limits.check(&name, before, inflated, source.stored())?;
        if let Some(hasher) = &mut hasher {
            hasher.update(&buffer);
        }
        if send.send(Piece::Data(buffer)).is_err() {
            return Ok(None);
        }
    }
    let got = source.finish().map_err(failed)?;
    verify(&name, "digest", digest, got)?;
    verify(&name, "diff ID", diff_id, hasher.map(Hasher::finish))?;
    if send.send(Piece::End).is_err() {
        return Ok(None);
    }
    Ok(Some(inflated))
}

fn verify(name: &str, what: &str, want: Option<Digest>, got: Option<Digest>) -> Result<()> {
    match (want, got) {
        (Some(want), Some(got)) if want != got => Err(Error::msg(format!(
            "layer {name}: its {what} should be {want}, but its content has {got}"
        ))),
        _ => Ok(()),
    }
}

type Stored = io::BufReader<HashReader<Box<dyn Read + Send>>>;

/// Decompresses what its first bytes say it is. The media type is not asked: registries and
/// archives get it wrong, and every reader of images goes by the content.
enum Decoder {
    Plain(Box<Stored>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Stored>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Stored>>),
}

/// First bytes of a gzip stream (RFC 1952) and of zstd frames (RFC 8878, with skippable frames).
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// How a stream that starts with `head` is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Tells the compression by the first bytes. bzip2 and xz, which `docker load` knows for archives,
/// are named in the error.
pub fn compression(head: &[u8]) -> io::Result<Compression> {
    if head.starts_with(&GZIP) {
        Ok(Compression::Gzip)
    } else if head.starts_with(&ZSTD)
        || (head.len() > 3 && head[0] & 0xf0 == 0x50 && head[1..4] == ZSTD_SKIPPABLE)
    {
        Ok(Compression::Zstd)
    } else if head.starts_with(b"\xfd7zXZ\0") || head.starts_with(b"BZh") {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "compressed with xz or bzip2: only gzip, zstd and plain tar are read",
        ))
    } else {
        Ok(Compression::None)
    }
}

impl Decoder {
    fn new(stored: HashReader<Box<dyn Read + Send>>) -> io::Result<Self> {
        let mut stored = io::BufReader::with_capacity(128 << 10, stored);
        Ok(match compression(stored.fill_buf()?)? {
            Compression::None => Decoder::Plain(Box::new(stored)),
            Compression::Gzip => {
                Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(stored)))
            }
            Compression::Zstd => {
                Decoder::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(stored)?))
            }
        })
    }

    /// Stored bytes read so far.
    fn stored(&self) -> u64 {
        match self {
            Decoder::Plain(r) => r.get_ref().count(),
            Decoder::Gzip(r) => r.get_ref().get_ref().count(),
            Decoder::Zstd(r) => r.get_ref().get_ref().count(),
        }
    }

    /// Reads what follows the compressed stream, since the digest covers it, and gives the digest.
    fn finish(self) -> io::Result<Option<Digest>> {
        let stored = match self {
            Decoder::Plain(r) => *r,
            Decoder::Gzip(r) => r.into_inner(),
            Decoder::Zstd(r) => r.finish(),
        };
        let mut stored = stored.into_inner();
        io::copy(&mut stored, &mut io::sink())?;
        Ok(stored.finish())
    }
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(r) => r.read(buffer),
            Decoder::Gzip(r) => r.read(buffer),
            Decoder::Zstd(r) => r.read(buffer),
        }
    }
}

/// A decompressing reader over any source (for whole archives).
pub fn decoder(source: Box<dyn Read + Send>) -> io::Result<impl Read + Send> {
    Decoder::new(HashReader::new(source, None))
}
