//! /etc/gpucell/config.toml: what an administrator decides about GPUs.
//!
//! Owns the file's schema, its defaults and its errors (docs/config.md describes each key). It must not
//! look at anything else on the host: whether a folder exists is the business of who reads it.

use std::env;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::capabilities::Capabilities;
use crate::{Error, Result};

/// Where the configuration is, unless [`FILE_VARIABLE`] names another file.
pub const DEFAULT_FILE: &str = "/etc/gpucell/config.toml";

/// Names another configuration file, in the environment of gpucell itself (never a cell's).
pub const FILE_VARIABLE: &str = "GPUCELL_CONFIG";

/// A larger file is refused: 64 KiB.
const MAX_SIZE: u64 = 64 << 10;

/// The effective configuration: the file's values, defaults for the rest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// The file it was read from; `None`: there is no file, all is default.
    pub source: Option<PathBuf>,
    /// Root of the file system that holds the driver's user space. Default `/`.
    pub driver_root: PathBuf,
    /// The host's procfs. Default `/proc`.
    pub proc_root: PathBuf,
    /// The host's device folder. Default `/dev`.
    pub dev_root: PathBuf,
    /// Does the environment of an unprivileged cell count as a request for GPUs? Default true, as
    /// Docker's users expect of `-e NVIDIA_VISIBLE_DEVICES=all`; then an image can grant itself GPUs.
    pub accept_environment_unprivileged: bool,
    /// Do mounts of /dev/null under /var/run/nvidia-container-devices name GPUs? Default false.
    pub accept_mounts: bool,
    /// The capabilities a cell may ask for. Default all.
    pub capabilities: Capabilities,
    /// Folders of CDI files; a later one wins. Default /etc/cdi, /var/run/cdi.
    pub cdi_dirs: Vec<PathBuf>,
    /// The program that asks NVML. Default /usr/libexec/gpucell/gpucell-monitor.
    pub monitor: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Config::from_document(Document::default(), None)
    }
}

/// The file as written.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Document {
    nvidia: Nvidia,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Nvidia {
    #[serde(deserialize_with = "absolute")]
    driver_root: PathBuf,
    #[serde(deserialize_with = "absolute")]
    proc_root: PathBuf,
    #[serde(deserialize_with = "absolute")]
    dev_root: PathBuf,
    accept_environment_unprivileged: bool,
    accept_mounts: bool,
    #[serde(deserialize_with = "capabilities", serialize_with = "capability_names")]
    driver_capabilities: Capabilities,
    #[serde(deserialize_with = "absolute_list")]
    cdi_dirs: Vec<PathBuf>,
    #[serde(deserialize_with = "absolute")]
    monitor: PathBuf,
}

impl Default for Nvidia {
    fn default() -> Self {
        Nvidia {
            driver_root: "/".into(),
            proc_root: "/proc".into(),
            dev_root: "/dev".into(),
            accept_environment_unprivileged: true,
            accept_mounts: false,
            driver_capabilities: Capabilities::ALL,
            // The two of the CDI specification ("CDI JSON Specification", "Placement").
            cdi_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            monitor: "/usr/libexec/gpucell/gpucell-monitor".into(),
        }
    }
}

/// A string that is an absolute path: gpucell's working directory is its caller's, so a relative one
/// would mean another folder each time.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Absolute(PathBuf);

impl TryFrom<String> for Absolute {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err(format!("{text:?} is not an absolute path"));
        }
        if text.contains('\0') {
            return Err(format!("{text:?} holds a NUL"));
        }
        Ok(Absolute(text.into()))
    }
}

fn absolute<'d, D: Deserializer<'d>>(from: D) -> Result<PathBuf, D::Error> {
    Absolute::deserialize(from).map(|path| path.0)
}

fn absolute_list<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
    let list = Vec::<Absolute>::deserialize(from)?;
    Ok(list.into_iter().map(|path| path.0).collect())
}

fn capabilities<'d, D: Deserializer<'d>>(from: D) -> Result<Capabilities, D::Error> {
    Vec::<String>::deserialize(from)?
        .iter()
        .try_fold(Capabilities::NONE, |set, name| {
            Ok(set | Capabilities::named(name).map_err(de::Error::custom)?)
        })
}

fn capability_names<S: Serializer>(set: &Capabilities, to: S) -> Result<S::Ok, S::Error> {
    set.names().serialize(to)
}

impl Config {
    /// Reads `path`, or the file that [`FILE_VARIABLE`] names, or [`DEFAULT_FILE`]. Only the last may be
    /// missing.
    ///
    /// # Errors
    /// A file that can't be read, isn't TOML, or holds an unknown key or a value that doesn't fit; with
    /// the line.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let named = path.map(Path::to_path_buf).or_else(|| {
            env::var_os(FILE_VARIABLE)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        });
        let optional = named.is_none();
        let path = named.unwrap_or_else(|| DEFAULT_FILE.into());
        match read(&path) {
            Err(e) if optional && e.kind() == ErrorKind::NotFound => Ok(Config::default()),
            Err(e) => Err(Error::step("read", path.display().to_string(), e)),
            Ok(text) => Config::parse(&text, &path),
        }
    }

    /// Reads the text of a configuration file; `path` is for errors and [`Config::source`].
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let document = toml::from_str(text).map_err(|e| {
            let line = match e.span() {
                Some(span) => {
                    let before = text.as_bytes().get(..span.start).unwrap_or_default();
                    format!(
                        " line {}",
                        1 + before.iter().filter(|b| **b == b'\n').count()
                    )
                }
                None => String::new(),
            };
            // The parser puts what it expected on a line of its own.
            let why = e.message().replace('\n', "; ");
            Error::msg(format!("{}{line}: {why}", path.display()))
        })?;
        Ok(Config::from_document(document, Some(path.to_path_buf())))
    }

    fn from_document(document: Document, source: Option<PathBuf>) -> Self {
        let nvidia = document.nvidia;
        Config {
            source,
            driver_root: nvidia.driver_root,
            proc_root: nvidia.proc_root,
            dev_root: nvidia.dev_root,
            accept_environment_unprivileged: nvidia.accept_environment_unprivileged,
            accept_mounts: nvidia.accept_mounts,
            capabilities: nvidia.driver_capabilities,
            cdi_dirs: nvidia.cdi_dirs,
            monitor: nvidia.monitor,
        }
    }

    /// The configuration as a file that says the same, with a comment that names its source.
    ///
    /// # Errors
    /// A path that isn't UTF-8, which no file read here can hold.
    pub fn to_toml(&self) -> Result<String> {
        let document = Document {
            nvidia: Nvidia {
                driver_root: self.driver_root.clone(),
                proc_root: self.proc_root.clone(),
                dev_root: self.dev_root.clone(),
                accept_environment_unprivileged: self.accept_environment_unprivileged,
                accept_mounts: self.accept_mounts,
                driver_capabilities: self.capabilities,
                cdi_dirs: self.cdi_dirs.clone(),
                monitor: self.monitor.clone(),
            },
        };
        let body =
            toml::to_string(&document).map_err(|e| Error::msg(format!("configuration: {e}")))?;
        let from = match &self.source {
            // Debug form: a line end in the name must not end the comment.
            Some(path) => format!("# from {path:?}"),
            None => format!("# defaults: there is no {DEFAULT_FILE}"),
        };
        Ok(format!("{from}\n{body}"))
    }
}

/// The file's text.
fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let size = File::open(path)?
        .take(MAX_SIZE + 1)
        .read_to_string(&mut text)?;
    if size as u64 > MAX_SIZE {
        return Err(std::io::Error::from_raw_os_error(libc::EFBIG));
    }
    Ok(text)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
