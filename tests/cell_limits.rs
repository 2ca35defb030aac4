//! Limits and the device list, as a real kernel enforces them: on cgroup v2 (the test machine) and on
//! v1 (a hybrid host). Every test drives the runtime as a user does and looks from inside the cell.

mod support;

use serde_json::json;
use support::{Bundle, on_v2};

#[test]
fn limits_read_back_as_asked() {
    let b = Bundle::new();
    // More than one processor's time can't be asked for where there is only one: in the test machine.
    let (cpus, max) = match std::thread::available_parallelism().unwrap().get() {
        1 => ("--cpus=0.75", "75000 100000"),
        _ => ("--cpus=1.5", "150000 100000"),
    };
    let seen = b
        .exec(
            &[
                "--memory=64m",
                "--memory-swap=96m",
                cpus,
                "--pids-limit=50",
                "--cpuset-cpus=0",
            ],
            &["limits"],
        )
        .ok();
    assert_eq!(seen.value("memory.max"), (64 << 20).to_string());
    assert_eq!(seen.value("cpu.max"), max);
    assert_eq!(seen.value("pids.max"), "50");
    assert_eq!(seen.value("cpuset.cpus"), "0");
    if on_v2() {
        // Docker's --memory-swap counts memory and swap; the v2 file counts swap alone.
        assert_eq!(seen.value("memory.swap.max"), (32 << 20).to_string());
    } else if seen.value("memory.memsw") != "unset" {
        assert_eq!(seen.value("memory.memsw"), (96 << 20).to_string());
    }
}

#[test]
fn limits_can_be_raised_to_none() {
    // The bundle has a limit; the command line lifts it.
    let b = Bundle::new().edit(|c| c["linux"]["resources"]["pids"] = json!({"limit": 7}));
    assert_eq!(b.exec(&[], &["limits"]).ok().value("pids.max"), "7");
    let seen = b.exec(&["--pids-limit=-1"], &["limits"]).ok();
    assert_eq!(seen.value("pids.max"), "max");
}

#[test]
fn cpu_weight_follows_shares() {
    let b = Bundle::new();
    let shares = |n: &str| {
        let seen = b.exec(&[&format!("--cpu-shares={n}")], &["limits"]).ok();
        seen.number(if on_v2() { "cpu.weight" } else { "cpu.shares" })
    };
    let (less, more) = (shares("512"), shares("2048"));
    if on_v2() {
        // How shares become a weight has changed over the years; that the order stays has not.
        assert!(1.0 < less && less < more, "weights {less} and {more}");
    } else {
        assert_eq!((less, more), (512.0, 2048.0));
    }
    let exact =
        Bundle::new().edit(|c| c["linux"]["resources"]["unified"] = json!({"cpu.weight": "250"}));
    if on_v2() {
        assert_eq!(exact.exec(&[], &["limits"]).ok().value("cpu.weight"), "250");
    }
}

#[test]
fn io_limit_reads_back_as_asked() {
    let Some((name, number)) = disk() else {
        panic!("this machine has no disk that a limit could be set for");
    };
    let b = Bundle::new();
    let flag = format!("--device-read-bps=/dev/{name}:1mb");
    if on_v2() {
        let seen = b.exec(&[&flag], &["limits"]).ok();
        let want = format!("{number} rbps=1048576 wbps=max riops=max wiops=max");
        assert_eq!(seen.value("io.max"), want);
    } else {
        let file = "/sys/fs/cgroup/blkio/blkio.throttle.read_bps_device";
        let seen = b.exec(&[&flag], &["cat", file]).ok();
        assert_eq!(seen.out.trim(), format!("{number} 1048576"));
    }
}

/// A whole disk: its name, and its number as cgroup files have it.
fn disk() -> Option<(String, String)> {
    let mut names: Vec<String> = std::fs::read_dir("/sys/block")
        .ok()?
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| {
            !["loop", "ram", "zram", "dm-", "md", "nbd", "sr", "fd"]
                .iter()
                .any(|p| n.starts_with(p))
        })
        .filter(|n| std::path::Path::new("/dev").join(n).exists())
        .collect();
    names.sort();
    let name = names.into_iter().next()?;
    let number = std::fs::read_to_string(format!("/sys/block/{name}/dev")).ok()?;
    Some((name, number.trim().to_string()))
}

#[test]
fn over_the_memory_limit_is_killed_with_one_line_that_says_so() {
    let b = Bundle::new();
    let died = b.exec(&["--memory=64m"], &["hog", "256m"]);
    assert_eq!(died.code, 137, "{died:#?}");
    let said: Vec<&str> = died
        .err
        .lines()
        .filter(|l| l.contains("memory limit"))
        .collect();
    assert_eq!(said.len(), 1, "one line says why: {died:#?}");
    assert!(
        said[0].contains("64 MiB") || said[0].contains("64.0 MiB"),
        "{died:#?}"
    );
    assert!(said[0].contains("peak"), "{died:#?}");
    // Below the limit the same program is left alone.
    assert_eq!(
        b.exec(&["--memory=64m"], &["hog", "32m"])
            .ok()
            .value("held"),
        (32 << 20).to_string()
    );
}

#[test]
fn killed_by_somebody_else_is_not_called_a_memory_kill() {
    let b = Bundle::new();
    // 137 of its own accord, and nothing about memory.
    let died = b.exec(&["--memory=64m"], &["exit", "137"]);
    assert_eq!(died.code, 137, "{died:#?}");
    assert!(!died.err.contains("memory limit"), "{died:#?}");
}

#[test]
fn half_a_cpu_is_half_a_cpu() {
    let b = Bundle::new();
    // A busy machine may give less than the limit, never more: the weight makes this cell the first to
    // be served, and the lower bound alone is looked at again.
    let mut seen = Vec::new();
    for _ in 0..3 {
        let percent = b
            .exec(&["--cpus=0.5"], &["spin", "5"])
            .ok()
            .number("percent");
        assert!(percent <= 55.0, "{percent} % of a CPU, asked for 50");
        seen.push(percent);
        if percent >= 45.0 {
            return;
        }
    }
    panic!("never more than 45 % of a CPU, asked for 50: {seen:?}");
}

#[test]
fn process_limit_holds() {
    let b = Bundle::new();
    let seen = b.exec(&["--pids-limit=8"], &["tasks", "20"]).ok();
    // hello itself is one of the eight.
    assert_eq!(seen.value("started"), "7");
    assert_eq!(seen.value("errno"), libc::EAGAIN.to_string());
}

#[test]
fn cpu_set_holds() {
    let b = Bundle::new();
    assert_eq!(
        b.exec(&["--cpuset-cpus=0"], &["cpus"]).ok().value("cpus"),
        "1"
    );
}

#[test]
fn device_list_is_enforced() {
    // Character device 195 has no driver here, so an open that the filter lets through ends in ENXIO.
    let nodes = ["listed", "reads", "unlisted"];
    let b = Bundle::new().edit(|c| {
        c["linux"]["devices"] = nodes
            .iter()
            .enumerate()
            .map(|(minor, name)| json!({"path": format!("/dev/{name}"), "type": "c", "major": 195, "minor": minor, "fileMode": 0o666, "uid": 0, "gid": 0}))
            .collect();
        c["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 195, "minor": 0, "access": "rw"},
            {"allow": true, "type": "c", "major": 195, "minor": 1, "access": "r"},
        ]);
    });
    let open = |path: &str, how: &str| b.exec(&[], &["open", path, how]).out.trim().to_string();
    assert_eq!(open("/dev/listed", "rw"), "ENXIO 6");
    assert_eq!(open("/dev/reads", "r"), "ENXIO 6");
    assert_eq!(open("/dev/reads", "w"), "EPERM 1");
    assert_eq!(open("/dev/unlisted", "r"), "EPERM 1");
    // The standard devices come with every cell.
    for name in ["null", "zero", "full", "random", "urandom"] {
        assert_eq!(open(&format!("/dev/{name}"), "r"), "ok", "/dev/{name}");
    }
    assert_eq!(open("/dev/null", "w"), "ok");
}

#[test]
fn later_device_rules_win() {
    let b = Bundle::new().edit(|c| {
        c["linux"]["devices"] = json!([
            {"path": "/dev/a", "type": "c", "major": 195, "minor": 0, "fileMode": 0o666},
            {"path": "/dev/b", "type": "c", "major": 195, "minor": 1, "fileMode": 0o666},
        ]);
        c["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 195, "access": "rwm"},
            {"allow": false, "type": "c", "major": 195, "minor": 1, "access": "rwm"},
        ]);
    });
    let open = |path: &str| b.exec(&[], &["open", path, "r"]).out.trim().to_string();
    assert_eq!(open("/dev/a"), "ENXIO 6");
    assert_eq!(open("/dev/b"), "EPERM 1");
}

#[test]
fn limits_of_the_configuration_hold_without_flags() {
    let b = Bundle::new().edit(|c| {
        c["linux"]["resources"]["memory"] = json!({"limit": 48 << 20});
        c["linux"]["resources"]["cpu"] = json!({"quota": 20000, "period": 50000});
    });
    let seen = b.exec(&[], &["limits"]).ok();
    assert_eq!(seen.value("memory.max"), (48 << 20).to_string());
    assert_eq!(seen.value("cpu.max"), "20000 50000");
    assert_eq!(b.exec(&[], &["hog", "96m"]).code, 137);
}
