//! `gpucell run [flags] IMAGE|DIR/ [command…]`, as Docker users type it: the image is pulled when
//! needed, and the cell gets a writable layer of its own over the shared root.

use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Args;

use super::flags::{Context, Flags};
use super::images::{self, Policy};
use super::launch::{Bundle, Launch, failure, furnish, resolve};
use super::people::{Folders, Hold, Setting, cell_name, hold_bundle, make_layer, random};
use super::{Failure, Globals, log};
use crate::cell::CreateOptions;
use crate::image::PullRequest;
use crate::image::config::VOLUMES;
use crate::plan::OverlayPlan;
use crate::spec::edit::{Change, Edit};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  gpucell run --rm -it debian bash
  gpucell run --rm --memory 4g --cpus 2 -v ./data:/data:ro python:3.12 python /data/job.py
  gpucell run -d --name web --network none bundles/web/ && gpucell logs -f web
  gpucell run --rm docker-archive:image.tar

With --bundle, or in a folder that holds config.json, run is runc's:
  gpucell run --bundle bundles/hello one";

/// Run an image or a bundle on a writable layer
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct RunImage {
    #[command(flatten)]
    flags: Flags,
    /// When to pull the image
    #[arg(
        long,
        value_enum,
        default_value = "missing",
        hide_possible_values = true,
        value_name = "always|missing|never",
        help_heading = "Image"
    )]
    pull: Policy,
    /// Take the image for this OS/ARCH[/VARIANT]
    #[arg(long, value_name = "PLATFORM", help_heading = "Image")]
    platform: Option<String>,
    /// Ask this registry before the image's own
    #[arg(long, value_name = "HOST", help_heading = "Image")]
    mirror: Option<String>,
    /// Where images, layers, logs and volumes are kept [default: /var/lib/gpucell, or
    /// $XDG_DATA_HOME/gpucell as a user]
    #[arg(long, value_name = "DIR", help_heading = "Image")]
    store: Option<PathBuf>,
    /// The image as `gpucell pull` takes it, or a bundle's folder (with a / in it); then the program and
    /// its arguments
    #[arg(value_names = ["IMAGE|DIR/", "COMMAND"], required = true, trailing_var_arg = true)]
    operands: Vec<String>,
}

/// What runs, and the lock on it.
struct Found {
    bundle: Bundle,
    /// `None` for a bundle: a command replaces all of its own.
    entrypoint: Option<Vec<String>>,
    hold: File,
    edits: Vec<Edit>,
}

impl RunImage {
    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32, Failure> {
        let set = Setting::new(g, self.store.clone());
        let (launch, warnings) = self.prepare(g, &set).map_err(failure)?;
        launch.run(&warnings)
    }

    fn prepare<'a>(
        &'a self,
        globals: &'a Globals,
        set: &'a Setting,
    ) -> Result<(Launch<'a>, Vec<String>)> {
        let (what, command) = self
            .operands
            .split_first()
            .ok_or_else(|| Error::msg("an image or a bundle is expected"))?;
        let Found {
            bundle,
            entrypoint,
            hold,
            edits,
        } = match folder(what)? {
            Some(path) => open_folder(&path)?,
            None => self.image(what, set)?,
        };
        log::warnings(globals, &bundle.warnings);
        let id = cell_name(&self.flags, what, Some(random()))?;
        let mut folders = Folders::default();
        let etc = set.cell_etc(&id);
        let ctx = Context {
            spec: &bundle.spec,
            id: &id,
            command,
            entrypoint: entrypoint.as_deref(),
            dir: &etc,
        };
        let state = Some(set.cells.root());
        let (high, spec) = resolve(set, &self.flags, &bundle, &ctx, edits, state)?;
        let data = folders.make(set, &id, set.cell_data(&id), 0o700)?;
        let (upper, work) = make_layer(&data, &bundle.rootfs)?;
        let etc = match high.files.is_empty() {
            true => None,
            false => Some(folders.make(set, &id, etc, 0o711)?),
        };
        furnish(&bundle, &high, etc.as_deref())?;
        let overlay = OverlayPlan {
            lower: layer_path(&bundle.rootfs)?,
            upper: layer_path(&upper)?,
            work: layer_path(&work)?,
        };
        let opts = CreateOptions {
            id,
            bundle: bundle.path,
            spec,
            nvidia: high.gpus.driver,
            driver: set.driver,
            overlay: Some(overlay),
            remove: folders.list(),
            ..CreateOptions::default()
        };
        let launch = Launch {
            globals,
            set,
            flags: &self.flags,
            opts,
            folders,
            log_dir: self.flags.detach.then_some(data),
            hold,
            keep: !self.flags.rm,
        };
        Ok((launch, high.warnings))
    }

    fn image(&self, what: &str, set: &Setting) -> Result<Found> {
        let mut request = PullRequest::new(what, "");
        request.store.clone_from(&set.data);
        request.mirror.clone_from(&self.mirror);
        request.platform.clone_from(&self.platform);
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        request.progress = terminal && !self.flags.quiet;
        let ready = images::ready(&set.data, &request, self.pull, self.flags.quiet)?;
        let bundle = Bundle::read(&ready.bundle)?;
        let edits = own_volumes(&bundle);
        Ok(Found {
            bundle,
            entrypoint: Some(ready.entrypoint),
            hold: ready.hold,
            edits,
        })
    }
}

/// The volumes an image declares are, in the bundle, mounts of folders shared by all its cells. A cell
/// of `run` has them in its own layer instead, which starts as the image has them and goes with the cell:
/// what Docker's anonymous volumes do with `--rm`.
fn own_volumes(bundle: &Bundle) -> Vec<Edit> {
    let annotations = bundle.spec.annotations().as_ref();
    let list = annotations.and_then(|a| a.get(VOLUMES));
    let targets = list.iter().flat_map(|text| text.split(','));
    let edit = |target: &str| {
        Edit::new(
            "the image's volume: in the cell's own layer",
            Change::Unmount(PathBuf::from(target)),
        )
    };
    targets.filter(|t| !t.is_empty()).map(edit).collect()
}

/// A folder, when the operand is one: it has a slash, and holds config.json or can only be a path.
fn folder(what: &str) -> Result<Option<PathBuf>> {
    let path = Path::new(what);
    let only_path = what.starts_with(['/', '.']) || what.ends_with('/');
    if what.contains('/') && path.join("config.json").exists() || only_path {
        return Ok(Some(path.to_owned()));
    }
    Ok(None)
}

fn open_folder(path: &Path) -> Result<Found> {
    let bundle = Bundle::read(path)?;
    // The root below a layer must not change: no cell may run in place meanwhile.
    let hold = hold_bundle(&bundle.path, Hold::Shared)?;
    Ok(Found {
        bundle,
        entrypoint: None,
        hold,
        edits: Vec::new(),
    })
}

/// A path as overlayfs reads it: `:` parts lower layers, `\` escapes (kernel, fs/overlayfs/params.c).
fn layer_path(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    let mut out = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    CString::new(out).map_err(|_| Error::msg("a path holds a NUL byte"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    #[command(disable_help_flag = true)]
    struct Trial {
        #[command(flatten)]
        args: RunImage,
    }

    #[test]
    fn all_after_the_image_is_the_command() {
        let rows: &[(&[&str], &[&str])] = &[
            (&["debian", "ls", "-l"], &["ls", "-l"]),
            (&["debian", "--memory", "1g"], &["--memory", "1g"]),
            (&["debian", "--", "x"], &["--", "x"]),
            (&["--rm", "debian", "--rm"], &["--rm"]),
            (&["--rm", "-m", "1g", "debian"], &[]),
        ];
        for (words, command) in rows {
            let argv = std::iter::once("run").chain(words.iter().copied());
            let args = Trial::try_parse_from(argv).unwrap().args;
            let (image, rest) = args.operands.split_first().unwrap();
            assert_eq!(
                (image.as_str(), rest),
                (
                    "debian",
                    &command.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()[..]
                ),
                "{words:?}"
            );
        }
        assert!(Trial::try_parse_from(["run", "--rm"]).is_err());
    }

    #[test]
    fn folders_and_images() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let real = dir.path().to_str().unwrap();
        for (what, want) in [
            ("debian", false),
            ("quay.io/a/b:1", false),
            ("docker://x/y", false),
            ("oci:/tmp/x", false),
            ("./x", true),
            ("/x", true),
            ("x/", true),
            (".", true),
            (real, true),
        ] {
            assert_eq!(folder(what).unwrap().is_some(), want, "{what}");
        }
    }

    #[test]
    fn paths_of_layers() {
        let text = layer_path(Path::new("/a:b\\c/d,e")).unwrap();
        assert_eq!(text.to_str().unwrap(), "/a\\:b\\\\c/d,e");
    }
}
