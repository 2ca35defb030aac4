//! Named volumes: folders kept in the data folder, made at first use.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::flags::{Host, Live, NewVolume};
use super::people::random;
use crate::image::limits::Limits;
use crate::image::volumes;
use crate::{Error, Result};

/// Makes the volumes that aren't there, each with the mode, owner and content of what the root has at
/// its place, as Docker does.
///
/// # Errors
/// A failed copy; the volume isn't there then.
pub fn make_all(rootfs: &Path, list: &[NewVolume]) -> Result<()> {
    list.iter()
        .filter(|v| !v.path.exists())
        .try_for_each(|v| make(rootfs, v))
}

fn make(rootfs: &Path, volume: &NewVolume) -> Result<()> {
    let show = volume.path.display().to_string();
    let failed = |e| Error::step("make volume", show.clone(), e);
    let parent = volume.path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(parent)
        .map_err(failed)?;
    // Filled beside its place and then renamed: it is there whole or not at all. A dot can't begin a
    // volume's name.
    let draft = parent.join(format!(".new-{:08x}", random()));
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&draft)
        .map_err(failed)?;
    let made = fill(rootfs, volume, &draft).and_then(|from| {
        match fs::rename(from, &volume.path) {
            // Another cell was quicker; its volume is as good.
            Err(_) if volume.path.exists() => Ok(()),
            other => other.map_err(failed),
        }
    });
    let _ = fs::remove_dir_all(&draft);
    made
}

/// Makes the volume below `draft`; returns where.
fn fill(rootfs: &Path, volume: &NewVolume, draft: &Path) -> Result<std::path::PathBuf> {
    let failed = |e| Error::step("make volume", volume.path.display().to_string(), e);
    let target = volume.destination.to_string_lossy().into_owned();
    let host = Live {
        rootfs: rootfs.to_owned(),
        ..Live::default()
    };
    // Where the image has nothing, nothing is copied, and above all nothing made in its root.
    if volume.copy && host.root_has(&target) {
        let root: OwnedFd = File::open(rootfs).map_err(failed)?.into();
        let made = volumes::make(draft, &root, &[target], &Limits::default())?;
        let first = made.first();
        let first = first.ok_or_else(|| Error::msg("no volume was made"))?;
        return Ok(draft.join(&first.source));
    }
    let empty = draft.join("empty");
    fs::create_dir(&empty).map_err(failed)?;
    Ok(empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_volume_starts_as_the_image_has_it_and_then_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("srv/data/sub")).unwrap();
        fs::write(root.join("srv/data/sub/file"), "image").unwrap();
        fs::set_permissions(root.join("srv/data"), fs::Permissions::from_mode(0o750)).unwrap();
        let volume = |name: &str, copy| NewVolume {
            path: dir.path().join("volumes").join(name),
            destination: "/srv/data".into(),
            copy,
        };
        let full = volume("full", true);
        make_all(&root, &[full.clone(), volume("bare", false)]).unwrap();
        let file = full.path.join("sub/file");
        assert_eq!(fs::read_to_string(&file).unwrap(), "image");
        assert_eq!(
            full.path.metadata().unwrap().permissions().mode() & 0o777,
            0o750
        );
        let bare = dir.path().join("volumes/bare");
        assert_eq!(fs::read_dir(bare).unwrap().count(), 0);
        // The user's data is never written over.
        fs::write(&file, "user").unwrap();
        make_all(&root, std::slice::from_ref(&full)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "user");
        assert_eq!(fs::read_dir(dir.path().join("volumes")).unwrap().count(), 2);
    }

    #[test]
    fn nothing_is_made_in_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let volume = NewVolume {
            path: dir.path().join("v/x"),
            destination: "/not/there".into(),
            copy: true,
        };
        make_all(&root, &[volume]).unwrap();
        assert!(dir.path().join("v/x").is_dir());
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }
}
