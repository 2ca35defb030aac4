//! gpucell under NVIDIA's names, as the hook of a runtime that isn't gpucell (crun), on a driver that
//! isn't there.
//!
//! crun takes no hybrid host, so each container is made in a private view of this machine in which
//! /sys/fs/cgroup is the v1 hierarchies alone, or cgroup2 alone.

mod cell_support;
mod fakes;
mod gpu_support;
mod support;

use cell_support::{Cell, sections};
use fakes::{Fake, VERSION};
use gpu_support::{compile, printed};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::{GPUCELL, Outcome, outcome};

/// Which cgroups a container is made in.
#[derive(Clone, Copy, PartialEq)]
enum View {
    V1,
    V2,
}

/// Those that this machine can show.
fn views() -> Vec<View> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let has = |fstype: &str, controller: &str| {
        mounts.lines().any(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            words[2] == fstype
                && (controller.is_empty() || words[3].split(',').any(|o| o == controller))
        })
    };
    let mut found = Vec::new();
    for (view, there) in [
        (View::V1, has("cgroup", "devices")),
        (View::V2, has("cgroup2", "")),
    ] {
        match there {
            true => found.push(view),
            false => println!(
                "no {} here: not run",
                if view == View::V1 {
                    "v1 devices"
                } else {
                    "cgroup2"
                }
            ),
        }
    }
    found
}

/// The private view; `$1` is `v1` or `v2`, `$2` a folder whose nodes /dev gets too, or nothing.
const ENTER: &str = r#"
set -e
v2=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
if [ "$1" = v2 ] && [ "$v2" != /sys/fs/cgroup ]; then
  mount -t tmpfs -o mode=755 tmpfs /mnt
  mkdir /mnt/cgroup2
  mount --bind "$v2" /mnt/cgroup2
  umount -R -l /sys/fs/cgroup
  mount --move /mnt/cgroup2 /sys/fs/cgroup
  umount -l /mnt
elif [ "$1" = v1 ] && [ -n "$v2" ]; then
  umount -l "$v2"
fi
mount -t tmpfs -o mode=755 tmpfs /run
if [ -n "$2" ]; then
  mount -t tmpfs -o mode=755 tmpfs /mnt
  for n in null zero full random urandom tty; do cp -a /dev/$n /mnt/; done
  cp -a "$2"/nvidia* /mnt/
  ln -s /proc/self/fd /mnt/fd
  mkdir /mnt/pts /mnt/shm
  mount --move /mnt /dev
fi
shift 2
exec "$@"
"#;

/// The library that lets crun 1.8 load a device program where it may not raise its limit of locked
/// memory, which kernels since 5.11 don't ask for any more.
fn memlock(dir: &Path) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/process/memlock.c");
    let hard = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK);
    if hard.is_ok_and(|(_, hard)| hard == nix::libc::RLIM_INFINITY) {
        return None;
    }
    let text = fs::read_to_string(source).unwrap();
    let out = dir.join("memlock.so");
    compile("cc", &text, &out, &["-shared", "-fPIC"]);
    Some(out)
}

/// A container of crun's with a hook of ours.
struct Container {
    cell: Cell,
    fake: Fake,
    /// A host's nodes for its /dev, where the hook binds them.
    nodes: Option<PathBuf>,
}

impl Container {
    /// `env` is the process's. Its root has a node of the GPU with minor number 0 at /other.
    fn new(env: &[&str]) -> Container {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        assert!(
            outcome(Command::new("crun").arg("--version")).code == 0,
            "crun is needed: apt-get install crun"
        );
        let fake = Fake::new(2);
        let cell = Cell::new(|c| {
            c["ociVersion"] = json!("1.0.2");
            c["annotations"] = json!({});
            for pair in env {
                c["process"]["env"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!(pair));
            }
        });
        let other = cell.root("/other");
        mknod(&other, SFlag::S_IFCHR, Mode::empty(), makedev(195, 0)).unwrap();
        fs::set_permissions(other, fs::Permissions::from_mode(0o666)).unwrap();
        Container {
            cell,
            fake,
            nodes: None,
        }
    }

    /// A path that leads to gpucell.
    fn named(&self, name: &str) -> PathBuf {
        let link = self.cell.outside("hooks").join(name);
        if !link.exists() {
            symlink(GPUCELL, &link).unwrap();
        }
        link
    }

    fn hook(&mut self, stage: &str, name: &str, args: &[&str]) {
        let path = self.named(name);
        let config = self.fake.config();
        let args: Vec<&str> = [name].iter().chain(args).copied().collect();
        let hook = json!({
            "path": path, "args": args,
            "env": [format!("GPUCELL_CONFIG={}", config.display())],
        });
        self.cell.edit(|c| match &mut c["hooks"][stage] {
            Value::Array(list) => list.push(hook),
            none => *none = json!([hook]),
        });
    }

    /// Runs commands of the hello program in it.
    fn run(&mut self, view: View, commands: &[&[&str]]) -> Outcome {
        let joined = commands.join(&";");
        let words: Vec<&str> = ["each"].into_iter().chain(joined).collect();
        self.cell.words(&words);
        let state = self.cell.outside("crun");
        // crun throws away what hooks say, unless it is told where to write it (crun.1).
        let said = state.join("hooks");
        let _ = fs::remove_file(&said);
        self.cell
            .edit(|c| c["annotations"]["run.oci.hooks.stderr"] = json!(said));
        let mut c = Command::new("unshare");
        c.args([
            "-m",
            "--propagation",
            "private",
            "bash",
            "-c",
            ENTER,
            "enter",
        ])
        .arg(if view == View::V1 { "v1" } else { "v2" })
        .arg(self.nodes.as_deref().unwrap_or(Path::new("")));
        if view == View::V2
            && let Some(library) = memlock(&state)
        {
            c.arg("env")
                .arg(format!("LD_PRELOAD={}", library.display()));
        }
        c.args(["crun", "--cgroup-manager=cgroupfs", "--root"])
            .arg(state.join("state"))
            .args(["run", "--bundle"])
            .arg(self.cell.bundle.path())
            .arg(&self.cell.id);
        let mut done = outcome(&mut c);
        done.err += &fs::read_to_string(said).unwrap_or_default();
        done
    }

    fn each(&mut self, view: View, commands: &[&[&str]]) -> Vec<(i32, String)> {
        let done = self.run(view, commands).ok();
        let got = sections(&done.out);
        assert_eq!(got.len(), commands.len(), "{done:#?}");
        got
    }
}

/// A device that may be opened: there is no driver behind it here.
fn open_as_far_as_possible(text: &str) -> bool {
    text.contains("ENXIO") || text.contains("ok") || text.contains("ENODEV")
}

#[test]
fn a_container_of_crun_gets_the_gpu_it_asks_for() {
    for view in views() {
        let mut c = Container::new(&["NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_DRIVER_CAPABILITIES=all"]);
        c.hook("prestart", "nvidia-container-runtime-hook", &["prestart"]);
        // GPU 0 has the minor number 1.
        let library = format!("/usr/lib64/libcuda.so.{VERSION}");
        let got = c.each(
            view,
            &[
                &["ls", "/dev"],
                &["open", "/dev/nvidia1", "rw"],
                &["open", "/dev/nvidiactl", "rw"],
                &["open", "/dev/nvidia-uvm", "rw"],
                &["open", "/other", "rw"],
                &["open", "/dev/null", "rw"],
                &["open", &library],
                &["write", &library, "x"],
                &["cat", "/proc/self/mountinfo"],
                &["ls", "/usr/lib64"],
            ],
        );
        let names: Vec<&str> = got[0].1.lines().collect();
        for name in [
            "nvidia1",
            "nvidiactl",
            "nvidia-uvm",
            "nvidia-uvm-tools",
            "nvidia-modeset",
        ] {
            assert!(names.contains(&name), "{name}: {got:#?}");
        }
        assert!(!names.contains(&"nvidia0"), "{got:#?}");
        for i in 1..=3 {
            assert!(open_as_far_as_possible(&got[i].1), "{i}: {got:#?}");
        }
        assert!(got[4].1.contains("EPERM"), "another GPU: {got:#?}");
        assert!(
            got[5].1.contains("ok") && got[6].1.contains("ok"),
            "{got:#?}"
        );
        assert!(got[7].1.contains("EROFS"), "{got:#?}");
        let point = cell_support::mounted(&got[8].1, &library).unwrap();
        assert!(
            ["ro", "nosuid", "nodev"].iter().all(|o| point.has(o)),
            "{point:?}"
        );
        assert!(got[9].1.lines().any(|l| l == "libcuda.so"), "{got:#?}");
        let cache = printed(&c.cell.bundle.rootfs());
        assert!(
            cache.contains("libcuda.so.1 ") && cache.contains("/usr/lib64/"),
            "{cache}"
        );
        // The same bundle once more: what the first container left in its root is in no way.
        assert!(c.run(view, &[&["open", "/dev/nvidia1", "rw"]]).code == 0);
    }
}

#[test]
fn a_container_that_asks_for_none_gets_none() {
    for view in views() {
        for env in [&[][..], &["NVIDIA_VISIBLE_DEVICES=void"]] {
            let mut c = Container::new(env);
            c.hook("prestart", "nvidia-container-toolkit", &["prestart"]);
            c.hook("poststop", "nvidia-container-toolkit", &["poststop"]);
            let got = c.each(
                view,
                &[&["ls", "/dev"], &["ls", "/"], &["open", "/other", "rw"]],
            );
            assert!(
                !got[0].1.contains("nvidia") && !got[1].1.contains("usr"),
                "{got:#?}"
            );
            assert!(got[2].1.contains("EPERM"), "{got:#?}");
        }
    }
}

#[test]
fn what_cannot_be_given_ends_the_container() {
    let Some(view) = views().first().copied() else {
        return;
    };
    let mut c = Container::new(&["NVIDIA_VISIBLE_DEVICES=0,7"]);
    c.hook("prestart", "nvidia-container-runtime-hook", &["prestart"]);
    let done = c.run(view, &[&["print", "it runs"]]);
    assert!(done.code != 0 && !done.out.contains("it runs"), "{done:#?}");
    assert!(done.err.contains("GPU 7"), "{done:#?}");
    assert!(!c.cell.root("/usr").exists());

    // A requirement that doesn't hold.
    let mut c = Container::new(&["NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_REQUIRE_CUDA=cuda>=99.0"]);
    c.hook("prestart", "nvidia-container-runtime-hook", &["prestart"]);
    let done = c.run(view, &[&["print", "it runs"]]);
    assert!(done.code != 0 && done.err.contains("99"), "{done:#?}");

    // A step in the container that fails: a folder of the image where a library is to go.
    let mut c = Container::new(&["NVIDIA_VISIBLE_DEVICES=0"]);
    c.hook("prestart", "nvidia-container-runtime-hook", &["prestart"]);
    fs::create_dir_all(c.cell.root(&format!("/usr/lib64/libcuda.so.{VERSION}"))).unwrap();
    let done = c.run(view, &[&["print", "it runs"]]);
    assert!(done.code != 0 && !done.out.contains("it runs"), "{done:#?}");
    assert!(done.err.contains("libcuda.so"), "{done:#?}");
}

#[test]
fn a_user_namespace_gets_bound_nodes() {
    for view in views() {
        let mut c = Container::new(&["NVIDIA_VISIBLE_DEVICES=0"]);
        c.nodes = Some(c.fake.path().join("dev"));
        c.cell.edit(|c| {
            let linux = &mut c["linux"];
            let list = linux["namespaces"].as_array_mut().unwrap();
            list.push(json!({"type": "user"}));
            let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
            linux["uidMappings"] = map.clone();
            linux["gidMappings"] = map;
            let mounts = c["mounts"].as_array_mut().unwrap();
            mounts.retain(|m| m["type"] != "cgroup");
        });
        let rootfs = c.cell.bundle.rootfs();
        for dir in rootfs.ancestors().take(3) {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for entry in walk(&rootfs) {
            chown(entry, Some(100_000), Some(100_000)).unwrap();
        }
        // The host's own /dev is where nodes are bound from.
        let host = c.fake.host();
        let config = format!(
            "[nvidia]\ndriver-root = {:?}\nproc-root = {:?}\n",
            host.driver_root, host.proc
        );
        c.hook("prestart", "nvidia-container-runtime-hook", &["prestart"]);
        fs::write(c.fake.path().join("config.toml"), config).unwrap();

        let library = format!("/usr/lib64/libcuda.so.{VERSION}");
        let got = c.each(
            view,
            &[
                &["open", "/dev/nvidia1", "rw"],
                &["open", "/dev/nvidiactl", "rw"],
                &["ls", "/dev"],
                &["stat", &library],
                &["cat", "/proc/self/uid_map"],
                &["open", &library],
                &["stat", "/etc/ld.so.cache"],
            ],
        );
        for i in 0..2 {
            assert!(open_as_far_as_possible(&got[i].1), "{got:#?}");
        }
        assert!(!got[2].1.lines().any(|l| l == "nvidia0"), "{got:#?}");
        assert!(got[4].1.contains("100000"), "{got:#?}");
        assert!(got[5].1.contains("ok"), "{got:#?}");
        let cache = printed(&rootfs);
        assert!(cache.contains("libcuda.so.1 "), "{cache}");
        use std::os::unix::fs::MetadataExt;
        let owner = fs::metadata(rootfs.join("etc/ld.so.cache")).unwrap().uid();
        assert_eq!(owner, 100_000);
    }
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => all.extend(walk(&entry.path())),
            false => all.push(entry.path()),
        }
    }
    all
}

#[test]
fn hooks_of_a_cdi_file_work_under_crun() {
    let Some(view) = views().first().copied() else {
        return;
    };
    let mut c = Container::new(&[]);
    let dir = c.cell.root("/opt/driver");
    let library = c
        .fake
        .root()
        .join(format!("{}/libcuda.so.{VERSION}", &fakes::LIB[1..]));
    // A volume of the host's: nothing may be made in it.
    let volume = c.cell.outside("volume");
    let source = volume.to_str().unwrap().to_owned();
    c.cell.edit(|c| {
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/volume", "source": source, "options": ["bind"]}));
        let to = format!("/opt/driver/libcuda.so.{VERSION}");
        mounts.push(json!({"destination": to, "source": library, "options": ["bind", "ro"]}));
    });
    let stage = "createContainer";
    c.hook(
        stage,
        "nvidia-cdi-hook",
        &[
            "create-symlinks",
            "--link",
            "libcuda.so.1::/opt/driver/libcuda.so",
        ],
    );
    c.hook(
        stage,
        "nvidia-ctk",
        &["hook", "update-ldcache", "--folder", "/opt/driver"],
    );
    c.hook(
        stage,
        "nvidia-cdi-hook",
        &["chmod", "--mode", "750", "--path", "/opt"],
    );
    let got = c.each(view, &[&["ls", "/opt/driver"], &["stat", "/opt"]]);
    let names: Vec<&str> = got[0].1.lines().collect();
    assert!(
        names.contains(&"libcuda.so") && names.contains(&"libcuda.so.1"),
        "{got:#?}"
    );
    let link = fs::read_link(dir.join("libcuda.so")).unwrap();
    assert_eq!(link, Path::new("libcuda.so.1"));
    let cache = printed(&c.cell.bundle.rootfs());
    assert!(cache.contains("/opt/driver/libcuda.so.1"), "{cache}");
    let mode = fs::metadata(c.cell.root("/opt"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o750);

    // Into the volume, and arguments that can't be read.
    for args in [
        &["create-symlinks", "--link", "x::/volume/y"][..],
        &["update-ldcache", "--folder", "relative"],
        &["no-such-hook"],
    ] {
        c.cell.edit(|c| c["hooks"] = json!({}));
        c.hook(stage, "nvidia-cdi-hook", args);
        let done = c.run(view, &[&["print", "it runs"]]);
        assert!(
            done.code != 0 && !done.out.contains("it runs"),
            "{args:?} {done:#?}"
        );
    }
    assert_eq!(fs::read_dir(&volume).unwrap().count(), 0);
}

/// The hook alone, with a state on its standard input.
fn hook(c: &Container, args: &[&str], state: &str) -> Outcome {
    let mut child = Command::new(c.named("nvidia-container-runtime-hook"))
        .args(args)
        .env_clear()
        .env("GPUCELL_CONFIG", c.fake.config())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The hook may have ended without reading.
    let _ = child.stdin.take().unwrap().write_all(state.as_bytes());
    let done = child.wait_with_output().unwrap();
    Outcome {
        code: done.status.code().unwrap(),
        out: String::from_utf8_lossy(&done.stdout).into_owned(),
        err: String::from_utf8_lossy(&done.stderr).into_owned(),
    }
}

#[test]
fn the_contract_of_arguments_and_exit_codes() {
    let c = Container::new(&[]);
    for (args, code) in [
        (&[][..], 2),
        (&["create"], 2),
        (&["-nonsense", "prestart"], 2),
        (&["-h"], 0),
        (&["-version"], 0),
        (&["poststart"], 0),
        (&["poststop"], 0),
        (&["prestart"], 1),
        (&["-config", "/nowhere/x.toml", "prestart"], 1),
    ] {
        let done = hook(&c, args, "no state");
        assert_eq!(done.code, code, "{args:?} {done:#?}");
        assert_eq!(
            code == 2,
            done.err.contains("Usage: nvidia-container-runtime-hook"),
            "{done:#?}"
        );
    }
    assert!(
        hook(&c, &["-version"], "")
            .out
            .starts_with("gpucell version ")
    );
}

#[test]
fn only_a_container_on_its_way_is_entered() {
    let c = Container::new(&["NVIDIA_VISIBLE_DEVICES=0"]);
    let bundle = c.cell.bundle.path();
    let state = |pid: u32| format!(r#"{{"pid":{pid},"bundle":{:?}}}"#, bundle.to_str().unwrap());
    let own = cell_support::Running(Command::new("sleep").arg("100").spawn().unwrap());
    let mut apart = cell_support::Running(
        Command::new("unshare")
            .args(["-m", "sh", "-c", "echo; exec sleep 100"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut line = [0; 1];
    use std::io::Read;
    apart
        .0
        .stdout
        .take()
        .unwrap()
        .read_exact(&mut line)
        .unwrap();
    let before = cell_support::host_mounts("/");
    // Here the hook is in no private view: what it keeps is the machine's.
    let kept = Path::new("/run/gpucell/nvidia.cache");
    let there = kept.exists();
    for (pid, why) in [
        (own.0.id(), "the host's"),
        (apart.0.id(), "is not mounted in its mount namespace"),
        (u32::MAX >> 1, "open process"),
    ] {
        let done = hook(&c, &["prestart"], &state(pid));
        assert_eq!(done.code, 1, "{done:#?}");
        assert!(done.err.contains(why), "{why}: {done:#?}");
    }
    if !there {
        let _ = fs::remove_file(kept);
    }
    assert_eq!(cell_support::host_mounts("/"), before);
    assert!(!c.cell.root("/usr").exists() && !c.cell.root("/dev/nvidiactl").exists());
}
