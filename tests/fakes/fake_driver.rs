//! `fake-driver DIR [GPUS]`: lays the fake driver down in a new folder, with one GPU or as many as are
//! said, and prints the path of the configuration file that makes gpucell see it.
//!
//! For scripts: `rustc --edition 2024 tests/fakes/fake_driver.rs`. It isn't called main.rs, which cargo
//! would take for a test.

mod driver;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use driver::Tree;

fn main() -> ExitCode {
    match run() {
        Ok(config) => {
            println!("{}", config.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("fake-driver: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<PathBuf, String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (dir, gpus) = match &args[..] {
        [dir] => (dir, 1),
        [dir, gpus] => (dir, gpus.parse().map_err(|e| format!("{gpus}: {e}"))?),
        _ => return Err("usage: fake-driver DIR [GPUS]".to_owned()),
    };
    // The bus addresses have two hexadecimal digits.
    if gpus > 15 {
        return Err(format!("{gpus} GPUs, at most 15"));
    }
    // The configuration names absolute paths.
    let dir = std::path::absolute(dir).map_err(|e| format!("{dir}: {e}"))?;
    let shown = |path: &Path, e| format!("{}: {e}", path.display());
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).map_err(|e| shown(parent, e))?;
    }
    fs::create_dir(&dir).map_err(|e| shown(&dir, e))?;
    let tree = Tree::lay(dir, gpus);
    if !tree.path().join("dev/nvidiactl").exists() {
        eprintln!("fake-driver: without device nodes, which only root can make");
    }
    Ok(tree.config())
}
