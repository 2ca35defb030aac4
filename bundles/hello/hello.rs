//! The program of the hello bundle: one static file with what the tests and benches ask from the
//! inside of a cell. `hello COMMAND [ARGUMENT...]`; `hello help` lists the commands.
//!
//! Built by `scripts/bundle hello` with rustc alone: it uses the standard library and a few calls of
//! libc. Every command prints `name value` lines, so that a test can look one up.
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::process::exit;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const HELP: &str = "\
true, false            exit 0, exit 1
exit N                 exits with N
print WORD...          prints the words on one line
lines N                prints N numbered lines
args                   each argument after the command, one a line
env                    the environment, one variable a line
cat FILE...            a file's contents (- is standard input)
ls DIR                 the names in a folder, sorted
stat PATH...           type, mode, uid:gid, size, device number, and a link's target
open PATH [r|w|rw]     opens it: `ok`, or the error's name and number, exit 1
write PATH WORD...     writes the words to a file (made if missing), or the error, exit 1
mkdir PATH             makes a folder, or the error, exit 1
mknod PATH MAJOR MINOR makes a character device that all may open, or the error, exit 1
id                     uid, gid, groups, capabilities, no_new_privs, seccomp, umask, as the kernel has them
limits                 the cgroup's limits as seen from inside, under the v2 names (v1 is translated)
cpus                   CPUs this program may run on
ns                     namespaces
pid                    pid, parent, process group and session
hog SIZE [SECONDS]     allocates and touches SIZE (64m, 1g), then holds it for SECONDS
spin SECONDS [N]       burns CPU on N threads, prints CPU-seconds used and per cent of one CPU
tasks N                starts up to N processes that sleep; prints how many there could be
sleep SECONDS          sleeps
count LINK             counts up without end: each number is printed, and is the text of LINK
signals                prints `ready`, then each signal received; ends on TERM or INT with 128+n
fd FD                  is this descriptor open?
syscall NUMBER [N...]  a system call with numbers for arguments: `result N`, or the error, exit 1
hunt STOP              tries to get at what isn't the cell's through each new process, until the file STOP is there
each COMMAND ; ...     several commands, words apart from `;`: after each a line `== EXIT-CODE`
cost-fork PROGRAM N, cost-fault SIZE SECONDS, cost-open FILE N, cost-read FILE SECONDS, cost-throttle SECONDS
                       what these cost here (scripts/bench kernel)
";

mod cost;
mod hunt;

mod sys {
    //! The few calls of libc that std has no word for. Each is a plain C function.
    use std::ffi::{c_char, c_int, c_long, c_uint};

    unsafe extern "C" {
        pub fn syscall(n: c_long, a: c_long, b: c_long, c: c_long, d: c_long) -> c_long;
        pub fn mknod(path: *const c_char, mode: c_uint, dev: u64) -> c_int;
        pub safe fn getpid() -> c_int;
        pub safe fn getppid() -> c_int;
        pub safe fn getpgrp() -> c_int;
        pub safe fn fork() -> c_int;
        pub safe fn pause() -> c_int;
        pub safe fn isatty(fd: c_int) -> c_int;
        pub safe fn fcntl(fd: c_int, cmd: c_int) -> c_int;
        pub safe fn getsid(pid: c_int) -> c_int;
        pub safe fn clock() -> std::ffi::c_long;
        pub safe fn signal(n: c_int, handler: extern "C" fn(c_int)) -> usize;
        pub safe fn kill(pid: c_int, n: c_int) -> c_int;
        pub safe fn _exit(code: c_int) -> !;
    }
}

fn main() {
    let args: Vec<String> = std::env::args_os()
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    let Some((command, rest)) = words.split_first() else {
        print!("{HELP}");
        exit(2);
    };
    match run(command, rest) {
        Ok(code) => exit(code),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => exit(1),
        Err(e) => {
            eprintln!("hello {command}: {e}");
            exit(1);
        }
    }
}

fn run(command: &str, rest: &[&str]) -> io::Result<i32> {
    let mut out = io::stdout().lock();
    match command {
        "true" => {}
        "false" => return Ok(1),
        "exit" => return number(rest, 0).map(|n| n as i32),
        "print" => writeln!(out, "{}", rest.join(" "))?,
        "lines" => {
            let n = number(rest, 0)? as u64;
            for i in 1..=n {
                writeln!(out, "line {i}")?;
            }
        }
        "args" => {
            for a in rest {
                writeln!(out, "{a}")?;
            }
        }
        "env" => {
            for (k, v) in std::env::vars_os() {
                writeln!(out, "{}={}", k.to_string_lossy(), v.to_string_lossy())?;
            }
        }
        "cat" => {
            for path in rest {
                let mut data = Vec::new();
                if *path == "-" {
                    io::stdin().read_to_end(&mut data)?;
                } else {
                    fs::File::open(path)?.read_to_end(&mut data)?;
                }
                out.write_all(&data)?;
            }
        }
        "ls" => {
            let mut names: Vec<_> = fs::read_dir(word(rest, 0)?)?
                .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
                .collect();
            names.sort();
            for n in names {
                writeln!(out, "{n}")?;
            }
        }
        "stat" => {
            for path in rest {
                writeln!(out, "{}", describe(path)?)?;
            }
        }
        "open" => {
            let how = rest.get(1).copied().unwrap_or("r");
            let o = fs::OpenOptions::new()
                .read(how.contains('r'))
                .write(how.contains('w'))
                .custom_flags(
                    0o4000, /* O_NONBLOCK: a FIFO or a tty must not hang the test */
                )
                .open(word(rest, 0)?);
            return verdict(&mut out, o.map(drop));
        }
        "write" => {
            let text = format!("{}\n", rest.get(1..).unwrap_or_default().join(" "));
            let w = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(word(rest, 0)?)
                .and_then(|mut f| f.write_all(text.as_bytes()));
            return verdict(&mut out, w);
        }
        "mkdir" => return verdict(&mut out, fs::create_dir(word(rest, 0)?)),
        "mknod" => {
            let path = std::ffi::CString::new(word(rest, 0)?)?;
            let dev = (number(rest, 1)? as u64) << 8 | number(rest, 2)? as u64;
            // SAFETY: the path is a C string that outlives the call.
            let made = unsafe { sys::mknod(path.as_ptr(), 0o020_666, dev) };
            return verdict(
                &mut out,
                if made == 0 {
                    Ok(())
                } else {
                    Err(io::Error::last_os_error())
                },
            );
        }
        "id" => write!(out, "{}", identity()?)?,
        "limits" => write!(out, "{}", limits())?,
        "cpus" => writeln!(out, "cpus {}", thread::available_parallelism()?)?,
        "ns" => {
            for kind in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
                let link = fs::read_link(format!("/proc/self/ns/{kind}"))?;
                writeln!(out, "{kind} {}", link.display())?;
            }
        }
        "pid" => {
            writeln!(out, "pid {}\nparent {}", sys::getpid(), sys::getppid())?;
            writeln!(out, "group {}\nsession {}", sys::getpgrp(), sys::getsid(0))?;
            writeln!(
                out,
                "tty {}",
                (0..3)
                    .map(|fd| sys::isatty(fd).to_string())
                    .collect::<String>()
            )?;
        }
        "hog" => {
            let size = size(word(rest, 0)?)?;
            let hold = if rest.len() > 1 {
                number(rest, 1)?
            } else {
                0.0
            };
            let held = hog(size);
            writeln!(out, "held {}", held.len())?;
            out.flush()?;
            thread::sleep(Duration::from_secs_f64(hold));
            std::hint::black_box(held);
        }
        "spin" => {
            let threads = if rest.len() > 1 {
                number(rest, 1)? as usize
            } else {
                1
            };
            let (used, wall) = spin(seconds(rest, 0)?, threads);
            writeln!(
                out,
                "used {used:.3}\nwall {wall:.3}\npercent {:.1}",
                100.0 * used / wall
            )?;
        }
        "tasks" => {
            drop(out);
            return tasks(number(rest, 0)? as usize);
        }
        "sleep" => {
            drop(out);
            thread::sleep(seconds(rest, 0)?);
        }
        "count" => {
            drop(out);
            return count(word(rest, 0)?);
        }
        "signals" => {
            drop(out);
            return signals();
        }
        "fd" => {
            let open = sys::fcntl(number(rest, 0)? as i32, 1 /* F_GETFD */) != -1;
            writeln!(out, "{}", if open { "open" } else { "closed" })?;
        }
        "syscall" => {
            let mut n = [0; 5];
            for (i, slot) in n.iter_mut().enumerate().take(rest.len()) {
                *slot = word(rest, i)?.parse().map_err(io::Error::other)?;
            }
            // SAFETY: as good as the caller's numbers, which name calls that touch no memory here.
            let result = unsafe { sys::syscall(n[0], n[1], n[2], n[3], n[4]) };
            if result == -1 {
                return verdict(&mut out, Err(io::Error::last_os_error()));
            }
            writeln!(out, "result {result}")?;
        }
        "hunt" => write!(out, "{}", hunt::hunt(word(rest, 0)?)?)?,
        "each" => {
            for words in rest.split(|w| *w == ";") {
                let Some((command, rest)) = words.split_first() else {
                    continue;
                };
                let code = run(command, rest).or_else(|e| writeln!(out, "{e}").map(|()| 1))?;
                writeln!(out, "== {code}")?;
            }
        }
        "cost-fork" => writeln!(
            out,
            "{}",
            cost::fork_exec(word(rest, 0)?, number(rest, 1)? as usize)?
        )?,
        "cost-fault" => writeln!(
            out,
            "{}",
            cost::fault(size(word(rest, 0)?)?, seconds(rest, 1)?)
        )?,
        "cost-open" => writeln!(
            out,
            "{}",
            cost::open_read(word(rest, 0)?, number(rest, 1)? as usize)?
        )?,
        "cost-read" => writeln!(
            out,
            "{}",
            cost::read_file(word(rest, 0)?, seconds(rest, 1)?)?
        )?,
        "cost-throttle" => writeln!(out, "{}", cost::throttle(seconds(rest, 0)?))?,
        "help" => write!(out, "{HELP}")?,
        other => {
            eprintln!("hello: no command '{other}'; hello help lists them");
            return Ok(2);
        }
    }
    Ok(0)
}

fn word<'a>(rest: &[&'a str], i: usize) -> io::Result<&'a str> {
    rest.get(i)
        .copied()
        .ok_or_else(|| io::Error::other("an argument is missing"))
}

fn number(rest: &[&str], i: usize) -> io::Result<f64> {
    let w = word(rest, i)?;
    let n: f64 = w
        .parse()
        .map_err(|_| io::Error::other(format!("'{w}' is no number")))?;
    if n.is_finite() && n >= 0.0 {
        Ok(n)
    } else {
        Err(io::Error::other("out of range"))
    }
}

fn seconds(rest: &[&str], i: usize) -> io::Result<Duration> {
    Duration::try_from_secs_f64(number(rest, i)?).map_err(io::Error::other)
}

/// Bytes, from a number with an optional k, m or g (powers of 1024).
fn size(text: &str) -> io::Result<usize> {
    let (digits, unit) = match text.as_bytes().last().map(u8::to_ascii_lowercase) {
        Some(b'k') => (&text[..text.len() - 1], 10),
        Some(b'm') => (&text[..text.len() - 1], 20),
        Some(b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits
        .parse::<usize>()
        .ok()
        .and_then(|n| n.checked_mul(1 << unit))
        .ok_or_else(|| io::Error::other(format!("'{text}' is no size")))
}

/// Prints `ok`, or the error's name and number.
fn verdict(out: &mut impl Write, r: io::Result<()>) -> io::Result<i32> {
    let Err(e) = r else {
        writeln!(out, "ok")?;
        return Ok(0);
    };
    let n = e.raw_os_error().unwrap_or(0);
    let name = match n {
        1 => "EPERM",
        2 => "ENOENT",
        6 => "ENXIO",
        13 => "EACCES",
        17 => "EEXIST",
        19 => "ENODEV",
        20 => "ENOTDIR",
        21 => "EISDIR",
        22 => "EINVAL",
        28 => "ENOSPC",
        30 => "EROFS",
        40 => "ELOOP",
        _ => "other",
    };
    writeln!(out, "{name} {n}")?;
    Ok(1)
}

fn describe(path: &str) -> io::Result<String> {
    let m = fs::symlink_metadata(path)?;
    let kind = match m.mode() & 0o170_000 {
        0o040_000 => "dir",
        0o100_000 => "file",
        0o120_000 => "link",
        0o020_000 => "char",
        0o060_000 => "block",
        0o010_000 => "fifo",
        _ => "socket",
    };
    let (major, minor) = (
        (m.rdev() >> 8) & 0xfff,
        (m.rdev() & 0xff) | ((m.rdev() >> 12) & 0xf_ff00),
    );
    let mut s = format!(
        "{path} {kind} {:04o} {}:{} size={} dev={major}:{minor}",
        m.mode() & 0o7777,
        m.uid(),
        m.gid(),
        m.size()
    );
    if kind == "link" {
        let _ = write!(s, " -> {}", fs::read_link(path)?.display());
    }
    Ok(s)
}

/// What /proc says about this process, under short names.
fn identity() -> io::Result<String> {
    let mut s = String::new();
    for line in fs::read_to_string("/proc/self/status")?.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let name = match key {
            "Uid" => "uid",
            "Gid" => "gid",
            "Groups" => "groups",
            "Umask" => "umask",
            "NoNewPrivs" => "no_new_privs",
            "Seccomp" => "seccomp",
            "Seccomp_filters" => "seccomp_filters",
            "CapInh" => "cap_inheritable",
            "CapPrm" => "cap_permitted",
            "CapEff" => "cap_effective",
            "CapBnd" => "cap_bounding",
            "CapAmb" => "cap_ambient",
            _ => continue,
        };
        let _ = writeln!(
            s,
            "{name} {}",
            value.split_whitespace().collect::<Vec<_>>().join(" ")
        );
    }
    for file in ["oom_score_adj", "cgroup", "personality"] {
        if let Ok(text) = fs::read_to_string(format!("/proc/self/{file}")) {
            let _ = writeln!(s, "{file} {}", text.trim().replace('\n', " "));
        }
    }
    for line in fs::read_to_string("/proc/self/limits")?.lines().skip(1) {
        let _ = writeln!(
            s,
            "rlimit {}",
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        );
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let _ = writeln!(s, "hostname {}", host.trim());
    Ok(s)
}

/// The limits of the cgroup that is this cell's root, under the v2 names. v1 files are translated, so
/// that one test serves both; `unset` is a file that is not there.
fn limits() -> String {
    let read = |p: String| {
        fs::read_to_string(p)
            .ok()
            .map(|t| t.trim().replace('\n', " "))
    };
    let v2 = |f: &str| read(format!("/sys/fs/cgroup/{f}"));
    let v1 = |c: &str, f: &str| read(format!("/sys/fs/cgroup/{c}/{f}"));
    // v1 says "no limit" by a huge number, one page short of 2^63.
    let amount = |t: Option<String>| t.map(|t| if t.len() >= 19 { "max".into() } else { t });
    let pure = v2("cgroup.controllers").is_some();
    let rows: [(&str, Option<String>); 10] = [
        (
            "memory.max",
            if pure {
                v2("memory.max")
            } else {
                amount(v1("memory", "memory.limit_in_bytes"))
            },
        ),
        // v2 counts swap alone, v1 memory and swap together: each as the kernel has it.
        (
            "memory.swap.max",
            if pure { v2("memory.swap.max") } else { None },
        ),
        (
            "memory.memsw",
            if pure {
                None
            } else {
                amount(v1("memory", "memory.memsw.limit_in_bytes"))
            },
        ),
        ("memory.high", v2("memory.high")),
        (
            "cpu.max",
            if pure {
                v2("cpu.max")
            } else {
                v1("cpu", "cpu.cfs_quota_us")
                    .zip(v1("cpu", "cpu.cfs_period_us"))
                    .map(|(q, p)| format!("{} {p}", if q == "-1" { "max" } else { &q }))
            },
        ),
        ("cpu.weight", v2("cpu.weight")),
        ("cpu.shares", v1("cpu", "cpu.shares")),
        (
            "pids.max",
            if pure {
                v2("pids.max")
            } else {
                v1("pids", "pids.max")
            },
        ),
        (
            "cpuset.cpus",
            if pure {
                v2("cpuset.cpus")
            } else {
                v1("cpuset", "cpuset.cpus")
            },
        ),
        ("io.max", v2("io.max")),
    ];
    let mut s = format!("mode {}\n", if pure { "v2" } else { "v1" });
    for (name, value) in rows {
        let _ = writeln!(s, "{name} {}", value.as_deref().unwrap_or("unset"));
    }
    s
}

/// Allocates and touches `n` bytes, a mebibyte at a time: killed on the way when a limit is hit.
fn hog(n: usize) -> Vec<u8> {
    let mut v: Vec<u8> = Vec::with_capacity(n);
    while v.len() < n {
        let to = n.min(v.len() + (1 << 20));
        v.resize(to, 1); // not 0: the kernel may share pages of zeroes
    }
    v
}

/// CPU-seconds used by this process, and the wall time that took.
fn spin(how_long: Duration, threads: usize) -> (f64, f64) {
    let t0 = Instant::now();
    let c0 = sys::clock();
    let workers: Vec<_> = (0..threads.max(1))
        .map(|_| {
            thread::spawn(move || {
                let mut x = 1u64;
                while t0.elapsed() < how_long {
                    for _ in 0..10_000 {
                        x = std::hint::black_box(
                            x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1),
                        );
                    }
                }
            })
        })
        .collect();
    for w in workers {
        let _ = w.join();
    }
    (
        (sys::clock() - c0) as f64 / 1e6, /* CLOCKS_PER_SEC */
        t0.elapsed().as_secs_f64(),
    )
}

/// Forks sleepers until `n` or the first refusal; prints the count and ends them.
fn tasks(n: usize) -> io::Result<i32> {
    let mut children = Vec::new();
    let mut refused = 0;
    for _ in 0..n {
        match sys::fork() {
            0 => loop {
                sys::pause();
            },
            -1 => {
                refused = io::Error::last_os_error().raw_os_error().unwrap_or(0);
                break;
            }
            pid => children.push(pid),
        }
    }
    println!("started {}\nerrno {refused}", children.len());
    for pid in children {
        sys::kill(pid, 9);
    }
    Ok(0)
}

static GOT: AtomicI32 = AtomicI32::new(0);

extern "C" fn on_signal(n: i32) {
    GOT.store(n, Ordering::SeqCst);
}

/// A number every 20 ms, as the text of a link: it is never seen half written, and no file is open
/// that a restore would have to find again.
fn count(link: &str) -> io::Result<i32> {
    let next = format!("{link}.next");
    for n in 1_u64.. {
        unless_missing(fs::remove_file(&next))?;
        symlink(n.to_string(), &next)?;
        // Saved right here and restored later, it finds that its first life has renamed the link.
        unless_missing(fs::rename(&next, link))?;
        let mut out = io::stdout().lock();
        writeln!(out, "{n}")?;
        out.flush()?;
        thread::sleep(Duration::from_millis(20));
    }
    Ok(0)
}

fn unless_missing(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Prints each signal received. Waits by sleeping in short steps: a signal between a look and a
/// pause would else be noticed only at the next one.
fn signals() -> io::Result<i32> {
    for n in [1, 2, 3, 10, 12, 15, 28] {
        sys::signal(n, on_signal);
    }
    println!("ready");
    loop {
        match GOT.swap(0, Ordering::SeqCst) {
            0 => thread::sleep(Duration::from_millis(2)),
            n => {
                println!("signal {n}");
                if n == 15 || n == 2 {
                    sys::_exit(128 + n);
                }
            }
        }
    }
}
