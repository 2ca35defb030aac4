//! A cell's limits as properties of its unit (systemd.resource-control(5)), so that systemd, which writes the
//! control files itself whenever it thinks of it (`systemctl daemon-reload`), writes what is meant.
//!
//! Pure. Works on the list of file writes, so that `linux.resources.unified` is covered too. Files that systemd knows
//! nothing of have no property: it leaves them alone.

use super::wire::Value;
use crate::cgroup::device::{ALL, DeviceRule, Kind, MKNOD, READ, WRITE};
use crate::cgroup::limits::Write;

/// A unit's property by name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Property {
    pub name: String,
    pub value: Value,
}

pub(super) fn property(name: impl Into<String>, value: Value) -> Property {
    Property {
        name: name.into(),
        value,
    }
}

/// As StartTransientUnit and SetUnitProperties take them: `a(sv)`.
pub(super) fn encoded(list: &[Property]) -> Value {
    let one = |p: &Property| {
        let value = Value::Variant(Box::new(p.value.clone()));
        Value::Struct(vec![Value::text(&p.name), value])
    };
    Value::Array("(sv)".into(), list.iter().map(one).collect())
}

/// systemd's "no limit": CGROUP_LIMIT_MAX, USEC_INFINITY.
const INFINITY: u64 = u64::MAX;
/// Period that a quota alone is for, in microseconds.
const PERIOD: u64 = 100_000;
/// More CPUs and nodes than this fit no kernel (NR_CPUS of x86 is 8192).
const CPUS: usize = 8192;

/// What `cpu.idle` = 1 is to systemd (CGROUP_WEIGHT_IDLE, since 252): a weight of zero.
const IDLE: u64 = 0;

/// The properties for a list of writes. `idle` says whether this systemd knows idle groups. Values that systemd has no
/// way to say are left out.
pub(crate) fn limits(writes: &[Write], idle: bool) -> Vec<Property> {
    let mut out = List(Vec::new());
    for w in writes {
        out.add(&w.file, &w.value, idle);
        // The BFQ scheduler's file has another scale; systemd fills it from the common one.
        if let Some((file, value)) = &w.otherwise {
            out.add(file, value, idle);
        }
    }
    out.0
}

/// Whether one of them needs a systemd that knows idle groups.
pub(crate) fn wants_idle(writes: &[Write]) -> bool {
    writes.iter().any(|w| w.file == "cpu.idle")
}

struct List(Vec<Property>);

impl List {
    fn set(&mut self, name: &str, value: Value) {
        match self.0.iter_mut().find(|p| p.name == name) {
            Some(p) => p.value = value,
            None => self.0.push(property(name, value)),
        }
    }

    fn number(&mut self, name: &str, text: &str) {
        if let Some(n) = number(text) {
            self.set(name, Value::U64(n));
        }
    }

    /// One device's line of a property that is `a(st)`.
    fn device(&mut self, name: &str, device: &str, n: u64) {
        // systemd reads the numbers out of such a path, so it needs no node.
        let line = Value::Struct(vec![
            Value::text(format!("/dev/block/{device}")),
            Value::U64(n),
        ]);
        match self.0.iter_mut().find(|p| p.name == name) {
            Some(Property {
                value: Value::Array(_, lines),
                ..
            }) => lines.push(line),
            _ => self.set(name, Value::Array("(st)".into(), vec![line])),
        }
    }

    fn add(&mut self, file: &str, value: &str, idle: bool) {
        let value = value.trim();
        match file {
            "memory.max" => self.number("MemoryMax", value),
            "memory.high" => self.number("MemoryHigh", value),
            "memory.low" => self.number("MemoryLow", value),
            "memory.min" => self.number("MemoryMin", value),
            "memory.swap.max" => self.number("MemorySwapMax", value),
            "pids.max" => self.number("TasksMax", value),
            "cpu.weight" => self.number("CPUWeight", value),
            "cpu.idle" if idle && value == "1" => self.set("CPUWeight", Value::U64(IDLE)),
            // Not idle any more, and nothing else said: the kernel's default.
            "cpu.idle" if idle && value == "0" => self.number("CPUWeight", "100"),
            "cpu.max" => self.cpu_max(value),
            "cpuset.cpus" => self.mask("AllowedCPUs", value),
            "cpuset.mems" => self.mask("AllowedMemoryNodes", value),
            "io.weight" => self.io_weight(value),
            "io.max" => self.io_max(value),
            _ => {}
        }
    }

    fn cpu_max(&mut self, value: &str) {
        let mut words = value.split_whitespace();
        let (quota, period) = (words.next(), words.next());
        let Some(quota) = quota.and_then(number) else {
            return;
        };
        let period = period.and_then(number).filter(|&p| p != 0);
        if let Some(p) = period {
            self.set("CPUQuotaPeriodUSec", Value::U64(p));
        }
        let share = match quota {
            INFINITY => INFINITY,
            q => per_second(q, period.unwrap_or(PERIOD)),
        };
        self.set("CPUQuotaPerSecUSec", Value::U64(share));
    }

    fn mask(&mut self, name: &str, list: &str) {
        if let Some(mask) = mask(list) {
            let bytes = mask.into_iter().map(Value::Byte).collect();
            self.set(name, Value::Array("y".into(), bytes));
        }
    }

    /// `100`, `default 100` or `8:0 100`.
    fn io_weight(&mut self, value: &str) {
        match value.split_once(' ') {
            None | Some(("default", _)) => {
                self.number("IOWeight", value.trim_start_matches("default "));
            }
            Some((device, weight)) => {
                if let Some(n) = weight.trim().parse().ok().filter(|_| is_device(device)) {
                    self.device("IODeviceWeight", device, n);
                }
            }
        }
    }

    /// `8:0 rbps=1 wiops=max`
    fn io_max(&mut self, value: &str) {
        let mut words = value.split_whitespace();
        let Some(device) = words.next().filter(|d| is_device(d)) else {
            return;
        };
        for word in words {
            let (name, n) = match word.split_once('=') {
                Some(("rbps", n)) => ("IOReadBandwidthMax", n),
                Some(("wbps", n)) => ("IOWriteBandwidthMax", n),
                Some(("riops", n)) => ("IOReadIOPSMax", n),
                Some(("wiops", n)) => ("IOWriteIOPSMax", n),
                _ => continue,
            };
            if let Some(n) = number(n) {
                self.device(name, device, n);
            }
        }
    }
}

fn number(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(INFINITY),
        n => n.parse().ok(),
    }
}

fn is_device(text: &str) -> bool {
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    matches!(text.split_once(':'), Some((a, b)) if number(a) && number(b))
}

/// Microseconds of CPU time in a second. systemd keeps whole percents of a CPU: rounded up, so that what the cell hands
/// to groups of its own fits (as runc). The file itself gets the exact quota.
fn per_second(quota: u64, period: u64) -> u64 {
    const PERCENT: u128 = 10_000;
    let exact = u128::from(quota) * 1_000_000 / u128::from(period);
    let rounded = exact.div_ceil(PERCENT) * PERCENT;
    u64::try_from(rounded).unwrap_or(INFINITY)
}

/// A list such as `0-3,7` as bits, the first one the lowest of the first byte. None for what is no such list.
fn mask(list: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for part in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CPUS {
            return None;
        }
        if out.len() <= last / 8 {
            out.resize(last / 8 + 1, 0);
        }
        for bit in first..=last {
            out[bit / 8] |= 1 << (bit % 8);
        }
    }
    (!out.is_empty()).then_some(out)
}

/// systemd's own device filter. It knows no order and no denying, and is in force beside ours (a group's programs must
/// all agree), so what it allows is all that the list allows anywhere: ours decides. It stands for the case that systemd
/// is asked what the unit may use, and that it makes its filter anew.
pub(crate) fn devices(rules: &[DeviceRule]) -> Vec<Property> {
    let is_all = |r: &DeviceRule| {
        r.kind == Kind::All && r.major.is_none() && r.minor.is_none() && r.access == ALL
    };
    // What comes before "deny all" is of no effect.
    let start = rules.iter().rposition(|r| !r.allow && is_all(r));
    let rules = &rules[start.map_or(0, |at| at + 1)..];
    let mut list: Vec<(String, u8)> = Vec::new();
    let mut allow = |what: String, access: u8| match list.iter_mut().find(|e| e.0 == what) {
        Some(e) => e.1 |= access,
        None => list.push((what, access)),
    };
    for r in rules.iter().filter(|r| r.allow) {
        for (kind, word) in [(Kind::Block, "block"), (Kind::Char, "char")] {
            if r.kind != Kind::All && r.kind != kind {
                continue;
            }
            match (r.major, r.minor) {
                (Some(major), Some(minor)) => {
                    allow(format!("/dev/{word}/{major}:{minor}"), r.access);
                }
                (Some(major), None) => allow(format!("{word}-{major}"), r.access),
                // "This minor of every major" can't be said.
                (None, _) => allow(format!("{word}-*"), r.access),
            }
        }
    }
    let text = |access: u8| -> String {
        [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
            .iter()
            .filter(|(bit, _)| access & bit != 0)
            .map(|&(_, c)| c)
            .collect()
    };
    let entry = |(what, access): &(String, u8)| {
        Value::Struct(vec![Value::text(what), Value::text(text(*access))])
    };
    let lines =
        |list: &[(String, u8)]| Value::Array("(ss)".into(), list.iter().map(entry).collect());
    vec![
        property("DevicePolicy", Value::text("strict")),
        // An empty list takes away what an earlier one allowed.
        property("DeviceAllow", lines(&[])),
        property("DeviceAllow", lines(&list)),
    ]
}

/// As [`devices`], for a list that denies nothing.
pub(crate) fn all_devices() -> Vec<Property> {
    vec![
        property("DevicePolicy", Value::text("auto")),
        property("DeviceAllow", Value::Array("(ss)".into(), Vec::new())),
    ]
}

#[cfg(test)]
#[path = "properties_tests.rs"]
mod tests;
