//! Cells of a plain user: made by uid 1000, with what that user may have. Run as root, who becomes that user.
//!
//! What needs the user's own systemd, delegated groups or newuidmap runs in the test machine (`scripts/test vm`).

mod cell_support;
mod support;

use cell_support::{quiet, until};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::programs::install;
use support::{GPUCELL, Outcome, hello, on_v2, outcome};
use tempfile::TempDir;

const UID: u32 = 1000;

/// A user's bundle, runtime and runtime directory.
struct User {
    dir: TempDir,
    runtime: PathBuf,
    /// gpucell where the user may execute it.
    program: PathBuf,
}

/// May a user execute this file where it is?
fn reaches(program: &str) -> bool {
    let mut c = Command::new(program);
    c.arg("--version").stdout(Stdio::null()).uid(UID).gid(UID);
    c.status().is_ok_and(|s| s.success())
}

impl User {
    fn new() -> User {
        let dir = tempfile::Builder::new()
            .prefix("gpucell-test-")
            .tempdir()
            .unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let run = |c: &mut Command| assert!(c.status().unwrap().success(), "{c:?}");
        let program = match reaches(GPUCELL) {
            true => PathBuf::from(GPUCELL),
            false => {
                install(GPUCELL, dir.path());
                dir.path().join("gpucell")
            }
        };
        let bundle = dir.path().join("bundle");
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        run(Command::new("cp")
            .arg("-r")
            .arg(hello().join("rootfs"))
            .arg(&bundle));
        fs::create_dir(dir.path().join("runtime")).unwrap();
        for sub in ["bundle", "runtime"] {
            let owner = format!("{UID}:{UID}");
            run(Command::new("chown")
                .args(["-R", &owner])
                .arg(dir.path().join(sub)));
        }
        let user = User {
            runtime: dir.path().join("runtime"),
            dir,
            program,
        };
        user.gpucell(&[
            "spec",
            "--rootless",
            "--bundle",
            user.bundle().to_str().unwrap(),
        ])
        .ok();
        user
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    fn id(&self) -> String {
        let name = self.dir.path().file_name().unwrap().to_string_lossy();
        format!("{name}-x")
    }

    fn become_user(&self, program: &Path) -> Command {
        let mut c = Command::new(program);
        c.env_clear()
            .env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin")
            .env("XDG_RUNTIME_DIR", &self.runtime)
            .current_dir("/")
            .uid(UID)
            .gid(UID);
        c
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = self.become_user(&self.program);
        c.args(args);
        c
    }

    fn gpucell(&self, args: &[&str]) -> Outcome {
        outcome(&mut self.command(args))
    }

    /// Changes config.json, whose program is the hello program with these words.
    fn config(&self, words: &[&str], change: impl FnOnce(&mut Value)) {
        let path = self.bundle().join("config.json");
        let mut c: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let args: Vec<&str> = ["/bin/hello"].iter().chain(words).copied().collect();
        c["process"]["args"] = json!(args);
        c["process"]["terminal"] = json!(false);
        change(&mut c);
        fs::write(&path, c.to_string()).unwrap();
    }

    fn run(&self, globals: &[&str]) -> Outcome {
        let bundle = self.bundle();
        let id = self.id();
        let args = [globals, &["run", "--bundle", bundle.to_str().unwrap(), &id]].concat();
        self.gpucell(&args)
    }

    fn detach(&self, globals: &[&str]) {
        let bundle = self.bundle();
        let id = self.id();
        let args = [
            globals,
            &["run", "-d", "--bundle", bundle.to_str().unwrap(), &id],
        ]
        .concat();
        quiet(self.command(&args), &self.dir.path().join("log")).ok();
    }

    fn verb(&self, verb: &str, words: &[&str]) -> Outcome {
        let id = self.id();
        self.gpucell(&[&[verb, id.as_str()], words].concat())
    }

    fn status(&self) -> String {
        let text = self.verb("state", &[]).ok().out;
        let state: Value = serde_json::from_str(&text).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let id = self.id();
        let deleted = self.gpucell(&["delete", "--force", &id]);
        if !std::thread::panicking() {
            assert_eq!(deleted.code, 0, "{deleted:#?}");
            let left = fs::read_dir(self.runtime.join("gpucell"))
                .into_iter()
                .flatten();
            let left: Vec<_> = left.flatten().map(|e| e.path()).collect();
            assert!(!left.iter().any(|p| p.ends_with(&id)), "{left:?}");
        }
    }
}

#[test]
fn the_configuration_of_spec_runs() {
    let user = User::new();
    user.config(
        &["cat", "/proc/self/uid_map", "/proc/self/setgroups"],
        |_| {},
    );
    let done = user.run(&[]).ok();
    let map: Vec<&str> = done.out.split_whitespace().collect();
    assert_eq!(map, ["0", "1000", "1", "deny"]);
    assert_eq!(done.err, "", "without limits there is nothing to warn of");

    user.config(&["sleep", "1000"], |_| {});
    user.detach(&[]);
    // The default root is the user's.
    assert!(
        user.runtime
            .join("gpucell")
            .join(user.id())
            .join("state.json")
            .exists()
    );
    assert_eq!(user.status(), "running");
    let done = user.verb("exec", &["/bin/hello", "id"]).ok();
    assert!(done.out.contains("uid 0 0 0 0"), "{done:#?}");
    let listed = user.verb("ps", &[]).ok();
    assert!(listed.out.contains("hello sleep 1000"), "{listed:#?}");
    let paused = user.verb("pause", &[]);
    assert_eq!(paused.code, 1, "{paused:#?}");
    assert!(paused.err.contains("no cgroup"), "{paused:#?}");
    user.verb("kill", &["KILL"]).ok();
    until("the end", || user.status() == "stopped");
    user.verb("delete", &[]).ok();
}

#[test]
fn limits_that_cant_be_had_are_refused_by_name() {
    let user = User::new();
    for (limits, name) in [
        (json!({"pids": {"limit": 7}}), "pids.max=7"),
        (json!({"memory": {"limit": 67108864}}), "67108864"),
    ] {
        user.config(&["id"], |c| c["linux"]["resources"] = limits);
        let done = user.run(&[]);
        assert_eq!((done.code, done.out.as_str()), (1, ""), "{done:#?}");
        assert!(done.err.contains(name), "{done:#?}");
        assert!(
            done.err.contains("no group is delegated to this user"),
            "{done:#?}"
        );
    }
}

/// No device filter can be had, and no node be made: the list is dropped, and that is said.
#[test]
fn a_device_list_is_dropped_and_explained() {
    let user = User::new();
    let list = json!({"devices": [{"allow": false, "access": "rwm"}]});
    user.config(&["open", "/dev/null", "rw"], |c| {
        c["linux"]["resources"] = list
    });
    assert_eq!(user.run(&[]).ok().out, "ok\n");
    let bundle = format!("{}/", user.bundle().display());
    let told = user.gpucell(&["explain", &bundle]).ok().out;
    assert!(
        told.contains("! linux.resources.devices is dropped"),
        "{told}"
    );
}

/// What pasta and slirp4netns of podman's do: the network is of the user's making, ours is the host's.
#[test]
fn joins_a_network_of_the_users_own() {
    let user = User::new();
    let gpucell = user.program.clone();
    let script = r#"
        unshare -n sh -ec 'echo 77 > /proc/sys/net/ipv4/ip_default_ttl; exec sleep 60' & net=$!
        until [ "$(cat /proc/$net/comm)" = sleep ]; do sleep 0.01; done
        sed -i "s|NETWORK|/proc/$net/ns/net|" "$2/config.json"
        code=0; "$1" run --bundle "$2" "$3" || code=$?
        kill $net
        exit $code"#;
    user.config(&["cat", "/proc/sys/net/ipv4/ip_default_ttl"], |c| {
        let list = c["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|n| n["type"] != "network");
        list.push(json!({"type": "network", "path": "NETWORK"}));
        let map = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map;
    });
    let mut c = user.become_user(Path::new("/usr/bin/unshare"));
    c.args(["-r", "sh", "-ec", script, "sh"]);
    c.arg(gpucell).arg(user.bundle()).arg(user.id());
    assert_eq!(outcome(&mut c).ok().out, "77\n");
}

/// podman's --userns keep-id: the cell's root is one of the user's further ids, and it alone gets to the root.
#[test]
fn a_root_that_only_the_cells_root_can_reach() {
    let user = User::new();
    user.config(&["id"], |c| {
        let map = json!([
            {"containerID": 0, "hostID": 1, "size": 1000},
            {"containerID": 1000, "hostID": 0, "size": 1}
        ]);
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map;
    });
    let run = |c: &mut Command| assert!(c.status().unwrap().success(), "{c:?}");
    run(Command::new("chown")
        .args(["-R", "100000:100000"])
        .arg(user.bundle()));
    run(Command::new("chmod").arg("700").arg(user.bundle()));

    let mut c = user.become_user(Path::new("/usr/bin/unshare"));
    let script = r#"echo ready; read go; exec setpriv --reuid 0 --regid 0 --clear-groups "$@""#;
    c.args(["-U", "-m", "--keep-caps", "sh", "-ec", script, "sh"]);
    c.arg(&user.program).args(["run", "--bundle"]);
    c.arg(user.bundle()).arg(user.id());
    c.stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = c.spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{file}", child.id());
        fs::write(path, "0 1000 1\n1 100000 65536\n").unwrap();
    }
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    let done = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{text}{err}");
    assert!(text.contains("uid 0 0 0 0"), "{text}{err}");
}

/// CVE-2023-25809: without a cgroup namespace the host's groups are in sight, those delegated to the user too.
#[test]
fn the_hosts_groups_cant_be_written() {
    if !on_v2() {
        // v1's hierarchies belong to root.
        eprintln!("no pure cgroup v2 here: this runs in the test machine (scripts/test vm)");
        return;
    }
    let user = User::new();
    for own in [false, true] {
        user.config(&["cat", "/proc/self/mountinfo"], |c| {
            let list = c["linux"]["namespaces"].as_array_mut().unwrap();
            list.retain(|n| n["type"] != "cgroup");
            if own {
                list.push(json!({"type": "cgroup"}));
            }
            for m in c["mounts"].as_array_mut().unwrap() {
                if m["destination"] == "/sys/fs/cgroup" || m["destination"] == "/sys" {
                    *m = json!({"destination": m["destination"], "type": "none", "source": "/sys", "options": ["rbind", "ro", "nosuid", "noexec", "nodev"]});
                }
            }
            c["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/sys/fs/cgroup");
            let options = ["rw", "nosuid", "noexec", "nodev"];
            let cgroup = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options});
            c["mounts"].as_array_mut().unwrap().push(cgroup);
        });
        let done = user.run(&[]).ok();
        let mount = cell_support::mounted(&done.out, "/sys/fs/cgroup").unwrap();
        assert_eq!(mount.has("ro"), !own, "own namespace: {own}: {mount:?}");
    }
}

/// The user's own systemd: started for the tests, and stopped after them.
struct Manager;

impl Manager {
    fn start() -> Option<Manager> {
        let tester = fs::read_to_string("/etc/passwd")
            .unwrap()
            .contains("tester:x:1000:");
        if !on_v2() || !tester || !Path::new("/run/systemd/private").exists() {
            eprintln!(
                "no user `tester` with a systemd here: this runs in the test machine (scripts/test vm)"
            );
            return None;
        }
        let manager = Manager;
        outcome(Command::new("loginctl").args(["enable-linger", "tester"])).ok();
        until("the user's systemd", || {
            Path::new(RUNTIME).join("bus").exists()
        });
        Some(manager)
    }
}

const RUNTIME: &str = "/run/user/1000";

impl Drop for Manager {
    fn drop(&mut self) {
        for command in [
            ["loginctl", "disable-linger", "tester"],
            ["systemctl", "stop", "user@1000.service"],
        ] {
            let _ = outcome(Command::new(command[0]).args(&command[1..]));
        }
        until("the end of the user's session", || {
            !Path::new(RUNTIME).exists()
        });
    }
}

#[test]
fn the_users_systemd_makes_scopes() {
    let Some(_manager) = Manager::start() else {
        return;
    };
    let mut user = User::new();
    user.runtime = RUNTIME.into();
    let maps = json!([
        {"containerID": 0, "hostID": 1000, "size": 1},
        {"containerID": 1, "hostID": 100_000, "size": 65536}
    ]);
    user.config(&["sleep", "1000"], |c| {
        c["linux"]["uidMappings"] = maps.clone();
        c["linux"]["gidMappings"] = maps.clone();
        c["linux"]["resources"] = json!({
            "memory": {"limit": 64 << 20},
            "cpu": {"quota": 50000, "period": 100_000},
            "pids": {"limit": 50},
            "devices": [{"allow": false, "access": "rwm"}]
        });
    });
    // From outside of the user's delegated groups, as from an ssh login: systemd moves the process.
    user.detach(&["--systemd-cgroup"]);
    let unit = format!("gpucell-{}.scope", user.id());
    let group =
        format!("/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/user.slice/{unit}");
    let read = |file: &str| {
        fs::read_to_string(format!("{group}/{file}"))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(read("memory.max"), (64 << 20).to_string());
    assert_eq!(read("cpu.max"), "50000 100000");
    assert_eq!(read("pids.max"), "50");
    let systemctl = |args: &[&str]| {
        let mut c = user.become_user(Path::new("/usr/bin/systemctl"));
        outcome(c.arg("--user").args(args))
    };
    let show = |property: &str| {
        systemctl(&["show", "--value", "-p", property, &unit])
            .ok()
            .out
            .trim()
            .to_owned()
    };
    assert_eq!(show("MemoryMax"), (64 << 20).to_string());
    assert_eq!(show("CPUQuotaPerSecUSec"), "500ms");
    let done = user
        .verb(
            "exec",
            &[
                "/bin/hello",
                "each",
                "cat",
                "/proc/self/cgroup",
                ";",
                "cat",
                "/proc/self/uid_map",
            ],
        )
        .ok();
    assert!(
        done.out.contains("0::/\n") && done.out.contains("100000"),
        "{done:#?}"
    );
    let id = user.id();
    user.gpucell(&["update", "--memory=80m", &id]).ok();
    systemctl(&["daemon-reload"]).ok();
    assert_eq!(read("memory.max"), (80 << 20).to_string());
    assert_eq!(show("MemoryMax"), (80 << 20).to_string());
    user.verb("pause", &[]).ok();
    assert_eq!(user.status(), "paused");
    user.verb("resume", &[]).ok();
    user.verb("delete", &["--force"]).ok();
    until("the end of the unit", || show("LoadState") == "not-found");

    // What this user's systemd was not given is refused by name.
    user.config(&["id"], |c| {
        c["linux"]["resources"] = json!({"unified": {"io.max": "8:0 rbps=1"}})
    });
    let done = user.run(&["--systemd-cgroup"]);
    assert_eq!(done.code, 1, "{done:#?}");
    assert!(done.err.contains("controller io"), "{done:#?}");
    until("the end of the unit", || show("LoadState") == "not-found");

    // In a group of the user's own, without systemd.
    user.config(&["cat", "/sys/fs/cgroup/pids.max"], |c| {
        c["linux"]["resources"] = json!({"pids": {"limit": 9}});
    });
    let mut c = user.become_user(Path::new("/usr/bin/systemd-run"));
    c.args(["--user", "--scope", "--quiet", "-p", "Delegate=yes"]);
    c.arg(&user.program);
    c.args(["run", "--bundle", user.bundle().to_str().unwrap(), &id]);
    assert_eq!(outcome(&mut c).ok().out, "9\n");
}
