//! Content digests: what a descriptor promises, and checking it while bytes stream by.

use std::fmt;
use std::io::{self, Read};

use sha2::{Digest as _, Sha256, Sha512};

use crate::{Error, Result};

/// A digest that this module can compute: `sha256:` or `sha512:` and lower-case hex
/// (image-spec, descriptor.md, "Registered Algorithms").
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// Parses and checks `ALGORITHM:HEX`.
    pub fn parse(text: &str) -> Result<Self> {
        let length = match text.split_once(':') {
            Some(("sha256", _)) => 64,
            Some(("sha512", _)) => 128,
            _ => {
                return Err(Error::msg(format!(
                    "digest {text:?}: only sha256 and sha512 are known"
                )));
            }
        };
        let hex = &text[7..];
        let good = hex
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex.len() != length || !good {
            return Err(Error::msg(format!("digest {text:?} is malformed")));
        }
        Ok(Digest(text.to_string()))
    }

    /// The sha256 digest of `data`.
    pub fn of(data: &[u8]) -> Self {
        let mut hasher = Hasher::sha256();
        hasher.update(data);
        hasher.finish()
    }

    /// `sha256` or `sha512`: the folder in a blob store.
    pub fn algorithm(&self) -> &str {
        &self.0[..6]
    }

    /// The hex part: the file name in a blob store.
    pub fn hex(&self) -> &str {
        &self.0[7..]
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, as people quote digests.
    pub fn short(&self) -> &str {
        &self.0[7..19]
    }

    /// A hasher for this digest's algorithm.
    pub fn hasher(&self) -> Hasher {
        if self.0.starts_with("sha512") {
            Hasher::Sha512(Sha512::new())
        } else {
            Hasher::sha256()
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A running hash.
pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub fn sha256() -> Self {
        Hasher::Sha256(Sha256::new())
    }

    pub fn update(&mut self, data: &[u8]) {
        match self {
            Hasher::Sha256(h) => h.update(data),
            Hasher::Sha512(h) => h.update(data),
        }
    }

    pub fn finish(self) -> Digest {
        let hex = |bytes: &[u8]| -> String {
            use fmt::Write;
            bytes.iter().fold(String::new(), |mut out, byte| {
                let _ = write!(out, "{byte:02x}");
                out
            })
        };
        Digest(match self {
            Hasher::Sha256(h) => format!("sha256:{}", hex(&h.finalize())),
            Hasher::Sha512(h) => format!("sha512:{}", hex(&h.finalize())),
        })
    }
}

/// Hashes and counts what is read through it.
pub struct HashReader<R> {
    inner: R,
    hasher: Option<Hasher>,
    count: u64,
}

impl<R: Read> HashReader<R> {
    /// With no hasher, only counts.
    pub fn new(inner: R, hasher: Option<Hasher>) -> Self {
        HashReader {
            inner,
            hasher,
            count: 0,
        }
    }

    /// Bytes read so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The digest of what was read.
    pub fn finish(self) -> Option<Digest> {
        self.hasher.map(Hasher::finish)
    }
}

impl<R: Read> Read for HashReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count += n as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..n]);
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_only_what_it_can_check() {
        let of = Digest::of(b"");
        assert_eq!(
            of.as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(Digest::parse(of.as_str()).unwrap(), of);
        assert_eq!(of.algorithm(), "sha256");
        assert_eq!(of.short(), "e3b0c44298fc");
        for wrong in [
            "",
            "sha256:",
            "sha256:../../etc/passwd",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
        ] {
            assert!(Digest::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn hashes_what_streams_by() {
        let mut reader = HashReader::new(&b"abc"[..], Some(Hasher::sha256()));
        io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(reader.count(), 3);
        assert_eq!(reader.finish(), Some(Digest::of(b"abc")));
    }
}
