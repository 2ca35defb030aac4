//! The checks themselves: from files of /proc and /sys to verdicts. Pure, given a [`Look`].

mod gpu;

use super::look::Look;
use super::{Check, State};
use crate::cgroup::host::{Host, Mode};

/// All checks, in the order they are printed.
pub(super) fn all(look: &dyn Look) -> Vec<Check> {
    let mut out = Vec::new();
    kernel(look, &mut out);
    privileges(look, &mut out);
    cgroups(look, &mut out);
    namespaces(look, &mut out);
    filters(look, &mut out);
    file_systems(look, &mut out);
    programs(look, &mut out);
    gpu::checks(look, &mut out);
    out
}

fn ok(area: &'static str, name: impl Into<String>, found: impl Into<String>) -> Check {
    Check {
        area,
        name: name.into(),
        state: State::Ok,
        found: found.into(),
        advice: None,
        essential: false,
    }
}

impl Check {
    fn worse(mut self, state: State, advice: impl Into<String>) -> Self {
        self.state = state;
        self.advice = Some(advice.into());
        self
    }

    fn essential(mut self) -> Self {
        self.essential = true;
        self
    }
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The calls gpucell is built on, with the kernel that brought each (their man pages, "HISTORY").
const CALLS: [(&str, (u32, u32), &str); 5] = [
    (
        "clone into a cgroup",
        (5, 7),
        "cells join their cgroup by a write, which is slower",
    ),
    (
        "openat2",
        (5, 6),
        "paths in a rootfs can't be resolved safely: a newer kernel is needed",
    ),
    (
        "mount_setattr",
        (5, 12),
        "no recursive read-only and no id-mapped mounts",
    ),
    ("cgroup.kill", (5, 14), "processes are killed one by one"),
    ("pidfd_open", (5, 3), "a newer kernel is needed"),
];

fn kernel(look: &dyn Look, out: &mut Vec<Check>) {
    const AREA: &str = "kernel";
    let release = look.release();
    let running = version(&release);
    let check = ok(AREA, "release", &release).essential();
    out.push(if running < (5, 6) {
        check.worse(
            State::Missing,
            "gpucell needs Linux 5.6 (openat2), and is better with 5.14",
        )
    } else if running < (5, 14) {
        check.worse(
            State::Degraded,
            "Linux 5.14 or newer has all that gpucell uses",
        )
    } else {
        check
    });
    for (name, since, lost) in CALLS {
        if running < since {
            let found = format!("since {}.{}", since.0, since.1);
            out.push(ok(AREA, name, found).worse(State::Degraded, lost));
        }
    }
}

fn privileges(look: &dyn Look, out: &mut Vec<Check>) {
    const AREA: &str = "privileges";
    let uid = look.uid();
    let status = look.read("/proc/self/status").unwrap_or_default();
    if uid == 0 {
        // capabilities(7): the bits that a cell's set-up needs.
        let held = field(&status, "CapEff:").and_then(|t| u64::from_str_radix(t, 16).ok());
        let held = held.unwrap_or(0);
        let wanted = [
            ("CAP_SYS_ADMIN", 21, "namespaces and mounts"),
            ("CAP_MKNOD", 27, "device nodes"),
            ("CAP_SETUID", 7, "users"),
            ("CAP_CHOWN", 0, "owners of files"),
            (
                "CAP_SYS_RESOURCE",
                24,
                "raising hard limits and oom_score_adj below the present one",
            ),
        ];
        let lack: Vec<_> = wanted
            .iter()
            .filter(|(_, bit, _)| held >> bit & 1 == 0)
            .collect();
        let check = ok(AREA, "root", "all that set-up needs").essential();
        let names = |list: &[&(&str, u32, &str)]| {
            let one = |(name, _, why): &&(&str, u32, &str)| format!("{name} ({why})");
            list.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        out.push(if lack.is_empty() {
            check
        } else {
            let admin = lack.iter().any(|(name, _, _)| *name == "CAP_SYS_ADMIN");
            let state = if admin {
                State::Missing
            } else {
                State::Degraded
            };
            let mut check = check.worse(
                state,
                "start it with these capabilities if a cell needs them",
            );
            check.found = format!("root without {}", names(&lack));
            check
        });
    } else {
        out.push(ok(AREA, "rootless", format!("user id {uid}")));
        rootless(look, uid, out);
    }
}

fn rootless(look: &dyn Look, uid: u32, out: &mut Vec<Check>) {
    const AREA: &str = "privileges";
    let user = look.user().unwrap_or_default();
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = look.read(file).unwrap_or_default();
        let own = text.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let count = fields.nth(1)?.trim().parse::<u64>().ok()?;
            (name == user || name == uid.to_string()).then_some(count)
        });
        let ids: u64 = own.sum();
        let check = ok(AREA, file, format!("{ids} ids"));
        out.push(if ids < 65_536 {
            let who = if user.is_empty() {
                "$USER".to_owned()
            } else {
                user.clone()
            };
            let what = if file.ends_with("uid") {
                "subuids"
            } else {
                "subgids"
            };
            check.worse(
                State::Degraded,
                format!("usermod --add-{what} 100000-165535 {who}: images need many ids"),
            )
        } else {
            check
        });
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|l| l.strip_prefix(name))
        .map(str::trim)
}

/// Controller: v2 name, v1 name, what it is for.
const CONTROLLERS: [(&str, &str, &str); 7] = [
    ("memory", "memory", "--memory"),
    ("cpu", "cpu", "--cpus"),
    ("cpuset", "cpuset", "--cpuset-cpus"),
    ("pids", "pids", "--pids-limit"),
    ("io", "blkio", "--device-read-bps"),
    ("hugetlb", "hugetlb", "--hugetlb"),
    ("rdma", "rdma", "linux.resources.rdma"),
];

fn cgroups(look: &dyn Look, out: &mut Vec<Check>) {
    const AREA: &str = "cgroups";
    let host = match Host::from_mountinfo(&look.read("/proc/self/mountinfo").unwrap_or_default()) {
        Ok(host) => host,
        Err(e) => {
            let check = ok(AREA, "mode", e.to_string()).essential();
            out.push(check.worse(State::Missing, "mount -t cgroup2 none /sys/fs/cgroup"));
            return;
        }
    };
    let unified = "boot with systemd.unified_cgroup_hierarchy=1 to have all on v2";
    let check = ok(AREA, "mode", host.mode.to_string()).essential();
    out.push(match host.mode {
        Mode::V2 => check,
        Mode::Hybrid => check.worse(State::Degraded, unified),
        Mode::V1 => check.worse(
            State::Degraded,
            format!("no device filter by eBPF, no cgroup.kill; {unified}"),
        ),
    });
    let v2 = host.v2.clone().unwrap_or_default();
    let list = |file: &str| look.read(&format!("{v2}/{file}")).unwrap_or_default();
    let (has, below) = (list("cgroup.controllers"), list("cgroup.subtree_control"));
    let word = |text: &str, name: &str| text.split_whitespace().any(|w| w == name);
    for (name, old, flag) in CONTROLLERS {
        if !v2.is_empty() && word(&has, name) {
            let how = if word(&below, name) {
                "enabled below it"
            } else {
                "not yet enabled below it"
            };
            out.push(ok(AREA, name, format!("v2 at {v2}, {how}")));
        } else if let Some(mount) = host.v1_home(old) {
            let check = ok(AREA, name, format!("v1 at {}", mount.mount));
            out.push(check.worse(State::Degraded, format!("{flag} through v1 (see mode)")));
        } else {
            out.push(no_controller(look, name, old, flag));
        }
    }
    devices(&host, out);
    swap(look, &host, out);
    delegation(look, &v2, out);
}

fn no_controller(look: &dyn Look, name: &str, old: &str, flag: &str) -> Check {
    // /proc/cgroups: name, hierarchy, groups, enabled
    let table = look.read("/proc/cgroups").unwrap_or_default();
    let row = table
        .lines()
        .find(|l| l.split_whitespace().next() == Some(old));
    let off = row.is_some_and(|r| r.split_whitespace().nth(3) == Some("0"));
    let check = ok(
        "cgroups",
        name,
        if off {
            "switched off at boot"
        } else {
            "not in this kernel or not mounted"
        },
    );
    let advice = if off {
        format!("boot with cgroup_enable={old}; until then {flag} is refused")
    } else {
        format!("{flag} is refused here")
    };
    // rdma and hugetlb are missing from many kernels and few miss them.
    let minor = matches!(name, "rdma" | "hugetlb");
    check.worse(
        if minor {
            State::Degraded
        } else {
            State::Missing
        },
        advice,
    )
}

fn devices(host: &Host, out: &mut Vec<Check>) {
    const AREA: &str = "cgroups";
    if let Some(v2) = &host.v2 {
        out.push(ok(AREA, "device filter", format!("eBPF on {v2}")));
    } else if let Some(mount) = host.v1_home("devices") {
        let check = ok(AREA, "device filter", format!("v1 at {}", mount.mount));
        out.push(check.worse(State::Degraded, "changed rule by rule, not at once"));
    } else {
        let check = ok(AREA, "device filter", "none");
        out.push(check.worse(
            State::Missing,
            "mount -t cgroup2 none /sys/fs/cgroup/unified",
        ));
    }
}

fn swap(look: &dyn Look, host: &Host, out: &mut Vec<Check>) {
    const AREA: &str = "cgroups";
    let files = match host.v1_home("memory") {
        Some(v1) => look.exists(&format!("{}/memory.memsw.limit_in_bytes", v1.mount)),
        None => !look
            .read("/proc/cmdline")
            .is_some_and(|l| l.split_whitespace().any(|w| w == "swapaccount=0")),
    };
    let any = look
        .read("/proc/swaps")
        .is_some_and(|t| t.lines().count() > 1);
    let found = if any {
        "this host swaps"
    } else {
        "this host has no swap"
    };
    let check = ok(AREA, "swap limit", found);
    out.push(if files {
        check
    } else {
        check.worse(
            State::Degraded,
            "--memory-swap is refused; boot with swapaccount=1",
        )
    });
}

/// What a rootless caller was given of the v2 tree.
fn delegation(look: &dyn Look, v2: &str, out: &mut Vec<Check>) {
    const AREA: &str = "cgroups";
    if look.uid() == 0 || v2.is_empty() {
        return;
    }
    let own = look.read("/proc/self/cgroup").unwrap_or_default();
    let path = own
        .lines()
        .find_map(|l| l.strip_prefix("0::"))
        .unwrap_or("/");
    let dir = format!("{v2}{path}");
    let controllers = look
        .read(&format!("{dir}/cgroup.controllers"))
        .unwrap_or_default();
    let list = controllers.split_whitespace().collect::<Vec<_>>().join(" ");
    let check = ok(AREA, "delegation", format!("{path}: {list}"));
    let drop_in = "in /etc/systemd/system/user@.service.d/delegate.conf: [Service] Delegate=cpu cpuset io memory pids";
    out.push(if !look.writable(&format!("{dir}/cgroup.procs")) {
        check.worse(
            State::Missing,
            format!("run inside a delegated scope (systemd-run --user --scope -p Delegate=yes); {drop_in}"),
        )
    } else if !["cpu", "memory", "pids"].iter().all(|c| list.split(' ').any(|w| w == *c)) {
        check.worse(State::Degraded, drop_in)
    } else {
        check
    });
}

fn namespaces(look: &dyn Look, out: &mut Vec<Check>) {
    const AREA: &str = "namespaces";
    let kinds = ["mnt", "pid", "ipc", "uts", "net", "cgroup", "time"];
    let (there, lack): (Vec<&str>, Vec<&str>) = kinds
        .iter()
        .partition(|k| look.exists(&format!("/proc/self/ns/{k}")));
    let check = ok(AREA, "kinds", there.join(" ")).essential();
    out.push(match lack.as_slice() {
        [] => check,
        ["time"] => check.worse(
            State::Degraded,
            "no time namespaces (Linux 5.6, CONFIG_TIME_NS)",
        ),
        _ => check.worse(
            State::Missing,
            format!("this kernel lacks: {}", lack.join(" ")),
        ),
    });
    let number = |path: &str| look.read(path).and_then(|t| t.trim().parse::<u64>().ok());
    let most = number("/proc/sys/user/max_user_namespaces");
    let check = ok(
        AREA,
        "user",
        match most {
            Some(n) => format!("at most {n}"),
            None => "not in this kernel".to_owned(),
        },
    );
    let switch = "/proc/sys/kernel/unprivileged_userns_clone";
    let apparmor = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
    out.push(if !look.exists("/proc/self/ns/user") {
        check.worse(State::Missing, "no rootless cells (CONFIG_USER_NS)")
    } else if most == Some(0) {
        check.worse(State::Missing, "sysctl user.max_user_namespaces=15000")
    } else if number(switch) == Some(0) {
        check.worse(State::Degraded, "for rootless cells: sysctl kernel.unprivileged_userns_clone=1")
    } else if number(apparmor) == Some(1) {
        let advice = "for rootless cells: an AppArmor profile with `userns,`, or sysctl kernel.apparmor_restrict_unprivileged_userns=0";
        check.worse(State::Degraded, advice)
    } else {
        check
    });
}

fn filters(look: &dyn Look, out: &mut Vec<Check>) {
    const AREA: &str = "confinement";
    let check = |found: &str| ok(AREA, "seccomp", found);
    out.push(match look.read("/proc/sys/kernel/seccomp/actions_avail") {
        Some(text) => {
            let check = check(text.trim());
            let lack: Vec<&str> = ["kill_process", "errno", "user_notif", "log", "allow"]
                .into_iter()
                .filter(|a| !text.split_whitespace().any(|w| w == *a))
                .collect();
            match lack.is_empty() {
                true => check,
                false => check.worse(State::Degraded, format!("not here: {}", lack.join(" "))),
            }
        }
        None => check("none").worse(
            State::Missing,
            "configurations with a filter are refused (CONFIG_SECCOMP_FILTER)",
        ),
    });
    let lsm = look.read("/sys/kernel/security/lsm");
    let enabled = look
        .read("/sys/module/apparmor/parameters/enabled")
        .is_some_and(|t| t.trim() == "Y");
    let apparmor = ok(AREA, "apparmor", if enabled { "enabled" } else { "off" });
    let selinux = match look
        .read("/sys/fs/selinux/enforce")
        .as_deref()
        .map(str::trim)
    {
        Some("1") => Some("enforcing"),
        Some(_) => Some("permissive"),
        None => None,
    };
    // One of the two is enough; distributions choose.
    out.push(if enabled || selinux.is_some() {
        apparmor
    } else {
        apparmor.worse(
            State::Degraded,
            "apparmor profiles are refused; boot with apparmor=1 security=apparmor",
        )
    });
    out.push(ok(AREA, "selinux", selinux.unwrap_or("off")));
    if let Some(list) = lsm {
        out.push(ok(AREA, "lsm", list.trim()));
    }
}

fn file_systems(look: &dyn Look, out: &mut Vec<Check>) {
    const AREA: &str = "file systems";
    let known = look.read("/proc/filesystems").unwrap_or_default();
    let has = |name: &str| {
        known
            .lines()
            .any(|l| l.split_whitespace().last() == Some(name))
    };
    for (name, state, advice) in [
        (
            "overlay",
            State::Missing,
            "gpucell run IMAGE needs it: modprobe overlay",
        ),
        ("tmpfs", State::Missing, "CONFIG_TMPFS"),
        (
            "devpts",
            State::Missing,
            "terminals need it (CONFIG_UNIX98_PTYS)",
        ),
        (
            "mqueue",
            State::Degraded,
            "/dev/mqueue is refused (CONFIG_POSIX_MQUEUE)",
        ),
    ] {
        let check = ok(
            AREA,
            name,
            if has(name) { "here" } else { "not registered" },
        );
        out.push(if has(name) {
            check
        } else {
            check.worse(state, advice)
        });
    }
    let running = version(&look.release());
    let check = ok(
        AREA,
        "id-mapped mounts",
        "the kernel has them; each file system must too",
    );
    out.push(if running < (5, 12) {
        let mut check = check.worse(
            State::Missing,
            "-v …:idmap is refused; Linux 5.12 is needed",
        );
        check.found = "not in this kernel".to_owned();
        check
    } else {
        check
    });
    let check = ok(AREA, "id-mapped overlay", "here");
    out.push(if running < (5, 19) {
        let mut check = check.worse(State::Degraded, "Linux 5.19 has it");
        check.found = "not in this kernel".to_owned();
        check
    } else {
        check
    });
}

fn programs(look: &dyn Look, out: &mut Vec<Check>) {
    const AREA: &str = "programs";
    let rootless = look.uid() != 0;
    let lost = |needed: bool| {
        if needed {
            State::Missing
        } else {
            State::Degraded
        }
    };
    for (name, state, advice) in [
        (
            "newuidmap",
            lost(rootless),
            "rootless cells with more than one id: apt install uidmap",
        ),
        (
            "newgidmap",
            lost(rootless),
            "rootless cells with more than one id: apt install uidmap",
        ),
        (
            "criu",
            State::Degraded,
            "checkpoint and restore: apt install criu",
        ),
        ("ps", State::Degraded, "gpucell ps: apt install procps"),
    ] {
        match look.program(name) {
            Some(path) => out.push(ok(AREA, name, path.display().to_string())),
            None => out.push(ok(AREA, name, "not on PATH").worse(state, advice)),
        }
    }
    out.push(match look.init() {
        Some(path) => ok(AREA, "init", path.display().to_string()),
        None => ok(AREA, "init", "no static tini, docker-init or catatonit")
            .worse(State::Degraded, "--init is refused: apt install tini"),
    });
}

#[cfg(test)]
mod tests;
