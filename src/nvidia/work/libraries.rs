//! How the image's own loader finds the libraries: glibc's ld.so.cache and ld.so.conf.d, musl's path
//! file, and the links that SONAMEs ask for.

use super::folders::{self, Binds, Found, Places, is_library};
use super::{View, file, own, read, symlink};
use crate::Result;
use crate::nvidia::hook::Work;
use crate::nvidia::ldcache::{CACHE_MAX, Cache, Entry};
use crate::plan::{How, InRoot};
use crate::spec::edit::normal;
use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const CACHE: &str = "/etc/ld.so.cache";
const CONF_DIR: &str = "/etc/ld.so.conf.d";
/// First in the order of names, in which ldconfig reads them.
const CONF: &str = "/etc/ld.so.conf.d/00-gpucell.conf";
/// musl's folders when it has no path file (ldso/dynlink.c).
const MUSL_DEFAULT: &str = "/lib:/usr/local/lib:/usr/lib";

/// One name of a library and where the cell has it.
struct Known {
    name: String,
    path: PathBuf,
    flags: i32,
}

pub fn lower(
    cell: &View,
    works: &[Work],
    compat: Option<&Path>,
    list: &[&Path],
    steps: &mut Vec<InRoot>,
) -> Result<()> {
    let old = read(cell, Path::new(CACHE), CACHE_MAX)?;
    let base = old.as_deref().and_then(Cache::parse);
    let mut known = Vec::new();
    if let Some(folder) = compat {
        let mut found = Found::default();
        folders::of_image(cell, folder, &mut found)?;
        names(&found, folder, &mut known);
    }
    let mut places = Places::default();
    let binds = Binds::new(cell);
    let made = made(works);
    let mut unknown: Vec<PathBuf> = compat.map(Path::to_owned).into_iter().collect();
    let mut all: Vec<PathBuf> = unknown.clone();
    for folder in list {
        let folder = normal(folder).into_owned();
        if all.contains(&folder) {
            continue;
        }
        let mut found = Found::default();
        binds.of(cell, &folder, &mut places, &mut found)?;
        let listed = base.as_ref().is_some_and(|c| lists(c, &folder));
        // The image's cache, or else the loader's own search, finds what is in these anyway; ldconfig
        // would leave them in their order too.
        if !listed && !is_default(cell, &folder)? {
            folders::of_image(cell, &folder, &mut found)?;
            unknown.push(folder.clone());
        }
        links(cell, &made, &folder, &found, &mut places, &mut known, steps)?;
        names(&found, &folder, &mut known);
        all.push(folder);
    }
    let musl = musl_loader();
    let has_musl = cell.exists(&format!("/lib/{musl}.so.1"))?;
    if has_musl {
        steps.extend(musl_path(cell, musl, &all)?);
    }
    // What a libc of musl alone never reads is not written.
    if !has_musl || old.is_some() {
        let new = cache(base.unwrap_or_default(), &known);
        // A bundle run in place has it from last time.
        if old.as_deref() != Some(&new) {
            steps.push(file(cell, CACHE, new)?);
        }
        steps.extend(drop_in(cell, &unknown)?);
    }
    Ok(())
}

/// The cache has libraries of this folder.
fn lists(cache: &Cache, folder: &Path) -> bool {
    let folder = folder.as_os_str().as_bytes();
    cache.entries.iter().any(|e| {
        let dir = e.path.strip_suffix(&*e.name);
        dir.and_then(|d| d.strip_suffix(b"/")) == Some(folder)
    })
}

/// The loader searches it without being told: the multiarch folder on Debian and what derives from
/// it, lib64 elsewhere (`path.system_dirs` of ld.so --list-diagnostics).
fn is_default(cell: &View, folder: &Path) -> Result<bool> {
    let Some(folder) = folder.to_str() else {
        return Ok(false);
    };
    let last = folder.strip_prefix("/usr").unwrap_or(folder);
    if last == "/lib" {
        return Ok(true);
    }
    let multiarch = format!("/lib/{}-linux-gnu", std::env::consts::ARCH);
    Ok(
        match cell.exists("/etc/debian_version")? || cell.exists(&multiarch)? {
            true => last == multiarch || last == "/lib/i386-linux-gnu",
            false => last == "/lib64",
        },
    )
}

/// A link with a library's name that a hook makes.
struct Made<'a> {
    parent: PathBuf,
    name: &'a str,
    /// The name of what it points to.
    target: &'a str,
}

fn made<'a>(works: &'a [Work]) -> Vec<Made<'a>> {
    let lists = works.iter().filter_map(|w| match w {
        Work::Symlinks(list) => Some(list),
        _ => None,
    });
    let link = |(to, at): &'a (PathBuf, PathBuf)| {
        let name = at
            .file_name()
            .and_then(|n| n.to_str())
            .filter(|n| is_library(n))?;
        Some(Made {
            parent: normal(at).parent().map(Path::to_owned).unwrap_or_default(),
            name,
            target: to.file_name().and_then(|n| n.to_str())?,
        })
    };
    lists.flatten().filter_map(link).collect()
}

/// The links that SONAMEs ask for, and the names of links that other hooks make.
fn links(
    cell: &View,
    made: &[Made],
    folder: &Path,
    found: &Found,
    places: &mut Places,
    known: &mut Vec<Known>,
    steps: &mut Vec<InRoot>,
) -> Result<()> {
    let mut there: Vec<&str> = Vec::new();
    for link in made {
        if !places.same(cell, &link.parent, folder)? {
            continue;
        }
        there.push(link.name);
        if let Some(library) = found.get(link.target) {
            known.push(Known {
                name: link.name.to_owned(),
                path: folder.join(link.name),
                flags: library.flags,
            });
        }
    }
    for library in found.0.values().filter(|l| l.bound) {
        let at = folder.join(&library.soname);
        let named = library.file == library.soname || there.contains(&library.soname.as_str());
        if !named && !cell.is_mount_point(&at) {
            steps.push(symlink(cell, &at, Path::new(&library.file))?);
        }
    }
    Ok(())
}

/// Cache entries by SONAME. Where the link of that name is, or will be, it is what the entry says, as
/// with ldconfig: a library exchanged later is found under its new file name.
fn names(found: &Found, folder: &Path, known: &mut Vec<Known>) {
    for library in found.0.values() {
        let file = match library.bound {
            true => &library.soname,
            false => &library.file,
        };
        known.push(Known {
            name: library.soname.clone(),
            path: folder.join(file),
            flags: library.flags,
        });
    }
}

fn cache<'a>(mut base: Cache<'a>, known: &'a [Known]) -> Vec<u8> {
    let entry = |k: &'a Known| Entry {
        name: Cow::Borrowed(k.name.as_bytes()),
        path: Cow::Borrowed(k.path.as_os_str().as_bytes()),
        flags: k.flags,
        osversion: 0,
        hwcap: 0,
    };
    base.put_first(known.iter().map(entry).collect());
    base.write()
}

/// So that a later ldconfig in the cell finds the folders too. Not where nothing reads it, and not in
/// a root where ldconfig can't write.
fn drop_in(cell: &View, folders: &[PathBuf]) -> Result<Option<InRoot>> {
    let usable = !folders.is_empty() && !cell.readonly();
    if !usable || cell.open_dir(Path::new(CONF_DIR))?.is_none() {
        return Ok(None);
    }
    let mut content = Vec::new();
    for folder in folders {
        content.extend_from_slice(folder.as_os_str().as_bytes());
        content.push(b'\n');
    }
    Ok(Some(InRoot::File {
        at: own(cell, Path::new(CONF))?,
        content,
        mode: 0o644,
        how: How::Optional,
    }))
}

fn musl_loader() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "ld-musl-aarch64",
        _ => "ld-musl-x86_64",
    }
}

/// musl's path file with the folders added; none when it has them all. Folders are separated by colons
/// or newlines (ldso/dynlink.c, path_open).
fn musl_path(cell: &View, loader: &str, folders: &[PathBuf]) -> Result<Option<InRoot>> {
    let path = format!("/etc/{loader}.path");
    let old = read(cell, Path::new(&path), CACHE_MAX)?.filter(|text| !text.is_empty());
    let mut text = old.unwrap_or_else(|| MUSL_DEFAULT.into());
    let mut changed = false;
    for folder in folders {
        let folder = folder.as_os_str().as_bytes();
        if text
            .split(|b| matches!(b, b':' | b'\n'))
            .any(|d| d == folder)
        {
            continue;
        }
        changed = true;
        while text.last() == Some(&b'\n') {
            text.pop();
        }
        text.push(b'\n');
        text.extend_from_slice(folder);
    }
    text.push(b'\n');
    changed.then(|| file(cell, &path, text)).transpose()
}
