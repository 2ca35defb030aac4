//! Docker's `--gpus`, in the grammar of its command line (docker/cli, opts/gpus.go) and by the rules of
//! its daemon (moby, daemon/nvidia_linux.go, devices.go, cdi.go), with their messages.
//!
//! Beyond Docker: ids may follow `device=0` without quotes (`device=0,1`, for which Docker says "cannot
//! set both Count and DeviceIDs"), capabilities `ngx` and `all` are known, and several flags add up.

use std::collections::HashSet;

use oci_spec::runtime::Spec;

use super::devices::{self, Devices, Item};
use super::mounts::Listed;
use super::{Asked, GpuId, Gpus, environment};
use crate::nvidia::capabilities::Capabilities;
use crate::nvidia::config::Config;
use crate::{Error, Result};

/// All `--gpus` of one command line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Flag {
    devices: Devices,
    /// `None`: not named, so the image's environment decides.
    capabilities: Option<Capabilities>,
    /// As typed.
    reason: String,
}

/// NVIDIA's nodes are of one major number with 256 minors; 254 (modeset) and 255 (control) are taken.
const MAX_GPUS: i64 = 254;

/// Reads the values of `--gpus`, in order.
///
/// # Errors
/// Docker's, in Docker's words; a device that isn't one; a capability that isn't allowed.
pub fn from_flag(values: &[String], config: &Config) -> Result<Flag> {
    let mut flag = Flag {
        devices: Devices::Untouched,
        capabilities: None,
        reason: String::new(),
    };
    for value in values {
        let fields = csv(value).map_err(|why| invalid(value, why))?;
        let typed = Typed::parse(&fields).map_err(|why| invalid(value, why))?;
        let reason = format!("--gpus {value}");
        let capabilities = typed.capabilities(config.capabilities)?;
        let devices = typed.devices(&reason)?;
        flag.devices = add(flag.devices, devices)?;
        flag.capabilities = match (flag.capabilities, capabilities) {
            (Some(a), Some(b)) => Some(a | b),
            (a, b) => a.or(b),
        };
        if !flag.reason.is_empty() {
            flag.reason.push(' ');
        }
        flag.reason.push_str(&reason);
    }
    Ok(flag)
}

impl Flag {
    /// The request: the flag's devices, what else the environment says of them. The flag is the user's
    /// own word, so it needs no leave to be listened to; nothing else in the configuration names devices
    /// beside it.
    ///
    /// # Errors
    /// As [`super::asked`].
    pub fn asked(&self, spec: &Spec, config: &Config) -> Result<Asked> {
        super::build(
            self.devices.clone(),
            self.reason.clone(),
            spec,
            config,
            Listed::default(),
            self.capabilities,
        )
    }

    /// The variables that dockerd adds to the environment for the flag: name and value.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let visible = match &self.devices {
            Devices::Cdi(_) => return Vec::new(),
            Devices::Untouched => "void".to_string(),
            Devices::Gpus(Gpus::None) => "none".to_string(),
            Devices::Gpus(Gpus::All) => "all".to_string(),
            Devices::Gpus(Gpus::Count(count)) => list(&indices(*count)),
            Devices::Gpus(Gpus::List(ids)) => list(ids),
        };
        let mut all = vec![("NVIDIA_VISIBLE_DEVICES", visible)];
        if let Some(set) = self.capabilities {
            all.push(("NVIDIA_DRIVER_CAPABILITIES", set.names().join(",")));
        }
        all
    }
}

fn list(ids: &[GpuId]) -> String {
    let names: Vec<String> = ids.iter().map(GpuId::to_string).collect();
    names.join(",")
}

fn indices(count: u32) -> Vec<GpuId> {
    (0..count).map(GpuId::Index).collect()
}

/// What two flags ask for together.
fn add(a: Devices, b: Devices) -> Result<Devices> {
    Ok(match (a, b) {
        (Devices::Untouched, other) | (other, Devices::Untouched) => other,
        (Devices::Gpus(a), Devices::Gpus(b)) => Devices::Gpus(add_gpus(a, b)),
        (Devices::Cdi(a), Devices::Cdi(b)) => devices::sort(a.into_iter().chain(b).collect())?,
        (Devices::Cdi(names), Devices::Gpus(_)) | (Devices::Gpus(_), Devices::Cdi(names)) => {
            return Err(Error::msg(format!(
                "{}: other GPUs can't be asked for together with the CDI device {}",
                names[0].from, names[0].text
            )));
        }
    })
}

fn add_gpus(a: Gpus, b: Gpus) -> Gpus {
    let mut ids = match (a, b) {
        (Gpus::All, _) | (_, Gpus::All) => return Gpus::All,
        (Gpus::None, other) | (other, Gpus::None) => return other,
        (Gpus::Count(a), Gpus::Count(b)) => return Gpus::Count(a.max(b)),
        (Gpus::Count(count), Gpus::List(ids)) => [indices(count), ids].concat(),
        (Gpus::List(ids), Gpus::Count(count)) => [ids, indices(count)].concat(),
        (Gpus::List(a), Gpus::List(b)) => [a, b].concat(),
    };
    let mut seen = HashSet::new();
    ids.retain(|id| seen.insert(id.clone()));
    Gpus::List(ids)
}

/// One value as Docker's command line sends it to its daemon.
#[derive(Default)]
struct Typed {
    driver: String,
    count: i64,
    devices: Option<Vec<String>>,
    capabilities: Vec<String>,
    options: bool,
}

impl Typed {
    fn parse(fields: &[String]) -> Result<Self, String> {
        let mut typed = Typed::default();
        let mut seen: HashSet<&str> = HashSet::new();
        for field in fields {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (field.as_str(), None),
            };
            if !seen.insert(key) {
                return Err(format!(
                    "gpu request key '{key}' can be specified only once"
                ));
            }
            match (key, value) {
                (bare, None) => match &mut typed.devices {
                    Some(ids) if GpuId::parse(bare).is_ok() => ids.push(bare.to_string()),
                    _ => {
                        seen.insert("count");
                        typed.count = count(bare)?;
                    }
                },
                ("driver", Some(value)) => typed.driver = value.to_string(),
                ("count", Some(value)) => typed.count = count(value)?,
                ("device", Some(value)) => {
                    typed.devices = Some(value.split(',').map(str::to_string).collect());
                }
                ("capabilities", Some(value)) => {
                    typed.capabilities = value.split(',').map(str::to_string).collect();
                }
                ("options", Some(value)) => {
                    csv(value).map_err(|why| format!("failed to read gpu options: {why}"))?;
                    typed.options = true;
                }
                (key, Some(_)) => return Err(format!("unexpected key '{key}' in '{field}'")),
            }
        }
        if !seen.contains("count") && typed.devices.is_none() {
            typed.count = 1;
        }
        Ok(typed)
    }

    /// The driver's capabilities among those named; `None`: there is none among them.
    fn capabilities(&self, allowed: Capabilities) -> Result<Option<Capabilities>> {
        if !matches!(self.driver.as_str(), "" | "nvidia" | "cdi") {
            return Err(self.no_driver());
        }
        let mut set = Capabilities::NONE;
        let mut all = false;
        for name in &self.capabilities {
            match name.as_str() {
                "gpu" | "nvidia" => {}
                "all" => all = true,
                name => set = set | Capabilities::named(name).map_err(|_| self.no_driver())?,
            }
        }
        if all {
            return Ok(Some(allowed));
        }
        Ok(match set.is_empty() {
            true => None,
            false => Some(environment::allow(set, allowed)?),
        })
    }

    fn no_driver(&self) -> Error {
        let mut names = self.capabilities.clone();
        names.push("gpu".into());
        Error::msg(format!(
            "could not select device driver {:?} with capabilities: [[{}]]",
            self.driver,
            names.join(" ")
        ))
    }

    fn devices(self, reason: &str) -> Result<Devices> {
        if self.driver == "cdi" {
            return self.cdi(reason);
        }
        let Some(ids) = self.devices else {
            return Ok(match self.count {
                0 => Devices::Untouched,
                count if count < 0 => Devices::Gpus(Gpus::All),
                count if count > MAX_GPUS => {
                    return Err(Error::msg(format!(
                        "{reason}: a host has at most {MAX_GPUS} GPUs"
                    )));
                }
                count => Devices::Gpus(Gpus::Count(count as u32)),
            });
        };
        if self.count != 0 {
            return Err(Error::msg(
                "cannot set both Count and DeviceIDs on device request",
            ));
        }
        let items: Vec<Item> = ids
            .iter()
            .map(|id| id.trim())
            .filter(|id| !id.is_empty())
            .map(|id| Item::new(id, reason))
            .collect();
        if items.is_empty() {
            // Docker would start the container without a GPU.
            return Err(Error::msg(format!("{reason}: no device is named")));
        }
        devices::read(items)
    }

    fn cdi(self, reason: &str) -> Result<Devices> {
        if self.count != 0 {
            return Err(Error::msg("unexpected count in CDI device request"));
        }
        if self.options {
            return Err(Error::msg("unexpected options in CDI device request"));
        }
        let names = self.devices.unwrap_or_default();
        if let Some(bad) = names.iter().find(|name| !super::qualified(name)) {
            return Err(Error::msg(format!(
                "CDI device injection failed: unqualified device {bad:?}"
            )));
        }
        devices::sort(names.iter().map(|name| Item::new(name, reason)).collect())
    }
}

/// `all` is -1, as for Docker. Go's strconv.Atoi: a sign and decimal digits of 64 bits.
fn count(text: &str) -> Result<i64, String> {
    if text == "all" {
        return Ok(-1);
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let why = match text.parse() {
        Ok(count) if number => return Ok(count),
        Err(_) if number => "value out of range",
        _ => "invalid syntax",
    };
    Err(format!(
        "invalid count ({text}): value must be either \"all\" or an integer: {why}"
    ))
}

/// Docker's wording of a bad flag value (spf13/pflag).
fn invalid(value: &str, why: String) -> Error {
    Error::msg(format!(
        "invalid argument {value:?} for \"--gpus\" flag: {why}"
    ))
}

/// One record as Go's encoding/csv reads it: fields between commas, in double quotes when they hold
/// commas, `""` for a quote. Columns in errors count bytes from 1.
fn csv(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Err("EOF".into());
    }
    if text.contains(['\n', '\r']) {
        return Err("a line end in the value".into());
    }
    let error = |at: usize, why: &str| format!("parse error on line 1, column {}: {why}", at + 1);
    let mut fields = Vec::new();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        let Some(quoted) = rest.strip_prefix('"') else {
            let end = rest.find(',').unwrap_or(rest.len());
            if let Some(quote) = rest[..end].find('"') {
                return Err(error(at + quote, "bare \" in non-quoted field"));
            }
            fields.push(rest[..end].to_string());
            if end == rest.len() {
                return Ok(fields);
            }
            at += end + 1;
            continue;
        };
        let mut field = String::new();
        at += 1;
        let mut rest = quoted;
        loop {
            let Some(quote) = rest.find('"') else {
                return Err(error(
                    text.len(),
                    "extraneous or missing \" in quoted-field",
                ));
            };
            field.push_str(&rest[..quote]);
            rest = &rest[quote + 1..];
            at += quote + 1;
            match rest.as_bytes().first() {
                None => {
                    fields.push(field);
                    return Ok(fields);
                }
                Some(b',') => break,
                Some(b'"') => {
                    field.push('"');
                    rest = &rest[1..];
                    at += 1;
                }
                Some(_) => {
                    return Err(error(at - 1, "extraneous or missing \" in quoted-field"));
                }
            }
        }
        fields.push(field);
        at += 1;
    }
}
