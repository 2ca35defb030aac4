//! A device table as devices.deny and devices.allow lines (kernel: cgroup-v1/devices.rst).
//!
//! Only for hosts without any cgroup2 mount. Owns the translation, and refuses what the v1
//! controller can't express: it holds one default and exceptions to it, and an exception can
//! have no exception of its own.

use super::device::{ALL, DeviceRule, Kind, KindTable, MKNOD, READ, Table, WRITE};
use super::limits::{Need, Write};
use crate::error::{Error, Result};
use std::borrow::Cow;

/// The lines, in order, that bring any group to the table.
///
/// # Errors
/// [`Error::Unsupported`] for a list with holes in a wildcard.
pub(crate) fn lower(table: &Table) -> Result<Vec<Write>> {
    let kinds = [('b', &table.blocks), ('c', &table.chars)];
    let open = kinds.iter().all(|(_, t)| t.rest == ALL);
    // With `a` the group forgets all exceptions.
    let mut out = vec![line(open, "a".to_owned())];
    for (letter, t) in kinds {
        // Access that an exception adds to the default (deny) or takes from it (allow).
        let wanted = |access: u8| if open { ALL & !access } else { access };
        let rest = wanted(t.rest);
        check(letter, t, &wanted)?;
        let mut except = |major: Option<u32>, minor: Option<u32>, access: u8| {
            let extra = wanted(access) & !rest;
            if extra != 0 || (major.is_none() && minor.is_none() && rest != 0) {
                let bits = if extra == 0 { rest } else { wanted(access) };
                let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
                let text = format!("{letter} {}:{} {}", number(major), number(minor), rwm(bits));
                out.push(line(!open, text));
            }
        };
        except(None, None, t.rest);
        for &(major, a) in &t.majors {
            except(Some(major), None, a);
        }
        for &(minor, a) in &t.minors {
            except(None, Some(minor), a);
        }
        for &(major, minor, a) in &t.exact {
            except(Some(major), Some(minor), a);
        }
    }
    Ok(out)
}

/// One rule as lines for devices.allow or devices.deny. A rule for both kinds is two lines: the
/// kernel takes `a` for all devices, whatever numbers stand behind it.
pub(super) fn rule_lines(rule: &DeviceRule) -> Vec<String> {
    let kinds: &[char] = match rule.kind {
        Kind::All => &['b', 'c'],
        Kind::Block => &['b'],
        Kind::Char => &['c'],
    };
    let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
    let (major, minor) = (number(rule.major), number(rule.minor));
    let access = rwm(rule.access);
    let line = |letter: &char| format!("{letter} {major}:{minor} {access}");
    kinds.iter().map(line).collect()
}

fn line(allow: bool, value: String) -> Write {
    Write {
        controller: Cow::Borrowed("devices"),
        file: Cow::Borrowed(if allow {
            "devices.allow"
        } else {
            "devices.deny"
        }),
        value,
        need: Need::Must,
        otherwise: None,
    }
}

/// Exceptions may only add to what wider ones give.
fn check(letter: char, t: &KindTable, wanted: &dyn Fn(u8) -> u8) -> Result<()> {
    let hole = |major: &str, minor: &str| {
        Err(Error::unsupported(
            "linux.resources.devices",
            format!(
                "the v1 controller devices can't except {letter} {major}:{minor} from a wider rule"
            ),
        ))
    };
    let rest = wanted(t.rest);
    for &(major, a) in &t.majors {
        if rest & !wanted(a) != 0 {
            return hole(&major.to_string(), "*");
        }
    }
    for &(minor, a) in &t.minors {
        if rest & !wanted(a) != 0 {
            return hole("*", &minor.to_string());
        }
    }
    // Where wildcards cross, v1 grants what either does; the table has one answer.
    let crossings = t.majors.iter().flat_map(|&(major, _)| {
        let cross = move |&(minor, _): &(u32, u8)| (major, minor, t.look_up(major, minor));
        t.minors.iter().map(cross)
    });
    for (major, minor, a) in t.exact.iter().copied().chain(crossings) {
        let by_major = t
            .majors
            .iter()
            .find(|e| e.0 == major)
            .map_or(0, |e| wanted(e.1));
        let by_minor = t
            .minors
            .iter()
            .find(|e| e.0 == minor)
            .map_or(0, |e| wanted(e.1));
        if (rest | by_major | by_minor) & !wanted(a) != 0 {
            return hole(&major.to_string(), &minor.to_string());
        }
    }
    Ok(())
}

fn rwm(access: u8) -> String {
    [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
        .iter()
        .filter(|(bit, _)| access & bit != 0)
        .map(|(_, c)| *c)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::device::{DEFAULT_RULES, DeviceRule, Kind};
    use super::*;

    fn rule(
        allow: bool,
        kind: Kind,
        major: Option<u32>,
        minor: Option<u32>,
        access: u8,
    ) -> DeviceRule {
        DeviceRule {
            allow,
            kind,
            major,
            minor,
            access,
        }
    }

    fn lines(rules: &[DeviceRule]) -> Option<Vec<String>> {
        let list = lower(&Table::new(rules)).ok()?;
        let show = |w: &Write| format!("{} {}", w.file.trim_start_matches("devices."), w.value);
        Some(list.iter().map(show).collect())
    }

    #[test]
    fn single_rules_never_mean_all_devices() {
        let gpu = rule(true, Kind::Char, Some(195), Some(0), READ | WRITE);
        assert_eq!(rule_lines(&gpu), ["c 195:0 rw"]);
        let both = rule(true, Kind::All, Some(8), None, ALL);
        assert_eq!(rule_lines(&both), ["b 8:* rwm", "c 8:* rwm"]);
    }

    #[test]
    fn deny_with_exceptions() {
        let got = lines(&DEFAULT_RULES).unwrap();
        assert_eq!(got[..3], ["deny a", "allow b *:* m", "allow c *:* m"]);
        assert!(got.contains(&"allow c 136:* rwm".to_owned()));
        assert!(got.contains(&"allow c 1:3 rwm".to_owned()));
        assert_eq!(lines(&[]).unwrap(), ["deny a"]);
    }

    #[test]
    fn allow_with_exceptions() {
        let all = rule(true, Kind::All, None, None, ALL);
        let no_gpu = rule(false, Kind::Char, Some(195), None, READ | WRITE);
        assert_eq!(lines(&[all]).unwrap(), ["allow a"]);
        assert_eq!(
            lines(&[all, no_gpu]).unwrap(),
            ["allow a", "deny c 195:* rw"]
        );
    }

    #[test]
    fn holes_are_refused() {
        let all = rule(true, Kind::Char, None, None, ALL);
        // All character devices but one, with block devices denied: v1 has one default for both.
        let hole = rule(false, Kind::Char, Some(1), Some(3), WRITE);
        assert_eq!(lines(&[all, hole]), None);
        let pts = rule(true, Kind::Char, Some(136), None, ALL);
        let one = rule(false, Kind::Char, Some(136), Some(7), ALL);
        assert_eq!(lines(&[pts, one]), None);
        // Where wildcards cross.
        let minor = rule(true, Kind::Char, None, Some(7), ALL);
        let major = rule(false, Kind::Char, Some(136), None, ALL);
        assert_eq!(lines(&[minor, major]), None);
        assert!(lines(&[major, minor]).is_some());
    }
}
