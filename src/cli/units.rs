//! The units people type, as Docker reads them: sizes, CPUs, rates, ulimits, CPU lists.
//!
//! Pure text to numbers, with Docker's wording of the errors (docker/cli `opts`, docker/go-units). It
//! must not know flags or the host.

use std::collections::BTreeSet;
use std::time::Duration;

use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType};

/// One CPU in the unit of [`nano_cpus`].
pub const NANO: u64 = 1_000_000_000;

/// The most CPUs a list may name (moby `parsers.ParseUintList`, `maximum` 8192).
const MAX_LIST: u32 = 8192;

/// A size in bytes: `64`, `512m`, `4g`, `1.5GiB`, `10 kb`. All units are powers of 1024
/// (go-units `RAMInBytes`).
///
/// # Errors
/// `invalid size: 'x'` or `invalid suffix: 'x'`.
pub fn bytes(text: &str) -> Result<i64, String> {
    let bad = || format!("invalid size: '{text}'");
    let end = text
        .rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')
        .map(|i| i + 1)
        .ok_or_else(bad)?;
    let (number, suffix) = text.split_at_checked(end).ok_or_else(bad)?;
    let number = number.strip_suffix(' ').unwrap_or(number);
    let unit = suffix.to_ascii_lowercase();
    let power = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(format!("invalid suffix: '{suffix}'")),
    };
    let value = decimal(number, 1_u128 << (10 * power)).ok_or_else(bad)?;
    i64::try_from(value.0).map_err(|_| bad())
}

/// `number` (digits, at most one point) times `scale`, rounded down; and whether that was exact.
fn decimal(number: &str, scale: u128) -> Option<(u128, bool)> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    // 18 digits of fraction keep every product below u128's 38 digits.
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    if whole.len() > 19 || fraction.len() > 18 {
        return None;
    }
    let value = |s: &str| {
        if s.is_empty() {
            Some(0)
        } else {
            s.parse::<u128>().ok()
        }
    };
    let part = value(fraction)?.checked_mul(scale)?;
    let unit = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let total = value(whole)?.checked_mul(scale)?.checked_add(part / unit)?;
    Some((total, part % unit == 0))
}

/// CPUs in billionths: `2`, `0.5`, `.25` (Docker's `--cpus`).
///
/// # Errors
/// `failed to parse 'x' as a rational number`, or `value is too precise` beyond nine decimals.
pub fn nano_cpus(text: &str) -> Result<u64, String> {
    let bad = || format!("failed to parse '{text}' as a rational number");
    let (value, exact) = decimal(text, u128::from(NANO)).ok_or_else(bad)?;
    if !exact {
        return Err("value is too precise".to_owned());
    }
    u64::try_from(value).map_err(|_| bad())
}

/// A device and its rate in bytes a second: `/dev/sda:1mb`.
///
/// # Errors
/// Docker's wording (docker/cli `ValidateThrottleBpsDevice`).
pub fn rate_bps(text: &str) -> Result<(String, u64), String> {
    rate(
        text,
        "<device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb",
        |r| bytes(r).ok().and_then(|b| u64::try_from(b).ok()),
    )
}

/// A device and its rate in operations a second: `/dev/sda:1000`.
///
/// # Errors
/// Docker's wording (docker/cli `ValidateThrottleIOpsDevice`).
pub fn rate_iops(text: &str) -> Result<(String, u64), String> {
    let format = "<device-path>:<number>. Number must be a positive integer";
    rate(text, format, |r| r.parse().ok())
}

fn rate(
    text: &str,
    format: &str,
    parse: impl Fn(&str) -> Option<u64>,
) -> Result<(String, u64), String> {
    let (path, value) = device_and_value(text)?;
    let value = parse(value).ok_or_else(|| {
        format!("invalid rate for device: {text}. The correct format is {format}")
    })?;
    Ok((path, value))
}

/// A device and its I/O weight: `/dev/sda:500`, 10 to 1000, or 0 for none.
///
/// # Errors
/// Docker's wording (docker/cli `ValidateWeightDevice`).
pub fn device_weight(text: &str) -> Result<(String, u16), String> {
    let (path, value) = device_and_value(text)?;
    match value.parse() {
        Ok(weight @ (0 | 10..=1000)) => Ok((path, weight)),
        _ => Err(format!("invalid weight for device: {text}")),
    }
}

fn device_and_value(text: &str) -> Result<(String, &str), String> {
    let (path, value) = text
        .split_once(':')
        .ok_or_else(|| format!("bad format: {text}"))?;
    if !path.starts_with("/dev/") {
        return Err(format!("bad format for device path: {text}"));
    }
    Ok((path.to_owned(), value))
}

/// A ulimit: `nofile=1024`, `nofile=1024:4096`, `core=-1` for no limit.
///
/// # Errors
/// Docker's wording (go-units `ParseUlimit`).
pub fn ulimit(text: &str) -> Result<PosixRlimit, String> {
    let (name, limits) = text
        .split_once('=')
        .ok_or_else(|| format!("invalid ulimit argument: {text}"))?;
    let typ = rlimit_type(name).ok_or_else(|| format!("invalid ulimit type: {name}"))?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    if hard.contains(':') {
        return Err(format!(
            "too many limit value arguments - {limits}, can only have up to two, `soft[:hard]`"
        ));
    }
    let value = |s: &str| match s {
        "-1" => Ok(u64::MAX), // RLIM_INFINITY, getrlimit(2)
        _ => s
            .parse::<u64>()
            .map_err(|_| format!("invalid ulimit argument: {text}")),
    };
    let (soft, hard) = (value(soft)?, value(hard)?);
    if soft > hard {
        let show = |v| {
            if v == u64::MAX {
                "-1".to_owned()
            } else {
                format!("{v}")
            }
        };
        return Err(format!(
            "ulimit soft limit must be less than or equal to hard limit: {} > {}",
            show(soft),
            show(hard)
        ));
    }
    PosixRlimitBuilder::default()
        .typ(typ)
        .soft(soft)
        .hard(hard)
        .build()
        .map_err(|e| e.to_string())
}

fn rlimit_type(name: &str) -> Option<PosixRlimitType> {
    Some(match name {
        "as" => PosixRlimitType::RlimitAs,
        "core" => PosixRlimitType::RlimitCore,
        "cpu" => PosixRlimitType::RlimitCpu,
        "data" => PosixRlimitType::RlimitData,
        "fsize" => PosixRlimitType::RlimitFsize,
        "locks" => PosixRlimitType::RlimitLocks,
        "memlock" => PosixRlimitType::RlimitMemlock,
        "msgqueue" => PosixRlimitType::RlimitMsgqueue,
        "nice" => PosixRlimitType::RlimitNice,
        "nofile" => PosixRlimitType::RlimitNofile,
        "nproc" => PosixRlimitType::RlimitNproc,
        "rss" => PosixRlimitType::RlimitRss,
        "rtprio" => PosixRlimitType::RlimitRtprio,
        "rttime" => PosixRlimitType::RlimitRttime,
        "sigpending" => PosixRlimitType::RlimitSigpending,
        "stack" => PosixRlimitType::RlimitStack,
        _ => return None,
    })
}

/// A list of numbers as cpuset(7) writes it: `0-3,7`. Empty text is an empty list.
///
/// # Errors
/// The text itself, when it isn't such a list.
pub fn list(text: &str) -> Result<BTreeSet<u32>, String> {
    let bad = || format!("invalid format: {text}");
    let mut out = BTreeSet::new();
    if text.trim().is_empty() {
        return Ok(out);
    }
    for part in text.trim().split(',') {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let number = |s: &str| s.trim().parse::<u32>().ok().filter(|n| *n <= MAX_LIST);
        let (low, high) = (number(low).ok_or_else(bad)?, number(high).ok_or_else(bad)?);
        if low > high {
            return Err(bad());
        }
        out.extend(low..=high);
    }
    Ok(out)
}

/// A span of time as Go writes it: `5s`, `1.5h`, `1m30s`, `100ms`.
///
/// # Errors
/// Go's wording (`time.ParseDuration`), for negative ones too.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("time: invalid duration \"{text}\"");
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(|| format!("time: missing unit in duration \"{text}\""))?;
        let (number, tail) = rest.split_at(end);
        let unit = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let scale = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(bad()),
        };
        let value = decimal(number, scale).ok_or_else(bad)?;
        nanos = nanos.checked_add(value.0).ok_or_else(bad)?;
        rest = tail;
    }
    // Go's are 64 bits of nanoseconds.
    match i64::try_from(nanos) {
        Ok(n) => Ok(Duration::from_nanos(n.unsigned_abs())),
        Err(_) => Err(bad()),
    }
}

/// Bytes in words with at most one decimal, as `64 MiB` or `1.5 GiB`.
pub fn human(bytes: u64) -> String {
    short(bytes, false)
}

/// Bytes in words, always with one decimal above KiB: `64.0 MiB`.
pub fn human_exact(bytes: u64) -> String {
    short(bytes, true)
}

fn short(bytes: u64, always: bool) -> String {
    let (name, unit) = match bytes {
        0..1024 => return format!("{bytes} B"),
        1024..0x10_0000 => ("KiB", 1_u64 << 10),
        0x10_0000..0x4000_0000 => ("MiB", 1 << 20),
        0x4000_0000..0x100_0000_0000 => ("GiB", 1 << 30),
        _ => ("TiB", 1 << 40),
    };
    let whole = bytes / unit;
    let tenths = bytes % unit * 10 / unit;
    if tenths == 0 && !always {
        format!("{whole} {name}")
    } else {
        format!("{whole}.{tenths} {name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_reads_them() {
        let ms = Duration::from_millis;
        for (text, want) in [
            ("5s", Ok(ms(5000))),
            ("0", Ok(ms(0))),
            ("100ms", Ok(ms(100))),
            ("1.5h", Ok(ms(5_400_000))),
            ("1m30s", Ok(ms(90_000))),
            ("+.5s", Ok(ms(500))),
            ("3us", Ok(Duration::from_micros(3))),
            ("", Err("invalid duration")),
            ("5", Err("missing unit")),
            ("-5s", Err("invalid duration")),
            ("s", Err("invalid duration")),
            ("5 s", Err("invalid duration")),
            ("5d", Err("invalid duration")),
            ("9999999h", Err("invalid duration")),
            ("1.2.3s", Err("invalid duration")),
        ] {
            match (duration(text), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{text}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{text}: {got}"),
                (got, want) => panic!("{text}: {got:?}, not {want:?}"),
            }
        }
    }

    #[test]
    fn sizes() {
        for (text, want) in [
            ("0", Ok(0)),
            ("32", Ok(32)),
            ("32b", Ok(32)),
            ("32k", Ok(32 << 10)),
            ("32KiB", Ok(32 << 10)),
            ("512m", Ok(512 << 20)),
            ("4g", Ok(4 << 30)),
            ("4Gb", Ok(4 << 30)),
            ("1.5g", Ok(3 << 29)),
            (".5m", Ok(1 << 19)),
            ("10 mb", Ok(10 << 20)),
            ("2t", Ok(2 << 40)),
            ("1p", Ok(1 << 50)),
            ("0.3k", Ok(307)),
            ("", Err("invalid size: ''")),
            ("g", Err("invalid size: 'g'")),
            ("-4m", Err("invalid size: '-4m'")),
            ("1.2.3m", Err("invalid size: '1.2.3m'")),
            ("4x", Err("invalid suffix: 'x'")),
            ("4mm", Err("invalid suffix: 'mm'")),
            ("9999999p", Err("invalid size: '9999999p'")),
            (
                "99999999999999999999",
                Err("invalid size: '99999999999999999999'"),
            ),
            ("1\u{e9}", Err("invalid suffix: '\u{e9}'")),
        ] {
            assert_eq!(bytes(text), want.map_err(str::to_owned), "{text:?}");
        }
    }

    #[test]
    fn cpus() {
        for (text, want) in [
            ("2", Some(2 * NANO)),
            ("2.0", Some(2 * NANO)),
            ("0.5", Some(NANO / 2)),
            (".25", Some(NANO / 4)),
            ("0.000000001", Some(1)),
            ("0.0000000001", None),
            ("two", None),
            ("-1", None),
            ("", None),
            ("1e3", None),
        ] {
            assert_eq!(nano_cpus(text).ok(), want, "{text:?}");
        }
        assert_eq!(
            nano_cpus("0.0000000001").unwrap_err(),
            "value is too precise"
        );
    }

    #[test]
    fn rates_and_weights() {
        assert_eq!(rate_bps("/dev/sda:1mb"), Ok(("/dev/sda".into(), 1 << 20)));
        assert_eq!(rate_iops("/dev/sda:100"), Ok(("/dev/sda".into(), 100)));
        assert_eq!(device_weight("/dev/sda:500"), Ok(("/dev/sda".into(), 500)));
        for text in [
            "sda:1mb",
            "/dev/sda",
            "/dev/sda:fast",
            "/dev/sda:-1",
            "/dev/a:b:1",
        ] {
            assert!(rate_bps(text).is_err(), "{text}");
            assert!(rate_iops(text).is_err(), "{text}");
            assert!(device_weight(text).is_err(), "{text}");
        }
        assert!(rate_iops("/dev/sda:1mb").is_err());
        assert!(device_weight("/dev/sda:9").is_err());
        assert!(device_weight("/dev/sda:1001").is_err());
    }

    #[test]
    fn ulimits() {
        let show = |text: &str| ulimit(text).map(|l| (l.typ().to_string(), l.soft(), l.hard()));
        assert_eq!(
            show("nofile=1024:4096"),
            Ok(("RLIMIT_NOFILE".into(), 1024, 4096))
        );
        assert_eq!(show("core=0"), Ok(("RLIMIT_CORE".into(), 0, 0)));
        assert_eq!(
            show("memlock=-1"),
            Ok(("RLIMIT_MEMLOCK".into(), u64::MAX, u64::MAX))
        );
        for (text, want) in [
            ("nofile", "invalid ulimit argument: nofile"),
            ("files=1", "invalid ulimit type: files"),
            ("nofile=a", "invalid ulimit argument: nofile=a"),
            (
                "nofile=2:1",
                "ulimit soft limit must be less than or equal to hard limit: 2 > 1",
            ),
            (
                "nofile=-1:1",
                "ulimit soft limit must be less than or equal to hard limit: -1 > 1",
            ),
            (
                "nofile=1:2:3",
                "too many limit value arguments - 1:2:3, can only have up to two, `soft[:hard]`",
            ),
        ] {
            assert_eq!(ulimit(text).unwrap_err(), want);
        }
    }

    #[test]
    fn lists() {
        let show = |text: &str| list(text).map(|l| l.into_iter().collect::<Vec<_>>());
        assert_eq!(show("0-2,7"), Ok(vec![0, 1, 2, 7]));
        assert_eq!(show("3"), Ok(vec![3]));
        assert_eq!(show(""), Ok(vec![]));
        for text in ["a", "1-", "-1", "3-1", "1,,2", "0-9999999", "1-2-3"] {
            assert!(list(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_in_words() {
        assert_eq!(human(64 << 20), "64 MiB");
        assert_eq!(human_exact(64 << 20), "64.0 MiB");
        assert_eq!(human((3 << 30) / 2), "1.5 GiB");
        assert_eq!(human(12), "12 B");
        assert_eq!(human(4 << 40), "4 TiB");
        assert_eq!(human(u64::MAX), "16777215.9 TiB");
    }
}
