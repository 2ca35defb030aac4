//! Device rules: what the configuration says, and the table it amounts to.
//!
//! Owns the meaning of an ordered rule list. Neither the eBPF program (`filter`) nor the
//! devices.allow lines of v1 (`device_v1`) decide anything: both are made from [`Table`].
//!
//! Rules apply in order and, for each kind of access (read, write, mknod) by itself, the last
//! rule that covers the device decides; with no such rule, access is denied. runc and crun agree
//! wherever a request asks for one kind of access, or one rule covers all that it asks for. In
//! the rest we are stricter than crun (a rule that denies only `w` also stops an open for
//! reading and writing) and as generous as the v1 controller (an `r` rule and a `w` rule for
//! the same device add up).

use crate::error::{Error, Result};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use serde::{Deserialize, Serialize};

/// Kinds of access as bits: BPF_DEVCG_ACC_* in include/uapi/linux/bpf.h.
pub const MKNOD: u8 = 1;
/// Opening for reading.
pub const READ: u8 = 2;
/// Opening for writing.
pub const WRITE: u8 = 4;
/// Every kind of access.
pub const ALL: u8 = MKNOD | READ | WRITE;

/// Largest major and minor numbers that a device can have (include/linux/kdev_t.h: 12 and 20
/// bits). A rule beyond them covers no device.
pub const MAJOR_MAX: u32 = 0xfff;
/// See [`MAJOR_MAX`].
pub const MINOR_MAX: u32 = 0xf_ffff;

/// Which devices a rule covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Block and character devices.
    #[serde(rename = "a")]
    All,
    /// Block devices.
    #[serde(rename = "b")]
    Block,
    /// Character devices.
    #[serde(rename = "c")]
    Char,
}

/// One rule of the device list (runtime-spec, config-linux.md, "Allowed Device list").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Allows or denies.
    pub allow: bool,
    /// Block, character, or both.
    pub kind: Kind,
    /// Major number; none covers all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major: Option<u32>,
    /// Minor number; none covers all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<u32>,
    /// Bits of [`READ`], [`WRITE`] and [`MKNOD`].
    pub access: u8,
}

const fn char_rule(major: u32, minor: Option<u32>) -> DeviceRule {
    DeviceRule {
        allow: true,
        kind: Kind::Char,
        major: Some(major),
        minor,
        access: ALL,
    }
}

const fn mknod_rule(kind: Kind) -> DeviceRule {
    DeviceRule {
        allow: true,
        kind,
        major: None,
        minor: None,
        access: MKNOD,
    }
}

/// The rules every cell gets after its own list, as in runc (crun adds tun): the devices that
/// the spec demands (config-linux.md, "Default Devices"), the terminals, and making any node (a
/// node that is not listed still can't be opened). Numbers are in the kernel's devices.txt.
pub const DEFAULT_RULES: [DeviceRule; 11] = [
    mknod_rule(Kind::Char),
    mknod_rule(Kind::Block),
    char_rule(1, Some(3)), // null
    char_rule(1, Some(5)), // zero
    char_rule(1, Some(7)), // full
    char_rule(1, Some(8)), // random
    char_rule(1, Some(9)), // urandom
    char_rule(5, Some(0)), // tty
    char_rule(5, Some(1)), // console
    char_rule(5, Some(2)), // ptmx
    char_rule(136, None),  // pts/*
];

impl DeviceRule {
    /// Reads the `index`th entry of `linux.resources.devices`.
    ///
    /// # Errors
    /// A configuration error naming the entry for: a type that is no device, access that is
    /// missing or has other letters than `rwm`, numbers below -1 or beyond 32 bits. -1 covers
    /// all, as in runc.
    pub fn from_spec(entry: &LinuxDeviceCgroup, index: usize) -> Result<Self> {
        let bad = |field: &str, why: String| {
            Error::config(format!("linux.resources.devices[{index}].{field}"), why)
        };
        let kind = match entry.typ() {
            None | Some(LinuxDeviceType::A) => Kind::All,
            Some(LinuxDeviceType::B) => Kind::Block,
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Kind::Char,
            Some(LinuxDeviceType::P) => {
                return Err(bad(
                    "type",
                    "expected a, b, c or u: a FIFO is no device".into(),
                ));
            }
        };
        let number = |field: &str, value: Option<i64>| match value {
            None | Some(-1) => Ok(None),
            Some(n) => u32::try_from(n)
                .map(Some)
                .map_err(|_| bad(field, format!("expected a device number, not {n}"))),
        };
        let text = entry.access().as_deref().unwrap_or("");
        let mut access = 0;
        for c in text.chars() {
            access |= match c {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => {
                    return Err(bad(
                        "access",
                        format!("expected letters of rwm, not {text:?}"),
                    ));
                }
            };
        }
        if access == 0 {
            return Err(bad("access", "expected at least one of r, w, m".into()));
        }
        Ok(DeviceRule {
            allow: entry.allow(),
            kind,
            major: number("major", entry.major())?,
            minor: number("minor", entry.minor())?,
            access,
        })
    }

    /// Whether this rule speaks of the given device. `kind` is not [`Kind::All`].
    fn covers(&self, kind: Kind, major: Option<u32>, minor: Option<u32>) -> bool {
        (self.kind == Kind::All || self.kind == kind)
            && (self.major.is_none() || self.major == major)
            && (self.minor.is_none() || self.minor == minor)
    }
}

/// The access granted to one device by an ordered list: the plain definition that everything
/// else is tested against. `None` for a number means "one that no rule names".
pub fn evaluate(rules: &[DeviceRule], kind: Kind, major: Option<u32>, minor: Option<u32>) -> u8 {
    let (mut granted, mut undecided) = (0, ALL);
    for rule in rules.iter().rev() {
        if undecided == 0 {
            break;
        }
        if rule.covers(kind, major, minor) {
            if rule.allow {
                granted |= rule.access & undecided;
            }
            undecided &= !rule.access;
        }
    }
    granted
}

/// What a list amounts to for one kind of device: look in `exact`, then `majors`, then `minors`
/// (those three never contradict each other), else `rest`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KindTable {
    /// (major, minor, access)
    pub exact: Vec<(u32, u32, u8)>,
    /// (major, access) for every minor not in `exact`
    pub majors: Vec<(u32, u8)>,
    /// (minor, access) for every major not in `exact` or `majors`
    pub minors: Vec<(u32, u8)>,
    /// Access to all other devices.
    pub rest: u8,
}

/// A device list as a table, without order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Character devices.
    pub chars: KindTable,
    /// Block devices.
    pub blocks: KindTable,
}

impl Table {
    /// Reduces an ordered list to a table.
    pub fn new(rules: &[DeviceRule]) -> Self {
        Table {
            chars: KindTable::new(rules, Kind::Char),
            blocks: KindTable::new(rules, Kind::Block),
        }
    }

    /// Whether nothing is denied.
    pub fn allows_all(&self) -> bool {
        [&self.chars, &self.blocks]
            .iter()
            .all(|t| t.rest == ALL && t.is_uniform())
    }
}

impl KindTable {
    fn new(rules: &[DeviceRule], kind: Kind) -> Self {
        let rules: Vec<DeviceRule> = rules
            .iter()
            .filter(|r| r.kind == Kind::All || r.kind == kind)
            .filter(|r| r.major.is_none_or(|n| n <= MAJOR_MAX))
            .filter(|r| r.minor.is_none_or(|n| n <= MINOR_MAX))
            .copied()
            .collect();
        let rest = evaluate(&rules, kind, None, None);

        let mut majors: Vec<(u32, u8)> = Vec::new();
        let mut minors: Vec<(u32, u8)> = Vec::new();
        let mut exact: Vec<(u32, u32, u8)> = Vec::new();
        for r in &rules {
            match (r.major, r.minor) {
                (Some(major), None) => {
                    majors.push((major, evaluate(&rules, kind, Some(major), None)));
                }
                (None, Some(minor)) => {
                    minors.push((minor, evaluate(&rules, kind, None, Some(minor))));
                }
                (Some(major), Some(minor)) => {
                    exact.push((
                        major,
                        minor,
                        evaluate(&rules, kind, Some(major), Some(minor)),
                    ));
                }
                (None, None) => {}
            }
        }
        majors.sort_unstable();
        majors.dedup();
        minors.sort_unstable();
        minors.dedup();
        // Where "every minor of this major" and "this minor of every major" cross, neither
        // entry is right by itself.
        for &(major, _) in &majors {
            for &(minor, _) in &minors {
                exact.push((
                    major,
                    minor,
                    evaluate(&rules, kind, Some(major), Some(minor)),
                ));
            }
        }
        exact.sort_unstable();
        exact.dedup();

        // An entry that says what the next stage says anyway is left out. Order matters: an
        // entry of `majors` may hide one of `minors`, so exact entries are dropped against
        // what is kept, and `minors` only while no `majors` entry was dropped wrongly.
        minors.retain(|&(_, a)| a != rest);
        if minors.is_empty() {
            majors.retain(|&(_, a)| a != rest);
        }
        let mut table = KindTable {
            exact: Vec::new(),
            majors,
            minors,
            rest,
        };
        let kept: Vec<_> = exact
            .into_iter()
            .filter(|&(major, minor, a)| a != table.look_up(major, minor))
            .collect();
        table.exact = kept;
        table
    }

    /// The access this table grants.
    pub fn look_up(&self, major: u32, minor: u32) -> u8 {
        if let Some(e) = self.exact.iter().find(|e| (e.0, e.1) == (major, minor)) {
            e.2
        } else if let Some(e) = self.majors.iter().find(|e| e.0 == major) {
            e.1
        } else if let Some(e) = self.minors.iter().find(|e| e.0 == minor) {
            e.1
        } else {
            self.rest
        }
    }

    /// Whether all devices get the same access.
    pub fn is_uniform(&self) -> bool {
        self.exact.is_empty() && self.majors.is_empty() && self.minors.is_empty()
    }
}
