//! Folders that somebody swaps for links, over and over, while a cell is made of them: a volume that another
//! cell writes to. Each race is tried GPUCELL_ATTACK_TRIES times (1000); both sides of it must have been
//! met, and never may anything be made, mounted, read or changed outside.

mod cell_support;
mod support;

use cell_support::Cell;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use support::Outcome;

fn tries() -> u32 {
    std::env::var("GPUCELL_ATTACK_TRIES").map_or(1000, |n| n.parse().expect("a number"))
}

/// A cell with a volume of the host at /vol, in which `spot` is a folder at one moment and a link to a folder
/// of the host at the next. The link's target is there in the root too, so that it may be followed inside.
struct Race {
    cell: Cell,
    volume: PathBuf,
    trap: PathBuf,
    /// The name that is swapped.
    spot: String,
}

/// What the tries came to.
#[derive(Debug, Default)]
struct Tally {
    folder: u32,
    link: u32,
    refused: u32,
}

impl Race {
    fn new(change: impl FnOnce(&mut Value, &Race)) -> Race {
        let cell = Cell::new(|_| {});
        let mut race = Race {
            volume: cell.outside("volume"),
            trap: cell.outside("trap"),
            cell,
            spot: "spot".into(),
        };
        fs::create_dir(race.volume.join("spot")).unwrap();
        let to = &race.trap;
        symlink(to, race.volume.join("other")).unwrap();
        fs::write(race.trap.join("secret"), "the host's\n").unwrap();
        fs::create_dir_all(race.inside()).unwrap();
        let mut config = race.cell.bundle.config.clone();
        // The test's own folder may be below it.
        let list = config["mounts"].as_array_mut().unwrap();
        list.retain(|m| m["destination"] != "/tmp");
        mount(&mut config, "/vol", &race.volume, &["rbind"]);
        change(&mut config, &race);
        race.cell.edit(|c| *c = config);
        race
    }

    /// Where the link leads inside the root.
    fn inside(&self) -> PathBuf {
        self.cell.root(self.trap.to_str().unwrap())
    }

    /// Runs the cell again and again; `look` says on which side it was after each.
    fn run(mut self, words: &[&str], look: impl Fn(&Race, &Outcome, &mut Tally)) {
        self.cell.words(words);
        let mut tally = Tally::default();
        let end = AtomicBool::new(false);
        let (a, b) = (self.volume.join(&self.spot), self.volume.join("other"));
        let host = fs::metadata(&self.trap).unwrap();
        std::thread::scope(|s| {
            s.spawn(|| {
                while !end.load(Relaxed) {
                    renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE).unwrap();
                }
            });
            let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..tries() {
                    let done = self.cell.run(&[]);
                    look(&self, &done, &mut tally);
                    let names: Vec<_> = fs::read_dir(&self.trap).unwrap().flatten().collect();
                    assert!(names.len() == 1, "{names:?}, {done:?}");
                    let now = fs::metadata(&self.trap).unwrap();
                    assert_eq!((now.mode(), now.uid()), (host.mode(), host.uid()));
                    let text = fs::read_to_string(self.trap.join("secret")).unwrap();
                    assert_eq!(text, "the host's\n");
                    let mounts = cell_support::host_mounts(self.trap.to_str().unwrap());
                    assert!(mounts.is_empty(), "{mounts:?}");
                }
            }));
            end.store(true, Relaxed);
            if let Err(panic) = tried {
                std::panic::resume_unwind(panic);
            }
        });
        println!("{tally:?}");
        assert!(
            tally.folder > 0 && tally.link + tally.refused > 0,
            "no race: {tally:?}"
        );
    }

    /// Counts where `name` was made, and takes it away.
    fn made(&self, name: &str, tally: &mut Tally) {
        let spots = [self.volume.join("spot"), self.volume.join("other")];
        let folder = spots
            .iter()
            .any(|s| !s.is_symlink() && taken(&s.join(name)));
        let link = taken(&self.inside().join(name));
        tally.folder += u32::from(folder);
        tally.link += u32::from(link);
        tally.refused += u32::from(!folder && !link);
    }
}

/// Removes a file, node or folder. Says whether there was one. A swap may come between: it's tried again.
fn taken(path: &Path) -> bool {
    fs::remove_file(path).is_ok() || fs::remove_dir_all(path).is_ok()
}

fn mount(config: &mut Value, to: &str, from: &Path, options: &[&str]) {
    let mounts = config["mounts"].as_array_mut().expect("mounts");
    mounts.push(json!({"destination": to, "source": from, "options": options}));
}

/// CVE-2021-30465: a volume's mount point is swapped for a link to the host. The second mount shows
/// whether the first landed in the host's folder; CVE-2024-45310: folders made on the way to it.
#[test]
fn a_mount_point_becomes_a_link() {
    let race = Race::new(|c, race| {
        let data = race.cell.outside("data");
        fs::write(data.join("file"), "data\n").unwrap();
        mount(c, "/vol/spot/in/deep", &data, &["rbind"]);
        mount(c, "/second", &race.trap, &["rbind"]);
    });
    race.run(&["cat", "/second/in/deep/file"], |race, done, tally| {
        assert_ne!(done.code, 0, "mounted on the host's: {done:?}");
        race.made("in", tally);
    });
}

/// The same for a file's mount point, which is made empty.
#[test]
fn a_files_mount_point_becomes_a_link() {
    let race = Race::new(|c, race| {
        let data = race.cell.outside("data");
        fs::write(data.join("file"), "data\n").unwrap();
        mount(c, "/vol/spot/in/file", &data.join("file"), &["bind"]);
    });
    race.run(&["true"], |race, _, tally| race.made("in", tally));
}

/// A device node's folder, and the working directory that is made.
#[test]
fn a_nodes_folder_becomes_a_link() {
    let race = Race::new(|c, _| {
        c["linux"]["devices"] =
            json!([{"path": "/vol/spot/in/node", "type": "c", "major": 1, "minor": 3}]);
        c["process"]["cwd"] = json!("/vol/spot/in/cwd");
    });
    race.run(&["true"], |race, _, tally| race.made("in", tally));
}

/// A tmpfs that begins with what lies under it, in which a folder is swapped while it is copied: never
/// with what the host has where the link leads.
#[test]
fn what_a_tmpfs_begins_with_becomes_a_link() {
    let race = Race::new(|c, race| {
        fs::write(race.volume.join("spot/secret"), "the volume's\n").unwrap();
        fs::write(race.inside().join("secret"), "the image's\n").unwrap();
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.push(json!({
            "destination": "/vol", "source": "tmpfs", "type": "tmpfs", "options": ["tmpcopyup"],
        }));
    });
    race.run(&["cat", "/vol/spot/secret"], |_, done, tally| {
        assert!(!done.out.contains("the host's"), "{done:?}");
        tally.folder += u32::from(done.out.contains("the volume's"));
        tally.link += u32::from(done.out.contains("the image's"));
        tally.refused += u32::from(done.code != 0);
    });
}

/// CVE-2025-31133: what is masked, and /dev/null. The mask lands in the root or nowhere.
#[test]
fn what_is_masked_becomes_a_link() {
    let race = Race::new(|c, race| {
        fs::write(race.volume.join("spot/secret"), "the volume's\n").unwrap();
        fs::write(race.inside().join("secret"), "the image's\n").unwrap();
        c["linux"]["maskedPaths"] = json!(["/vol/spot/secret"]);
        c["linux"]["readonlyPaths"] = json!(["/vol/spot"]);
        mount(c, "/second", &race.trap, &["rbind"]);
    });
    race.run(&["cat", "/second/secret"], |race, done, tally| {
        // It is read even when the cell came to be with another file masked.
        assert!(done.code != 0 || done.out == "the host's\n", "{done:?}");
        let link = race.volume.join("spot").is_symlink();
        tally.folder += u32::from(!link);
        tally.link += u32::from(link);
    });
}

/// CVE-2025-52565: an image whose /dev is nobody's mount, in which /dev/console is swapped for a link.
#[test]
fn a_terminals_place_becomes_a_link() {
    let mut race = Race::new(|c, race| {
        let list = c["mounts"].as_array_mut().unwrap();
        list.retain(|m| m["destination"] != "/dev" && m["destination"] != "/vol");
        mount(c, "/second", &race.trap, &["rbind"]);
        c["process"]["terminal"] = json!(true);
    });
    race.volume = race.cell.root("dev");
    race.spot = "console".into();
    fs::write(race.volume.join("console"), "").unwrap();
    fs::write(race.inside().join("secret"), "the image's\n").unwrap();
    symlink(race.trap.join("secret"), race.volume.join("other")).unwrap();
    let seen = race.trap.join("secret").display().to_string();
    race.run(&["stat", "/second/secret", &seen], |_, done, tally| {
        // Neither the host's file nor the one that the link leads to in the root has a terminal on it.
        let files = done.out.matches(" file ").count();
        assert!(done.code != 0 || files == 2, "{done:?}");
        assert!(done.code == 0 || done.err.contains("terminal"), "{done:?}");
        tally.folder += u32::from(done.code == 0);
        tally.refused += u32::from(done.code != 0);
    });
}
