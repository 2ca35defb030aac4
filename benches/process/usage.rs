//! usage FILE PROGRAM [ARG...]: runs PROGRAM and writes its peak resident memory in KiB to FILE; ends
//! with its exit code.
//!
//! No libc and no standard library: the kernel never reports a child's peak below what the parent had
//! in memory when it made the child (exec(2) folds the replaced memory into the figure), so the parent
//! must have next to nothing. A static program of std has 1.2 MB, which is what a lean runtime needs.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    end(127)
}

#[cfg(target_arch = "x86_64")]
mod nr {
    pub const OPENAT: usize = 257;
    pub const WRITE: usize = 1;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const EXIT: usize = 231;
}
#[cfg(target_arch = "aarch64")]
mod nr {
    pub const OPENAT: usize = 56;
    pub const WRITE: usize = 64;
    pub const CLONE: usize = 220;
    pub const EXECVE: usize = 221;
    pub const WAIT4: usize = 260;
    pub const EXIT: usize = 94;
}

// The stack as the kernel leaves it (argc, argv, 0, envp) is the argument.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "mov rdi, rsp", "and rsp, -16", "call {main}", main = sym main);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x0, sp", "and sp, x0, -16", "bl {main}", main = sym main);

/// SAFETY: the caller vouches for the pointers among the arguments.
unsafe fn call(n: usize, a: [usize; 5]) -> isize {
    let r: isize;
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("syscall", inlateout("rax") n as isize => r, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
             in("r10") a[3], in("r8") a[4], lateout("rcx") _, lateout("r11") _, options(nostack))
    }
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("svc 0", in("x8") n, inlateout("x0") a[0] => r, in("x1") a[1], in("x2") a[2], in("x3") a[3],
             in("x4") a[4], options(nostack))
    }
    r
}

fn end(code: usize) -> ! {
    loop {
        // SAFETY: exit_group takes no pointer and does not return.
        unsafe { call(nr::EXIT, [code, 0, 0, 0, 0]) };
    }
}

extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: the kernel puts argc, argc pointers, a zero, and the environment there.
    let (argc, argv) = unsafe { (*stack, stack.add(1)) };
    if argc < 3 {
        end(127);
    }
    // SAFETY: both indices are within argv; argv[2] onwards is the command, ended by argv's zero.
    let (file, program, args, env) =
        unsafe { (*argv.add(1), *argv.add(2), argv.add(2), argv.add(argc + 1)) };
    const SIGCHLD: usize = 17;
    // SAFETY: a plain fork: no flags, no stack, no pointers.
    let pid = unsafe { call(nr::CLONE, [SIGCHLD, 0, 0, 0, 0]) };
    if pid == 0 {
        // SAFETY: the vectors are the kernel's own, still in place.
        unsafe { call(nr::EXECVE, [program, args as usize, env as usize, 0, 0]) };
        end(127);
    }
    let mut status = 0i32;
    // struct rusage: four longs of times, then maxrss.
    let mut usage = [0usize; 18];
    // SAFETY: both are of the size that wait4 fills.
    unsafe {
        call(
            nr::WAIT4,
            [
                pid as usize,
                &raw mut status as usize,
                0,
                &raw mut usage as usize,
                0,
            ],
        )
    };

    let mut digits = [b'\n'; 24];
    let (mut at, mut n) = (digits.len() - 1, usage[4]);
    while at > 0 {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    const AT_FDCWD: usize = -100isize as usize;
    const WRONLY_CREAT_TRUNC: usize = 0o1 | 0o100 | 0o1000;
    // SAFETY: `file` is argv[1], a string; the buffer is ours.
    unsafe {
        let fd = call(nr::OPENAT, [AT_FDCWD, file, WRONLY_CREAT_TRUNC, 0o600, 0]);
        call(
            nr::WRITE,
            [
                fd as usize,
                digits.as_ptr() as usize + at,
                digits.len() - at,
                0,
                0,
            ],
        );
    }
    end(if status & 0x7f == 0 {
        (status as usize >> 8) & 0xff
    } else {
        128 + (status as usize & 0x7f)
    })
}
