//! The names of one GPU or MIG device.

use std::fmt;

use crate::{Error, Result};

/// A GPU or MIG device as a user names it. That it exists is for the inventory to say.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum GpuId {
    /// NVML's index: the order of PCI bus ids. Not the minor number.
    Index(u32),
    /// `GPU-` and the UUID in lower case.
    Uuid(String),
    /// PCI bus id as procfs writes it: `0000:01:00.0`, lower case, at least 4 digits of domain.
    Bus(String),
    /// The MIG device `instance` (NVML's order) of GPU `gpu`: `0:1`.
    Mig {
        /// The GPU's index.
        gpu: u32,
        /// The MIG device's index on that GPU.
        instance: u32,
    },
    /// `MIG-` and the UUID in lower case; or, as drivers before 470 wrote it, `MIG-GPU-UUID/GI/CI`.
    MigUuid(String),
}

impl GpuId {
    /// Whether only NVML can tell whom it means: a MIG device's UUID that doesn't hold its parts.
    pub fn needs_nvml(&self) -> bool {
        matches!(self, GpuId::MigUuid(uuid) if !uuid.contains('/'))
    }

    /// Reads one name. Case of UUIDs and bus ids doesn't matter, as in libnvidia-container.
    ///
    /// # Errors
    /// Anything that isn't of one of the five forms.
    pub fn parse(text: &str) -> Result<Self> {
        Self::read(text).ok_or_else(|| {
            Error::msg(format!(
                "unknown device {text:?}: not an index, a GPU-… or MIG-… UUID, a PCI bus id, or GPU:MIG"
            ))
        })
    }

    fn read(text: &str) -> Option<Self> {
        if let Some(index) = decimal(text) {
            return Some(GpuId::Index(index));
        }
        if let Some(rest) = prefixed(text, "MIG-") {
            let lower = rest.to_ascii_lowercase();
            let Some(old) = lower.strip_prefix("gpu-") else {
                return uuid(&lower).then(|| GpuId::MigUuid(format!("MIG-{lower}")));
            };
            let mut parts = old.split('/');
            let gpu = parts.next().filter(|gpu| uuid(gpu))?;
            let (gi, ci) = (decimal(parts.next()?)?, decimal(parts.next()?)?);
            return parts
                .next()
                .is_none()
                .then(|| GpuId::MigUuid(format!("MIG-GPU-{gpu}/{gi}/{ci}")));
        }
        if let Some(rest) = prefixed(text, "GPU-") {
            let lower = rest.to_ascii_lowercase();
            return uuid(&lower).then(|| GpuId::Uuid(format!("GPU-{lower}")));
        }
        let mut parts = text.split(':');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(gpu), Some(instance), None, None) => Some(GpuId::Mig {
                gpu: decimal(gpu)?,
                instance: decimal(instance)?,
            }),
            (Some(domain), Some(bus), Some(rest), None) => {
                let (device, function) = rest.split_once('.')?;
                // PCI: 32 bits of domain (VMD uses more than 16), 8 of bus, 5 of device, 3 of function.
                let domain = hex(domain, 8, u32::MAX)?;
                let bus = hex(bus, 2, 0xff)?;
                let device = hex(device, 2, 0x1f)?;
                let function = hex(function, 1, 7)?;
                Some(GpuId::Bus(format!(
                    "{domain:04x}:{bus:02x}:{device:02x}.{function}"
                )))
            }
            _ => None,
        }
    }

    /// Is it a MIG device?
    pub fn is_mig(&self) -> bool {
        matches!(self, GpuId::Mig { .. } | GpuId::MigUuid(_))
    }
}

/// What follows a prefix of any case.
fn prefixed<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix)
        .then(|| &text[prefix.len()..])
}

/// Digits alone (no sign, no blank).
fn decimal(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

/// Up to `width` hexadecimal digits, at most `max`.
fn hex(text: &str, width: usize, max: u32) -> Option<u32> {
    let digits = (1..=width).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    let value = digits.then(|| u32::from_str_radix(text, 16).ok())??;
    (value <= max).then_some(value)
}

/// Is it a UUID in lower case, 8-4-4-4-12 hexadecimal digits?
fn uuid(text: &str) -> bool {
    let mut groups = text.split('-');
    [8, 4, 4, 4, 12].iter().all(|length| {
        groups.next().is_some_and(|group| {
            group.len() == *length && group.bytes().all(|b| b.is_ascii_hexdigit())
        })
    }) && groups.next().is_none()
}

/// As `NVIDIA_VISIBLE_DEVICES` takes it.
impl fmt::Display for GpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GpuId::Index(index) => write!(f, "{index}"),
            GpuId::Mig { gpu, instance } => write!(f, "{gpu}:{instance}"),
            GpuId::Uuid(text) | GpuId::Bus(text) | GpuId::MigUuid(text) => f.write_str(text),
        }
    }
}
