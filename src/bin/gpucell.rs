//! The `gpucell` binary: hands the command line to [`gpucell::cli`].

fn main() {
    std::process::exit(gpucell::cli::main());
}
