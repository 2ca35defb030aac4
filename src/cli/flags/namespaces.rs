//! `--network`, `--pid`, `--ipc`, `--uts`, `--cgroupns`, host and domain name.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType as Ns, Mount, Spec};

use super::{Flags, Host};
use crate::spec::edit::{Change, Edit, NamespaceFrom};
use crate::{Error, Result};

/// Whether the Spec gives the cell a namespace of its own (new or by path).
pub(super) fn has(spec: &Spec, typ: Ns) -> bool {
    let list = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    list.is_some_and(|l| l.iter().any(|n| n.typ() == typ))
}

/// What the flags make of one namespace.
enum Mode {
    Keep,
    Set(NamespaceFrom),
}

/// Reads a mode: `host`, one of the names for a new namespace, `container:NAME`.
fn mode(
    flag: &str,
    text: Option<&str>,
    new: &[&str],
    file: Option<&str>,
    host: &dyn Host,
) -> Result<Mode> {
    let Some(text) = text else {
        return Ok(Mode::Keep);
    };
    if text == "host" {
        return Ok(Mode::Set(NamespaceFrom::Host));
    }
    if new.contains(&text) {
        return Ok(Mode::Set(NamespaceFrom::New));
    }
    if let (Some(file), Some(name)) = (file, text.strip_prefix("container:")) {
        let path = host.namespace_of(name, file)?;
        return Ok(Mode::Set(NamespaceFrom::Path(path)));
    }
    let other = if file.is_some() {
        ", container:NAME"
    } else {
        ""
    };
    Err(Error::msg(format!(
        "invalid {flag} mode {text:?}: host, {}{other} are possible",
        new.join(", ")
    )))
}

/// The edits of all namespaces, host and domain name.
pub(super) fn edits(flags: &Flags, spec: &Spec, id: &str, host: &dyn Host) -> Result<Vec<Edit>> {
    let mut out = Vec::new();
    let mut set = |typ, flag: &str, text: &Option<String>, mode: Mode| {
        if let (Mode::Set(from), Some(text)) = (mode, text) {
            let change = Change::Namespace { typ, from };
            out.push(Edit::new(format!("{flag} {text}"), change));
        }
    };
    let network = flags.network.as_deref();
    if network.is_some_and(|n| n == "bridge" || n == "default") {
        return Err(Error::unsupported(
            "--network bridge",
            "gpucell makes no bridges: use host, none, or container:NAME",
        ));
    }
    let m = mode("--network", network, &["none"], Some("net"), host)?;
    set(Ns::Network, "--network", &flags.network, m);
    let m = mode(
        "--pid",
        flags.pid.as_deref(),
        &["private"],
        Some("pid"),
        host,
    )?;
    set(Ns::Pid, "--pid", &flags.pid, m);
    let new_ipc = ["private", "shareable", "none"];
    let m = mode("--ipc", flags.ipc.as_deref(), &new_ipc, Some("ipc"), host)?;
    set(Ns::Ipc, "--ipc", &flags.ipc, m);
    let m = mode("--uts", flags.uts.as_deref(), &["private"], None, host)?;
    set(Ns::Uts, "--uts", &flags.uts, m);
    let m = mode(
        "--cgroupns",
        flags.cgroupns.as_deref(),
        &["private"],
        None,
        host,
    )?;
    set(Ns::Cgroup, "--cgroupns", &flags.cgroupns, m);
    ipc_mounts(flags, host, &mut out)?;
    names(flags, spec, id, host, &mut out)?;
    Ok(out)
}

/// The host's IPC objects are reached through two mounts as well; `none` has no /dev/shm.
fn ipc_mounts(flags: &Flags, host: &dyn Host, out: &mut Vec<Edit>) -> Result<()> {
    let Some(mode @ ("host" | "none")) = flags.ipc.as_deref() else {
        return Ok(());
    };
    if flags.shm_size.is_some() {
        return Err(Error::msg(format!(
            "conflicting options: --shm-size and --ipc {mode}"
        )));
    }
    let reason = format!("--ipc {mode}");
    if mode == "none" {
        out.push(Edit::new(reason, Change::Unmount("/dev/shm".into())));
        return Ok(());
    }
    for path in ["/dev/shm", "/dev/mqueue"] {
        // Not every host mounts its message queues; the bundle's own mount then shows them, since
        // the file system goes with the IPC namespace (mq_overview(7)).
        if host.owner(Path::new(path)).is_err() {
            continue;
        }
        let options = ["rbind", "rprivate", "nosuid", "noexec", "nodev"];
        let mut mount = Mount::default();
        mount
            .set_destination(PathBuf::from(path))
            .set_source(Some(Path::new(path).to_owned()))
            .set_typ(Some("bind".to_owned()))
            .set_options(Some(options.map(str::to_owned).to_vec()));
        out.push(Edit::new(reason.clone(), Change::Mount(mount)));
    }
    Ok(())
}

/// The host name the cell will have: the flag's, the bundle's, the host's with the host's network
/// (Docker does so), else the cell's own name. `None` when it shares the host's UTS namespace.
pub(super) fn hostname(flags: &Flags, spec: &Spec, id: &str, host: &dyn Host) -> Option<String> {
    if flags.uts.as_deref() == Some("host") {
        return None;
    }
    if let Some(name) = &flags.hostname {
        return Some(name.clone());
    }
    if !has(spec, Ns::Uts) && flags.uts.is_none() {
        return None;
    }
    let bundle = spec.hostname().clone().filter(|h| !h.is_empty());
    bundle.or_else(|| match network_is_host(flags, spec) {
        true => Some(host.hostname()),
        false => Some(id.to_owned()),
    })
}

/// Whether the cell shares the host's network.
pub(super) fn network_is_host(flags: &Flags, spec: &Spec) -> bool {
    match flags.network.as_deref() {
        Some(mode) => mode == "host",
        None => !has(spec, Ns::Network),
    }
}

fn names(flags: &Flags, spec: &Spec, id: &str, host: &dyn Host, out: &mut Vec<Edit>) -> Result<()> {
    let shared = flags.uts.as_deref() == Some("host");
    if shared && (flags.hostname.is_some() || flags.domainname.is_some()) {
        return Err(Error::msg("conflicting options: hostname and the UTS mode"));
    }
    if shared {
        for (old, change) in [
            (spec.hostname(), Change::Hostname(None)),
            (spec.domainname(), Change::Domainname(None)),
        ] {
            if old.is_some() {
                out.push(Edit::new("--uts host", change));
            }
        }
        return Ok(());
    }
    if let Some(name) = &flags.hostname {
        check_hostname(name)?;
    }
    let wanted = flags.hostname.is_some() || flags.domainname.is_some();
    if wanted && !has(spec, Ns::Uts) && flags.uts.is_none() {
        let change = Change::Namespace {
            typ: Ns::Uts,
            from: NamespaceFrom::New,
        };
        out.push(Edit::new("--hostname", change));
    }
    let old = spec.hostname().as_deref().filter(|h| !h.is_empty());
    if let Some(name) = hostname(flags, spec, id, host)
        && Some(name.as_str()) != old
        && !name.is_empty()
    {
        let reason = match (&flags.hostname, network_is_host(flags, spec)) {
            (Some(text), _) => format!("--hostname {text}"),
            (None, true) => "default: the host's".to_owned(),
            (None, false) => "default: the cell's name".to_owned(),
        };
        out.push(Edit::new(reason, Change::Hostname(Some(name))));
    }
    if let Some(name) = &flags.domainname {
        let reason = format!("--domainname {name}");
        out.push(Edit::new(reason, Change::Domainname(Some(name.clone()))));
    }
    Ok(())
}

/// sethostname(2): at most 64 bytes; RFC 1123 letters, digits, dash, dot, as docker/cli checks.
fn check_hostname(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
    if name.is_empty() || name.len() > 64 || name.starts_with('-') || !name.chars().all(good) {
        return Err(Error::msg(format!("invalid hostname format: {name}")));
    }
    Ok(())
}
