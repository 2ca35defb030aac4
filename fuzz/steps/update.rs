//! What `update --resources` does with its text before a control file is written: read it, put it into the
//! saved configuration, decide on the writes. Shared by the fuzz target and by tests/spec_corpus.rs, which
//! replays the corpus.

use gpucell::cgroup::{DEFAULT_RULES, Driver, Host, Request, plan_on};
use gpucell::spec::{load, resources};
use serde_json::Value;

/// How far the bytes came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// Refused when read.
    Nothing,
    /// Read, but no host can do it.
    Read,
    /// Done by cgroup v1 or v2, not by the other.
    One,
    /// Done by both.
    Both,
}

/// A pure v2 host, and one whose controllers are all on v1 (proc_pid_mountinfo(5)).
const HOSTS: [&str; 2] = [
    "41 31 0:38 / /cg rw - cgroup2 none rw\n",
    "40 31 0:37 / /cg rw - tmpfs none rw\n\
     41 40 0:38 / /cg/memory rw - cgroup none rw,memory\n\
     42 40 0:39 / /cg/cpu rw - cgroup none rw,cpu,cpuacct\n\
     43 40 0:40 / /cg/cpuset rw - cgroup none rw,cpuset\n\
     44 40 0:41 / /cg/pids rw - cgroup none rw,pids\n\
     45 40 0:42 / /cg/blkio rw - cgroup none rw,blkio\n\
     46 40 0:43 / /cg/hugetlb rw - cgroup none rw,hugetlb\n\
     47 40 0:44 / /cg/net rw - cgroup none rw,net_cls,net_prio\n\
     48 40 0:45 / /cg/rdma rw - cgroup none rw,rdma\n\
     49 40 0:46 / /cg/devices rw - cgroup none rw,devices\n\
     50 40 0:47 / /cg/freezer rw - cgroup none rw,freezer\n",
];

/// A configuration with limits of each kind, to be changed.
const SAVED: &str = r#"{"ociVersion": "1.3.0", "linux": {"resources": {
    "memory": {"limit": 67108864, "swap": 134217728}, "cpu": {"shares": 512, "cpus": "0"}, "pids": {"limit": 9},
    "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}], "unified": {"memory.high": "50000000"},
    "blockIO": {"weight": 100, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]},
    "rdma": {"mlx5_1": {"hcaHandles": 3}}, "devices": [{"allow": false, "access": "rwm"}]}}}"#;

/// Runs every step as far as it goes.
pub fn run(data: &[u8]) -> Reached {
    let Ok(new) = resources::parse(data) else {
        return Reached::Nothing;
    };
    let mut saved: Value = serde_json::from_str(SAVED).expect("JSON");
    resources::merge(&mut saved, &new).expect("what was read can be written");
    let once = saved.clone();
    resources::merge(&mut saved, &new).expect("and again");
    assert_eq!(once, saved, "the same change twice is one change");
    // What `exec` and the next update read must be readable.
    let text = saved.to_string();
    if let Err(e) = load::parse(text.as_bytes()) {
        panic!("the saved configuration is broken: {e}: {text}");
    }
    let done = HOSTS.into_iter().filter(|table| {
        let host = Host::from_mountinfo(table).expect("a host");
        let request = Request {
            id: "fuzz",
            cgroups_path: None,
            annotations: None,
            resources: Some(&new),
            extra_devices: &DEFAULT_RULES,
            driver: Driver::Cgroupfs,
            rootless: false,
        };
        plan_on(&request, &host).is_ok()
    });
    match done.count() {
        0 => Reached::Read,
        1 => Reached::One,
        _ => Reached::Both,
    }
}
