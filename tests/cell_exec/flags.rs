//! runc's flags, one by one.

use super::{Live, has, receive};
use crate::cell_support::quiet;
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::support::outcome;

fn with_user(c: &mut Value) {
    c["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "additionalGids": [44], "umask": 0o027});
}

#[test]
fn without_flags_it_is_as_the_cells_process() {
    let live = Live::new(|c| {
        with_user(c);
        c["process"]["cwd"] = json!("/tmp");
        c["process"]["oomScoreAdj"] = json!(321);
        c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
        c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]});
    });
    let getpgid = libc::SYS_getpgid.to_string();
    let words = ["each", "id", ";", "stat", "/proc/self/cwd", ";", "env", ";"];
    let done = live.exec(&[], &[&words[..], &["syscall", &getpgid, "0"]].concat());
    let done = done.ok();
    for line in [
        "uid 1000 1000 1000 1000",
        "gid 1001 1001 1001 1001",
        "groups 44",
        "umask 0027",
        "oom_score_adj 321",
        "no_new_privs 1",
        "seccomp 2",
        "rlimit Max open files 100 200 files",
        "cap_inheritable 0000000000000000",
        "cap_effective 0000000000000000",
        "HOME=/",
        "PATH=/bin",
        "TERM=xterm",
    ] {
        has(&done.out, line);
    }
    assert!(done.out.contains("-> /tmp\n"), "{done:#?}");
    assert!(done.out.ends_with(" 38\n== 1\n"), "{done:#?}");
    // A command that has the flags' names for words keeps them.
    let done = live
        .exec(&[], &["args", "-t", "--cwd", "/x", "--", "-u"])
        .ok();
    assert_eq!(done.out, "-t\n--cwd\n/x\n--\n-u\n");
}

#[test]
fn a_process_file_says_it_all() {
    let live = Live::new(|c| {
        with_user(c);
        c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    });
    let file = live.cell.outside("files").join("process.json");
    let path = file.display().to_string();
    let process = |change: &dyn Fn(&mut Value)| {
        let mut p = json!({
            "user": {"uid": 5, "gid": 6, "additionalGids": [7]},
            "args": ["/bin/hello", "each", "id", ";", "env", ";", "stat", "/proc/self/cwd"],
            "env": ["A=b"], "cwd": "/tmp",
            "capabilities": {"bounding": ["CAP_CHOWN"]},
            "oomScoreAdj": 42,
        });
        change(&mut p);
        fs::write(&file, p.to_string()).unwrap();
    };
    process(&|_| {});
    for flags in [["--process", &path], ["-p", &path]] {
        let done = outcome(&mut live.command(&flags, &[])).ok();
        for line in [
            "uid 5 5 5 5",
            "gid 6 6 6 6",
            "groups 7",
            "oom_score_adj 42",
            "no_new_privs 0",
            "cap_bounding 0000000000000001",
            // The cell's.
            "rlimit Max open files 100 200 files",
            "A=b",
        ] {
            has(&done.out, line);
        }
        assert!(!done.out.contains("PATH="), "{done:#?}");
        assert!(done.out.contains("-> /tmp\n"), "{done:#?}");
    }
    for (change, text) in [
        (
            (|p: &mut Value| p["args"] = json!([])) as fn(&mut Value),
            "process.args",
        ),
        (|p| p["cwd"] = json!("tmp"), "process.cwd"),
        (|p| p["user"] = json!(7), "process.user"),
        (|p| *p = json!([]), "process"),
        (|p| *p = json!({}), "process"),
        (|p| p["env"] = json!(["A"]), "process.env[0]"),
        (
            |p| p["rlimits"] = json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}]),
            "process.rlimits",
        ),
    ] {
        process(&|p| change(p));
        let err = live.refused(&["-p", &path], &[]);
        assert!(err.contains(text) && err.contains(&path), "{text}: {err}");
    }
    fs::write(&file, "{").unwrap();
    assert!(live.refused(&["-p", &path], &[]).contains(&path));
    fs::remove_file(&file).unwrap();
    let err = live.refused(&["-p", &path], &[]);
    assert!(err.contains("No such file") && err.contains(&path), "{err}");
}

#[test]
fn directory_and_environment() {
    let live = Live::new(|_| {});
    let done = live
        .exec(&["--cwd", "/tmp"], &["stat", "/proc/self/cwd"])
        .ok();
    assert!(done.out.contains("-> /tmp\n"), "{done:#?}");
    let flags = ["-e", "A=b=c", "--env", "TERM=dumb", "-e", "HOME=/x"];
    let done = live.exec(&flags, &["env"]).ok();
    let mut lines: Vec<&str> = done.out.lines().collect();
    lines.sort();
    assert_eq!(lines, ["A=b=c", "HOME=/x", "PATH=/bin", "TERM=dumb"]);
    // It is not made: this is no creation.
    let err = live.refused(&["--cwd", "/nonesuch"], &["/bin/true"]);
    assert!(
        err.contains("/nonesuch") && err.contains("No such file"),
        "{err}"
    );
    assert!(!live.cell.root("/nonesuch").exists());
    let err = live.refused(&["--cwd", "tmp"], &["/bin/true"]);
    assert!(err.contains("process.cwd"), "{err}");
    let err = live.refused(&["--cwd", "/etc/passwd"], &["/bin/true"]);
    assert!(
        err.contains("/etc/passwd") && err.contains("Not a directory"),
        "{err}"
    );
    let err = live.refused(&["-e", "A"], &["/bin/true"]);
    assert!(err.contains("NAME=value"), "{err}");
}

#[test]
fn users_by_number_and_by_the_names_of_the_cell() {
    let live = Live::new(with_user);
    fs::write(
        live.cell.root("etc/passwd"),
        "root:x:0:0::/root:\nuser:x:70:71::/srv:\n1:x:0:0::/:\n",
    )
    .unwrap();
    let group = "root:x:0:\nvideo:x:44:user\naudio:x:45:user,other\nlast:x:46:\n";
    fs::write(live.cell.root("etc/group"), group).unwrap();
    for (user, uid, gid, groups, home) in [
        // A number is that number, whoever has it for a name (CVE-2026-30892). Its group stays the cell's.
        ("1", 1, 1001, "44", "/"),
        ("0", 0, 1001, "44", "/root"),
        ("70", 70, 1001, "44", "/srv"),
        ("1:2", 1, 2, "44", "/"),
        ("4000000000:0", 4_000_000_000_u32, 0, "44", "/"),
        ("user", 70, 71, "44 45", "/srv"),
        ("root", 0, 0, "", "/root"),
        ("user:last", 70, 46, "", "/srv"),
        ("user:9", 70, 9, "", "/srv"),
        ("70:video", 70, 44, "44", "/srv"),
    ] {
        let done = live.exec(&["-u", user], &["each", "id", ";", "env"]).ok();
        has(&done.out, &format!("uid {uid} {uid} {uid} {uid}"));
        has(&done.out, &format!("gid {gid} {gid} {gid} {gid}"));
        let seen = done.value("groups").trim();
        assert_eq!(seen, groups, "groups of -u {user}");
        has(&done.out, &format!("HOME={home}"));
        has(&done.out, "umask 0027");
    }
    let done = live
        .exec(&["-g", "5", "--additional-gids", "6"], &["id"])
        .ok();
    has(&done.out, "groups 5 6 44");
    for (user, why) in [
        ("nobody-here", "no matching entries in passwd file"),
        ("user:nobody-here", "no matching entries in group file"),
        ("4294967295", "out of range"),
        ("99999999999", "out of range"),
        ("1:4294967295", "out of range"),
        (":5", "USER or USER:GROUP"),
        ("user:", "USER or USER:GROUP"),
        ("-1", "no matching entries"),
    ] {
        let err = live.refused(&[&format!("--user={user}")], &["/bin/true"]);
        assert!(err.contains(why), "{user}: {err}");
    }
    // A passwd file that leads out of the root is looked up inside it.
    fs::remove_file(live.cell.root("etc/passwd")).unwrap();
    symlink("/../../../../etc/passwd-", live.cell.root("etc/passwd")).unwrap();
    let err = live.refused(&["-u", "daemon"], &["/bin/true"]);
    assert!(err.contains("no matching entries"), "{err}");
}

#[test]
fn capabilities_and_privileges() {
    let live = Live::new(|c| c["process"]["noNewPrivileges"] = json!(false));
    let done = live.exec(&["--cap", "CAP_NET_ADMIN", "-c", "CAP_CHOWN"], &["id"]);
    let done = done.ok();
    // KILL and NET_BIND_SERVICE are the cell's.
    for line in [
        "cap_bounding 0000000000001421",
        "cap_permitted 0000000000001421",
        "cap_effective 0000000000001421",
        "cap_inheritable 0000000000000000",
        "cap_ambient 0000000000000000",
        "no_new_privs 0",
    ] {
        has(&done.out, line);
    }
    let log = live.cell.outside("files").join("log");
    let path = log.display().to_string();
    let mut command = live
        .cell
        .command(&["--log", &path, "exec", "--cap", "CAP_NONESUCH"]);
    let done = outcome(command.args([&live.cell.id, "/bin/hello", "id"])).ok();
    has(&done.out, "cap_bounding 0000000000000420");
    let log = fs::read_to_string(&log).unwrap();
    assert!(log.contains("CAP_NONESUCH"), "{log}");
    let done = live.exec(&["--no-new-privs"], &["id"]).ok();
    has(&done.out, "no_new_privs 1");
}

#[test]
fn labels_that_the_kernel_has_not_are_refused() {
    let live = Live::new(|_| {});
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        let err = live.refused(&["--process-label", "a:b:c"], &["/bin/true"]);
        assert!(err.contains("selinuxLabel"), "{err}");
    }
    let on = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if !on.is_ok_and(|t| t.starts_with('Y')) {
        let err = live.refused(&["--apparmor", "cells"], &["/bin/true"]);
        assert!(err.contains("apparmorProfile"), "{err}");
        return;
    }
    let err = live.refused(&["--apparmor", "no-such-profile"], &["/bin/true"]);
    assert!(err.contains("no-such-profile"), "{err}");
    let words = ["cat", "/proc/self/attr/current"];
    let done = live.exec(&["--apparmor", "unconfined"], &words).ok();
    assert_eq!(done.out.trim(), "unconfined");
}

#[test]
fn a_terminal_in_the_foreground_and_over_a_socket() {
    let live = Live::new(|c| {
        with_user(c);
        c["process"]["terminal"] = json!(false);
    });
    let words = [
        "each",
        "pid",
        ";",
        "stat",
        "/proc/self/fd/0",
        ";",
        "open",
        "/dev/tty",
        "rw",
    ];
    let done = live.exec(&["-t"], &words).ok();
    let out = done.out.replace("\r\n", "\n");
    has(&out, "tty 111");
    assert!(
        out.contains("-> /dev/pts/") && out.contains("\nok\n"),
        "{out}"
    );
    let pid = out.lines().find_map(|l| l.strip_prefix("pid ")).unwrap();
    has(&out, &format!("session {pid}"));
    // Without one the streams are the caller's.
    has(&live.exec(&["-i"], &["pid"]).ok().out, "tty 000");

    let path = live.cell.outside("files").join("console");
    let listener = UnixListener::bind(&path).unwrap();
    let flag = format!("--console-socket={}", path.display());
    let log = live.cell.outside("files").join("log");
    let (name, master) = std::thread::scope(|s| {
        let got = s.spawn(|| receive(&listener));
        let command = live.command(&["-td", &flag], &["/bin/hello", "print", "hello there"]);
        quiet(command, &log).ok();
        got.join().unwrap()
    });
    assert!(name.starts_with(b"/dev/pts/"), "{name:?}");
    let mut text = Vec::new();
    // The end is EIO, once the last slave is closed.
    let _ = fs::File::from(master).read_to_end(&mut text);
    assert_eq!(String::from_utf8_lossy(&text), "hello there\r\n");

    for (flags, why) in [
        (&["-td"][..], "cannot allocate tty if gpucell will detach"),
        (&["-t", &flag], "cannot use console socket if"),
        (&["-d", &flag], "cannot use console socket if"),
        (
            &["-td", "--console-socket=/nonesuch/socket"],
            "/nonesuch/socket",
        ),
    ] {
        let err = live.refused(flags, &["/bin/true"]);
        assert!(err.contains(why), "{flags:?}: {err}");
    }
}

/// The terminal belongs to its user, whom the cell's devpts has in its own.
#[test]
fn the_terminals_owner_is_the_user() {
    let live = Live::new(|_| {});
    let words = [
        "each",
        "stat",
        "/dev/pts/0",
        ";",
        "open",
        "/dev/pts/0",
        "rw",
    ];
    let done = live.exec(&["-t", "-u", "1000"], &words).ok();
    assert!(
        done.out.contains(" 1000:") && done.out.contains("ok"),
        "{done:#?}"
    );
}

#[test]
fn descriptors_that_are_asked_for_and_no_others() {
    let live = Live::new(|_| {});
    let shell = |flags: &str, n: &str| {
        let state = live.cell.bundle.state();
        let script = format!(
            "exec 3</etc/hostname 4</etc/hostname 9</; exec {} --root {} exec {flags} {} /bin/hello fd {n}",
            crate::support::GPUCELL,
            state.display(),
            live.cell.id
        );
        let done = outcome(Command::new("sh").args(["-c", &script])).ok();
        done.out.trim().to_owned()
    };
    for n in ["3", "4", "9"] {
        assert_eq!(shell("", n), "closed", "{n}");
    }
    assert_eq!(shell("--preserve-fds 1", "3"), "open");
    assert_eq!(shell("--preserve-fds 1", "4"), "closed");
    assert_eq!(shell("--preserve-fds=2", "4"), "open");
    assert_eq!(shell("--preserve-fds=2", "9"), "closed");
    let err = live.refused(&["--preserve-fds=500"], &["/bin/true"]);
    assert!(err.contains("preserved-fd 3"), "{err}");
}

#[test]
fn pid_file_and_pidfd_tell_who_it_is() {
    let live = Live::new(|_| {});
    let path = live.cell.outside("files").join("pidfd");
    let listener = UnixListener::bind(&path).unwrap();
    let flag = format!("--pidfd-socket={}", path.display());
    let (pid, pidfd) = std::thread::scope(|s| {
        let got = s.spawn(|| receive(&listener).1);
        let pid = live.sleeper(&[&flag, "--no-subreaper"]);
        (pid, got.join().unwrap())
    });
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    assert!(info.contains(&format!("Pid:\t{pid}\n")), "{info}");
    assert!(live.processes().contains(&pid) && pid != live.init);
    // In the foreground as well.
    let file = live.cell.outside("files").join("pid2");
    let file_flag = format!("--pid-file={}", file.display());
    live.exec(&[&file_flag], &["true"]).ok();
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.parse::<u32>().is_ok(), "{text:?}");
    // A program whose pid nobody is told is not left running.
    for flag in ["--pid-file=/nonesuch/pid", "--pidfd-socket=/nonesuch/pidfd"] {
        let err = live.refused(&["-d", flag], &["/bin/hello", "sleep", "100"]);
        assert!(err.contains("/nonesuch/pid"), "{err}");
    }
}
