//! What the `layer` target does with its bytes: one or more layers, compressed or not, unpacked
//! into a folder of their own, next to one that must stay as it was.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use gpucell::image::inflate;
use gpucell::image::limits::Limits;
use gpucell::image::unpack::{Options, Unpacker, remove_tree};

/// Separates layers in an input.
pub const MARK: &[u8] = b"\0LAYER\0\0";

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Reached {
    Refused,
    Done,
}

/// Bytes that a layer inflates to at most.
const MOST: u64 = 1 << 20;

pub fn run(data: &[u8]) -> Reached {
    let scene = Scene::new();
    let done = unpack(data, &scene.root);
    scene.check();
    match done {
        Ok(()) => Reached::Done,
        Err(_) => Reached::Refused,
    }
}

fn unpack(data: &[u8], root: &Path) -> gpucell::Result<()> {
    let failed = |e| gpucell::Error::step("read", "layer", e);
    let root = fs::File::open(root).map_err(failed)?.into();
    let limits = Limits {
        entries: 500,
        ..Limits::default()
    };
    let options = Options {
        limits,
        skip_devices: true,
    };
    let mut unpacker = Unpacker::new(root, options)?;
    let mut rest = data;
    let mut lowest = true;
    loop {
        let end = rest.windows(MARK.len()).position(|w| w == MARK);
        let layer = &rest[..end.unwrap_or(rest.len())];
        let mut tar = Vec::new();
        inflate::decoder(Box::new(std::io::Cursor::new(layer.to_vec())))
            .map_err(failed)?
            .take(MOST)
            .read_to_end(&mut tar)
            .map_err(failed)?;
        unpacker.layer(&tar[..], lowest)?;
        lowest = false;
        match end {
            Some(end) => rest = &rest[end + MARK.len()..],
            None => break,
        }
    }
    unpacker.finish().map(drop)
}

/// `root` to unpack into, and `outside` beside it. Layers can name both absolutely: `/dev/shm` is
/// there in every input that the fuzzer makes from the corpus.
struct Scene {
    dir: PathBuf,
    root: PathBuf,
    before: (i64, i64, u32),
}

impl Scene {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() {
            shm.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = base.join(format!("gpucell-fuzz-{}-{number}", std::process::id()));
        let root = dir.join("root");
        fs::create_dir_all(&root).unwrap();
        fs::create_dir(dir.join("outside")).unwrap();
        fs::write(dir.join("outside/file"), "untouched").unwrap();
        let before = state(&dir.join("outside"));
        Scene { dir, root, before }
    }

    fn check(&self) {
        assert_eq!(
            fs::read(self.dir.join("outside/file")).unwrap(),
            b"untouched"
        );
        assert_eq!(
            state(&self.dir.join("outside")),
            self.before,
            "outside was changed"
        );
        assert_eq!(
            fs::read_dir(&self.dir).unwrap().count(),
            2,
            "something new beside the root"
        );
    }
}

fn state(outside: &Path) -> (i64, i64, u32) {
    let meta = fs::metadata(outside).unwrap();
    assert_eq!(fs::read_dir(outside).unwrap().count(), 1);
    (meta.mtime(), meta.mtime_nsec(), meta.mode())
}

impl Drop for Scene {
    fn drop(&mut self) {
        let parent = fs::File::open(self.dir.parent().unwrap()).unwrap();
        let name = self.dir.file_name().unwrap().as_encoded_bytes();
        if !std::thread::panicking() {
            remove_tree(&parent, name).unwrap();
        }
    }
}
