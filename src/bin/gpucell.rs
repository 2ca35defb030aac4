//! The `gpucell` binary: hands the command line to [`gpucell::cli`].
//!
//! C's `main` and not Rust's: what std does before `fn main` (reading /proc/self/maps for the main
//! thread's guard page, an alternate signal stack) is a good part of a short command's life.
//! [`gpucell::sys::start::prepare`] does the two things of it that matter here.

#![no_main]

// SAFETY: the one `main` of this program; glibc's start-up calls it.
#[unsafe(no_mangle)]
extern "C" fn main() -> std::ffi::c_int {
    gpucell::sys::start::prepare();
    std::process::exit(gpucell::cli::main());
}
