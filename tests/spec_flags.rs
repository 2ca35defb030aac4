//! Flags → edits, as a table: what is typed, and the lines `gpucell explain` would print. Pure: the host
//! is a fake with 4 CPUs, cgroup v2, swap, no SELinux.

mod flag_host;

use flag_host::{Fake, lines, lines_for, on};

/// Without flags nothing is changed but the customary default (a PATH where the bundle has none).
#[test]
fn no_flags_no_edits() {
    assert_eq!(lines(""), Vec::<String>::new());
}

/// One row: the flags, then the lines they come to.
type Row = (&'static str, &'static [&'static str]);

fn check(rows: &[Row]) {
    for (flags, want) in rows {
        assert_eq!(lines(flags), *want, "flags: {flags}");
    }
}

#[test]
fn memory() {
    check(&[
        (
            "--memory 4g",
            &[
                "= memory limit 4294967296 (--memory 4g)",
                "= memory memory+swap 8589934592 (default: twice --memory)",
            ],
        ),
        (
            "-m 512m",
            &[
                "= memory limit 536870912 (--memory 512m)",
                "= memory memory+swap 1073741824 (default: twice --memory)",
            ],
        ),
        (
            "-m 1.5GiB --memory-swap 2g",
            &[
                "= memory limit 1610612736 (--memory 1.5GiB)",
                "= memory memory+swap 2147483648 (--memory-swap 2g)",
            ],
        ),
        (
            "-m 64m --memory-swap 64m",
            &[
                "= memory limit 67108864 (--memory 64m)",
                "= memory memory+swap 67108864 (--memory-swap 64m)",
            ],
        ),
        (
            "-m 64m --memory-swap -1",
            &[
                "= memory limit 67108864 (--memory 64m)",
                "= memory memory+swap unlimited (--memory-swap -1)",
            ],
        ),
        ("--memory 0", &[]),
        (
            "-m 64m --memory-swap=-1 --memory-reservation 32m",
            &[
                "= memory limit 67108864 (--memory 64m)",
                "= memory memory+swap unlimited (--memory-swap -1)",
                "= memory reservation 33554432 (--memory-reservation 32m)",
            ],
        ),
        (
            "--memory-high 1g",
            &["= memory.high 1073741824 (--memory-high 1g)"],
        ),
        (
            "--memory-swappiness 0",
            &["= memory swappiness 0 (--memory-swappiness 0)"],
        ),
        ("--memory-swappiness -1", &[]),
        (
            "--oom-score-adj -500",
            &["= oom_score_adj -500 (--oom-score-adj -500)"],
        ),
        (
            "--hugetlb 2MB:1g --hugetlb 1g:2g",
            &[
                "= huge pages 2MB 1073741824 bytes (--hugetlb 2MB:1g)",
                "= huge pages 1GB 2147483648 bytes (--hugetlb 1g:2g)",
            ],
        ),
    ]);
}

#[test]
fn memory_on_other_hosts() {
    let v1 = Fake {
        v2: false,
        swap: false,
        ..Fake::default()
    };
    let row = lines_for(&v1, "-m 64m --oom-kill-disable");
    assert_eq!(
        row,
        [
            "= memory limit 67108864 (--memory 64m)",
            "= memory without the OOM killer (--oom-kill-disable)"
        ]
    );
    let warned = on(&v1, "--oom-kill-disable").unwrap().warnings;
    assert!(
        warned[0].starts_with("OOM killer is disabled"),
        "{warned:?}"
    );
    let err = on(&v1, "--memory-high 1g").unwrap_err().to_string();
    assert!(err.contains("cgroup v1"), "{err}");
}

#[test]
fn cpu_processes_io() {
    check(&[
        (
            "--cpus 2.0",
            &["= cpu quota 200000 us period 100000 us (--cpus 2.0)"],
        ),
        (
            "--cpus .5",
            &["= cpu quota 50000 us period 100000 us (--cpus .5)"],
        ),
        (
            "--cpus=0.01",
            &["= cpu quota 1000 us period 100000 us (--cpus 0.01)"],
        ),
        ("--cpus 0", &[]),
        (
            "--cpu-period 50000 --cpu-quota 25000",
            &[
                "= cpu period 50000 us (--cpu-period 50000)",
                "= cpu quota 25000 us (--cpu-quota 25000)",
            ],
        ),
        ("--cpu-quota -1", &["= cpu quota -1 us (--cpu-quota -1)"]),
        ("-c 512", &["= cpu shares 512 (--cpu-shares 512)"]),
        (
            "--cpuset-cpus 0-1,3",
            &["= cpu on CPUs 0-1,3 (--cpuset-cpus 0-1,3)"],
        ),
        (
            "--cpuset-mems 0",
            &["= cpu on memory nodes 0 (--cpuset-mems 0)"],
        ),
        ("--pids-limit 100", &["= pids limit 100 (--pids-limit 100)"]),
        ("--pids-limit -1", &["= pids limit -1 (--pids-limit -1)"]),
        ("--pids-limit 0", &["= pids limit -1 (--pids-limit -1)"]),
        (
            "--blkio-weight 300",
            &["= blkio weight 300 (--blkio-weight 300)"],
        ),
        (
            "--blkio-weight-device /dev/sda:500",
            &["= blkio weight 8:0 500 (--blkio-weight-device /dev/sda:500)"],
        ),
        (
            "--device-read-bps /dev/sda:1mb",
            &["= read bytes/s 8:0 1048576 (--device-read-bps /dev/sda:1mb)"],
        ),
        (
            "--device-write-bps /dev/sda:512k",
            &["= write bytes/s 8:0 524288 (--device-write-bps /dev/sda:512k)"],
        ),
        (
            "--device-read-iops /dev/sda:100 --device-write-iops /dev/sda:50",
            &[
                "= read IO/s 8:0 100 (--device-read-iops /dev/sda:100)",
                "= write IO/s 8:0 50 (--device-write-iops /dev/sda:50)",
            ],
        ),
        (
            "--cgroup-conf memory.low=1048576",
            &["= memory.low 1048576 (--cgroup-conf memory.low=1048576)"],
        ),
    ]);
}

#[test]
fn process() {
    check(&[
        ("-e A=1", &["+ env A=1 (-e A)"]),
        ("-e A=1=2 -e B=", &["+ env A=1=2 (-e A)", "+ env B= (-e B)"]),
        (
            "-e FROM_CALLER",
            &["+ env FROM_CALLER=yes (-e FROM_CALLER)"],
        ),
        ("-e NOT_SET_ANYWHERE", &[]),
        (
            "-e A=1 --env-file /home/me/env",
            &[
                "+ env X=1 (--env-file /home/me/env)",
                "+ env Y=a b (--env-file /home/me/env)",
                "+ env FROM_CALLER=yes (--env-file /home/me/env)",
                "+ env A=1 (-e A)",
            ],
        ),
        ("-w /srv", &["= working directory /srv (-w /srv)"]),
        (
            "-u aiuser",
            &[
                "= user 1000:1001 groups [1001, 44] (-u aiuser)",
                "+ env HOME=/home/aiuser (-u aiuser)",
                "= capabilities CAP_CHOWN CAP_KILL (bounding only: the user is not root) (-u aiuser)",
            ],
        ),
        (
            "-u 1:1",
            &[
                "= user 1:1 groups [1] (-u 1:1)",
                "+ env HOME=/ (-u 1:1)",
                "= capabilities CAP_CHOWN CAP_KILL (bounding only: the user is not root) (-u 1:1)",
            ],
        ),
        (
            "--group-add video --group-add 7",
            &[
                "= user 0:0 groups [44] (--group-add video)",
                "= user 0:0 groups [44, 7] (--group-add 7)",
            ],
        ),
        ("--umask 027", &["= umask 0027 (--umask 027)"]),
        ("-it", &["+ env TERM=xterm (-t)", "= terminal true (-t)"]),
        ("-i", &[]),
        (
            "-t --console-size 80x24",
            &[
                "+ env TERM=xterm (-t)",
                "= terminal true (-t)",
                "= console 80x24 (--console-size 80x24)",
            ],
        ),
        (
            "--ulimit nofile=1024:4096 --ulimit memlock=-1",
            &[
                "= ulimit nofile 1024:4096 (--ulimit nofile=1024:4096)",
                "= ulimit memlock unlimited:unlimited (--ulimit memlock=-1)",
            ],
        ),
        (
            "--entrypoint /bin/ls",
            &["= command [\"/bin/ls\"] (--entrypoint /bin/ls)"],
        ),
        (
            "--init",
            &[
                "+ mount /dev/gpucell-init bind from /usr/bin/tini-static bind,rprivate,ro,nosuid,nodev (--init)",
                "= command [\"/dev/gpucell-init\", \"--\", \"sh\"] (--init)",
            ],
        ),
        (
            "--stop-signal SIGINT",
            &["+ annotation org.opencontainers.image.stopSignal=SIGINT (--stop-signal SIGINT)"],
        ),
        (
            "--annotation a.b=c --label x=y --label flag",
            &[
                "+ annotation a.b=c (--annotation a.b=c)",
                "+ annotation x=y (--label x=y)",
                "+ annotation flag= (--label flag)",
            ],
        ),
        (
            "--cgroup-parent /jobs",
            &["= cgroups path /jobs/cell1 (--cgroup-parent /jobs)"],
        ),
        (
            "--cgroup-parent jobs.slice",
            &["= cgroups path jobs.slice:gpucell:cell1 (--cgroup-parent jobs.slice)"],
        ),
    ]);
}

#[test]
fn mounts() {
    check(&[
        (
            "-v /data:/data",
            &["+ mount /data bind from /data rbind,rprivate (-v /data:/data)"],
        ),
        (
            "-v /data:/data:ro",
            &["+ mount /data bind from /data rbind,rprivate,rro (-v /data:/data:ro)"],
        ),
        (
            "-v /data:/data:ro,z,rshared,noexec",
            &[
                "+ mount /data bind from /data rbind,rshared,rro,noexec (-v /data:/data:ro,z,rshared,noexec)",
            ],
        ),
        (
            "-v ./sub:/data",
            &["+ mount /data bind from /home/me/sub rbind,rprivate (-v ./sub:/data)"],
        ),
        (
            "-v ~/sub:/data",
            &["+ mount /data bind from /home/me/sub rbind,rprivate (-v ~/sub:/data)"],
        ),
        (
            // /home/me belongs to 500:501 on the host; the cell's user is root.
            "-v /home/me/sub:/data:idmap",
            &[
                "+ mount /data bind from /home/me/sub rbind,rprivate,idmap uid 500 shown as 0 gid 501 shown as 0 (-v /home/me/sub:/data:idmap)",
            ],
        ),
        (
            // The source is root's, and so is the cell: nothing to map.
            "-v /data:/data:idmap",
            &["+ mount /data bind from /data rbind,rprivate (-v /data:/data:idmap)"],
        ),
        (
            "-v models:/models",
            &["+ mount /models bind from /volumes/models rbind,rprivate (-v models:/models)"],
        ),
        (
            "--mount type=bind,src=/data,dst=/d,readonly",
            &[
                "+ mount /d bind from /data rbind,rprivate,rro (--mount type=bind,src=/data,dst=/d,readonly)",
            ],
        ),
        (
            "--mount type=bind,source=/data,target=/d,bind-propagation=rslave,bind-recursive=disabled",
            &[
                "+ mount /d bind from /data bind,rslave (--mount type=bind,source=/data,target=/d,bind-propagation=rslave,bind-recursive=disabled)",
            ],
        ),
        (
            "--mount type=bind,src=/data,dst=/d,ro,bind-recursive=writable",
            &[
                "+ mount /d bind from /data rbind,rprivate,ro (--mount type=bind,src=/data,dst=/d,ro,bind-recursive=writable)",
            ],
        ),
        (
            "--mount type=volume,src=models,dst=/m",
            &[
                "+ mount /m bind from /volumes/models rbind,rprivate (--mount type=volume,src=models,dst=/m)",
            ],
        ),
        (
            "--mount src=models,dst=/m",
            &["+ mount /m bind from /volumes/models rbind,rprivate (--mount src=models,dst=/m)"],
        ),
        (
            "--mount type=tmpfs,dst=/t,tmpfs-size=64m,tmpfs-mode=1770",
            &[
                "+ mount /t tmpfs noexec,nosuid,nodev,size=67108864,mode=1770 (--mount type=tmpfs,dst=/t,tmpfs-size=64m,tmpfs-mode=1770)",
            ],
        ),
        (
            "--tmpfs /t",
            &["+ mount /t tmpfs noexec,nosuid,nodev (--tmpfs /t)"],
        ),
        (
            "--tmpfs /t:exec,size=1.5m,mode=1777",
            &[
                "+ mount /t tmpfs nosuid,nodev,exec,size=1572864,mode=1777 (--tmpfs /t:exec,size=1.5m,mode=1777)",
            ],
        ),
        ("--read-only", &["= read-only root true (--read-only=true)"]),
        (
            "--read-only=false",
            &["= read-only root false (--read-only=false)"],
        ),
    ]);
}

#[test]
fn isolation() {
    check(&[
        (
            "--network none",
            &["+ namespace net (new) (--network none)"],
        ),
        (
            "--net host",
            &["- namespace net (the host's is used) (--network host)"],
        ),
        (
            "--network container:other",
            &["+ namespace net /proc/77/ns/net (--network container:other)"],
        ),
        (
            "--pid host",
            &["- namespace pid (the host's is used) (--pid host)"],
        ),
        ("--pid private", &["+ namespace pid (new) (--pid private)"]),
        (
            "--ipc host",
            &[
                "- namespace ipc (the host's is used) (--ipc host)",
                "+ mount /dev/shm bind from /dev/shm rbind,rprivate,nosuid,noexec,nodev (--ipc host)",
                "+ mount /dev/mqueue bind from /dev/mqueue rbind,rprivate,nosuid,noexec,nodev (--ipc host)",
            ],
        ),
        (
            "--ipc none",
            &[
                "+ namespace ipc (new) (--ipc none)",
                "- mount /dev/shm (--ipc none)",
            ],
        ),
        (
            "--uts host",
            &[
                "- namespace uts (the host's is used) (--uts host)",
                "- hostname (--uts host)",
            ],
        ),
        (
            "--cgroupns host",
            &["- namespace cgroup (the host's is used) (--cgroupns host)"],
        ),
        (
            "--hostname box --domainname lab",
            &[
                "= hostname box (--hostname box)",
                "= domainname lab (--domainname lab)",
            ],
        ),
        (
            "--sysctl kernel/msgmax=65536",
            &["= sysctl kernel.msgmax=65536 (--sysctl kernel/msgmax=65536)"],
        ),
        (
            "--cap-drop ALL --cap-add net_admin",
            &["= capabilities CAP_NET_ADMIN (--cap-drop ALL --cap-add net_admin)"],
        ),
        (
            "--cap-add CAP_SYS_ADMIN --cap-drop chown",
            &["= capabilities CAP_KILL CAP_SYS_ADMIN (--cap-drop chown --cap-add CAP_SYS_ADMIN)"],
        ),
        (
            "--cap-add all --cap-drop kill",
            &["= capabilities CAP_CHOWN CAP_SYS_ADMIN (--cap-drop kill --cap-add all)"],
        ),
        ("--cap-drop ALL", &["= capabilities none (--cap-drop ALL)"]),
        (
            "--security-opt no-new-privileges",
            &["= no_new_privs true (--security-opt no-new-privileges)"],
        ),
        (
            "--security-opt no-new-privileges:false",
            &["= no_new_privs false (--security-opt no-new-privileges:false)"],
        ),
        (
            "--security-opt seccomp=unconfined",
            &["- seccomp filter (--security-opt seccomp=unconfined)"],
        ),
        (
            "--security-opt seccomp=/home/me/profile.json",
            &["= seccomp filter (--security-opt seccomp=/home/me/profile.json)"],
        ),
        (
            "--security-opt apparmor=tight",
            &["= apparmor tight (--security-opt apparmor=tight)"],
        ),
        (
            "--security-opt apparmor=unconfined",
            &["- apparmor profile (--security-opt apparmor=unconfined)"],
        ),
        (
            "--security-opt label=disable",
            &["- selinux labels (--security-opt label=disable)"],
        ),
        (
            "--security-opt systempaths=unconfined",
            &["- masked and read-only paths (--security-opt systempaths=unconfined)"],
        ),
        (
            "--device /dev/fuse",
            &["+ device /dev/fuse c 10:229 rwm (--device /dev/fuse)"],
        ),
        (
            "--device /dev/fuse:r",
            &["+ device /dev/fuse c 10:229 r (--device /dev/fuse:r)"],
        ),
        (
            "--device /dev/sda:/dev/xvda:rw",
            &["+ device /dev/xvda from /dev/sda b 8:0 rw (--device /dev/sda:/dev/xvda:rw)"],
        ),
        (
            "--device /dev/dri",
            &[
                "+ device /dev/dri/card0 c 226:0 rwm (--device /dev/dri)",
                "+ device /dev/dri/renderD128 c 226:128 rwm (--device /dev/dri)",
            ],
        ),
    ]);
    let words = ["--device-cgroup-rule", "c 1:* rw"];
    assert_eq!(
        flag_host::lines_of(&Fake::default(), &words),
        ["+ device rule allow c 1:* rw (--device-cgroup-rule 'c 1:* rw')"]
    );
}

#[test]
fn privileged_is_all_of_it() {
    let words = "--privileged --cap-drop ALL";
    assert_eq!(
        lines(words),
        [
            "- seccomp filter (--privileged)",
            "- apparmor profile (--privileged)",
            "- selinux labels (--privileged)",
            "- masked and read-only paths (--privileged)",
            "+ device rule allow a *:* rwm (--privileged)",
            "+ device /dev/dri/card0 c 226:0 rwm (--privileged)",
            "+ device /dev/fuse c 10:229 rwm (--privileged)",
            "+ device /dev/sda b 8:0 rwm (--privileged)",
            "= capabilities CAP_CHOWN CAP_KILL CAP_SYS_ADMIN (--privileged --cap-drop ALL)",
        ]
    );
}

#[test]
fn selinux_labels() {
    let host = Fake {
        selinux: true,
        ..Fake::default()
    };
    assert_eq!(
        lines_for(
            &host,
            "--security-opt label=type:spc_t --security-opt label=level:s0:c1,c2"
        ),
        [
            "= selinux label system_u:system_r:spc_t:s0 (--security-opt label=type:spc_t)",
            "= selinux label system_u:system_r:spc_t:s0:c1,c2 (--security-opt label=level:s0:c1,c2)",
        ]
    );
    assert!(
        on(&host, "-v /data:/data:Z")
            .unwrap_err()
            .to_string()
            .contains("chcon")
    );
    let off = on(&Fake::default(), "--security-opt label=type:spc_t").unwrap();
    assert_eq!(off.edits, []);
    assert_eq!(off.warnings.len(), 1);
}

#[test]
fn shm_follows_the_memory_limit() {
    let host = Fake {
        shm: Some("size=65536k"),
        ..Fake::default()
    };
    let shm = |flags: &str| {
        let all = lines_for(&host, flags);
        all.into_iter().find(|l| l.contains("/dev/shm"))
    };
    assert_eq!(shm(""), None);
    assert_eq!(
        shm("--memory 4g").unwrap(),
        "+ mount /dev/shm tmpfs from shm nosuid,size=4294967296 (default: the memory limit)"
    );
    assert_eq!(
        shm("--memory 4g --shm-size 1g").unwrap(),
        "+ mount /dev/shm tmpfs from shm nosuid,size=1073741824 (--shm-size 1g)"
    );
    let own = Fake {
        shm: Some("size=8m"),
        ..Fake::default()
    };
    assert!(
        !lines_for(&own, "-m 4g")
            .iter()
            .any(|l| l.contains("/dev/shm"))
    );
    assert_eq!(
        lines("--shm-size 1m"),
        [
            "+ mount /dev/shm tmpfs from shm nosuid,noexec,nodev,mode=1777,size=1048576 (--shm-size 1m)"
        ]
    );
}
