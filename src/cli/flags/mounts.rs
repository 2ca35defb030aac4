//! `-v`, `--mount`, `--tmpfs`: text to mounts.
//!
//! Docker's short and long syntax (docker/cli `opts/mount.go`, moby `volume/mounts`). One thing is
//! stricter: a bind source that isn't there is an error for `-v` too, where Docker makes an empty
//! directory owned by root. `idmap` is podman's option name; here it maps the owner of the source to
//! the cell's user, and no other id.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount};

use super::{Host, Owner, invalid};
use crate::cli::units;
use crate::spec::edit::same_path;
use crate::{Error, Result};

/// One mount from the command line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    /// The flag as typed.
    pub reason: String,
    /// The mount.
    pub mount: Mount,
    /// A named volume: made and filled from the image at the destination when it isn't there yet.
    pub volume: Option<NewVolume>,
}

/// A named volume that may have to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct NewVolume {
    /// Its folder on the host.
    pub path: PathBuf,
    /// Where it goes in the cell.
    pub destination: PathBuf,
    /// Copy what the image has there (not with `nocopy`).
    pub copy: bool,
}

/// The cell's ids as the host sees them: what an id-mapped mount maps to.
#[derive(Clone, Copy, Debug)]
pub(super) struct CellIds {
    /// The process's user on the host.
    pub uid: u32,
    /// Its group on the host.
    pub gid: u32,
}

/// Options that a bind mount takes beside its own: passed to the kernel as they are.
const PASSED: [&str; 6] = ["nosuid", "nodev", "noexec", "suid", "dev", "exec"];
const PROPAGATION: [&str; 6] = [
    "shared", "slave", "private", "rshared", "rslave", "rprivate",
];

/// What both syntaxes come to.
#[derive(Default)]
struct Bind {
    readonly: bool,
    /// Only the top mount is read-only (`bind-recursive=writable`).
    flat_readonly: bool,
    propagation: Option<String>,
    nonrecursive: bool,
    idmap: bool,
    nocopy: bool,
    passed: Vec<String>,
}

/// All mounts asked for, in the order `-v`, `--mount`, `--tmpfs`; none twice at one place.
pub(super) fn all(flags: &super::Flags, ids: CellIds, host: &dyn Host) -> Result<Vec<Asked>> {
    let mut out: Vec<Asked> = Vec::new();
    let short = flags.volume.iter().map(|text| volume(text, ids, host));
    let long = flags.mount.iter().map(|text| long(text, ids, host));
    let memory = flags.tmpfs.iter().map(|text| tmpfs(text));
    for asked in short.chain(long).chain(memory) {
        let asked = asked?;
        let dest = asked.mount.destination();
        if out.iter().any(|a| same_path(a.mount.destination(), dest)) {
            let text = format!("Duplicate mount point: {}", dest.display());
            return Err(Error::msg(text));
        }
        out.push(asked);
    }
    Ok(out)
}

/// `SRC:DST[:OPTS]`.
fn volume(text: &str, ids: CellIds, host: &dyn Host) -> Result<Asked> {
    let bad = |why: &str| Error::msg(format!("invalid volume specification: '{text}': {why}"));
    let mut parts = text.split(':');
    let (source, dest, options) = match (parts.next(), parts.next(), parts.next()) {
        (Some(source), Some(dest), options) => (source, dest, options.unwrap_or("")),
        _ => return Err(bad("anonymous volumes are not supported: give SRC:DST")),
    };
    if parts.next().is_some() {
        return Err(bad("too many colons"));
    }
    if source.is_empty() {
        return Err(bad("the source is empty"));
    }
    let dest = destination(dest).map_err(bad)?;
    let mut bind = Bind::default();
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => bind.readonly = true,
            "rw" => {}
            "z" | "Z" => relabel(text, host)?,
            "idmap" => bind.idmap = true,
            "nocopy" => bind.nocopy = true,
            // Docker Desktop's; no effect on Linux.
            "consistent" | "cached" | "delegated" | "default" => {}
            o if PROPAGATION.contains(&o) => bind.propagation = Some(o.to_owned()),
            o if PASSED.contains(&o) => bind.passed.push(o.to_owned()),
            o => return Err(bad(&format!("invalid mode: {o}"))),
        }
    }
    let reason = format!("-v {text}");
    // docker/cli: a source with a slash, or starting with a dot or ~, is a path, else a name.
    if source.contains('/') || source == "." || source == ".." {
        let source = absolute(source, host)?;
        bind_mount(reason, source, dest, &bind, ids, host)
    } else {
        named(reason, source, dest, &bind, host)
    }
}

fn destination(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err("mount path must be absolute");
    }
    if same_path(&path, Path::new("/")) {
        return Err("destination can't be '/'");
    }
    Ok(path)
}

fn absolute(source: &str, host: &dyn Host) -> Result<PathBuf> {
    if let Some(rest) = source.strip_prefix("~/") {
        let home = host.env("HOME");
        let home = home.ok_or_else(|| Error::msg(format!("{source}: HOME is not set")))?;
        return Ok(Path::new(&home).join(rest));
    }
    let path = Path::new(source);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    let cwd = host.cwd();
    let cwd = cwd.map_err(|e| Error::step("working directory", ".", e))?;
    Ok(cwd.join(path.strip_prefix(".").unwrap_or(path)))
}

/// `z` and `Z` mean nothing without SELinux, as in Docker. With it they would have to relabel the
/// source, which gpucell doesn't do: the user is told the command.
fn relabel(text: &str, host: &dyn Host) -> Result<()> {
    if !host.selinux() {
        return Ok(());
    }
    Err(Error::unsupported(
        format!("relabelling in '{text}'"),
        "run `chcon -R -t container_file_t SOURCE` once and leave z out",
    ))
}

fn bind_mount(
    reason: String,
    source: PathBuf,
    dest: PathBuf,
    bind: &Bind,
    ids: CellIds,
    host: &dyn Host,
) -> Result<Asked> {
    let owner = host.owner(&source).map_err(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            let source = source.display();
            Error::msg(format!(
                "{reason}: bind source path does not exist: {source}"
            ))
        } else {
            Error::step("bind source", source.display().to_string(), e)
        }
    })?;
    let mut options = vec![if bind.nonrecursive { "bind" } else { "rbind" }.to_owned()];
    options.push(
        bind.propagation
            .clone()
            .unwrap_or_else(|| "rprivate".into()),
    );
    if bind.readonly {
        // Docker 25: read-only holds for the mounts below too (kernel 5.12, mount_setattr).
        let flat = bind.nonrecursive || bind.flat_readonly || host.kernel() < (5, 12);
        options.push(if flat { "ro" } else { "rro" }.to_owned());
    }
    options.extend(bind.passed.iter().cloned());
    let mut mount = Mount::default();
    mount
        .set_destination(dest)
        .set_source(Some(source))
        .set_typ(Some("bind".to_owned()));
    if bind.idmap {
        idmap(&mut mount, &mut options, owner, ids)?;
    }
    mount.set_options(Some(options));
    Ok(Asked {
        reason,
        mount,
        volume: None,
    })
}

/// Maps the source's owner to the cell's user and no other id: files of anyone else show as nobody's
/// and can't be made. With equal ids there is nothing to map.
///
/// mount_setattr(2): an id on disk is looked up as an id *inside* the mapping (OCI `containerID`) and
/// shows as the one outside it (`hostID`).
fn idmap(mount: &mut Mount, options: &mut Vec<String>, owner: Owner, ids: CellIds) -> Result<()> {
    if (owner.uid, owner.gid) == (ids.uid, ids.gid) {
        return Ok(());
    }
    options.push("idmap".to_owned());
    mount
        .set_uid_mappings(Some(vec![one(owner.uid, ids.uid)?]))
        .set_gid_mappings(Some(vec![one(owner.gid, ids.gid)?]));
    Ok(())
}

fn one(on_disk: u32, shown: u32) -> Result<LinuxIdMapping> {
    LinuxIdMappingBuilder::default()
        .container_id(on_disk)
        .host_id(shown)
        .size(1_u32)
        .build()
        .map_err(|e| Error::msg(e.to_string()))
}

/// A named volume: a bind mount of a folder that gpucell keeps.
fn named(reason: String, name: &str, dest: PathBuf, bind: &Bind, host: &dyn Host) -> Result<Asked> {
    // moby `volume/validate`: RestrictedNamePattern.
    let good = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let first = name
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphanumeric());
    if !first || name.len() < 2 || name.len() > 255 || !name.chars().all(good) {
        return Err(Error::msg(format!(
            "{reason}: {name:?} includes invalid characters for a local volume name, only \
             \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, \
             use absolute path"
        )));
    }
    if bind.idmap {
        return Err(Error::msg(format!(
            "{reason}: idmap needs a host directory, not a named volume"
        )));
    }
    let path = host.volume(name)?;
    let mut options = vec!["rbind".to_owned()];
    options.push(
        bind.propagation
            .clone()
            .unwrap_or_else(|| "rprivate".into()),
    );
    if bind.readonly {
        options.push("ro".to_owned());
    }
    options.extend(bind.passed.iter().cloned());
    let mut mount = Mount::default();
    mount
        .set_destination(dest.clone())
        .set_source(Some(path.clone()))
        .set_typ(Some("bind".to_owned()))
        .set_options(Some(options));
    Ok(Asked {
        reason,
        mount,
        volume: Some(NewVolume {
            path,
            destination: dest,
            copy: !bind.nocopy,
        }),
    })
}

/// `--tmpfs DST[:OPTS]`, by default `noexec,nosuid,nodev` as Docker has it.
fn tmpfs(text: &str) -> Result<Asked> {
    let (dest, options) = text.split_once(':').unwrap_or((text, ""));
    let dest = destination(dest).map_err(|why| invalid(text, "--tmpfs", why))?;
    let mut given = Vec::new();
    for option in options.split(',').filter(|o| !o.is_empty()) {
        given.push(tmpfs_option(option).map_err(|why| invalid(text, "--tmpfs", why))?);
    }
    Ok(tmpfs_mount(format!("--tmpfs {text}"), dest, given))
}

fn tmpfs_mount(reason: String, dest: PathBuf, given: Vec<String>) -> Asked {
    let mut options: Vec<String> = Vec::new();
    for (default, opposite) in [("noexec", "exec"), ("nosuid", "suid"), ("nodev", "dev")] {
        if !given.iter().any(|o| o == opposite || o == default) {
            options.push(default.to_owned());
        }
    }
    options.extend(given);
    let mut mount = Mount::default();
    mount
        .set_destination(dest)
        .set_source(Some(PathBuf::from("tmpfs")))
        .set_typ(Some("tmpfs".to_owned()))
        .set_options(Some(options));
    Asked {
        reason,
        mount,
        volume: None,
    }
}

/// One option, of those that moby's `MergeTmpfsOptions` allows. A size is turned into bytes: the kernel
/// knows `64m` but not `64mb` or `1.5g` (tmpfs(5)).
fn tmpfs_option(option: &str) -> Result<String, String> {
    const PLAIN: [&str; 19] = [
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "sync",
        "async",
        "dirsync",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "defaults",
    ];
    const VALUED: [&str; 5] = ["uid", "gid", "nr_inodes", "nr_blocks", "mpol"];
    let bad = || format!("Invalid tmpfs option {option:?}");
    if PLAIN.contains(&option) {
        return Ok(option.to_owned());
    }
    let (key, value) = option.split_once('=').ok_or_else(bad)?;
    match key {
        "size"
            if value
                .strip_suffix('%')
                .is_some_and(|n| n.parse::<u8>().is_ok()) => {}
        "size" => {
            let size = units::bytes(value).map_err(|_| bad())?;
            return Ok(format!("size={size}"));
        }
        "mode" if u32::from_str_radix(value, 8).is_ok_and(|m| m <= 0o7777) => {}
        _ if VALUED.contains(&key) && !value.is_empty() => {}
        _ => return Err(bad()),
    }
    Ok(option.to_owned())
}

/// `--mount`'s fields.
#[derive(Default)]
struct Long {
    typ: Option<String>,
    source: Option<String>,
    dest: Option<String>,
    bind: Bind,
    tmpfs: Vec<String>,
    bind_key: Option<String>,
    volume_key: Option<String>,
}

/// `--mount type=bind,src=…,dst=…`.
fn long(text: &str, ids: CellIds, host: &dyn Host) -> Result<Asked> {
    let bad = |why: String| invalid(text, "--mount", why);
    let fields = long_fields(text, host).map_err(bad)?;
    let dest = fields.dest.as_deref();
    let dest = dest.ok_or_else(|| bad("target is required".to_owned()))?;
    let dest = destination(dest).map_err(|why| bad(why.to_owned()))?;
    let reason = format!("--mount {text}");
    let typ = fields.typ.as_deref().unwrap_or("volume");
    for (key, owner) in [(&fields.bind_key, "bind"), (&fields.volume_key, "volume")] {
        if let Some(key) = key
            && typ != owner
        {
            let prefix = key.split('-').next().unwrap_or(owner);
            return Err(bad(format!(
                "cannot mix '{prefix}-*' options with mount type '{typ}'"
            )));
        }
    }
    if typ != "tmpfs" && !fields.tmpfs.is_empty() {
        return Err(bad(format!(
            "cannot mix 'tmpfs-*' options with mount type '{typ}'"
        )));
    }
    match (typ, fields.source.as_deref()) {
        ("bind", Some(source)) => {
            let source = absolute(source, host)?;
            bind_mount(reason, source, dest, &fields.bind, ids, host)
        }
        ("bind", None) => Err(bad("source is required when type=bind".to_owned())),
        ("volume", Some(name)) => named(reason, name, dest, &fields.bind, host),
        ("volume", None) => Err(bad(
            "anonymous volumes are not supported: source is required".to_owned(),
        )),
        ("tmpfs", Some(_)) => Err(bad("source is not allowed when type=tmpfs".to_owned())),
        ("tmpfs", None) => {
            let mut given = fields.tmpfs;
            if fields.bind.readonly {
                given.push("ro".to_owned());
            }
            Ok(tmpfs_mount(reason, dest, given))
        }
        (other, _) => Err(bad(format!("invalid mount type {other:?}"))),
    }
}

fn long_fields(text: &str, host: &dyn Host) -> Result<Long, String> {
    let mut out = Long::default();
    for field in text.split(',') {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), Some(value)),
            None => (field.to_ascii_lowercase(), None),
        };
        let need =
            || value.ok_or_else(|| format!("invalid field '{field}' must be a key=value pair"));
        let switch = || match value {
            None | Some("" | "true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(v) => Err(format!("invalid value for {key}: {v}")),
        };
        match key.as_str() {
            "type" => out.typ = Some(need()?.to_ascii_lowercase()),
            "source" | "src" => out.source = Some(need()?.to_owned()),
            "target" | "dst" | "destination" => out.dest = Some(need()?.to_owned()),
            "readonly" | "ro" => out.bind.readonly = switch()?,
            "consistency" => drop(need()?),
            "idmap" => {
                out.bind.idmap = switch()?;
                out.bind_key = Some(key);
            }
            "relabel" => {
                relabel(text, host).map_err(|e| e.to_string())?;
                out.bind_key = Some(key);
            }
            "bind-propagation" => {
                let value = need()?.to_ascii_lowercase();
                if !PROPAGATION.contains(&value.as_str()) {
                    return Err(format!("invalid value for {key}: {value}"));
                }
                out.bind.propagation = Some(value);
                out.bind_key = Some(key);
            }
            "bind-nonrecursive" => {
                out.bind.nonrecursive = switch()?;
                out.bind_key = Some(key);
            }
            "bind-recursive" => {
                match need()? {
                    "enabled" | "readonly" => {}
                    "disabled" => out.bind.nonrecursive = true,
                    "writable" => out.bind.flat_readonly = true,
                    v => {
                        return Err(format!(
                            "invalid value for {key}: {v} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
                        ));
                    }
                }
                out.bind_key = Some(key);
            }
            "volume-nocopy" => {
                out.bind.nocopy = switch()?;
                out.volume_key = Some(key);
            }
            "tmpfs-size" => {
                let size = units::bytes(need()?);
                let size =
                    size.map_err(|_| format!("invalid value for {key}: {}", value.unwrap_or("")))?;
                out.tmpfs.push(format!("size={size}"));
            }
            "tmpfs-mode" => {
                let mode = u32::from_str_radix(need()?, 8);
                let mode =
                    mode.map_err(|_| format!("invalid value for {key}: {}", value.unwrap_or("")))?;
                out.tmpfs.push(format!("mode={mode:o}"));
            }
            _ if value.is_none() => {
                return Err(format!("invalid field '{field}' must be a key=value pair"));
            }
            _ => return Err(format!("unexpected key '{key}' in '{field}'")),
        }
    }
    Ok(out)
}
