//! What the kernel alone takes to show N files in a mount namespace that then goes away: the floor under a
//! driver's files. Nothing is parsed, looked for or written. As root.
use crate::stats;
use std::ffi::{CString, c_char, c_int, c_long, c_ulong, c_void};
use std::fs;
use std::path::Path;
use std::time::Instant;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn fork() -> c_int;
    fn _exit(code: c_int) -> !;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn unshare(flags: c_int) -> c_int;
    fn close(fd: c_int) -> c_int;
    fn mount(
        from: *const c_char,
        at: *const c_char,
        fs: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
}

// The same on x86_64 and aarch64 (asm-generic/unistd.h).
const OPEN_TREE: c_long = 428;
const MOVE_MOUNT: c_long = 429;
const OPENAT2: c_long = 437;
const MOUNT_SETATTR: c_long = 442;
const OPEN_TREE_ATTR: c_long = 467;

const AT_FDCWD: c_int = -100;
const AT_EMPTY_PATH: c_int = 0x1000;
const CLONE_NEWNS: c_int = 0x2_0000;
const OPEN_TREE_CLONE: c_int = 1;
const MOVE_MOUNT_EMPTY_PATHS: c_int = 0x4 | 0x40;
const O_PATH: u64 = 0x20_0000;
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const MS_PRIVATE: c_ulong = 1 << 18;
const MS_REC: c_ulong = 1 << 14;
const MS_BIND: c_ulong = 1 << 12;
/// MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV
const REMOUNT: c_ulong = 1 << 5 | MS_BIND | 7;
/// attr_set (read-only, nosuid, nodev), attr_clr, propagation, userns_fd
const ATTR: [u64; 4] = [7, 0, MS_PRIVATE, 0];
const HOW: [u64; 3] = [O_PATH, 0, RESOLVE_NO_MAGICLINKS];

const WAYS: [&str; 4] = [
    "nothing mounted",
    "each file: open_tree_attr, openat2, move_mount (Linux 6.15)",
    "each file: open_tree, mount_setattr, openat2, move_mount",
    "each file: mount(2) twice, targets not confined to the root",
];

struct Files {
    from: Vec<CString>,
    at: Vec<CString>,
}

/// Prints the median of `rounds` rounds in microseconds for each way, less that of mounting nothing.
pub fn run(files: &str, rounds: &str, dir: &Path) -> Result<(), String> {
    let count = |text: &str| {
        text.parse::<usize>()
            .map_err(|_| format!("'{text}' is no count"))
    };
    let (n, rounds) = (count(files)?, count(rounds)?);
    let files = lay(n, dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut times = vec![Vec::with_capacity(rounds); WAYS.len()];
    let mut order = stats::Order::new();
    for _ in 0..rounds {
        for way in order.shuffled(WAYS.len()) {
            let start = Instant::now();
            if child(way, &files) {
                times[way].push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    let nothing = stats::median(&mut times[0]);
    for (name, list) in WAYS.iter().zip(&mut times).skip(1) {
        match list.len() {
            // An older kernel.
            0 => println!("  {:>7}  {name}", "-"),
            _ => println!("  {:7.0}  {name}", stats::median(list) - nothing),
        }
    }
    Ok(())
}

fn lay(n: usize, dir: &Path) -> std::io::Result<Files> {
    let mut files = Files {
        from: Vec::new(),
        at: Vec::new(),
    };
    for side in ["from", "at"] {
        fs::create_dir_all(dir.join(side))?;
        for i in 0..n {
            let path = dir.join(side).join(format!("libnvidia-{i}.so.550.163.01"));
            fs::write(&path, "")?;
            let path = CString::new(path.into_os_string().into_encoded_bytes())?;
            match side {
                "from" => files.from.push(path),
                _ => files.at.push(path),
            }
        }
    }
    Ok(files)
}

/// Mounts the files in a namespace of its own, which ends with the process.
fn child(way: usize, files: &Files) -> bool {
    // SAFETY: this program has one thread, so the child may do anything.
    let pid = unsafe { fork() };
    if pid == 0 {
        // SAFETY: ends the child at once.
        unsafe { _exit(i32::from(!all(way, files))) }
    }
    let mut status = 0;
    // SAFETY: the pointer is to a live int.
    unsafe { waitpid(pid, &mut status, 0) == pid && status == 0 }
}

fn all(way: usize, files: &Files) -> bool {
    // SAFETY: plain numbers, and strings that end in NUL.
    let private = unsafe {
        unshare(CLONE_NEWNS) == 0
            && mount(
                std::ptr::null(),
                c"/".as_ptr(),
                std::ptr::null(),
                MS_REC | MS_PRIVATE,
                std::ptr::null(),
            ) == 0
    };
    let mut pairs = files.from.iter().zip(&files.at);
    private && (way == 0 || pairs.all(|(from, at)| one(way, from, at)))
}

fn one(way: usize, from: &CString, at: &CString) -> bool {
    let (from, at, none) = (from.as_ptr(), at.as_ptr(), std::ptr::null());
    // SAFETY: strings end in NUL; the structures live as long as the calls and their sizes are theirs.
    unsafe {
        if way == 3 {
            return mount(from, at, none, MS_BIND, none.cast()) == 0
                && mount(none, at, none, REMOUNT, none.cast()) == 0;
        }
        let empty = c"".as_ptr();
        let tree = match way {
            1 => syscall(
                OPEN_TREE_ATTR,
                AT_FDCWD,
                from,
                OPEN_TREE_CLONE,
                &ATTR,
                size_of_val(&ATTR),
            ),
            _ => syscall(OPEN_TREE, AT_FDCWD, from, OPEN_TREE_CLONE),
        } as c_int;
        let set = way == 1
            || syscall(
                MOUNT_SETATTR,
                tree,
                empty,
                AT_EMPTY_PATH,
                &ATTR,
                size_of_val(&ATTR),
            ) == 0;
        let target = syscall(OPENAT2, AT_FDCWD, at, &HOW, size_of_val(&HOW)) as c_int;
        let done = set
            && syscall(
                MOVE_MOUNT,
                tree,
                empty,
                target,
                empty,
                MOVE_MOUNT_EMPTY_PATHS,
            ) == 0;
        close(tree);
        close(target);
        done
    }
}
