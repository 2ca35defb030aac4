//! Names of CDI devices: `vendor/class=device` (CDI 1.1, "Kind" and "CDI Devices").

use std::fmt;

use crate::{Error, Result};

/// Keys of the annotations that ask for CDI devices begin so (CDI, annotations of CRI requests).
pub const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

/// A qualified device name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name {
    /// As `nvidia.com`.
    pub vendor: String,
    /// As `gpu`.
    pub class: String,
    /// As `0` or `all`.
    pub device: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}={}", self.vendor, self.class, self.device)
    }
}

/// Reads `vendor/class=device`.
///
/// # Errors
/// A part is missing or holds what its rule forbids; the message names the rule.
pub fn parse_qualified(text: &str) -> Result<Name> {
    let fail = |why: &str| Error::msg(format!("CDI device name {text:?}: {why}"));
    let (kind, device) = text
        .split_once('=')
        .ok_or_else(|| fail("expected vendor/class=device"))?;
    let (vendor, class) = parse_kind(kind).map_err(|why| fail(&why))?;
    check_device(device).map_err(|why| fail(&why))?;
    Ok(Name {
        vendor: vendor.to_owned(),
        class: class.to_owned(),
        device: device.to_owned(),
    })
}

/// Reads `vendor/class`.
pub(super) fn parse_kind(kind: &str) -> Result<(&str, &str), String> {
    let (vendor, class) = kind
        .split_once('/')
        .ok_or_else(|| format!("{kind:?} is not vendor/class"))?;
    check("vendor", vendor, u8::is_ascii_alphabetic, b"_-.")?;
    check("class", class, u8::is_ascii_alphabetic, b"_-.")?;
    Ok((vendor, class))
}

/// Checks the last part of a qualified name. It may start with a digit (CDI 0.5).
pub(super) fn check_device(name: &str) -> Result<(), String> {
    check("device", name, u8::is_ascii_alphanumeric, b"_-.:")
}

fn check(what: &str, name: &str, first: fn(&u8) -> bool, more: &[u8]) -> Result<(), String> {
    let bytes = name.as_bytes();
    let (Some(start), Some(end)) = (bytes.first(), bytes.last()) else {
        return Err(format!("the {what} is empty"));
    };
    if !first(start) {
        let kind = if first(&b'0') {
            "letter or digit"
        } else {
            "letter"
        };
        return Err(format!("{what} {name:?} does not start with a {kind}"));
    }
    if !end.is_ascii_alphanumeric() {
        return Err(format!(
            "{what} {name:?} does not end with a letter or digit"
        ));
    }
    let wrong = |b: &&u8| !b.is_ascii_alphanumeric() && !more.contains(b);
    if bytes.iter().find(wrong).is_some() {
        return Err(format!(
            "{what} {name:?} holds something other than letters, digits and {}",
            String::from_utf8_lossy(more)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualified_names_are_read_and_written() {
        for text in [
            "nvidia.com/gpu=0",
            "nvidia.com/gpu=all",
            "runtime.nvidia.com/gpu=GPU-8dcd427f-483b-b48f-d7e5-75fb19a52b76",
            "nvidia.com/gpu=1:0",
            "v/c=d",
            "V_1-a.b/c.d=e_f-g.h:i",
        ] {
            assert_eq!(parse_qualified(text).unwrap().to_string(), text);
        }
        let name = parse_qualified("nvidia.com/gpu=0").unwrap();
        assert_eq!(
            (&*name.vendor, &*name.class, &*name.device),
            ("nvidia.com", "gpu", "0")
        );
    }

    #[test]
    fn what_breaks_a_rule_is_refused_with_the_rule() {
        for (text, why) in [
            ("", "vendor/class=device"),
            ("nvidia.com/gpu", "vendor/class=device"),
            ("gpu=0", "not vendor/class"),
            ("/gpu=0", "vendor is empty"),
            ("nvidia.com/=0", "class is empty"),
            ("nvidia.com/gpu=", "device is empty"),
            ("1v/gpu=0", "start with a letter"),
            ("nvidia.com/1gpu=0", "start with a letter"),
            ("nvidia.com./gpu=0", "vendor \"nvidia.com.\" does not end"),
            ("nvidia.com/gpu-=0", "does not end"),
            ("nvidia.com/gpu=:0", "letter or digit"),
            ("nvidia.com/gpu=0:", "does not end"),
            ("a/b/c=0", "class \"b/c\" holds"),
            ("nvi:dia/gpu=0", "vendor \"nvi:dia\" holds"),
            ("nvidia.com/gpu=a=b", "device \"a=b\" holds"),
            ("nvidia.com/gpu=a/../b", "holds"),
            ("nvidia.com/gpu=\u{e9}0", "start with a letter or digit"),
            (" nvidia.com/gpu=0", "start with a letter"),
        ] {
            let e = parse_qualified(text).unwrap_err().to_string();
            assert!(e.contains(why), "{text:?}: {e}");
        }
    }
}
