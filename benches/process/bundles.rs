//! The bundles that runtimes are compared on.
//!
//! minimal: what a runtime cannot do without. docker: what dockerd hands a runtime for `docker run`
//! with no flags (six namespaces, twelve mounts, fourteen capabilities, masked paths, the device list,
//! a seccomp profile). gpu: that, with the files and nodes of a driver: 30 read-only binds, 6 nodes.
//! asks: docker, whose environment asks for all GPUs and all of the driver.
//! Beside each lies NAME-lasting: the same cell with a program that goes on, to run another one in.
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The same kind of filter as Docker's: an allow list for three architectures with a few arguments.
const SECCOMP: &str = include_str!("seccomp.json");

const CAPS: &str = r#"["CAP_CHOWN","CAP_DAC_OVERRIDE","CAP_FSETID","CAP_FOWNER","CAP_MKNOD","CAP_NET_RAW","CAP_SETGID","CAP_SETUID","CAP_SETFCAP","CAP_SETPCAP","CAP_NET_BIND_SERVICE","CAP_SYS_CHROOT","CAP_KILL","CAP_AUDIT_WRITE"]"#;

const MASKED: &str = r#"["/proc/asound","/proc/acpi","/proc/interrupts","/proc/kcore","/proc/keys","/proc/latency_stats","/proc/timer_list","/proc/timer_stats","/proc/sched_debug","/proc/scsi","/sys/firmware","/sys/devices/virtual/powercap"]"#;

const READONLY: &str = r#"["/proc/bus","/proc/fs","/proc/irq","/proc/sys","/proc/sysrq-trigger"]"#;

/// The device cgroup's list as dockerd writes it: deny all, then the standard nodes.
const DEVICES: &str = r#"{"allow":false,"access":"rwm"},
      {"allow":true,"type":"c","major":1,"minor":5,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"},
      {"allow":true,"type":"c","major":1,"minor":9,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":8,"access":"rwm"},
      {"allow":true,"type":"c","major":5,"minor":0,"access":"rwm"},{"allow":true,"type":"c","major":5,"minor":1,"access":"rwm"},
      {"allow":false,"type":"c","major":10,"minor":229,"access":"rwm"}"#;

pub fn make(dir: &Path, program: &Path) -> Result<(), String> {
    let io = |what: &Path| {
        let what = what.display().to_string();
        move |e: std::io::Error| format!("{what}: {e}")
    };
    let host = dir.join("host");
    for name in ["minimal", "docker", "gpu", "asks", "asks-one"] {
        let root = dir.join(name).join("rootfs");
        for sub in ["bin", "dev", "proc", "sys", "tmp", "etc", "usr/lib/driver"] {
            fs::create_dir_all(root.join(sub)).map_err(io(&root))?;
        }
        let to = root.join("bin/true");
        fs::copy(program, &to).map_err(io(program))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).map_err(io(&to))?;
        for file in ["hosts", "hostname", "resolv.conf"] {
            fs::write(root.join("etc").join(file), "").map_err(io(&root))?;
        }
        let hello = root.join("bin/hello");
        fs::copy(program.with_file_name("hello"), &hello).map_err(io(&hello))?;
        let lasting = dir.join(format!("{name}-lasting"));
        fs::create_dir_all(&lasting).map_err(io(&lasting))?;
        let words = r#""/bin/hello","sleep","1000""#;
        for (at, root, args) in [
            (dir.join(name), Path::new("rootfs"), r#""/bin/true""#),
            (lasting, &root, words),
        ] {
            let config = at.join("config.json");
            fs::write(&config, json(name, root, args, &host)).map_err(io(&config))?;
        }
    }
    fs::create_dir_all(&host).map_err(io(&host))?;
    for file in ["hosts", "hostname", "resolv.conf"] {
        fs::write(host.join(file), "127.0.0.1 localhost\n").map_err(io(&host))?;
    }
    for i in 0..30 {
        fs::write(host.join(format!("libdriver{i}.so")), vec![b'x'; 4096]).map_err(io(&host))?;
    }
    Ok(())
}

fn bind(source: &Path, target: &str, options: &str) -> String {
    format!(
        r#"{{"destination":"{target}","type":"bind","source":"{}","options":["rbind",{options}]}}"#,
        source.display()
    )
}

/// The configuration: where the root is, the program's words as JSON has them.
fn json(name: &str, root: &Path, args: &str, host: &Path) -> String {
    let root = root.display();
    let full = name != "minimal";
    let mut mounts = vec![r#"{"destination":"/proc","type":"proc","source":"proc","options":["nosuid","noexec","nodev"]}"#.to_string()];
    if full {
        mounts.extend([
            r#"{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","strictatime","mode=755","size=65536k"]}"#.to_string(),
            r#"{"destination":"/dev/pts","type":"devpts","source":"devpts","options":["nosuid","noexec","newinstance","ptmxmode=0666","mode=0620","gid=5"]}"#.to_string(),
            r#"{"destination":"/sys","type":"sysfs","source":"sysfs","options":["nosuid","noexec","nodev","ro"]}"#.to_string(),
            r#"{"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup","options":["ro","nosuid","noexec","nodev"]}"#.to_string(),
            r#"{"destination":"/dev/mqueue","type":"mqueue","source":"mqueue","options":["nosuid","noexec","nodev"]}"#.to_string(),
            r#"{"destination":"/dev/shm","type":"tmpfs","source":"shm","options":["nosuid","noexec","nodev","mode=1777","size=67108864"]}"#.to_string(),
            bind(&host.join("resolv.conf"), "/etc/resolv.conf", r#""rprivate""#),
            bind(&host.join("hostname"), "/etc/hostname", r#""rprivate""#),
            bind(&host.join("hosts"), "/etc/hosts", r#""rprivate""#),
            bind(host, "/data", r#""rprivate","ro""#),
            r#"{"destination":"/run","type":"tmpfs","source":"tmpfs","options":["nosuid","nodev","mode=755"]}"#.to_string(),
        ]);
    }
    let mut nodes = String::new();
    let mut rules = DEVICES.to_string();
    if name == "gpu" {
        for i in 0..30 {
            let file = format!("libdriver{i}.so");
            let target = format!("/usr/lib/driver/{file}");
            mounts.push(bind(
                &host.join(&file),
                &target,
                r#""ro","nosuid","nodev","rprivate""#,
            ));
        }
        let gpu = [
            ("nvidia0", 195, 0),
            ("nvidia1", 195, 1),
            ("nvidiactl", 195, 255),
            ("nvidia-modeset", 195, 254),
            ("nvidia-uvm", 510, 0),
            ("nvidia-uvm-tools", 510, 1),
        ];
        let list: Vec<String> = gpu
            .iter()
            .map(|(n, a, b)| format!(r#"{{"path":"/dev/{n}","type":"c","major":{a},"minor":{b},"fileMode":438,"uid":0,"gid":0}}"#))
            .collect();
        nodes = format!("\"devices\": [{}],", list.join(","));
        for (_, a, b) in gpu {
            rules +=
                &format!(r#",{{"allow":true,"type":"c","major":{a},"minor":{b},"access":"rw"}}"#);
        }
    }
    let process = if full {
        format!(
            r#""capabilities":{{"bounding":{CAPS},"effective":{CAPS},"permitted":{CAPS}}},"oomScoreAdj":0,"#
        )
    } else {
        String::new()
    };
    let namespaces = if full {
        r#"[{"type":"mount"},{"type":"network"},{"type":"uts"},{"type":"pid"},{"type":"ipc"},{"type":"cgroup"}]"#
    } else {
        r#"[{"type":"mount"},{"type":"pid"}]"#
    };
    let linux = if full {
        format!(
            r#""resources":{{"devices":[{rules}]}}, {nodes}
    "sysctl":{{"net.ipv4.ip_unprivileged_port_start":"0","net.ipv4.ping_group_range":"0 2147483647"}},
    "maskedPaths":{MASKED}, "readonlyPaths":{READONLY},
    "seccomp":{SECCOMP},"#
        )
    } else {
        String::new()
    };
    let env = match name {
        "asks" => r#","NVIDIA_VISIBLE_DEVICES=all","NVIDIA_DRIVER_CAPABILITIES=all""#,
        "asks-one" => {
            r#","NVIDIA_VISIBLE_DEVICES=0","NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics""#
        }
        _ => "",
    };
    let hostname = if full { r#""hostname":"bench","# } else { "" };
    // 1.0.2: the newest version that all the peers of Debian 12 accept.
    format!(
        r#"{{"ociVersion":"1.0.2", {hostname} "root":{{"path":"{root}","readonly":false}},
  "process":{{"terminal":false,"user":{{"uid":0,"gid":0}},"args":[{args}],"env":["PATH=/bin"{env}],{process}"cwd":"/"}},
  "mounts":[{}],
  "linux":{{{linux}
    "cgroupsPath":"/gpucell-test-bench", "namespaces":{namespaces}}}}}
"#,
        mounts.join(",\n    ")
    )
}
