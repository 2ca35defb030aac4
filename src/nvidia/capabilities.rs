//! Driver capabilities: the set that `NVIDIA_DRIVER_CAPABILITIES` names.
//!
//! A capability stands for a group of the driver's files (which, [`super::files`] says). This
//! module knows the names only; it must not know files.

use std::fmt;
use std::ops::BitOr;

use crate::{Error, Result};

/// A set of driver capabilities.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Capabilities(u8);

/// The single capabilities by name, in the order they are printed.
const NAMES: [(&str, Capabilities); 7] = [
    ("compat32", Capabilities::COMPAT32),
    ("compute", Capabilities::COMPUTE),
    ("display", Capabilities::DISPLAY),
    ("graphics", Capabilities::GRAPHICS),
    ("ngx", Capabilities::NGX),
    ("utility", Capabilities::UTILITY),
    ("video", Capabilities::VIDEO),
];

impl Capabilities {
    /// No capability: the control nodes and the GPUs' own nodes only.
    pub const NONE: Self = Self(0);
    /// CUDA and OpenCL.
    pub const COMPUTE: Self = Self(1);
    /// 32-bit libraries of the other capabilities.
    pub const COMPAT32: Self = Self(1 << 1);
    /// OpenGL and Vulkan.
    pub const GRAPHICS: Self = Self(1 << 2);
    /// nvidia-smi and NVML.
    pub const UTILITY: Self = Self(1 << 3);
    /// Video codecs.
    pub const VIDEO: Self = Self(1 << 4);
    /// X11 displays.
    pub const DISPLAY: Self = Self(1 << 5);
    /// NGX (DLSS).
    pub const NGX: Self = Self(1 << 6);
    /// Every capability.
    pub const ALL: Self = Self(0x7f);
    /// What a container gets that asks for none by name.
    pub const DEFAULT: Self = Self(Self::UTILITY.0 | Self::COMPUTE.0);

    /// Reads a comma list as in `NVIDIA_DRIVER_CAPABILITIES`. Items are trimmed and empty ones skipped;
    /// a list without items is [`Self::DEFAULT`], an item `all` makes it [`Self::ALL`].
    ///
    /// # Errors
    /// A name that isn't one of the driver's capabilities.
    pub fn parse(text: &str) -> Result<Self> {
        let mut set = Self::NONE;
        let mut empty = true;
        for item in text.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            empty = false;
            set = set | Self::named(item)?;
        }
        Ok(if empty { Self::DEFAULT } else { set })
    }

    /// The capability of one name, or `all`.
    ///
    /// # Errors
    /// Any other name.
    pub fn named(name: &str) -> Result<Self> {
        if name == "all" {
            return Ok(Self::ALL);
        }
        NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, one)| *one)
            .ok_or_else(|| {
                Error::msg(format!(
                    "unknown driver capability {name:?} (known: {}, all)",
                    Self::ALL
                ))
            })
    }

    /// Is all of `other` in this set?
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What is in both sets.
    pub const fn intersect(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this set and not in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Is nothing in the set?
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names, sorted.
    pub fn names(self) -> Vec<&'static str> {
        NAMES
            .iter()
            .filter(|(_, one)| self.contains(*one))
            .map(|(name, _)| *name)
            .collect()
    }
}

impl BitOr for Capabilities {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A comma list, as `NVIDIA_DRIVER_CAPABILITIES` takes it; `none` for the empty set.
impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&self.names().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sets_agree() {
        assert_eq!(Capabilities::ALL.names().len(), NAMES.len());
        for (name, one) in NAMES {
            assert_eq!(Capabilities::parse(name).unwrap(), one);
            assert_eq!(one.to_string(), name);
            assert!(Capabilities::ALL.contains(one));
            assert!(!Capabilities::NONE.contains(one));
        }
        let all = NAMES
            .iter()
            .fold(Capabilities::NONE, |set, (_, c)| set | *c);
        assert_eq!(all, Capabilities::ALL);
        assert_eq!(Capabilities::DEFAULT.to_string(), "compute,utility");
        assert_eq!(Capabilities::NONE.to_string(), "none");
    }

    #[test]
    fn set_operations() {
        let set = Capabilities::COMPUTE | Capabilities::VIDEO;
        assert_eq!(set.intersect(Capabilities::DEFAULT), Capabilities::COMPUTE);
        assert_eq!(set.without(Capabilities::DEFAULT), Capabilities::VIDEO);
        assert!(!set.contains(Capabilities::DEFAULT));
        assert!(set.contains(Capabilities::NONE));
    }
}
