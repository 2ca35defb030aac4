use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::super::look::{Nvidia, libcuda};
use super::*;
use crate::nvidia::nodes::{Node, State as NodeState};

/// A host made of files.
#[derive(Default)]
struct Made {
    files: HashMap<&'static str, String>,
    programs: Vec<&'static str>,
    release: &'static str,
    uid: u32,
    writable: bool,
    nvidia: Option<Nvidia>,
}

impl Look for Made {
    fn read(&self, path: &str) -> Option<String> {
        self.files.get(path).cloned()
    }
    fn exists(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }
    fn writable(&self, _: &str) -> bool {
        self.writable
    }
    fn program(&self, name: &str) -> Option<PathBuf> {
        self.programs
            .contains(&name)
            .then(|| format!("/usr/bin/{name}").into())
    }
    fn release(&self) -> String {
        self.release.to_owned()
    }
    fn uid(&self) -> u32 {
        self.uid
    }
    fn user(&self) -> Option<String> {
        Some("me".into())
    }
    fn init(&self) -> Option<PathBuf> {
        None
    }
    fn nvidia(&self) -> Option<crate::Result<Nvidia>> {
        self.nvidia.clone().map(Ok)
    }
}

const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
const HYBRID: &str = "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
    31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
    32 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";

/// A good host: root, v2, everything there.
fn good() -> Made {
    let mut files: HashMap<&'static str, String> = HashMap::new();
    let mut put = |path, text: &str| files.insert(path, text.to_owned());
    put("/proc/self/mountinfo", V2);
    put("/proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n");
    put(
        "/sys/fs/cgroup/cgroup.controllers",
        "cpuset cpu io memory hugetlb pids rdma\n",
    );
    put("/sys/fs/cgroup/cgroup.subtree_control", "cpu memory pids\n");
    for ns in [
        "/proc/self/ns/mnt",
        "/proc/self/ns/pid",
        "/proc/self/ns/ipc",
        "/proc/self/ns/uts",
        "/proc/self/ns/net",
        "/proc/self/ns/cgroup",
        "/proc/self/ns/time",
        "/proc/self/ns/user",
    ] {
        put(ns, "");
    }
    put("/proc/sys/user/max_user_namespaces", "15000\n");
    let actions = "kill_process kill_thread trap errno user_notif trace log allow\n";
    put("/proc/sys/kernel/seccomp/actions_avail", actions);
    put("/sys/module/apparmor/parameters/enabled", "Y\n");
    put(
        "/proc/filesystems",
        "nodev\ttmpfs\nnodev\tdevpts\nnodev\tmqueue\nnodev\toverlay\n",
    );
    put("/proc/cmdline", "quiet\n");
    Made {
        files,
        programs: vec!["newuidmap", "newgidmap", "criu", "ps"],
        release: "6.12.1-amd64",
        uid: 0,
        writable: true,
        nvidia: Some(nvidia()),
    }
}

fn node(name: &str, minor: u32) -> Node {
    Node {
        path: Path::new("/dev").join(name),
        host: Path::new("/dev").join(name),
        major: 195,
        minor,
        capability: false,
    }
}

/// A driver without faults.
fn nvidia() -> Nvidia {
    let here = NodeState::Here {
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    Nvidia {
        driver: "535.309.01".into(),
        cuda: Some("12.2".into()),
        gpus: 1,
        sleeping: 0,
        uvm: true,
        nodes: vec![(node("nvidiactl", 255), here), (node("nvidia0", 0), here)],
        libraries: vec!["535.309.01".into()],
        cdi: vec![("/etc/cdi/nvidia.yaml".into(), "535.309.01".into())],
    }
}

fn find(host: &Made, name: &str) -> Check {
    let checks = all(host);
    let found = checks.iter().find(|c| c.name == name);
    found.unwrap_or_else(|| panic!("no check {name}")).clone()
}

#[test]
fn a_good_host_is_ok() {
    let bad: Vec<_> = all(&good())
        .into_iter()
        .filter(|c| c.state != State::Ok)
        .collect();
    let names: Vec<_> = bad.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["init"]); // Made has no init
    assert_eq!(
        find(&good(), "nvidia driver").found,
        "535.309.01, CUDA 12.2"
    );
    assert_eq!(
        find(&good(), "io").found,
        "v2 at /sys/fs/cgroup, not yet enabled below it"
    );
}

#[test]
fn every_fault_has_advice_and_every_ok_none() {
    let bare = Made {
        release: "4.19.0",
        uid: 1000,
        ..Made::default()
    };
    for host in [good(), bare] {
        for check in all(&host) {
            assert_eq!(
                check.advice.is_some(),
                check.state != State::Ok,
                "{check:?}"
            );
        }
    }
}

#[test]
fn hybrid_says_where_each_controller_is() {
    let mut host = good();
    host.files.insert("/proc/self/mountinfo", HYBRID.to_owned());
    host.files.insert(
        "/sys/fs/cgroup/unified/cgroup.controllers",
        "hugetlb\n".to_owned(),
    );
    host.files.insert(
        "/proc/cgroups",
        "#subsys_name hierarchy num_cgroups enabled\npids 0 1 0\n".to_owned(),
    );
    assert_eq!(find(&host, "mode").state, State::Degraded);
    assert_eq!(find(&host, "memory").found, "v1 at /sys/fs/cgroup/memory");
    assert_eq!(find(&host, "cpu").found, "v1 at /sys/fs/cgroup/cpu,cpuacct");
    assert_eq!(find(&host, "hugetlb").state, State::Ok);
    let pids = find(&host, "pids");
    assert_eq!(
        (pids.state, pids.found.as_str()),
        (State::Missing, "switched off at boot")
    );
    assert_eq!(
        find(&host, "device filter").found,
        "eBPF on /sys/fs/cgroup/unified"
    );
    assert_eq!(find(&host, "swap limit").state, State::Degraded);
}

#[test]
fn old_kernels_and_missing_rights() {
    let mut host = good();
    host.release = "5.10.0-30-amd64";
    assert_eq!(find(&host, "release").state, State::Degraded);
    assert_eq!(find(&host, "mount_setattr").state, State::Degraded);
    assert_eq!(find(&host, "id-mapped mounts").state, State::Missing);
    host.release = "4.19.0";
    let release = find(&host, "release");
    assert!(release.essential && release.state == State::Missing);
    // CAP_SYS_RESOURCE (bit 24) taken away
    let status = "CapEff:\t000001fffeffffff\n".to_owned();
    host.files.insert("/proc/self/status", status);
    let root = find(&host, "root");
    assert_eq!(root.state, State::Degraded);
    assert!(root.found.contains("CAP_SYS_RESOURCE"), "{root:?}");
    host.files
        .insert("/proc/self/status", "CapEff:\t0\n".to_owned());
    assert_eq!(find(&host, "root").state, State::Missing);
}

#[test]
fn rootless_hosts() {
    let mut host = good();
    host.uid = 1000;
    host.files
        .insert("/etc/subuid", "me:100000:65536\n".to_owned());
    host.files
        .insert("/etc/subgid", "you:100000:65536\n".to_owned());
    host.files
        .insert("/proc/self/cgroup", "0::/user.slice/x\n".to_owned());
    host.files.insert(
        "/sys/fs/cgroup/user.slice/x/cgroup.controllers",
        "memory pids\n".to_owned(),
    );
    assert_eq!(find(&host, "/etc/subuid").state, State::Ok);
    assert_eq!(find(&host, "/etc/subgid").state, State::Degraded);
    assert_eq!(find(&host, "delegation").state, State::Degraded);
    host.writable = false;
    assert_eq!(find(&host, "delegation").state, State::Missing);
    host.files
        .insert("/proc/sys/user/max_user_namespaces", "0\n".to_owned());
    assert_eq!(find(&host, "user").state, State::Missing);
    host.programs.clear();
    assert_eq!(find(&host, "newuidmap").state, State::Missing);
    assert_eq!(find(&good(), "newuidmap").state, State::Ok);
}

#[test]
fn faults_of_the_nvidia_driver() {
    let with = |change: &dyn Fn(&mut Nvidia)| {
        let mut made = nvidia();
        change(&mut made);
        Made {
            nvidia: Some(made),
            ..good()
        }
    };
    let stale = NodeState::Stale {
        major: 511,
        minor: 0,
    };
    type Fault<'a> = (&'a dyn Fn(&mut Nvidia), &'a str, State, &'a str);
    let faults: [Fault; 11] = [
        (&|n| n.gpus = 0, "gpus", State::Missing, "dmesg"),
        (&|n| n.sleeping = 1, "gpus", State::Degraded, "persistenced"),
        (&|n| n.uvm = false, "nvidia-uvm", State::Missing, "modprobe"),
        (
            &|n| n.libraries = vec!["550.1.2".into()],
            "driver libraries",
            State::Missing,
            "535.309.01",
        ),
        (
            &|n| n.libraries.push("550.1.2".into()),
            "driver libraries",
            State::Degraded,
            "550.1.2",
        ),
        (
            &|n| n.libraries.clear(),
            "driver libraries",
            State::Missing,
            "install",
        ),
        (
            &|n| n.nodes[0].1 = NodeState::Missing,
            "/dev/nvidiactl",
            State::Degraded,
            "nvidia-modprobe",
        ),
        (
            &|n| n.nodes[1].1 = stale,
            "/dev/nvidia0",
            State::Degraded,
            "anew",
        ),
        (
            &|n| n.nodes[1].1 = NodeState::Other,
            "/dev/nvidia0",
            State::Missing,
            "remove",
        ),
        (
            &|n| n.cdi[0].1 = "550.1.2".into(),
            "/etc/cdi/nvidia.yaml",
            State::Degraded,
            "stale",
        ),
        (&|n| n.cuda = None, "nvidia driver", State::Ok, ""),
    ];
    for (fault, name, state, advice) in faults {
        let check = find(&with(fault), name);
        assert_eq!(check.state, state, "{check:?}");
        assert!(check.advice.unwrap_or_default().contains(advice), "{name}");
    }
}

#[test]
fn the_driver_of_a_cdi_file() {
    let yaml = "hostPath: /usr/lib/libcuda.so.1\n- hostPath: /usr/lib/libcuda.so.550.163.01\n";
    assert_eq!(libcuda(yaml), Some("550.163.01"));
    assert_eq!(
        libcuda("{\"hostPath\":\"/x/libcuda.so.535.1.2\"}"),
        Some("535.1.2")
    );
    for none in [
        "",
        "libcuda.so.",
        "libcuda.so.1",
        "libcuda.so.1.",
        "libcuda.so.é",
    ] {
        assert_eq!(libcuda(none), None, "{none}");
    }
}
