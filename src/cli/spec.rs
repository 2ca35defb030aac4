//! `gpucell spec`: a config.json to start from, as runc's.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use clap::Args;

use crate::spec::default::runc::{Owner, runc_like};
use crate::spec::default::to_json;
use crate::{Error, Result};

/// Write a config.json to start from
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  mkdir -p one/rootfs && tar -C one/rootfs -xf root.tar && gpucell spec --bundle one
  gpucell spec --rootless && gpucell run one")]
pub struct Spec {
    /// Directory of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// For a cell that needs no privileges: its root is the user who calls
    #[arg(long)]
    rootless: bool,
}

impl Spec {
    /// Runs the command.
    pub(super) fn run(self) -> Result<i32> {
        let owner = self.rootless.then(|| Owner {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
        });
        let text = to_json(&runc_like(owner))?;
        let path = self.bundle.join("config.json");
        let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                return Err(Error::msg(format!(
                    "file {} exists; remove it first",
                    path.display()
                )));
            }
            made => made.map_err(|e| Error::step("create", path.display().to_string(), e))?,
        };
        file.write_all(text.as_bytes())
            .map_err(|e| Error::step("write", path.display().to_string(), e))?;
        Ok(0)
    }
}
