//! Order and order statistics.
use std::time::{SystemTime, UNIX_EPOCH};

/// The middle value; sorts. 0 of nothing.
pub fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value that a share `q` of the values lie below; between two, their mean for the median.
pub fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else {
        return 0.0;
    };
    let at = q * last as f64;
    let (low, high) = (values[at.floor() as usize], values[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// A random order for each round: what comes before a sample (caches, the scheduler's state, another
/// program's phase on a shared machine) is then the same for all on average.
pub struct Order(u64);

impl Order {
    pub fn new() -> Order {
        let nanos = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |d| d.as_nanos() as u64);
        Order(nanos | 1)
    }

    fn next(&mut self) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// 0..n in random order.
    pub fn shuffled(&mut self, n: usize) -> Vec<usize> {
        let mut v: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            v.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
        v
    }
}

/// Waits, for half a second at most, until the machine has been at least 85 % idle for 20 ms. False
/// when it has not.
pub fn await_idle() -> bool {
    for _ in 0..25 {
        let Some((busy0, all0)) = cpu_ticks() else {
            return true;
        };
        std::thread::sleep(std::time::Duration::from_millis(20));
        let Some((busy1, all1)) = cpu_ticks() else {
            return true;
        };
        // Ticks are 10 ms: on two CPUs 20 ms are about four.
        if all1 == all0 || (busy1 - busy0) as f64 / (all1 - all0) as f64 <= 0.15 {
            return true;
        }
    }
    false
}

/// Busy and all ticks of all CPUs (proc_stat(5)): user nice system idle iowait irq softirq steal.
fn cpu_ticks() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> = text
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .filter_map(|t| t.parse().ok())
        .collect();
    let all = ticks.iter().take(8).sum();
    Some((all - ticks.get(3)? - ticks.get(4)?, all))
}
