//! NVIDIA's variables in the environment of a configuration. Their values are an image's: in messages they
//! are escaped.

use oci_spec::runtime::Spec;

use super::devices::Item;
use crate::nvidia::capabilities::Capabilities;
use crate::nvidia::require::Requirement;
use crate::{Error, Result};

/// IMEX channels are below 2^20: the minor numbers that Linux has (MINORBITS).
const IMEX_END: u32 = 1 << 20;

/// The variables, in order. Of two with one name the later counts: an engine adds the user's after the
/// image's.
pub(super) struct Environment<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Environment<'a> {
    pub fn of(spec: &'a Spec) -> Self {
        let env = spec.process().as_ref().and_then(|p| p.env().as_ref());
        let pairs = env.into_iter().flatten().filter_map(|e| e.split_once('='));
        Environment(pairs.collect())
    }

    pub fn get(&self, name: &str) -> Option<&'a str> {
        let found = self.0.iter().rev().find(|(known, _)| *known == name);
        found.map(|(_, value)| *value)
    }

    /// The value, when there is one and it isn't empty.
    fn filled(&self, name: &str) -> Option<&'a str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// An image older than `NVIDIA_REQUIRE_CUDA`; its CUDA version.
    fn legacy(&self) -> Option<&'a str> {
        match self.filled("NVIDIA_REQUIRE_CUDA") {
            Some(_) => None,
            None => self.filled("CUDA_VERSION"),
        }
    }

    /// The devices asked for, and where it says so; `None`: no device.
    pub fn visible(&self) -> Option<(Vec<Item>, String)> {
        const NAME: &str = "NVIDIA_VISIBLE_DEVICES";
        let Some(value) = self.get(NAME) else {
            let from = format!(
                "CUDA_VERSION={} (legacy image)",
                self.legacy()?.escape_debug()
            );
            return Some((vec![Item::new("all", from.clone())], from));
        };
        let from = format!("{NAME}={}", value.escape_debug());
        let items: Vec<Item> = items(value).map(|i| Item::new(i, from.clone())).collect();
        let none = items.is_empty() || items.iter().any(|item| item.text == "void");
        (!none).then_some((items, from))
    }

    /// `NVIDIA_DRIVER_CAPABILITIES` within what is allowed. `all`, and the default, are cut down to it; a
    /// name outside it is an error. A legacy image gets all when the variable is unset.
    pub fn capabilities(&self, allowed: Capabilities) -> Result<Capabilities> {
        const NAME: &str = "NVIDIA_DRIVER_CAPABILITIES";
        let Some(value) = self.get(NAME) else {
            return Ok(match self.legacy() {
                Some(_) => allowed,
                None => Capabilities::DEFAULT.intersect(allowed),
            });
        };
        let asked = Capabilities::parse(value).map_err(|e| Error::msg(format!("{NAME}: {e}")))?;
        let by_name = items(value).next().is_some() && items(value).all(|i| i != "all");
        if by_name {
            allow(asked, allowed).map_err(|e| Error::msg(format!("{NAME}: {e}")))
        } else {
            Ok(asked.intersect(allowed))
        }
    }

    /// What `NVIDIA_REQUIRE_*` and a legacy image's `CUDA_VERSION` require; nothing when
    /// `NVIDIA_DISABLE_REQUIRE` is true. What isn't a boolean there doesn't disable, as in the toolkit.
    pub fn requirements(&self) -> Result<Vec<Requirement>> {
        if self.get("NVIDIA_DISABLE_REQUIRE").is_some_and(truth) {
            return Ok(Vec::new());
        }
        let mut all = Vec::new();
        for (at, (name, value)) in self.0.iter().enumerate() {
            let ours = name.starts_with("NVIDIA_REQUIRE_")
                // Tegra's: a switch for the list of files, no expression.
                && !name.starts_with("NVIDIA_REQUIRE_JETPACK");
            let last = !self.0[at + 1..].iter().any(|(later, _)| later == name);
            if ours && last && !value.trim().is_empty() {
                all.push(Requirement::parse(name, value)?);
            }
        }
        if let Some(version) = self.legacy() {
            let text = major_minor(version).ok_or_else(|| {
                Error::msg(format!(
                    "CUDA_VERSION: {version:?} is not a version of dotted numbers"
                ))
            })?;
            all.push(Requirement::parse(
                "CUDA_VERSION",
                &format!("cuda>={text}"),
            )?);
        }
        Ok(all)
    }

    /// `NVIDIA_MIG_CONFIG_DEVICES` or `NVIDIA_MIG_MONITOR_DEVICES`: is it `all`?
    pub fn mig(&self, name: &str, privileged: bool) -> Result<bool> {
        let Some(value) = self.filled(name) else {
            return Ok(false);
        };
        if !privileged {
            return Err(Error::msg(format!(
                "{name}={value:?}: only for a privileged cell (CAP_SYS_ADMIN in the bounding set)"
            )));
        }
        if let Some(other) = items(value).find(|item| !item.eq_ignore_ascii_case("all")) {
            return Err(Error::msg(format!(
                "{name}: {other:?}: only 'all' devices are currently supported"
            )));
        }
        Ok(items(value).next().is_some())
    }

    /// `NVIDIA_IMEX_CHANNELS`: a list of numbers, by the rules of `NVIDIA_VISIBLE_DEVICES`.
    pub fn imex(&self) -> Result<Vec<u32>> {
        const NAME: &str = "NVIDIA_IMEX_CHANNELS";
        let value = self.get(NAME).unwrap_or_default();
        let word = items(value).find(|item| matches!(*item, "all" | "none"));
        if items(value).any(|item| item == "void") || word == Some("none") {
            return Ok(Vec::new());
        }
        // `all` is no number: the toolkit drops it silently, here it is an error.
        channels(items(value)).map_err(|e| Error::msg(format!("{NAME}: {e}")))
    }
}

/// The items of a comma list, trimmed, without empty ones.
fn items(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|i| !i.is_empty())
}

/// IMEX channels by number, each once.
///
/// # Errors
/// What isn't a number below 2^20.
pub(super) fn channels<'t>(items: impl Iterator<Item = &'t str>) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for item in items {
        let digits = !item.is_empty() && item.bytes().all(|b| b.is_ascii_digit());
        let number = digits.then(|| item.parse().ok()).flatten();
        let channel = number.filter(|n| *n < IMEX_END).ok_or_else(|| {
            Error::msg(format!(
                "{item:?} is no IMEX channel (0 to {})",
                IMEX_END - 1
            ))
        })?;
        if !all.contains(&channel) {
            all.push(channel);
        }
    }
    Ok(all)
}

/// All of `asked`, when the administrator allows it.
///
/// # Errors
/// Names what isn't allowed.
pub(super) fn allow(asked: Capabilities, allowed: Capabilities) -> Result<Capabilities> {
    let over = asked.without(allowed);
    if over.is_empty() {
        return Ok(asked);
    }
    Err(Error::msg(format!(
        "driver capabilities {over} are not allowed here (allowed: {allowed})"
    )))
}

/// Go's strconv.ParseBool, which the toolkit reads it with.
fn truth(value: &str) -> bool {
    matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// `9.0` of `v9.0.176-1`: the first two numbers of a semantic version, as the toolkit takes them.
fn major_minor(version: &str) -> Option<String> {
    let version = version.strip_prefix('v').unwrap_or(version);
    let numbers = version.split(['-', '+']).next()?;
    let mut parts = numbers.split('.').map(|part| {
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| part.parse::<u32>().ok()).flatten()
    });
    let major = parts.next()??;
    let minor = match parts.next() {
        Some(minor) => minor?,
        None => 0,
    };
    parts
        .all(|p| p.is_some())
        .then(|| format!("{major}.{minor}"))
}
