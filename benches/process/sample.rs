//! One child: started, waited for, its time.
use std::ffi::{c_int, c_long, c_void};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn wait4(pid: c_int, status: *mut c_int, options: c_int, usage: *mut c_void) -> c_int;
    fn prctl(option: c_int, a: c_long, b: c_long, c: c_long, d: c_long) -> c_int;
}

const WNOHANG: c_int = 1;
const PR_SET_CHILD_SUBREAPER: c_int = 36;

pub struct Sample {
    pub micros: f64,
    pub code: i32,
}

/// Makes this process the parent of what its children leave behind: a created container's init.
pub fn adopt_orphans() {
    // SAFETY: a plain prctl that touches no memory.
    unsafe { prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Waits for one child; 0 for any. Its status; `None` when there was nothing to report.
fn reap(pid: c_int, options: c_int) -> Option<c_int> {
    let mut status = 0;
    let who = if pid == 0 { -1 } else { pid };
    // SAFETY: the pointer is to a live int; no usage is asked for.
    let got = unsafe { wait4(who, &mut status, options, std::ptr::null_mut()) };
    (got > 0).then_some(status)
}

/// Waits until no child is left: until the container's init, adopted by us, has ended.
pub fn await_orphans() -> Result<(), String> {
    let t0 = Instant::now();
    loop {
        while reap(0, WNOHANG).is_some() {}
        if std::fs::read_to_string("/proc/thread-self/children").is_ok_and(|c| c.trim().is_empty())
        {
            return Ok(());
        }
        if t0.elapsed() > Duration::from_secs(10) {
            return Err("a container's process did not end in 10 s".into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Runs a command to its end. Its output is dropped, or shown.
pub fn spawn_and_wait(
    words: &[&str],
    env: &[(String, String)],
    quiet: bool,
) -> Result<Sample, String> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    for (key, value) in env {
        command.env(key, value);
    }
    if quiet {
        command.stdout(Stdio::null()).stderr(Stdio::null());
    }
    let t0 = Instant::now();
    let child = command.spawn().map_err(|e| format!("{}: {e}", words[0]))?;
    let waited = reap(child.id() as c_int, 0);
    let micros = t0.elapsed().as_nanos() as f64 / 1e3;
    let Some(status) = waited else {
        return Err(format!("{}: cannot be waited for", words[0]));
    };
    let code = if status & 0x7f == 0 {
        (status >> 8) & 0xff
    } else {
        128 + (status & 0x7f)
    };
    Ok(Sample { micros, code })
}

/// As above, and anything but exit code 0 is an error that tells what the command said.
pub fn time(words: &[&str], env: &[(String, String)]) -> Result<Sample, String> {
    let s = spawn_and_wait(words, env, true)?;
    if s.code == 0 {
        return Ok(s);
    }
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    for (key, value) in env {
        command.env(key, value);
    }
    let said = command
        .output()
        .map(|o| String::from_utf8_lossy(&o.stderr).into_owned());
    Err(format!(
        "`{}` ended with {}; run again it said: {}",
        words.join(" "),
        s.code,
        said.unwrap_or_default().trim()
    ))
}
