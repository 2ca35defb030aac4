//! `gpucell pull`: an image into a bundle.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

use crate::image::limits::Limits;
use crate::image::source::Source;
use crate::image::store::Store;
use crate::image::{PullRequest, Pulled, pull};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Sources:
  docker://NAME[:TAG|@DIGEST]  an image in a registry; docker:// may be left out
  oci:DIR[:TAG]                an OCI image layout
  oci-archive:FILE[:TAG]       the same as a tar file
  docker-archive:FILE[:NAME]   what `docker save` wrote
  rootfs:FILE                  a plain archive of a root file system
  -                            any of these archives on stdin; its content says which
                               (FILE may be - too, to say it yourself)

Examples:
  gpucell pull ubuntu:24.04
  gpucell pull docker://quay.io/centos/centos:stream9 bundles/centos/
  gpucell pull --platform linux/arm64 --mirror mirror.example.org debian
  docker save my-image | gpucell pull - bundles/mine/
  gpucell pull rootfs:root.tar.zst bundles/plain/";

/// Pull an image into a bundle, without Docker.
///
/// Writes BUNDLE/rootfs and BUNDLE/config.json, made from the image's own settings.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The image, as skopeo writes it
    source: String,
    /// The bundle's folder [default: the image's name, in this folder]
    bundle: Option<PathBuf>,
    /// Take the image for this OS/ARCH[/VARIANT] out of a multi-platform one
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Ask this registry before the image's own
    #[arg(long, value_name = "HOST")]
    mirror: Option<String>,
    /// Replace the bundle's root file system and config.json
    #[arg(long, short)]
    force: bool,
    /// Where blobs are kept [default: /var/lib/gpucell, or $XDG_DATA_HOME/gpucell as a user]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Leave device nodes of the image out
    #[arg(long)]
    skip_devices: bool,
    /// Bytes an image may unpack to (suffixes k, m, g, t)
    #[arg(long, value_name = "BYTES", value_parser = size, default_value = "128g")]
    max_size: u64,
    /// Entries an image may have
    #[arg(long, value_name = "N", default_value_t = Limits::default().entries)]
    max_entries: u64,
    /// Times its compressed size that a layer may unpack to
    #[arg(long, value_name = "N", default_value_t = Limits::default().ratio)]
    max_ratio: u64,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// No progress bars
    #[arg(long, short)]
    quiet: bool,
    /// Say more about the result
    #[arg(long, short)]
    verbose: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let dest = match &args.bundle {
        Some(path) => path.clone(),
        None => Source::parse(&args.source)?
            .bundle_name()
            .map(PathBuf::from)
            .ok_or_else(|| Error::msg("name the bundle's folder: gpucell pull SOURCE BUNDLE/"))?,
    };
    let mut request = PullRequest::new(&args.source, &dest);
    request.store = args.store.unwrap_or_else(Store::default_path);
    request.mirror = args.mirror;
    request.platform = args.platform;
    request.force = args.force;
    request.skip_devices = args.skip_devices;
    request.progress = !args.quiet && std::io::stderr().is_terminal();
    request.limits = Limits {
        bytes: args.max_size,
        entries: args.max_entries,
        ratio: args.max_ratio,
    };
    let pulled = pull(&request)?;
    for warning in &pulled.warnings {
        eprintln!("gpucell: warning: {warning}");
    }
    let text = match args.format {
        Format::Json => json(&request, &pulled),
        Format::Text => text(&request, &pulled, args.verbose),
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|e| Error::step("write", "the result", e))
}

fn text(request: &PullRequest, pulled: &Pulled, verbose: bool) -> String {
    let mut out = format!("{}\n", request.dest.display());
    if verbose {
        if let Some(digest) = &pulled.digest {
            out.push_str(&format!("digest: {digest}\n"));
        }
        out.push_str(&format!(
            "layers: {}\nentries: {}\n",
            pulled.layers, pulled.entries
        ));
    }
    out
}

fn json(request: &PullRequest, pulled: &Pulled) -> String {
    let value = serde_json::json!({
        "source": request.source,
        "bundle": request.dest,
        "digest": pulled.digest,
        "layers": pulled.layers,
        "entries": pulled.entries,
        "warnings": pulled.warnings,
        "config": pulled.config,
    });
    format!("{value:#}\n")
}

/// A number of bytes with Docker's suffixes (powers of 1024).
fn size(text: &str) -> std::result::Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 10),
        Some(b'm') => (&lower[..lower.len() - 1], 20),
        Some(b'g') => (&lower[..lower.len() - 1], 30),
        Some(b't') => (&lower[..lower.len() - 1], 40),
        _ => (lower, 0),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| "a number of bytes, such as 4096, 512m or 20g".to_string())
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("20G"), Ok(20 << 30));
        assert_eq!(size("1kb"), Ok(1024));
        assert!(size("").is_err() && size("g").is_err() && size("99999999t").is_err());
    }
}
