//! OCI image layouts, as a folder or in an archive (image-spec, image-layout.md).

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageIndex};

use super::archive::Archive;
use super::digest::Digest;
use super::inflate::Layer;
use super::media::{self, Document, MAX_DOCUMENT, MAX_NESTING, Platform};
use super::{Image, docker_archive};
use crate::{Error, Result};

/// Annotation that holds an index entry's tag (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The files of a layout.
pub enum Files {
    Folder(PathBuf),
    Archive(Arc<Archive>),
}

impl Files {
    fn name(&self) -> String {
        match self {
            Files::Folder(path) => path.display().to_string(),
            Files::Archive(archive) => archive.name().to_string(),
        }
    }

    /// Opens a file of the layout; its size in bytes.
    fn open(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64)> {
        match self {
            Files::Folder(dir) => {
                let path = dir.join(name);
                let failed = |e| Error::step("open", path.display().to_string(), e);
                let file = File::open(&path).map_err(failed)?;
                let size = file.metadata().map_err(failed)?.len();
                Ok((Box::new(file), size))
            }
            Files::Archive(archive) => archive.open_member(name),
        }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>> {
        let (reader, size) = self.open(name)?;
        docker_archive::read_document(&self.name(), name, reader, size)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<(Digest, Vec<u8>)> {
        let digest = media::digest_of(descriptor)?;
        if descriptor.size() > MAX_DOCUMENT {
            return Err(Error::msg(format!(
                "{digest}: larger than {MAX_DOCUMENT} bytes"
            )));
        }
        let data = self.document(&blob_path(&digest))?;
        let mut hasher = digest.hasher();
        hasher.update(&data);
        let got = hasher.finish();
        if got != digest || data.len() as u64 != descriptor.size() {
            return Err(Error::msg(format!(
                "{}: blob {digest} is damaged: it has {} bytes and digest {got}",
                self.name(),
                data.len()
            )));
        }
        Ok((digest, data))
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// Finds the image `tag` (or the only one) of a layout.
pub fn image(files: Files, tag: Option<&str>, platform: &Platform) -> Result<Image> {
    let name = files.name();
    let json = files.document("index.json")?;
    let Document::Index(index) = media::document(&format!("{name}: index.json"), &json)? else {
        return Err(Error::msg(format!("{name}: index.json is not an index")));
    };
    let mut descriptor = tagged(&name, &index, tag, platform)?.clone();
    for _ in 0..MAX_NESTING {
        let (digest, json) = files.blob(&descriptor)?;
        let what = format!("{name}: {digest}");
        match media::document(&what, &json)? {
            Document::Index(index) => {
                descriptor = media::select(&what, &index, platform)?.clone();
            }
            Document::Manifest(manifest) => {
                let (config_digest, config_json) = files.blob(manifest.config())?;
                let config = media::config(&format!("{name}: {config_digest}"), &config_json)?;
                let layers = media::layers(&what, &manifest, &config)?;
                let files = Arc::new(files);
                let layers = layers
                    .into_iter()
                    .map(|layer| {
                        let files = files.clone();
                        let path = blob_path(&layer.digest);
                        Layer {
                            name: layer.digest.short().to_string(),
                            open: Box::new(move || Ok(files.open(&path)?.0)),
                            digest: Some(layer.digest),
                            diff_id: Some(layer.diff_id),
                        }
                    })
                    .collect();
                return Ok(Image {
                    name,
                    digest,
                    config,
                    layers,
                });
            }
        }
    }
    Err(Error::msg(format!("{name}: indexes nested too deep")))
}

/// The entry that `tag` names: by its annotation, by digest, or the only image there is.
fn tagged<'a>(
    name: &str,
    index: &'a ImageIndex,
    tag: Option<&str>,
    platform: &Platform,
) -> Result<&'a Descriptor> {
    let entries = index.manifests();
    let ref_name = |d: &'a Descriptor| {
        d.annotations()
            .as_ref()
            .and_then(|a| a.get(REF_NAME))
            .map(String::as_str)
    };
    let Some(tag) = tag else {
        return match entries.as_slice() {
            [] => Err(Error::msg(format!("{name}: holds no image"))),
            [only] => Ok(only),
            _ => {
                let mut tags: Vec<&str> = entries.iter().filter_map(ref_name).collect();
                tags.dedup();
                if tags.len() > 1 {
                    return Err(Error::msg(format!(
                        "{name}: holds several images; name one of {}",
                        tags.join(", ")
                    )));
                }
                media::select(name, index, platform)
            }
        };
    };
    let named: Vec<&Descriptor> = entries
        .iter()
        .filter(|d| ref_name(d) == Some(tag) || d.digest().as_ref() == tag.trim_start_matches('@'))
        .collect();
    match named[..] {
        [only] => Ok(only),
        [] => {
            let tags: Vec<&str> = entries.iter().filter_map(ref_name).collect();
            Err(Error::msg(format!(
                "{name}: no image {tag:?}; it has {}",
                if tags.is_empty() {
                    "no names".to_string()
                } else {
                    tags.join(", ")
                }
            )))
        }
        // The same tag for several platforms.
        [first, ..] => Ok(named
            .iter()
            .copied()
            .find(|d| platform.matches(d))
            .unwrap_or(first)),
    }
}
