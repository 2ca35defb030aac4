use super::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn entry<'a>(name: &'a str, path: &'a str) -> Entry<'a> {
    Entry {
        name: Cow::Borrowed(name.as_bytes()),
        path: Cow::Borrowed(path.as_bytes()),
        flags: 0x0303,
        osversion: 0,
        hwcap: 0,
    }
}

/// Libraries `name → soname` in `dir`, made by the linker.
fn libraries(dir: &Path, list: &[(&str, &str)]) {
    fs::create_dir_all(dir).unwrap();
    let src = dir.join("x.c");
    fs::write(&src, "int gpucell_x(void) { return 42; }\n").unwrap();
    for (name, soname) in list {
        let mut cc = Command::new("cc");
        cc.args([
            "-shared",
            "-fPIC",
            "-nostdlib",
            &format!("-Wl,-soname,{soname}"),
        ]);
        let status = cc.arg("-o").arg(dir.join(name)).arg(&src).status().unwrap();
        assert!(status.success());
    }
    fs::remove_file(src).unwrap();
}

fn ldconfig() -> Command {
    Command::new("/usr/sbin/ldconfig")
}

/// The cache that ldconfig writes for these directories and the host's default ones.
fn real(tmp: &Path, dirs: &[&Path], format: &str) -> PathBuf {
    let (conf, cache) = (tmp.join("conf"), tmp.join(format));
    let text: String = dirs.iter().map(|d| format!("{}\n", d.display())).collect();
    fs::write(&conf, text).unwrap();
    let mut cmd = ldconfig();
    cmd.args(["-c", format, "-f"])
        .arg(conf)
        .arg("-C")
        .arg(&cache);
    assert!(cmd.status().unwrap().success());
    cache
}

/// What `ldconfig -p` prints of a cache, its first line (the file's name) apart.
fn printed(cache: &Path) -> String {
    let out = ldconfig().arg("-p").arg("-C").arg(cache).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    text.split_once('\n').unwrap().1.to_owned()
}

fn with_libraries() -> (tempfile::TempDir, PathBuf) {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("lib");
    libraries(
        &dir,
        &[
            ("libgcx.so.1.9", "libgcx.so.1"),
            ("libgcx-a.so.550.163.01", "libgcx-a.so.1"),
            ("libgcx10.so.2", "libgcx10.so.2"),
            ("libgcx9.so.2", "libgcx9.so.2"),
        ],
    );
    libraries(
        &dir.join("glibc-hwcaps/x86-64-v2"),
        &[("libgcx.so.1.9", "libgcx.so.1")],
    );
    libraries(
        &dir.join("glibc-hwcaps/x86-64-v3"),
        &[("libgcx.so.1.9", "libgcx.so.1")],
    );
    (tmp, dir)
}

#[test]
fn what_ldconfig_wrote_reads_and_writes_the_same() {
    let (tmp, dir) = with_libraries();
    let path = real(tmp.path(), &[&dir], "new");
    let bytes = fs::read(&path).unwrap();
    let cache = Cache::parse(&bytes).unwrap();
    assert!(cache.entries.len() > 50);
    assert_eq!(cache.hwcaps, [&b"x86-64-v2"[..], b"x86-64-v3"]);
    let ours = tmp.path().join("ours");
    let written = cache.write();
    fs::write(&ours, &written).unwrap();
    assert_eq!(printed(&ours), printed(&path));
    assert_eq!(Cache::parse(&written).unwrap(), cache);
}

#[test]
fn the_older_formats_hold_the_same() {
    let (tmp, dir) = with_libraries();
    let new = fs::read(real(tmp.path(), &[&dir], "new")).unwrap();
    let compat = fs::read(real(tmp.path(), &[&dir], "compat")).unwrap();
    let old = fs::read(real(tmp.path(), &[&dir], "old")).unwrap();
    let new = Cache::parse(&new).unwrap();
    assert_eq!(Cache::parse(&compat).unwrap(), new);
    let old = Cache::parse(&old).unwrap();
    assert!(old.entries.iter().any(|e| &*e.name == b"libgcx10.so.2"));
    assert!(old.hwcaps.is_empty());
}

#[test]
fn libraries_added_print_as_if_ldconfig_had_found_them() {
    let (tmp, dir) = with_libraries();
    let base = fs::read(real(tmp.path(), &[], "new")).unwrap();
    // Without the subdirectories: what is added has no hardware capabilities.
    fs::remove_dir_all(dir.join("glibc-hwcaps")).unwrap();
    let with = real(tmp.path(), &[&dir], "new");
    let names = [
        "libgcx.so.1",
        "libgcx-a.so.1",
        "libgcx10.so.2",
        "libgcx9.so.2",
    ];
    let paths: Vec<String> = names
        .iter()
        .map(|n| format!("{}/{n}", dir.display()))
        .collect();
    let mut cache = Cache::parse(&base).unwrap();
    let flags = flags(
        &Elf::read(&fs::File::open(dir.join("libgcx9.so.2")).unwrap())
            .unwrap()
            .unwrap(),
    );
    let new = names.iter().zip(&paths).map(|(n, p)| Entry {
        flags: flags.unwrap(),
        ..entry(n, p)
    });
    cache.put_first(new.clone().collect());
    // Once more changes nothing.
    cache.put_first(new.collect());
    let ours = tmp.path().join("ours");
    fs::write(&ours, cache.write()).unwrap();
    assert_eq!(printed(&ours), printed(&with));
}

#[test]
fn the_first_of_one_name_is_the_loaders_choice() {
    let mut cache = Cache::default();
    cache.put_first(vec![
        entry("liba.so.1", "/image/liba.so.1"),
        entry("libb.so.1", "/b"),
    ]);
    cache.put_first(vec![
        entry("liba.so.1", "/compat/liba.so.1"),
        entry("liba.so.1", "/driver/liba.so.1"),
        Entry {
            flags: 3,
            ..entry("liba.so.1", "/driver32/liba.so.1")
        },
    ]);
    let order = |c: &Cache| -> Vec<String> {
        let path = |e: &Entry| String::from_utf8(e.path.to_vec()).unwrap();
        c.entries.iter().map(path).collect()
    };
    let all = [
        "/b",
        "/compat/liba.so.1",
        "/driver/liba.so.1",
        "/image/liba.so.1",
        "/driver32/liba.so.1",
    ];
    assert_eq!(order(&cache), all);
    // One that is already there comes forward.
    cache.put_first(vec![entry("liba.so.1", "/image/liba.so.1")]);
    assert_eq!(order(&cache)[1], "/image/liba.so.1");
    assert_eq!(cache.entries.len(), 5);
}

#[test]
fn names_compare_as_the_loader_does() {
    use Ordering::*;
    for (a, b, expected) in [
        ("liba.so.9", "liba.so.10", Less),
        ("liba.so.1", "liba.so.1", Equal),
        ("liba.so.01", "liba.so.1", Equal),
        ("liba", "liba.so", Less),
        ("lib1", "liba", Greater),
        ("liba", "lib1", Less),
        ("", "1", Less),
        ("4294967295", "1", Less),
    ] {
        assert_eq!(libcmp(a.as_bytes(), b.as_bytes()), expected, "{a} {b}");
    }
}

#[test]
fn what_no_loader_would_read_is_none() {
    let mut cache = Cache::default();
    cache.put_first(vec![entry("liba.so.1", "/liba.so.1")]);
    let good = cache.write();
    for end in 0..NEW_HEADER + NEW_ENTRY {
        assert_eq!(Cache::parse(&good[..end]), None, "{end}");
    }
    let mut many = good.clone();
    put_u32(&mut many, 20, u32::MAX);
    assert_eq!(Cache::parse(&many), None);
    let mut big_endian = good.clone();
    big_endian[28] = 3;
    assert_eq!(Cache::parse(&big_endian), None);
    // An entry that points nowhere is left out.
    let mut nowhere = good;
    put_u32(&mut nowhere, NEW_HEADER + 4, u32::MAX);
    assert_eq!(Cache::parse(&nowhere).unwrap().entries, []);
}

#[test]
fn shared_strings_do_not_add_up_to_gigabytes() {
    let count = 150_000;
    let mut bytes = vec![0; NEW_HEADER + count * NEW_ENTRY];
    bytes[..20].copy_from_slice(MAGIC_NEW);
    put_u32(&mut bytes, 20, count as u32);
    let strings = bytes.len() as u32;
    for i in 0..count {
        put_u32(&mut bytes, NEW_HEADER + i * NEW_ENTRY + 4, strings);
        put_u32(&mut bytes, NEW_HEADER + i * NEW_ENTRY + 8, strings);
    }
    bytes.extend([b'x'; 4000]);
    bytes.push(0);
    assert_eq!(Cache::parse(&bytes), None);
}
