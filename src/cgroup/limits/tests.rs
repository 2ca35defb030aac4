//! Limits as data: which file takes which value, in which order.

use super::*;
use std::collections::HashMap;

fn res(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

/// `file=value` of each write; `?` marks one that may be missing, `~` one that is retried,
/// `|file=value` what stands in for a missing file.
fn show(list: &[Write]) -> Vec<String> {
    list.iter()
        .map(|w| {
            let mark = match w.need {
                Need::Must => "",
                Need::IfPresent => "?",
                Need::Retried => "~",
            };
            let other = w.otherwise.as_ref();
            let other = other.map_or(String::new(), |(f, v)| format!("|{f}={v}"));
            format!("{}={}{mark}{other}", w.file, w.value)
        })
        .collect()
}

fn v2_with(json: &str, files: &[(&str, &str)]) -> Result<Vec<String>> {
    let files: HashMap<&str, &str> = files.iter().copied().collect();
    let now = |_: &str, f: &str| files.get(f).map(|s| (*s).to_owned());
    let (new, old) = lower(&res(json), &|_| false, &now)?;
    assert!(old.list.is_empty());
    Ok(show(&new.list))
}

fn v1_with(json: &str, files: &[(&str, &str)]) -> Result<Vec<String>> {
    let files: HashMap<&str, &str> = files.iter().copied().collect();
    let now = |_: &str, f: &str| files.get(f).map(|s| (*s).to_owned());
    let (new, old) = lower(&res(json), &|_| true, &now)?;
    assert!(new.list.is_empty());
    Ok(show(&old.list))
}

fn v2(json: &str) -> Vec<String> {
    v2_with(json, &[]).unwrap()
}

fn v1(json: &str) -> Vec<String> {
    v1_with(json, &[]).unwrap()
}

fn v2_err(json: &str) -> String {
    v2_with(json, &[]).unwrap_err().to_string()
}

#[test]
fn nothing_asked_is_nothing_written() {
    for json in [
        "{}",
        r#"{"memory":{},"cpu":{},"blockIO":{},"network":{},"hugepageLimits":[],"rdma":{},"unified":{}}"#,
        r#"{"memory":{"limit":0,"swap":0,"reservation":0,"swappiness":0,"disableOOMKiller":false}}"#,
        r#"{"cpu":{"shares":0,"quota":0,"period":0,"realtimeRuntime":0,"realtimePeriod":0,"cpus":"","mems":""}}"#,
        r#"{"blockIO":{"weight":0,"leafWeight":0},"network":{"classID":0,"priorities":[]}}"#,
    ] {
        assert!(v2(json).is_empty(), "{json}");
        // swappiness 0 means something in v1
        if !json.contains("swappiness") {
            assert!(v1(json).is_empty(), "{json}");
        }
    }
}

#[test]
fn memory_v2() {
    let m = |inner: &str| v2(&format!(r#"{{"memory":{{{inner}}}}}"#));
    assert_eq!(m(r#""limit":1000"#), ["memory.max=1000"]);
    assert_eq!(
        m(r#""limit":-1"#),
        ["memory.swap.max=max?", "memory.max=max"]
    );
    assert_eq!(
        m(r#""limit":1000,"swap":1500,"reservation":500"#),
        ["memory.swap.max=500", "memory.max=1000", "memory.low=500"]
    );
    assert_eq!(
        m(r#""limit":1000,"swap":1000"#),
        ["memory.swap.max=0?", "memory.max=1000"]
    );
    assert_eq!(
        m(r#""limit":1000,"swap":-1"#),
        ["memory.swap.max=max?", "memory.max=1000"]
    );
    assert_eq!(m(r#""kernel":5,"kernelTCP":6"#), [""; 0]);

    let at = |e: String, words: &[&str]| {
        for w in words {
            assert!(e.contains(w), "{e} lacks {w}");
        }
    };
    at(
        v2_err(r#"{"memory":{"swap":5}}"#),
        &["memory.swap", "memory.limit"],
    );
    at(
        v2_err(r#"{"memory":{"limit":10,"swap":5}}"#),
        &["memory.swap", "10"],
    );
    at(
        v2_err(r#"{"memory":{"limit":-7}}"#),
        &["memory.limit", "-7"],
    );
    at(
        v2_err(r#"{"memory":{"disableOOMKiller":true}}"#),
        &["disableOOMKiller", "memory.high"],
    );
    at(v2_err(r#"{"memory":{"swappiness":60}}"#), &["swappiness"]);
}

#[test]
fn memory_v2_on_a_live_group() {
    let live = [
        ("memory.max", "1000\n"),
        ("memory.current", "700\n"),
        ("memory.swap.current", "50\n"),
    ];
    let up = |json: &str| v2_with(json, &live);
    // Swap alone is measured against the limit in force.
    assert_eq!(
        up(r#"{"memory":{"swap":1200}}"#).unwrap(),
        ["memory.swap.max=200"]
    );
    assert!(up(r#"{"memory":{"swap":900}}"#).is_err());
    assert!(up(r#"{"memory":{"limit":600,"checkBeforeUpdate":true}}"#).is_err());
    assert!(up(r#"{"memory":{"limit":710,"swap":740,"checkBeforeUpdate":true}}"#).is_err());
    assert_eq!(
        up(r#"{"memory":{"limit":710,"swap":760,"checkBeforeUpdate":true}}"#).unwrap(),
        ["memory.swap.max=50", "memory.max=710"]
    );
    assert_eq!(
        up(r#"{"memory":{"limit":600}}"#).unwrap(),
        ["memory.max=600"]
    );
}

#[test]
fn memory_v1() {
    const L: &str = "memory.limit_in_bytes";
    const S: &str = "memory.memsw.limit_in_bytes";
    let with = |inner: &str, cur: &[(&str, &str)]| {
        v1_with(&format!(r#"{{"memory":{{{inner}}}}}"#), cur).unwrap()
    };
    let set = |l: &str, s: &str| [format!("{L}={l}"), format!("{S}={s}")];
    let swap_first = |l: &str, s: &str| [format!("{S}={s}"), format!("{L}={l}")];
    assert_eq!(with(r#""limit":10,"swap":20"#, &[]), set("10", "20"));
    assert_eq!(
        with(r#""limit":10,"swap":-1"#, &[]),
        swap_first("10", "-1?")
    );
    // No more than the old limit: memory first. More: memory+swap first.
    assert_eq!(
        with(r#""limit":10,"swap":20"#, &[(L, "50")]),
        set("10", "20")
    );
    assert_eq!(
        with(r#""limit":60,"swap":70"#, &[(L, "50")]),
        swap_first("60", "70")
    );
    assert_eq!(
        with(r#""limit":-1"#, &[]),
        [format!("{S}=-1?"), format!("{L}=-1")]
    );
    assert_eq!(
        with(
            r#""reservation":5,"kernel":7,"kernelTCP":6,"swappiness":0,"disableOOMKiller":true"#,
            &[]
        ),
        [
            "memory.soft_limit_in_bytes=5",
            "memory.kmem.tcp.limit_in_bytes=6",
            "memory.oom_control=1",
            "memory.swappiness=0"
        ]
    );
    assert_eq!(
        with(r#""disableOOMKiller":false"#, &[(L, "50")]),
        ["memory.oom_control=0"]
    );
    for bad in [
        r#"{"memory":{"swappiness":101}}"#,
        r#"{"memory":{"limit":9,"swap":8}}"#,
        r#"{"memory":{"limit":-2}}"#,
    ] {
        assert!(v1_with(bad, &[]).is_err(), "{bad}");
    }
}

#[test]
fn cpu_v2() {
    let c = |inner: &str| v2(&format!(r#"{{"cpu":{{{inner}}}}}"#));
    assert_eq!(c(r#""shares":1024"#), ["cpu.weight=100"]);
    assert_eq!(c(r#""quota":50000"#), ["cpu.max=50000 100000"]);
    assert_eq!(c(r#""period":20000"#), ["cpu.max=max 20000"]);
    assert_eq!(c(r#""quota":-1,"period":20000"#), ["cpu.max=max 20000"]);
    assert_eq!(
        c(r#""quota":50000,"period":20000,"burst":7"#),
        ["cpu.max=50000 20000", "cpu.max.burst=7"]
    );
    assert_eq!(c(r#""idle":1,"shares":500"#), ["cpu.idle=1"]);
    assert_eq!(c(r#""idle":0,"shares":2"#), ["cpu.idle=0", "cpu.weight=1"]);
    assert_eq!(
        c(r#""cpus":"0-3,7","mems":"0""#),
        ["cpuset.cpus=0-3,7", "cpuset.mems=0"]
    );
    for bad in [
        r#"{"cpu":{"idle":2}}"#,
        r#"{"cpu":{"quota":10,"burst":11}}"#,
        r#"{"cpu":{"cpus":"0\n1"}}"#,
        r#"{"cpu":{"mems":"x"}}"#,
    ] {
        assert!(v2_with(bad, &[]).is_err(), "{bad}");
    }
    for (json, name) in [
        (r#"{"cpu":{"realtimeRuntime":950000}}"#, "realtimeRuntime"),
        (r#"{"cpu":{"realtimePeriod":1000000}}"#, "realtimePeriod"),
    ] {
        assert!(v2_err(json).contains(name));
    }
}

#[test]
fn cpu_on_a_live_group() {
    let live = [("cpu.max", "50000 20000\n"), ("cpu.max.burst", "30000\n")];
    let up = |json: &str| v2_with(json, &live);
    assert_eq!(
        up(r#"{"cpu":{"quota":40000}}"#).unwrap(),
        ["cpu.max=40000 20000"]
    );
    assert_eq!(
        up(r#"{"cpu":{"period":70000}}"#).unwrap(),
        ["cpu.max=50000 70000"]
    );
    assert_eq!(
        up(r#"{"cpu":{"quota":10000,"burst":5000}}"#).unwrap(),
        [
            "cpu.max.burst=5000~",
            "cpu.max=10000 20000",
            "cpu.max.burst=5000"
        ]
    );
    assert!(
        up(r#"{"cpu":{"quota":20000}}"#)
            .unwrap_err()
            .to_string()
            .contains("30000")
    );

    let live = [("cpu.cfs_quota_us", "50000"), ("cpu.cfs_burst_us", "0")];
    assert_eq!(
        v1_with(r#"{"cpu":{"quota":10,"period":20,"burst":5}}"#, &live).unwrap(),
        [
            "cpu.cfs_period_us=20~",
            "cpu.cfs_burst_us=5~",
            "cpu.cfs_quota_us=10",
            "cpu.cfs_period_us=20",
            "cpu.cfs_burst_us=5"
        ]
    );
}

#[test]
fn cpu_v1() {
    let c = |inner: &str| v1(&format!(r#"{{"cpu":{{{inner}}}}}"#));
    assert_eq!(
        c(r#""shares":512,"quota":10,"period":20,"burst":5,"cpus":"1","mems":"0""#),
        [
            "cpu.shares=512",
            "cpu.cfs_period_us=20",
            "cpu.cfs_quota_us=10",
            "cpu.cfs_burst_us=5",
            "cpuset.cpus=1",
            "cpuset.mems=0"
        ]
    );
    assert_eq!(
        c(r#""realtimeRuntime":9,"realtimePeriod":10"#),
        [
            "cpu.rt_period_us=10~",
            "cpu.rt_runtime_us=9",
            "cpu.rt_period_us=10"
        ]
    );
    assert_eq!(c(r#""quota":-1"#), ["cpu.cfs_quota_us=-1"]);
    assert!(v1_with(r#"{"cpu":{"shares":1}}"#, &[]).is_err());
    assert!(v1_with(r#"{"cpu":{"shares":262145}}"#, &[]).is_err());
}

#[test]
fn pids() {
    for (limit, value) in [
        ("-1", "max"),
        ("0", "1"),
        ("1", "1"),
        ("32771", "32771"),
        ("-9", "max"),
    ] {
        let json = format!(r#"{{"pids":{{"limit":{limit}}}}}"#);
        assert_eq!(v2(&json), [format!("pids.max={value}")]);
        assert_eq!(v1(&json), [format!("pids.max={value}")]);
    }
}

#[test]
fn io() {
    let json = r#"{"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":16,"weight":10}],
        "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":600}],
        "throttleWriteBpsDevice":[{"major":8,"minor":0,"rate":0}],
        "throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":7}],
        "throttleWriteIOPSDevice":[{"major":259,"minor":1,"rate":300}]}}"#;
    assert_eq!(
        v2(json),
        [
            "io.bfq.weight=500|io.weight=4950",
            "io.bfq.weight=8:16 10|io.weight=8:16 1",
            "io.max=8:0 rbps=600",
            "io.max=8:0 wbps=max",
            "io.max=8:0 riops=7",
            "io.max=259:1 wiops=300"
        ]
    );
    assert_eq!(
        v1(json),
        [
            "blkio.weight=500|blkio.bfq.weight=500",
            "blkio.weight_device=8:16 10|blkio.bfq.weight_device=8:16 10",
            "blkio.throttle.read_bps_device=8:0 600",
            "blkio.throttle.write_bps_device=8:0 0",
            "blkio.throttle.read_iops_device=8:0 7",
            "blkio.throttle.write_iops_device=259:1 300"
        ]
    );
    for bad in [
        r#"{"blockIO":{"weight":9}}"#,
        r#"{"blockIO":{"weight":1001}}"#,
        r#"{"blockIO":{"leafWeight":500}}"#,
        r#"{"blockIO":{"throttleReadBpsDevice":[{"major":-1,"minor":0,"rate":1}]}}"#,
    ] {
        assert!(v2_with(bad, &[]).is_err(), "{bad}");
    }
}

#[test]
fn hugetlb_rdma_network() {
    let json = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4096}]}"#;
    assert_eq!(
        v2(json),
        ["hugetlb.2MB.max=4096", "hugetlb.2MB.rsvd.max=4096?"]
    );
    assert_eq!(
        v1(json),
        [
            "hugetlb.2MB.limit_in_bytes=4096",
            "hugetlb.2MB.rsvd.limit_in_bytes=4096?"
        ]
    );
    for size in ["2mb", "MB", "../2MB", "2MB/x", "-2MB", "99999999999MB", ""] {
        let json = format!(r#"{{"hugepageLimits":[{{"pageSize":"{size}","limit":1}}]}}"#);
        assert!(v2_with(&json, &[]).is_err(), "{size}");
    }
    let json = r#"{"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10},"a0":{"hcaObjects":1}}}"#;
    let want = [
        "rdma.max=a0 hca_object=1",
        "rdma.max=mlx5_1 hca_handle=3 hca_object=10",
    ];
    assert_eq!(v2(json), want);
    assert_eq!(v1(json), want);
    assert!(v2_err(r#"{"rdma":{"x":{}}}"#).contains("hcaHandles"));
    assert!(v2_with(r#"{"rdma":{"x y":{"hcaHandles":1}}}"#, &[]).is_err());

    let json = r#"{"network":{"classID":1048577,"priorities":[{"name":"eth0","priority":5}]}}"#;
    assert_eq!(
        v1(json),
        ["net_cls.classid=1048577", "net_prio.ifpriomap=eth0 5"]
    );
    assert!(v2_err(json).contains("classID"));
    let json = r#"{"network":{"priorities":[{"name":"eth0","priority":5}]}}"#;
    assert!(v2_err(json).contains("priorities"));
    let json = r#"{"network":{"priorities":[{"name":"e 0\n","priority":5}]}}"#;
    assert!(v1_with(json, &[]).is_err());
}

#[test]
fn unified_files() {
    let json = r#"{"unified":{"memory.high":"9","io.max":"8:0 rbps=1\n8:16 wbps=2","misc.max":"sev 3",
        "cgroup.max.depth":"4"}}"#;
    assert_eq!(
        v2(json),
        [
            "cgroup.max.depth=4",
            "io.max=8:0 rbps=1",
            "io.max=8:16 wbps=2",
            "memory.high=9",
            "misc.max=sev 3"
        ]
    );
    for bad in [
        "memory/../x.y",
        "memory",
        ".max",
        "memory.",
        "cgroup.procs",
        "cgroup.kill",
        "cgroup.freeze",
        "cgroup.threads",
    ] {
        let json = format!(r#"{{"unified":{{"{bad}":"1"}}}}"#);
        assert!(v2_with(&json, &[]).is_err(), "{bad}");
    }
    // A controller bound to v1 has no v2 file here.
    let json = res(r#"{"unified":{"memory.high":"9"}}"#);
    let e = lower(&json, &|c| c == "memory", &|_, _| None)
        .unwrap_err()
        .to_string();
    assert!(e.contains("memory.high") && e.contains("v1"), "{e}");
}

#[test]
fn hybrid_divides_by_controller() {
    let json = res(
        r#"{"memory":{"limit":9},"hugepageLimits":[{"pageSize":"1GB","limit":1}],"pids":{"limit":3}}"#,
    );
    let (new, old) = lower(&json, &|c| c != "hugetlb", &|_, _| None).unwrap();
    assert_eq!(
        show(&new.list),
        ["hugetlb.1GB.max=1", "hugetlb.1GB.rsvd.max=1?"]
    );
    assert_eq!(show(&old.list), ["memory.limit_in_bytes=9", "pids.max=3"]);
}

#[test]
fn what_is_ignored_is_said() {
    let json = res(r#"{"memory":{"kernel":5,"kernelTCP":5},"cpu":{"idle":1,"shares":7}}"#);
    let (new, _) = lower(&json, &|_| false, &|_, _| None).unwrap();
    assert_eq!(new.warnings.len(), 3, "{:?}", new.warnings);
}
