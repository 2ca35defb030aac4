//! Bounds on what an image may unpack to.

use crate::{Error, Result};

/// Bounds past which a pull stops with an error. An image is foreign input: a layer of a few
/// kilobytes can inflate to terabytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that all layers together may inflate to.
    pub bytes: u64,
    /// Entries that all layers together may hold.
    pub entries: u64,
    /// Inflated bytes per compressed byte of one layer, looked at past [`Limits::RATIO_FROM`].
    pub ratio: u64,
}

impl Limits {
    /// Inflated bytes of a layer from which on its ratio counts. Small layers of zeros are common
    /// and harmless.
    pub const RATIO_FROM: u64 = 1 << 30;

    /// An error if `inflated` bytes out of `compressed` in layer `name`, after `before` bytes in
    /// the layers below it, are more than allowed.
    pub fn check(&self, name: &str, before: u64, inflated: u64, compressed: u64) -> Result<()> {
        if before.saturating_add(inflated) > self.bytes {
            return Err(Error::msg(format!(
                "layer {name}: the image unpacks to more than {} bytes (--max-size)",
                self.bytes
            )));
        }
        if inflated > Self::RATIO_FROM && inflated / compressed.max(1) > self.ratio {
            return Err(Error::msg(format!(
                "layer {name}: unpacks to more than {} times its compressed size (--max-ratio)",
                self.ratio
            )));
        }
        Ok(())
    }
}

impl Default for Limits {
    /// 128 GiB, 8 million entries, 200 to 1: several times the largest CUDA and conda images.
    fn default() -> Self {
        Limits {
            bytes: 128 << 30,
            entries: 8_000_000,
            ratio: 200,
        }
    }
}
