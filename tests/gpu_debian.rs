//! NVIDIA's real user space in a cell: Debian's packages of it, injected by a driver of the same version
//! that isn't there. Its programs and libraries find and load one another, and say that there is no GPU.
//! Needs root, and the packages (scripts/lib/nvidia-debs).

mod cdi_schema;
mod cell_support;
mod fakes;
mod gpu_support;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cell_support::{Cell, sections};
use fakes::Fake;
use gpu_support::{MULTIARCH, compile, copy, glibc, ldconfig, merged_usr};
use serde_json::json;
use support::{Outcome, outcome};

/// Calls libcuda's cuInit, found by the loader's own search, and loads what it is given the names of.
const PROBE: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
int cuInit(unsigned flags);
int main(int argc, char **argv) {
    if (argc < 2) {
        printf("cuInit %d\n", cuInit(0));
        FILE *maps = fopen("/proc/self/maps", "r");
        char line[4096];
        while (fgets(line, sizeof line, maps))
            if (strstr(line, "libcuda.so") && strstr(line, "r-xp"))
                printf("from %s", strchr(line, '/'));
        return 0;
    }
    for (int i = 1; i < argc; i++)
        printf("%s %s\n", argv[i], dlopen(argv[i], RTLD_NOW) ? "loads" : dlerror());
    return 0;
}
"#;

/// The driver's root and version.
fn driver() -> (PathBuf, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lib/nvidia-debs");
    let done = Command::new(&script).output().expect("the script");
    let said = String::from_utf8(done.stdout).unwrap();
    let err = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{}: {err}", script.display());
    let (root, version) = said.trim().rsplit_once(' ').expect("FOLDER VERSION");
    (root.into(), version.to_owned())
}

/// A host with one GPU and the real user space.
struct Host {
    fake: Fake,
    root: PathBuf,
    version: String,
}

impl Host {
    fn new() -> Host {
        let (root, version) = driver();
        let fake = Fake::new(1);
        fake.set_version(&version);
        Host {
            fake,
            root,
            version,
        }
    }

    fn config(&self) -> PathBuf {
        let path = self.fake.path().join("debian.toml");
        let text = format!(
            "[nvidia]\ndriver-root = {:?}\nproc-root = {:?}\ndev-root = {:?}\n",
            self.root,
            self.fake.path().join("proc"),
            self.fake.path().join("dev")
        );
        fs::write(&path, text).unwrap();
        path
    }

    fn run(&self, cell: &mut Cell, args: &[&str]) -> Outcome {
        cell.edit(|c| c["process"]["args"] = json!(args));
        let mut command = cell.making("run", &[]);
        outcome(command.env("GPUCELL_CONFIG", self.config()))
    }
}

/// Debian as an image: merged /usr, its libraries by architecture, a cache; without anything of NVIDIA's.
fn debian(host: &Host, readonly: bool) -> Cell {
    let cell = Cell::new(|c| {
        c["root"]["readonly"] = json!(readonly);
        let env = c["process"]["env"].as_array_mut().unwrap();
        env.push(json!("NVIDIA_VISIBLE_DEVICES=all"));
        env.push(json!(
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video,ngx"
        ));
    });
    let root = cell.root("/");
    merged_usr(&root);
    let folder = format!("/usr/lib/{MULTIARCH}");
    glibc(&root, &folder);
    for lib in [
        "libm.so.6",
        "libpthread.so.0",
        "librt.so.1",
        "libutil.so.1",
        "libgcc_s.so.1",
        "libcrypto.so.3",
        "libssl.so.3",
    ] {
        let from = format!("/lib/{MULTIARCH}/{lib}");
        if Path::new(&from).exists() {
            copy(&from, &root.join(&folder[1..]).join(lib));
        }
    }
    fs::write(root.join("etc/debian_version"), "12.1\n").unwrap();
    fs::create_dir_all(root.join("etc/ld.so.conf.d")).unwrap();
    let include = "include /etc/ld.so.conf.d/*.conf\n";
    fs::write(root.join("etc/ld.so.conf"), include).unwrap();
    let conf = format!("/lib/{MULTIARCH}\n{folder}\n");
    fs::write(root.join("etc/ld.so.conf.d/multiarch.conf"), conf).unwrap();
    ldconfig(&root);
    let libcuda = host
        .root
        .join(format!("usr/lib/{MULTIARCH}/nvidia/current/libcuda.so.1"));
    // What libcuda itself needs is the cell's to find.
    let args = [
        libcuda.to_str().unwrap(),
        "-ldl",
        "-Wl,--allow-shlib-undefined",
    ];
    compile("cc", PROBE, &root.join("bin/probe"), &args);
    cell
}

#[test]
fn a_cdi_file_of_it_holds_against_the_published_schema() {
    let host = Host::new();
    let done = Command::new(support::GPUCELL)
        .args(["cdi", "generate", "--format", "json"])
        .env("GPUCELL_CONFIG", host.config())
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{err}");
    let text = String::from_utf8(done.stdout).unwrap();
    assert_eq!(cdi_schema::violations(&text), [""; 0]);
    let spec: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mounts = spec["containerEdits"]["mounts"].as_array().unwrap();
    let has = |name: String| {
        let ends = |m: &serde_json::Value| m["hostPath"].as_str().unwrap().ends_with(&name);
        mounts.iter().any(ends)
    };
    assert!(has(format!("/libcuda.so.{}", host.version)), "{mounts:#?}");
    assert!(has("/nvidia-smi".to_owned()), "{mounts:#?}");
    for mount in mounts {
        let path = Path::new(mount["hostPath"].as_str().unwrap());
        let real = fs::symlink_metadata(path).unwrap();
        assert!(!real.is_symlink(), "{}", path.display());
    }
}

#[test]
fn nvidia_smi_and_cuda_say_themselves_that_there_is_no_gpu() {
    let host = Host::new();
    for readonly in [false, true] {
        let mut cell = debian(&host, readonly);
        let done = host.run(&mut cell, &["/usr/bin/nvidia-smi"]);
        // NVML_ERROR_DRIVER_NOT_LOADED: libnvidia-ml.so.1 was found and looked for the kernel module.
        assert_eq!(done.code, 9, "{done:#?}");
        let said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver";
        assert!(done.out.contains(said), "{done:#?}");

        let env = cell.bundle.config["process"]["env"].to_string();
        assert!(!env.contains("LD_LIBRARY_PATH"));
        let done = host.run(&mut cell, &["/bin/probe"]).ok();
        // CUDA_ERROR_NO_DEVICE.
        assert_eq!(done.value("cuInit"), "100", "{done:#?}");
        let from = format!("/usr/lib/{MULTIARCH}/libcuda.so.{}", host.version);
        assert_eq!(done.value("from"), from, "{done:#?}");
        // Without the injection the same program doesn't start.
        cell.edit(|c| c["process"]["env"] = json!(["PATH=/bin"]));
        if readonly {
            let done = host.run(&mut cell, &["/bin/probe"]);
            assert_eq!(done.code, 127, "{done:#?}");
        }
    }
}

#[test]
fn every_library_is_found_by_its_soname_and_loads() {
    let host = Host::new();
    let mut cell = debian(&host, false);
    let folder = format!("/usr/lib/{MULTIARCH}");
    let done = host.run(&mut cell, &["/bin/hello", "cat", "/proc/self/mountinfo"]);
    let points = done.ok().out;
    let injected: Vec<String> = points
        .lines()
        .filter_map(|l| l.split(' ').nth(4).map(str::to_owned))
        .filter(|at| at.starts_with(&folder))
        .collect();
    // Every library of the packages, in the folder of the image's distribution.
    let mut packed: Vec<String> = Vec::new();
    for dir in [
        format!("usr/lib/{MULTIARCH}"),
        format!("usr/lib/{MULTIARCH}/nvidia/current"),
    ] {
        for entry in fs::read_dir(host.root.join(dir)).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if name.ends_with(&format!(".so.{}", host.version)) {
                packed.push(format!("{folder}/{name}"));
            }
        }
    }
    packed.sort();
    let mut sorted = injected.clone();
    sorted.sort();
    assert!(packed.len() >= 13, "{packed:?}");
    assert_eq!(sorted, packed);

    // The SONAME as readelf(1) reads it: a link to the file, by which the loader takes it.
    let mut names = Vec::new();
    for at in &injected {
        let file = host
            .root
            .join(format!("usr/lib/{MULTIARCH}/nvidia/current"));
        let name = Path::new(at).file_name().unwrap();
        let mut file = file.join(name);
        if !file.exists() {
            file = host.root.join(at.trim_start_matches('/'));
        }
        let done = Command::new("readelf")
            .arg("-d")
            .arg(&file)
            .output()
            .unwrap();
        let text = String::from_utf8(done.stdout).unwrap();
        let line = text
            .lines()
            .find(|l| l.contains("(SONAME)"))
            .expect("a SONAME");
        let soname = line.split(['[', ']']).nth(1).unwrap().to_owned();
        names.push((soname, name.to_str().unwrap().to_owned()));
    }
    let mut words = vec!["/bin/hello".to_owned(), "each".to_owned()];
    for (soname, _) in &names {
        words.extend(["stat", &format!("{folder}/{soname}"), ";"].map(str::to_owned));
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = host.run(&mut cell, &words).ok();
    for ((soname, file), (code, said)) in names.iter().zip(sections(&done.out)) {
        assert_eq!(code, 0, "{soname}");
        let link = said.trim_end().ends_with(&format!(" -> {file}"));
        assert!(
            link || (soname == file && said.contains(" file ")),
            "{said}"
        );
    }
    let mut words = vec!["/bin/probe"];
    words.extend(names.iter().map(|(soname, _)| soname.as_str()));
    let done = host.run(&mut cell, &words).ok();
    for (soname, _) in &names {
        assert_eq!(done.value(soname), "loads", "{done:#?}");
    }
}
