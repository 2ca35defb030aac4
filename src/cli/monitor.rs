//! The process behind a detached cell: its parent, the writer of its log, its undertaker.
//!
//! One process a cell, in a session of its own, holding the bundle's lock. It takes no signal but
//! SIGKILL: it must outlive the cell, and it ends with it.

use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Failure;
use super::cell_log::{Stream, Writer};
use super::launch::{Launch, failure, null, oom_line};
use crate::cell::{Made, Until, create, ops};
use crate::sys::clone::{self, Exit};
use crate::sys::{daemon, fd, misc};
use crate::{Error, Result};

/// What the monitor tells the command that forked it, once.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Why the cell doesn't run; `None`: it does.
    error: Option<String>,
    /// The exit code that goes with it.
    code: i32,
}

impl Report {
    /// Reads the report.
    ///
    /// # Errors
    /// The text and the exit code of the monitor's error.
    pub fn read(text: &str) -> Result<(), (String, i32)> {
        match serde_json::from_str::<Report>(text) {
            Ok(Report { error: None, .. }) => Ok(()),
            Ok(Report {
                error: Some(text),
                code,
            }) => Err((text, code)),
            Err(_) => Err(("the cell's monitor died".to_owned(), super::launch::OWN)),
        }
    }

    fn send(self, mut to: PipeWriter) {
        let text = serde_json::to_string(&self).unwrap_or_default();
        // Nobody may be listening any more; the cell runs all the same.
        let _ = to.write_all(text.as_bytes());
    }
}

/// The cell's output, as far as it is still open.
struct Output {
    out: Option<OwnedFd>,
    err: Option<OwnedFd>,
    log: Writer,
}

/// Runs the cell to its end in this (forked) process, and exits.
pub fn run(launch: Launch<'_>, report: PipeWriter) -> ! {
    // A session of its own: the terminal's hang-up is not for us.
    let _ = misc::setsid();
    misc::block_signals();
    let code = match follow(launch, report) {
        Ok(()) => 0,
        Err(()) => super::launch::OWN,
    };
    std::process::exit(code)
}

fn follow(mut launch: Launch<'_>, report: PipeWriter) -> Result<(), ()> {
    let refuse = |report: PipeWriter, f: Failure| {
        Report {
            error: Some(f.error.to_string()),
            code: f.code,
        }
        .send(report);
    };
    let begun = begin(&mut launch);
    let Begun {
        made,
        mut output,
        input,
    } = match begun {
        Ok(begun) => begun,
        Err(e) => {
            // Before the answer: when it comes, nothing is left behind.
            drop(launch);
            refuse(report, failure(e));
            return Err(());
        }
    };
    launch.folders.keep();
    Report {
        error: None,
        code: 0,
    }
    .send(report);
    let saved = made.saved;
    drop(made.lock);
    let exit = watch(made.child.pidfd.as_fd(), &mut output);
    drop(input);
    let killed = matches!(exit, Some(Exit::Signal(libc::SIGKILL)))
        || exit.is_some_and(|e| e.code() == 128 + libc::SIGKILL);
    if killed && let Some(oom) = saved.cgroup.oom().filter(|o| o.kills > 0) {
        let line = format!("gpucell: {}\n", oom_line(&oom));
        let _ = output.log.push(Stream::Err, line.as_bytes());
    }
    if !launch.keep {
        // `delete -f` by somebody else may have come first.
        let gone = match launch.set.cells.lock(&saved.id) {
            Ok(lock) => ops::destroy(&lock, &saved),
            Err(_) => saved.cgroup.remove(),
        };
        return gone.map_err(|e| {
            let line = format!("gpucell: {e}\n");
            let _ = output.log.push(Stream::Err, line.as_bytes());
        });
    }
    Ok(())
}

struct Begun {
    made: Made,
    output: Output,
    /// The writing end of the program's stdin, for `-i`: open as long as the cell lives.
    input: Option<PipeWriter>,
}

/// Creates the cell with its output led here.
fn begin(launch: &mut Launch<'_>) -> Result<Begun> {
    // What the parent's caller waits on must close: a shell's $(…) reads until then.
    daemon::null_stdio().map_err(|e| Error::step("open", "/dev/null", e))?;
    let dir = launch.log_dir.clone();
    let dir = dir.ok_or_else(|| Error::msg("no folder for the log"))?;
    let mut output = Output {
        out: None,
        err: None,
        log: open_log(&dir)?,
    };
    let mut opts = std::mem::take(&mut launch.opts);
    let mut input = None;
    if !launch.flags.tty {
        let (out, out_end) = pipe()?;
        let (err, err_end) = pipe()?;
        let stdin: OwnedFd = if launch.flags.interactive {
            let (reader, writer) = pipe()?;
            input = Some(writer);
            reader.into()
        } else {
            null()?.into()
        };
        opts.stdio = [Some(stdin), Some(out_end.into()), Some(err_end.into())];
        (output.out, output.err) = (Some(out.into()), Some(err.into()));
    }
    let made = create(&launch.set.cells, opts, Until::Running)?;
    if let Err(e) = ops::poststart(&made.lock, &made.saved) {
        let _ = made.saved.cgroup.kill_all();
        let _ = clone::wait_pidfd(made.child.pidfd.as_fd());
        ops::destroy(&made.lock, &made.saved)?;
        return Err(e);
    }
    let mut made = made;
    if let Some(master) = made.console.take() {
        output.out = Some(master);
    }
    Ok(Begun {
        made,
        output,
        input,
    })
}

fn open_log(dir: &Path) -> Result<Writer> {
    Writer::open(dir).map_err(|e| Error::step("open log in", dir.display().to_string(), e))
}

fn pipe() -> Result<(PipeReader, PipeWriter)> {
    std::io::pipe().map_err(|e| Error::step("make", "pipe", e))
}

/// Logs until the first process is dead and its output read. `None` when its end can't be learnt.
fn watch(pidfd: BorrowedFd<'_>, output: &mut Output) -> Option<Exit> {
    loop {
        let ready = output.poll(Some(pidfd), -1)?;
        output.take(&ready);
        if ready.dead {
            break;
        }
    }
    // What it printed last is still in the pipe; what others of the cell may print later is not
    // waited for.
    while let Some(ready) = output.poll(None, 0) {
        if !ready.out && !ready.err {
            break;
        }
        output.take(&ready);
    }
    let _ = output.log.finish();
    clone::wait_pidfd(pidfd).ok()
}

#[derive(Default)]
struct Readiness {
    dead: bool,
    out: bool,
    err: bool,
}

impl Output {
    fn poll(&self, pidfd: Option<BorrowedFd<'_>>, timeout_ms: i32) -> Option<Readiness> {
        let mut fds = Vec::new();
        let mut places = Vec::new();
        for (place, fd) in [
            pidfd,
            self.out.as_ref().map(AsFd::as_fd),
            self.err.as_ref().map(AsFd::as_fd),
        ]
        .into_iter()
        .enumerate()
        {
            if let Some(fd) = fd {
                fds.push(fd);
                places.push(place);
            }
        }
        let found = misc::poll_in(&fds, timeout_ms).ok()?;
        let is = |place| {
            let at = places.iter().position(|p| *p == place);
            at.and_then(|at| found.get(at).copied()).unwrap_or(false)
        };
        Some(Readiness {
            dead: is(0),
            out: is(1),
            err: is(2),
        })
    }

    fn take(&mut self, ready: &Readiness) {
        if ready.out {
            Self::drain(&mut self.out, Stream::Out, &mut self.log);
        }
        if ready.err {
            Self::drain(&mut self.err, Stream::Err, &mut self.log);
        }
    }

    /// One read. The end (or EIO of a terminal whose last slave is closed) closes the stream; a full
    /// disk must not stop the cell, so failed writes are dropped.
    fn drain(from: &mut Option<OwnedFd>, stream: Stream, log: &mut Writer) {
        let Some(open) = from else { return };
        let mut buf = [0; 16 << 10];
        match fd::read(open.as_fd(), &mut buf) {
            Ok(n) if n > 0 => {
                let _ = log.push(stream, buf.get(..n).unwrap_or_default());
            }
            _ => *from = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports() {
        let ok = serde_json::to_string(&Report {
            error: None,
            code: 0,
        });
        assert_eq!(Report::read(&ok.unwrap()), Ok(()));
        let bad = serde_json::to_string(&Report {
            error: Some("no".into()),
            code: 127,
        });
        assert_eq!(Report::read(&bad.unwrap()), Err(("no".into(), 127)));
        assert_eq!(Report::read("").unwrap_err().1, 125);
    }
}
