use super::*;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

struct Image {
    dir: tempfile::TempDir,
    held: File,
    spec: Spec,
}

impl Image {
    fn new(spec: &str) -> Image {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/etc")).unwrap();
        let held = File::open(dir.path().join("root")).unwrap();
        let spec = serde_json::from_str(spec).unwrap();
        Image { dir, held, spec }
    }

    fn put(&self, path: &str, content: &[u8]) {
        let at = self.dir.path().join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, content).unwrap();
    }

    fn lower(&self, works: &[Work]) -> Vec<InRoot> {
        let cell = Cell {
            root: self.held.as_fd(),
            spec: &self.spec,
            bundle: self.dir.path(),
            proc: &self.dir.path().join("proc"),
            driver: None,
        };
        let plan = lower(works, &cell).unwrap();
        assert!(plan.temp.to_bytes().starts_with(b".gpucell."));
        plan.steps
    }
}

const PLAIN: &str = r#"{"ociVersion":"1.0.0","root":{"path":"root"}}"#;

fn in_root(path: &str) -> OwnPath {
    OwnPath {
        within: None,
        path: CString::new(path).unwrap(),
    }
}

#[test]
fn links_go_where_the_hook_says() {
    let spec = r#"{"ociVersion":"1.0.0","root":{"path":"root"},"mounts":[
        {"destination":"/dev","type":"tmpfs","source":"tmpfs"},
        {"destination":"/dev/pts","type":"devpts","source":"devpts"},
        {"destination":"/lib/b.so.1","type":"bind","source":"/x"}]}"#;
    let link = |to: &str, at: &str| (PathBuf::from(to), PathBuf::from(at));
    let got = Image::new(spec).lower(&[Work::Symlinks(vec![
        link("a.so.1", "/lib/./x/../a.so"),
        link("../card0", "/dev/dri/by-path/card"),
        // Something is mounted there.
        link("b.so.2", "/lib/b.so.1"),
    ])]);
    let within = OwnPath {
        within: Some(c"/dev".into()),
        path: c"/dri/by-path/card".into(),
    };
    let expected = [
        InRoot::Symlink {
            at: in_root("/lib/a.so"),
            to: c"a.so.1".into(),
        },
        InRoot::Symlink {
            at: within,
            to: c"../card0".into(),
        },
    ];
    assert_eq!(got, expected);
}

#[test]
fn params_are_those_of_the_host() {
    let image = Image::new(PLAIN);
    assert_eq!(image.lower(&[Work::KeepDeviceNodes]), []);
    image.put(
        "proc/driver/nvidia/params",
        b"A: 1\nModifyDeviceFiles: 1\nB: 2\n",
    );
    let expected = InRoot::File {
        at: in_root("/proc/driver/nvidia/params"),
        content: b"A: 1\nModifyDeviceFiles: 0\nB: 2\n".to_vec(),
        mode: 0o444,
        how: How::CoverExisting,
    };
    assert_eq!(image.lower(&[Work::KeepDeviceNodes]), [expected]);
    image.put("proc/driver/nvidia/params", b"ModifyDeviceFiles: 0\n");
    assert_eq!(image.lower(&[Work::KeepDeviceNodes]), []);
}

#[test]
fn the_profile_shows_the_cells_gpus() {
    let spec = r#"{"ociVersion":"1.0.0","root":{"path":"root","readonly":true},
        "mounts":[{"destination":"/dev/nvidia3","type":"bind","source":"/dev/nvidia3","options":["bind"]}],
        "linux":{"devices":[
            {"path":"/dev/nvidia1","type":"c","major":195,"minor":1},
            {"path":"/dev/nvidiactl","type":"c","major":195,"minor":255},
            {"path":"/dev/nvidia-uvm","type":"c","major":511,"minor":0}]}}"#;
    let image = Image::new(spec);
    let got = image.lower(&[Work::ApplicationProfile]);
    let [
        InRoot::File {
            at, content, how, ..
        },
    ] = &got[..]
    else {
        panic!("{got:?}");
    };
    assert_eq!(*at, in_root(hook::PROFILE_PATH));
    assert_eq!(*how, How::Cover);
    assert_eq!(
        *content,
        hook::application_profile([1, 3]).unwrap().into_bytes()
    );
    // One for other GPUs is replaced, the same one is left alone.
    let there = format!("root{}", hook::PROFILE_PATH);
    image.put(&there, hook::application_profile([1]).unwrap().as_bytes());
    assert_eq!(image.lower(&[Work::ApplicationProfile]), got);
    image.put(&there, content);
    assert_eq!(image.lower(&[Work::ApplicationProfile]), []);
    assert_eq!(Image::new(PLAIN).lower(&[Work::ApplicationProfile]), []);
}

#[test]
fn a_folder_with_nothing_in_it_still_gets_a_cache_and_a_drop_in() {
    let image = Image::new(PLAIN);
    image.put("root/etc/ld.so.conf.d/x.conf", b"");
    let work = Work::LdCache(vec![
        "/opt/lib".into(),
        "/usr/lib".into(),
        "/opt/lib/".into(),
    ]);
    let got = image.lower(&[work]);
    let [
        InRoot::File { at: cache, .. },
        InRoot::File {
            at, content, how, ..
        },
    ] = &got[..]
    else {
        panic!("{got:?}");
    };
    assert_eq!(*cache, in_root("/etc/ld.so.cache"));
    assert_eq!(*at, in_root("/etc/ld.so.conf.d/00-gpucell.conf"));
    // /usr/lib is searched anyway.
    assert_eq!(content, b"/opt/lib\n");
    assert_eq!(*how, How::Optional);
}

#[test]
fn musl_gets_its_path_file_and_nothing_else() {
    let image = Image::new(PLAIN);
    let loader = libraries_loader();
    image.put(&format!("root/lib/{loader}.so.1"), b"");
    let path = format!("/etc/{loader}.path");
    let work = || [Work::LdCache(vec!["/opt/lib".into(), "/usr/lib".into()])];
    let content = |got: Vec<InRoot>| match &got[..] {
        [InRoot::File { at, content, .. }] if *at == in_root(&path) => {
            String::from_utf8(content.clone()).unwrap()
        }
        [] => String::new(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        content(image.lower(&work())),
        "/lib:/usr/local/lib:/usr/lib\n/opt/lib\n"
    );
    image.put(&format!("root{path}"), b"/a:/usr/lib\n\n");
    assert_eq!(content(image.lower(&work())), "/a:/usr/lib\n/opt/lib\n");
    image.put(&format!("root{path}"), b"/opt/lib\n/usr/lib\n");
    assert_eq!(content(image.lower(&work())), "");
}

fn libraries_loader() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "ld-musl-aarch64",
        _ => "ld-musl-x86_64",
    }
}

#[test]
fn what_the_image_has_in_the_way_is_not_waited_for() {
    let image = Image::new(PLAIN);
    let root = image.dir.path().join("root");
    nix::unistd::mkfifo(&root.join("etc/ld.so.cache"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    fs::create_dir(root.join("usr")).unwrap();
    symlink("/loop", root.join("usr/local")).unwrap();
    let works = [
        Work::CudaCompat {
            host_driver: "550.1".into(),
        },
        Work::LdCache(vec!["/loop/x".into()]),
    ];
    assert!(matches!(&image.lower(&works)[..], [InRoot::File { .. }]));
}
