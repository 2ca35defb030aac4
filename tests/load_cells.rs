//! Many cells, one after the other and at once: nothing is leaked, and the last is made as fast as the first.
//!
//! GPUCELL_LOAD_CELLS (10000) is how many are made, started and deleted in a row, GPUCELL_LOAD_ALIVE (1000)
//! how many live at once. Needs root.

mod cell_support;
mod device_programs;
mod support;

use std::fs;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cell_support::Cell;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde_json::{Value, json};

/// So many creations give a median.
const SERIES: usize = 50;
/// The last ones may take this much longer than the first.
const SLOWER: f64 = 1.3;
/// The same beside 1000 others where v1 hierarchies are mounted: a cell has nine file systems more there, of
/// which the kernel makes each the dearer the more there are, for runc's containers as for ours (8 and 10 ms more,
/// of 14 and 57).
const SLOWER_V1: f64 = 2.0;

/// A device number of this test's own.
fn number() -> i32 {
    (240 << 20 | (500_000 + std::process::id() % 500_000)) as i32
}

/// A cell as Docker asks for one: limits, a device list, a seccomp filter.
fn docker(c: &mut Value) {
    c["process"]["args"] = json!(["/bin/hello", "sleep", "1000"]);
    c["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["kexec_load", "bpf"], "action": "SCMP_ACT_ERRNO"}],
    });
    let resources = &mut c["linux"]["resources"];
    resources["memory"] = json!({"limit": 256 << 20});
    resources["cpu"] = json!({"quota": 50000, "period": 100_000});
    resources["pids"] = json!({"limit": 100});
    let rules = resources["devices"].as_array_mut().unwrap();
    let minor = number() & 0xf_ffff;
    rules.push(json!({"allow": true, "type": "c", "major": 240, "minor": minor, "access": "r"}));
}

fn how_many(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |n| n.parse().expect(variable))
}

/// One test at a time: they time, count what the whole machine has, and reap whatever died.
static ALONE: Mutex<()> = Mutex::new(());

/// One bundle, from which all cells are made.
struct Load {
    cell: Cell,
    _alone: MutexGuard<'static, ()>,
}

impl Load {
    fn new() -> Load {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever creates a cell inherits its process; here it is reaped at once.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        Load {
            cell: Cell::new(docker),
            _alone: alone,
        }
    }

    fn name(&self, n: usize) -> String {
        format!("{}-{n}", self.cell.id)
    }

    /// `gpucell VERB FLAG... NAME`, which must succeed.
    fn verb(&self, verb: &str, flags: &[&str], name: &str) {
        let mut command = self.cell.command(&[verb]);
        command.args(flags).arg(name).stdin(Stdio::null());
        // A created cell keeps the streams open.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let done = command.status().unwrap();
        assert!(done.success(), "{verb} {name}: {done}");
    }

    /// Makes and starts a cell; the time that `create` took.
    fn make(&self, name: &str) -> Duration {
        let bundle = self.cell.bundle.path();
        let t0 = Instant::now();
        self.verb("create", &["--bundle", bundle.to_str().unwrap()], name);
        let took = t0.elapsed();
        self.verb("start", &[], name);
        took
    }

    fn delete(&self, name: &str) {
        self.verb("delete", &["--force"], name);
        reap();
    }

    /// Nobody of these cells is left, in two seconds.
    fn all_gone(&self, before: &Kernel) {
        self.cell.nothing_left();
        cell_support::until("device programs to go", || {
            device_programs::with_number(number()).is_empty()
        });
        reap();
        before.not_more_now();
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // A failed test leaves none of its cells.
        if let Ok(list) = self.cell.command(&["list", "-q"]).output() {
            for name in String::from_utf8_lossy(&list.stdout).lines() {
                let _ = self.cell.command(&["delete", "--force", name]).output();
            }
        }
    }
}

/// Takes the dead processes of cells off the list.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}

/// What the kernel has of things that a cell is made of. Others use it too, so that each has an allowance
/// which is far below one for each cell.
#[derive(Debug)]
struct Kernel {
    cells: u64,
    /// file-nr: open file descriptions.
    files: u64,
    /// Groups, those included that are deleted but not freed, of the memory controller.
    groups: u64,
    /// Mounts in this namespace.
    mounts: u64,
    /// Memory of the kernel's own which it can't give back, and of tmpfs, KiB.
    memory: u64,
}

impl Kernel {
    fn now(cells: usize) -> Kernel {
        let read = |f: &str| fs::read_to_string(f).unwrap_or_else(|e| panic!("{f}: {e}"));
        let column = |text: &str, key: &str, n: usize| -> u64 {
            let line = text.lines().find(|l| l.starts_with(key));
            let line = line.unwrap_or_else(|| panic!("no {key}"));
            line.split_whitespace().nth(n).unwrap().parse().unwrap()
        };
        let memory = read("/proc/meminfo");
        Kernel {
            cells: cells as u64,
            files: column(&read("/proc/sys/fs/file-nr"), "", 0),
            groups: column(&read("/proc/cgroups"), "memory\t", 2),
            mounts: read("/proc/self/mountinfo").lines().count() as u64,
            memory: column(&memory, "SUnreclaim:", 1) + column(&memory, "Shmem:", 1),
        }
    }

    /// The kernel frees some of it later: it has a minute.
    fn not_more_now(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let now = Kernel::now(self.cells as usize);
            let leaks = [
                now.files > self.files + 200 + self.cells / 10,
                now.groups > self.groups + 20 + self.cells / 20,
                now.mounts > self.mounts,
                // A page for each cell, and what a busy machine moves by itself.
                now.memory > self.memory + (16 << 10) + self.cells * 4,
            ];
            if leaks == [false; 4] {
                println!("{self:?} -> {now:?}");
                return;
            }
            assert!(
                Instant::now() < end,
                "[files, groups, mounts, memory] {leaks:?}: {self:?} -> {now:?}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// Makes cells `from..to`, handing each one to `then`. The median of the first ones and the last ones, ms.
fn series(load: &Load, from: usize, to: usize, then: impl Fn(&str)) -> (f64, f64) {
    let times: Vec<Duration> = (from..to)
        .map(|n| {
            let name = load.name(n);
            let took = load.make(&name);
            then(&name);
            took
        })
        .collect();
    let few = SERIES.min(times.len());
    (
        median(times[..few].to_vec()),
        median(times[times.len() - few..].to_vec()),
    )
}

/// The last ones are not slower than the first. Another program that takes the processor
/// passes, a cost that grows with the cells does not: a few series more tell.
fn no_slower(
    load: &Load,
    first: f64,
    mut last: f64,
    next: usize,
    slower: f64,
    then: impl Fn(&str) + Copy,
) -> usize {
    println!("create: the first {SERIES} {first:.2} ms, the last {last:.2} ms (medians)");
    let mut at = next;
    for _ in 0..5 {
        if last <= first * slower {
            return at;
        }
        last = series(load, at, at + SERIES, then).0;
        at += SERIES;
        println!("create: {SERIES} more {last:.2} ms");
    }
    panic!("create became slower: {first:.2} ms at first, {last:.2} ms at last");
}

#[test]
fn in_a_row() {
    let load = Load::new();
    let cells = how_many("GPUCELL_LOAD_CELLS", 10_000);
    let delete = |name: &str| load.delete(name);
    // What is allocated once is not counted.
    series(&load, 0, 10, delete);
    let before = Kernel::now(cells);
    let (first, last) = series(&load, 10, 10 + cells, delete);
    no_slower(&load, first, last, 10 + cells, SLOWER, delete);
    load.all_gone(&before);
}

#[test]
fn alive_at_once() {
    let load = Load::new();
    let cells = how_many("GPUCELL_LOAD_ALIVE", 1000);
    let slower = if support::on_v2() { SLOWER } else { SLOWER_V1 };
    series(&load, 0, 10, |name| load.delete(name));
    let before = Kernel::now(cells);
    let (first, last) = series(&load, 10, 10 + cells, |_| ());
    let end = no_slower(&load, first, last, 10 + cells, slower, |_| ());

    let list = support::outcome(load.cell.command(&["list"]).args(["--format", "json"])).ok();
    let list: Vec<Value> = serde_json::from_str(&list.out).unwrap();
    assert_eq!(list.len(), end - 10);
    assert!(list.iter().all(|c| c["status"] == "running"), "{list:?}");
    for n in 10..end {
        load.delete(&load.name(n));
    }
    let list = support::outcome(&mut load.cell.command(&["list", "-q"])).ok();
    assert_eq!(list.out, "");
    load.all_gone(&before);
}
