//! What `docker save` writes: `manifest.json` with a config and layers, which are `ID/layer.tar`
//! in files of old and `blobs/sha256/HEX` since Docker 25.
//! (moby `image/tarexport`; the format has no specification of its own.)

use std::io::Read;
use std::sync::Arc;

use serde::Deserialize;

use super::Image;
use super::archive::Archive;
use super::digest::Digest;
use super::inflate::Layer;
use super::media::{self, MAX_DOCUMENT};
use super::source;
use crate::{Error, Result};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Finds the image `tag` (or the only one) of an archive.
pub fn image(archive: Arc<Archive>, tag: Option<&str>) -> Result<Image> {
    let name = archive.name().to_string();
    if !archive.has("manifest.json") {
        return Err(Error::msg(format!(
            "{name}: has no manifest.json: not a docker save archive, or one from before Docker 1.10"
        )));
    }
    let (reader, size) = archive.open_member("manifest.json")?;
    let json = read_document(&name, "manifest.json", reader, size)?;
    let saved: Vec<Saved> = serde_json::from_slice(&json)
        .map_err(|e| Error::msg(format!("{name}: manifest.json: {e}")))?;
    let image = choose(&name, &saved, tag)?;

    let (reader, size) = archive.open_member(&image.config)?;
    let json = read_document(&name, &image.config, reader, size)?;
    let digest = Digest::of(&json);
    // Its name promises its digest.
    let stem = image.config.rsplit('/').next().unwrap_or_default();
    let stem = stem.strip_suffix(".json").unwrap_or(stem);
    if stem.len() == 64 && stem != digest.hex() {
        return Err(Error::msg(format!(
            "{name}: config {} is damaged: its digest is {digest}",
            image.config
        )));
    }
    let config = media::config(&format!("{name}: {}", image.config), &json)?;
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != image.layers.len() {
        return Err(Error::msg(format!(
            "{name}: manifest.json lists {} layers, the config {}",
            image.layers.len(),
            diff_ids.len()
        )));
    }
    let mut layers = Vec::with_capacity(diff_ids.len());
    for (path, diff_id) in image.layers.iter().zip(diff_ids) {
        let diff_id = Digest::parse(diff_id)?;
        let (archive, path) = (archive.clone(), path.clone());
        layers.push(Layer {
            name: diff_id.short().to_string(),
            open: Box::new(move || Ok(archive.open_member(&path)?.0)),
            // Members have no digest of their own; the diff ID covers the content.
            digest: None,
            diff_id: Some(diff_id),
        });
    }
    Ok(Image {
        name,
        digest,
        config,
        layers,
    })
}

fn choose<'a>(name: &str, saved: &'a [Saved], tag: Option<&str>) -> Result<&'a Saved> {
    let tags = || {
        let all: Vec<&str> = saved
            .iter()
            .flat_map(|s| s.repo_tags.iter().flatten())
            .map(String::as_str)
            .collect();
        if all.is_empty() {
            "no names".to_string()
        } else {
            all.join(", ")
        }
    };
    let Some(tag) = tag else {
        return match saved {
            [only] => Ok(only),
            [] => Err(Error::msg(format!("{name}: holds no image"))),
            _ => Err(Error::msg(format!(
                "{name}: holds several images; name one of {}",
                tags()
            ))),
        };
    };
    let want = source::reference(tag)?.whole();
    saved
        .iter()
        .find(|s| {
            s.repo_tags
                .iter()
                .flatten()
                .any(|t| source::reference(t).is_ok_and(|r| r.whole() == want))
        })
        .ok_or_else(|| Error::msg(format!("{name}: no image {tag:?}; it has {}", tags())))
}

/// Reads a small file of an archive or layout.
pub(super) fn read_document(
    name: &str,
    file: &str,
    reader: Box<dyn Read + Send>,
    size: u64,
) -> Result<Vec<u8>> {
    if size > MAX_DOCUMENT {
        return Err(Error::msg(format!(
            "{name}: {file}: larger than {MAX_DOCUMENT} bytes"
        )));
    }
    let mut data = Vec::with_capacity(size as usize);
    reader
        .take(MAX_DOCUMENT)
        .read_to_end(&mut data)
        .map_err(|e| Error::step("read", format!("{file} of {name}"), e))?;
    Ok(data)
}
