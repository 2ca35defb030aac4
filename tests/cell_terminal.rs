//! The terminal of a cell, and its seccomp filter, on a real kernel.

mod cell_support;
mod support;

use cell_support::{Cell, quiet, until};
use serde_json::{Value, json};
use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

/// Accepts one connection and receives one message with a descriptor.
fn receive(listener: &UnixListener) -> (Vec<u8>, OwnedFd) {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let (socket, _) = listener.accept().expect("a connection");
    let mut buf = vec![0; 65536];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let (n, fds) = {
        let mut io = [IoSliceMut::new(&mut buf)];
        let msg = recvmsg::<()>(
            socket.as_raw_fd(),
            &mut io,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .expect("a message");
        let fds: Vec<RawFd> = msg
            .cmsgs()
            .expect("control messages")
            .flat_map(|c| match c {
                ControlMessageOwned::ScmRights(fds) => fds,
                _ => Vec::new(),
            })
            .collect();
        (msg.bytes, fds)
    };
    assert_eq!(fds.len(), 1, "one descriptor");
    buf.truncate(n);
    // SAFETY: received just now, ours alone.
    (buf, unsafe { OwnedFd::from_raw_fd(fds[0]) })
}

fn read_all(master: OwnedFd) -> String {
    let mut text = Vec::new();
    // The end is EIO, once the last slave is closed.
    let _ = fs::File::from(master).read_to_end(&mut text);
    String::from_utf8_lossy(&text).replace("\r\n", "\n")
}

fn with_terminal(uid: u32) -> Cell {
    Cell::new(|c| {
        c["process"]["terminal"] = json!(true);
        c["process"]["consoleSize"] = json!({"height": 31, "width": 117});
        c["process"]["user"] = json!({"uid": uid, "gid": uid});
    })
}

#[test]
fn the_master_goes_to_the_console_socket() {
    for (uid, verb) in [(0, "create"), (1000, "create"), (1000, "run")] {
        let mut cell = with_terminal(uid);
        let path = cell.outside("x").join("console");
        let listener = UnixListener::bind(&path).unwrap();
        cell.words(&[
            "each",
            "pid",
            ";",
            "stat",
            "/dev/console",
            "/dev/pts/0",
            ";",
            "open",
            "/dev/console",
            "rw",
            ";",
            "open",
            "/dev/tty",
            "rw",
            ";",
            "cat",
            "-",
        ]);
        let flag = format!("--console-socket={}", path.display());
        let mut making = cell.making(verb, &[&flag]);
        if verb == "run" {
            making.arg("--detach");
        }
        let log = cell.outside("x").join("log");
        let (name, master) = std::thread::scope(|s| {
            let got = s.spawn(|| receive(&listener));
            quiet(making, &log).ok();
            got.join().unwrap()
        });
        assert!(name.starts_with(b"/dev/pts/"), "{name:?}");
        let mut size = libc::winsize {
            ws_row: 0,
            ws_col: 0,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: TIOCGWINSZ writes one winsize.
        assert_eq!(
            unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) },
            0
        );
        assert_eq!((size.ws_row, size.ws_col), (31, 117));
        if verb == "create" {
            cell.verb("start", &[]).ok();
        }
        // What is typed arrives; ^D ends it.
        let mut typing = fs::File::from(master.try_clone().unwrap());
        typing.write_all(b"typed\n\x04").unwrap();
        drop(typing);
        let out = read_all(master);
        let got = cell_support::sections(&out);
        assert!(
            got[0].1.contains("tty 111") && got[0].1.contains("session 1"),
            "{out}"
        );
        assert!(
            got[1]
                .1
                .lines()
                .filter(|l| l.contains("char ") && l.contains(&format!(" {uid}:")))
                .count()
                == 2,
            "{out}"
        );
        assert_eq!((got[2].0, got[3].0), (0, 0), "{out}");
        assert!(got[4].1.contains("typed"), "{out}");
        cell.wait_for("stopped");
        cell.verb("delete", &[]).ok();
    }
}

#[test]
fn terminals_without_a_place_to_go_are_refused() {
    let mut cell = with_terminal(0);
    let done = cell.create(&[]);
    assert!(
        done.code == 1 && done.err.contains("console socket"),
        "{done:#?}"
    );
    assert!(cell.detach(&[]).err.contains("console socket"));
    // In the foreground the terminal is our own.
    let done = cell.hello(&["pid"]).ok();
    assert!(done.out.contains("tty 111"), "{done:#?}");
    cell.edit(|c| c["process"]["terminal"] = json!(false));
    let done = cell.create(&["--console-socket=/nowhere"]);
    assert!(
        done.code == 1 && done.err.contains("process.terminal"),
        "{done:#?}"
    );
}

#[test]
fn the_pidfd_goes_to_its_socket() {
    let mut cell = Cell::new(|_| {});
    let path = cell.outside("x").join("pidfd");
    let listener = UnixListener::bind(&path).unwrap();
    cell.words(&["sleep", "100"]);
    let flag = format!("--pidfd-socket={}", path.display());
    let fd = std::thread::scope(|s| {
        let got = s.spawn(|| receive(&listener).1);
        cell.create(&[&flag]).ok();
        got.join().unwrap()
    });
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
    assert!(info.contains(&format!("Pid:\t{}\n", cell.pid())), "{info}");
}

fn filter(config: &mut Value, rules: Value) {
    config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules});
}

#[test]
fn the_filter_is_in_force_with_and_without_new_privileges() {
    for (nnp, uid) in [(true, 0), (false, 0), (true, 1000), (false, 1000)] {
        let mut cell = Cell::new(|c| {
            c["process"]["noNewPrivileges"] = json!(nnp);
            c["process"]["user"] = json!({"uid": uid, "gid": uid});
            filter(
                c,
                json!([
                    {"names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                    {"names": ["getppid"], "action": "SCMP_ACT_ERRNO"},
                    {"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13, "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
                    {"names": ["getpgrp"], "action": "SCMP_ACT_KILL_PROCESS"},
                ]),
            );
        });
        let n = |n: i64| n.to_string();
        let (pgid, ppid, priority) = (
            n(libc::SYS_getpgid),
            n(libc::SYS_getppid),
            n(libc::SYS_getpriority),
        );
        let got = cell.each(&[
            &["syscall", &pgid, "0"],
            &["syscall", &ppid],
            &["syscall", &priority, "1", "0"],
            &["syscall", &priority, "0", "0"],
            &["id"],
        ]);
        assert_eq!(got[0].1, "other 38\n");
        assert_eq!(got[1].1, "EPERM 1\n");
        assert_eq!(got[2].1, "EACCES 13\n");
        assert_eq!(got[3].0, 0, "{got:?}");
        assert!(
            got[4].1.contains("seccomp 2")
                && got[4].1.contains(if nnp {
                    "no_new_privs 1"
                } else {
                    "no_new_privs 0"
                }),
            "{got:?}"
        );
        assert!(
            uid == 0 || got[4].1.contains("cap_effective 0000000000000000"),
            "{got:?}"
        );
        #[cfg(target_arch = "x86_64")]
        assert_eq!(
            cell.hello(&["syscall", &n(libc::SYS_getpgrp)]).code,
            128 + libc::SIGSYS
        );
    }
}

#[test]
fn a_strict_filter_is_no_trouble_to_the_runtime() {
    // What hello itself needs, and of the runtime's own calls only write, read and execve.
    let mut cell = Cell::new(|c| {
        c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": [
            "read", "write", "execve", "exit_group", "brk", "mmap", "munmap", "mprotect", "arch_prctl", "set_tid_address",
            "set_robust_list", "rseq", "prlimit64", "getrandom", "poll", "rt_sigaction", "rt_sigprocmask", "sigaltstack",
            "sched_getaffinity", "prctl", "readlinkat", "readlink", "fstat", "newfstatat", "openat", "close", "futex", "gettid"]}]});
    });
    assert_eq!(cell.hello(&["print", "fine"]).ok().out, "fine\n");
    let log = cell.outside("x").join("out");
    quiet(cell.making("create", &[]), &log).ok();
    cell.verb("start", &[]).ok();
    until("printed", || fs::read_to_string(&log).unwrap() == "fine\n");
}

#[test]
fn a_listener_gets_the_notify_descriptor_and_the_state() {
    let mut cell = Cell::new(|_| {});
    let path = cell.outside("x").join("seccomp");
    let listener = UnixListener::bind(&path).unwrap();
    cell.edit(|c| {
        filter(
            c,
            json!([{"names": ["getppid"], "action": "SCMP_ACT_NOTIFY"}]),
        );
        c["linux"]["seccomp"]["listenerPath"] = json!(path);
        c["linux"]["seccomp"]["listenerMetadata"] = json!("for the agent");
    });
    cell.words(&["syscall", &libc::SYS_getppid.to_string()]);
    let (state, fd) = std::thread::scope(|s| {
        let got = s.spawn(|| receive(&listener));
        cell.create(&[]).ok();
        got.join().unwrap()
    });
    let state: Value = serde_json::from_slice(&state).expect("JSON");
    assert_eq!(state["fds"], json!(["seccompFd"]));
    assert_eq!(state["metadata"], "for the agent");
    assert_eq!(state["pid"], json!(cell.pid()));
    assert_eq!(state["state"]["id"], json!(cell.id));
    assert_eq!(state["state"]["status"], "creating");
    cell.verb("start", &[]).ok();
    // struct seccomp_notif is 80 bytes, seccomp_notif_resp 24 (include/uapi/linux/seccomp.h).
    let (mut request, mut answer) = ([0u64; 10], [0u64; 3]);
    // SAFETY: SECCOMP_IOCTL_NOTIF_RECV fills 80 bytes.
    assert_eq!(
        unsafe { libc::ioctl(fd.as_raw_fd(), 0xc050_2100, request.as_mut_ptr()) },
        0
    );
    let number = request[2] as u32; // data.nr follows id, pid and flags
    assert_eq!(i64::from(number), libc::SYS_getppid);
    answer[0] = request[0];
    answer[1] = 4321;
    // SAFETY: SECCOMP_IOCTL_NOTIF_SEND reads 24 bytes.
    assert_eq!(
        unsafe { libc::ioctl(fd.as_raw_fd(), 0xc018_2101, answer.as_mut_ptr()) },
        0
    );
    cell.wait_for("stopped");
    let log = fs::read_to_string(cell.bundle.path().with_file_name("log")).unwrap();
    assert_eq!(log, "result 4321\n");
    drop((fd, listener));
    // Nobody listens: refused before anything is made.
    cell.verb("delete", &[]).ok();
    let done = cell.create(&[]);
    assert!(
        done.code == 1 && done.err.contains("seccomp listener"),
        "{done:#?}"
    );
    cell.nothing_left();
}
