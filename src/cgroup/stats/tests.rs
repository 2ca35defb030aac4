use super::*;
use serde_json::{Value, json};
use std::fs;

/// A folder with such files, read as a group.
fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Dir) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let held = Dir::open(dir.path().to_str().unwrap()).unwrap();
    (dir, held)
}

fn v2(files: &[(&str, &str)]) -> Result<Value> {
    let (_dir, held) = folder(files);
    let mut stats = Stats::default();
    v2::read(&Files(&held), true, &mut stats)?;
    Ok(serde_json::to_value(stats).unwrap())
}

fn v1(controllers: &[&str], files: &[(&str, &str)]) -> Result<Value> {
    let (_dir, held) = folder(files);
    let mut stats = Stats::default();
    let controllers: Vec<String> = controllers.iter().map(|c| (*c).to_owned()).collect();
    v1::read(&Files(&held), &controllers, &mut stats)?;
    Ok(serde_json::to_value(stats).unwrap())
}

/// What runc 1.5 prints of a group without any of it.
fn nothing() -> Value {
    json!({
        "cpu": {},
        "cpuset": {"cpu_exclusive": 0, "mem_hardwall": 0, "mem_exclusive": 0, "memory_migrate": 0,
            "memory_spread_page": 0, "memory_spread_slab": 0, "memory_pressure": 0,
            "sched_load_balance": 0, "sched_relax_domain_level": 0},
        "memory": {}, "pids": {}, "blkio": {}, "hugetlb": {},
    })
}

#[test]
fn nothing_there_is_nothing_said() {
    assert_eq!(v2(&[]).unwrap(), nothing());
    let all = [
        "cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "hugetlb", "name=x",
    ];
    assert_eq!(v1(&all, &[]).unwrap(), nothing());
}

#[test]
fn version_2_in_the_names_of_version_1() {
    let mut want = nothing();
    want["cpu"] = json!({
        "usage": {"total": 5000, "kernel": 2000, "user": 3000},
        "throttling": {"periods": 7, "throttledPeriods": 1, "throttledTime": 9000},
        "psi": {"some": {"avg10": 1.5, "avg60": 0.0, "avg300": 0.25, "total": 12}},
    });
    want["memory"] = json!({
        "cache": 4096,
        "usage": {"limit": 67108864, "usage": 8192, "max": 9000, "failcnt": 0},
        "swap": {"limit": u64::MAX, "usage": 8193, "failcnt": 0},
        "raw": {"anon": 1, "file": 4096},
    });
    want["pids"] = json!({"current": 3});
    want["blkio"] = json!({
        "ioServiceBytesRecursive": [
            {"major": 8, "op": "Read", "value": 1},
            {"major": 8, "op": "Write"},
            {"major": 259, "minor": 1, "op": "Read", "value": 5}],
        "ioServicedRecursive": [
            {"major": 8, "op": "Read", "value": 3},
            {"major": 8, "op": "Write", "value": 4}],
    });
    let got = v2(&[
        (
            "cpu.stat",
            "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 1\nthrottled_usec 9\nnr_bursts 0\nburst_usec 0\n",
        ),
        (
            "cpu.pressure",
            "some avg10=1.50 avg60=0.00 avg300=0.25 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        ),
        ("memory.stat", "anon 1\nfile 4096\n"),
        ("memory.current", "8192\n"),
        ("memory.max", "67108864\n"),
        ("memory.peak", "9000\n"),
        ("memory.swap.current", "1\n"),
        ("memory.swap.max", "max\n"),
        ("memory.swap.peak", "55\n"),
        ("pids.current", "3\n"),
        ("pids.max", "max\n"),
        (
            "io.stat",
            "8:0 rbytes=1 wbytes=0 rios=3 wios=4 dbytes=5 dios=6\n259:1 rbytes=5\n7:0 \n",
        ),
    ]);
    assert_eq!(got.unwrap(), want);
}

#[test]
fn version_1() {
    let mut want = nothing();
    want["cpu"] = json!({
        "usage": {"total": 90, "percpu": [40, 50], "percpu_kernel": [2, 4], "percpu_user": [1, 3],
            "kernel": 20_000_000, "user": 10_000_000},
        "throttling": {"periods": 7, "throttledTime": 9},
    });
    want["cpuset"]["cpus"] = json!([0, 1, 2, 7]);
    want["cpuset"]["mems"] = json!([0]);
    want["cpuset"]["sched_load_balance"] = json!(1);
    want["cpuset"]["sched_relax_domain_level"] = json!(-1);
    want["memory"] = json!({
        "cache": 4,
        "usage": {"limit": 9, "usage": 8, "max": 10, "failcnt": 2},
        "kernel": {"limit": 0, "usage": 3, "failcnt": 0},
        "raw": {"cache": 4},
    });
    want["pids"] = json!({"current": 3, "limit": 5});
    want["blkio"] = json!({
        "ioServiceBytesRecursive": [{"major": 8, "minor": 16, "op": "Sync", "value": 6}],
        "ioServicedRecursive": [{"major": 8, "value": 7}],
    });
    let got = v1(
        &["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio"],
        &[
            (
                "cpu.stat",
                "nr_periods 7\nnr_throttled 0\nthrottled_time 9\n",
            ),
            ("cpuacct.usage", "90\n"),
            ("cpuacct.stat", "user 1\nsystem 2\n"),
            ("cpuacct.usage_percpu", "40 50 \n"),
            ("cpuacct.usage_all", "cpu user system\n0 1 2\n1 3 4\n"),
            ("cpuset.cpus", "0-2,7\n"),
            ("cpuset.mems", "0\n"),
            ("cpuset.sched_load_balance", "1\n"),
            ("cpuset.sched_relax_domain_level", "-1\n"),
            ("memory.stat", "cache 4\n"),
            ("memory.usage_in_bytes", "8\n"),
            ("memory.max_usage_in_bytes", "10\n"),
            ("memory.failcnt", "2\n"),
            ("memory.limit_in_bytes", "9\n"),
            ("memory.kmem.usage_in_bytes", "3\n"),
            ("pids.current", "3\n"),
            ("pids.max", "5\n"),
            ("blkio.throttle.io_serviced", "8:0 7\nTotal 7\n"),
            ("blkio.throttle.io_service_bytes", "8:16 Sync 6\nTotal 6\n"),
        ],
    );
    assert_eq!(got.unwrap(), want);
}

#[test]
fn odd_files_are_errors_that_name_them() {
    for (file, text) in [
        ("cpu.stat", "usage_usec lots\n"),
        ("memory.stat", "anon\n"),
        ("pids.current", "-1\n"),
        ("io.stat", "8:x rbytes=1\n"),
        ("io.stat", "8:0 rbytes=-\n"),
        ("cpu.pressure", "some avg10\n"),
    ] {
        let error = v2(&[(file, text)]).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("found"), "{error}");
    }
    for (controller, file, text) in [
        ("cpuset", "cpuset.cpus", "0-x\n"),
        ("cpuacct", "cpuacct.usage_percpu", "1 -\n"),
        ("cpuacct", "cpuacct.usage_all", "cpu user system\n0 1\n"),
        ("blkio", "blkio.throttle.io_serviced", "8 7\n"),
    ] {
        let error = v1(&[controller], &[(file, text)]).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
    }
}

#[test]
fn page_sizes_as_files_name_them() {
    assert_eq!(page_size(64), "64KB");
    assert_eq!(page_size(2048), "2MB");
    assert_eq!(page_size(1 << 20), "1GB");
}
