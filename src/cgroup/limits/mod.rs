//! From `linux.resources` to a list of file writes, as data.
//!
//! Owns which file takes which value in which order, for v2 (`v2`) and v1 (`v1`). Reads nothing
//! but what it is given (an update passes the group's present values), writes nothing.
//!
//! Zero and default values count as unset, as in runc and crun, except where the spec gives
//! zero a meaning (`pids.limit`, `cpu.idle`, `cpu.burst`, rates).

pub(crate) mod convert;
pub(crate) mod v1;
pub(crate) mod v2;

use crate::error::{Error, Result};
use oci_spec::runtime::LinuxResources;
use std::borrow::Cow;

/// A controller by its v2 name (io for v1's blkio). v1-only ones have their own names.
pub(crate) type Controller = Cow<'static, str>;

/// What a failed write means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// The limit is not in force: an error.
    Must,
    /// The file may be missing: there is then nothing to limit (swap accounting off), or
    /// another file of the same limit has been written (hugetlb reservations).
    IfPresent,
    /// The kernel may refuse the value as out of step with one that a later write sets; this
    /// write is then repeated at the end.
    Retried,
}

/// One value for one file of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub controller: Controller,
    pub file: Cow<'static, str>,
    pub value: String,
    pub need: Need,
    /// File and value to use where `file` is missing.
    pub otherwise: Option<(&'static str, String)>,
}

/// The present values of a live group (`None`: no such file, or a group not made yet).
pub(crate) type Present<'a> = &'a dyn Fn(&str, &str) -> Option<String>;

/// Collects writes and warnings.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    pub list: Vec<Write>,
    pub warnings: Vec<String>,
}

impl Writes {
    pub fn push(
        &mut self,
        controller: &'static str,
        file: impl Into<Cow<'static, str>>,
        value: impl ToString,
    ) -> &mut Write {
        self.list.push(Write {
            controller: Cow::Borrowed(controller),
            file: file.into(),
            value: value.to_string(),
            need: Need::Must,
            otherwise: None,
        });
        let last = self.list.len() - 1;
        &mut self.list[last]
    }

    pub fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }
}

/// Which version a controller is served by, asked by its v1 name.
pub(crate) type IsV1<'a> = &'a dyn Fn(&str) -> bool;

/// The writes that `linux.resources` (devices aside) amounts to: those for v2 files, and those
/// for v1 files.
///
/// # Errors
/// A value out of range, or a limit that the version in charge does not have.
pub(crate) fn lower(
    res: &LinuxResources,
    is_v1: IsV1<'_>,
    now: Present<'_>,
) -> Result<(Writes, Writes)> {
    let (mut new, mut old) = (Writes::default(), Writes::default());
    if let Some(m) = res.memory() {
        if is_v1("memory") {
            v1::memory(&mut old, m, now)?;
        } else {
            v2::memory(&mut new, m, now)?;
        }
    }
    if let Some(c) = res.cpu() {
        if is_v1("cpu") {
            v1::cpu(&mut old, c, now)?;
        } else {
            v2::cpu(&mut new, c, now)?;
        }
        v2::cpuset(if is_v1("cpuset") { &mut old } else { &mut new }, c)?;
    }
    if let Some(p) = res.pids() {
        v2::pids(if is_v1("pids") { &mut old } else { &mut new }, p);
    }
    if let Some(b) = res.block_io() {
        if is_v1("blkio") {
            v1::io(&mut old, b)?;
        } else {
            v2::io(&mut new, b)?;
        }
    }
    if let Some(h) = res.hugepage_limits() {
        if is_v1("hugetlb") {
            v1::hugetlb(&mut old, h)?;
        } else {
            v2::hugetlb(&mut new, h)?;
        }
    }
    if let Some(n) = res.network() {
        if is_v1("net_cls") || is_v1("net_prio") {
            v1::network(&mut old, n)?;
        } else {
            v2::network(n)?;
        }
    }
    if let Some(r) = res.rdma() {
        v2::rdma(if is_v1("rdma") { &mut old } else { &mut new }, r)?;
    }
    if let Some(u) = res.unified() {
        v2::unified(&mut new, u)?;
        for w in &new.list {
            if u.contains_key(w.file.as_ref()) && is_v1(v1_name(&w.controller)) {
                return Err(Error::unsupported(
                    format!("linux.resources.unified[{:?}]", w.file),
                    format!(
                        "controller {} is bound to cgroup v1 on this host",
                        w.controller
                    ),
                ));
            }
        }
    }
    Ok((new, old))
}

/// A controller's name in v1.
pub(crate) fn v1_name(controller: &str) -> &str {
    if controller == "io" {
        "blkio"
    } else {
        controller
    }
}

/// A CPU or node list goes into the file as it is; only what could not be one is refused here
/// (the kernel checks the rest).
pub(crate) fn check_list<'a>(at: &'static str, list: &'a str) -> Result<&'a str> {
    let ok = list
        .bytes()
        .all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-' | b' ' | b'/' | b':'));
    if ok {
        Ok(list)
    } else {
        Err(Error::config(
            at,
            format!("expected a list such as 0-3,7, not {list:?}"),
        ))
    }
}

/// A name that becomes part of a line written to a control file: no spaces, no new lines.
pub(crate) fn check_word<'a>(at: &str, word: &'a str) -> Result<&'a str> {
    let ok = !word.is_empty() && word.chars().all(|c| !c.is_whitespace() && !c.is_control());
    if ok {
        Ok(word)
    } else {
        Err(Error::config(
            at.to_owned(),
            format!("expected a name without spaces, not {word:?}"),
        ))
    }
}

/// A huge page size becomes part of a file name: `<number><K|M|G>B` and nothing else.
pub(crate) fn check_page_size(size: &str) -> Result<&str> {
    let digits = size
        .strip_suffix("KB")
        .or_else(|| size.strip_suffix("MB"))
        .or_else(|| size.strip_suffix("GB"));
    match digits {
        Some(d) if !d.is_empty() && d.len() < 10 && d.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(size)
        }
        _ => Err(Error::config(
            "linux.resources.hugepageLimits",
            format!("expected a page size such as 2MB or 1GB, not {size:?}"),
        )),
    }
}

/// A device number of a block device, as the control files write it.
pub(crate) fn device(at: &str, major: i64, minor: i64) -> Result<String> {
    if (0..=i64::from(u32::MAX)).contains(&major) && (0..=i64::from(u32::MAX)).contains(&minor) {
        Ok(format!("{major}:{minor}"))
    } else {
        Err(Error::config(
            at.to_owned(),
            format!("expected a device number, not {major}:{minor}"),
        ))
    }
}

#[cfg(test)]
mod tests;
