//! The contract with callers: the same calls to gpucell and to the runc that Debian packages, compared. Exit
//! codes must be equal, both must say the words that callers look for, and what is printed as JSON must have the
//! same members. Where gpucell knowingly differs, [`KNOWN`] says how and why.

mod cell_support;
mod support;

use cell_support::{Cell, until};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::{GPUCELL, Outcome, on_v2};

/// A difference that is meant: the call, what runc answers, what gpucell answers (each a part of "code
/// output errors"), and the reason.
struct Known {
    call: &'static str,
    runc: &'static str,
    ours: &'static str,
    why: &'static str,
}

const KNOWN: &[Known] = &[
    Known {
        call: "frobnicate",
        runc: "3 ",
        ours: "1 ",
        why: "3 is what runc's command line library gives for help on an unknown topic",
    },
    Known {
        call: "exec -u user ID /bin/true",
        runc: "255 ",
        ours: "0 ",
        why: "runc takes numbers only; names are looked up in the cell's passwd",
    },
    Known {
        call: "state ID",
        runc: "\"owner\": \"\"",
        ours: "\"owner\": \"root\"",
        why: "runc fills the owner in for `list` only",
    },
    Known {
        call: "ps --format json ID",
        runc: "0 null",
        ours: "0 []",
        why: "of a stopped cell: a list stays a list",
    },
];

fn runc() -> PathBuf {
    ["/usr/sbin/runc", "/usr/bin/runc"]
        .into_iter()
        .map(PathBuf::from)
        .find(|p| p.exists())
        .expect("this compares with runc; Debian: apt-get install runc")
}

/// One runtime with a cell of its own.
struct Side {
    cell: Cell,
    program: PathBuf,
}

impl Side {
    fn root(&self) -> PathBuf {
        self.cell.bundle.state().with_file_name("root")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.root());
        command
    }

    /// Makes a call. ID, BUNDLE and DIR stand for this side's. The streams are files: a cell may keep them.
    fn call(&self, line: &str, input: &str) -> Outcome {
        let dir = self.cell.outside("x");
        let mut command = self.command();
        for word in line.split(' ').filter(|w| !w.is_empty()) {
            let word = word
                .replace("ID", &self.cell.id)
                .replace("BUNDLE", self.cell.bundle.path().to_str().unwrap())
                .replace("DIR", dir.to_str().unwrap());
            command.arg(word);
        }
        let (out, err) = (dir.join("out"), dir.join("err"));
        let mut child = command
            .current_dir(&dir)
            .stdin(Stdio::piped())
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&err).unwrap())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let code = child.wait().unwrap().code().unwrap_or(-1);
        let text = |p: &Path| self.plain(&String::from_utf8_lossy(&fs::read(p).unwrap()));
        Outcome {
            code,
            out: text(&out),
            err: text(&err),
        }
    }

    /// Without what is this side's own.
    fn plain(&self, text: &str) -> String {
        let above = self.cell.bundle.path();
        let above = above.parent().unwrap().to_str().unwrap();
        // Errors in runc's log lines are quoted.
        text.replace(above, "DIR")
            .replace(&self.cell.id, "ID")
            .replace("\\\"", "\"")
    }

    fn pid(&self) -> i64 {
        let state: Value = serde_json::from_str(&self.call("state ID", "").out).unwrap();
        state["pid"].as_i64().unwrap()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.call("delete --force ID", "");
        let _ = fs::remove_dir_all(self.root());
    }
}

struct Both {
    ours: Side,
    runc: Side,
}

/// How the two answered.
struct Answers {
    call: String,
    ours: Outcome,
    runc: Outcome,
}

impl Both {
    fn new(words: &[&str]) -> Both {
        let cell = || {
            let mut cell = Cell::new(|c| {
                // The runc of Debian 12 knows no newer one.
                c["ociVersion"] = json!("1.0.2");
                c["annotations"] = json!({"org.example.a": "b"});
                // Go raises the soft limit of its own process, and older runc passes that on at times.
                let files = json!({"type": "RLIMIT_NOFILE", "soft": 1000, "hard": 1000});
                c["process"]["rlimits"] = json!([files]);
            });
            cell.words(words);
            cell
        };
        Both {
            ours: Side {
                cell: cell(),
                program: GPUCELL.into(),
            },
            runc: Side {
                cell: cell(),
                program: runc(),
            },
        }
    }

    fn words(&mut self, words: &[&str]) {
        self.ours.cell.words(words);
        self.runc.cell.words(words);
    }

    fn ask(&self, line: &str, input: &str) -> Answers {
        Answers {
            call: line.to_owned(),
            ours: self.ours.call(line, input),
            runc: self.runc.call(line, input),
        }
    }

    /// Both end with this exit code and say nothing on stderr.
    fn ends(&self, line: &str, code: i32) -> Answers {
        self.fed(line, "", code)
    }

    fn fed(&self, line: &str, input: &str, code: i32) -> Answers {
        let answers = self.ask(line, input);
        if !answers.known() {
            for side in [&answers.ours, &answers.runc] {
                let silent = side.err.trim().is_empty();
                assert!(side.code == code && silent, "{line}: {answers:#?}");
            }
        }
        answers
    }

    fn ok(&self, line: &str) -> Answers {
        self.ends(line, 0)
    }

    /// Both refuse with the same exit code, and these words (none: the words are nobody's business).
    fn refused(&self, line: &str, says: &str) -> Answers {
        let answers = self.ask(line, "");
        if !answers.known() {
            for side in [&answers.ours, &answers.runc] {
                assert!(
                    side.code == answers.runc.code && side.code > 0 && side.err.contains(says),
                    "{line}: wanted {says:?}\n{answers:#?}"
                );
            }
        }
        answers
    }

    fn wait_for(&self, status: &str) {
        for side in [&self.ours, &self.runc] {
            let want = format!("\"status\": \"{status}\"");
            until(status, || side.call("state ID", "").out.contains(&want));
        }
    }
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ours {:#?}\nrunc {:#?}", self.ours, self.runc)
    }
}

/// An answer as [`Known`] describes it.
fn all(of: &Outcome) -> String {
    format!("{} {}{}", of.code, of.out, of.err)
}

impl Answers {
    /// Is this a difference that is meant, and as it is meant?
    fn known(&self) -> bool {
        let (ours, runc) = (all(&self.ours), all(&self.runc));
        KNOWN
            .iter()
            .any(|k| k.call == self.call && ours.contains(k.ours) && runc.contains(k.runc))
    }

    /// Standard output is the same text.
    fn same_text(&self) {
        assert_eq!(self.ours.out, self.runc.out, "{}", self.call);
    }

    fn json(&self) -> [Value; 2] {
        [&self.ours, &self.runc].map(|o| {
            serde_json::from_str(&o.out).unwrap_or_else(|e| panic!("{}: {e}: {o:#?}", self.call))
        })
    }

    /// What runc prints as JSON, we print with members of the same names and kinds; ours may have more,
    /// which `more` names (by the start of their paths).
    fn same_members(&self, missing: &[&str], more: &[&str]) {
        let [ours, runc] = self.json().map(|v| members(&v));
        let not_in = |a: &BTreeMap<String, &'static str>,
                      b: &BTreeMap<String, &'static str>,
                      but: &[&str]| {
            a.iter()
                .filter(|(k, kind)| b.get(*k) != Some(kind))
                .filter(|(k, _)| !but.iter().any(|b| k.starts_with(b)))
                .map(|(k, kind)| format!("{k}: {kind}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            not_in(&runc, &ours, missing),
            [""; 0],
            "{}: only runc has it",
            self.call
        );
        assert_eq!(
            not_in(&ours, &runc, more),
            [""; 0],
            "{}: only we have it",
            self.call
        );
    }
}

/// The members of a value by path, with the kind of each.
fn members(value: &Value) -> BTreeMap<String, &'static str> {
    fn walk(at: String, value: &Value, found: &mut BTreeMap<String, &'static str>) {
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(list) => {
                for item in list {
                    walk(format!("{at}/*"), item, found);
                }
                "list"
            }
            Value::Object(map) => {
                for (name, value) in map {
                    walk(format!("{at}/{name}"), value, found);
                }
                "object"
            }
        };
        found.insert(at, kind);
    }
    let mut found = BTreeMap::new();
    walk(String::new(), value, &mut found);
    found
}

#[test]
fn a_life() {
    let both = Both::new(&["sleep", "3600"]);
    for side in [&both.ours, &both.runc] {
        fs::write(side.cell.outside("x").join("pid"), "").unwrap();
    }
    both.ok("create --bundle BUNDLE --pid-file DIR/pid ID");
    let state = both.ok("state ID");
    state.same_members(&[], &[]);
    for (side, state) in [&both.ours, &both.runc].iter().zip(state.json()) {
        let file = side.cell.outside("x").join("pid");
        assert_eq!(fs::read_to_string(file).unwrap(), state["pid"].to_string());
        for (name, want) in [
            ("id", "ID"),
            ("status", "created"),
            ("bundle", "DIR/bundle"),
            ("rootfs", "DIR/bundle/rootfs"),
        ] {
            assert_eq!(state[name], want);
        }
        assert_eq!(state["annotations"], json!({"org.example.a": "b"}));
    }
    both.ok("list --format json").same_members(&[], &[]);
    both.ok("list -q").same_text();
    for side in [&both.ours, &both.runc] {
        let table = side.call("list", "").out;
        let titles: HashSet<&str> = table.lines().next().unwrap().split_whitespace().collect();
        let want = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];
        assert_eq!(titles, HashSet::from(want), "{table}");
    }
    both.refused(
        "create --bundle BUNDLE ID",
        "container with given ID already exists",
    );
    both.ok("exec ID /bin/true");
    both.ok("start ID");
    both.refused("start ID", "cannot start an already running container");
    both.refused("delete ID", "that is not stopped: running");
    let [ours, runc] = both.ok("ps -f json ID").json();
    assert_eq!(ours, json!([both.ours.pid()]));
    assert_eq!(runc, json!([both.runc.pid()]));
    let titles = |o: &Outcome| o.out.lines().next().unwrap_or_default().to_owned();
    let table = both.ok("ps ID");
    assert_eq!(titles(&table.ours), titles(&table.runc));
    let table = both.ok("ps ID -o pid,args");
    assert_eq!(titles(&table.ours), titles(&table.runc));

    both.ok("pause ID");
    both.wait_for("paused");
    both.refused("pause ID", "container not running");
    both.refused("start ID", "cannot start a container in the paused state");
    both.refused(
        "exec ID /bin/true",
        "cannot exec in a paused container (use --ignore-paused to override)",
    );
    both.refused("delete ID", "that is not stopped: paused");
    both.ok("resume ID");
    both.refused("resume ID", "container not paused");
    both.refused("kill ID NOPE", "unknown signal \"NOPE\"");
    both.ok("kill ID 0");
    both.ok("kill ID SIGKILL");
    both.wait_for("stopped");

    let [ours, runc] = both.ok("state ID").json();
    assert_eq!((&ours["pid"], &runc["pid"]), (&json!(0), &json!(0)));
    both.ok("ps --format json ID");
    both.refused("start ID", "cannot start a container that has stopped");
    both.refused("exec ID /bin/true", "cannot exec in a stopped container");
    both.refused("kill ID KILL", "container not running");
    both.refused("pause ID", "container not running");
    both.refused("resume ID", "container not paused");
    both.refused("update ID --pids-limit 5", "container not running");
    both.refused("events --stats ID", "is not running");
    both.ok("delete ID");
    both.refused("delete ID", "does not exist");
    both.ok("delete --force ID");

    // A created one needs no force; a running one does.
    both.ok("create -b BUNDLE ID");
    both.ok("delete ID");
    both.ok("run -d -b BUNDLE ID");
    both.ok("kill --all ID KILL");
    both.wait_for("stopped");
    both.ok("delete -f ID");
    both.ok("run --detach --bundle BUNDLE ID");
    both.ok("delete --force ID");
}

#[test]
fn what_is_said_of_a_cell_that_is_not_there() {
    let both = Both::new(&["sleep", "3600"]);
    for call in [
        "state ID",
        "start ID",
        "kill ID",
        "kill ID KILL",
        "kill --all ID KILL",
        "delete ID",
        "exec ID /bin/true",
        "ps ID",
        "ps -f json ID",
        "events --stats ID",
        "pause ID",
        "resume ID",
        "update ID --memory 64m",
    ] {
        let answers = both.refused(call, "does not exist");
        let code = if call.starts_with("exec") { 255 } else { 1 };
        assert_eq!(answers.ours.code, code, "{call}");
    }
    both.ok("list -q").same_text();
    both.ok("delete -f ID");
}

#[test]
fn exit_codes_and_words_of_programs() {
    let mut both = Both::new(&["exit", "7"]);
    both.ends("run -b BUNDLE ID", 7);
    both.ends("run --keep -b BUNDLE --pid-file DIR/pid ID", 7);
    both.refused("start ID", "cannot start a container that has stopped");
    both.ok("delete ID");

    // 127 and 126 to Docker and podman, by these words.
    for (program, says) in [
        ("/nonexistent", "no such file or directory"),
        ("nonexistent", "executable file not found in $PATH"),
    ] {
        for side in [&mut both.ours, &mut both.runc] {
            side.cell.edit(|c| c["process"]["args"] = json!([program]));
        }
        both.refused("run -b BUNDLE ID", says);
        both.refused("create -b BUNDLE ID", says);
        both.refused("state ID", "does not exist");
    }
    both.words(&["sleep", "3600"]);
    both.ok("run -d -b BUNDLE ID");
    both.ends("exec ID /bin/hello exit 9", 9);
    both.refused("exec ID /nonexistent", "no such file or directory");
    both.refused("exec ID nonexistent", "executable file not found in $PATH");
    both.refused("exec ID /etc", "");
    both.refused("exec ID /etc/passwd", "permission denied");
    both.refused("exec --cwd /nonexistent ID /bin/true", "/nonexistent");
    both.refused("exec -u user ID /bin/true", "");
    both.refused("exec -p DIR/none ID", "o such file or directory");
    both.ok("exec -d --pid-file DIR/pid ID /bin/hello sleep 50");
    for side in [&both.ours, &both.runc] {
        let pid = fs::read_to_string(side.cell.outside("x").join("pid")).unwrap();
        assert!(
            !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit()),
            "{pid:?}"
        );
    }
}

/// Everything the hello program finds out about itself: ids, capabilities, limits, groups.
#[test]
fn what_a_program_is() {
    let mut both = Both::new(&["id"]);
    both.ok("run -b BUNDLE ID").same_text();
    both.words(&["sleep", "3600"]);
    both.ok("run -d -b BUNDLE ID");
    for flags in [
        "",
        "-e A=b --cwd /tmp -u 1000:1001 -g 5 -g 6",
        "--cap CAP_SYS_ADMIN --no-new-privs",
        "-u 7 --cap CAP_NET_RAW",
    ] {
        both.ok(&format!("exec {flags} ID /bin/hello id"))
            .same_text();
        both.ok(&format!("exec {flags} ID /bin/hello env"))
            .same_text();
    }
    // As containerd and podman do it. (Debian's runc carries out neither umask nor oomScoreAdj of an exec.)
    let process = json!({
        "args": ["/bin/hello", "id"],
        "cwd": "/tmp",
        "env": ["PATH=/bin", "X=1"],
        "user": {"uid": 3, "gid": 4, "additionalGids": [9]},
        "capabilities": {"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]},
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 100},
            {"type": "RLIMIT_CORE", "soft": 99, "hard": 100},
        ],
        "noNewPrivileges": true,
    });
    for side in [&both.ours, &both.runc] {
        fs::write(side.cell.outside("x").join("p.json"), process.to_string()).unwrap();
    }
    both.ok("exec --process DIR/p.json ID").same_text();
}

#[test]
fn updates_and_statistics() {
    let both = Both::new(&["sleep", "3600"]);
    both.ok("run -d -b BUNDLE ID");
    let files: &[&str] = match on_v2() {
        true => &[
            "memory.max",
            "memory.low",
            "memory.swap.max",
            "cpu.max",
            "cpuset.cpus",
            "cpuset.mems",
            "pids.max",
        ],
        false => &[
            "memory.limit_in_bytes",
            "memory.soft_limit_in_bytes",
            "cpu.cfs_quota_us",
            "cpu.cfs_period_us",
            "cpu.shares",
            "cpuset.cpus",
            "cpuset.mems",
            "pids.max",
        ],
    };
    let same = |after: &str| {
        for name in files {
            let [ours, runc] = [&both.ours, &both.runc].map(|s| s.cell.group_value(name));
            assert_eq!(ours, runc, "{name} after {after}");
        }
    };
    same("create");
    for flags in [
        "--memory 67108864",
        "--memory=96m",
        "--memory-reservation 16m",
        "--cpu-quota 20000",
        "--cpu-period 50000 --cpu-quota 30000",
        "--cpuset-cpus 0",
        "--cpuset-mems 0",
        "--pids-limit 9",
        "--pids-limit -1",
        "",
    ] {
        both.ok(&format!("update {flags} ID"));
        same(flags);
    }
    // The conversion to cpu.weight is the specification's newer one, as in crun and runc 1.4; Debian's runc
    // has the older.
    both.ok("update --cpu-share 512 ID");
    if on_v2() {
        assert_eq!(both.ours.cell.group_value("cpu.weight"), "59");
    } else {
        same("--cpu-share");
    }
    for text in [
        r#"{"memory":{"limit":80000000,"reservation":20000000},"cpu":{"quota":25000,"period":100000},"pids":{"limit":77}}"#,
        "{}",
        r#"{"cpu":{"cpus":"0"}}"#,
    ] {
        both.fed("update -r - ID", text, 0);
        same(text);
    }
    for bad in [
        "--memory 1x",
        "--cpu-quota x",
        "-r DIR/none",
        "--cpuset-cpus 9999",
    ] {
        both.refused(&format!("update {bad} ID"), "");
        same(bad);
    }
    let half = both.ask("update -r - ID", "{\"memory\":");
    assert_eq!((half.ours.code, half.runc.code), (1, 1), "{half:#?}");
    same("half a text");

    // Newer runc has the pressure figures, and so have we; like it we print nothing of what is all zero.
    let events = both.ok("events --stats ID");
    events.same_members(
        &[
            "/data/cpu/throttling",
            "/data/memory/cache",
            "/data/memory/kernel",
            "/data/blkio/io",
        ],
        &[
            "/data/cpu/psi",
            "/data/memory/psi",
            "/data/blkio/psi",
            "/data/memory/cache",
            // Page sizes that nobody has used: v2 counts failures all the same.
            "/data/hugetlb/",
        ],
    );
    for event in events.json() {
        assert_eq!(
            (&event["type"], &event["id"]),
            (&json!("stats"), &json!("ID"))
        );
    }
}

#[test]
fn what_needs_no_cell() {
    let mut both = Both::new(&["sleep", "3600"]);
    // What only runc can have, and what newer editions of the specification added.
    both.ok("features").same_members(
        &["/annotations/"],
        &[
            "/annotations/io.gpucell.",
            "/linux/cgroup/rdma",
            "/linux/intelRdt",
            "/linux/memoryPolicy",
            "/linux/mountExtensions",
            "/linux/netDevices",
            "/linux/seccomp/knownFlags",
            "/linux/seccomp/supportedFlags",
            "/potentiallyUnsafeConfigAnnotations",
        ],
    );
    let [ours, runc] = both.ok("features").json();
    for list in [
        "/hooks",
        "/linux/namespaces",
        "/linux/capabilities",
        "/linux/seccomp/actions",
        "/linux/seccomp/operators",
    ] {
        let [ours, runc] = [&ours, &runc].map(|f| -> HashSet<String> {
            let list = f.pointer(list).and_then(Value::as_array).expect(list);
            list.iter().map(Value::to_string).collect()
        });
        let lacking: Vec<_> = runc.difference(&ours).collect();
        assert!(lacking.is_empty(), "{list} lacks {lacking:?}");
    }
    for side in [&both.ours, &both.runc] {
        let version = side.call("--version", "").out;
        let lines: Vec<&str> = version.lines().collect();
        assert!(lines[0].split(' ').nth(1) == Some("version"), "{version}");
        assert!(lines.iter().any(|l| l.starts_with("commit: ")), "{version}");
        assert!(lines.iter().any(|l| l.starts_with("spec: ")), "{version}");
    }
    both.refused("frobnicate", "frobnicate");
    both.refused("create", "");
    both.refused("create --bundle BUNDLE", "");
    both.refused("create --bundle DIR/none ID", "o such file or directory");
    both.refused("create --bundle BUNDLE ../ID", "invalid container ID");
    both.refused("create --bundle BUNDLE --no-such-flag ID", "no-such-flag");
    both.refused("list --format xml", "format");
    both.refused("kill", "");
    both.refused("kill ID KILL more", "");
    both.refused("spec --bundle DIR/none", "o such file or directory");

    // The log, as containerd and podman read it: one object a line; of an error its level, text and time.
    for call in ["state ID", "create --bundle DIR/none ID"] {
        both.refused(&format!("--log DIR/log --log-format json {call}"), "");
        for side in [&both.ours, &both.runc] {
            let file = side.cell.outside("x").join("log");
            let text = fs::read_to_string(&file).unwrap();
            let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
            assert_eq!(line["level"], "error", "{text}");
            assert!(
                line["msg"].as_str().is_some_and(|m| !m.is_empty()),
                "{text}"
            );
            let time = line["time"].as_str().unwrap();
            assert!(chrono::DateTime::parse_from_rfc3339(time).is_ok(), "{text}");
            fs::remove_file(file).unwrap();
        }
    }
    // What can't be run is refused by both, and nothing of it stays.
    let breaks: [fn(&mut Value); 4] = [
        |c| c["root"]["path"] = json!("none"),
        |c| c["process"]["cwd"] = json!("relative"),
        |c| c["process"]["args"] = json!([]),
        |c| c["linux"]["namespaces"] = json!([{"type": "nope"}]),
    ];
    let good = both.ours.cell.bundle.config.clone();
    for change in breaks {
        for side in [&mut both.ours, &mut both.runc] {
            side.cell.edit(|c| {
                *c = good.clone();
                change(c);
            });
            let done = side.call("create --bundle BUNDLE ID", "");
            assert_eq!(done.code, 1, "{done:#?}");
            assert_eq!(side.call("state ID", "").code, 1);
        }
    }
}

/// A difference that is none any more has no place in the table.
#[test]
fn known_differences_are_there() {
    let both = Both::new(&["sleep", "3600"]);
    both.ok("run -d -b BUNDLE ID");
    for known in KNOWN {
        if known.call.starts_with("ps ") {
            both.ok("kill ID KILL");
            both.wait_for("stopped");
        }
        let answers = both.ask(known.call, "");
        assert!(answers.known() && !known.why.is_empty(), "{answers:#?}");
    }
}
