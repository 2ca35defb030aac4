//! Flags that are refused, and in which words: Docker's. The host is the fake one of `flag_host`.

mod flag_host;

use flag_host::refused;

/// The flags, and a part of what is said.
#[test]
fn refusals_in_dockers_words() {
    let rows: &[(&str, &str)] = &[
        (
            "-m 4x",
            "invalid argument \"4x\" for \"-m, --memory\" flag: invalid suffix: 'x'",
        ),
        ("-m lots", "invalid size: 'lots'"),
        (
            "--memory-swap 1g",
            "You should always set the Memory limit when using Memoryswap limit",
        ),
        (
            "-m 1g --memory-swap 512m",
            "Minimum memoryswap limit should be larger than memory limit",
        ),
        (
            "-m 1g --memory-reservation 2g",
            "can not be less than memory reservation limit",
        ),
        ("-m 1g --memory-high 2g", "above the memory limit"),
        (
            "--memory-swappiness 101",
            "valid memory swappiness range is 0-100",
        ),
        ("--oom-kill-disable", "--memory-high"),
        (
            "--oom-score-adj 2000",
            "range for oom score adj is [-1000, 1000]",
        ),
        (
            "--cpus 5",
            "Range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs available",
        ),
        ("--cpus 0.001", "Range of CPUs is from 0.01"),
        ("--cpus two", "failed to parse 'two' as a rational number"),
        (
            "--cpus 1 --cpu-quota 1000",
            "Nano CPUs and CPU Quota cannot both be set",
        ),
        (
            "--cpus 1 --cpu-period 1000",
            "Nano CPUs and CPU Period cannot both be set",
        ),
        ("--cpu-period 10", "CPU cfs period can not be less than 1ms"),
        ("--cpu-quota 10", "CPU cfs quota can not be less than 1ms"),
        ("--cpu-shares -1", "invalid CPU shares (-1)"),
        (
            "--cpuset-cpus 0-9",
            "Requested CPUs are not available - requested 0-9, available: 0-3",
        ),
        ("--cpuset-cpus x", "Invalid value x for cpuset cpus"),
        (
            "--cpuset-mems 1",
            "Requested memory nodes are not available",
        ),
        ("--pids-limit -2", "invalid pids limit"),
        (
            "--blkio-weight 5",
            "Range of blkio weight is from 10 to 1000",
        ),
        (
            "--device-read-bps sda:1mb",
            "bad format for device path: sda:1mb",
        ),
        (
            "--device-read-bps /dev/sda:x",
            "invalid rate for device: /dev/sda:x",
        ),
        (
            "--device-read-bps /dev/fuse:1mb",
            "/dev/fuse is not a block device",
        ),
        ("--hugetlb 2MB", "PAGE:SIZE is expected"),
        ("--hugetlb 2:1g", "invalid size: '2'"),
        ("-e =1", "invalid environment variable: =1"),
        ("--env-file /nowhere", "--env-file /nowhere: "),
        (
            "--env-file /home/me/badenv",
            "variable 'A B' contains whitespaces",
        ),
        (
            "-w srv",
            "the working directory 'srv' is invalid, it needs to be an absolute path",
        ),
        (
            "-u nobody-here",
            "unable to find user nobody-here: no matching entries in passwd file",
        ),
        ("-u root:nogroup", "unable to find group nogroup"),
        ("--group-add nogroup", "unable to find group nogroup"),
        ("--umask 9", "an octal mask is expected"),
        ("--ulimit files=1", "invalid ulimit type: files"),
        ("--stop-signal SIGNOPE", "invalid signal: SIGNOPE"),
        ("--annotation x", "KEY=VALUE is expected"),
        ("--console-size 80", "COLUMNSxROWS"),
        (
            "-v /nowhere:/data",
            "bind source path does not exist: /nowhere",
        ),
        ("-v /data", "anonymous volumes are not supported"),
        ("-v /data:data", "mount path must be absolute"),
        ("-v /data:/", "destination can't be '/'"),
        ("-v /data:/d:rx", "invalid mode: rx"),
        ("-v /data:/d:ro:rw", "too many colons"),
        ("-v ::", "the source is empty"),
        (
            "-v a*b:/d",
            "includes invalid characters for a local volume name",
        ),
        ("-v models:/d:idmap", "idmap needs a host directory"),
        ("-v /data:/d --tmpfs /d/", "Duplicate mount point: /d/"),
        ("--mount type=bind,src=/data", "target is required"),
        (
            "--mount type=bind,dst=/d",
            "source is required when type=bind",
        ),
        (
            "--mount type=bind,src=/data,dst=/d,tmpfs-size=1m",
            "cannot mix 'tmpfs-*' options with mount type 'bind'",
        ),
        (
            "--mount src=models,dst=/d,bind-propagation=shared",
            "cannot mix 'bind-*' options with mount type 'volume'",
        ),
        (
            "--mount type=tmpfs,dst=/d,volume-nocopy",
            "cannot mix 'volume-*' options with mount type 'tmpfs'",
        ),
        (
            "--mount type=tmpfs,src=a,dst=/d",
            "source is not allowed when type=tmpfs",
        ),
        (
            "--mount type=nfs,src=a,dst=/d",
            "invalid mount type \"nfs\"",
        ),
        (
            "--mount type=bind,src=/data,dst=/d,colour=red",
            "unexpected key 'colour' in 'colour=red'",
        ),
        (
            "--mount type=bind,src=/data,dst=/d,colour",
            "invalid field 'colour' must be a key=value pair",
        ),
        ("--tmpfs t", "mount path must be absolute"),
        ("--tmpfs /t:size=x", "Invalid tmpfs option \"size=x\""),
        ("--shm-size 0", "SHM size"),
        (
            "--shm-size 1m --ipc host",
            "conflicting options: --shm-size and --ipc host",
        ),
        ("--network bridge", "gpucell makes no bridges"),
        (
            "--network br0",
            "invalid --network mode \"br0\": host, none, container:NAME are possible",
        ),
        ("--network container:gone", "No such container: gone"),
        ("--pid none", "invalid --pid mode"),
        (
            "--uts host --hostname x",
            "conflicting options: hostname and the UTS mode",
        ),
        ("--hostname a/b", "invalid hostname format: a/b"),
        ("--sysctl x", "KEY=VALUE is expected"),
        (
            "--net host --sysctl net.core.somaxconn=1",
            "not allowed in host network namespace",
        ),
        ("--cap-add FLY", "unknown capability: \"CAP_FLY\""),
        (
            "--security-opt shield=up",
            "invalid --security-opt: \"shield=up\"",
        ),
        (
            "--security-opt nothing",
            "invalid --security-opt: \"nothing\"",
        ),
        (
            "--security-opt seccomp=/nowhere",
            "opening seccomp profile (/nowhere) failed",
        ),
        (
            "--security-opt seccomp=/home/me/env",
            "seccomp profile /home/me/env: decoding",
        ),
        (
            "--device /dev/none",
            "error gathering device information while adding custom device \"/dev/none\"",
        ),
        ("--device /dev/fuse:x:rwx", "bad mode specified: rwx"),
        ("--device fuse", "fuse is not an absolute path"),
        (
            "--device a=b",
            "a=b is neither a path nor a CDI device (vendor/class=name)",
        ),
        ("--device-cgroup-rule c", "invalid device cgroup format 'c'"),
        ("--add-host x", "bad format for add-host"),
        ("--add-host x:y", "invalid IP address in add-host"),
        ("--dns x", "x is not an ip address"),
        ("--cgroup-parent a/../b", "a cgroup path is expected"),
    ];
    for (flags, want) in rows {
        let said = refused(flags);
        assert!(
            said.contains(want),
            "flags: {flags}\nsaid: {said}\nwant: {want}"
        );
    }
}
