//! The CDI folders: which file a device name comes from, and what it makes of a cell.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use super::load::{self, Format};
use super::names::{Name, parse_kind, parse_qualified};
use super::spec::CdiSpec;
use crate::spec::edit::{Change, Edit};
use crate::{Error, Result};

/// All CDI files of some folders.
#[derive(Debug, Default)]
pub struct Registry {
    files: Vec<File>,
    devices: BTreeMap<Name, Found>,
    /// Why a file or folder could not be read.
    broken: Vec<Error>,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    spec: CdiSpec,
}

/// Where a name is. All are in one folder, the last that has it.
#[derive(Debug)]
struct Found {
    dir: usize,
    /// (file, device of the file). More than one: nobody can say which is meant.
    at: Vec<(usize, usize)>,
}

/// What [`resolve`] found.
#[derive(Debug)]
pub struct Resolved {
    /// In the order they are applied.
    pub edits: Vec<Edit>,
    /// What was wrong with other files, one line each.
    pub warnings: Vec<String>,
}

/// The edits that give a cell the devices `names`, from the CDI files of `dirs`.
///
/// # Errors
/// As [`Registry::resolve`].
pub fn resolve(names: &[String], dirs: &[PathBuf]) -> Result<Resolved> {
    let registry = Registry::read(dirs);
    Ok(Resolved {
        edits: registry.resolve(names)?,
        warnings: registry.warnings(),
    })
}

impl Registry {
    /// Reads the `.json` and `.yaml` files of the folders, not of folders in them. Of two files that
    /// have a device, the one in the later folder counts. A folder that isn't there is empty; a file
    /// that can't be read doesn't hide the others ([`Registry::warnings`]).
    pub fn read(dirs: &[PathBuf]) -> Self {
        let mut all = Registry::default();
        for (dir, folder) in dirs.iter().enumerate() {
            match cdi_files(folder) {
                Ok(paths) => paths.into_iter().for_each(|p| all.read_file(dir, p)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => {
                    let folder = folder.display().to_string();
                    all.broken.push(Error::step("read CDI folder", folder, e));
                }
            }
        }
        all
    }

    fn read_file(&mut self, dir: usize, (path, format): (PathBuf, Format)) {
        match load::read(&path, format) {
            Ok(spec) => self.add(dir, path, spec),
            Err(why) => self.broken.push(why),
        }
    }

    fn add(&mut self, dir: usize, path: PathBuf, spec: CdiSpec) {
        let Ok((vendor, class)) = parse_kind(&spec.kind) else {
            // Checked when it was read.
            return;
        };
        let file = self.files.len();
        for (i, device) in spec.devices.iter().enumerate() {
            let name = Name {
                vendor: vendor.to_owned(),
                class: class.to_owned(),
                device: device.name.clone(),
            };
            let found = self.devices.entry(name).or_insert(Found {
                dir,
                at: Vec::new(),
            });
            if found.dir != dir {
                found.dir = dir;
                found.at.clear();
            }
            found.at.push((file, i));
        }
        self.files.push(File { path, spec });
    }

    /// The devices that can be asked for and the file of each, sorted by name.
    pub fn devices(&self) -> impl Iterator<Item = (&Name, &Path)> {
        self.devices
            .iter()
            .filter_map(|(name, found)| match found.at[..] {
                [(file, _)] => Some((name, self.files[file].path.as_path())),
                _ => None,
            })
    }

    /// What is wrong with the folders, one line each: files that can't be read, devices that two files
    /// of one folder have.
    pub fn warnings(&self) -> Vec<String> {
        let broken = self.broken.iter().map(|b| format!("CDI: {b}"));
        let twice = self.devices.iter().filter(|(_, found)| found.at.len() > 1);
        broken
            .chain(twice.map(|(name, found)| self.conflict(name, found)))
            .collect()
    }

    fn conflict(&self, name: &Name, found: &Found) -> String {
        let files: Vec<String> = found
            .at
            .iter()
            .map(|(file, _)| self.files[*file].path.display().to_string())
            .collect();
        format!(
            "CDI device {name} can't be used: it is in {} of the same priority",
            files.join(" and ")
        )
    }

    /// The edits that give a cell the devices, each name once: for each, first what its file makes for
    /// any of its devices, if no name before had the same file, then what is the device's own.
    ///
    /// # Errors
    /// A name that isn't a qualified name, that no file has (the message says which files couldn't be
    /// read: it may be in one of them), or that two files of one folder have.
    pub fn resolve(&self, names: &[String]) -> Result<Vec<Edit>> {
        let (mut files, mut seen) = (HashSet::new(), HashSet::new());
        let mut edits = Vec::new();
        for text in names {
            let name = parse_qualified(text)?;
            let found = self
                .devices
                .get(&name)
                .ok_or_else(|| self.unresolved(&name))?;
            let [(file, device)] = found.at[..] else {
                return Err(Error::msg(self.conflict(&name, found)));
            };
            if !seen.insert((file, device)) {
                continue;
            }
            let File { path, spec } = &self.files[file];
            if files.insert(file) {
                let reason = format!("CDI {} ({})", spec.kind, path.display());
                edits.extend(spec.container_edits.clone().into_edits(&reason)?);
            }
            let reason = format!("CDI {name} ({})", path.display());
            let own = spec.devices[device].container_edits.clone();
            edits.extend(own.into_edits(&reason)?);
        }
        Ok(edits)
    }

    fn unresolved(&self, name: &Name) -> Error {
        let mut text = format!("CDI device {name} is in no CDI file");
        let mut more: Vec<String> = self.broken.iter().map(Error::to_string).collect();
        if !more.is_empty() {
            let last = if more.len() > 1 { "these" } else { "this" };
            text = format!("{text} that can be read; {last} can't: {}", more.join("; "));
        }
        more = self
            .devices()
            .filter(|(n, _)| n.vendor == name.vendor && n.class == name.class)
            .map(|(n, _)| n.device.clone())
            .collect();
        if !more.is_empty() {
            text = format!(
                "{text} ({}/{} has {})",
                name.vendor,
                name.class,
                more.join(", ")
            );
        }
        Error::msg(text)
    }
}

/// The CDI files of a folder in the order of their names.
fn cdi_files(dir: &Path) -> io::Result<Vec<(PathBuf, Format)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if let Some(format) = Format::of(&path)
            && !entry.file_type()?.is_dir()
        {
            all.push((path, format));
        }
    }
    all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

/// In a new user namespace the bind mounts among `edits` show the host's owners as the cell's own ids
/// (CDI, `withIDMapForBindMount`), unless their options say otherwise. To be called with the Spec that
/// they will be applied to. Without the privilege to map ids (an unprivileged runtime) it must not be:
/// the files are then seen as the overflow user's, and read all the same.
pub fn map_ids(edits: &mut [Edit], spec: &Spec) {
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    let new = namespaces.into_iter().flatten().any(|ns| {
        // Of an existing one the mappings are not in the configuration.
        ns.typ() == LinuxNamespaceType::User && ns.path().is_none()
    });
    if !new {
        return;
    }
    for edit in edits {
        if let Change::Mount(mount) = &mut edit.change {
            map_mount(mount);
        }
    }
}

fn map_mount(mount: &mut Mount) {
    let mut options = mount.options().clone().unwrap_or_default();
    if options.iter().any(|o| o == "idmap" || o == "ridmap") {
        return;
    }
    let bind = mount.typ().as_deref() == Some("bind");
    let option = match options.iter().rev().find(|o| *o == "bind" || *o == "rbind") {
        Some(o) if o == "rbind" => "ridmap",
        Some(_) => "idmap",
        None if bind => "idmap",
        None => return,
    };
    options.push(option.to_owned());
    mount.set_options(Some(options));
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
