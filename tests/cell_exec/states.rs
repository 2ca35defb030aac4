//! What becomes of it: exit codes, the words of a failure, the state that the cell is in.

use super::Live;
use crate::cell_support::{Cell, Running, until};
use crate::support::outcome;
use crate::support::programs::write_program;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::process::Stdio;

#[test]
fn exit_codes_are_the_programs() {
    let live = Live::new(|_| {});
    for code in [0, 1, 7, 125, 126, 127, 254, 255] {
        let done = live.exec(&[], &["exit", &code.to_string()]);
        assert_eq!((done.code, done.err.as_str()), (code, ""), "{done:#?}");
    }
    for (signal, code) in [(Signal::SIGKILL, 137), (Signal::SIGABRT, 134)] {
        let before = live.processes();
        let mut command = live.command(&[], &["/bin/hello", "sleep", "100"]);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let mut child = Running(child);
        let program = || {
            let now = live.processes();
            let new = now.difference(&before).copied().find(|pid| {
                let line = fs::read_to_string(format!("/proc/{pid}/cmdline"));
                line.is_ok_and(|l| l.starts_with("/bin/hello\0sleep\x00100"))
            });
            new.map(Pid::from_raw)
        };
        until("the program", || program().is_some());
        kill(program().unwrap(), signal).unwrap();
        assert_eq!(child.0.wait().unwrap().code(), Some(code));
    }
    // The cell doesn't care.
    assert_eq!(live.cell.status(), "running");
}

#[test]
fn what_cannot_be_executed_is_said_in_the_words_callers_know() {
    let live = Live::new(|c| c["process"]["env"] = json!(["PATH=/bin:/nowhere:/etc"]));
    let script = |name: &str, text: &str| {
        write_program(live.cell.root(name), text);
    };
    script("bin/garbage", "garbage\n");
    script("bin/lost", "#!/no/such/interpreter\n");
    symlink("/bin/loop", live.cell.root("bin/loop")).unwrap();
    for (program, text) in [
        (
            "nonesuch",
            "exec: \"nonesuch\": executable file not found in $PATH",
        ),
        (
            "/bin/nonesuch",
            "exec: \"/bin/nonesuch\": no such file or directory",
        ),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
        ("passwd", "exec: \"passwd\": permission denied"),
        ("/etc", "exec: \"/etc\": is a directory"),
        ("/etc/passwd/x", "exec: \"/etc/passwd/x\": not a directory"),
        ("/bin/garbage", "exec format error"),
        ("/bin/lost", "no such file or directory"),
        ("/bin/loop", "symbolic link"),
        ("/dev/null", "permission denied"),
    ] {
        let err = live.refused(&[], &[program]);
        assert!(
            err.to_lowercase().contains(&text.to_lowercase()),
            "{program}: no '{text}' in {err}"
        );
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    let err = live.refused(&[], &[]);
    assert!(err.contains("no program given"), "{err}");
    // What is wrong with the command line itself.
    let done = outcome(&mut live.command(&["--nonesuch"], &["/bin/true"]));
    assert_ne!(done.code, 0, "{done:#?}");
}

#[test]
fn a_cell_that_is_not_there_or_has_ended() {
    let mut cell = Cell::new(|_| {});
    let exec = |cell: &Cell, flags: &[&str]| {
        let mut c = cell.command(&["exec"]);
        outcome(c.args(flags).args([&cell.id, "/bin/true"]))
    };
    let done = exec(&cell, &[]);
    assert!(
        done.code == 255 && done.err.contains("does not exist"),
        "{done:#?}"
    );
    cell.words(&["true"]);
    cell.detach(&[]).ok();
    cell.wait_for("stopped");
    for flags in [&[][..], &["-d"], &["--ignore-paused"], &["-t"]] {
        let done = exec(&cell, flags);
        assert!(
            done.code == 255 && done.err.contains("cannot exec in a stopped container"),
            "{done:#?}"
        );
    }
}

#[test]
fn a_created_cell_takes_processes_before_it_is_started() {
    let mut cell = Cell::new(|_| {});
    cell.words(&["sleep", "1000"]);
    cell.create(&[]).ok();
    let init = cell.pid();
    let live = Live { cell, init };
    assert_eq!(live.exec(&[], &["print", "here"]).ok().out, "here\n");
    assert_eq!(live.cell.status(), "created");
    live.cell.verb("start", &[]).ok();
    assert_eq!(live.exec(&[], &["print", "here"]).ok().out, "here\n");
    assert_eq!(live.cell.pid(), live.init);
}

#[test]
fn a_paused_cell_takes_none_unless_asked() {
    let live = Live::new(|_| {});
    live.cell.verb("pause", &[]).ok();
    let err = live.refused(&[], &["/bin/true"]);
    assert!(err.contains("cannot exec in a paused container"), "{err}");
    assert!(err.contains("--ignore-paused"), "{err}");

    let waiting = || {
        let mut c = live.command(&["--ignore-paused"], &["/bin/hello", "print", "thawed"]);
        c.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let before = live.processes();
        let child = Running(c.spawn().unwrap());
        until("the process in the cell", || live.processes() != before);
        std::thread::sleep(std::time::Duration::from_millis(50));
        child
    };
    // What ends the command ends its process, which has executed nothing yet.
    let before = live.processes();
    let mut ended = waiting();
    kill(Pid::from_raw(ended.0.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(ended.0.wait().unwrap().code(), Some(255));
    let mut text = String::new();
    let mut err = ended.0.stderr.take().unwrap();
    std::io::Read::read_to_string(&mut err, &mut text).unwrap();
    assert!(text.contains("ended by signal 15"), "{text}");

    let mut child = waiting();
    assert!(child.0.try_wait().unwrap().is_none());
    live.cell.verb("resume", &[]).ok();
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
    let mut out = String::new();
    std::io::Read::read_to_string(&mut child.0.stdout.take().unwrap(), &mut out).unwrap();
    assert_eq!(out, "thawed\n");
    live.back_to(&before);
}

#[test]
fn signals_go_to_the_program() {
    let live = Live::new(|_| {});
    let mut command = live.command(&[], &["/bin/hello", "signals"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = Running(child.unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    assert_eq!(lines.next().as_deref(), Some("ready"));
    let pid = Pid::from_raw(child.0.id() as i32);
    for n in [
        libc::SIGHUP,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGQUIT,
        libc::SIGTERM,
    ] {
        kill(pid, Signal::try_from(n).unwrap()).unwrap();
        assert_eq!(lines.next(), Some(format!("signal {n}")));
    }
    assert_eq!(child.0.wait().unwrap().code(), Some(128 + libc::SIGTERM));
    assert_eq!(live.cell.status(), "running");
}

/// A caller that ignores SIGCHLD, which its children inherit: the kernel would take their dead ones away.
#[test]
fn a_caller_that_ignores_its_children() {
    use std::os::unix::process::CommandExt;
    let ignoring = |command: &mut std::process::Command| {
        // SAFETY: signal(2) alone is called between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGCHLD, libc::SIG_IGN);
                Ok(())
            });
        }
    };
    let live = Live::new(|_| {});
    for flags in [&[][..], &["-d"]] {
        let mut command = live.command(flags, &["/bin/hello", "exit", "7"]);
        ignoring(&mut command);
        let want = if flags.is_empty() { 7 } else { 0 };
        let done = outcome(&mut command);
        assert_eq!((done.code, done.err.as_str()), (want, ""), "{flags:?}");
    }
    let mut cell = Cell::new(|_| {});
    cell.words(&["exit", "7"]);
    let mut command = cell.making("run", &[]);
    ignoring(&mut command);
    assert_eq!(outcome(&mut command).code, 7);
}

/// What is detached outlives the command, and ends with the cell.
#[test]
fn detached_programs_end_with_the_cell() {
    let live = Live::new(|_| {});
    let pids: Vec<i32> = (0..3).map(|_| live.sleeper(&[])).collect();
    let all = live.processes();
    assert!(pids.iter().all(|pid| all.contains(pid)), "{pids:?} {all:?}");
    live.cell.verb("delete", &["--force"]).ok();
    until("no process", || live.processes().is_empty());
}

/// A cell that ends meanwhile: the command says so or the program was killed; it never hangs.
#[test]
fn a_cell_that_ends_meanwhile() {
    for _ in 0..10 {
        let live = Live::new(|_| {});
        let mut running = Vec::new();
        for _ in 0..4 {
            let mut c = live.command(&[], &["/bin/hello", "sleep", "0.001"]);
            c.stdin(Stdio::null()).stderr(Stdio::piped());
            running.push(Running(c.spawn().unwrap()));
        }
        kill(Pid::from_raw(live.init), Signal::SIGKILL).unwrap();
        for mut child in running {
            let code = child.0.wait().unwrap().code();
            assert!(matches!(code, Some(0 | 137 | 255)), "{code:?}");
        }
    }
}

/// No command waits for another (kubernetes#82440).
#[test]
fn many_at_once() {
    let live = Live::new(|_| {});
    std::thread::scope(|s| {
        let all: Vec<_> = (0..20)
            .map(|i| {
                let live = &live;
                s.spawn(move || {
                    let word = i.to_string();
                    let done = live.exec(&[], &["print", &word]).ok();
                    assert_eq!(done.out, format!("{word}\n"));
                })
            })
            .collect();
        all.into_iter().for_each(|t| t.join().unwrap());
    });
    assert_eq!(live.processes().len(), 1);
}
