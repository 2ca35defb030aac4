//! The libraries that a folder of the cell will hold: files bound into it, folders bound over it, and
//! the image's own.

use super::{Cell, normal};
use crate::nvidia::elf::Elf;
use crate::nvidia::ldcache::{self, libcmp};
use crate::spec::lower::is_bind;
use crate::sys::fd;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Most files of one folder that are looked at; a full /usr/lib has 5000.
const FILES_MAX: usize = 20_000;

/// One library of a folder.
pub struct Library {
    /// Its file.
    pub file: String,
    /// Its kind ([`ldcache::flags`]).
    pub flags: i32,
    /// The name to look it up by.
    pub soname: String,
    /// It is bound from the host, so that links to it are ours to make.
    pub bound: bool,
    /// Its file is a link.
    link: bool,
}

/// Libraries by SONAME: of several the newest, as ldconfig picks them, but one that is bound before
/// one of the image.
#[derive(Default)]
pub struct Found(pub BTreeMap<String, Library>);

impl Found {
    fn add(&mut self, new: Library) {
        let better = |old: &Library| match (new.bound, old.bound) {
            (true, false) => true,
            (false, true) => false,
            _ if new.link != old.link => old.link,
            _ => libcmp(old.file.as_bytes(), new.file.as_bytes()).is_lt(),
        };
        if self.0.get(&new.soname).is_none_or(better) {
            self.0.insert(new.soname.clone(), new);
        }
    }

    /// The library of this file name or SONAME.
    pub fn get(&self, name: &str) -> Option<&Library> {
        let by_name = self.0.get(name);
        by_name.or_else(|| self.0.values().find(|l| l.file == name))
    }
}

/// Where the folders of the image are, for those that have several paths (/lib and /usr/lib).
#[derive(Default)]
pub struct Places(BTreeMap<PathBuf, Option<(u64, u64)>>);

impl Places {
    fn of(&mut self, cell: &Cell, path: &Path) -> Result<Option<(u64, u64)>> {
        if let Some(known) = self.0.get(path) {
            return Ok(*known);
        }
        let place = match cell.open_dir(path)? {
            Some(dir) => dir.metadata().ok().map(|m| (m.dev(), m.ino())),
            None => None,
        };
        self.0.insert(path.to_owned(), place);
        Ok(place)
    }

    /// Both are one folder.
    pub fn same(&mut self, cell: &Cell, a: &Path, b: &Path) -> Result<bool> {
        if a == b {
            return Ok(true);
        }
        let a = self.of(cell, a)?;
        Ok(a.is_some() && a == self.of(cell, b)?)
    }
}

/// What is bound: single files, and folders over this one or one above it.
pub fn bound(cell: &Cell, folder: &Path, places: &mut Places, found: &mut Found) -> Result<()> {
    for mount in cell.mounts() {
        let (true, Some(source)) = (is_bind(mount), mount.source()) else {
            continue;
        };
        let at = normal(mount.destination());
        if let Ok(rest) = folder.strip_prefix(&at) {
            let dir = cell.bundle.join(source).join(rest);
            of_host_folder(&dir, found)?;
            continue;
        }
        let (Some(parent), Some(name)) = (at.parent(), at.file_name().and_then(|n| n.to_str()))
        else {
            continue;
        };
        if !is_library(name) || !places.same(cell, parent, folder)? {
            continue;
        }
        let source = cell.bundle.join(source);
        // What can't be opened here is the mount's own error.
        let Some(file) = open_host(&source) else {
            continue;
        };
        if let Some(library) = library(name, &file, false, true) {
            found.add(library.map_err(|e| read_error(&source, e))?);
        }
    }
    Ok(())
}

/// What the image has there.
pub fn of_image(cell: &Cell, folder: &Path, found: &mut Found) -> Result<()> {
    let Some(dir) = cell.open_dir(folder)? else {
        return Ok(());
    };
    let fail = |e: io::Error| Error::step("look at the image's", folder.display().to_string(), e);
    let mut count = 0;
    let mut names = crate::sys::dir::Entries::new(dir.as_fd());
    while let Some(name) = names.next().map_err(|e| fail(e.into()))? {
        count += 1;
        if count > FILES_MAX {
            return Err(fail(io::Error::other(format!(
                "more than {FILES_MAX} files"
            ))));
        }
        let Some(text) = name.to_str().ok().filter(|n| is_library(n)) else {
            continue;
        };
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        let link = fd::fstatat(dir.as_fd(), name, flags)
            .is_ok_and(|st| st.mode & libc::S_IFMT == libc::S_IFLNK);
        let Some(file) = cell.open(&folder.join(text))? else {
            continue;
        };
        if let Some(library) = library(text, &file, link, false) {
            found.add(library.map_err(fail)?);
        }
    }
    Ok(())
}

/// A folder of the host that is bound into the cell. Its links are its own.
fn of_host_folder(dir: &Path, found: &mut Found) -> Result<()> {
    let list = match fs::read_dir(dir) {
        Ok(list) => list,
        // A missing source is the mount's own error.
        Err(_) => return Ok(()),
    };
    for entry in list.take(FILES_MAX).flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|n| is_library(n)) else {
            continue;
        };
        let link = entry.file_type().is_ok_and(|t| t.is_symlink());
        let Some(file) = open_host(&entry.path()) else {
            continue;
        };
        if let Some(library) = library(name, &file, link, false) {
            found.add(library.map_err(|e| read_error(&entry.path(), e))?);
        }
    }
    Ok(())
}

fn open_host(path: &Path) -> Option<File> {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .ok()?;
    file.metadata().is_ok_and(|m| m.is_file()).then_some(file)
}

fn read_error(path: &Path, e: io::Error) -> Error {
    Error::step("read", path.display().to_string(), e)
}

/// Names that ldconfig looks at: `lib*.so*` and `ld-*.so*` (sysdeps/generic/dl-is_dso.h of glibc).
pub fn is_library(name: &str) -> bool {
    (name.starts_with("lib") || name.starts_with("ld-"))
        && name.contains(".so")
        && !name.contains(|c: char| c.is_control())
}

/// What ldconfig takes a file for: none if it is no library of a kind we know.
fn library(name: &str, file: &File, link: bool, bound: bool) -> Option<io::Result<Library>> {
    let elf = match Elf::read(file) {
        Ok(elf) => elf?,
        Err(e) => return Some(Err(e)),
    };
    let flags = ldcache::flags(&elf)?;
    let soname = elf.soname.unwrap_or_else(|| name.to_owned());
    // A link of the SONAME's name, or the linker's libx.so, stands for itself.
    let link = link && (name == soname || name.ends_with(".so") && soname.starts_with(name));
    Some(Ok(Library {
        file: name.to_owned(),
        flags,
        soname: if link { name.to_owned() } else { soname },
        bound,
        link,
    }))
}
