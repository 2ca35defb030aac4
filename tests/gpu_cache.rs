//! Discovery kept between cells: believed when true, never stale, never another's.

mod fakes;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use fakes::{Fake, LIB, VERSION};
use gpucell::nvidia::cache::Driver;

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("not root: device nodes are not tested");
    }
    root
}

/// Discovers, and says whether the cache file was rewritten (that is, not believed).
fn discover(fake: &Fake, state: &Path) -> (Driver, bool) {
    let inode = || {
        fs::metadata(state.join("nvidia.cache"))
            .map(|m| m.ino())
            .ok()
    };
    let before = inode();
    let driver = Driver::discover(&fake.host(), Some(state)).unwrap();
    (driver, inode() != before)
}

/// Changes must be older than the clock of file times is coarse, or nothing is kept.
fn settle() {
    std::thread::sleep(Duration::from_millis(120));
}

#[test]
fn the_cache_is_believed_and_never_stale() {
    let fake = Fake::new(2);
    let state = fake.path().join("state");
    // Just changed: it may change again within the same tick, so that nothing is kept. On a machine that
    // stood still meanwhile there is nothing to see.
    let start = Instant::now();
    fake.library(
        LIB,
        "libnvidia-egl-xcb.so.1.0.2",
        "libnvidia-egl-xcb.so.1",
        true,
    );
    let (first, written) = discover(&fake, &state);
    assert!(!written || start.elapsed() > Duration::from_millis(40));
    settle();
    discover(&fake, &state);
    let (again, written) = discover(&fake, &state);
    assert!(!written, "believed");
    assert_eq!(again.files.files, first.files.files);
    assert_eq!(again.inventory, first.inventory);
    let mode = fs::metadata(state.join("nvidia.cache")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o600);

    // Each of these must be seen, then the cache is believed again.
    let changes: [(&str, &dyn Fn()); 7] = [
        ("an added library", &|| {
            let name = format!("libnvidia-added.so.{VERSION}");
            fake.library(LIB, &name, "libnvidia-added.so.1", true);
        }),
        ("a removed library", &|| {
            let name = format!("libnvidia-tls.so.{VERSION}");
            fs::remove_file(fake.root().join(&LIB[1..]).join(name)).unwrap();
        }),
        ("a folder that was not there", &|| {
            let name = format!("libnvidia-late.so.{VERSION}");
            fake.library(
                "/usr/local/nvidia/lib64",
                &name,
                "libnvidia-late.so.1",
                true,
            );
        }),
        ("the loader's cache", &|| {
            fake.put("driver/etc/ld.so.cache", fakes::ld_cache(&[]));
        }),
        ("another GPU", &|| fake.set_gpu(2, &Fake::uuid(2), 2)),
        ("a reboot", &|| {
            fake.put("proc/sys/kernel/random/boot_id", "another\n");
        }),
        ("firmware", &|| {
            fake.put(
                format!("driver/lib/firmware/nvidia/{VERSION}/gsp_new.bin"),
                "",
            );
        }),
    ];
    for (what, change) in changes {
        change();
        settle();
        let (now, written) = discover(&fake, &state);
        assert!(written, "{what} is not seen");
        let fresh = Driver::discover(&fake.host(), None).unwrap();
        assert_eq!(now.files.files, fresh.files.files, "{what}");
        assert_eq!(now.inventory, fresh.inventory, "{what}");
        assert!(!discover(&fake, &state).1, "{what}: not believed again");
    }

    // A driver upgrade: the module says so, whatever the folders' times.
    fake.set_version("555.42.02");
    let (now, _) = discover(&fake, &state);
    assert_eq!(now.inventory.driver, "555.42.02");
    assert!(now.files.files.iter().all(|f| !f.name().ends_with(VERSION)));

    // Device numbers are never kept.
    fake.set_version(VERSION);
    settle();
    discover(&fake, &state);
    fake.set_uvm(510);
    let (now, written) = discover(&fake, &state);
    assert_eq!((now.inventory.majors.uvm, written), (Some(510), false));
}

#[test]
fn a_cache_that_is_not_ours_is_ignored() {
    let fake = Fake::new(1);
    let state = fake.path().join("state");
    settle();
    discover(&fake, &state);
    let file = state.join("nvidia.cache");
    let good = fs::read(&file).unwrap();
    let (name, other) = (b"/usr/bin/nvidia-smi", b"/usr/bin/nvidia-evil");
    let mut evil = good.clone();
    let at = evil.windows(name.len()).position(|w| w == name).unwrap();
    evil.splice(at..at + name.len(), *other);
    evil[at - 1] += 1; // its length
    assert_eq!(evil[at - 1], other.len() as u8);
    let smi = |driver: &Driver| driver.files.files.iter().any(|f| f.name() == "nvidia-smi");

    // The test's tool works: a file that is ours is believed.
    fs::write(&file, &evil).unwrap();
    assert!(!smi(&discover(&fake, &state).0));
    // Others could have written it.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(smi(&discover(&fake, &state).0));
    // A link to it.
    fs::remove_file(&file).unwrap();
    let elsewhere = fake.put("elsewhere", &evil);
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o600)).unwrap();
    symlink(&elsewhere, &file).unwrap();
    assert!(smi(&discover(&fake, &state).0));
    // Rubbish.
    for rubbish in [b"", &b"{"[..], &[0xff; 64], &evil[..evil.len() / 2]] {
        fs::write(&file, rubbish).unwrap();
        assert!(smi(&discover(&fake, &state).0), "{} bytes", rubbish.len());
    }
    if root() {
        fs::write(&file, &evil).unwrap();
        std::os::unix::fs::chown(&file, Some(1000), None).unwrap();
        assert!(smi(&discover(&fake, &state).0));
    }
    // A state root that can't be written costs time only.
    let nowhere = Path::new("/proc/nowhere");
    assert!(smi(&Driver::discover(&fake.host(), Some(nowhere)).unwrap()));
}

#[test]
fn a_sleeping_gpu_is_not_kept() {
    let fake = Fake::new(1);
    fake.set_gpu(0, "GPU-????????-????-????-????-????????????", 0);
    let state = fake.path().join("state");
    settle();
    discover(&fake, &state);
    fake.set_gpu(0, &Fake::uuid(0), 0);
    let (now, _) = discover(&fake, &state);
    assert_eq!(now.inventory.gpus[0].uuid, Some(Fake::uuid(0)));
}

/// Prints what discovery costs. The limits are the budget (10 ms cold, 0.2 ms warm) for an optimised
/// build, ten times that for one that isn't.
#[test]
fn discovery_is_quick() {
    let fake = Fake::new(8);
    let state = fake.path().join("state");
    settle();
    let times = |state: Option<&Path>| {
        let one = |_| {
            let start = Instant::now();
            let driver = Driver::discover(&fake.host(), state).unwrap();
            assert!(driver.files.files.len() >= 35);
            start.elapsed()
        };
        let mut all: Vec<Duration> = (0..41).map(one).collect();
        all.sort();
        all[20]
    };
    let cold = times(None);
    discover(&fake, &state);
    assert!(!discover(&fake, &state).1);
    let warm = times(Some(&state));
    let files = Driver::discover(&fake.host(), None)
        .unwrap()
        .files
        .files
        .len();
    println!("{files} files, 8 GPUs: cold {cold:?}, warm {warm:?}");
    let slack = if cfg!(debug_assertions) { 10 } else { 1 };
    assert!(cold < slack * Duration::from_millis(10), "{cold:?}");
    assert!(warm < slack * Duration::from_micros(200), "{warm:?}");
}
