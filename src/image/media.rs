//! Image documents: indexes, manifests and configs, read with bounds and clear errors.
//!
//! Owns what a manifest means (which platform, which layers in which order). It fetches nothing.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};

use super::digest::Digest;
use crate::{Error, Result};

/// Largest document read, in bytes. (Registries refuse manifests past 4 MiB: distribution-spec,
/// "Pushing Manifests".)
pub const MAX_DOCUMENT: u64 = 8 << 20;
/// Indexes may point at indexes; how far is followed.
pub const MAX_NESTING: usize = 4;

/// An image index or an image manifest.
#[derive(Debug)]
pub enum Document {
    Index(Box<ImageIndex>),
    Manifest(Box<ImageManifest>),
}

/// Operating system, architecture and variant, as `--platform` takes them: `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        // GOARCH names (image-spec config.md, "architecture").
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: None,
        }
    }

    /// Parses `[OS/]ARCH[/VARIANT]`, with uname's names for architectures too.
    pub fn parse(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [arch] => ("linux", arch, None),
            [os, arch] => (os, arch, None),
            [os, arch, variant] => (os, arch, Some(variant)),
            _ => ("", "", None),
        };
        if os.is_empty() || architecture.is_empty() || variant == Some("") {
            return Err(Error::msg(format!(
                "--platform {text:?}: write OS/ARCHITECTURE[/VARIANT], such as linux/arm64"
            )));
        }
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.map(str::to_string),
        })
    }

    /// Whether an entry is for this platform.
    pub fn matches(&self, descriptor: &Descriptor) -> bool {
        self.fit(descriptor).is_some()
    }

    /// How well an entry's platform fits: lower is better, `None` not at all. An ARM machine runs
    /// older variants too (containerd `platforms`: v8 then v7, v6, v5); arm64 means v8.
    fn fit(&self, descriptor: &Descriptor) -> Option<usize> {
        let platform = descriptor.platform().as_ref()?;
        if platform.os().to_string() != self.os
            || platform.architecture().to_string() != self.architecture
        {
            return None;
        }
        let has = platform.variant().as_deref().filter(|v| !v.is_empty());
        match (self.architecture.as_str(), self.variant.as_deref(), has) {
            (_, want, has) if want == has => Some(0),
            ("arm64", None | Some("v8"), None | Some("v8")) => Some(0),
            // Without a wish: the baseline first, then what comes (amd64/v3 may not run here).
            (_, None, has) => Some(has.map_or(0, |_| 1)),
            ("arm", Some(want), has) => {
                let level = |v: &str| v.strip_prefix('v').and_then(|n| n.parse::<usize>().ok());
                let (want, has) = (level(want)?, level(has.unwrap_or("v7"))?);
                want.checked_sub(has)
            }
            (_, Some(_), None) => Some(1),
            _ => None,
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// Reads an index or manifest of the OCI or Docker (schema 2) kind. `name` is for messages.
pub fn document(name: &str, json: &[u8]) -> Result<Document> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        schema_version: Option<u32>,
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        fs_layers: Option<serde::de::IgnoredAny>,
    }
    let bad = |e| Error::msg(format!("{name}: not an image manifest or index: {e}"));
    if json.len() as u64 > MAX_DOCUMENT {
        return Err(Error::msg(format!(
            "{name}: larger than {MAX_DOCUMENT} bytes"
        )));
    }
    let head: Head = serde_json::from_slice(json).map_err(bad)?;
    if head.schema_version == Some(1) || head.fs_layers.is_some() {
        return Err(Error::msg(format!(
            "{name}: a Docker schema 1 manifest; push the image again with a current tool"
        )));
    }
    if head.schema_version.is_some_and(|v| v != 2) {
        return Err(Error::msg(format!("{name}: schemaVersion must be 2")));
    }
    // One document that reads as both is a known confusion attack (CVE-2021-41190).
    if head.manifests.is_some() && head.layers.is_some() {
        return Err(Error::msg(format!(
            "{name}: has both \"manifests\" and \"layers\""
        )));
    }
    let index = match head.media_type.as_deref().map(MediaType::from) {
        Some(t) if is_index(&t) => true,
        Some(t) if is_manifest(&t) => false,
        Some(t) => {
            return Err(Error::msg(format!(
                "{name}: media type {t} is not an image's"
            )));
        }
        None => head.manifests.is_some(),
    };
    if index {
        serde_json::from_slice(json)
            .map(|index| Document::Index(Box::new(index)))
            .map_err(bad)
    } else {
        serde_json::from_slice(json)
            .map(|manifest| Document::Manifest(Box::new(manifest)))
            .map_err(bad)
    }
}

/// Reads an image config.
pub fn config(name: &str, json: &[u8]) -> Result<ImageConfiguration> {
    if json.len() as u64 > MAX_DOCUMENT {
        return Err(Error::msg(format!(
            "{name}: larger than {MAX_DOCUMENT} bytes"
        )));
    }
    serde_json::from_slice(json)
        .map_err(|e| Error::msg(format!("{name}: not an image config: {e}")))
}

/// Media types of indexes and manifests, Docker's among them.
pub fn is_index(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::ImageIndex)
        || media_type.to_string() == "application/vnd.docker.distribution.manifest.list.v2+json"
}

fn is_manifest(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::ImageManifest)
        || media_type.to_string() == "application/vnd.docker.distribution.manifest.v2+json"
}

/// The entry of an index for a platform.
pub fn select<'a>(name: &str, index: &'a ImageIndex, want: &Platform) -> Result<&'a Descriptor> {
    let entries = index.manifests();
    let image = |d: &&Descriptor| is_index(d.media_type()) || is_manifest(d.media_type());
    let best = entries
        .iter()
        .filter(image)
        .filter_map(|d| want.fit(d).map(|fit| (fit, d)))
        .min_by_key(|(fit, _)| *fit);
    if let Some((_, descriptor)) = best {
        return Ok(descriptor);
    }
    // A layout's index often names its only image without a platform.
    let mut unmarked = entries
        .iter()
        .filter(image)
        .filter(|d| d.platform().is_none());
    if let (Some(only), None) = (unmarked.next(), unmarked.next()) {
        return Ok(only);
    }
    let have: Vec<String> = entries
        .iter()
        .filter_map(|d| d.platform().as_ref())
        .map(|p| {
            let variant = p.variant().as_deref().unwrap_or_default();
            let slash = if variant.is_empty() { "" } else { "/" };
            format!("{}/{}{slash}{variant}", p.os(), p.architecture())
        })
        // Build attestations are listed as unknown/unknown.
        .filter(|p| !p.starts_with("unknown/"))
        .collect();
    Err(Error::msg(format!(
        "{name}: no image for {want}; it has {}",
        if have.is_empty() {
            "none with a platform".to_string()
        } else {
            have.join(", ")
        }
    )))
}

/// What to fetch for a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRef {
    pub digest: Digest,
    /// Stored size in bytes.
    pub size: u64,
    pub diff_id: Digest,
    /// Other places that may serve it (foreign layers).
    pub urls: Vec<String>,
}

/// The manifest's layers, lowest first, with the config's diff IDs.
pub fn layers(
    name: &str,
    manifest: &ImageManifest,
    config: &ImageConfiguration,
) -> Result<Vec<LayerRef>> {
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != manifest.layers().len() {
        return Err(Error::msg(format!(
            "{name}: the manifest has {} layers, its config {}",
            manifest.layers().len(),
            diff_ids.len()
        )));
    }
    manifest
        .layers()
        .iter()
        .zip(diff_ids)
        .map(|(descriptor, diff_id)| {
            let kind = descriptor.media_type().to_string();
            if !is_layer(&kind) {
                return Err(Error::msg(format!(
                    "{name}: {kind} is not a file system layer (is this an image?)"
                )));
            }
            Ok(LayerRef {
                digest: digest_of(descriptor)?,
                size: descriptor.size(),
                diff_id: Digest::parse(diff_id)?,
                urls: descriptor.urls().clone().unwrap_or_default(),
            })
        })
        .collect()
}

/// Layers of the OCI and Docker kinds, compressed or not, also "foreign" ones.
fn is_layer(media_type: &str) -> bool {
    let Some(rest) = media_type
        .strip_prefix("application/vnd.oci.image.layer.")
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs."))
    else {
        return false;
    };
    // Encrypted layers carry `+encrypted` behind it.
    rest.contains("tar") && !rest.contains("encrypted")
}

/// A descriptor's digest in this crate's type.
pub fn digest_of(descriptor: &Descriptor) -> Result<Digest> {
    Digest::parse(descriptor.digest().as_ref())
}

#[cfg(test)]
#[path = "media_tests.rs"]
mod tests;
