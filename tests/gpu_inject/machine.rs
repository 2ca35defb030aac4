//! A host with GPUs, a cell on it, and what the cell's program sees.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::cell_support::{Cell, sections};
use crate::fakes::{CAPS, Fake, IMEX, UVM};
use crate::support::{Outcome, outcome};

/// The fake driver and a cell.
pub struct Machine {
    pub fake: Fake,
    pub cell: Cell,
    /// More lines of the configuration file.
    pub config: String,
}

/// A node: name below /dev, numbers.
pub type Node = (String, u64, u64);

/// The driver's folders below /dev.
const FOLDERS: [&str; 2] = ["nvidia-caps", "nvidia-caps-imex-channels"];

/// What is asked of a program in the cell about one node.
#[derive(Debug, Eq, PartialEq)]
pub enum Opens {
    /// The device filter lets it through, and there is no driver behind it.
    NoDriver,
    /// The device filter denies it.
    Denied,
}

impl Machine {
    /// The cell may make nodes of its own.
    pub fn new(gpus: u32) -> Machine {
        let cell = Cell::new(|c| {
            for set in ["bounding", "effective", "permitted"] {
                let list = c["process"]["capabilities"][set].as_array_mut().unwrap();
                list.push(json!("CAP_MKNOD"));
            }
        });
        let fake = Fake::new(gpus);
        let config = String::new();
        Machine { fake, cell, config }
    }

    /// Adds to the cell's environment.
    pub fn env(&mut self, add: &[&str]) -> &mut Self {
        self.cell.edit(|c| {
            let env = c["process"]["env"].as_array_mut().unwrap();
            env.extend(add.iter().map(|e| json!(e)));
        });
        self
    }

    pub fn edit(&mut self, change: impl FnOnce(&mut Value)) -> &mut Self {
        self.cell.edit(change);
        self
    }

    /// The configuration file.
    pub fn file(&self) -> PathBuf {
        let path = self.fake.config();
        let text = fs::read_to_string(&path).unwrap() + &self.config;
        fs::write(&path, text).unwrap();
        path
    }

    /// `gpucell WORD...` on this host.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.cell.command(words);
        command.env("GPUCELL_CONFIG", self.file());
        command
    }

    /// `gpucell run --bundle`, its log among its errors: warnings are only there.
    pub fn run(&mut self, words: &[&str]) -> Outcome {
        self.cell.words(words);
        let log = self.cell.outside("log").join("run");
        let _ = fs::remove_file(&log);
        let bundle = self.cell.bundle.path();
        let words = ["--log", log.to_str().unwrap(), "run", "--bundle"];
        let mut command = self.command(&words);
        let mut done = outcome(command.arg(bundle).arg(&self.cell.id));
        done.err += &fs::read_to_string(&log).unwrap_or_default();
        done
    }

    /// `gpucell exec FLAG... BUNDLE/ -- hello WORD...`, its data beside the bundle.
    pub fn exec(&self, flags: &[&str], words: &[&str]) -> Outcome {
        let data = self.cell.outside("data");
        let folder = format!("{}/", self.cell.bundle.path().display());
        let mut all = vec!["exec", "--store", data.to_str().unwrap()];
        all.extend(flags);
        all.extend([folder.as_str(), "/bin/hello"]);
        all.extend(words);
        outcome(&mut self.command(&all))
    }

    /// Control nodes of the default capabilities, and those of these GPUs.
    pub fn nodes(&self, gpus: &[u32]) -> Vec<Node> {
        let node = |name: &str, major, minor| (name.to_owned(), major, minor);
        let mut all = vec![
            node("nvidiactl", 195, 255),
            node("nvidia-uvm", UVM, 0),
            node("nvidia-uvm-tools", UVM, 1),
        ];
        for gpu in gpus {
            let minor = self.fake.minor(*gpu);
            all.push(node(&format!("nvidia{minor}"), 195, minor.into()));
        }
        all.sort();
        all
    }

    /// The capability nodes of MIG devices, (GPU, GI, CI).
    pub fn caps(&self, parts: &[(u32, u32, u32)]) -> Vec<Node> {
        let mut minors: Vec<u32> = parts
            .iter()
            .flat_map(|&(gpu, gi, ci)| {
                [
                    self.fake.cap(gpu, gi, None),
                    self.fake.cap(gpu, gi, Some(ci)),
                ]
            })
            .collect();
        minors.sort();
        minors.dedup();
        let node = |m: u32| (format!("nvidia-caps/nvidia-cap{m}"), CAPS, m.into());
        minors.into_iter().map(node).collect()
    }

    /// The nodes of IMEX channels.
    pub fn channels(numbers: &[u64]) -> Vec<Node> {
        let name = |n: &u64| format!("nvidia-caps-imex-channels/channel{n}");
        numbers.iter().map(|n| (name(n), IMEX, *n)).collect()
    }

    /// The words that ask for all that [`Self::check`] looks at.
    pub fn questions(&self, has: &[Node], lacks: &[Node]) -> Vec<String> {
        let mut words = "each ls /dev".to_owned();
        for folder in FOLDERS {
            words += &format!(" ; ls /dev/{folder}");
        }
        for (name, ..) in has {
            words += &format!(" ; stat /dev/{name} ; open /dev/{name} r");
        }
        for (n, (_, major, minor)) in lacks.iter().enumerate() {
            words += &format!(" ; mknod /dev/own-{n} {major} {minor} ; open /dev/own-{n} r");
        }
        words.split(' ').map(str::to_owned).collect()
    }

    /// The cell has these nodes, can open them, and no others; one of the others that it makes itself
    /// doesn't open.
    pub fn check(&self, seen: &Outcome, has: &[Node], lacks: &[Node]) {
        assert_eq!(seen.code, 0, "{seen:#?}");
        let got = sections(&seen.out);
        let mut names: Vec<String> = got[0].1.lines().map(str::to_owned).collect();
        names.retain(|n| n.starts_with("nvidia") && !FOLDERS.contains(&n.as_str()));
        for (folder, (code, list)) in FOLDERS.iter().zip(&got[1..]) {
            if *code == 0 {
                names.extend(list.lines().map(|n| format!("{folder}/{n}")));
            }
        }
        names.sort();
        let mut wanted: Vec<&str> = has.iter().map(|(n, ..)| n.as_str()).collect();
        wanted.sort();
        assert_eq!(names, wanted, "{seen:#?}");
        let mut rest = got[1 + FOLDERS.len()..].chunks(2);
        for (name, major, minor) in has {
            let pair = rest.next().expect("an answer");
            let numbers = format!("dev={major}:{minor}\n");
            assert!(
                pair[0].1.contains(" char ") && pair[0].1.ends_with(&numbers),
                "{pair:?}"
            );
            assert_eq!(opens(&pair[1].1), Opens::NoDriver, "{name}: {pair:?}");
        }
        for (name, ..) in lacks {
            let pair = rest.next().expect("an answer");
            assert_eq!(pair[0].0, 0, "{name}: {pair:?}");
            assert_eq!(opens(&pair[1].1), Opens::Denied, "{name}: {pair:?}");
        }
    }

    /// Runs the bundle as runc's users do and checks its nodes.
    pub fn run_sees(&mut self, has: &[Node], lacks: &[Node]) -> Outcome {
        let words = self.questions(has, lacks);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let seen = self.run(&words);
        self.check(&seen, has, lacks);
        seen
    }

    /// The same by `exec` with flags. The cell may make nodes.
    pub fn exec_sees(&self, flags: &[&str], has: &[Node], lacks: &[Node]) -> Outcome {
        let words = self.questions(has, lacks);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut all = vec!["--cap-add", "MKNOD"];
        all.extend(flags);
        let seen = self.exec(&all, &words);
        self.check(&seen, has, lacks);
        seen
    }

    /// The configuration that a created cell was saved with.
    pub fn saved(&self) -> Value {
        let path = self
            .cell
            .bundle
            .state()
            .join(&self.cell.id)
            .join("config.json");
        let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_slice(&text).unwrap()
    }

    /// Only a group may open this node of the host.
    pub fn restrict(&self, name: &str, major: u64, minor: u64, gid: u32) {
        assert!(self.fake.node(name, major, minor, 0o660));
        chown(self.fake.path().join("dev").join(name), None, Some(gid)).unwrap();
    }
}

/// What `hello open` said.
fn opens(said: &str) -> Opens {
    match said.trim() {
        "EPERM 1" => Opens::Denied,
        "ENXIO 6" | "ENODEV 19" => Opens::NoDriver,
        other => panic!("opening says {other}"),
    }
}

/// GPUs that are not among these.
pub fn others(count: u32, gpus: &[u32]) -> Vec<u32> {
    (0..count).filter(|g| !gpus.contains(g)).collect()
}

/// Only the GPUs' nodes.
pub fn gpu_nodes(machine: &Machine, gpus: &[u32]) -> Vec<Node> {
    let control = machine.nodes(&[]);
    let mut all = machine.nodes(gpus);
    all.retain(|n| !control.contains(n));
    all
}
