//! What only NVML knows: `gpucell-monitor` (folder monitor), built as it is shipped, on a libnvidia-ml.so.1 that
//! isn't NVIDIA's (tests/fakes/nvml.rs), and gpucell on both.

mod fakes;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use fakes::{Fake, LIB, VERSION};
use serde_json::{Value, json};
use support::hello;

const REPO: &str = env!("CARGO_MANIFEST_DIR");
const MIG: &str = "MIG-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f";

fn done(command: &mut Command) {
    let done = command.output().expect("the program");
    let text = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {text}");
}

/// Both programs, built once: the monitor and the library.
fn built() -> &'static (PathBuf, PathBuf) {
    static BUILT: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    BUILT.get_or_init(|| {
        let dir = Path::new(REPO).join("target/monitor");
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(["build", "--locked", "--quiet", "--target-dir"])
            .arg(&dir)
            .current_dir(Path::new(REPO).join("monitor"));
        // Cargo hands its own settings down to the tests.
        cargo.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
        done(&mut cargo);
        let monitor = dir.join(format!(
            "{}-unknown-linux-gnu/debug/gpucell-monitor",
            std::env::consts::ARCH
        ));
        let library = dir.join("libnvidia-ml.so");
        let part = dir.join(format!("libnvidia-ml.so.{}", std::process::id()));
        done(
            Command::new(Path::new(env!("CARGO")).with_file_name("rustc"))
                .args(["--edition", "2024", "--crate-type", "cdylib"])
                .args(["-C", "link-arg=-Wl,-soname,libnvidia-ml.so.1", "-o"])
                .arg(&part)
                .arg(Path::new(REPO).join("tests/fakes/nvml.rs")),
        );
        fs::rename(part, &library).unwrap();
        (monitor, library)
    })
}

/// A host with two GPUs, the second one split, whose NVML knows what `text` says.
struct Host {
    fake: Fake,
}

impl Host {
    fn new() -> Host {
        let fake = Fake::new(2);
        fake.mig(1, 2, 0);
        fake.mig(1, 5, 1);
        let host = Host { fake };
        let file = host.folder().join(format!("libnvidia-ml.so.{VERSION}"));
        fs::remove_file(&file).unwrap();
        fs::copy(&built().1, file).unwrap();
        let bus = |index| {
            Fake::bus(index)
                .replacen("0000", "00000000", 1)
                .to_uppercase()
        };
        host.says(&format!(
            "gpu {} {} 2 9 0 85899345920 1073741824 45 4242:1073741824\n\
             gpu {} {} 14 8 9 42949672960 2097152 0 77:1048576:2:0 78:524288:5:1\n\
             mig 1 MIG-00000000-0000-0000-0000-000000000000 2 0 10737418240 1048576\n\
             mig 1 {MIG} 5 1 21474836480 524288\n",
            Fake::uuid(0),
            bus(0),
            Fake::uuid(1),
            bus(1),
        ));
        host.config(&built().0);
        host
    }

    fn folder(&self) -> PathBuf {
        self.fake.root().join(&LIB[1..])
    }

    fn says(&self, text: &str) {
        fs::write(self.folder().join("nvml.txt"), text).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.fake.path().join("nvml.toml")
    }

    fn config(&self, monitor: &Path) {
        let base = fs::read_to_string(self.fake.config()).unwrap();
        fs::write(self.file(), format!("{base}monitor = {monitor:?}\n")).unwrap();
    }

    fn gpucell(&self, args: &[&str]) -> (i32, String, String) {
        let done = Command::new(env!("CARGO_BIN_EXE_gpucell"))
            .env("GPUCELL_CONFIG", self.file())
            .arg("--root")
            .arg(self.fake.path().join("state"))
            .args(args)
            .output()
            .unwrap();
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        let (out, err) = (text(done.stdout), text(done.stderr));
        (done.status.code().unwrap(), out, err)
    }

    /// What a cell with these flags would be.
    fn explain(&self, flags: &[&str]) -> (i32, String, String) {
        let bundle = format!("{}/", hello().display());
        self.gpucell(&[&["explain", &bundle], flags].concat())
    }
}

#[test]
fn figures_are_there_when_they_are_asked_for() {
    let host = Host::new();
    let json = |args: &[&str]| -> Value {
        let (code, out, err) = host.gpucell(args);
        assert_eq!((code, err.as_str()), (0, ""));
        serde_json::from_str(&out).unwrap()
    };
    let list = json(&["gpu", "list", "--format", "json", "--stats"]);
    let [one, two] = [&list["gpus"][0], &list["gpus"][1]];
    let memory = json!({"total": 85899345920u64, "used": 1073741824, "free": 84825604096u64});
    assert_eq!(one["memory"], memory);
    assert_eq!(one["utilization"], json!({"gpu": 45, "memory": 7}));
    assert_eq!(
        one["processes"],
        json!([{"pid": 4242, "memory": 1073741824}])
    );
    assert_eq!(two["mig"][1]["uuid"], MIG);
    assert_eq!(two["mig"][1]["memory"]["used"], 524288);

    let (_, table, _) = host.gpucell(&["gpu", "list", "--stats"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].contains("MEMORY") && lines[1].contains("1.0 GiB / 80.0 GiB"),
        "{table}"
    );
    assert!(
        lines[1].contains("45 %") && lines[4].contains(MIG),
        "{table}"
    );

    let show = json(&["gpu", "show", "--format", "json", "--stats", "1:1"]);
    assert_eq!(show["uuid"], MIG);
    assert_eq!(show["memory"]["total"], 21474836480u64);
    assert_eq!(show["processes"][0]["pid"], 78);
    assert_eq!(show["processes"].as_array().unwrap().len(), 1);

    // Not asked for: nothing is called.
    host.config(Path::new("/nowhere"));
    let list = json(&["gpu", "list", "--format", "json"]);
    assert!(list["gpus"][0].get("memory").is_none());
    let (code, _, err) = host.gpucell(&["gpu", "list", "--stats"]);
    assert!(code == 1 && err.contains("/nowhere is not there"), "{err}");
}

#[test]
fn a_mig_device_by_its_uuid() {
    let host = Host::new();
    let (gi, ci) = (host.fake.cap(1, 5, None), host.fake.cap(1, 5, Some(1)));
    let (code, out, err) = host.explain(&["--gpus", &format!("device={MIG}")]);
    assert_eq!(code, 0, "{err}");
    for cap in [gi, ci] {
        assert!(
            out.contains(&format!("/dev/nvidia-caps/nvidia-cap{cap}")),
            "{out}"
        );
    }
    let other = host.fake.cap(1, 2, Some(0));
    assert!(!out.contains(&format!("nvidia-cap{other}\"")), "{out}");
    let (code, out, _) = host.gpucell(&["gpu", "show", MIG]);
    assert!(code == 0 && out.contains("1:1"), "{out}");

    // Names of drivers before 470 hold the ids, whoever else was asked.
    let old = format!("MIG-{}/5/1", Fake::uuid(1));
    let (code, out, err) = host.gpucell(&["gpu", "show", "--stats", &old]);
    assert!(code == 0 && out.contains("1:1"), "{out}{err}");

    let unknown = "device=MIG-11111111-1111-1111-1111-111111111111";
    let (code, _, err) = host.explain(&["--gpus", unknown]);
    assert!(code != 0 && err.contains("doesn't exist"), "{err}");
    host.config(Path::new("/nowhere"));
    let (code, _, err) = host.explain(&["--gpus", &format!("device={MIG}")]);
    assert!(code != 0 && err.contains("/nowhere is not there"), "{err}");
}

#[test]
fn requirements_on_brand_and_architecture() {
    let host = Host::new();
    let check = |device: &str, text: &str| {
        let env = format!("NVIDIA_REQUIRE_X={text}");
        host.explain(&["--gpus", device, "-e", &env])
    };
    for (device, text, wrong) in [
        ("device=0", "brand=tesla", None),
        ("device=0", "brand=Tesla,arch>=9.0", None),
        ("device=0", "arch<9.0 brand=tesla", None),
        (
            "device=0",
            "brand=geforce",
            Some("GPU 0: brand=geforce is not met: brand is tesla"),
        ),
        (
            "device=0",
            "arch>9.0",
            Some("GPU 0: arch>9.0 is not met: arch is 9.0"),
        ),
        (
            "all",
            "brand=tesla",
            Some("GPU 1: brand=tesla is not met: brand is nvidia"),
        ),
        ("device=1:0", "brand=nvidia,arch=8.9", None),
    ] {
        let (code, _, err) = check(device, text);
        match wrong {
            None => assert_eq!((code, err.as_str()), (0, ""), "{device} {text}"),
            Some(wrong) => assert!(code != 0 && err.contains(wrong), "{device} {text}: {err}"),
        }
    }
    // What can be decided without it is.
    host.config(Path::new("/nowhere"));
    let (code, _, err) = check("device=0", "cuda>=12.0 brand=geforce");
    assert_eq!((code, err.as_str()), (0, ""));
    let (code, _, err) = check("device=0", "brand=tesla");
    let words = ["brand is not known", "/nowhere is not there"];
    assert!(code != 0 && words.iter().all(|w| err.contains(w)), "{err}");
}

/// NVML's own word, when it doesn't start.
#[test]
fn a_driver_that_does_not_answer() {
    let host = Host::new();
    fs::remove_file(host.folder().join("nvml.txt")).unwrap();
    let (code, _, err) = host.gpucell(&["gpu", "list", "--stats"]);
    assert!(
        code == 1 && err.contains("NVML: NVIDIA driver is not loaded"),
        "{err}"
    );
    fs::remove_file(host.folder().join(format!("libnvidia-ml.so.{VERSION}"))).unwrap();
    let (code, _, err) = host.gpucell(&["gpu", "list", "--stats"]);
    assert!(
        code == 1 && err.contains("no libnvidia-ml.so.1 of this driver in"),
        "{err}"
    );
}
