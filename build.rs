//! How the binary is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The guard of the running file (src/sys/entry.rs) comes before libc starts.
    println!("cargo::rustc-link-arg-bin=gpucell=-Wl,--entry=gpucell_entry");
    // What a cell's life enters lies together: fewer pages to map, fewer faults. Names that a
    // compiler spells differently match nothing, and cost only that.
    if std::env::var("PROFILE").as_deref() == Ok("release") {
        println!("cargo::rerun-if-changed=src/bin/gpucell.ld");
        let root = std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo");
        println!("cargo::rustc-link-arg-bin=gpucell=-Wl,-T,{root}/src/bin/gpucell.ld");
    }
}
