//! The binary's own ELF entry point: puts the running file out of a cell's reach.
//!
//! A cell can make the kernel resolve /proc/self/exe while it still means the runtime (as the
//! program to run, as `#!/proc/self/exe`, as an ELF interpreter) and then write to the host's
//! file (CVE-2019-5736). So commands that enter a cell first execute themselves again from where
//! that write must fail: a read-only clone of the mount their file is on, or, without the
//! privilege for that, a sealed memfd. Done before libc starts, it costs one execveat and not a
//! second start-up. It fails closed.
//!
//! Nothing here may call into libc or let the compiler do so: before `_start` there is no TLS,
//! and memcpy is an indirect function whose relocation is not applied yet. Hence raw system calls,
//! volatile loops, static structures.

use core::arch::naked_asm;
use core::mem::MaybeUninit;

/// Commands that execute something inside a cell. All of argv is searched: a false match costs a
/// tenth of a millisecond, a missed one would be a hole.
static VERBS: [&[u8]; 6] = [
    b"create",
    b"run",
    b"exec",
    b"restore",
    b"run-bundle",
    b"exec-cell",
];

#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn gpucell_entry() {
    // On entry rsp is 16-byte aligned and points at argc; rdx belongs to `_start`
    // (System V ABI, Process Initialization).
    naked_asm!(
        "push rdx",
        "sub rsp, 8",
        "lea rdi, [rsp + 16]",
        "call {guard}",
        "add rsp, 8",
        "pop rdx",
        "jmp _start",
        guard = sym guard,
    )
}

#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn gpucell_entry() {
    // x0 belongs to `_start`, sp points at argc.
    naked_asm!(
        "stp x0, x30, [sp, #-16]!",
        "add x0, sp, #16",
        "bl {guard}",
        "ldp x0, x30, [sp], #16",
        "b _start",
        guard = sym guard,
    )
}

#[cfg(target_arch = "x86_64")]
unsafe fn call(nr: i64, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let ret: isize;
    // SAFETY: a system call with integer arguments; the callers vouch for the pointers.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") nr as isize => ret,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    ret
}

#[cfg(target_arch = "aarch64")]
unsafe fn call(nr: i64, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let ret: isize;
    // SAFETY: as on x86-64.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") nr,
            inlateout("x0") a => ret,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e,
            options(nostack),
        );
    }
    ret
}

const EXE: &core::ffi::CStr = c"/proc/self/exe";
const EMPTY: &core::ffi::CStr = c"";
const AT_FDCWD: usize = -100isize as usize;
const AT_EMPTY_PATH: usize = 0x1000;

/// `struct mount_attr` asking for read-only.
static READ_ONLY: [u64; 4] = [super::mount::MOUNT_ATTR_RDONLY, 0, 0, 0];

/// SEAL | SHRINK | GROW | WRITE (fcntl(2), F_ADD_SEALS).
const SEALS: usize = 0x1 | 0x2 | 0x4 | 0x8;

/// `sp` points at argc, argv, NULL, envp, NULL, auxv (System V ABI).
unsafe extern "C" fn guard(sp: *const usize) {
    // SAFETY: the kernel laid out the stack as described; all strings are NUL-terminated.
    unsafe {
        let argc = *sp;
        let argv = sp.add(1);
        let envp = argv.add(argc + 1);
        if !enters_a_cell(argc, argv) {
            return;
        }
        if on_read_only_mount() {
            return;
        }
        // A second pass that finds itself still within reach must not try for ever.
        if executed_by_descriptor(envp) {
            if is_sealed() {
                return;
            }
            die(b"gpucell: its own file could not be put out of the cell's reach\n");
        }
        let tree = call(
            libc::SYS_open_tree,
            AT_FDCWD,
            EXE.as_ptr() as usize,
            1 | 0o2000000,
            0,
            0,
        );
        if tree >= 0 {
            let set = call(
                libc::SYS_mount_setattr,
                tree as usize,
                EMPTY.as_ptr() as usize,
                AT_EMPTY_PATH,
                READ_ONLY.as_ptr() as usize,
                size_of_val(&READ_ONLY),
            );
            if set == 0 {
                again(tree as usize, argv, envp);
            }
            call(libc::SYS_close, tree as usize, 0, 0, 0, 0);
        }
        let file = sealed_copy();
        if file >= 0 {
            again(file as usize, argv, envp);
        }
        die(b"gpucell: cannot put its own file out of the cell's reach (needs /proc and memfd)\n");
    }
}

unsafe fn again(fd: usize, argv: *const usize, envp: *const usize) {
    // SAFETY: argv and envp are the kernel's own arrays. Returns only on failure.
    unsafe {
        call(
            libc::SYS_execveat,
            fd,
            EMPTY.as_ptr() as usize,
            argv as usize,
            envp as usize,
            AT_EMPTY_PATH,
        );
    }
}

unsafe fn enters_a_cell(argc: usize, argv: *const usize) -> bool {
    let mut i = 1;
    while i < argc {
        let mut v = 0;
        while v < VERBS.len() {
            // SAFETY: i < argc, and argv[i] is a C string.
            if unsafe { equals(*argv.add(i) as *const u8, VERBS[v]) } {
                return true;
            }
            v += 1;
        }
        i += 1;
    }
    false
}

/// Volatile reads keep the compiler from making this a call to memcmp.
unsafe fn equals(text: *const u8, word: &[u8]) -> bool {
    let mut i = 0;
    while i < word.len() {
        // SAFETY: stops at the first difference, so never past the NUL.
        if unsafe { text.add(i).read_volatile() } != word[i] {
            return false;
        }
        i += 1;
    }
    // SAFETY: all bytes before were equal and not NUL.
    unsafe { text.add(i).read_volatile() == 0 }
}

/// The running file can't be written through the mount it is on.
unsafe fn on_read_only_mount() -> bool {
    // SAFETY: statfs writes at most its own size.
    unsafe {
        let mut st = MaybeUninit::<libc::statfs64>::uninit();
        let out = st.as_mut_ptr() as usize;
        let ret = call(libc::SYS_statfs, EXE.as_ptr() as usize, out, 0, 0, 0);
        ret == 0 && (*st.as_ptr()).f_flags as u64 & libc::ST_RDONLY != 0
    }
}

/// The running file is a memfd that nobody can write.
unsafe fn is_sealed() -> bool {
    // SAFETY: plain arguments; the descriptor is ours.
    unsafe {
        let fd = call(
            libc::SYS_openat,
            AT_FDCWD,
            EXE.as_ptr() as usize,
            libc::O_CLOEXEC as usize,
            0,
            0,
        );
        if fd < 0 {
            return false;
        }
        let get = libc::F_GET_SEALS as usize;
        let seals = call(libc::SYS_fcntl, fd as usize, get, 0, 0, 0);
        call(libc::SYS_close, fd as usize, 0, 0, 0, 0);
        seals >= 0 && seals as usize & SEALS == SEALS
    }
}

/// AT_EXECFN is `/dev/fd/N` after execveat(2) with an empty path.
unsafe fn executed_by_descriptor(envp: *const usize) -> bool {
    const PREFIX: &[u8] = b"/dev/fd/";
    // SAFETY: walks the kernel's null-terminated arrays: envp, then pairs of auxv to AT_NULL.
    unsafe {
        let mut p = envp;
        while *p != 0 {
            p = p.add(1);
        }
        p = p.add(1);
        while *p != 0 {
            if *p == libc::AT_EXECFN as usize {
                let text = *p.add(1) as *const u8;
                let mut i = 0;
                while i < PREFIX.len() {
                    if text.add(i).read_volatile() != PREFIX[i] {
                        return false;
                    }
                    i += 1;
                }
                return true;
            }
            p = p.add(2);
        }
        false
    }
}

/// A copy of the running file in a memfd that nobody can write any more, or a negative errno.
unsafe fn sealed_copy() -> isize {
    const CLOEXEC: usize = 1;
    const ALLOW_SEALING: usize = 2;
    /// MFD_EXEC (Linux 6.3): executable also where vm.memfd_noexec says otherwise.
    const EXEC: usize = 0x10;
    const EINVAL: isize = 22;
    // SAFETY: names are C strings, descriptors are ours.
    unsafe {
        let source = call(
            libc::SYS_openat,
            AT_FDCWD,
            EXE.as_ptr() as usize,
            0o2000000,
            0,
            0,
        );
        if source < 0 {
            return source;
        }
        let name = c"gpucell".as_ptr() as usize;
        let flags = CLOEXEC | ALLOW_SEALING;
        let mut copy = call(libc::SYS_memfd_create, name, flags | EXEC, 0, 0, 0);
        if copy == -EINVAL {
            copy = call(libc::SYS_memfd_create, name, flags, 0, 0, 0);
        }
        if copy < 0 {
            return copy;
        }
        loop {
            const PIECE: usize = 0x7fff_f000;
            let n = call(
                libc::SYS_sendfile,
                copy as usize,
                source as usize,
                0,
                PIECE,
                0,
            );
            if n < 0 {
                return n;
            }
            if n == 0 {
                break;
            }
        }
        call(libc::SYS_close, source as usize, 0, 0, 0, 0);
        let sealed = call(
            libc::SYS_fcntl,
            copy as usize,
            libc::F_ADD_SEALS as usize,
            SEALS,
            0,
            0,
        );
        if sealed < 0 { sealed } else { copy }
    }
}

unsafe fn die(text: &[u8]) -> ! {
    // SAFETY: write and exit_group with plain arguments.
    unsafe {
        call(libc::SYS_write, 2, text.as_ptr() as usize, text.len(), 0, 0);
        loop {
            call(libc::SYS_exit_group, 1, 0, 0, 0, 0);
        }
    }
}
