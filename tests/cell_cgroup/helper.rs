//! Groups to test in, and the programs run in them (this test binary again, told by an
//! environment variable what to do).

use crate::programs::install;
use gpucell::cgroup::{
    self, Cgroup, CgroupState, DEFAULT_RULES, DeviceRule, Driver, Host, Mode, Request,
};
use nix::sys::stat::{Mode as Bits, SFlag, makedev, mknod};
use oci_spec::runtime::LinuxResources;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const TASK: &str = "GPUCELL_TEST_TASK";

/// What the children do.
pub fn entry() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let mut words = task.split(' ');
    let verb = words.next().unwrap();
    let arg = words.next().unwrap_or("");
    let number = |text: Option<&str>| text.unwrap().parse::<u64>().unwrap();
    match verb {
        "true" => std::process::exit(0),
        "hog" => {
            let n = number(Some(arg)) as usize;
            let mut kept = Vec::new();
            for _ in 0..n {
                kept.push(std::hint::black_box(vec![1u8; 1 << 20]));
            }
            std::process::exit(i32::from(kept.len() != n));
        }
        "spin" => loop {
            std::hint::spin_loop();
        },
        "count" => {
            let mut f = OpenOptions::new().append(true).open(arg).unwrap();
            loop {
                f.write_all(b".").unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        "sleep" => loop {
            std::thread::sleep(Duration::from_secs(1000));
        },
        "forks" => {
            let mut made = 0;
            for _ in 0..number(Some(arg)) {
                if Command::new("sleep").arg("1000").spawn().is_ok() {
                    made += 1;
                }
            }
            std::process::exit(made);
        }
        "open" => {
            let mode = words.next().unwrap();
            let r = OpenOptions::new()
                .read(mode.contains('r'))
                .write(mode.contains('w'))
                .open(arg);
            std::process::exit(r.err().map_or(0, |e| e.raw_os_error().unwrap()));
        }
        "mknod" => {
            let dev = makedev(number(words.next()), number(words.next()));
            let r = mknod(arg, SFlag::S_IFCHR, Bits::S_IRUSR | Bits::S_IWUSR, dev);
            std::process::exit(r.err().map_or(0, |e| e as i32));
        }
        "rootless" => {
            eprintln!("{}", rootless(arg));
            std::process::exit(0);
        }
        other => panic!("task {other}"),
    }
}

/// What a cell without privilege gets, asking for the limits given (as JSON): the group's path
/// and its limit as read back, `no group`, or the error.
fn rootless(json: &str) -> String {
    let resources = res(json);
    let made = cgroup::plan(&Request {
        id: "test-rootless",
        cgroups_path: None,
        resources: Some(&resources),
        extra_devices: &DEFAULT_RULES,
        annotations: None,
        driver: Driver::Cgroupfs,
        rootless: true,
    })
    .and_then(|plan| plan.create(&mut Default::default()));
    let made = match made {
        Ok(made) => made,
        Err(e) => return format!("error: {e}"),
    };
    let paths = made.state().paths();
    let limit = paths
        .iter()
        .find_map(|p| fs::read_to_string(format!("{p}/pids.max")).ok());
    let text = match made.clone_fd() {
        Some(_) => format!("group {} pids.max {}", paths[0], limit.unwrap().trim()),
        None => "no group".to_owned(),
    };
    made.state().remove().unwrap();
    text
}

/// A copy of this binary that every user can run, in a folder that every user can enter.
pub fn public_copy() -> (tempfile::TempDir, PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test");
    install(std::env::current_exe().unwrap(), &path);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    (dir, path)
}

pub const ENTRY: [&str; 3] = ["helper_entry", "--exact", "--nocapture"];

pub fn task_variable(task: &str) -> String {
    format!("{TASK}={task}")
}

pub fn host() -> Host {
    assert!(nix::unistd::geteuid().is_root(), "these tests need root");
    Host::detect().unwrap()
}

pub fn res(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

pub struct TestCell {
    group: Option<Cgroup>,
    v2_alone: bool,
}

impl TestCell {
    pub fn new(name: &str, json: &str) -> Self {
        Self::try_new(name, json).unwrap()
    }

    pub fn try_new(name: &str, json: &str) -> gpucell::Result<Self> {
        Self::make(&host(), &format!("test-{name}"), None, json, &DEFAULT_RULES)
    }

    pub fn on(host: &Host, name: &str, json: &str, rules: &[DeviceRule]) -> Self {
        Self::make(host, &format!("test-{name}"), None, json, rules).unwrap()
    }

    pub fn at(path: &str, json: &str) -> Self {
        Self::make(&host(), "test-x", Some(path), json, &DEFAULT_RULES).unwrap()
    }

    fn make(
        host: &Host,
        id: &str,
        path: Option<&str>,
        json: &str,
        rules: &[DeviceRule],
    ) -> gpucell::Result<Self> {
        println!("mode {}", host.mode);
        let resources = res(json);
        let plan = cgroup::plan_on(
            &Request {
                id,
                cgroups_path: path.map(Path::new),
                resources: Some(&resources),
                extra_devices: rules,
                annotations: None,
                driver: Driver::Cgroupfs,
                rootless: false,
            },
            host,
        )?;
        // What later commands see comes from disk.
        let saved = serde_json::to_string(&plan.saved()).unwrap();
        let group = plan.create(&mut Default::default())?;
        assert_eq!(
            &serde_json::from_str::<CgroupState>(&saved).unwrap(),
            group.state()
        );
        Ok(TestCell {
            group: Some(group),
            v2_alone: host.mode == Mode::V2,
        })
    }

    pub fn group(&self) -> &Cgroup {
        self.group.as_ref().unwrap()
    }

    pub fn state(&self) -> &CgroupState {
        self.group().state()
    }

    /// Groups above that this one brought with it.
    pub fn parents(&self) -> &[String] {
        let s = self.state();
        &s.v2.as_ref().or(s.v1.first()).unwrap().parents
    }

    /// Runs a task in the group. The child joins by itself, then becomes the program.
    pub fn spawn(&self, verb: &str, arg: &str) -> Child {
        let mut joins: Vec<String> = Vec::new();
        if let Some(g) = &self.state().v2 {
            joins.push(format!("{}/cgroup.procs", g.full_path()));
        }
        for f in self.group().join_files() {
            joins.push(f.to_str().unwrap().to_owned());
        }
        assert_eq!(self.group().cgroup_ns_late(), !self.v2_alone);
        Command::new("sh")
            .arg("-c")
            .arg(r#"exe=$1; shift; for f; do echo 0 > "$f" || exit 99; done; exec "$exe" helper_entry --exact --nocapture"#)
            .arg("sh")
            .arg(std::env::current_exe().unwrap())
            .args(joins)
            .env(TASK, format!("{verb} {arg}"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// A control file of whichever hierarchy has it.
    pub fn read(&self, file: &str) -> Option<String> {
        self.state().paths().iter().find_map(|dir| {
            let text = fs::read_to_string(format!("{dir}/{file}")).ok()?;
            Some(text.trim().to_owned())
        })
    }

    /// The errno of opening a file in the group; 0 for success.
    pub fn open(&self, path: &Path, mode: &str) -> i32 {
        let task = format!("{} {mode}", path.display());
        self.spawn("open", &task).wait().unwrap().code().unwrap()
    }

    pub fn mknod(&self, path: &Path, major: u32, minor: u32) -> i32 {
        let task = format!("{} {major} {minor}", path.display());
        self.spawn("mknod", &task).wait().unwrap().code().unwrap()
    }

    /// A denied device stays shut (EPERM) and opens, as far as there is a driver (ENXIO), after
    /// an update allows it; the devices that every cell has stay open throughout.
    pub fn check_devices(&self, nodes: &Nodes, gpu: &Path, null: &Path) {
        let filters = || match self.group().clone_fd() {
            Some(fd) => cgroup::count_filters(fd, "test").unwrap(),
            None => 1,
        };
        assert_eq!(filters(), 1);
        assert_eq!(self.open(gpu, "r"), libc::EPERM);
        assert_eq!(self.open(gpu, "rw"), libc::EPERM);
        assert_eq!(self.open(null, "rw"), 0);
        assert_eq!(self.mknod(&nodes.path("made"), 195, 7), 0);
        assert_eq!(self.open(&nodes.path("made"), "r"), libc::EPERM);

        let allow = res(r#"{"devices":[{"allow":false,"access":"rwm"},
            {"allow":true,"type":"c","major":195,"minor":0,"access":"rw"}]}"#);
        self.state().update(&allow).unwrap();
        let got = self.open(gpu, "r");
        assert!([libc::ENXIO, 0].contains(&got), "errno {got}");
        assert_eq!(self.open(&nodes.path("made"), "r"), libc::EPERM);
        assert_eq!(self.open(null, "rw"), 0);
        assert_eq!(filters(), 1, "replaced, not added");

        let deny = res(r#"{"devices":[{"allow":false,"access":"rwm"}]}"#);
        self.state().update(&deny).unwrap();
        assert_eq!(self.open(gpu, "r"), libc::EPERM);
        // Limits alone leave the filter as it is.
        self.state().update(&res("{}")).unwrap();
        assert_eq!(self.open(gpu, "r"), libc::EPERM);
        assert_eq!(filters(), 1);
    }

    /// Removes the groups and checks that they are gone.
    pub fn remove(mut self) {
        let group = self.group.take().unwrap();
        group.state().remove().unwrap();
        for p in group.state().paths() {
            assert!(!Path::new(&p).exists(), "{p} is left");
        }
        // Once more is no error.
        group.state().remove().unwrap();
    }

    /// Leaves the groups, as a crash does.
    pub fn abandon(mut self) {
        self.group = None;
    }
}

impl Drop for TestCell {
    fn drop(&mut self) {
        if let Some(g) = self.group.take() {
            let _ = g.state().remove();
        }
    }
}

/// Groups made by hand in the v1 hierarchies.
pub struct Made(Vec<String>);

impl Made {
    pub fn new(host: &Host, name: &str) -> Self {
        let dirs: Vec<_> = host
            .v1
            .iter()
            .map(|m| format!("{}/{name}", m.mount))
            .collect();
        for d in &dirs {
            fs::create_dir(d).unwrap();
        }
        Made(dirs)
    }

    pub fn read(&self, file: &str) -> Option<String> {
        let text = |d: &String| fs::read_to_string(format!("{d}/{file}")).ok();
        self.0.iter().find_map(text).map(|t| t.trim().to_owned())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for d in &self.0 {
            let _ = fs::remove_dir(d);
        }
    }
}

/// A folder of device nodes.
pub struct Nodes(tempfile::TempDir);

impl Nodes {
    /// In the first place that is not mounted `nodev` (where opening is EACCES for another reason).
    pub fn new(name: &str) -> Self {
        let places = [std::env::temp_dir(), "/var/tmp".into(), "/dev".into()];
        let find = |place: &PathBuf| {
            let dir = tempfile::Builder::new()
                .prefix(&format!("gpucell-cgroup-{name}-"))
                .tempdir_in(place)
                .ok()?;
            let nodes = Nodes(dir);
            let probe = nodes.make("probe", 1, 3);
            OpenOptions::new().read(true).open(probe).ok()?;
            Some(nodes)
        };
        let found = places.iter().find_map(find);
        found.expect("a place where device nodes work")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn make(&self, name: &str, major: u64, minor: u64) -> PathBuf {
        let path = self.path(name);
        let bits = Bits::S_IRUSR | Bits::S_IWUSR;
        mknod(&path, SFlag::S_IFCHR, bits, makedev(major, minor)).unwrap();
        path
    }
}

/// Puts the v2 root's subtree_control back as it was.
pub struct KeepControllers(Option<(String, String)>);

impl KeepControllers {
    pub fn new() -> Self {
        KeepControllers(host().v2.map(|m| {
            let file = format!("{m}/cgroup.subtree_control");
            let text = fs::read_to_string(&file).unwrap();
            (file, text)
        }))
    }
}

impl Drop for KeepControllers {
    fn drop(&mut self) {
        let Some((file, before)) = &self.0 else {
            return;
        };
        for c in fs::read_to_string(file).unwrap().split_whitespace() {
            if !before.split_whitespace().any(|b| b == c)
                && let Err(e) = fs::write(file, format!("-{c}"))
            {
                println!("-{c}: {e}");
            }
        }
    }
}

pub fn assert_clean(name: &str) {
    let h = host();
    for m in h.v1.iter().map(|m| &m.mount).chain(&h.v2) {
        let path = format!("{m}/{name}");
        assert!(!Path::new(&path).exists(), "{path} is left");
    }
}

pub fn disk() -> Option<(String, String)> {
    fs::read_dir("/sys/block").ok()?.find_map(|e| {
        let e = e.ok()?;
        let name = e.file_name().into_string().ok()?;
        let real = ["vd", "sd", "nvme"].iter().any(|p| name.starts_with(p));
        let dev = fs::read_to_string(e.path().join("dev")).ok()?;
        real.then(|| (name, dev.trim().to_owned()))
    })
}

/// Huge page sizes as control files name them.
pub fn huge_page_sizes() -> Vec<String> {
    let Ok(dir) = fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    dir.filter_map(|e| {
        let name = e.ok()?.file_name().into_string().ok()?;
        let kb: u64 = name
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        Some(match kb {
            k if k >= 1 << 20 => format!("{}GB", k >> 20),
            k if k >= 1 << 10 => format!("{}MB", k >> 10),
            k => format!("{k}KB"),
        })
    })
    .collect()
}

/// User and system time of a process, in ticks of 10 ms; 0 when it is gone.
pub fn cpu_ticks(pid: u32) -> u64 {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return 0;
    };
    let rest = &text[text.rfind(')').unwrap() + 2..];
    let field = |n: usize| rest.split(' ').nth(n).unwrap().parse::<u64>().unwrap();
    field(11) + field(12)
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "waited 10 s for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
