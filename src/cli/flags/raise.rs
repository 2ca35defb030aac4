//! Low to high: [`Flags`] with the bundle's Spec and the host become [`High`].
//!
//! The one place where flags meet each other. Order matters: the user is settled first, since devices,
//! capabilities and id-mapped mounts follow from it.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capabilities, LinuxIdMapping, Mount, Process, Spec};

use super::files::{self, EtcFile};
use super::mounts::{self, CellIds, NewVolume};
use super::{Flags, Host, env, invalid, limits, namespaces, security};
use crate::cli::units::{self, NANO};
use crate::nvidia::inject::Injection;
use crate::spec::edit::{Change, Edit, same_path};
use crate::spec::user::{self, Resolved};
use crate::{Error, Result};

/// Where an init is mounted. /dev is the cell's own, so nothing is left in the rootfs.
const INIT: &str = "/dev/gpucell-init";

/// Docker's PATH for an image that sets none (moby `system.DefaultPathEnv`).
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the flags are raised against.
#[derive(Debug)]
pub struct Context<'a> {
    /// The bundle's configuration.
    pub spec: &'a Spec,
    /// The cell's id.
    pub id: &'a str,
    /// The command's words; empty: the bundle's own.
    pub command: &'a [String],
    /// The image's entrypoint, which the command's words are arguments of. `None` for a bundle run in
    /// place: there the command replaces all.
    pub entrypoint: Option<&'a [String]>,
    /// The cell's own folder, for the files of /etc.
    pub dir: &'a Path,
}

/// What the flags come to.
#[derive(Debug, Default)]
pub struct High {
    /// To be applied in this order.
    pub edits: Vec<Edit>,
    /// For stderr, one line each.
    pub warnings: Vec<String>,
    /// To be written in the cell's folder.
    pub files: Vec<EtcFile>,
    /// Named volumes, to be made if they aren't there.
    pub volumes: Vec<NewVolume>,
    /// What GPUs need of the host; their edits are among the others.
    pub gpus: Injection,
}

/// Raises the flags.
///
/// # Errors
/// What Docker would say of the flag.
pub fn raise(flags: &Flags, ctx: &Context<'_>, host: &dyn Host) -> Result<High> {
    let mut high = High::default();
    let user = user(flags, ctx.spec, host, &mut high.edits)?;
    process(flags, ctx, &user, host, &mut high.edits)?;
    let spaces = namespaces::edits(flags, ctx.spec, ctx.id, host)?;
    high.edits.extend(spaces);
    if flags.read_only == Some(true) || (flags.read_only == Some(false)) {
        let on = flags.read_only == Some(true);
        let reason = format!("--read-only={on}");
        high.edits.push(Edit::new(reason, Change::RootReadonly(on)));
    }
    shm(flags, ctx.spec, &mut high.edits)?;
    mounts(flags, ctx, &user, host, &mut high)?;
    high.edits
        .extend(security::privileged(flags, ctx.spec, host)?);
    high.edits.extend(security::devices(flags, host)?);
    let caps = match security::capabilities(flags, ctx.spec, user.uid, host)? {
        Some((edit, caps)) => {
            high.edits.push(edit);
            let filter = security::own_filter(ctx.spec, &bounding(ctx.spec), &caps);
            high.edits.extend(filter);
            caps
        }
        None => bounding(ctx.spec),
    };
    let options = security::options(flags, ctx.spec, &caps, host, &mut high.warnings)?;
    high.edits.extend(options);
    let limits = limits::edits(flags, ctx.spec, host, &mut high.warnings)?;
    high.edits.extend(limits);
    sysctls(flags, ctx.spec, &mut high.edits)?;
    annotations(flags, ctx.id, &mut high.edits)?;
    Ok(high)
}

fn bounding(spec: &Spec) -> Capabilities {
    let caps = spec
        .process()
        .as_ref()
        .and_then(|p| p.capabilities().as_ref());
    caps.and_then(|c| c.bounding().clone()).unwrap_or_default()
}

/// The user the cell will have, with the edits that make it so.
fn user(flags: &Flags, spec: &Spec, host: &dyn Host, out: &mut Vec<Edit>) -> Result<Resolved> {
    let old = spec.process().as_ref().map(Process::user);
    let mut user = Resolved {
        uid: old.map_or(0, |u| u.uid()),
        gid: old.map_or(0, |u| u.gid()),
        groups: old
            .and_then(|u| u.additional_gids().clone())
            .unwrap_or_default(),
        ..Resolved::default()
    };
    if flags.user.is_none() && flags.group_add.is_empty() {
        return Ok(user);
    }
    let group = host.root_file("/etc/group")?.unwrap_or_default();
    if let Some(text) = &flags.user {
        let passwd = host.root_file("/etc/passwd")?.unwrap_or_default();
        let old_home = user::home_of(user.uid, &passwd).map(str::to_owned);
        user = user::resolve(text, &passwd, &group)?;
        // The primary group is listed too: without it a process could drop it and slip past a deny
        // entry for the group (CVE-2022-36109).
        let primary = user.gid;
        user.groups.retain(|gid| *gid != primary);
        user.groups.insert(0, primary);
        let reason = format!("-u {text}");
        out.push(Edit::new(
            reason.clone(),
            Change::User {
                uid: user.uid,
                gid: user.gid,
                additional_gids: user.groups.clone(),
            },
        ));
        // A HOME that is the old user's own is not the new user's.
        let env = spec.process().as_ref().and_then(|p| p.env().as_ref());
        let now = env.and_then(|e| e.iter().find_map(|v| v.strip_prefix("HOME=")));
        if let Some(now) = now
            && Some(now) == old_home.as_deref()
        {
            let home = user.home.clone().unwrap_or_else(|| "/".to_owned());
            if home != now {
                out.push(Edit::new(reason, Change::Env(format!("HOME={home}"))));
            }
        }
    }
    for name in &flags.group_add {
        let gid = user::find_group(name, &group)?;
        // The edit of CDI leaves 0 out; group 0 asked for by name is meant.
        if !user.groups.contains(&gid) {
            user.groups.push(gid);
        }
        out.push(Edit::new(
            format!("--group-add {name}"),
            Change::User {
                uid: user.uid,
                gid: user.gid,
                additional_gids: user.groups.clone(),
            },
        ));
    }
    Ok(user)
}

fn process(
    flags: &Flags,
    ctx: &Context<'_>,
    user: &Resolved,
    host: &dyn Host,
    out: &mut Vec<Edit>,
) -> Result<()> {
    args(flags, ctx, host, out)?;
    if let Some(dir) = &flags.workdir {
        if !Path::new(dir).is_absolute() {
            return Err(Error::msg(format!(
                "the working directory '{dir}' is invalid, it needs to be an absolute path"
            )));
        }
        out.push(Edit::new(
            format!("-w {dir}"),
            Change::Cwd(PathBuf::from(dir)),
        ));
    }
    environment(flags, ctx, user, host, out)?;
    let terminal = ctx.spec.process().as_ref().and_then(Process::terminal);
    if flags.tty != terminal.unwrap_or(false) {
        // Whether there is a terminal is the caller's choice, not the bundle's, as with Docker.
        let reason = if flags.tty { "-t" } else { "no -t" };
        out.push(Edit::new(reason, Change::Terminal(flags.tty)));
    }
    if let Some(text) = &flags.console_size {
        let parsed = text.split_once('x');
        let parsed = parsed.and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
        let (width, height): (u16, u16) = parsed
            .ok_or_else(|| invalid(text, "--console-size", "COLUMNSxROWS is expected, as 80x24"))?;
        out.push(Edit::new(
            format!("--console-size {text}"),
            Change::ConsoleSize {
                height: height.into(),
                width: width.into(),
            },
        ));
    }
    if let Some(text) = &flags.umask {
        let mask = u32::from_str_radix(text, 8).ok().filter(|m| *m <= 0o777);
        let mask = mask.ok_or_else(|| invalid(text, "--umask", "an octal mask is expected"))?;
        out.push(Edit::new(format!("--umask {text}"), Change::Umask(mask)));
    }
    for text in &flags.ulimit {
        let limit = units::ulimit(text).map_err(|why| invalid(text, "--ulimit", why))?;
        out.push(Edit::new(format!("--ulimit {text}"), Change::Rlimit(limit)));
    }
    if let Some(adj) = flags.oom_score_adj {
        let value = i32::try_from(adj)
            .ok()
            .filter(|a| (-1000..=1000).contains(a));
        let value = value.ok_or_else(|| {
            Error::msg(format!(
                "Invalid value {adj}, range for oom score adj is [-1000, 1000]"
            ))
        })?;
        let reason = format!("--oom-score-adj {adj}");
        out.push(Edit::new(reason, Change::OomScoreAdj(value)));
    }
    Ok(())
}

/// The command: entrypoint and words as Docker joins them, behind an init when asked.
fn args(flags: &Flags, ctx: &Context<'_>, host: &dyn Host, out: &mut Vec<Edit>) -> Result<()> {
    let old = ctx.spec.process().as_ref().and_then(|p| p.args().clone());
    let mut args: Vec<String> = Vec::new();
    match (&flags.entrypoint, ctx.entrypoint) {
        // An entrypoint of one's own drops the image's command too; an empty one only resets it.
        (Some(entry), _) => args.extend((!entry.is_empty()).then(|| entry.clone())),
        (None, Some(entry)) if !ctx.command.is_empty() => args.extend(entry.iter().cloned()),
        (None, _) if ctx.command.is_empty() => args = old.clone().unwrap_or_default(),
        (None, _) => {}
    }
    args.extend(ctx.command.iter().cloned());
    if args.is_empty() {
        return Err(Error::msg("no command specified"));
    }
    if args.iter().any(|a| a.contains('\0')) {
        return Err(Error::msg("the command holds a NUL byte"));
    }
    let mut reason = match &flags.entrypoint {
        Some(entry) => format!("--entrypoint {entry}"),
        None => "command line".to_owned(),
    };
    if flags.init {
        let source = host.find_init()?;
        let mut mount = Mount::default();
        let options = ["bind", "rprivate", "ro", "nosuid", "nodev"];
        mount
            .set_destination(PathBuf::from(INIT))
            .set_source(Some(source))
            .set_typ(Some("bind".to_owned()))
            .set_options(Some(options.map(str::to_owned).to_vec()));
        out.push(Edit::new("--init", Change::Mount(mount)));
        args.splice(0..0, [INIT.to_owned(), "--".to_owned()]);
        reason = "--init".to_owned();
    }
    if old.as_ref() != Some(&args) {
        out.push(Edit::new(reason, Change::Args(args)));
    }
    Ok(())
}

fn environment(
    flags: &Flags,
    ctx: &Context<'_>,
    user: &Resolved,
    host: &dyn Host,
    out: &mut Vec<Edit>,
) -> Result<()> {
    let old = ctx.spec.process().as_ref().and_then(|p| p.env().clone());
    let old = old.unwrap_or_default();
    let asked = env::variables(flags, host)?;
    let has = |key: &str| {
        let is = |pair: &String| pair.split('=').next() == Some(key);
        old.iter().any(is) || asked.iter().any(|(_, pair)| is(pair))
    };
    // What dockerd sets when the image and the user don't (moby `CreateDaemonEnvironment`).
    if !has("PATH") {
        out.push(Edit::new("default", Change::Env(PATH.to_owned())));
    }
    if flags.tty && !has("TERM") {
        out.push(Edit::new("-t", Change::Env("TERM=xterm".to_owned())));
    }
    if ctx.entrypoint.is_some() && !has("HOSTNAME") {
        let name = namespaces::hostname(flags, ctx.spec, ctx.id, host);
        let name = name.unwrap_or_else(|| host.hostname());
        out.push(Edit::new(
            "default",
            Change::Env(format!("HOSTNAME={name}")),
        ));
    }
    if let Some(home) = user.home.as_deref().filter(|_| !has("HOME")) {
        let change = Change::Env(format!("HOME={home}"));
        out.push(Edit::new("default: the user's home", change));
    }
    out.extend(
        asked
            .into_iter()
            .map(|(why, pair)| Edit::new(why, Change::Env(pair))),
    );
    Ok(())
}

/// /dev/shm: `--shm-size`, else the memory limit, else what the bundle says. Docker's 64m is too small
/// for the shared memory of data loaders (PyTorch), and pages of a tmpfs count against the memory limit
/// anyway. A size of the bundle's own, other than the customary 64m, stays.
fn shm(flags: &Flags, spec: &Spec, out: &mut Vec<Edit>) -> Result<()> {
    if matches!(flags.ipc.as_deref(), Some("host" | "none")) {
        return Ok(());
    }
    let old = spec.mounts().iter().flatten();
    let old = old
        .clone()
        .find(|m| same_path(m.destination(), Path::new("/dev/shm")));
    let size_of = |m: &Mount| {
        let options = m.options().iter().flatten();
        options
            .clone()
            .find_map(|o| o.strip_prefix("size=").map(str::to_owned))
    };
    let (size, reason) = match &flags.shm_size {
        Some(text) => {
            let bytes = units::bytes(text).map_err(|why| invalid(text, "--shm-size", why))?;
            if bytes == 0 {
                return Err(Error::msg("SHM size can not be less than 0"));
            }
            (bytes, format!("--shm-size {text}"))
        }
        None => {
            let customary = |s: &String| matches!(s.as_str(), "65536k" | "64m" | "67108864");
            let tmpfs = |m: &&Mount| m.typ().as_deref() == Some("tmpfs");
            let Some(old) = old.filter(tmpfs) else {
                return Ok(());
            };
            match limits::memory_limit(flags, spec)? {
                Some(limit) if size_of(old).as_ref().is_none_or(customary) => {
                    (limit, "default: the memory limit".to_owned())
                }
                _ => return Ok(()),
            }
        }
    };
    let mut options: Vec<String> = match old.and_then(|m| m.options().clone()) {
        Some(options) => options,
        None => ["nosuid", "noexec", "nodev", "mode=1777"]
            .map(str::to_owned)
            .to_vec(),
    };
    options.retain(|o| !o.starts_with("size="));
    options.push(format!("size={size}"));
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from("/dev/shm"))
        .set_source(Some(PathBuf::from("shm")))
        .set_typ(Some("tmpfs".to_owned()))
        .set_options(Some(options));
    out.push(Edit::new(reason, Change::Mount(mount)));
    Ok(())
}

fn mounts(
    flags: &Flags,
    ctx: &Context<'_>,
    user: &Resolved,
    host: &dyn Host,
    high: &mut High,
) -> Result<()> {
    let linux = ctx.spec.linux().as_ref();
    let ids = CellIds {
        uid: on_host(user.uid, linux.and_then(|l| l.uid_mappings().as_ref())),
        gid: on_host(user.gid, linux.and_then(|l| l.gid_mappings().as_ref())),
    };
    let mut own = Vec::new();
    for asked in mounts::all(flags, ids, host)? {
        high.volumes.extend(asked.volume);
        own.push(Edit::new(asked.reason, Change::Mount(asked.mount)));
    }
    let name = namespaces::hostname(flags, ctx.spec, ctx.id, host);
    let name = name.or_else(|| Some(host.hostname()));
    let host_network = namespaces::network_is_host(flags, ctx.spec);
    let (files, edits) = files::all(
        flags,
        ctx.spec,
        &own,
        ctx.dir,
        name.as_deref(),
        host_network,
        host,
    )?;
    high.files = files;
    high.edits.extend(edits);
    high.edits.extend(own);
    Ok(())
}

/// An id of the cell as the host sees it, through the user namespace's mappings.
fn on_host(id: u32, mappings: Option<&Vec<LinuxIdMapping>>) -> u32 {
    let found = mappings.into_iter().flatten().find_map(|m| {
        let offset = id.checked_sub(m.container_id())?;
        (offset < m.size()).then(|| m.host_id().checked_add(offset))?
    });
    found.unwrap_or(id)
}

fn sysctls(flags: &Flags, spec: &Spec, out: &mut Vec<Edit>) -> Result<()> {
    for text in &flags.sysctl {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => (key.replace('/', "."), value.to_owned()),
            _ => return Err(invalid(text, "--sysctl", "KEY=VALUE is expected")),
        };
        if key.starts_with("net.") && namespaces::network_is_host(flags, spec) {
            return Err(Error::msg(format!(
                "sysctl {key:?} not allowed in host network namespace"
            )));
        }
        let reason = format!("--sysctl {text}");
        out.push(Edit::new(reason, Change::Sysctl { key, value }));
    }
    Ok(())
}

fn annotations(flags: &Flags, id: &str, out: &mut Vec<Edit>) -> Result<()> {
    let mut add = |reason: String, key: &str, value: &str| {
        let (key, value) = (key.to_owned(), value.to_owned());
        out.push(Edit::new(reason, Change::Annotation { key, value }));
    };
    for text in &flags.annotation {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                add(format!("--annotation {text}"), key, value);
            }
            _ => return Err(invalid(text, "--annotation", "KEY=VALUE is expected")),
        }
    }
    for text in &flags.label {
        // A Docker label may have no value.
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if key.is_empty() {
            let why = format!("invalid label format: {text:?}");
            return Err(invalid(text, "-l, --label", why));
        }
        add(format!("--label {text}"), key, value);
    }
    if let Some(name) = &flags.stop_signal {
        let bare = name.strip_prefix("SIG").unwrap_or(name);
        let known = format!("SIG{}", bare.to_ascii_uppercase()).parse::<nix::sys::signal::Signal>();
        let number = bare.parse::<u8>().is_ok_and(|n| (1..=64).contains(&n));
        if known.is_err() && !number && !bare.to_ascii_uppercase().starts_with("RTM") {
            return Err(Error::msg(format!("invalid signal: {name}")));
        }
        // image-spec, conversion.md: the annotation of Config.StopSignal
        let key = "org.opencontainers.image.stopSignal";
        add(format!("--stop-signal {name}"), key, name);
    }
    if let Some(parent) = &flags.cgroup_parent {
        if parent.is_empty() || parent.split('/').any(|p| p == "..") {
            return Err(invalid(
                parent,
                "--cgroup-parent",
                "a cgroup path is expected",
            ));
        }
        // A slice is systemd's (slice:prefix:name), anything else a path.
        let path = match parent.ends_with(".slice") {
            true => PathBuf::from(format!("{parent}:gpucell:{id}")),
            false => Path::new(parent).join(id),
        };
        out.push(Edit::new(
            format!("--cgroup-parent {parent}"),
            Change::CgroupsPath(path),
        ));
    }
    Ok(())
}

/// A warning when the program will see more CPUs than its quota is worth: thread pools size themselves
/// by what they see, and then wait on each other. `spec` has the edits in it.
pub fn thread_warning(spec: &Spec, host: &dyn Host) -> Option<String> {
    let nano = limits::quota_nano(spec)?;
    let env = spec.process().as_ref().and_then(|p| p.env().as_ref());
    if env.is_some_and(|e| e.iter().any(|v| v.starts_with("OMP_NUM_THREADS="))) {
        return None;
    }
    let set = spec
        .linux()
        .as_ref()
        .and_then(|l| l.resources().as_ref())
        .and_then(|r| r.cpu().as_ref())
        .and_then(|c| c.cpus().as_deref())
        .and_then(|text| units::list(text).ok());
    let mut seen = host.cpus();
    if let Some(set) = set.filter(|s| !s.is_empty()) {
        seen.retain(|cpu| set.contains(cpu));
    }
    let count = u64::try_from(seen.len()).ok()?;
    if count.saturating_mul(NANO) <= nano {
        return None;
    }
    let threads = nano.div_ceil(NANO);
    let first = seen
        .into_iter()
        .take(usize::try_from(threads).ok()?)
        .collect();
    let (whole, part) = (nano / NANO, nano % NANO / (NANO / 100));
    Some(format!(
        "the program sees {count} CPUs and may use the time of {whole}.{part:02}: size its thread \
         pools, as with -e OMP_NUM_THREADS={threads}, or bind it with --cpuset-cpus {}",
        limits::list_text(&first)
    ))
}
