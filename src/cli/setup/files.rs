//! The changes that `setup` makes: a file replaced as a whole, a link made or removed.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};

use diffy::DiffOptions;

use crate::{Error, Result};

/// No engine's configuration comes near: something else lies there.
const MAX_SIZE: u64 = 4 << 20;

/// One change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// The text of a file; `None`: there is no such file.
    File {
        path: PathBuf,
        old: Option<String>,
        new: Option<String>,
    },
    /// A symbolic link that is made.
    Link { path: PathBuf, target: PathBuf },
    /// A symbolic link that is removed.
    Unlink { path: PathBuf },
}

/// A file's text; `None` if there is none.
///
/// # Errors
/// It can't be read, is not UTF-8 or larger than 4 MiB.
pub(super) fn read(path: &Path) -> Result<Option<String>> {
    let mut text = String::new();
    let got = File::open(path).and_then(|f| f.take(MAX_SIZE + 1).read_to_string(&mut text));
    match got {
        Err(e) if e.kind() == ErrorKind::NotFound && path.symlink_metadata().is_err() => Ok(None),
        Err(e) => Err(Error::step("read", path.display().to_string(), e)),
        Ok(size) if size as u64 > MAX_SIZE => Err(Error::msg(format!(
            "{}: larger than 4 MiB: no configuration",
            path.display()
        ))),
        Ok(_) => Ok(Some(text)),
    }
}

impl Change {
    /// A file's change, or nothing when it stays as it is.
    pub(super) fn file(path: PathBuf, old: Option<String>, new: Option<String>) -> Option<Change> {
        (old != new).then_some(Change::File { path, old, new })
    }

    /// For people: a unified diff, or one line.
    pub fn show(&self) -> String {
        match self {
            Change::File { path, old, new } => {
                let name = |there: bool| match there {
                    true => path.display().to_string(),
                    false => "/dev/null".to_owned(),
                };
                let (from, to) = (name(old.is_some()), name(new.is_some()));
                DiffOptions::new()
                    .set_original_filename(from)
                    .set_modified_filename(to)
                    .create_patch(
                        old.as_deref().unwrap_or_default(),
                        new.as_deref().unwrap_or_default(),
                    )
                    .to_string()
            }
            Change::Link { path, target } => {
                format!("link {} -> {}\n", path.display(), target.display())
            }
            Change::Unlink { path } => format!("remove the link {}\n", path.display()),
        }
    }

    /// Makes it.
    ///
    /// # Errors
    /// With the path. The file is then as it was.
    pub fn make(&self) -> Result<()> {
        let (path, done) = match self {
            Change::File { path, new, .. } => (
                path,
                match new {
                    Some(text) => replace(path, text),
                    None => fs::remove_file(path),
                },
            ),
            Change::Link { path, target } => {
                (path, folder(path).and_then(|()| symlink(target, path)))
            }
            Change::Unlink { path } => (path, fs::remove_file(path)),
        };
        done.map_err(|e| Error::step("write", path.display().to_string(), e))
    }
}

/// Makes the folder of a file.
fn folder(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Writes beside the file and puts that in its place: whoever reads finds the old text or the new one.
/// The new file has the old one's owner and mode; a link stays a link. The name it has meanwhile ends in
/// .tmp: no configuration's and no CDI file's.
///
/// # Errors
/// Any failed step; the file is then as it was.
pub(in crate::cli) fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    folder(path)?;
    let old = match fs::canonicalize(path) {
        Ok(real) => Some((fs::metadata(&real)?, real)),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let path = old.as_ref().map_or(path, |(_, real)| real);
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.tmp", std::process::id()));
    let draft = PathBuf::from(draft);
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&draft)?;
        if let Some((meta, _)) = &old {
            fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
            file.set_permissions(Permissions::from_mode(meta.mode() & 0o7777))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&draft);
    })
}
