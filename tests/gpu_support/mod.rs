//! What the tests of in-root GPU work share: root file systems with a loader of their own, libraries
//! that say where they come from, and NVIDIA's hooks as a config.json has them.
#![allow(dead_code)] // each test program uses some of it

use crate::cell_support::Cell;
use crate::support::programs::install;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The host's driver version in these tests.
pub const VERSION: &str = "550.163.01";
/// Debian's library folder on this machine.
pub const MULTIARCH: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-linux-gnu"
} else {
    "x86_64-linux-gnu"
};
/// The loader's path, which programs have in them.
pub const LOADER: &str = if cfg!(target_arch = "aarch64") {
    "/lib/ld-linux-aarch64.so.1"
} else {
    "/lib64/ld-linux-x86-64.so.2"
};

/// Runs a compiler: `cc ARG... -o OUT -xc TEXT`.
pub fn compile(cc: &str, text: &str, out: &Path, args: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let src = dir.path().join("x.c");
    fs::write(&src, text).unwrap();
    fs::create_dir_all(out.parent().unwrap()).unwrap();
    let mut cmd = Command::new(cc);
    cmd.arg("-o").arg(out).arg(&src).args(args);
    let status = cmd.status().unwrap_or_else(|e| panic!("{cc}: {e}"));
    assert!(status.success(), "{cmd:?}");
}

/// A library `file` in `dir` whose `gpu_origin()` is `origin`.
pub fn library(cc: &str, dir: &Path, file: &str, soname: &str, origin: &str) -> PathBuf {
    let out = dir.join(file);
    let text = format!("const char *gpu_origin(void) {{ return \"{origin}\"; }}\n");
    let soname = format!("-Wl,-soname,{soname}");
    compile(cc, &text, &out, &["-shared", "-fPIC", "-nostdlib", &soname]);
    out
}

/// Prints the origin of each library it is given the name of, as its loader finds it.
const PROBE: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        void *lib = dlopen(argv[i], RTLD_NOW);
        const char *(*origin)(void) = lib ? dlsym(lib, "gpu_origin") : 0;
        printf("%s %s\n", argv[i], origin ? origin() : dlerror());
    }
    return 0;
}
"#;

/// The same for the library it is linked with.
const LINKED: &str = r#"
#include <stdio.h>
const char *gpu_origin(void);
int main(void) { printf("linked %s\n", gpu_origin()); return 0; }
"#;

/// Puts /bin/probe and /bin/linked into a root.
pub fn programs(cc: &str, root: &Path) {
    compile(cc, PROBE, &root.join("bin/probe"), &["-ldl"]);
    let dir = tempfile::tempdir().unwrap();
    let lib = library(cc, dir.path(), "libcuda.so.1", "libcuda.so.1", "link time");
    compile(
        cc,
        LINKED,
        &root.join("bin/linked"),
        &[lib.to_str().unwrap()],
    );
}

/// The host's file, with links resolved, copied.
pub fn copy(from: &str, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    install(from, to);
}

/// The host's glibc in a root, its libraries in `folder`.
pub fn glibc(root: &Path, folder: &str) {
    copy(LOADER, &root.join(&LOADER[1..]));
    for lib in ["libc.so.6", "libdl.so.2"] {
        let from = format!("/lib/{MULTIARCH}/{lib}");
        copy(&from, &root.join(&folder[1..]).join(lib));
    }
}

/// /lib and /lib64 as links into /usr.
pub fn merged_usr(root: &Path) {
    for dir in ["lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(dir)).unwrap();
        symlink(format!("usr/{dir}"), root.join(dir)).unwrap();
    }
}

/// Runs the host's ldconfig on a root, as the image's builder would have.
pub fn ldconfig(root: &Path) {
    let status = Command::new("/usr/sbin/ldconfig")
        .arg("-r")
        .arg(root)
        .status()
        .unwrap();
    assert!(status.success());
}

/// What `ldconfig -p` says of a root's cache.
pub fn printed(root: &Path) -> String {
    let cache = root.join("etc/ld.so.cache");
    let out = Command::new("/usr/sbin/ldconfig")
        .arg("-p")
        .arg("-C")
        .arg(cache)
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// A createContainer hook of NVIDIA's. Its program is nowhere: an attempt to execute it fails.
pub fn hook(words: &[&str]) -> Value {
    let args: Vec<&str> = ["nvidia-cdi-hook"].iter().chain(words).copied().collect();
    json!({"path": "/nowhere/nvidia-cdi-hook", "args": args})
}

/// Appends to `hooks.createContainer`.
pub fn add_hook(config: &mut Value, words: &[&str]) {
    if config.get("hooks").is_none_or(Value::is_null) {
        config["hooks"] = json!({});
    }
    if config["hooks"].get("createContainer").is_none() {
        config["hooks"]["createContainer"] = json!([]);
    }
    let list = config["hooks"]["createContainer"].as_array_mut().unwrap();
    list.push(hook(words));
}

/// Appends a read-only bind mount as NVIDIA's specifications have it.
pub fn add_bind(config: &mut Value, from: &Path, to: &str) {
    let mounts = config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": to, "source": from, "type": "bind",
        "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"]}));
}

/// Injects the host's libcuda into `folder` by a bind mount and three hooks.
pub fn inject(cell: &mut Cell, cc: &str, folder: &str) {
    let host = cell.outside("driver");
    let file = format!("libcuda.so.{VERSION}");
    let lib = library(cc, &host, &file, "libcuda.so.1", "driver");
    cell.edit(|c| {
        add_bind(c, &lib, &format!("{folder}/{file}"));
        let link = format!("libcuda.so.1::{folder}/libcuda.so");
        add_hook(c, &["create-symlinks", "--link", &link]);
        let version = format!("--host-driver-version={VERSION}");
        add_hook(c, &["enable-cuda-compat", &version]);
        add_hook(c, &["update-ldcache", "--folder", folder]);
    });
}

/// Sets the program.
pub fn program(cell: &mut Cell, args: &[&str]) {
    cell.edit(|c| c["process"]["args"] = json!(args));
}

/// Runs the programs in a cell: where each name of libcuda leads.
pub fn origins(cell: &mut Cell) -> Vec<String> {
    let mut lines = Vec::new();
    for args in [
        &["/bin/linked"][..],
        &["/bin/probe", "libcuda.so.1", "libcuda.so"],
    ] {
        program(cell, args);
        let done = cell.run(&[]).ok();
        lines.extend(done.out.lines().map(str::to_owned));
    }
    lines
}

/// All of a folder tree: path, inode, mode, owner, size, time of change, target. Two of one tree differ
/// when anything in it was touched.
pub fn snapshot(dir: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut out = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        let target = fs::read_link(&path).ok();
        let content = if m.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        out.push(format!(
            "{} {} {:o} {}:{} {} {}.{} {target:?} {content:?}",
            path.display(),
            m.ino(),
            m.mode(),
            m.uid(),
            m.gid(),
            m.nlink(),
            m.ctime(),
            m.ctime_nsec()
        ));
        if m.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    out.sort();
    out
}

/// A configuration file of ours for which another folder is the host's procfs.
pub fn proc_config(cell: &Cell, proc: &Path) -> PathBuf {
    let file = cell.outside("config").join("config.toml");
    let text = format!("[nvidia]\nproc-root = {:?}\n", proc.to_str().unwrap());
    fs::write(&file, text).unwrap();
    file
}
