//! `gpucell setup`: what it makes of an engine's configuration, that a second call changes nothing, and that
//! --remove gives back what was there. No root needed: everything is below a folder that stands for `/`.

#[path = "support/programs.rs"]
mod programs;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use gpucell::cli::setup::{Change, Engine, Flags, Place, Plan, plan};
use tempfile::TempDir;

const ADD: Flags = Flags {
    dry_run: false,
    default: false,
    remove: false,
};
const DEFAULT: Flags = Flags {
    default: true,
    ..ADD
};
const REMOVE: Flags = Flags {
    remove: true,
    ..ADD
};

const DAEMON: &str = "etc/docker/daemon.json";
const CONTAINERD: &str = "etc/containerd/config.toml";
const PODMAN: &str = "etc/containers/containers.conf.d/50-gpucell.conf";
const CRIO: &str = "etc/crio/crio.conf.d/50-gpucell.conf";
const HOOK: &str = "usr/local/bin/nvidia-container-runtime-hook";

struct Host {
    dir: TempDir,
}

impl Host {
    fn new() -> Host {
        Host {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn with(file: &str, text: &str) -> Host {
        let host = Host::new();
        let path = host.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        host
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
    }

    fn plan(&self, engine: Engine) -> Result<Plan, String> {
        let place = Place {
            root: self.dir.path().to_owned(),
            user: None,
            program: "/usr/bin/gpucell".into(),
        };
        plan(&engine, &place).map_err(|e| e.to_string())
    }

    /// Carries it out, and sees that a second call has nothing to do.
    fn set(&self, engine: Engine) -> Plan {
        let plan = self.plan(engine.clone()).unwrap();
        plan.changes.iter().for_each(|c| c.make().unwrap());
        let again = self.plan(engine).unwrap();
        assert_eq!(again.changes, [], "a second call changes something");
        plan
    }

    /// All files below, relative.
    fn files(&self) -> Vec<String> {
        fn walk(dir: &Path, top: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                match path.symlink_metadata().unwrap().is_dir() {
                    true => walk(&path, top, found),
                    false => found.push(path.strip_prefix(top).unwrap().display().to_string()),
                }
            }
        }
        let mut found = Vec::new();
        walk(self.dir.path(), self.dir.path(), &mut found);
        found.sort();
        found
    }
}

#[test]
fn docker_on_a_fresh_host() {
    let host = Host::new();
    let plan = host.set(Engine::Docker(ADD));
    assert_eq!(
        host.read(DAEMON),
        r#"{
    "runtimes": {
        "gpucell": {
            "path": "/usr/bin/gpucell"
        }
    }
}
"#
    );
    assert_eq!(
        host.path(HOOK).read_link().unwrap(),
        Path::new("/usr/bin/gpucell")
    );
    assert_eq!(plan.next[0], "systemctl restart docker");
    assert!(
        plan.next[1].contains("--runtime gpucell"),
        "{:?}",
        plan.next
    );
    assert_eq!(host.files(), [DAEMON, HOOK], "no draft is left");
    host.set(Engine::Docker(REMOVE));
    assert_eq!(host.files(), [""; 0]);
}

#[test]
fn docker_keeps_all_else_as_it_is() {
    let before = "{\n  \"log-driver\": \"journald\",\n  \"runtimes\": {\n    \"kata\": {\n      \"path\": \"/k\"\n    }\n  },\n  \
                  \"features\": {\n    \"cdi\": true\n  },\n  \"mtu\": 1400,\n  \"air\": 1.5\n}\n";
    let host = Host::with(DAEMON, before);
    fs::set_permissions(host.path(DAEMON), PermissionsExt::from_mode(0o600)).unwrap();
    let plan = host.set(Engine::Docker(DEFAULT));
    let after = host.read(DAEMON);
    assert_eq!(
        after,
        before
            .replace(
                "\"/k\"\n    }\n",
                "\"/k\"\n    },\n    \"gpucell\": {\n      \"path\": \"/usr/bin/gpucell\"\n    }\n"
            )
            .replace("1.5\n", "1.5,\n  \"default-runtime\": \"gpucell\"\n")
    );
    assert_eq!(
        fs::metadata(host.path(DAEMON)).unwrap().mode() & 0o777,
        0o600
    );
    let shown: String = plan.changes.iter().map(Change::show).collect();
    assert!(shown.contains("\n+    \"gpucell\": {\n"), "{shown}");
    // What is the default stays so without --default, and goes with --remove.
    host.set(Engine::Docker(ADD));
    assert_eq!(host.read(DAEMON), after);
    host.set(Engine::Docker(REMOVE));
    assert_eq!(host.read(DAEMON), before);
}

#[test]
fn docker_entry_of_another_kind_is_put_right() {
    let host = Host::with(
        DAEMON,
        r#"{"runtimes": {"gpucell": {"runtimeType": "x.v1", "options": {}, "path": "/old", "runtimeArgs": ["--debug"]}}, "default-runtime": "crun"}"#,
    );
    host.set(Engine::Docker(ADD));
    let now: serde_json::Value = serde_json::from_str(&host.read(DAEMON)).unwrap();
    assert_eq!(
        now,
        serde_json::json!({"runtimes": {"gpucell": {"path": "/usr/bin/gpucell", "runtimeArgs": ["--debug"]}}, "default-runtime": "crun"})
    );
}

#[test]
fn docker_file_that_is_not_valid() {
    for (text, why) in [
        ("{\"a\": 1,}", "line 1 column 9"),
        ("[]", "invalid type: sequence, expected a map"),
        ("{\"runtimes\": []}", "runtimes is not an object"),
        (
            "{\"runtimes\": {\"gpucell\": 1}}",
            "runtimes.gpucell is not an object",
        ),
        ("{} trailing", "trailing characters"),
    ] {
        let host = Host::with(DAEMON, text);
        let said = host.plan(Engine::Docker(ADD)).unwrap_err();
        assert!(
            said.contains("daemon.json: ") && said.contains(why),
            "{text}: {said}"
        );
        assert_eq!(host.read(DAEMON), text);
    }
    let host = Host::new();
    fs::create_dir_all(host.path(DAEMON)).unwrap();
    let said = host.plan(Engine::Docker(ADD)).unwrap_err();
    assert!(
        said.contains("read ") && said.contains("Is a directory"),
        "{said}"
    );
}

#[test]
fn links_of_others_stay() {
    // NVIDIA's own hook, as its package has it.
    let theirs = "usr/bin/nvidia-container-runtime-hook";
    let host = Host::with(theirs, "NVIDIA's");
    let plan = host.set(Engine::Docker(ADD));
    assert!(
        plan.notes[0].contains("is there already and stays"),
        "{plan:?}"
    );
    host.set(Engine::Docker(REMOVE));
    assert_eq!(host.files(), [theirs]);
    // A link of someone else at our place.
    let host = Host::new();
    fs::create_dir_all(host.path("usr/local/bin")).unwrap();
    symlink("/opt/toolkit", host.path(HOOK)).unwrap();
    host.set(Engine::Docker(ADD));
    host.set(Engine::Docker(REMOVE));
    assert_eq!(
        host.path(HOOK).read_link().unwrap(),
        Path::new("/opt/toolkit")
    );
    // A configuration that is a link stays one, and the file behind it changes.
    let host = Host::with("srv/daemon.json", "{}\n");
    fs::create_dir_all(host.path("etc/docker")).unwrap();
    symlink("../../srv/daemon.json", host.path(DAEMON)).unwrap();
    host.set(Engine::Docker(ADD));
    assert!(host.path(DAEMON).read_link().is_ok());
    assert!(host.read("srv/daemon.json").contains("gpucell"));
    // One that leads nowhere is an error, and no fresh file.
    fs::remove_file(host.path("srv/daemon.json")).unwrap();
    assert!(host.plan(Engine::Docker(ADD)).is_err());
}

/// What Debian's containerd has.
const DEBIAN: &str = r#"version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"  # Debian's
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
"#;

#[test]
fn containerd_as_debian_has_it() {
    let host = Host::with(CONTAINERD, DEBIAN);
    host.set(Engine::Containerd(ADD));
    let text = host.read(CONTAINERD);
    let cri = &toml(&text)["plugins"]["io.containerd.grpc.v1.cri"];
    let ours = &cri["containerd"]["runtimes"]["gpucell"];
    assert_eq!(ours["runtime_type"].as_str(), Some("io.containerd.runc.v2"));
    assert_eq!(
        ours["options"]["BinaryName"].as_str(),
        Some("/usr/bin/gpucell")
    );
    assert!(ours["options"].get("SystemdCgroup").is_none());
    assert!(cri["containerd"].get("default_runtime_name").is_none());
    for line in DEBIAN.lines() {
        assert!(text.contains(line), "{line} is lost in {text}");
    }
    host.set(Engine::Containerd(DEFAULT));
    let cri = &toml(&host.read(CONTAINERD))["plugins"]["io.containerd.grpc.v1.cri"];
    assert_eq!(
        cri["containerd"]["default_runtime_name"].as_str(),
        Some("gpucell")
    );
    host.set(Engine::Containerd(REMOVE));
    assert_eq!(host.read(CONTAINERD), DEBIAN);
}

fn toml(text: &str) -> toml::Value {
    toml::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// As `containerd config default` of 2.x prints it, shortened.
const THIRD: &str = r#"version = 3
root = '/var/lib/containerd'

[plugins]
  [plugins.'io.containerd.cri.v1.runtime']
    enable_selinux = false

    [plugins.'io.containerd.cri.v1.runtime'.containerd]
      default_runtime_name = 'runc'

      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes]
        # the usual one
        [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
          runtime_type = 'io.containerd.runc.v2'
          pod_annotations = ['a.b/*'] # ours
          privileged_without_host_devices = true

          [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
            BinaryName = ''
            SystemdCgroup = true
"#;

#[test]
fn containerd_takes_the_administrators_wishes_from_runc() {
    let host = Host::with(CONTAINERD, THIRD);
    host.set(Engine::Containerd(DEFAULT));
    let text = host.read(CONTAINERD);
    let all = toml(&text);
    let cri = &all["plugins"]["io.containerd.cri.v1.runtime"]["containerd"];
    let ours = &cri["runtimes"]["gpucell"];
    assert_eq!(cri["default_runtime_name"].as_str(), Some("gpucell"));
    assert_eq!(ours["options"]["SystemdCgroup"].as_bool(), Some(true));
    assert_eq!(
        ours["options"]["BinaryName"].as_str(),
        Some("/usr/bin/gpucell")
    );
    assert_eq!(
        ours["privileged_without_host_devices"].as_bool(),
        Some(true)
    );
    assert_eq!(ours["pod_annotations"][0].as_str(), Some("a.b/*"));
    assert_eq!(
        cri["runtimes"]["runc"]["options"]["BinaryName"].as_str(),
        Some("")
    );
    // A later change of the driver is followed, a wish for ours alone is kept.
    let ours_only = |text: &str, key: &str| {
        let (on, off) = (format!("{key} = true"), format!("{key} = false"));
        text.replace(&on, &off).replacen(&off, &on, 1)
    };
    let text = ours_only(&text, "SystemdCgroup");
    let text = ours_only(&text, "privileged_without_host_devices");
    fs::write(host.path(CONTAINERD), &text).unwrap();
    host.set(Engine::Containerd(ADD));
    let all = toml(&host.read(CONTAINERD));
    let cri = &all["plugins"]["io.containerd.cri.v1.runtime"]["containerd"];
    let ours = &cri["runtimes"]["gpucell"];
    assert_eq!(ours["options"]["SystemdCgroup"].as_bool(), Some(true));
    assert_eq!(
        ours["privileged_without_host_devices"].as_bool(),
        Some(false)
    );
    host.set(Engine::Containerd(REMOVE));
    let now = host.read(CONTAINERD);
    assert!(!now.contains("gpucell"), "{now}");
    assert!(
        now.contains("# the usual one") && now.contains("# ours"),
        "{now}"
    );
}

#[test]
fn containerd_without_a_file() {
    let host = Host::new();
    host.set(Engine::Containerd(DEFAULT));
    let all = toml(&host.read(CONTAINERD));
    assert_eq!(all["version"].as_integer(), Some(2));
    host.set(Engine::Containerd(REMOVE));
    assert_eq!(host.files(), [""; 0]);
}

#[test]
fn containerd_file_that_is_not_valid() {
    for (text, why) in [
        ("version = 2\n[plugins\n", "line 2: "),
        ("disabled_plugins = [\"cri\"]\n", "is of version 1"),
        ("version = 4\n", "is of version 4"),
        ("version = \"2\"\n", "version is not a number"),
        ("version = 2\nplugins = 1\n", "plugins is not a table"),
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes]\nrunc = 1\n",
            "runtimes.runc is not a table",
        ),
    ] {
        let host = Host::with(CONTAINERD, text);
        let said = host.plan(Engine::Containerd(ADD)).unwrap_err();
        assert!(
            said.contains("config.toml: ") && said.contains(why),
            "{text}: {said}"
        );
    }
    let off = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
    let plan = Host::with(CONTAINERD, off)
        .plan(Engine::Containerd(ADD))
        .unwrap();
    assert!(plan.notes[0].contains("disabled_plugins"), "{plan:?}");
}

#[test]
fn podman_and_crio_get_a_file_of_their_own() {
    let host = Host::new();
    host.set(Engine::Podman(ADD));
    host.set(Engine::Crio(DEFAULT));
    let podman = toml(&host.read(PODMAN));
    assert_eq!(
        podman["engine"]["runtimes"]["gpucell"][0].as_str(),
        Some("/usr/bin/gpucell")
    );
    assert!(podman["engine"].get("runtime").is_none());
    let crio = &toml(&host.read(CRIO))["crio"]["runtime"];
    assert_eq!(crio["default_runtime"].as_str(), Some("gpucell"));
    let ours = &crio["runtimes"]["gpucell"];
    assert_eq!(ours["runtime_path"].as_str(), Some("/usr/bin/gpucell"));
    assert_eq!(ours["runtime_type"].as_str(), Some("oci"));
    host.set(Engine::Podman(DEFAULT));
    assert_eq!(
        toml(&host.read(PODMAN))["engine"]["runtime"].as_str(),
        Some("gpucell")
    );
    // What someone added there is theirs.
    let more = host.read(CRIO) + "\n[crio.image]\npause_image = \"p\" # mine\n";
    fs::write(host.path(CRIO), more).unwrap();
    host.set(Engine::Crio(REMOVE));
    host.set(Engine::Podman(REMOVE));
    assert_eq!(host.files(), [CRIO]);
    let left = host.read(CRIO);
    assert!(
        left.contains("pause_image = \"p\" # mine") && !left.contains("runtime"),
        "{left}"
    );
}

/// The command itself, for a user's own engine.
#[test]
fn the_command_shows_writes_and_says_what_is_next() {
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let program = dir.path().join("gpucell");
    programs::install(env!("CARGO_BIN_EXE_gpucell"), &program);
    let run = |args: &[&str]| {
        let mut command = Command::new(&program);
        command
            .arg("setup")
            .args(args)
            .env("XDG_CONFIG_HOME", dir.path().join("home"));
        if nix::unistd::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        let done = command.output().unwrap();
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        (done.status.code(), text(done.stdout), text(done.stderr))
    };
    let file = dir.path().join("home/docker/daemon.json");
    let (code, shown, err) = run(&["docker", "--dry-run"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(
        shown.contains("--- /dev/null\n") && shown.contains("nothing was written"),
        "{shown}"
    );
    assert!(
        shown.contains("note: --gpus of a rootless dockerd"),
        "{shown}"
    );
    assert!(!file.exists());
    let (code, shown, _) = run(&["docker"]);
    assert_eq!(code, Some(0));
    assert!(
        shown.contains("written; next:\n  systemctl --user restart docker\n"),
        "{shown}"
    );
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(program.to_str().unwrap()), "{text}");
    let (code, shown, _) = run(&["docker"]);
    assert!(
        code == Some(0) && shown.contains("nothing to change"),
        "{shown}"
    );
    assert_eq!(run(&["docker", "--remove"]).0, Some(0));
    assert!(!file.exists());
    for engine in ["containerd", "crio"] {
        let (code, _, err) = run(&[engine]);
        assert!(code == Some(1) && err.contains("run as root"), "{err}");
    }
    assert_eq!(run(&["podman", "--default", "--remove"]).0, Some(1));
    assert_eq!(run(&["lxc"]).0, Some(1));
}
