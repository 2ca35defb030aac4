//! `gpucell exec` into a running cell, on a real kernel: runc's flags, exit codes and words, the states of a
//! cell, its namespaces and groups; and that nothing is left of what failed.

#[path = "../cell_support/mod.rs"]
mod cell_support;
#[path = "../support/mod.rs"]
mod support;

mod flags;
mod places;
mod states;

use cell_support::{Cell, quiet, until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::process::Command;
use support::{Outcome, outcome};

/// A running cell whose first process sleeps.
struct Live {
    cell: Cell,
    init: i32,
}

impl Live {
    fn new(change: impl FnOnce(&mut Value)) -> Live {
        let mut cell = Cell::new(change);
        cell.words(&["sleep", "1000"]);
        cell.detach(&[]).ok();
        let init = cell.pid();
        Live { cell, init }
    }

    /// `gpucell exec FLAG... ID WORD...`
    fn command(&self, flags: &[&str], words: &[&str]) -> Command {
        let mut c = self.cell.command(&["exec"]);
        c.args(flags).arg(&self.cell.id).args(words);
        c
    }

    /// The hello program, executed in the cell to its end.
    fn exec(&self, flags: &[&str], words: &[&str]) -> Outcome {
        let words: Vec<&str> = ["/bin/hello"].iter().chain(words).copied().collect();
        outcome(&mut self.command(flags, &words))
    }

    /// What fails: 255, and nothing of it is left.
    fn refused(&self, flags: &[&str], words: &[&str]) -> String {
        let before = self.processes();
        let done = outcome(&mut self.command(flags, words));
        assert_eq!(done.code, 255, "{flags:?} {words:?}: {done:#?}");
        assert_eq!(done.out, "", "{flags:?} {words:?}");
        self.back_to(&before);
        done.err
    }

    /// In the background, the hello program sleeping. Its pid comes from the pid file.
    fn sleeper(&self, flags: &[&str]) -> i32 {
        let file = self.cell.outside("files").join("pid");
        let path = file.display().to_string();
        let mut all = vec!["--detach", "--pid-file", &path];
        all.extend(flags);
        let command = self.command(&all, &["/bin/hello", "sleep", "1000"]);
        quiet(command, &self.cell.outside("files").join("log")).ok();
        let text = fs::read_to_string(&file).unwrap();
        // As runc writes it: digits, no newline.
        assert!(text.bytes().all(|b| b.is_ascii_digit()), "{text:?}");
        text.parse().unwrap()
    }

    /// Processes of the cell, by its groups.
    fn processes(&self) -> BTreeSet<i32> {
        let numbers = fs::read_dir("/proc").unwrap().flatten();
        numbers
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .filter(|pid: &i32| {
                let text = fs::read_to_string(format!("/proc/{pid}/cgroup"));
                text.is_ok_and(|t| t.contains(&self.cell.id))
            })
            .collect()
    }

    fn back_to(&self, before: &BTreeSet<i32>) {
        until("what failed to be gone", || self.processes() == *before);
    }
}

/// Accepts one connection and receives one message with a descriptor.
fn receive(listener: &UnixListener) -> (Vec<u8>, OwnedFd) {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let (socket, _) = listener.accept().expect("a connection");
    let mut buf = vec![0; 4096];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let (n, fds) = {
        let mut io = [IoSliceMut::new(&mut buf)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let msg =
            recvmsg::<()>(socket.as_raw_fd(), &mut io, Some(&mut space), flags).expect("a message");
        let mut fds = Vec::new();
        for c in msg.cmsgs().expect("control messages") {
            if let ControlMessageOwned::ScmRights(list) = c {
                fds.extend(list);
            }
        }
        (msg.bytes, fds)
    };
    assert_eq!(fds.len(), 1, "one descriptor");
    buf.truncate(n);
    // SAFETY: received just now, ours alone.
    (buf, unsafe { OwnedFd::from_raw_fd(fds[0]) })
}

fn has(text: &str, line: &str) {
    assert!(text.lines().any(|l| l == line), "no '{line}' in\n{text}");
}
