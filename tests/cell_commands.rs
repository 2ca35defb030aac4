//! runc's commands on a live cell (ps, pause, resume, events, update) with the words, shapes and codes that
//! its callers know.

mod cell_support;
mod support;

use cell_support::{Cell, until};
use std::fs;

fn sleeper() -> Cell {
    let mut cell = Cell::new(|_| {});
    cell.words(&["sleep", "100"]);
    cell
}

fn refused(cell: &Cell, verb: &str, flags: &[&str], text: &str) {
    let done = cell.verb(verb, flags);
    assert!(
        done.code == 1 && done.err.contains(text),
        "{verb} {flags:?}: {done:#?}"
    );
}

#[test]
fn ps_lists_the_processes() {
    let cell = sleeper();
    cell.detach(&[]).ok();
    let pid = cell.pid();
    let list = cell.verb("ps", &["--format", "json"]).ok().out;
    assert_eq!(list, format!("[{pid}]\n"), "containerd reads []int");
    let list = cell.verb("ps", &["-f", "json"]).ok().out;
    assert_eq!(list, format!("[{pid}]\n"));
    let table = cell.verb("ps", &[]).ok().out;
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].starts_with("UID") && lines[1].contains("hello sleep 100"),
        "{table}"
    );
    // All that follows the name is for ps(1), whatever it looks like.
    for args in [&["-o", "pid,args"][..], &["-A", "-f"], &["aux"]] {
        let mut all = vec!["ps", cell.id.as_str()];
        all.extend(args);
        let table = cell.bundle.gpucell(&all).ok().out;
        let title = table.lines().next().unwrap();
        assert!(
            table.lines().count() == 2 && title.contains("PID") && table.contains("hello"),
            "{args:?}: {table}"
        );
    }
    let done = cell.bundle.gpucell(&["ps", &cell.id, "-o", "args"]);
    assert!(
        done.code == 1 && done.err.contains("couldn't find PID field in ps output"),
        "{done:#?}"
    );
    let done = cell.bundle.gpucell(&["ps", &cell.id, "--nonesuch"]);
    assert!(
        done.code == 1 && done.err.contains("ps --nonesuch: exit status"),
        "{done:#?}"
    );
    refused(&cell, "ps", &["--format", "xml"], "invalid value");

    cell.bundle.gpucell(&["kill", &cell.id, "KILL"]).ok();
    cell.wait_for("stopped");
    assert_eq!(cell.verb("ps", &["-f", "json"]).ok().out, "[]\n");
}

/// The state letter of a process that runs is S or R; one frozen by v1 is D, by v2 it keeps its letter. So
/// what is asked is whether it makes progress.
fn progress(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn paused_and_resumed() {
    let mut cell = Cell::new(|_| {});
    cell.words(&["spin", "60"]);
    cell.detach(&[]).ok();
    let pid = cell.pid();
    refused(&cell, "resume", &[], "container not paused");
    cell.verb("pause", &[]).ok();
    assert_eq!(cell.status(), "paused");
    let (then, wait) = (progress(pid), std::time::Duration::from_millis(200));
    std::thread::sleep(wait);
    assert_eq!(progress(pid), then, "a paused cell uses no CPU");
    refused(&cell, "pause", &[], "container not running");
    refused(&cell, "delete", &[], "that is not stopped: paused");
    cell.verb("resume", &[]).ok();
    assert_eq!(cell.status(), "running");
    until("the CPU is used again", || progress(pid) > then);

    // Killing and deleting a paused cell do not wait for it to be resumed.
    cell.verb("pause", &[]).ok();
    cell.bundle.gpucell(&["kill", &cell.id, "KILL"]).ok();
    cell.wait_for("stopped");
    refused(&cell, "pause", &[], "container not running");
    refused(&cell, "resume", &[], "container not paused");
    cell.verb("delete", &[]).ok();
    cell.detach(&[]).ok();
    cell.verb("pause", &[]).ok();
    cell.verb("delete", &["--force"]).ok();
    cell.nothing_left();
}

#[test]
fn paused_before_it_was_started() {
    let cell = sleeper();
    cell.create(&[]).ok();
    cell.verb("pause", &[]).ok();
    assert_eq!(cell.status(), "paused");
    refused(
        &cell,
        "start",
        &[],
        "cannot start a container in the paused state",
    );
    cell.verb("resume", &[]).ok();
    assert_eq!(cell.status(), "created");
    cell.verb("start", &[]).ok();
    assert_eq!(cell.status(), "running");
    cell.verb("delete", &["-f"]).ok();
    cell.create(&[]).ok();
    cell.verb("pause", &[]).ok();
    cell.verb("delete", &["-f"]).ok();
    cell.nothing_left();
}

#[test]
fn none_of_them_knows_a_cell_that_is_not_there() {
    let cell = Cell::new(|_| {});
    for verb in ["ps", "pause", "resume"] {
        refused(&cell, verb, &[], "does not exist");
    }
}

/// What `spec` writes runs: as root, as root's rootless kind, and by a user without any privilege.
#[test]
fn what_spec_writes_runs() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let program = path("gpucell");
    support::programs::install(support::GPUCELL, &program);
    for (flags, uid) in [(&[][..], 0), (&["--rootless"], 0), (&["--rootless"], 65534)] {
        let cell = Cell::new(|_| {});
        let bundle = path("bundle");
        let _ = fs::remove_dir_all(&bundle);
        fs::create_dir(&bundle).unwrap();
        let copied = std::process::Command::new("cp")
            .arg("-r")
            .args([&cell.bundle.rootfs(), &bundle])
            .status();
        assert!(copied.unwrap().success());
        nix::unistd::chown(&bundle, Some(uid.into()), Some(uid.into())).unwrap();
        let run = |args: &[&str]| {
            let mut command = std::process::Command::new(&program);
            command.args(args).uid(uid).gid(uid).current_dir(&bundle);
            command.env("XDG_RUNTIME_DIR", path(&format!("run{uid}")));
            support::outcome(&mut command)
        };
        let mut args = vec!["spec"];
        args.extend(flags);
        run(&args).ok();
        let file = bundle.join("config.json");
        let mut config: serde_json::Value =
            serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        // No terminal here, and no shell in this root; all else as it was written.
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = serde_json::json!(["/bin/hello", "id"]);
        fs::write(&file, config.to_string()).unwrap();
        let root = path(&format!("state{uid}"));
        let done = run(&["--root", root.to_str().unwrap(), "run", &cell.id]);
        assert!(done.code == 0, "{flags:?} as {uid}: {done:#?}");
        assert_eq!(done.value("uid"), "0 0 0 0");
        assert_eq!(done.value("hostname"), "gpucell");
    }
}

/// All of runc's flags are understood, and podman's and CRI-O's probes (checkpoint/crutils in podman) come out as
/// a yes. What the commands do is tests/cell_checkpoint.rs's.
#[test]
fn checkpoint_and_restore_have_runcs_flags() {
    let cell = sleeper();
    let flags = "--image-path i --work-path w --parent-path p --leave-running --leave-running --tcp-established --ext-unix-sk \
                 --shell-job --lazy-pages --status-fd -1 --page-server a:1 --file-locks --pre-dump --link-remap \
                 --manage-cgroups-mode soft --empty-ns network --auto-dedup --tcp-skip-in-flight";
    let flags: Vec<&str> = flags.split_whitespace().collect();
    refused(&cell, "checkpoint", &flags, "does not exist");

    // Spelt as containerd spells it, with one dash.
    let flags = "--bundle /nowhere --console-socket s --image-path i --work-path w --tcp-established --ext-unix-sk \
                 --shell-job --file-locks --manage-cgroups-mode soft -d --pid-file p -no-subreaper --no-pivot \
                 --empty-ns network --auto-dedup --lazy-pages --lsm-profile selinux:x --lsm-mount-context c";
    let flags: Vec<&str> = flags.split_whitespace().collect();
    refused(&cell, "restore", &flags, "/nowhere/config.json");
    for (verb, flags, text) in [
        (
            "checkpoint",
            ["--empty-ns", "ipc"],
            "\"ipc\" is not supported",
        ),
        (
            "checkpoint",
            ["--page-server", "1.2.3.4"],
            "expected ADDRESS:PORT",
        ),
        ("checkpoint", ["--status-fd", "99"], "--status-fd 99"),
        (
            "restore",
            ["--manage-cgroups-mode", "hard"],
            "expected soft, full, strict or ignore",
        ),
    ] {
        refused(&cell, verb, &flags, text);
    }
    cell.nothing_left();

    let probe = cell.bundle.gpucell(&["checkpoint", "--help"]);
    assert!(
        probe.code == 0 && probe.out.contains("--leave-running"),
        "{probe:#?}"
    );
    let probe = cell.bundle.gpucell(&["restore", "--lsm-mount-context"]);
    assert!(
        probe.code == 1
            && probe
                .err
                .contains("flag needs an argument: --lsm-mount-context"),
        "{probe:#?}"
    );
}
