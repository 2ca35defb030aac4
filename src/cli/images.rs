//! Images that `gpucell run` keeps: one unpacked root an image, shared by all its cells.
//!
//! `<data>/images/roots/<digest>/` is a bundle (rootfs, config.json) with the image's own config beside
//! it; `<data>/images/names/<hash>` says which root a name stands for. A root is never changed once it is
//! there: an image pulled anew is another root.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::people::{Hold, hold_bundle, random};
use crate::image::source::Source;
use crate::image::{PullRequest, pull};
use crate::{Error, Result};

/// When an image is pulled (Docker's `--pull`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Policy {
    Always,
    #[default]
    Missing,
    Never,
}

/// An image ready to run.
#[derive(Debug)]
pub struct Ready {
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its entrypoint.
    pub entrypoint: Vec<String>,
    /// The lock that keeps the root while a cell uses it.
    pub hold: File,
}

/// What a name file says.
#[derive(Debug, Serialize, Deserialize)]
struct Name {
    source: String,
    root: String,
}

/// Finds an image among those kept, or pulls it.
///
/// # Errors
/// It isn't here and the policy forbids a pull; the pull failed.
pub fn ready(data: &Path, request: &PullRequest, policy: Policy, quiet: bool) -> Result<Ready> {
    let images = data.join("images");
    for folder in ["roots", "names"] {
        let path = images.join(folder);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&path)
            .map_err(|e| Error::step("make", path.display().to_string(), e))?;
    }
    let key = key(&request.source, request.platform.as_deref())?;
    let name = images.join("names").join(&key);
    // One pull of a name at a time: the others wait and then find it.
    let lock = name.with_extension("lock");
    let lock = File::create(&lock).and_then(|file| file.lock().map(|()| file));
    let _lock = lock.map_err(|e| Error::step("lock image", request.source.clone(), e))?;
    if policy != Policy::Always
        && let Some(found) = kept(&images, &name)?
    {
        return Ok(found);
    }
    if policy == Policy::Never {
        return Err(not_here(&request.source));
    }
    if !quiet && policy == Policy::Missing {
        eprintln!("Unable to find image '{}' locally", request.source);
    }
    let root = fetch(&images, request)?;
    let text = serde_json::to_vec(&Name {
        source: request.source.clone(),
        root,
    });
    let text = text.map_err(|e| Error::msg(format!("JSON: {e}")))?;
    replace(&name, &text)?;
    kept(&images, &name)?.ok_or_else(|| not_here(&request.source))
}

fn not_here(source: &str) -> Error {
    Error::msg(format!("Unable to find image '{source}' locally"))
}

/// The name's key: the reference in full, so that `debian` and `docker.io/library/debian:latest` are one;
/// a file with its time and size, so that a new file is a new image.
fn key(source: &str, platform: Option<&str>) -> Result<String> {
    let full = match Source::parse(source)? {
        Source::Registry(reference) => format!("docker://{reference}"),
        Source::Layout { dir, .. } => local(source, &dir.join("index.json"))?,
        Source::OciArchive { file, .. } | Source::DockerArchive { file, .. } => {
            local(source, &file)?
        }
        Source::Rootfs { file: Some(file) } => local(source, &file)?,
        Source::Rootfs { file: None } | Source::Stdin => {
            return Err(Error::msg(
                "an image on stdin can't be run: gpucell pull - BUNDLE/, then gpucell run BUNDLE/",
            ));
        }
    };
    let mut hash = Sha256::new();
    hash.update(full.as_bytes());
    hash.update([0]);
    hash.update(platform.unwrap_or_default().as_bytes());
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

fn local(source: &str, file: &Path) -> Result<String> {
    let path = file
        .canonicalize()
        .and_then(|path| path.metadata().map(|meta| (path, meta)));
    let (path, meta) = path.map_err(|e| Error::step("open image", source.to_owned(), e))?;
    Ok(format!(
        "{source} {} {} {} {}",
        path.display(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.size()
    ))
}

/// The root that a name file names, if both are there.
fn kept(images: &Path, name: &Path) -> Result<Option<Ready>> {
    let text = match fs::read(name) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::step("read", name.display().to_string(), e)),
    };
    let Ok(entry) = serde_json::from_slice::<Name>(&text) else {
        return Ok(None);
    };
    if entry.root.is_empty() || entry.root.contains('/') || entry.root.starts_with('.') {
        return Ok(None);
    }
    let bundle = images.join("roots").join(&entry.root);
    if !bundle.join("config.json").exists() || !bundle.join("rootfs").is_dir() {
        return Ok(None);
    }
    let hold = hold_bundle(&bundle, Hold::Shared)?;
    let config = fs::read(bundle.join("image.json")).ok();
    let config = config.and_then(|text| serde_json::from_slice::<ImageConfiguration>(&text).ok());
    let entrypoint = config
        .and_then(|c| c.config().clone())
        .and_then(|c| c.entrypoint().clone());
    Ok(Some(Ready {
        bundle,
        entrypoint: entrypoint.unwrap_or_default(),
        hold,
    }))
}

/// Pulls into a draft, which then takes its place under the image's digest. Returns the place's name.
fn fetch(images: &Path, request: &PullRequest) -> Result<String> {
    let roots = images.join("roots");
    let draft = Draft(roots.join(format!(".new-{:08x}", random())));
    let mut request = request.clone();
    request.dest.clone_from(&draft.0);
    let pulled = pull(&request)?;
    for warning in &pulled.warnings {
        eprintln!("gpucell: warning: {warning}");
    }
    if let Some(config) = &pulled.config {
        let text = serde_json::to_vec(config).map_err(|e| Error::msg(format!("JSON: {e}")))?;
        replace(&draft.0.join("image.json"), &text)?;
    }
    let place = match &pulled.digest {
        Some(digest) => digest.replace(':', "-"),
        None => format!("root-{:08x}", random()),
    };
    let target = roots.join(&place);
    match fs::rename(&draft.0, &target) {
        // The same image under another name.
        Err(_) if target.join("config.json").exists() => Ok(place),
        Err(e) => Err(Error::step("keep image", target.display().to_string(), e)),
        Ok(()) => Ok(place),
    }
}

/// Removed when dropped, if still there.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn replace(path: &Path, text: &[u8]) -> Result<()> {
    let draft = path.with_extension("new");
    let write = || {
        let mut file = File::create(&draft)?;
        file.write_all(text)?;
        fs::rename(&draft, path)
    };
    write().map_err(|e| Error::step("write", path.display().to_string(), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_image_have_one_key() {
        let of = |source: &str| key(source, None).unwrap();
        assert_eq!(of("debian"), of("docker://docker.io/library/debian:latest"));
        assert_ne!(of("debian"), of("debian:12"));
        assert_ne!(of("debian"), key("debian", Some("linux/arm64")).unwrap());
        assert!(
            key("-", None)
                .unwrap_err()
                .to_string()
                .contains("gpucell pull -")
        );
        assert!(key("rootfs:/no/such/file", None).is_err());
    }

    #[test]
    fn a_changed_file_is_another_image() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.tar");
        fs::write(&file, "one").unwrap();
        let source = format!("rootfs:{}", file.display());
        let before = key(&source, None).unwrap();
        assert_eq!(before, key(&source, None).unwrap());
        fs::write(&file, "other").unwrap();
        assert_ne!(before, key(&source, None).unwrap());
    }

    #[test]
    fn never_means_never() {
        let dir = tempfile::tempdir().unwrap();
        let request = PullRequest::new("debian", "");
        let err = ready(dir.path(), &request, Policy::Never, true).unwrap_err();
        assert_eq!(err.to_string(), "Unable to find image 'debian' locally");
    }

    #[test]
    fn a_name_file_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("n");
        for root in ["../x", "/etc", "", ".."] {
            fs::write(&name, format!(r#"{{"source":"a","root":"{root}"}}"#)).unwrap();
            assert!(kept(dir.path(), &name).unwrap().is_none());
        }
    }
}
