//! A command under ptrace(2): its system calls are counted, and one of its processes is killed at the
//! entry of a call. The call is then not carried out (the kernel looks for a fatal signal first).

use std::collections::HashSet;
use std::fs;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Whose calls are counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Whom {
    /// The command.
    Runtime,
    /// The processes that it makes, up to their execve(2).
    Child,
    /// A process that is there already, up to its execve(2), while the command runs untraced.
    Waiting(i32),
}

/// What was seen.
#[derive(Debug)]
pub struct Seen {
    /// Calls counted.
    pub calls: u32,
    /// The call at whose entry the process was killed.
    pub killed_in: Option<String>,
    /// The command's exit code; none when it was killed.
    pub code: Option<i32>,
}

/// PTRACE_EVENT_STOP and the entry's code in `struct ptrace_syscall_info` (ptrace(2)).
const EVENT_STOP: i32 = 128;
const ENTRY: u8 = 1;

/// Runs `argv` to its end, with `env` added. Kills at the `at`th call counted, if there is one.
pub fn run(argv: &[String], env: &[(String, String)], whom: Whom, at: Option<u32>) -> Seen {
    // A shell stops itself so that the whole of the command is seen.
    let script = match whom {
        Whom::Waiting(_) => "exec \"$@\"",
        _ => "kill -STOP $$; exec \"$@\"",
    };
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).args(argv);
    command.envs(env.iter().map(|(k, v)| (k, v)));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null());
    let trace = Trace {
        main: Pid::from_raw(0),
        whom,
        at,
        seen: Seen {
            calls: 0,
            killed_in: None,
            code: None,
        },
        counting: HashSet::new(),
        traced: HashSet::new(),
    };
    match whom {
        Whom::Waiting(pid) => trace.waiting(Pid::from_raw(pid), command),
        _ => trace.whole(command),
    }
}

struct Trace {
    main: Pid,
    whom: Whom,
    at: Option<u32>,
    seen: Seen,
    /// Processes whose calls count.
    counting: HashSet<Pid>,
    /// Processes that are traced and live.
    traced: HashSet<Pid>,
}

impl Trace {
    fn whole(mut self, mut command: Command) -> Seen {
        // The trace itself takes its end.
        #[allow(clippy::zombie_processes)]
        let child = command.spawn().expect("a shell");
        self.main = Pid::from_raw(child.id() as i32);
        let stopped = waitpid(self.main, Some(WaitPidFlag::WUNTRACED));
        assert!(
            matches!(stopped, Ok(WaitStatus::Stopped(..))),
            "{stopped:?}"
        );
        let mut options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACEEXEC;
        if self.whom == Whom::Child {
            options |= Options::PTRACE_O_TRACECLONE
                | Options::PTRACE_O_TRACEFORK
                | Options::PTRACE_O_TRACEVFORK;
        }
        ptrace::seize(self.main, options).expect("ptrace");
        self.traced.insert(self.main);
        kill(self.main, Signal::SIGCONT).expect("a signal");
        while self.traced.contains(&self.main) {
            self.step(None);
        }
        self.let_go();
        self.seen
    }

    fn waiting(mut self, pid: Pid, mut command: Command) -> Seen {
        // Calls that it still had to do before it waits would count or not by chance.
        while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") S ")) {
            std::thread::yield_now();
        }
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACEEXEC;
        ptrace::seize(pid, options).expect("ptrace");
        ptrace::interrupt(pid).expect("ptrace");
        self.main = pid;
        self.traced.insert(pid);
        self.counting.insert(pid);
        // Its first stop is behind it when the command starts.
        self.step(Some(pid));
        let mut child = command.spawn().expect("a shell");
        while self.traced.contains(&pid) {
            self.step(Some(pid));
        }
        self.seen.code = child.wait().expect("the command").code();
        self.seen
    }

    /// Takes one report and lets the process go on.
    fn step(&mut self, of: Option<Pid>) {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let report = waitpid(of.unwrap_or(Pid::from_raw(-1)), Some(flags)).expect("waitpid");
        let mut signal = None;
        let pid = match report {
            WaitStatus::Exited(pid, code) => {
                if pid == self.main {
                    self.seen.code = Some(code);
                }
                self.traced.remove(&pid);
                return;
            }
            WaitStatus::Signaled(pid, ..) => {
                self.traced.remove(&pid);
                return;
            }
            WaitStatus::PtraceSyscall(pid) => {
                if self.counting.contains(&pid) && self.is_entry(pid) && self.count(pid) {
                    return;
                }
                pid
            }
            WaitStatus::PtraceEvent(pid, _, event) => {
                self.traced.insert(pid);
                if event == Event::PTRACE_EVENT_EXEC as i32 {
                    let runtime = pid == self.main && !matches!(self.whom, Whom::Waiting(_));
                    if !runtime {
                        // The program's own calls are no business of ours.
                        self.traced.remove(&pid);
                        self.gone(ptrace::detach(pid, None));
                        return;
                    }
                    if self.whom == Whom::Runtime {
                        self.counting.insert(pid);
                    }
                } else if event == EVENT_STOP && pid != self.main && self.whom == Whom::Child {
                    self.counting.insert(pid);
                }
                pid
            }
            WaitStatus::Stopped(pid, s) => {
                signal = Some(s);
                pid
            }
            other => panic!("{other:?}"),
        };
        self.gone(ptrace::syscall(pid, signal));
    }

    fn is_entry(&self, pid: Pid) -> bool {
        ptrace::syscall_info(pid).is_ok_and(|info| info.op == ENTRY)
    }

    /// Counts a call. Says whether the process was killed for it.
    fn count(&mut self, pid: Pid) -> bool {
        self.seen.calls += 1;
        if self.at != Some(self.seen.calls) {
            return false;
        }
        let text = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        let number = text.split(' ').next().and_then(|n| n.parse().ok());
        let name = number.and_then(syscalls::Sysno::new);
        self.seen.killed_in = Some(name.map_or("?", |n| n.name()).to_owned());
        kill(pid, Signal::SIGKILL).expect("a signal");
        true
    }

    /// Processes that live on, a created cell's say, are traced no longer.
    fn let_go(&mut self) {
        for pid in std::mem::take(&mut self.traced) {
            if ptrace::interrupt(pid).is_err() {
                continue;
            }
            match waitpid(pid, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {}
                stopped => {
                    stopped.expect("waitpid");
                    self.gone(ptrace::detach(pid, None));
                }
            }
        }
    }

    /// A process may be killed at any moment, by its cgroup say.
    fn gone(&self, done: nix::Result<()>) {
        assert!(matches!(done, Ok(()) | Err(Errno::ESRCH)), "{done:?}");
    }
}
