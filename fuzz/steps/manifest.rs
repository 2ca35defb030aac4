//! What the `manifest` target does with its bytes: a manifest or index, and behind a line `---` an
//! image config, through everything up to a runtime configuration.

use gpucell::image::media::{self, Document, Platform};
use gpucell::image::source::Source;
use gpucell::image::{config, volumes::Volume};

/// How far the bytes came.
#[derive(Debug, PartialEq, Eq)]
pub enum Reached {
    /// No manifest and no index.
    Nothing,
    /// An index; the entry for linux/amd64, if it has one, was chosen.
    Index,
    /// A manifest whose config or layers were refused.
    Manifest,
    /// A manifest with layers and a runtime configuration.
    Done,
}

pub fn run(data: &[u8]) -> Reached {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Source::parse(text).map(|source| source.bundle_name());
    }
    let mark = data.windows(5).position(|w| w == b"\n---\n");
    let (first, second) = match mark {
        Some(at) => (&data[..at], &data[at + 5..]),
        None => (data, &b"{}"[..]),
    };
    match media::document("fuzz", first) {
        Err(_) => Reached::Nothing,
        Ok(Document::Index(index)) => {
            for platform in ["linux/amd64", "linux/arm/v7", "arm64"] {
                if let Ok(platform) = Platform::parse(platform) {
                    let _ = media::select("fuzz", &index, &platform).map(media::digest_of);
                }
            }
            Reached::Index
        }
        Ok(Document::Manifest(manifest)) => {
            let done = media::config("fuzz", second)
                .and_then(|image| {
                    media::layers("fuzz", &manifest, &image)?;
                    config::folders(&image)?;
                    let root = std::fs::File::open("/proc/self/fdinfo")
                        .map_err(|e| gpucell::Error::step("open", "an empty root", e))?
                        .into();
                    let volumes = [Volume {
                        target: "/data".into(),
                        source: "volumes/data".into(),
                    }];
                    config::to_spec(&image, &root, &volumes)
                })
                .and_then(|(spec, _)| gpucell::spec::default::to_json(&spec));
            match done {
                Ok(_) => Reached::Done,
                Err(_) => Reached::Manifest,
            }
        }
    }
}
