//! Makes `gpucell_entry` (src/sys/entry.rs) the ELF entry point of the binary: the guard of the
//! running file comes before libc starts.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bin=gpucell=-Wl,--entry=gpucell_entry");
}
