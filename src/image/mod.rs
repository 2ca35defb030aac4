//! Images without Docker: from a registry, an archive or a folder to a bundle.
//!
//! Owns the way SOURCE → verified layers → root file system → config.json. It starts no cell.
//!
//! The steps, one file each: [`source`] parses what a person types; [`registry`], [`layout`] or
//! [`docker_archive`] find the image and its layers; [`inflate`] verifies and decompresses them on a
//! thread of its own; [`unpack`] writes the tree; [`config`] makes the runtime configuration.
//! The bundle's `rootfs` appears by a rename when all of it is verified, never before.

pub mod archive;
pub mod auth;
pub mod config;
pub mod digest;
pub mod docker_archive;
pub mod inflate;
pub mod layout;
pub mod limits;
pub mod media;
pub mod progress;
pub mod registry;
pub mod source;
pub mod store;
pub mod tar;
pub mod unpack;
pub mod users;
pub mod volumes;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use self::archive::Archive;
use self::digest::Digest;
use self::inflate::{Inflated, Layer};
use self::limits::Limits;
use self::media::Platform;
use self::progress::Progress;
use self::source::Source;
use self::store::Store;
use self::unpack::Unpacker;
use crate::{Error, Result};

/// What to pull, and whereto.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// As skopeo writes it; see [`Source::parse`].
    pub source: String,
    /// The bundle's folder, made where missing.
    pub dest: PathBuf,
    /// The blob store; [`Store::default_path`] is this user's.
    pub store: PathBuf,
    /// A registry host asked before the image's own.
    pub mirror: Option<String>,
    /// Show progress bars on stderr.
    pub progress: bool,
    /// `OS/ARCH[/VARIANT]`; this machine's if none.
    pub platform: Option<String>,
    pub limits: Limits,
    /// Replace the root file system of a bundle that has one.
    pub force: bool,
    /// Leave device nodes of the image out.
    pub skip_devices: bool,
}

impl PullRequest {
    /// A request with this user's store and default limits.
    pub fn new(source: impl Into<String>, dest: impl Into<PathBuf>) -> Self {
        PullRequest {
            source: source.into(),
            dest: dest.into(),
            store: Store::default_path(),
            mirror: None,
            progress: false,
            platform: None,
            limits: Limits::default(),
            force: false,
            skip_devices: false,
        }
    }
}

/// What a pull made.
#[derive(Debug)]
pub struct Pulled {
    /// The image's manifest digest (for a docker-archive its config's); none for a plain root.
    pub digest: Option<String>,
    /// The image's config; none for a plain root.
    pub config: Option<ImageConfiguration>,
    pub layers: usize,
    pub entries: u64,
    /// What people should know: attributes left out, a foreign architecture.
    pub warnings: Vec<String>,
}

/// An image whose layers can be read.
pub struct Image {
    /// What messages call it.
    pub name: String,
    pub digest: Digest,
    pub config: ImageConfiguration,
    pub layers: Vec<Layer>,
}

enum Found {
    Image(Box<Image>),
    /// A plain archive of a root, compressed or not.
    Root(Layer),
}

/// Pulls an image into a bundle: `dest/rootfs` and `dest/config.json`.
pub fn pull(request: &PullRequest) -> Result<Pulled> {
    let source = Source::parse(&request.source)?;
    let platform = match &request.platform {
        Some(text) => Platform::parse(text)?,
        None => Platform::host(),
    };
    let bundle = Bundle::open(&request.dest, request.force)?;
    let store = Store::open(&request.store)?;
    let progress = Progress::new(request.progress);
    let mut warnings = Vec::new();
    let found = find(
        &source,
        &platform,
        &store,
        request,
        &progress,
        &mut warnings,
    )?;
    let staging = bundle.staging()?;
    let options = unpack::Options {
        limits: request.limits,
        skip_devices: request.skip_devices,
    };
    let mut unpacker = Unpacker::new(open_folder(&staging.root)?, options)?;

    let (digest, config, layers) = match found {
        Found::Image(image) => {
            let count = image.layers.len();
            let bar = progress.unpack(count);
            unpacker.observe(bar.entries());
            let mut input = Inflated::start(image.layers, request.limits)?;
            for number in 0..count {
                bar.set(number as u64);
                let done = unpacker.layer(&mut input, number == 0);
                finish_layer(&mut input, done)?;
            }
            bar.done();
            (Some(image.digest), Some(image.config), count)
        }
        Found::Root(layer) => {
            let bar = progress.unpack(1);
            unpacker.observe(bar.entries());
            let mut input = Inflated::start(vec![layer], request.limits)?;
            let done = unpacker.archive(&mut input);
            finish_layer(&mut input, done)?;
            bar.done();
            (None, None, 1)
        }
    };
    // Made before the times of folders are set, so that these stay the image's.
    if let Some(config) = &config {
        unpacker.folders(&config::folders(config)?)?;
    }
    let summary = unpacker.finish()?;
    warnings.extend(summary.warnings);
    let digest = digest.map(|d| d.as_str().to_string());
    let text = configure(
        request,
        &bundle,
        &staging,
        config.as_ref(),
        digest.as_deref(),
        &mut warnings,
    )?;
    bundle.finish(staging, &text)?;
    Ok(Pulled {
        digest,
        config,
        layers,
        entries: summary.entries,
        warnings,
    })
}

/// Ends a layer: its own error is told before what came of it in the unpacker.
fn finish_layer(input: &mut Inflated, done: Result<()>) -> Result<()> {
    match done {
        Ok(()) => input.next_layer(),
        Err(error) => Err(input.take_error().unwrap_or(error)),
    }
}

fn find(
    source: &Source,
    platform: &Platform,
    store: &Store,
    request: &PullRequest,
    progress: &Progress,
    warnings: &mut Vec<String>,
) -> Result<Found> {
    let standard_input = || {
        use std::io::IsTerminal;
        if std::io::stdin().is_terminal() {
            return Err(Error::msg("standard input is a terminal, not an archive"));
        }
        let input = Box::new(std::io::stdin());
        let name = STANDARD_INPUT.to_string();
        Archive::spool(name, input, store, &request.limits).map(Arc::new)
    };
    let open = |file: &Path| match file.as_os_str() == "-" {
        true => standard_input(),
        false => Archive::open(file, store, &request.limits).map(Arc::new),
    };
    let image = match source {
        Source::Registry(reference) => {
            let mirror = request.mirror.as_deref();
            registry::image(reference, mirror, platform, store, progress, warnings)?
        }
        Source::Layout { dir, tag } => {
            layout::image(layout::Files::Folder(dir.clone()), tag.as_deref(), platform)?
        }
        Source::OciArchive { file, tag } => layout::image(
            layout::Files::Archive(open(file)?),
            tag.as_deref(),
            platform,
        )?,
        Source::DockerArchive { file, tag } => docker_archive::image(open(file)?, tag.as_deref())?,
        Source::Rootfs { file } => {
            let file = file.clone();
            let name = file
                .as_ref()
                .map_or(STANDARD_INPUT.to_string(), |f| f.display().to_string());
            return Ok(Found::Root(Layer {
                open: Box::new(move || match file {
                    Some(file) => match fs::File::open(&file) {
                        Ok(open) => Ok(Box::new(open) as Box<dyn std::io::Read + Send>),
                        Err(e) => Err(Error::step("open", file.display().to_string(), e)),
                    },
                    None => Ok(Box::new(std::io::stdin())),
                }),
                name,
                digest: None,
                diff_id: None,
            }));
        }
        Source::Stdin => {
            let archive = standard_input()?;
            // A docker archive of today is an OCI layout too; its own list has the names.
            if archive.has("manifest.json") {
                docker_archive::image(archive, None)?
            } else if archive.has("oci-layout") && archive.has("index.json") {
                layout::image(layout::Files::Archive(archive), None, platform)?
            } else {
                return Ok(Found::Root(Layer {
                    name: STANDARD_INPUT.to_string(),
                    open: Box::new(move || archive.whole()),
                    digest: None,
                    diff_id: None,
                }));
            }
        }
    };
    Ok(Found::Image(Box::new(image)))
}

/// Makes config.json's text, and in the tree what it needs.
fn configure(
    request: &PullRequest,
    bundle: &Bundle,
    staging: &Staging,
    config: Option<&ImageConfiguration>,
    digest: Option<&str>,
    warnings: &mut Vec<String>,
) -> Result<String> {
    let mut spec = match config {
        None => crate::spec::default::docker_like(),
        Some(image) => {
            let root = open_folder(&staging.root)?;
            let targets = image
                .config()
                .as_ref()
                .and_then(|c| c.volumes().clone())
                .unwrap_or_default();
            let volumes = volumes::make(&bundle.path, &root, &targets, &request.limits)?;
            let (spec, more) = config::to_spec(image, &root, &volumes)?;
            warnings.extend(more);
            spec
        }
    };
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    annotations.insert(config::SOURCE.to_string(), request.source.clone());
    if let Some(digest) = digest {
        annotations.insert(config::DIGEST.to_string(), digest.to_string());
    }
    spec.set_annotations(Some(annotations));
    crate::spec::default::to_json(&spec)
}

/// A bundle's folder, locked against another pull.
struct Bundle {
    path: PathBuf,
    _lock: OwnedFd,
    /// The folder was not there before.
    made: bool,
}

/// The tree while it is made. Removed when dropped.
struct Staging {
    dir: PathBuf,
    root: PathBuf,
}

/// What messages call it.
const STANDARD_INPUT: &str = "standard input";

const STAGING: &str = ".unpacking";

impl Bundle {
    fn open(path: &Path, force: bool) -> Result<Self> {
        let name = path.display().to_string();
        let made = !path.exists();
        let failed = |e| Error::step("make the bundle", &name, e);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        // For its owner only: the image may hold set-id programs, which other users of the host
        // could run out of the tree.
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed)?,
        }
        let lock = open_folder(path)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::msg(format!("bundle {name} is in use")));
            }
            Err(e) => return Err(Error::step("lock the bundle", &name, e)),
        }
        if !force && fs::symlink_metadata(path.join("rootfs")).is_ok() {
            return Err(Error::msg(format!(
                "bundle {name} has a root file system already (--force replaces it)"
            )));
        }
        Ok(Bundle {
            path: path.to_path_buf(),
            _lock: lock,
            made,
        })
    }

    /// A fresh place for the tree. Only we can enter it, so that nobody changes names under us.
    fn staging(&self) -> Result<Staging> {
        let dir = self.path.join(STAGING);
        let failed = |e| Error::step("make", dir.display().to_string(), e);
        remove(&self.path, STAGING)?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(failed)?;
        let root = dir.join("rootfs");
        fs::create_dir(&root).map_err(failed)?;
        // Whatever the umask: the usual mode of a root, until its own entry says otherwise.
        rustix::fs::chmod(&root, Mode::from_raw_mode(0o755)).map_err(|e| failed(e.into()))?;
        Ok(Staging { dir, root })
    }

    /// Puts the tree and config.json in their places.
    fn finish(&self, staging: Staging, config: &str) -> Result<()> {
        let failed =
            |what: &str, e| Error::step("finish", format!("{}/{what}", self.path.display()), e);
        let written = staging.dir.join("config.json");
        fs::write(&written, config).map_err(|e| failed("config.json", e))?;
        fs::rename(&written, self.path.join("config.json"))
            .map_err(|e| failed("config.json", e))?;
        // Last: a bundle with a root file system is complete.
        let rootfs = self.path.join("rootfs");
        if fs::symlink_metadata(&rootfs).is_ok() {
            let old = staging.dir.join("old");
            fs::rename(&rootfs, &old).map_err(|e| failed("rootfs", e))?;
        }
        fs::rename(&staging.root, &rootfs).map_err(|e| failed("rootfs", e))
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if self.made {
            // Goes only if it is empty, that is, if the pull failed.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let (Some(parent), Some(name)) = (self.dir.parent(), self.dir.file_name()) {
            // What is left is found and removed by the next pull.
            let _ = remove(parent, &name.to_string_lossy());
        }
    }
}

fn remove(parent: &Path, name: &str) -> Result<()> {
    let dir = open_folder(parent)?;
    match unpack::remove_tree(&dir, name.as_bytes()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::step(
            "remove",
            parent.join(name).display().to_string(),
            e,
        )),
    }
}

fn open_folder(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| Error::step("open", path.display().to_string(), e))
}
