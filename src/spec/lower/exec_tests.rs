use super::*;
use crate::plan::{Caps, ProcessPlan};
use serde_json::{Value, json};
use std::ffi::CString;

const KILL: u64 = 1 << 5;
const NET_ADMIN: u64 = 1 << 12;
const PTRACE: u64 = 1 << 19;

fn cell(change: impl FnOnce(&mut Value)) -> Spec {
    let mut config = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {
            "terminal": true,
            "user": {"uid": 7, "gid": 8, "additionalGids": [9], "umask": 0o27},
            "args": ["/bin/init"],
            "env": ["PATH=/bin", "A=cell"],
            "cwd": "/srv",
            "capabilities": {
                "bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"],
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}],
            "apparmorProfile": "cells",
            "selinuxLabel": "a:b:c",
            "oomScoreAdj": 5,
            "scheduler": {"policy": "SCHED_BATCH", "nice": 3},
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
        },
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
    });
    change(&mut config);
    serde_json::from_value(config).unwrap()
}

fn context<'a>(groups: &'a [String]) -> Context<'a> {
    Context {
        id: "one",
        no_new_keyring: false,
        groups,
    }
}

fn plan(cell: &Spec, source: &Source) -> ExecPlan {
    let (plan, warnings) = lower(cell, source, &context(&[])).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    plan
}

fn ask(changes: Changes) -> Source {
    Source::Changed(Box::new(Changes {
        args: vec!["ls".into(), "-l".into()],
        ..changes
    }))
}

fn given(process: Value) -> Source {
    Source::Given(Box::new(serde_json::from_value(process).unwrap()))
}

fn text(list: &[CString]) -> Vec<&str> {
    list.iter().map(|t| t.to_str().unwrap()).collect()
}

/// What a Plan has of a user.
fn user(p: &ProcessPlan) -> (u32, u32, &[u32]) {
    (p.uid, p.gid, &p.groups)
}

#[test]
fn without_flags_it_is_the_cells_process_with_another_program() {
    let plan = plan(&cell(|_| {}), &ask(Changes::default()));
    let p = &plan.process;
    assert_eq!(text(&p.args), ["ls", "-l"]);
    assert_eq!(text(&p.candidates), ["/bin/ls"]);
    assert_eq!(text(&p.env), ["PATH=/bin", "A=cell"]);
    assert_eq!(p.cwd.as_c_str(), c"/srv");
    assert_eq!(user(p), (7, 8, &[9][..]));
    assert_eq!(p.umask, Some(0o27));
    let one = Caps {
        bounding: KILL,
        effective: KILL,
        permitted: KILL,
        inheritable: 0,
        ambient: 0,
    };
    assert_eq!(p.caps, one);
    assert_eq!(p.rlimits, [(libc::RLIMIT_NOFILE, 10, 20)]);
    assert_eq!(p.oom_score_adj.as_deref(), Some(&b"5"[..]));
    assert_eq!(p.apparmor.as_deref(), Some(&b"exec cells"[..]));
    assert_eq!(p.selinux.as_deref(), Some(&b"a:b:c"[..]));
    assert!(p.scheduler.is_some() && p.io_priority.is_some());
    assert!(!p.no_new_privs && p.needs_home);
    // The cell's terminal is its first process's.
    assert!(!p.terminal && p.console_size.is_none());
    assert_eq!(p.keyring.as_deref(), Some(c"_ses.one"));
    assert!(plan.seccomp.is_none() && plan.groups.is_empty());
    assert_eq!((&plan.first_cpus, &plan.cpus), (&None, &None));
}

#[test]
fn each_flag_changes_its_part() {
    let cell = cell(|_| {});
    let with = |changes| plan(&cell, &ask(changes)).process;
    let p = with(Changes {
        cwd: Some("/tmp".into()),
        env: vec!["A=mine".into(), "B=".into(), "HOME=/h".into()],
        ..Changes::default()
    });
    assert_eq!(p.cwd.as_c_str(), c"/tmp");
    // The last definition counts, where the first one stood.
    assert_eq!(text(&p.env), ["PATH=/bin", "A=mine", "B=", "HOME=/h"]);
    assert!(!p.needs_home);
    let p = with(Changes {
        env: vec!["PATH=/opt:/usr/bin".into()],
        ..Changes::default()
    });
    assert_eq!(text(&p.candidates), ["/opt/ls", "/usr/bin/ls"]);
    let p = with(Changes {
        label: Some("x:y:z".into()),
        apparmor: Some("mine".into()),
        no_new_privs: true,
        tty: true,
        ..Changes::default()
    });
    assert_eq!(p.apparmor.as_deref(), Some(&b"exec mine"[..]));
    assert_eq!(p.selinux.as_deref(), Some(&b"x:y:z"[..]));
    assert!(p.no_new_privs && p.terminal);
}

#[test]
fn users_are_taken_as_they_are() {
    let cell = cell(|_| {});
    let with = |user: Option<UserIds>, groups: &[u32]| {
        let changes = Changes {
            user,
            additional_gids: groups.to_vec(),
            ..Changes::default()
        };
        let p = plan(&cell, &ask(changes)).process;
        assert_eq!(p.umask, Some(0o27));
        (p.uid, p.gid, p.groups)
    };
    let ids = |uid, gid, groups: Option<&[u32]>| {
        Some(UserIds {
            uid,
            gid,
            groups: groups.map(<[u32]>::to_vec),
        })
    };
    // CVE-2026-30892 (crun): `-u 1` became uid 0.
    assert_eq!(with(ids(1, None, None), &[]), (1, 8, vec![9]));
    assert_eq!(with(ids(0, None, None), &[]), (0, 8, vec![9]));
    assert_eq!(with(ids(1, Some(0), None), &[]), (1, 0, vec![9]));
    assert_eq!(
        with(ids(5, Some(6), Some(&[1, 2])), &[]),
        (5, 6, vec![1, 2])
    );
    assert_eq!(with(ids(5, Some(6), Some(&[])), &[]), (5, 6, vec![]));
    assert_eq!(with(None, &[20, 21]), (7, 8, vec![9, 20, 21]));
    assert_eq!(
        with(ids(5, Some(6), Some(&[1])), &[20]),
        (5, 6, vec![1, 20])
    );
}

#[test]
fn added_capabilities_are_never_inheritable() {
    let with = |cell: &Spec, caps: &[&str]| {
        let changes = Changes {
            caps: caps.iter().map(|c| (*c).to_owned()).collect(),
            ..Changes::default()
        };
        let (plan, warnings) = lower(cell, &ask(changes), &context(&[])).unwrap();
        (plan.process.caps, warnings)
    };
    let (caps, warnings) = with(&cell(|_| {}), &["CAP_NET_ADMIN", "CAP_SYS_PTRACE"]);
    assert!(warnings.is_empty(), "{warnings:?}");
    let all = KILL | NET_ADMIN | PTRACE;
    let want = Caps {
        bounding: all,
        effective: all,
        permitted: all,
        inheritable: 0,
        ambient: 0,
    };
    assert_eq!(caps, want);
    // A cell that has inheritable ones of its own keeps those, and no more (CVE-2022-29162).
    let inheriting = cell(|c| {
        c["process"]["capabilities"]["inheritable"] = json!(["CAP_KILL"]);
        c["process"]["capabilities"]["ambient"] = json!(["CAP_KILL"]);
    });
    let (caps, _) = with(&inheriting, &["CAP_NET_ADMIN"]);
    assert_eq!(caps.inheritable, KILL);
    assert_eq!(caps.ambient, KILL | NET_ADMIN);
    let (caps, warnings) = with(&cell(|_| {}), &["CAP_NONESUCH"]);
    assert_eq!((caps.permitted, warnings.len()), (KILL, 1));
    assert!(warnings[0].contains("CAP_NONESUCH"), "{warnings:?}");
    // A cell without any.
    let bare = cell(|c| {
        c["process"].as_object_mut().unwrap().remove("capabilities");
    });
    let (caps, _) = with(&bare, &["CAP_KILL"]);
    let (permitted, inheritable) = (caps.permitted, caps.inheritable);
    assert_eq!((permitted, inheritable, caps.ambient), (KILL, 0, 0));
}

#[test]
fn a_process_given_in_full_takes_from_the_cell_what_it_leaves_out() {
    let cell = cell(|_| {});
    let bare = json!({"user": {"uid": 1, "gid": 2}, "args": ["/bin/x"], "cwd": "/"});
    let plan1 = plan(&cell, &given(bare));
    let p = &plan1.process;
    assert_eq!(text(&p.args), ["/bin/x"]);
    // Nobody's environment, groups and terminal but its own.
    assert!(p.env.is_empty() && !p.terminal && !p.no_new_privs);
    assert_eq!(user(p), (1, 2, &[][..]));
    assert_eq!(p.umask, Some(0o27));
    assert_eq!((p.caps.permitted, p.caps.bounding), (KILL, KILL));
    assert_eq!(p.rlimits, [(libc::RLIMIT_NOFILE, 10, 20)]);
    assert_eq!(p.apparmor.as_deref(), Some(&b"exec cells"[..]));
    assert_eq!(p.selinux.as_deref(), Some(&b"a:b:c"[..]));
    assert_eq!(p.oom_score_adj.as_deref(), Some(&b"5"[..]));
    assert!(p.scheduler.is_some() && p.io_priority.is_some());

    let full = json!({
        "user": {"uid": 1, "gid": 2, "additionalGids": [3], "umask": 0},
        "args": ["/bin/x"], "cwd": "/", "env": ["A=b"],
        "capabilities": {"bounding": ["CAP_NET_ADMIN"]},
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
        "apparmorProfile": "mine", "selinuxLabel": "x:y:z", "oomScoreAdj": -7,
        "noNewPrivileges": true, "terminal": true,
        "consoleSize": {"height": 4, "width": 5},
    });
    let plan2 = plan(&cell, &given(full));
    let p = &plan2.process;
    assert_eq!(text(&p.env), ["A=b"]);
    assert_eq!((user(p), p.umask), ((1, 2, &[3][..]), Some(0)));
    assert_eq!((p.caps.bounding, p.caps.permitted), (NET_ADMIN, 0));
    assert_eq!(p.rlimits, [(libc::RLIMIT_CORE, 0, 0)]);
    assert_eq!(p.apparmor.as_deref(), Some(&b"exec mine"[..]));
    assert_eq!(p.selinux.as_deref(), Some(&b"x:y:z"[..]));
    assert_eq!(p.oom_score_adj.as_deref(), Some(&b"-7"[..]));
    assert!(p.no_new_privs);
    assert_eq!((p.terminal, p.console_size), (true, Some((4, 5))));
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let cell = cell(|_| {});
    let rows = [
        (
            json!({"user": {"uid": 0, "gid": 0}, "cwd": "/"}),
            "process.args",
        ),
        (
            json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": [""]}),
            "process.args[0]",
        ),
        (
            json!({"user": {"uid": 0, "gid": 0}, "cwd": "x", "args": ["a"]}),
            "process.cwd",
        ),
        (
            json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["a"], "env": ["A"]}),
            "process.env[0]",
        ),
        (
            json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["a"],
                "execCPUAffinity": {"final": "3-1"}}),
            "process.execCPUAffinity.final",
        ),
    ];
    for (process, at) in rows {
        let error = lower(&cell, &given(process), &context(&[])).unwrap_err();
        assert!(error.to_string().contains(at), "{at}: {error}");
    }
}

#[test]
fn namespaces_the_cell_made_are_entered_and_others_looked_at() {
    let own = |plan: &ExecPlan, kind: Kind| plan.own & kind as u64 != 0;
    let p = plan(
        &cell(|c| {
            c["linux"]["namespaces"] = json!([
                {"type": "mount"}, {"type": "pid"}, {"type": "user"}, {"type": "time"},
                {"type": "network", "path": "/run/netns/x"}, {"type": "cgroup"},
            ]);
            for map in ["uidMappings", "gidMappings"] {
                c["linux"][map] = json!([{"containerID": 0, "hostID": 1000, "size": 100}]);
            }
        }),
        &ask(Changes::default()),
    );
    for kind in [Kind::Mount, Kind::Pid, Kind::Time, Kind::Cgroup] {
        assert!(own(&p, kind), "{kind:?}");
    }
    // setns(2) refuses the user namespace that one is in already.
    let mut perhaps = p.perhaps.clone();
    perhaps.sort_by_key(|k| k.file());
    assert_eq!(
        perhaps,
        [Kind::Ipc, Kind::Network, Kind::User, Kind::Uts],
        "{perhaps:?}"
    );
}

#[test]
fn keyrings_filters_and_places_are_the_cells() {
    let cell = cell(|c| {
        c["linux"]["personality"] = json!({"domain": "LINUX32"});
        c["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
        c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["bpf"], "action": "SCMP_ACT_ERRNO"}]});
    });
    let kept = Context {
        no_new_keyring: true,
        ..context(&[])
    };
    let (plan, _) = lower(&cell, &ask(Changes::default()), &kept).unwrap();
    assert_eq!(plan.process.keyring, None);
    assert_eq!(plan.process.personality, Some(8));
    let (mode, nodes) = plan.process.mempolicy.unwrap();
    assert_eq!((mode, nodes), (libc::MPOL_BIND, vec![1]));
    assert!(plan.seccomp.is_some_and(|s| !s.insns.is_empty()));
}

#[test]
fn cpus_before_and_after() {
    let got = |value: Value| {
        let cell = cell(|c| c["process"]["execCPUAffinity"] = value);
        let plan = plan(&cell, &ask(Changes::default()));
        (plan.first_cpus, plan.cpus)
    };
    assert_eq!(
        got(json!({"initial": "0-1", "final": "2"})),
        (Some(vec![3]), Some(vec![4]))
    );
    assert_eq!(got(json!({"final": "0"})), (None, Some(vec![1])));
    // The first mask would stay in force otherwise.
    let (first, then) = got(json!({"initial": "1"}));
    assert_eq!(first, Some(vec![2]));
    assert!(then.is_some_and(|all| all.iter().all(|word| *word == u64::MAX)));
    assert_eq!(got(json!({})), (None, None));
}

#[test]
fn groups_below_the_cells() {
    let cell = cell(|_| {});
    let got = |list: &[&str]| {
        let list: Vec<String> = list.iter().map(|t| (*t).to_owned()).collect();
        lower(&cell, &ask(Changes::default()), &context(&list))
            .map(|(plan, _)| {
                let one =
                    |g: &SubGroup| format!("{}:{}", g.controller.as_deref().unwrap_or("*"), g.path);
                plan.groups.iter().map(one).collect::<Vec<_>>().join(" ")
            })
            .map_err(|e| e.to_string())
    };
    for (list, want) in [
        (&["a/b"][..], "*:a/b"),
        (&["/a//b/"], "*:a/b"),
        (&["./a/."], "*:a"),
        (&["/"], "*:"),
        (&["cpu:a"], "cpu:a"),
        (&["cpu,memory:a", "pids:/"], "cpu:a memory:a pids:"),
        (&["a..b/..c"], "*:a..b/..c"),
    ] {
        assert_eq!(got(list).as_deref(), Ok(want), "{list:?}");
    }
    for (list, why) in [
        (&["../.."][..], "`..`"),
        (&["a/../../b"], "`..`"),
        (&["cpu:../x"], "`..`"),
        (&["a\nb"], "control characters"),
        (&["a", "b"], "missing <controller>: prefix"),
        (&["cpu:a", "b"], "missing <controller>: prefix"),
        (&[":a"], "empty <controller> prefix"),
        (&["cpu,:a"], "empty <controller> prefix"),
        (&["cpu:a", "cpu:b"], "specified multiple times"),
    ] {
        let error = got(list).unwrap_err();
        assert!(
            error.contains(why) && error.contains("--cgroup"),
            "{list:?}: {error}"
        );
    }
}
