//! The libraries that a folder of the cell will hold: files bound into it, folders bound over it, and
//! the image's own.

use super::{View, below};
use crate::nvidia::elf::Elf;
use crate::nvidia::files::{DriverFile, Kind};
use crate::nvidia::ldcache::{self, libcmp};
use crate::spec::edit::normal;
use crate::spec::lower::is_bind;
use crate::sys::fd;
use crate::{Error, Result};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

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
pub struct Places(HashMap<OsString, Option<(u64, u64)>>);

impl Places {
    fn of(&mut self, cell: &View, path: &Path) -> Result<Option<(u64, u64)>> {
        if let Some(known) = self.0.get(path.as_os_str()) {
            return Ok(*known);
        }
        let place = match cell.open_dir(path)? {
            Some(dir) => dir.metadata().ok().map(|m| (m.dev(), m.ino())),
            None => None,
        };
        self.0.insert(path.into(), place);
        Ok(place)
    }

    /// Both are one folder.
    pub fn same(&mut self, cell: &View, a: &Path, b: &Path) -> Result<bool> {
        if a.as_os_str() == b.as_os_str() {
            return Ok(true);
        }
        let a = self.of(cell, a)?;
        Ok(a.is_some() && a == self.of(cell, b)?)
    }
}

/// The last component of a normal path.
fn file_name(path: &Path) -> Option<&str> {
    path.to_str()?.rsplit('/').next()
}

/// A bind mount of the configuration.
struct Bind<'a> {
    at: Cow<'a, Path>,
    source: Cow<'a, Path>,
}

/// The bind mounts, and what discovery knows of the files in them.
pub struct Binds<'a> {
    list: Vec<Bind<'a>>,
    /// 64-bit libraries of the driver by their path below the driver root, with their SONAME. One of them
    /// is not read again: discovery, which vouches for the name, vouches for this too.
    known: HashMap<&'a OsStr, Option<&'a str>>,
    driver_root: &'a [u8],
}

impl<'a> Binds<'a> {
    pub fn new(cell: &View<'a>) -> Self {
        let binds = cell.mounts().iter().filter(|m| is_bind(m));
        let list = binds.filter_map(|m| {
            let source = m.source().as_deref()?;
            Some(Bind {
                at: normal(m.destination()),
                source: match source.is_absolute() {
                    true => Cow::Borrowed(source),
                    false => Cow::Owned(cell.bundle.join(source)),
                },
            })
        });
        let files = cell.driver.map_or(&[][..], |d| &d.files.files);
        let library = |file: &'a DriverFile| match &file.kind {
            Kind::Library {
                soname,
                bits32: false,
            } => Some((file.real.as_os_str(), soname.as_deref())),
            _ => None,
        };
        let root = cell
            .driver
            .map_or(Path::new("/"), |d| &d.inventory.host().driver_root);
        let root = root.as_os_str().as_bytes();
        Binds {
            list: list.collect(),
            known: files.iter().filter_map(library).collect(),
            driver_root: root.strip_suffix(b"/").unwrap_or(root),
        }
    }

    /// The kind and SONAME of a file of the driver.
    fn known(&self, source: &Path) -> Option<(i32, Option<&'a str>)> {
        let below = source
            .as_os_str()
            .as_bytes()
            .strip_prefix(self.driver_root)?;
        let soname = self.known.get(OsStr::from_bytes(below))?;
        Some((ldcache::NATIVE, *soname))
    }

    /// What is bound of a folder: single files, and folders over this one or one above it.
    pub fn of(
        &self,
        cell: &View,
        folder: &Path,
        places: &mut Places,
        found: &mut Found,
    ) -> Result<()> {
        for Bind { at, source } in &self.list {
            if let Some(rest) = below(folder, at) {
                of_host_folder(&source.join(rest), found)?;
                continue;
            }
            let Some(name) = file_name(at).filter(|n| is_library(n)) else {
                continue;
            };
            let parent = at.as_os_str().len() - name.len() - 1;
            let parent = OsStr::from_bytes(&at.as_os_str().as_bytes()[..parent.max(1)]);
            if !places.same(cell, Path::new(parent), folder)? {
                continue;
            }
            if let Some((flags, soname)) = self.known(source) {
                found.add(Library {
                    file: name.to_owned(),
                    flags,
                    soname: soname.unwrap_or(name).to_owned(),
                    bound: true,
                    link: false,
                });
                continue;
            }
            // What can't be opened here is the mount's own error.
            let Some(file) = open_host(source) else {
                continue;
            };
            if let Some(library) = library(name, &file, false, true) {
                found.add(library.map_err(|e| read_error(source, e))?);
            }
        }
        Ok(())
    }
}

/// What the image has there.
pub fn of_image(cell: &View, folder: &Path, found: &mut Found) -> Result<()> {
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
