//! The texts of procfs. Pure.

use super::{Gpu, Majors};

/// The version in `driver/nvidia/version`:
/// `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build …`.
pub(super) fn version(text: &str) -> Option<&str> {
    let line = text.lines().find(|l| l.starts_with("NVRM version:"))?;
    line.split_whitespace().find(|w| is_version(w))
}

/// Two or more numbers with dots between: it becomes part of file names.
pub fn is_version(word: &str) -> bool {
    let number = |n: &str| !n.is_empty() && n.len() <= 6 && n.bytes().all(|b| b.is_ascii_digit());
    word.contains('.') && word.split('.').all(number)
}

/// Order of PCI addresses: domain, bus, device and function.
pub(super) type Order = (u32, u8, u8, u8);

/// One `gpus/<bus id>/information`; `None` for a GPU that the administrator excluded, which NVML doesn't
/// count either. The number of the index is left 0.
///
/// # Errors
/// No minor number, or no bus id in the text or the directory's name: says which.
pub(super) fn gpu(text: &str, dir: &str) -> Result<Option<(Order, Gpu)>, String> {
    let field = |name: &str| {
        let line = |l: &'_ str| -> Option<String> {
            let (key, value) = l.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        };
        text.lines().find_map(line).filter(|v| !v.is_empty())
    };
    // Older drivers have another word for it.
    let excluded = ["GPU Excluded", "Blacklisted", "GPU Blacklisted"];
    if excluded
        .iter()
        .any(|name| field(name).as_deref() == Some("Yes"))
    {
        return Ok(None);
    }
    let minor = field("Device Minor").ok_or("no line \"Device Minor\"")?;
    let minor: u32 = minor
        .parse()
        .ok()
        // 254 and 255 are nvidia-modeset and nvidiactl.
        .filter(|n| *n < 254)
        .ok_or_else(|| format!("Device Minor is {minor:?}, not a number below 254"))?;
    let bus = field("Bus Location").unwrap_or_else(|| dir.to_owned());
    let (order, bus) = bus_id(&bus).ok_or_else(|| format!("{bus:?} is no PCI bus id"))?;
    Ok(Some((
        order,
        Gpu {
            index: 0,
            minor,
            uuid: field("GPU UUID").and_then(|u| uuid(&u)),
            bus,
            model: field("Model"),
        },
    )))
}

/// A UUID as `GpuId` holds them. The driver writes question marks while it doesn't know.
fn uuid(text: &str) -> Option<String> {
    let rest = text.strip_prefix("GPU-")?;
    let parts = rest.split('-').map(str::len);
    let fits =
        parts.eq([8, 4, 4, 4, 12]) && rest.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
    fits.then(|| format!("GPU-{}", rest.to_ascii_lowercase()))
}

/// `0000:0F:00.0` as numbers and as `GpuId` holds it.
fn bus_id(text: &str) -> Option<(Order, String)> {
    let mut parts = text.split(':');
    let (domain, bus, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let (device, function) = rest.split_once('.')?;
    let number = |t: &str| {
        let hex = !t.is_empty() && t.bytes().all(|b| b.is_ascii_hexdigit());
        hex.then(|| u32::from_str_radix(t, 16).ok()).flatten()
    };
    let byte = |t: &str| u8::try_from(number(t)?).ok();
    let order = (number(domain)?, byte(bus)?, byte(device)?, byte(function)?);
    if parts.next().is_some() || order.2 > 0x1f || order.3 > 7 {
        return None;
    }
    let (domain, bus, device, function) = order;
    Some((
        order,
        format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"),
    ))
}

/// The majors of /proc/devices, of character devices only (a block device may have the same name).
pub(super) fn majors(text: &str) -> Majors {
    let mut majors = Majors::default();
    let mut frontend = None;
    let characters = text.lines().take_while(|l| !l.starts_with("Block devices"));
    for line in characters {
        let mut words = line.split_whitespace();
        let (Some(number), Some(name)) = (words.next(), words.next()) else {
            continue;
        };
        let Ok(number) = number.parse::<u32>() else {
            continue;
        };
        match name {
            "nvidia" => majors.nvidia = Some(number),
            "nvidia-frontend" => frontend = Some(number),
            "nvidia-uvm" => majors.uvm = Some(number),
            "nvidia-caps" => majors.caps = Some(number),
            "nvidia-caps-imex-channels" => majors.imex = Some(number),
            _ => {}
        }
    }
    majors.nvidia = majors.nvidia.or(frontend);
    majors
}

/// How the driver wants its nodes made: `driver/nvidia/params`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Params {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Does the administrator want others than himself to make nodes (`NVreg_ModifyDeviceFiles`)?
    pub modify: bool,
}

impl Params {
    /// Reads the text; what is missing has the driver's default (root, 0666, yes).
    pub fn parse(text: &str) -> Self {
        let number = |name: &str| {
            text.lines().find_map(|l| {
                let (key, value) = l.split_once(':')?;
                (key.trim() == name).then(|| value.trim().parse::<u32>().ok())?
            })
        };
        Params {
            uid: number("DeviceFileUID").unwrap_or(0),
            gid: number("DeviceFileGID").unwrap_or(0),
            mode: number("DeviceFileMode").unwrap_or(0o666) & 0o777,
            modify: number("ModifyDeviceFiles") != Some(0),
        }
    }
}
