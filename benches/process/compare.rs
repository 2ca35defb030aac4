//! Rounds of every runtime on every bundle, in random order, and the tables of them.
use crate::{sample, stats};
use std::fmt::Write as _;

const WARM_UP: usize = 2;

struct Runtime {
    name: String,
    path: String,
    env: Vec<(String, String)>,
    /// Files that are removed before each command; relative ones are below its --root.
    forget: Vec<String>,
}

#[derive(Default)]
struct Options {
    rounds: usize,
    phases: Vec<String>,
    bundles: Vec<String>,
    dir: String,
    state: String,
    format: String,
    /// The program of usage.rs; without one no memory is measured.
    usage: String,
    runtimes: Vec<Runtime>,
}

/// What was measured of one phase on one bundle: a row of times for each runtime.
struct Table {
    bundle: String,
    phase: String,
    times: Vec<Vec<f64>>,
    rss: Vec<u64>,
}

/// --rounds N --phases run,create,... --bundles minimal,... --dir DIR --state DIR
/// --usage PROGRAM --format table|json|line [--env NAME:KEY=VALUE] [--forget NAME:FILE] NAME=PATH...
pub fn run(args: &[&str]) -> Result<(), String> {
    let o = options(args)?;
    sample::adopt_orphans();
    let mut tables = Vec::new();
    let mut busy = 0;
    let mut counter = 0;
    for bundle in &o.bundles {
        let path = format!("{}/{bundle}", o.dir);
        let mut of_bundle: Vec<Table> = o
            .phases
            .iter()
            .map(|phase| Table {
                bundle: bundle.clone(),
                phase: phase.clone(),
                times: vec![Vec::with_capacity(o.rounds); o.runtimes.len()],
                rss: vec![0; o.runtimes.len()],
            })
            .collect();
        let mut order = stats::Order::new();
        // Two rounds first that are not timed: page cache, dentries, the CPU's clock. In them the
        // peak memory is measured, through a parent that is next to nothing.
        for round in 0..o.rounds + WARM_UP {
            let warm_up = round < WARM_UP;
            if !warm_up && !stats::await_idle() {
                busy += 1;
            }
            for i in order.shuffled(o.runtimes.len()) {
                counter += 1;
                let id = format!("b{counter}");
                for (phase, micros, rss) in once(&o, &o.runtimes[i], &path, &id, warm_up)? {
                    let Some(t) = of_bundle.iter_mut().find(|t| t.phase == phase) else {
                        continue;
                    };
                    if !warm_up {
                        t.times[i].push(micros);
                    }
                    t.rss[i] = t.rss[i].max(rss);
                }
            }
        }
        tables.extend(of_bundle);
    }
    match o.format.as_str() {
        "json" => print!("{}", json(&o, &mut tables, busy)),
        "line" => print!("{}", lines(&o, &mut tables)),
        _ => print!("{}", text(&o, &mut tables, busy)),
    }
    Ok(())
}

/// A phase, its time in microseconds, its peak memory in KiB.
type Measured = (&'static str, f64, u64);

/// One runtime once: `run`, then create, start and delete, then `exec` into a cell that goes on, as far as they
/// are asked for.
fn once(
    o: &Options,
    r: &Runtime,
    bundle: &str,
    id: &str,
    memory: bool,
) -> Result<Vec<Measured>, String> {
    let mut done = Vec::new();
    let root = format!("{}/{}", o.state, r.name);
    let file = format!("{}/usage", o.state);
    let memory = memory && !o.usage.is_empty();
    // What only prepares another phase does not count.
    let mut call = |phase: &'static str, words: &[&str], counts: bool| {
        let mut all = if memory && counts {
            vec![o.usage.as_str(), &file]
        } else {
            Vec::new()
        };
        all.extend([r.path.as_str(), "--root", &root, phase]);
        all.extend(words);
        for file in &r.forget {
            let _ = std::fs::remove_file(std::path::Path::new(&root).join(file));
        }
        let s = sample::time(&all, &r.env)?;
        if !counts {
            return Ok(());
        }
        let peak = if memory {
            std::fs::read_to_string(&file).unwrap_or_default()
        } else {
            String::new()
        };
        done.push((phase, s.micros, peak.trim().parse().unwrap_or(0)));
        Ok::<(), String>(())
    };
    let wants = |p: &str| o.phases.iter().any(|x| x == p);
    if wants("run") {
        call("run", &["--bundle", bundle, id], true)?;
        sample::await_orphans()?;
    }
    if wants("create") || wants("start") || wants("delete") {
        let id = format!("{id}c");
        call("create", &["--bundle", bundle, &id], true)?;
        call("start", &[&id], true)?;
        sample::await_orphans()?;
        call("delete", &[&id], true)?;
    }
    if wants("exec") {
        let (id, lasting) = (format!("{id}e"), format!("{bundle}-lasting"));
        call("create", &["--bundle", &lasting, &id], false)?;
        call("start", &[&id], false)?;
        call("exec", &[&id, "/bin/true"], true)?;
        call("delete", &["--force", &id], false)?;
        sample::await_orphans()?;
    }
    Ok(done)
}

fn options(args: &[&str]) -> Result<Options, String> {
    let mut o = Options {
        rounds: 40,
        format: "table".into(),
        ..Options::default()
    };
    let mut env: Vec<(String, String, String)> = Vec::new();
    let mut forget: Vec<(String, String)> = Vec::new();
    let list = |v: &str| {
        v.split(',')
            .filter(|w| !w.is_empty())
            .map(str::to_string)
            .collect()
    };
    let mut i = 0;
    while i < args.len() {
        let (word, value) = (args[i], args.get(i + 1).copied());
        let value = || value.ok_or_else(|| format!("{word} needs a value"));
        i += 2;
        match word {
            "--rounds" => o.rounds = value()?.parse().map_err(|_| "--rounds needs a number")?,
            "--phases" => o.phases = list(value()?),
            "--bundles" => o.bundles = list(value()?),
            "--dir" => o.dir = value()?.into(),
            "--state" => o.state = value()?.into(),
            "--usage" => o.usage = value()?.into(),
            "--format" => o.format = value()?.into(),
            "--env" => {
                let v = value()?;
                let (name, pair) = v.split_once(':').ok_or("--env needs NAME:KEY=VALUE")?;
                let (k, v) = pair.split_once('=').ok_or("--env needs NAME:KEY=VALUE")?;
                env.push((name.into(), k.into(), v.into()));
            }
            "--forget" => {
                let v = value()?;
                let (name, file) = v.split_once(':').ok_or("--forget needs NAME:FILE")?;
                forget.push((name.into(), file.into()));
            }
            _ => {
                i -= 1;
                let (name, path) = word.split_once('=').ok_or(format!("no option '{word}'"))?;
                o.runtimes.push(Runtime {
                    name: name.into(),
                    path: path.into(),
                    env: Vec::new(),
                    forget: Vec::new(),
                });
            }
        }
    }
    for r in &mut o.runtimes {
        r.env = env
            .iter()
            .filter(|e| e.0 == r.name)
            .map(|e| (e.1.clone(), e.2.clone()))
            .collect();
        let files = forget.iter().filter(|f| f.0 == r.name);
        r.forget = files.map(|f| f.1.clone()).collect();
    }
    if o.rounds == 0 || o.runtimes.is_empty() {
        return Err("there is nothing to compare".into());
    }
    for phase in &o.phases {
        if !["run", "create", "start", "delete", "exec"].contains(&phase.as_str()) {
            return Err(format!(
                "no phase '{phase}'; there are run, create, start, delete, exec"
            ));
        }
    }
    Ok(o)
}

/// The median over the rounds of first/this, both from the same round: a machine's drift cancels.
fn ratio(t: &Table, i: usize) -> f64 {
    let mut r: Vec<f64> = t.times[0]
        .iter()
        .zip(&t.times[i])
        .map(|(a, b)| a / b)
        .collect();
    stats::median(&mut r)
}

fn text(o: &Options, tables: &mut [Table], busy: usize) -> String {
    let mut s = String::new();
    let first = &o.runtimes[0].name;
    for t in tables {
        let ratios: Vec<f64> = (0..o.runtimes.len()).map(|i| ratio(t, i)).collect();
        let _ = writeln!(
            s,
            "{:<8} {:<8}   median ms      p10      p90   {first} is   peak RSS",
            t.phase, t.bundle
        );
        for (i, r) in o.runtimes.iter().enumerate() {
            let v = &mut t.times[i];
            let (low, mid, high) = (
                stats::quantile(v, 0.1),
                stats::median(v),
                stats::quantile(v, 0.9),
            );
            let factor = if i == 0 {
                String::new()
            } else {
                format!("{:.2}x", ratios[i])
            };
            let _ = writeln!(
                s,
                "  {:<17} {:>10.2} {:>8.2} {:>8.2} {:>12} {:>7.1} MB",
                r.name,
                mid / 1e3,
                low / 1e3,
                high / 1e3,
                factor,
                t.rss[i] as f64 * 1024.0 / 1e6
            );
        }
    }
    let _ = writeln!(
        s,
        "n = {}, interleaved in random order; {busy} rounds began on a busy machine",
        o.rounds
    );
    s
}

/// One line a table, for scripts/quickstart.
fn lines(o: &Options, tables: &mut [Table]) -> String {
    let mut s = String::new();
    for t in tables {
        let parts: Vec<String> = o
            .runtimes
            .iter()
            .zip(&mut t.times)
            .map(|(r, v)| format!("{} {:.1} ms", r.name, stats::median(v) / 1e3))
            .collect();
        let _ = writeln!(s, "{} (n = {}, interleaved)", parts.join(", "), o.rounds);
    }
    s
}

fn json(o: &Options, tables: &mut [Table], busy: usize) -> String {
    let mut rows = Vec::new();
    for t in tables {
        for (i, r) in o.runtimes.iter().enumerate() {
            let factor = ratio(t, i);
            // Paired by round: keep the order, sort a copy.
            let mut v = t.times[i].clone();
            let all: Vec<String> = t.times[i].iter().map(|x| format!("{x:.1}")).collect();
            rows.push(format!(
                "    {{\"bundle\": \"{}\", \"phase\": \"{}\", \"runtime\": \"{}\", \"median_us\": {:.1}, \"p10_us\": {:.1}, \
                 \"p90_us\": {:.1}, \"ratio_of_first\": {factor:.4}, \"peak_rss_kib\": {}, \"samples_us\": [{}]}}",
                t.bundle,
                t.phase,
                r.name,
                stats::median(&mut v),
                stats::quantile(&mut v, 0.1),
                stats::quantile(&mut v, 0.9),
                t.rss[i],
                all.join(", ")
            ));
        }
    }
    format!(
        "{{\n  \"rounds\": {},\n  \"busy_rounds\": {busy},\n  \"results\": [\n{}\n  ]\n}}\n",
        o.rounds,
        rows.join(",\n")
    )
}
