//! An edit in words, one line each, for `gpucell explain`.

use std::fmt;
use std::path::Path;

use oci_spec::runtime::{LinuxCapabilities, LinuxCpu, LinuxMemory, Mount};

use super::{Change, DeviceNode, NamespaceFrom, Throttle};

impl fmt::Display for Change {
    /// `+` adds, `-` removes, `=` sets; then the object and its value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Env(pair) => write!(f, "+ env {pair}"),
            Change::Device(node) => device(f, node),
            Change::Mount(m) => mount(f, m),
            Change::Hook { stage, hook } => {
                write!(f, "+ hook {stage:?} {}", hook.path().display())?;
                let mut words = hook.args().iter().flatten().skip(1);
                words.try_for_each(|word| write!(f, " {word}"))
            }
            Change::IntelRdt(_) => f.write_str("= intelRdt"),
            Change::AdditionalGids(gids) => write!(f, "+ groups {gids:?}"),
            Change::NetDevice(dev) => write!(f, "+ net device {}", dev.host_interface_name),
            Change::Unmount(dest) => write!(f, "- mount {}", dest.display()),
            Change::DeviceRule(rule) => {
                let sign = if rule.allow() { "allow" } else { "deny" };
                write!(f, "+ device rule {sign} {rule}")
            }
            Change::Args(args) => write!(f, "= command {args:?}"),
            Change::Cwd(cwd) => write!(f, "= working directory {}", cwd.display()),
            Change::User {
                uid,
                gid,
                additional_gids,
            } => {
                write!(f, "= user {uid}:{gid}")?;
                if additional_gids.is_empty() {
                    return Ok(());
                }
                write!(f, " groups {additional_gids:?}")
            }
            Change::Umask(mask) => write!(f, "= umask {mask:04o}"),
            Change::Terminal(on) => write!(f, "= terminal {on}"),
            Change::ConsoleSize { height, width } => write!(f, "= console {width}x{height}"),
            Change::Capabilities(caps) => capabilities(f, caps),
            Change::Rlimit(l) => {
                let name = l.typ().to_string();
                let name = name.strip_prefix("RLIMIT_").unwrap_or(&name);
                write!(f, "= ulimit {} ", name.to_lowercase())?;
                limit(f, l.soft())?;
                f.write_str(":")?;
                limit(f, l.hard())
            }
            Change::NoNewPrivileges(on) => write!(f, "= no_new_privs {on}"),
            Change::Apparmor(Some(profile)) => write!(f, "= apparmor {profile}"),
            Change::Apparmor(None) => f.write_str("- apparmor profile"),
            Change::Selinux {
                process: Some(label),
                ..
            } => write!(f, "= selinux label {label}"),
            Change::Selinux { .. } => f.write_str("- selinux labels"),
            Change::Seccomp(Some(_)) => f.write_str("= seccomp filter"),
            Change::Seccomp(None) => f.write_str("- seccomp filter"),
            Change::OomScoreAdj(adj) => write!(f, "= oom_score_adj {adj}"),
            Change::Hostname(Some(name)) => write!(f, "= hostname {name}"),
            Change::Hostname(None) => f.write_str("- hostname"),
            Change::Domainname(Some(name)) => write!(f, "= domainname {name}"),
            Change::Domainname(None) => f.write_str("- domainname"),
            Change::Namespace { typ, from } => match from {
                NamespaceFrom::New => write!(f, "+ namespace {typ} (new)"),
                NamespaceFrom::Host => write!(f, "- namespace {typ} (the host's is used)"),
                NamespaceFrom::Path(p) => write!(f, "+ namespace {typ} {}", p.display()),
            },
            Change::RootReadonly(on) => write!(f, "= read-only root {on}"),
            Change::RootPath(path) => write!(f, "= rootfs {}", path.display()),
            Change::Unmask => f.write_str("- masked and read-only paths"),
            Change::Memory(memory) => memory_line(f, memory),
            Change::Cpu(cpu) => cpu_line(f, cpu),
            Change::Pids(limit) => write!(f, "= pids limit {limit}"),
            Change::BlkioWeight(weight) => write!(f, "= blkio weight {weight}"),
            Change::BlkioWeightDevice(d) => write!(
                f,
                "= blkio weight {}:{} {}",
                d.major(),
                d.minor(),
                d.weight().unwrap_or(0)
            ),
            Change::Throttle { which, device } => {
                let what = match which {
                    Throttle::ReadBps => "read bytes/s",
                    Throttle::WriteBps => "write bytes/s",
                    Throttle::ReadIops => "read IO/s",
                    Throttle::WriteIops => "write IO/s",
                };
                let (major, minor) = (device.major(), device.minor());
                write!(f, "= {what} {major}:{minor} {}", device.rate())
            }
            Change::Hugepage(l) => write!(f, "= huge pages {} {} bytes", l.page_size(), l.limit()),
            Change::Unified { key, value } => write!(f, "= {key} {value}"),
            Change::Sysctl { key, value } => write!(f, "= sysctl {key}={value}"),
            Change::Annotation { key, value } => write!(f, "+ annotation {key}={value}"),
            Change::CgroupsPath(path) => write!(f, "= cgroups path {}", path.display()),
        }
    }
}

fn device(f: &mut fmt::Formatter<'_>, node: &DeviceNode) -> fmt::Result {
    write!(f, "+ device {}", node.path.display())?;
    if let Some(host) = &node.host_path
        && *host != node.path
    {
        write!(f, " from {}", host.display())?;
    }
    if let (Some(typ), Some(major), Some(minor)) = (node.typ, node.major, node.minor) {
        write!(f, " {} {major}:{minor}", typ.as_str())?;
    }
    write!(f, " {}", node.permissions.as_deref().unwrap_or("rwm"))
}

fn mount(f: &mut fmt::Formatter<'_>, m: &Mount) -> fmt::Result {
    let typ = m.typ().as_deref().unwrap_or("bind");
    write!(f, "+ mount {} {typ}", m.destination().display())?;
    if let Some(source) = m.source().as_deref().filter(|s| *s != Path::new(typ)) {
        write!(f, " from {}", source.display())?;
    }
    if let Some(options) = m.options().as_ref().filter(|o| !o.is_empty()) {
        write!(f, " {}", options.join(","))?;
    }
    for (what, maps) in [("uid", m.uid_mappings()), ("gid", m.gid_mappings())] {
        for map in maps.iter().flatten() {
            write!(
                f,
                " {what} {} shown as {}",
                map.container_id(),
                map.host_id()
            )?;
            if map.size() > 1 {
                write!(f, " ({} ids)", map.size())?;
            }
        }
    }
    Ok(())
}

fn capabilities(f: &mut fmt::Formatter<'_>, caps: &LinuxCapabilities) -> fmt::Result {
    let mut names: Vec<String> = caps
        .bounding()
        .iter()
        .flatten()
        .map(|cap| format!("CAP_{cap}"))
        .collect();
    names.sort_unstable();
    if names.is_empty() {
        return f.write_str("= capabilities none");
    }
    write!(f, "= capabilities {}", names.join(" "))?;
    if caps.effective().iter().flatten().next().is_none() {
        f.write_str(" (bounding only: the user is not root)")?;
    }
    Ok(())
}

fn limit(f: &mut fmt::Formatter<'_>, value: u64) -> fmt::Result {
    // RLIM_INFINITY (getrlimit(2))
    if value == u64::MAX {
        f.write_str("unlimited")
    } else {
        write!(f, "{value}")
    }
}

fn memory_line(f: &mut fmt::Formatter<'_>, m: &LinuxMemory) -> fmt::Result {
    f.write_str("= memory")?;
    for (name, value) in [
        ("limit", m.limit()),
        ("memory+swap", m.swap()),
        ("reservation", m.reservation()),
    ] {
        match value {
            Some(-1) => write!(f, " {name} unlimited")?,
            Some(bytes) => write!(f, " {name} {bytes}")?,
            None => {}
        }
    }
    if let Some(value) = m.swappiness() {
        write!(f, " swappiness {value}")?;
    }
    if m.disable_oom_killer() == Some(true) {
        f.write_str(" without the OOM killer")?;
    }
    Ok(())
}

fn cpu_line(f: &mut fmt::Formatter<'_>, c: &LinuxCpu) -> fmt::Result {
    f.write_str("= cpu")?;
    if let Some(quota) = c.quota() {
        write!(f, " quota {quota} us")?;
    }
    if let Some(period) = c.period() {
        write!(f, " period {period} us")?;
    }
    if let Some(shares) = c.shares() {
        write!(f, " shares {shares}")?;
    }
    if let Some(cpus) = c.cpus() {
        write!(f, " on CPUs {cpus}")?;
    }
    if let Some(mems) = c.mems() {
        write!(f, " on memory nodes {mems}")?;
    }
    Ok(())
}
