//! Where an image comes from, written as skopeo writes it.

use std::path::PathBuf;

use oci_client::Reference;

use crate::{Error, Result};

/// A parsed SOURCE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `docker://REF` or a bare REF: an image in a registry.
    Registry(Reference),
    /// `oci:DIR[:TAG]`: an OCI image layout folder.
    Layout { dir: PathBuf, tag: Option<String> },
    /// `oci-archive:FILE[:TAG]`: the same as a tar file; `-` for standard input, here and below.
    OciArchive { file: PathBuf, tag: Option<String> },
    /// `docker-archive:FILE[:REF]`: what `docker save` writes.
    DockerArchive { file: PathBuf, tag: Option<String> },
    /// `rootfs:TAR`: a plain archive of a root file system, `rootfs:-` from standard input.
    Rootfs { file: Option<PathBuf> },
    /// `-`: any of these archives on standard input; its content says which.
    Stdin,
}

impl Source {
    /// Parses a SOURCE as a person types it.
    pub fn parse(text: &str) -> Result<Self> {
        if text == "-" {
            return Ok(Source::Stdin);
        }
        if let Some(rest) = text.strip_prefix("docker://") {
            return reference(rest).map(Source::Registry);
        }
        let known = [
            "oci",
            "oci-archive",
            "docker-archive",
            "rootfs",
            "docker",
            "dir",
            "docker-daemon",
            "containers-storage",
        ];
        if let Some((scheme, rest)) = text.split_once(':')
            && known.contains(&scheme)
            // `rootfs:1.2` or `oci:latest` could be an image of that name; a transport wins, as
            // with skopeo.
            && !rest.is_empty()
        {
            let (path, tag) = path_and_tag(rest);
            return match scheme {
                "oci" => Ok(Source::Layout { dir: path, tag }),
                "oci-archive" => Ok(Source::OciArchive { file: path, tag }),
                "docker-archive" => Ok(Source::DockerArchive { file: path, tag }),
                "rootfs" if rest == "-" => Ok(Source::Rootfs { file: None }),
                // A root archive has no tags: a colon belongs to the file's name.
                "rootfs" => Ok(Source::Rootfs {
                    file: Some(PathBuf::from(rest)),
                }),
                "docker" => Err(Error::msg(format!(
                    "source {text:?}: docker sources are written docker://NAME[:TAG]"
                ))),
                other => Err(Error::msg(format!(
                    "source {text:?}: {other}: is not supported; copy it with \
                     `skopeo copy {text} oci:DIR` first"
                ))),
            };
        }
        if text.starts_with(['/', '.']) {
            return Err(Error::msg(format!(
                "source {text:?} is a path: write oci:{text}, oci-archive:{text}, \
                 docker-archive:{text} or rootfs:{text}"
            )));
        }
        reference(text).map(Source::Registry)
    }

    /// A name for a bundle made from this source: the image's last name without tag, or the file's
    /// without endings.
    pub fn bundle_name(&self) -> Option<String> {
        let from_path = |path: &PathBuf| {
            let name = path.file_name()?.to_str()?;
            let mut name = name;
            for ending in [".gz", ".zst", ".tgz", ".tar", ".oci", ".docker"] {
                name = name.strip_suffix(ending).unwrap_or(name);
            }
            (!matches!(name, "" | ".." | "-")).then(|| name.to_string())
        };
        match self {
            Source::Registry(reference) => reference
                .repository()
                .rsplit('/')
                .next()
                .map(str::to_string),
            Source::Layout { dir, .. } => from_path(dir),
            Source::OciArchive { file, .. } | Source::DockerArchive { file, .. } => from_path(file),
            Source::Rootfs { file } => file.as_ref().and_then(from_path),
            Source::Stdin => None,
        }
    }
}

/// A Docker reference, names of Docker Hub resolved as Docker does (`ubuntu` →
/// `docker.io/library/ubuntu:latest`).
pub fn reference(text: &str) -> Result<Reference> {
    text.parse()
        .map_err(|e| Error::msg(format!("image name {text:?}: {e}")))
}

/// `PATH[:TAG]`: the part behind the last colon is the tag, unless it has a slash and no reference
/// could. A docker-archive's tag is itself a reference with a colon (`FILE:NAME:TAG`), so the path
/// ends at the first colon, as skopeo has it.
fn path_and_tag(text: &str) -> (PathBuf, Option<String>) {
    match text.split_once(':') {
        Some((path, tag)) if !tag.is_empty() => (PathBuf::from(path), Some(tag.to_string())),
        Some((path, _)) => (PathBuf::from(path), None),
        None => (PathBuf::from(text), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> String {
        match Source::parse(text).unwrap() {
            Source::Registry(reference) => reference.whole(),
            other => panic!("{text} is {other:?}"),
        }
    }

    #[test]
    fn names_as_docker_resolves_them() {
        assert_eq!(whole("ubuntu"), "docker.io/library/ubuntu:latest");
        assert_eq!(
            whole("docker://ubuntu:24.04"),
            "docker.io/library/ubuntu:24.04"
        );
        assert_eq!(
            whole("continuumio/miniconda3"),
            "docker.io/continuumio/miniconda3:latest"
        );
        assert_eq!(whole("localhost:5000/a/b"), "localhost:5000/a/b:latest");
        assert_eq!(whole("127.0.0.1:5000/x:1"), "127.0.0.1:5000/x:1");
        assert_eq!(whole("quay.io/a/b:c"), "quay.io/a/b:c");
        let digest = format!("ubuntu@sha256:{}", "0".repeat(64));
        assert!(whole(&digest).starts_with("docker.io/library/ubuntu@sha256:00"));
        for wrong in [
            "Ubuntu",
            "docker://",
            "a b",
            "ubuntu:",
            "docker:ubuntu",
            "./x.tar",
            "/x",
        ] {
            assert!(Source::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn archives_and_folders() {
        assert_eq!(
            Source::parse("oci:/a/b:v1").unwrap(),
            Source::Layout {
                dir: "/a/b".into(),
                tag: Some("v1".into())
            }
        );
        assert_eq!(
            Source::parse("docker-archive:x.tar:busybox:1").unwrap(),
            Source::DockerArchive {
                file: "x.tar".into(),
                tag: Some("busybox:1".into())
            }
        );
        assert_eq!(
            Source::parse("rootfs:a:b.tar").unwrap(),
            Source::Rootfs {
                file: Some("a:b.tar".into())
            }
        );
        assert_eq!(Source::parse("-").unwrap(), Source::Stdin);
        assert_eq!(
            Source::parse("rootfs:-").unwrap(),
            Source::Rootfs { file: None }
        );
    }

    #[test]
    fn bundle_names() {
        let name = |text: &str| Source::parse(text).unwrap().bundle_name();
        assert_eq!(name("quay.io/a/thing:v2").as_deref(), Some("thing"));
        assert_eq!(name("oci-archive:/x/img.tar.gz").as_deref(), Some("img"));
        assert_eq!(name("-"), None);
        assert_eq!(name("docker-archive:-"), None);
    }
}
