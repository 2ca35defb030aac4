//! Times whole runtime processes against each other. Called by scripts/bench, which compiles it with
//! rustc alone into one small static program.
//!
//!     measure bundles DIR PROGRAM             makes DIR/{minimal,docker,gpu}, running PROGRAM
//!     measure compare OPTION... NAME=PATH...  times the runtimes; the first is the one that ratios speak of
//!     measure mounts FILES N DIR              times the kernel showing FILES files, N times, microseconds
//!     measure floor N PROGRAM...              times plain programs, microseconds of the median for each
mod bundles;
mod compare;
mod mounts;
mod sample;
mod stats;

use std::process::exit;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.split_first() {
        Some((&"bundles", [dir, program])) => bundles::make(dir.as_ref(), program.as_ref()),
        Some((&"compare", rest)) => compare::run(rest),
        Some((&"mounts", [files, n, dir])) => mounts::run(files, n, dir.as_ref()),
        Some((&"floor", [n, programs @ ..])) => floor(n, programs),
        _ => Err("usage: measure bundles|compare|mounts|floor ...".into()),
    };
    if let Err(e) = result {
        eprintln!("measure: {e}");
        exit(1);
    }
}

fn floor(n: &str, programs: &[&str]) -> Result<(), String> {
    let n: usize = n.parse().map_err(|_| format!("'{n}' is no count"))?;
    let mut times = vec![Vec::with_capacity(n); programs.len()];
    let mut order = stats::Order::new();
    for _ in 0..n {
        for i in order.shuffled(programs.len()) {
            let words: Vec<&str> = programs[i].split(' ').collect();
            let s = sample::time(&words, &[])?;
            times[i].push(s.micros);
        }
    }
    for (program, t) in programs.iter().zip(&mut times) {
        println!("{:.1} {program}", stats::median(t));
    }
    Ok(())
}
