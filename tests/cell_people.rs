//! The people's commands on a real kernel: `exec BUNDLE/`, `run`, `logs`, `explain`. Needs root. Each
//! test looks that it leaves nothing behind.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Bundle, GPUCELL, Outcome};

/// A bundle with a data folder of its own.
struct Place {
    bundle: Bundle,
    data: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let data = tempfile::Builder::new()
            .prefix("gpucell-test-data-")
            .tempdir()
            .unwrap();
        Place {
            bundle: Bundle::new(),
            data,
        }
    }

    fn folder(&self) -> String {
        format!("{}/", self.bundle.path().display())
    }

    /// `gpucell VERB --store DATA WORD...`
    fn call(&self, verb: &str, words: &[&str]) -> Outcome {
        let store = self.data.path().to_str().unwrap();
        let mut args = vec![verb, "--store", store];
        args.extend(words);
        self.bundle.gpucell(&args)
    }

    /// `gpucell exec FLAG... BUNDLE/ -- hello WORD...`
    fn exec(&self, flags: &[&str], words: &[&str]) -> Outcome {
        self.with_hello("exec", flags, &self.folder(), words)
    }

    /// `gpucell run FLAG... WHAT hello WORD...`
    fn run(&self, flags: &[&str], what: &str, words: &[&str]) -> Outcome {
        self.with_hello("run", flags, what, words)
    }

    fn with_hello(&self, verb: &str, flags: &[&str], what: &str, words: &[&str]) -> Outcome {
        let mut all: Vec<&str> = flags.to_vec();
        all.extend([what, "/bin/hello"]);
        all.extend(words);
        self.call(verb, &all)
    }

    /// The root as an image that `run` takes.
    fn image(&self) -> String {
        let tar = self.data.path().join("image.tar");
        let done = Command::new("tar")
            .arg("-C")
            .arg(self.bundle.rootfs())
            .arg("-cf")
            .arg(&tar)
            .arg(".")
            .status();
        assert!(done.unwrap().success());
        format!("rootfs:{}", tar.display())
    }

    /// Names below a folder; none when it isn't there.
    fn names(path: PathBuf) -> Vec<String> {
        let Ok(entries) = fs::read_dir(path) else {
            return Vec::new();
        };
        entries
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    }

    fn nothing_left(&self) {
        let state = self.bundle.state();
        let cells = Self::names(state.clone());
        assert!(cells.iter().all(|n| n == ".etc"), "state left: {cells:?}");
        assert_eq!(Self::names(state.join(".etc")), [""; 0]);
        assert_eq!(Self::names(self.data.path().join("cells")), [""; 0]);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let data = self.data.path().to_str().unwrap();
        assert!(!mounts.contains(data), "mounts left");
    }
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "waited 10 s for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn exit_codes_are_dockers() {
    let p = Place::new();
    assert_eq!(p.exec(&[], &["exit", "7"]).code, 7);
    let folder = p.folder();
    let code = |words: &[&str]| p.call("exec", words).code;
    assert_eq!(code(&[&folder, "/no/such/program"]), 127);
    assert_eq!(code(&[&folder, "no-such-program"]), 127);
    assert_eq!(code(&[&folder, "/etc/passwd"]), 126);
    assert_eq!(code(&["--no-such-flag", &folder]), 125);
    assert_eq!(code(&["--memory", "much", &folder]), 125);
    assert_eq!(code(&["/no/such/bundle/"]), 125);
    p.nothing_left();
}

#[test]
fn the_files_of_etc() {
    let p = Place::new();
    let cat = ["cat", "/etc/hosts", "/etc/hostname"];
    let seen = p
        .exec(&["--hostname", "box", "--add-host", "db:10.1.2.3"], &cat)
        .ok();
    assert!(
        seen.out.contains("127.0.0.1\tbox\n10.1.2.3\tdb\n"),
        "{seen:?}"
    );
    assert!(seen.out.ends_with("box\n"), "{seen:?}");
    if let Ok(host) = fs::read_to_string("/etc/resolv.conf") {
        let seen = p.exec(&["--network", "host"], &["cat", "/etc/resolv.conf"]);
        assert_eq!(seen.ok().out.trim_end(), host.trim_end());
    }
    let stat = p.exec(&[], &["stat", "/etc/hosts"]).ok();
    assert!(stat.out.contains("644"), "{stat:?}");
    p.nothing_left();
}

#[test]
fn network_none_has_only_lo_and_host_all() {
    let p = Place::new();
    let names = |mode| {
        p.exec(&["--network", mode], &["ls", "/sys/class/net"])
            .ok()
            .out
    };
    assert_eq!(names("none").trim(), "lo");
    let host = Place::names("/sys/class/net".into());
    assert_eq!(names("host").lines().count(), host.len());
    p.nothing_left();
}

#[test]
fn the_user_by_name() {
    let p = Place::new();
    let etc = p.bundle.rootfs().join("etc");
    fs::write(
        etc.join("passwd"),
        "root:x:0:0::/:/x\nai:x:1000:1001::/tmp:/x\n",
    )
    .unwrap();
    fs::write(etc.join("group"), "root:x:0:\nvideo:x:44:ai\nai:x:1001:\n").unwrap();
    let seen = p.exec(&["-u", "ai"], &["id"]).ok();
    assert_eq!(seen.value("uid").split_whitespace().next(), Some("1000"));
    assert_eq!(seen.value("gid").split_whitespace().next(), Some("1001"));
    let groups: Vec<&str> = seen.value("groups").split_whitespace().collect();
    assert!(
        groups.contains(&"44") && groups.contains(&"1001"),
        "{groups:?}"
    );
    let env = p.exec(&["-u", "ai"], &["env"]).ok();
    assert!(env.out.lines().any(|l| l == "HOME=/tmp"), "{env:?}");
    let err = p.exec(&["-u", "nobody-here"], &["id"]);
    assert!(
        err.err.contains("no matching entries in passwd file"),
        "{err:?}"
    );
    // A passwd that leads out of the root is looked up inside it.
    fs::remove_file(etc.join("passwd")).unwrap();
    std::os::unix::fs::symlink("/../../../../etc/passwd-", etc.join("passwd")).unwrap();
    assert_eq!(p.exec(&["-u", "daemon"], &["id"]).code, 125);
    p.nothing_left();
}

#[test]
fn stdin_only_with_i() {
    let p = Place::new();
    let feed = |flags: &[&str]| {
        let store = p.data.path().to_str().unwrap();
        let mut child = Command::new(GPUCELL)
            .arg("--root")
            .arg(p.bundle.state())
            .args(["exec", "--store", store])
            .args(flags)
            .args([&p.folder(), "/bin/hello", "cat", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(b"typed\n");
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    assert_eq!(feed(&["-i"]), "typed\n");
    assert_eq!(feed(&[]), "");
    let err = p.exec(&["-it"], &["true"]);
    assert_eq!(err.code, 125);
    assert!(err.err.contains("the input device is not a TTY"), "{err:?}");
}

#[test]
fn a_cell_killed_by_its_memory_limit_says_so() {
    let p = Place::new();
    // Swap would only make it slower: limit both.
    let limits = ["--memory", "32m", "--memory-swap", "32m"];
    let dead = p.exec(&limits, &["hog", "256m"]);
    assert_eq!(dead.code, 137, "{dead:?}");
    let line = dead.err.lines().find(|l| l.starts_with("gpucell: "));
    let line = line.unwrap_or_else(|| panic!("no line: {dead:?}"));
    let said = line.strip_prefix("gpucell: cell killed by its memory limit 32 MiB (peak ");
    let peak: f64 = said
        .and_then(|s| s.strip_suffix(" MiB)"))
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| panic!("{line}"));
    assert!((30.0..=32.0).contains(&peak), "{line}");
    p.nothing_left();
}

#[test]
fn shm_has_the_size_of_the_limit() {
    let p = Place::new();
    let size = |flags: &[&str]| {
        let seen = p.exec(flags, &["cat", "/proc/self/mounts"]).ok();
        let line = seen
            .out
            .lines()
            .find(|l| l.contains(" /dev/shm "))
            .unwrap()
            .to_owned();
        let at = line.find("size=").unwrap();
        line[at..].split([',', ' ']).next().unwrap().to_owned()
    };
    assert_eq!(size(&[]), "size=65536k");
    assert_eq!(size(&["--memory", "128m"]), "size=131072k");
    assert_eq!(
        size(&["--memory", "128m", "--shm-size", "8m"]),
        "size=8192k"
    );
}

#[test]
fn binds_are_read_only_all_the_way_down() {
    let p = Place::new();
    let src = p.data.path().join("src");
    fs::create_dir_all(src.join("sub")).unwrap();
    let bind = format!("{}:/mnt", src.display());
    assert_eq!(
        p.exec(&["-v", &bind], &["write", "/mnt/sub/f", "x"]).code,
        0
    );
    let ro = format!("{bind}:ro");
    let refused = p.exec(&["-v", &ro], &["write", "/mnt/sub/g", "x"]);
    assert!(
        refused.out.contains("Read-only") || refused.out.contains("30"),
        "{refused:?}"
    );
    assert!(!src.join("sub/g").exists());
    let missing = p.exec(&["-v", "/no/such/folder:/mnt"], &["true"]);
    assert_eq!(missing.code, 125);
    assert!(
        missing.err.contains("bind source path does not exist"),
        "{missing:?}"
    );
    assert!(!Path::new("/no").exists());
    p.nothing_left();
}

/// `-v …:idmap`: the cell's user owns the folder inside, its owner on the host owns what is made there.
#[test]
fn idmap_gives_a_user_his_folder() {
    let p = Place::new();
    let src = p.data.path().join("home");
    fs::create_dir(&src).unwrap();
    fs::set_permissions(&src, fs::Permissions::from_mode(0o700)).unwrap();
    chown(&src, Some(12_345), Some(12_346)).unwrap();
    fs::set_permissions(p.data.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let plain = format!("{}:/mnt", src.display());
    let refused = p.exec(
        &["-u", "1000:1001", "-v", &plain],
        &["write", "/mnt/f", "x"],
    );
    assert_eq!(refused.code, 1, "{refused:?}");
    let mapped = format!("{plain}:idmap");
    let flags = ["-u", "1000:1001", "-v", &mapped];
    let seen = p.exec(&flags, &["stat", "/mnt"]).ok();
    assert!(seen.out.contains("1000:1001"), "{seen:?}");
    p.exec(&flags, &["write", "/mnt/f", "x"]).ok();
    let made = fs::metadata(src.join("f")).unwrap();
    assert_eq!((made.uid(), made.gid()), (12_345, 12_346));
}

#[test]
fn one_writer_a_bundle_but_many_layers() {
    let mut p = Place::new();
    p.bundle = p
        .bundle
        .edit(|c| c["root"]["readonly"] = Value::Bool(false));
    p.exec(&["-d", "--name", "first"], &["sleep", "60"]).ok();
    let second = p.exec(&[], &["true"]);
    assert_eq!(second.code, 125);
    assert!(second.err.contains("is in use"), "{second:?}");
    p.bundle.gpucell(&["delete", "--force", "first"]).ok();
    // Once it is gone the bundle is free; the monitor may take a moment.
    wait_for("the bundle's lock", || p.exec(&[], &["true"]).code == 0);
    let folder = p.folder();
    p.run(&["-d", "--rm", "--name", "a"], &folder, &["sleep", "60"])
        .ok();
    p.run(&["--rm"], &folder, &["true"]).ok();
    p.bundle.gpucell(&["delete", "--force", "a"]).ok();
    // Read-only roots are shared.
    p.exec(
        &["-d", "--rm", "--read-only", "--name", "b"],
        &["sleep", "60"],
    )
    .ok();
    p.exec(&["--read-only"], &["true"]).ok();
    p.bundle.gpucell(&["delete", "--force", "b"]).ok();
    p.nothing_left();
}

#[test]
fn run_writes_to_its_own_layer() {
    let mut p = Place::new();
    p.bundle = p
        .bundle
        .edit(|c| c["root"]["readonly"] = Value::Bool(false));
    let folder = p.folder();
    p.run(&["--rm"], &folder, &["write", "/new", "x"]).ok();
    assert!(!p.bundle.rootfs().join("new").exists());
    p.nothing_left();
    // Without --rm the cell stays, stopped, with its layer, until it is deleted.
    p.run(&["--name", "kept"], &folder, &["write", "/new", "x"])
        .ok();
    assert!(p.data.path().join("cells/kept/upper/new").exists());
    let again = p.run(&["--name", "kept"], &folder, &["true"]);
    assert!(again.err.contains("already in use"), "{again:?}");
    p.bundle.gpucell(&["delete", "kept"]).ok();
    p.nothing_left();
    // `/` of the cell has the mode and owner of the root below.
    fs::set_permissions(p.bundle.rootfs(), fs::Permissions::from_mode(0o751)).unwrap();
    let seen = p.run(&["--rm"], &folder, &["stat", "/"]).ok();
    assert!(seen.out.contains("751"), "{seen:?}");
}

#[test]
fn an_image_is_unpacked_once() {
    let p = Place::new();
    let image = p.image();
    let first = p.run(&["--rm"], &image, &["print", "hi"]).ok();
    assert_eq!(first.out, "hi\n");
    assert!(first.err.contains("Unable to find image"), "{first:?}");
    let second = p
        .run(&["--rm", "--pull", "never"], &image, &["print", "hi"])
        .ok();
    assert_eq!(second.err, "");
    let roots = p.data.path().join("images/roots");
    assert_eq!(Place::names(roots.clone()).len(), 1);
    // The shared root is untouched by what cells write.
    p.run(&["--rm"], &image, &["write", "/tmp/x", "y"]).ok();
    p.run(&["--rm", "--pull", "always", "-q"], &image, &["true"])
        .ok();
    p.nothing_left();
    let never = p.run(&["--pull", "never"], "rootfs:/no/such.tar", &["true"]);
    assert_eq!(never.code, 125);
}

#[test]
fn named_volumes_stay() {
    let p = Place::new();
    let image = p.image();
    let flags = ["--rm", "-v", "keep:/mnt"];
    p.run(&flags, &image, &["write", "/mnt/f", "data"]).ok();
    let seen = p.run(&flags, &image, &["cat", "/mnt/f"]).ok();
    assert_eq!(seen.out.trim(), "data");
    // Filled from the image on first use.
    let etc = ["--rm", "-v", "etc:/etc"];
    let seen = p.run(&etc, &image, &["ls", "/etc"]).ok();
    assert!(seen.out.contains("passwd"), "{seen:?}");
    p.nothing_left();
}

#[test]
fn a_detached_cell_has_a_log() {
    let p = Place::new();
    let begun = p.exec(&["-d", "--name", "job"], &["lines", "3"]).ok();
    assert_eq!(begun.out, "job\n");
    let followed = p.bundle.gpucell(&["logs", "-f", "job"]).ok();
    assert_eq!(followed.out.lines().count(), 3, "{followed:?}");
    let tail = p.bundle.gpucell(&["logs", "--tail", "1", "-t", "job"]).ok();
    let line = tail.out.trim_end();
    assert!(line.starts_with("20") && line.contains("Z "), "{line}");
    assert_eq!(tail.out.lines().count(), 1);
    p.bundle.gpucell(&["delete", "job"]).ok();
    p.nothing_left();
    assert_eq!(p.bundle.gpucell(&["logs", "job"]).code, 1);
}

#[test]
fn a_detached_cell_that_cannot_start_is_an_error() {
    let p = Place::new();
    let folder = p.folder();
    let failed = p.call("exec", &["-d", "--name", "x", &folder, "/no/such/program"]);
    assert_eq!(failed.code, 127, "{failed:?}");
    assert!(
        failed.err.contains("no such file or directory"),
        "{failed:?}"
    );
    p.nothing_left();
}

#[test]
fn a_detached_cell_with_rm_goes_by_itself() {
    let p = Place::new();
    p.exec(&["-d", "--rm", "--name", "gone"], &["sleep", "0.2"])
        .ok();
    wait_for("the cell to go", || !p.bundle.state().join("gone").exists());
    p.nothing_left();
}

#[test]
fn the_log_tells_of_the_memory_limit() {
    let p = Place::new();
    let flags = [
        "-d",
        "--name",
        "hog",
        "--memory",
        "32m",
        "--memory-swap",
        "32m",
    ];
    p.exec(&flags, &["hog", "256m"]).ok();
    let log = p.bundle.gpucell(&["logs", "-f", "hog"]).ok();
    assert!(
        log.err.contains("cell killed by its memory limit 32 MiB"),
        "{log:?}"
    );
    p.bundle.gpucell(&["delete", "hog"]).ok();
    p.nothing_left();
}

#[test]
fn namespaces_of_another_cell() {
    let p = Place::new();
    let folder = p.folder();
    let first = ["-d", "--rm", "--name", "net", "--network", "none"];
    p.run(&first, &folder, &["sleep", "60"]).ok();
    let state = p.bundle.gpucell(&["state", "net"]).ok();
    let state: Value = serde_json::from_str(&state.out).unwrap();
    let theirs = fs::read_link(format!("/proc/{}/ns/net", state["pid"])).unwrap();
    let seen = p
        .run(&["--rm", "--network", "container:net"], &folder, &["ns"])
        .ok();
    assert!(
        seen.out.contains(theirs.to_str().unwrap()),
        "{seen:?} {theirs:?}"
    );
    p.bundle.gpucell(&["delete", "--force", "net"]).ok();
    let gone = p.run(&["--rm", "--network", "container:net"], &folder, &["ns"]);
    assert_eq!(gone.code, 125);
    p.nothing_left();
}

#[test]
fn explain_says_what_exec_does_and_makes_nothing() {
    let p = Place::new();
    let folder = p.folder();
    let words = [
        &folder,
        "--memory",
        "64m",
        "-e",
        "A=b",
        "--",
        "/bin/hello",
        "env",
    ];
    let text = p.call("explain", &words).ok();
    for line in [
        "= memory limit 67108864   [--memory 64m]",
        "+ env A=b   [-e A]",
        "= command [\"/bin/hello\", \"env\"]   [command line]",
    ] {
        assert!(text.out.contains(line), "{line} not in {}", text.out);
    }
    let mut words = words.to_vec();
    words.splice(1..1, ["--format", "json"]);
    let json = p.call("explain", &words).ok();
    assert_eq!(
        json.out,
        p.call("explain", &words).ok().out,
        "same on every run"
    );
    let json: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(
        json["config"]["linux"]["resources"]["memory"]["limit"],
        67_108_864
    );
    let edits = json["edits"].as_array().unwrap();
    assert!(
        edits
            .iter()
            .any(|e| e["kind"] == "env" && e["reason"] == "-e A")
    );
    assert!(!p.bundle.state().exists());
    // What it prints runs: the same configuration through runc's reading.
    let resolved = serde_json::to_vec(&json["config"]).unwrap();
    fs::write(p.bundle.path().join("config.json"), resolved).unwrap();
    let b = p.bundle.path();
    let etc = p.bundle.state().join(".etc/bundle");
    fs::create_dir_all(&etc).unwrap();
    for file in ["resolv.conf", "hosts", "hostname"] {
        fs::write(etc.join(file), "").unwrap();
    }
    let ran = p
        .bundle
        .gpucell(&["run", "--bundle", b.to_str().unwrap(), "one"])
        .ok();
    assert!(ran.out.lines().any(|l| l == "A=b"), "{ran:?}");
}

#[test]
fn doctor_and_documents() {
    let p = Place::new();
    let doctor = p.bundle.gpucell(&["doctor", "--format", "json"]).ok();
    let report: Value = serde_json::from_str(&doctor.out).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let memory = checks.iter().find(|c| c["name"] == "memory").unwrap();
    let want = if support::on_v2() { "v2 at" } else { "v1 at" };
    assert!(
        memory["found"].as_str().unwrap().starts_with(want),
        "{memory}"
    );
    let man = p.data.path().join("man");
    p.bundle.gpucell(&["man", man.to_str().unwrap()]).ok();
    for page in [
        "gpucell.1",
        "gpucell-exec.1",
        "gpucell-run.1",
        "gpucell-doctor.1",
    ] {
        assert!(man.join(page).exists(), "{page}");
    }
    let help = p.bundle.gpucell(&["--help"]).ok();
    assert!(help.out.lines().count() <= 40, "--help fits one screen");
    for shell in ["bash", "zsh", "fish"] {
        let script = p.bundle.gpucell(&["completions", shell]).ok();
        assert!(script.out.contains("explain"), "{shell}");
    }
    for verb in [
        "exec",
        "run",
        "pull",
        "explain",
        "logs",
        "doctor",
        "create",
        "start",
        "state",
        "kill",
        "delete",
        "list",
        "completions",
        "man",
    ] {
        let help = p.bundle.gpucell(&[verb, "--help"]).ok();
        assert!(help.out.contains("Example"), "{verb} --help has no example");
    }
}
