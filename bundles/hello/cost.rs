//! What things cost inside the cell: for `scripts/bench kernel`. Each prints one figure with its unit.
use std::fs;
use std::hint::black_box;
use std::io::{self, Read};
use std::process::Command;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;

/// Microseconds to start a program and wait for its end, over `n` times.
pub fn fork_exec(program: &str, n: usize) -> io::Result<String> {
    let t0 = Instant::now();
    for _ in 0..n {
        Command::new(program).status()?;
    }
    Ok(format!("us {:.2}", micros(t0) / n as f64))
}

/// Nanoseconds for a first touch of a page: allocate `size`, touch each page, give it back, for a while.
pub fn fault(size: usize, how_long: Duration) -> String {
    let t0 = Instant::now();
    let mut pages = 0;
    while t0.elapsed() < how_long {
        // Zeroed memory of this size comes fresh from the kernel, and goes back on drop.
        let mut v = vec![0u8; size];
        for at in (0..size).step_by(PAGE) {
            v[at] = 1;
        }
        black_box(&v);
        pages += size.div_ceil(PAGE);
    }
    format!("ns {:.1}", micros(t0) * 1e3 / pages as f64)
}

/// Microseconds to open a file, read its first bytes and close it.
pub fn open_read(path: &str, n: usize) -> io::Result<String> {
    let mut first = [0; 64];
    let t0 = Instant::now();
    for _ in 0..n {
        let read = fs::File::open(path)?.read(&mut first)?;
        black_box(read);
    }
    Ok(format!("us {:.3}", micros(t0) / n as f64))
}

/// MB/s of reading a whole file again and again.
pub fn read_file(path: &str, how_long: Duration) -> io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    let (t0, mut bytes) = (Instant::now(), 0u64);
    while t0.elapsed() < how_long {
        let mut f = fs::File::open(path)?;
        loop {
            match f.read(&mut buffer)? {
                0 => break,
                n => bytes += n as u64,
            }
        }
    }
    Ok(format!("mbs {:.0}", bytes as f64 / micros(t0)))
}

/// How a CPU limit takes effect: looks at the clock without pause. A gap of more than a millisecond is
/// the kernel holding this program back. Prints the share it ran, and the gaps.
pub fn throttle(how_long: Duration) -> String {
    let t0 = Instant::now();
    let (mut last, mut held) = (t0, Duration::ZERO);
    let mut gaps: Vec<f64> = Vec::new();
    while t0.elapsed() < how_long {
        let now = Instant::now();
        let gap = now - last;
        if gap > Duration::from_millis(1) {
            gaps.push(gap.as_secs_f64() * 1e3);
            held += gap;
        }
        last = now;
    }
    gaps.sort_by(f64::total_cmp);
    let middle = gaps.get(gaps.len() / 2).copied().unwrap_or(0.0);
    let longest = gaps.last().copied().unwrap_or(0.0);
    let share = 100.0 * (1.0 - held.as_secs_f64() / t0.elapsed().as_secs_f64());
    format!(
        "percent {share:.2}\ngaps {}\nmedian_ms {middle:.2}\nlongest_ms {longest:.2}",
        gaps.len()
    )
}

fn micros(t0: Instant) -> f64 {
    t0.elapsed().as_secs_f64() * 1e6
}
