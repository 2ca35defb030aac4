//! Conversions from v1 units, in which the spec speaks, to v2 units. Pure arithmetic.

use crate::error::{Error, Result};

/// cpu.shares (2 to 262144, default 1024) to cpu.weight (1 to 10000, default 100).
///
/// The newer, logarithmic conversion that runc and crun share (crun(1), "CPU controller"): a
/// quadratic curve in log2 through (2, 1), (1024, 100) and (262144, 10000), which keeps the
/// default the default. 0 means unset and stays 0.
pub(crate) fn shares_to_weight(shares: u64) -> u64 {
    match shares {
        0 => 0,
        1..=2 => 1,
        3..262_144 => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
        _ => 10_000,
    }
}

/// blkio weight (10 to 1000) to io.weight (1 to 10000), linearly, as runc and crun do.
/// 0 means unset and stays 0.
pub(crate) fn blkio_to_io_weight(weight: u16) -> u64 {
    match weight {
        0 => 0,
        w => 1 + (u64::from(w.clamp(10, 1000)) - 10) * 9_999 / 990,
    }
}

/// A byte limit as v2 files write it: -1 is `max`.
pub(crate) fn bytes(at: &'static str, value: i64) -> Result<String> {
    match value {
        -1 => Ok("max".into()),
        v if v >= 0 => Ok(v.to_string()),
        v => Err(Error::config(
            at,
            format!("expected bytes, or -1 for no limit, not {v}"),
        )),
    }
}

/// `memory.swap` counts memory and swap together (v1); memory.swap.max counts swap alone.
///
/// `limit` is the memory limit that holds: the one asked for, or on an update the present one.
/// `None` back means: leave memory.swap.max as it is.
///
/// # Errors
/// A configuration error for swap without a memory limit, or smaller than it.
pub(crate) fn swap(limit: Option<i64>, swap: Option<i64>) -> Result<Option<String>> {
    const AT: &str = "linux.resources.memory.swap";
    let limit = limit.filter(|&l| l != 0);
    match swap.filter(|&s| s != 0) {
        // As v1 did: no memory limit means no swap limit, unless one is asked for.
        None if limit == Some(-1) => Ok(Some("max".into())),
        None => Ok(None),
        Some(-1) => Ok(Some("max".into())),
        Some(s) if s < 0 => Err(Error::config(
            AT,
            format!("expected bytes, or -1 for no limit, not {s}"),
        )),
        Some(s) => match limit {
            None => Err(Error::config(
                AT,
                "memory+swap can't be limited without linux.resources.memory.limit",
            )),
            Some(-1) => Ok(Some(s.to_string())),
            Some(l) if s < l => Err(Error::config(
                AT,
                format!(
                    "{s} is memory and swap together: expected no less than the memory limit, {l}"
                ),
            )),
            Some(l) => Ok(Some((s - l).to_string())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_newer_curve() {
        // The ends and the default, between which the curve is drawn.
        for (shares, weight) in [
            (0, 0),
            (1, 1),
            (2, 1),
            (256, 35),
            (512, 59),
            (1024, 100),
            (2048, 174),
            (4096, 303),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(shares_to_weight(shares), weight, "shares {shares}");
        }
        let mut last = 0;
        for shares in 2..=262_144 {
            let w = shares_to_weight(shares);
            assert!(w >= last && w >= 1, "not monotonic at {shares}");
            last = w;
        }
    }

    #[test]
    fn io_weight_spans_its_range() {
        for (blkio, io) in [
            (0, 0),
            (10, 1),
            (100, 910),
            (500, 4950),
            (1000, 10_000),
            (1, 1),
        ] {
            assert_eq!(blkio_to_io_weight(blkio), io, "weight {blkio}");
        }
    }

    #[test]
    fn swap_is_what_exceeds_memory() {
        let max = Some("max".to_owned());
        assert_eq!(swap(Some(100), Some(150)).unwrap(), Some("50".into()));
        assert_eq!(swap(Some(100), Some(100)).unwrap(), Some("0".into()));
        assert_eq!(swap(Some(100), Some(-1)).unwrap(), max);
        assert_eq!(swap(Some(-1), Some(70)).unwrap(), Some("70".into()));
        assert_eq!(swap(Some(-1), None).unwrap(), max);
        assert_eq!(swap(Some(-1), Some(0)).unwrap(), max);
        assert_eq!(swap(Some(100), None).unwrap(), None);
        assert_eq!(swap(None, None).unwrap(), None);
        assert_eq!(swap(None, Some(-1)).unwrap(), max);
        assert!(swap(None, Some(5)).is_err());
        assert!(swap(Some(0), Some(5)).is_err());
        assert!(swap(Some(100), Some(99)).is_err());
        assert!(swap(Some(100), Some(-2)).is_err());
    }

    #[test]
    fn minus_one_is_max() {
        assert_eq!(bytes("x", -1).unwrap(), "max");
        assert_eq!(bytes("x", 4096).unwrap(), "4096");
        assert!(bytes("x", -2).is_err());
    }
}
