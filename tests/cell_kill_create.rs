//! A creation killed anywhere is undone by `delete -f`: `create` is sent SIGKILL at moments spread
//! over its whole run, and afterwards nothing may be left: no mount, group, process or state.

mod support;

use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use support::{Bundle, GPUCELL};

const ID: &str = "gpucell-test-kill";

/// Kills that must fall between the first effect and the exit.
const WANTED: usize = 80;

/// What a cell may leave behind on the host.
#[derive(Debug, PartialEq, Eq)]
struct Leftovers {
    mounts: Vec<String>,
    groups: BTreeSet<String>,
    processes: BTreeSet<String>,
    state: BTreeSet<String>,
}

fn look(b: &Bundle) -> Leftovers {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut groups = BTreeSet::new();
    find_groups(Path::new("/sys/fs/cgroup"), 4, &mut groups);
    let bundle = b.path().display().to_string();
    let processes = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|e| {
            let dir = e.path();
            let group = fs::read_to_string(dir.join("cgroup")).unwrap_or_default();
            let line = fs::read_to_string(dir.join("cmdline")).unwrap_or_default();
            let me = e.file_name().to_str() == Some(&std::process::id().to_string());
            !me && (group.contains(ID) || line.contains(&bundle))
        })
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    let state = fs::read_dir(b.state())
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    Leftovers {
        // Others may mount meanwhile; ours are below the bundle or name the cell.
        mounts: mounts
            .lines()
            .filter(|l| l.contains(&bundle) || l.contains(ID))
            .map(str::to_owned)
            .collect(),
        groups,
        processes,
        state,
    }
}

fn find_groups(dir: &Path, depth: u32, out: &mut BTreeSet<String>) {
    for e in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !e.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        if e.file_name().to_string_lossy().contains(ID) {
            out.insert(e.path().display().to_string());
        }
        if depth > 0 {
            find_groups(&e.path(), depth - 1, out);
        }
    }
}

#[test]
fn a_killed_creation_is_undone() {
    let b = Bundle::new().edit(|c| {
        c["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        c["linux"]["resources"]["cpu"] = json!({"quota": 50000, "period": 100000});
    });
    let before = look(&b);
    let bundle = b.path().display().to_string();
    let whole = Instant::now();
    b.create(Path::new(GPUCELL), ID);
    let whole = whole.elapsed();
    b.gpucell(&["delete", "--force", ID]).ok();
    assert_eq!(
        settled(&b, &before),
        before,
        "after a creation that was not killed"
    );

    let (mut hits, mut tries) = (0, 0u32);
    while hits < WANTED {
        tries += 1;
        assert!(
            tries < 2000,
            "only {hits} of {tries} kills fell into the creation"
        );
        let mut child = Command::new(GPUCELL)
            .arg("--root")
            .arg(b.state())
            .args(["create", "--bundle", &bundle, ID])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Moments spread evenly: the golden ratio leaves no gap for long.
        let share = (f64::from(tries) * 0.618_033_988_749_895).fract();
        sleep(whole.mul_f64(share));
        let running = child.try_wait().unwrap().is_none();
        let _ = child.kill();
        let killed = child.wait().unwrap().code().is_none();
        let started = b.state().join(ID).exists();
        if running && killed && started {
            hits += 1;
        }
        b.gpucell(&["delete", "--force", ID]).ok();
        let after = settled(&b, &before);
        assert_eq!(
            after, before,
            "try {tries}, killed after {share:.3} of {whole:?}"
        );
    }
    println!("{hits} kills between the first effect and the exit, of {tries} tries");
}

/// The kernel reaps a killed child a moment after `delete` saw its group empty.
fn settled(b: &Bundle, want: &Leftovers) -> Leftovers {
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        let now = look(b);
        if now == *want || Instant::now() > end {
            return now;
        }
        sleep(Duration::from_millis(5));
    }
}
