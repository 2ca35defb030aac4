//! `hunt`: the attacker of the tests on processes that come into a cell. It watches for each new one and
//! tries to reach through it, in /proc and by its memory, what isn't the cell's.
use std::collections::BTreeMap;
use std::ffi::{c_int, c_ulong, c_void};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

unsafe extern "C" {
    fn process_vm_readv(
        pid: c_int,
        local: *const [*mut c_void; 2],
        locals: c_ulong,
        remote: *const [*mut c_void; 2],
        remotes: c_ulong,
        flags: c_ulong,
    ) -> isize;
}

/// How far ahead pids are looked for.
const AHEAD: i32 = 16;

#[derive(Default)]
struct Hunt {
    root: (u64, u64),
    programs: Vec<(u64, u64)>,
    /// Processes seen, and those seen before they executed their program.
    met: u32,
    early: u32,
    /// How often by each way, with an example.
    found: BTreeMap<&'static str, (u32, String)>,
}

/// It is what this process has under that name itself.
fn same(m: &fs::Metadata, name: &Path) -> bool {
    fs::metadata(name).is_ok_and(|own| (own.dev(), own.ino()) == (m.dev(), m.ino()))
}

enum Exe {
    Ours,
    Other(String),
    Denied,
    Gone,
}

/// Hunts until the file `stop` is there; says what it came to.
pub fn hunt(stop: &str) -> io::Result<String> {
    let id = |path: &str| fs::metadata(path).map(|m| (m.dev(), m.ino()));
    let mut hunt = Hunt {
        root: id("/")?,
        ..Hunt::default()
    };
    hunt.programs.extend(id("/bin/hello"));
    hunt.programs.extend(id("/bin/true"));
    let mut next = crate::sys::getpid() + 1;
    let mut rounds = 0u32;
    loop {
        match (next..next + AHEAD).find(|pid| there(*pid)) {
            Some(pid) => {
                hunt.chase(pid);
                next = pid + 1;
            }
            None => {
                rounds = rounds.wrapping_add(1);
                if rounds % 256 == 0 {
                    if fs::exists(stop)? {
                        break;
                    }
                    // Those that came while this process did not run are lost.
                    next = newest() + 1;
                }
            }
        }
    }
    let mut text = format!("met {}\nearly {}\n", hunt.met, hunt.early);
    for (way, (times, example)) in hunt.found {
        let _ = writeln!(text, "{way} {times} {example}");
    }
    Ok(text)
}

fn there(pid: i32) -> bool {
    fs::symlink_metadata(format!("/proc/{pid}")).is_ok()
}

/// The last pid of this namespace: that of a thread made just now.
fn newest() -> i32 {
    let link = std::thread::spawn(|| fs::read_link("/proc/thread-self")).join();
    let link = link.ok().and_then(Result::ok).unwrap_or_default();
    let name = link.file_name().and_then(|n| n.to_str());
    name.and_then(|n| n.parse().ok()).unwrap_or(0)
}

impl Hunt {
    fn chase(&mut self, pid: i32) {
        self.met += 1;
        let mut early = false;
        while there(pid) {
            match self.exe(pid) {
                Exe::Ours | Exe::Gone => break,
                Exe::Other(path) => self.note("exe", path),
                Exe::Denied => {}
            }
            if !early {
                early = true;
                self.early += 1;
            }
            for way in ["root", "cwd"] {
                let path = format!("/proc/{pid}/{way}");
                if let Ok(m) = fs::metadata(&path)
                    && (m.dev(), m.ino()) != self.root
                {
                    let link = fs::read_link(&path).unwrap_or_default();
                    self.note(way, link.display().to_string());
                }
            }
            for fd in 3..16 {
                let path = format!("/proc/{pid}/fd/{fd}");
                let Ok(link) = fs::read_link(&path) else {
                    continue;
                };
                // A file or folder can be opened by that name; a socket or pidfd can't.
                let way = match fs::metadata(&path) {
                    Ok(m) if same(&m, &link) => continue,
                    Ok(m) if m.is_dir() || m.is_file() => "file",
                    _ => "fd",
                };
                self.note(way, link.display().to_string());
            }
            self.memory(pid);
        }
        while there(pid) {
            std::thread::yield_now();
        }
    }

    fn exe(&self, pid: i32) -> Exe {
        let path = format!("/proc/{pid}/exe");
        match fs::metadata(&path) {
            Ok(m) if self.programs.contains(&(m.dev(), m.ino())) => Exe::Ours,
            Ok(_) => {
                let link = fs::read_link(&path).unwrap_or_default();
                Exe::Other(link.display().to_string())
            }
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Exe::Denied,
            Err(_) => Exe::Gone,
        }
    }

    /// Takes what ptrace(2) takes, without stopping it.
    fn memory(&mut self, pid: i32) {
        let mut byte = 0u8;
        let here = [(&raw mut byte).cast(), std::ptr::without_provenance_mut(1)];
        let there = [
            std::ptr::without_provenance_mut(4096),
            std::ptr::without_provenance_mut(1),
        ];
        // SAFETY: one byte of ours at most is written; the other side's address is the kernel's to check.
        let n = unsafe { process_vm_readv(pid, &here, 1, &there, 1, 0) };
        let allowed =
            n >= 0 || io::Error::last_os_error().raw_os_error() == Some(14 /* EFAULT */);
        // It may have become the program by now, which is the cell's own.
        if allowed && matches!(self.exe(pid), Exe::Other(_) | Exe::Denied) {
            self.note("memory", pid.to_string());
        }
    }

    fn note(&mut self, way: &'static str, example: String) {
        let entry = self.found.entry(way).or_insert((0, example));
        entry.0 += 1;
    }
}
