//! Finding, freezing and killing a cell's processes; groups left, shared and nested.

use crate::helper::{TestCell, assert_clean, host, wait_for};
use crate::v1_alone;
use gpucell::cgroup::{DEFAULT_RULES, Host, Mode};
use gpucell::sys::clone::{Clone3, clone3};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

#[test]
fn pids_limit_holds() {
    let cell = TestCell::new("pids", r#"{"pids":{"limit":5}}"#);
    let mut child = cell.spawn("forks", "20");
    let made = child.wait().unwrap().code().unwrap();
    assert!((1..5).contains(&made), "{made} children under a limit of 5");
    cell.state().kill_all().unwrap();
    cell.remove();
}

#[test]
fn freeze_and_thaw() {
    freeze_on(&host(), "frz");
    if let Some(alone) = v1_alone(&["freezer"]) {
        freeze_on(&alone, "frz1");
    }
}

fn freeze_on(host: &Host, name: &str) {
    let cell = TestCell::on(host, name, "{}", &DEFAULT_RULES);
    let state = cell.state();
    // Progress is a file that grows, not CPU time: that is booked late, more so in a VM.
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let size = || fs::metadata(path).unwrap().len();
    let mut child = cell.spawn("count", path);
    wait_for("progress", || size() > 5);
    assert!(!state.is_frozen().unwrap());
    state.freeze().unwrap();
    assert!(state.is_frozen().unwrap());
    let before = size();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(size(), before, "ran while frozen");
    state.thaw().unwrap();
    assert!(!state.is_frozen().unwrap());
    wait_for("progress again", || size() > before + 5);
    // A frozen cell can be removed: killed, not waited for in vain.
    state.freeze().unwrap();
    cell.remove();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
}

#[test]
fn kill_reaches_every_process() {
    kill_on(&host(), "kill");
    if let Some(alone) = v1_alone(&["freezer"]) {
        kill_on(&alone, "kill1");
    }
}

fn kill_on(host: &Host, name: &str) {
    let cell = TestCell::on(host, name, "{}", &DEFAULT_RULES);
    let state = cell.state();
    let main = state.paths();
    let mut children: Vec<_> = (0..3).map(|_| cell.spawn("sleep", "")).collect();
    wait_for("three processes", || state.procs(false).unwrap().len() == 3);
    // Groups made below, as systemd in a cell does.
    for dir in &main {
        fs::create_dir(format!("{dir}/sub")).unwrap();
    }
    let nested = children.pop().unwrap();
    for dir in &main {
        for f in ["cpuset.cpus", "cpuset.mems"] {
            if host.mode != Mode::V2
                && let Ok(text) = fs::read_to_string(format!("{dir}/{f}"))
            {
                fs::write(format!("{dir}/sub/{f}"), text.trim()).unwrap();
            }
        }
        fs::write(format!("{dir}/sub/cgroup.procs"), nested.id().to_string()).unwrap();
    }
    children.push(nested);
    assert_eq!(state.procs(false).unwrap().len(), 2);
    assert_eq!(state.procs(true).unwrap().len(), 3);
    assert!(!state.is_empty().unwrap());
    state.kill_all().unwrap();
    for mut c in children {
        assert_eq!(c.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
    wait_for("no process", || state.is_empty().unwrap());
    cell.remove();
}

#[test]
fn clone_into_the_group() {
    let cell = TestCell::new("clone", "{}");
    let Some(fd) = cell.group().clone_fd() else {
        return println!("mode v1: not run");
    };
    let args = Clone3 {
        flags: 0,
        cgroup: Some(fd),
    };
    let child = clone3(&args, || {
        nix::unistd::pause();
        0
    })
    .unwrap();
    assert_eq!(cell.state().procs(true).unwrap(), [child.pid]);
    cell.remove();
    let status = waitpid(Pid::from_raw(child.pid), None).unwrap();
    assert!(matches!(
        status,
        WaitStatus::Signaled(_, nix::sys::signal::SIGKILL, _)
    ));
}

#[test]
fn parents_are_made_and_removed() {
    let path = "/gpucell-test-a/b/c";
    let first = TestCell::at(path, "{}");
    let second = TestCell::at("/gpucell-test-a/b/d", "{}");
    assert_eq!(first.parents(), ["gpucell-test-a", "gpucell-test-a/b"]);
    assert!(second.parents().is_empty());
    first.state().remove().unwrap();
    let left = second.state().paths();
    assert!(
        left.iter().all(|p| fs::exists(p).unwrap()),
        "took another cell's parent away"
    );
    second.remove();
    // The one that made them is gone; they are in its state, so its removal repeats.
    first.remove();
    assert_clean("gpucell-test-a");
}

#[test]
fn an_old_group_is_made_anew_but_not_shared() {
    let cell = TestCell::new("old", r#"{"pids":{"limit":5}}"#);
    let state = cell.state().clone();
    // As after a crash: groups without processes, old limits in them.
    cell.abandon();
    let cell = TestCell::new("old", "{}");
    assert_eq!(cell.read("pids.max").as_deref().unwrap_or("max"), "max");
    let mut child = cell.spawn("sleep", "");
    wait_for("a process", || state.procs(true).unwrap().len() == 1);
    let e = TestCell::try_new("old", "{}")
        .err()
        .expect("shared")
        .to_string();
    assert!(e.contains("has processes"), "{e}");
    assert_eq!(
        state.procs(true).unwrap().len(),
        1,
        "the refusal killed the cell there"
    );
    cell.remove();
    child.wait().unwrap();
}
