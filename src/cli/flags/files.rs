//! The three files of /etc that Docker fills in: resolv.conf, hosts, hostname.
//!
//! Text only: the command writes them in the cell's own folder, and they are bind mounted. A file that
//! the bundle or the user mounts already is left alone.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use super::{Flags, Host, invalid};
use crate::spec::edit::{Change, Edit, same_path};
use crate::{Error, Result};

/// A file made for one cell.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EtcFile {
    /// Its name in the cell's folder.
    pub name: &'static str,
    /// Its text.
    pub text: String,
}

/// What docker writes when there is no host network (moby `libnetwork/etchosts`).
const HOSTS: &str = "127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::\tip6-localnet\n\
    ff00::\tip6-mcastprefix\n\
    ff02::1\tip6-allnodes\n\
    ff02::2\tip6-allrouters\n";

/// The files, and the edits that mount them from `dir`.
pub(super) fn all(
    flags: &Flags,
    spec: &Spec,
    mounted: &[Edit],
    dir: &Path,
    hostname: Option<&str>,
    host_network: bool,
    host: &dyn Host,
) -> Result<(Vec<EtcFile>, Vec<Edit>)> {
    let hosts = hosts(flags, hostname, host_network, host)?;
    let resolv = resolv_conf(flags, host)?;
    let asked = !flags.add_host.is_empty()
        || !flags.dns.is_empty()
        || !flags.dns_search.is_empty()
        || !flags.dns_option.is_empty();
    // A root without /etc has no use for them, and mount points would be left in it.
    if !asked && !host.root_has("/etc") {
        return Ok((Vec::new(), Vec::new()));
    }
    let name = hostname.map(|h| format!("{h}\n"));
    let files = [
        ("/etc/resolv.conf", "resolv.conf", resolv),
        ("/etc/hosts", "hosts", Some(hosts)),
        ("/etc/hostname", "hostname", name),
    ];
    let taken = |path: &str| {
        let path = Path::new(path);
        let old = spec.mounts().iter().flatten().map(Mount::destination);
        let new = mounted.iter().filter_map(|e| match &e.change {
            Change::Mount(m) => Some(m.destination()),
            _ => None,
        });
        old.chain(new)
            .any(|d| same_path(d, path) || same_path(d, Path::new("/etc")))
    };
    let mut out = Vec::new();
    let mut edits = Vec::new();
    for (path, name, text) in files {
        let Some(text) = text.filter(|_| !taken(path)) else {
            continue;
        };
        out.push(EtcFile { name, text });
        let mut mount = Mount::default();
        mount
            .set_destination(PathBuf::from(path))
            .set_source(Some(dir.join(name)))
            .set_typ(Some("bind".to_owned()))
            .set_options(Some(vec!["bind".to_owned(), "rprivate".to_owned()]));
        let reason = format!("default: {path} as Docker fills it in");
        edits.push(Edit::new(reason, Change::Mount(mount)));
    }
    Ok((out, edits))
}

/// With the host's network the host's own file, else the usual lines; the cell's name when it isn't
/// there; then `--add-host`.
fn hosts(
    flags: &Flags,
    hostname: Option<&str>,
    host_network: bool,
    host: &dyn Host,
) -> Result<String> {
    let mut text = match host_network {
        true => host
            .read(Path::new("/etc/hosts"))
            .unwrap_or_else(|_| HOSTS.to_owned()),
        false => HOSTS.to_owned(),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if let Some(name) = hostname.filter(|n| !names_host(&text, n)) {
        // 127.0.1.1: Debian's address for a machine's own name without a fixed one (Debian
        // reference, 5.1.1).
        let address = if host_network {
            "127.0.1.1"
        } else {
            "127.0.0.1"
        };
        text.push_str(&format!("{address}\t{name}\n"));
    }
    for entry in &flags.add_host {
        let bad = || {
            invalid(
                entry,
                "--add-host",
                format!("bad format for add-host: {entry:?}"),
            )
        };
        let (name, address) = entry.split_once([':', '=']).ok_or_else(bad)?;
        let address = address.trim_start_matches('[').trim_end_matches(']');
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(bad());
        }
        if address.parse::<std::net::IpAddr>().is_err() {
            return Err(invalid(
                entry,
                "--add-host",
                format!("invalid IP address in add-host: {address:?}"),
            ));
        }
        text.push_str(&format!("{address}\t{name}\n"));
    }
    Ok(text)
}

fn names_host(text: &str, name: &str) -> bool {
    text.lines().any(|line| {
        let line = line.split('#').next().unwrap_or_default();
        line.split_whitespace().skip(1).any(|word| word == name)
    })
}

/// The host's file with what the flags replace (moby `libnetwork/resolvconf`): each of name servers,
/// search domains and options wholly.
fn resolv_conf(flags: &Flags, host: &dyn Host) -> Result<Option<String>> {
    for server in &flags.dns {
        if server.parse::<std::net::IpAddr>().is_err() {
            let why = format!("{server} is not an ip address");
            return Err(invalid(server, "--dns", why));
        }
    }
    for word in flags.dns_search.iter().chain(&flags.dns_option) {
        if word.contains(char::is_whitespace) {
            return Err(Error::msg(format!("{word:?} holds a blank")));
        }
    }
    let text = match host.read(Path::new("/etc/resolv.conf")) {
        Ok(text) => text,
        Err(_) if flags.dns.is_empty() => return Ok(None),
        Err(_) => String::new(),
    };
    if flags.dns.is_empty() && flags.dns_search.is_empty() && flags.dns_option.is_empty() {
        return Ok(Some(text));
    }
    let replaced = |line: &str| match line.split_whitespace().next() {
        Some("nameserver") => !flags.dns.is_empty(),
        Some("search" | "domain") => !flags.dns_search.is_empty(),
        Some("options") => !flags.dns_option.is_empty(),
        _ => false,
    };
    let mut out = String::new();
    for line in text.lines().filter(|l| !replaced(l)) {
        out.push_str(line);
        out.push('\n');
    }
    for server in &flags.dns {
        out.push_str(&format!("nameserver {server}\n"));
    }
    // `--dns-search .` means none, as in Docker.
    if !flags.dns_search.is_empty() && flags.dns_search != ["."] {
        out.push_str(&format!("search {}\n", flags.dns_search.join(" ")));
    }
    if !flags.dns_option.is_empty() {
        out.push_str(&format!("options {}\n", flags.dns_option.join(" ")));
    }
    Ok(Some(out))
}
