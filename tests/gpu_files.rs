//! The inventory and the driver's files, on a driver that isn't there.

mod fakes;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use fakes::{CAPS, Fake, LIB, LIB32, LIBRARIES, VERSION, caps, image, links};
use gpucell::nvidia::capabilities::Capabilities;
use gpucell::nvidia::files::{self, Place};
use gpucell::nvidia::inventory::Inventory;
use gpucell::nvidia::nodes;
use gpucell::nvidia::select::GpuId;
use gpucell::spec::edit::ContainerEdits;

fn common(fake: &Fake, caps: Capabilities, place: &Place) -> gpucell::Result<ContainerEdits> {
    let inv = Inventory::read(&fake.host())?;
    files::find(&fake.host(), &inv)?.common_edits(&inv, caps, place)
}

/// Names of what is mounted.
fn mounted(edits: &ContainerEdits) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for mount in &edits.mounts {
        names.extend(mount.container_path.file_name().and_then(|n| n.to_str()));
    }
    names
}

#[test]
fn gpus_in_bus_order() {
    for count in [0, 1, 2, 8] {
        let fake = Fake::new(count);
        let inv = Inventory::read(&fake.host()).unwrap();
        assert_eq!(inv.driver, VERSION);
        assert_eq!(inv.cuda.as_deref(), Some("12.4"));
        assert_eq!(inv.gpus.len(), count as usize);
        for (index, gpu) in inv.gpus.iter().enumerate() {
            let index = index as u32;
            assert_eq!(gpu.index, index);
            assert_eq!(gpu.bus, Fake::bus(index));
            assert_eq!(gpu.uuid, Some(Fake::uuid(index)));
            assert_eq!(
                gpu.minor,
                fake.minor(index),
                "index and minor are two things"
            );
            for name in [index.to_string(), Fake::bus(index), Fake::uuid(index)] {
                let found = inv.resolve(&GpuId::parse(&name).unwrap()).unwrap();
                assert_eq!(&found.gpu, gpu, "{name}");
            }
        }
    }
}

#[test]
fn what_is_not_there_is_an_error() {
    let fake = Fake::new(2);
    let inv = Inventory::read(&fake.host()).unwrap();
    for (id, why) in [
        ("2", "2 GPU(s)"),
        ("GPU-00000000-11c1-52b8-0517-92f30e7fac00", "doesn't exist"),
        ("0000:ff:00.0", "doesn't exist"),
        ("0:0", "doesn't exist"),
        ("MIG-00000000-11c1-52b8-0517-92f30e7fac00", "NVML"),
    ] {
        let error = inv
            .resolve(&GpuId::parse(id).unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains(why), "{id}: {error}");
    }
    fs::remove_file(fake.path().join("proc/driver/nvidia/version")).unwrap();
    let error = Inventory::read(&fake.host()).unwrap_err().to_string();
    assert!(error.contains("modprobe nvidia"), "{error}");
}

#[test]
fn a_sleeping_gpu_has_no_uuid() {
    let fake = Fake::new(1);
    fake.set_gpu(0, "GPU-????????-????-????-????-????????????", 0);
    let inv = Inventory::read(&fake.host()).unwrap();
    assert_eq!(inv.gpus[0].uuid, None);
    let id = GpuId::parse(&Fake::uuid(0)).unwrap();
    let error = inv.resolve(&id).unwrap_err().to_string();
    assert!(error.contains("nvidia-persistenced"), "{error}");
}

#[test]
fn mig_devices() {
    let fake = Fake::new(2);
    fake.mig(1, 10, 0);
    fake.mig(1, 2, 0);
    fake.mig(1, 2, 1);
    let inv = Inventory::read(&fake.host()).unwrap();
    let all = inv.all().unwrap();
    let parts: Vec<_> = all
        .iter()
        .map(|c| {
            (
                c.gpu.index,
                c.mig.map(|m| (m.index, m.gpu_instance, m.compute_instance)),
            )
        })
        .collect();
    // By number, not by text: 2 comes before 10.
    assert_eq!(
        parts,
        [
            (0, None),
            (1, Some((0, 2, 0))),
            (1, Some((1, 2, 1))),
            (1, Some((2, 10, 0)))
        ]
    );
    let second = inv.resolve(&GpuId::parse("1:1").unwrap()).unwrap();
    let old = format!("MIG-{}/2/1", Fake::uuid(1));
    assert_eq!(inv.resolve(&GpuId::parse(&old).unwrap()).unwrap(), second);
    assert!(inv.resolve(&GpuId::parse("1:3").unwrap()).is_err());

    // Parent, GPU instance, compute instance.
    let nodes = nodes::gpu_nodes(&inv, &second).unwrap();
    let cap = |ci| fake.cap(1, 2, ci);
    let wanted = [
        (PathBuf::from("/dev/nvidia0"), 195, 0),
        (
            format!("/dev/nvidia-caps/nvidia-cap{}", cap(None)).into(),
            CAPS as u32,
            cap(None),
        ),
        (
            format!("/dev/nvidia-caps/nvidia-cap{}", cap(Some(1))).into(),
            CAPS as u32,
            cap(Some(1)),
        ),
    ];
    let got: Vec<_> = nodes
        .iter()
        .map(|n| (n.path.clone(), n.major, n.minor))
        .collect();
    assert_eq!(got, wanted);
    // All of a split GPU: its node, two GPU instances, three compute instances.
    let whole = inv.resolve(&GpuId::Index(1)).unwrap();
    assert_eq!(nodes::gpu_nodes(&inv, &whole).unwrap().len(), 1 + 2 + 3);
    // Control.
    let both = nodes::mig_control(&inv, true, true).unwrap();
    assert_eq!(both.iter().map(|n| n.minor).collect::<Vec<_>>(), [1, 2]);
}

/// nvidia.md §2: what each capability brings.
#[test]
fn files_by_capability() {
    let fake = Fake::new(1);
    let has = |asked: &str, place: &Place| {
        let edits = common(&fake, caps(asked), place).unwrap();
        mounted(&edits)
            .into_iter()
            .map(str::to_owned)
            .collect::<BTreeSet<_>>()
    };
    let v = |stem: &str| format!("{stem}.so.{VERSION}");
    let place = image();
    let utility = has("utility", &place);
    for name in [
        "nvidia-smi",
        "nvidia-debugdump",
        "nvidia-persistenced",
        "nv-fabricmanager",
        "socket",
    ] {
        assert!(utility.contains(name), "{name}");
    }
    assert!(utility.contains(&v("libnvidia-ml")) && utility.contains("gsp_ga10x.bin"));
    assert!(!utility.contains(&v("libcuda")));
    let compute = has("compute", &place);
    for stem in [
        "libcuda",
        "libnvidia-nvvm",
        "libnvidia-gpucomp",
        "libnvidia-allocator",
    ] {
        assert!(compute.contains(&v(stem)), "{stem}");
    }
    assert!(compute.contains("nvidia-cuda-mps-server") && compute.contains("nvidia-mps"));
    assert!(!compute.contains(&v("libnvidia-ml")) && !compute.contains(&v("libnvcuvid")));
    let video = has("video", &place);
    assert!(video.contains(&v("libcuda")) && video.contains(&v("libnvcuvid")));
    assert!(video.contains(&v("libvdpau_nvidia")));
    assert!(has("ngx", &place).contains(&v("libnvidia-ngx")));
    let graphics = has("graphics", &place);
    for name in [
        "10_nvidia.json",
        "15_nvidia_gbm.json",
        "nvidia_icd.json",
        "nvidia.icd",
        "nvoptix.bin",
        "nvidia_drv.so",
        "libnvidia-egl-gbm.so.1.1.1",
    ] {
        assert!(graphics.contains(name), "{name}");
    }
    assert!(graphics.contains(&v("libGLX_nvidia")) && !graphics.contains(&v("libcuda")));
    assert_eq!(graphics, has("display", &place));
    // Everything, and nothing of other drivers or other people.
    let all = has("all", &place);
    for (stem, _) in LIBRARIES {
        assert!(all.contains(&v(stem)), "{stem}");
    }
    assert!(
        !has("compute,utility,video,graphics,ngx,display", &place)
            .contains(&v("libnvidia-brandnew"))
    );
    for name in [
        "libz.so.1.3",
        "libcuda.so.535.1.1",
        "libnvidia-container.so.1.17.0",
        "libcuda.so.1",
    ] {
        assert!(!all.contains(name), "{name}");
    }
}

#[test]
fn places() {
    let fake = Fake::new(1);
    let edits = common(&fake, caps("compute,utility,compat32"), &image()).unwrap();
    let at = |inside: String| {
        edits
            .mounts
            .iter()
            .find(|m| m.container_path == Path::new(&inside))
    };
    let cuda = format!("libcuda.so.{VERSION}");
    let mount = at(format!("/usr/lib64/{cuda}")).unwrap();
    assert_eq!(mount.host_path, fake.root().join(&LIB[1..]).join(&cuda));
    assert_eq!(mount.options, ["ro", "nosuid", "nodev", "bind", "private"]);
    let mount = at(format!("/usr/lib/{cuda}")).unwrap();
    assert_eq!(mount.host_path, fake.root().join(&LIB32[1..]).join(&cuda));
    assert!(at("/usr/bin/nvidia-smi".into()).is_some());
    let socket = at("/run/nvidia-persistenced/socket".into()).unwrap();
    assert_eq!(
        socket.options,
        ["nosuid", "nodev", "noexec", "rbind", "rprivate"]
    );
    assert!(at(format!("/lib/firmware/nvidia/{VERSION}/gsp_tu10x.bin")).is_some());

    let edits = common(&fake, caps("compute,utility"), &Place::Host).unwrap();
    let at = |inside: String| {
        edits
            .mounts
            .iter()
            .find(|m| m.container_path == Path::new(&inside))
    };
    assert!(at(format!("{LIB}/{cuda}")).is_some());
    assert!(at(format!("{LIB32}/{cuda}")).is_none());
    let none = Place::Image {
        lib_dir: "/usr/lib64".into(),
        lib32_dir: None,
    };
    assert!(common(&fake, caps("compute,compat32"), &none).is_err());
    assert!(common(&fake, Capabilities::ALL, &none).is_ok());
}

#[test]
fn links_and_work() {
    let fake = Fake::new(1);
    let edits = common(&fake, Capabilities::ALL, &image()).unwrap();
    let links = links(&edits);
    for link in [
        "libcuda.so.1::/usr/lib64/libcuda.so".to_owned(),
        format!("libcuda.so.{VERSION}::/usr/lib64/libcuda.so.1"),
        format!("libcuda.so.{VERSION}::/usr/lib/libcuda.so.1"),
        format!("libGLX_nvidia.so.{VERSION}::/usr/lib64/libGLX_indirect.so.0"),
        "libnvidia-opticalflow.so.1::/usr/lib64/libnvidia-opticalflow.so".to_owned(),
        "../libnvidia-allocator.so.1::/usr/lib64/gbm/nvidia-drm_gbm.so".to_owned(),
        "libnvidia-egl-gbm.so.1.1.1::/usr/lib64/libnvidia-egl-gbm.so.1".to_owned(),
    ] {
        assert!(links.contains(&link.as_str()), "{link} not in {links:#?}");
    }
    let names: Vec<_> = edits.hooks.iter().map(|h| h.args[1].as_str()).collect();
    assert_eq!(
        names,
        [
            "create-symlinks",
            "enable-cuda-compat",
            "update-ldcache",
            "disable-device-node-modification",
            "update-application-profile"
        ]
    );
    assert!(
        edits.hooks[1]
            .args
            .contains(&format!("--host-driver-version={VERSION}"))
    );
    assert!(
        edits.hooks[2]
            .args
            .iter()
            .any(|a| a.ends_with("/usr/lib64"))
    );
    // Without CUDA nothing of it; a SONAME that is the file's own name needs no link.
    let edits = common(&fake, caps("utility"), &image()).unwrap();
    assert!(
        !edits
            .hooks
            .iter()
            .any(|h| h.args[1] == "enable-cuda-compat")
    );
    assert!(links_of(&edits).iter().all(|l| !l.contains("libcuda")));
    let edits = common(&fake, caps("graphics"), &image()).unwrap();
    let own = format!("::/usr/lib64/libnvidia-glcore.so.{VERSION}");
    assert!(links_of(&edits).iter().all(|l| !l.ends_with(&own)));
}

fn links_of(edits: &ContainerEdits) -> Vec<String> {
    links(edits).into_iter().map(str::to_owned).collect()
}

/// A capability that is asked for by name and isn't there stops the cell (fail closed); `all` means all
/// there is.
#[test]
fn a_missing_capability_is_named() {
    let fake = Fake::new(1);
    for stem in [
        "libnvcuvid",
        "libnvidia-encode",
        "libnvidia-glcore",
        "libnvidia-eglcore",
    ] {
        fs::remove_file(
            fake.root()
                .join(&LIB[1..])
                .join(format!("{stem}.so.{VERSION}")),
        )
        .unwrap();
    }
    for asked in ["video", "compute,utility,graphics", "display"] {
        let error = common(&fake, caps(asked), &image())
            .unwrap_err()
            .to_string();
        assert!(error.contains(VERSION), "{asked}: {error}");
    }
    assert!(common(&fake, caps("compute,utility"), &image()).is_ok());
    assert!(common(&fake, Capabilities::ALL, &image()).is_ok());
    // Libraries of another version than the module's: none at all.
    fake.set_version("555.42.02");
    for asked in ["all", "utility"] {
        let error = common(&fake, caps(asked), &image())
            .unwrap_err()
            .to_string();
        assert!(error.contains("555.42.02"), "{asked}: {error}");
    }
    // Without nvidia-uvm there is no CUDA.
    fake.set_version(VERSION);
    fake.set_uvm(0);
    let error = common(&fake, caps("compute"), &image())
        .unwrap_err()
        .to_string();
    assert!(error.contains("modprobe nvidia-uvm"), "{error}");
    assert!(common(&fake, caps("utility"), &image()).is_ok());
}

/// A link of the driver root leads inside it, whatever it says.
#[test]
fn links_stay_in_the_driver_root() {
    let fake = Fake::new(1);
    let lib = fake.root().join(&LIB[1..]);
    let cuda = lib.join(format!("libcuda.so.{VERSION}"));
    // As Debian's alternatives: absolute, meant within the root.
    fs::create_dir_all(fake.root().join("opt/nvidia")).unwrap();
    fs::rename(&cuda, fake.root().join("opt/nvidia/cuda")).unwrap();
    symlink("/opt/nvidia/cuda", &cuda).unwrap();
    // One that would leave it: the host's own file of that name is not taken.
    let outside = fake.put(
        "outside/libnvidia-ml",
        fakes::shared_object("libnvidia-ml.so.1", true),
    );
    let ml = lib.join(format!("libnvidia-ml.so.{VERSION}"));
    fs::remove_file(&ml).unwrap();
    symlink(&outside, &ml).unwrap();
    let edits = common(&fake, caps("compute"), &image()).unwrap();
    let name = format!("libcuda.so.{VERSION}");
    let mount = edits
        .mounts
        .iter()
        .find(|m| m.container_path.ends_with(&name))
        .unwrap();
    assert_eq!(mount.host_path, fake.root().join("opt/nvidia/cuda"));
    assert!(common(&fake, caps("utility"), &image()).is_err());
}

/// Not a library, of another machine, a FIFO, a folder: passed over, without waiting and without panic.
#[test]
fn odd_files_of_the_right_name() {
    let fake = Fake::new(1);
    let at = |stem: &str| format!("driver{LIB}/{stem}.so.{VERSION}");
    fake.put(at("libnvidia-encode"), "no ELF file");
    fake.put(at("libnvidia-ngx"), "");
    let mut other = fakes::shared_object("libnvidia-cfg.so.1", true);
    other[18] = 0xf3; // RISC-V
    fake.put(at("libnvidia-cfg"), other);
    let fifo = fake.path().join(at("libnvidia-opencl"));
    fs::remove_file(&fifo).unwrap();
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let dir = fake.path().join(at("libnvidia-nscq"));
    fs::remove_file(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    let edits = common(&fake, Capabilities::ALL, &image()).unwrap();
    let names = mounted(&edits);
    for stem in [
        "libnvidia-encode",
        "libnvidia-ngx",
        "libnvidia-cfg",
        "libnvidia-opencl",
        "libnvidia-nscq",
    ] {
        assert!(
            !names.contains(format!("{stem}.so.{VERSION}").as_str()),
            "{stem}"
        );
    }
}

/// Folders that only ld.so.cache and /usr/local/nvidia tell of.
#[test]
fn further_folders() {
    let fake = Fake::new(1);
    let name = format!("libcuda.so.{VERSION}");
    fs::remove_file(fake.root().join(&LIB[1..]).join(&name)).unwrap();
    assert!(common(&fake, caps("compute"), &image()).is_err());
    fake.library("/opt/strange", &name, "libcuda.so.1", true);
    fake.put(
        "driver/etc/ld.so.cache",
        fakes::ld_cache(&[("libcuda.so.1", "/opt/strange/libcuda.so.1")]),
    );
    let edits = common(&fake, caps("compute"), &Place::Host).unwrap();
    let mount = edits
        .mounts
        .iter()
        .find(|m| m.container_path.ends_with(&name))
        .unwrap();
    assert_eq!(mount.container_path, Path::new("/opt/strange").join(&name));
    fs::write(fake.root().join("etc/ld.so.cache"), "rubbish").unwrap();
    assert!(common(&fake, caps("compute"), &image()).is_err());
    fake.library("/usr/local/nvidia/lib64", &name, "libcuda.so.1", true);
    assert!(common(&fake, caps("compute"), &image()).is_ok());
}

/// Anybody can make /tmp/nvidia-mps: a link there must not bring another folder into a cell.
#[test]
fn the_pipes_of_mps_are_no_link() {
    let fake = Fake::new(1);
    let pipes = fake.root().join("tmp/nvidia-mps");
    let here = |fake: &Fake| {
        let edits = common(fake, caps("compute"), &image()).unwrap();
        mounted(&edits).contains("nvidia-mps")
    };
    assert!(here(&fake));
    fs::remove_dir(&pipes).unwrap();
    symlink("/etc", &pipes).unwrap();
    assert!(!here(&fake));
    fs::remove_file(&pipes).unwrap();
    fs::write(&pipes, "").unwrap();
    assert!(!here(&fake));
    fs::remove_file(&pipes).unwrap();
    fs::create_dir(&pipes).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&pipes, Some(1000), None).unwrap();
        assert!(!here(&fake));
    }
}

/// The fake's own claim: its libraries are ones that this machine's loader takes.
#[test]
fn the_loader_takes_the_fakes() {
    let fake = Fake::new(0);
    let cuda = fake
        .root()
        .join(&LIB[1..])
        .join(format!("libcuda.so.{VERSION}"));
    let done = std::process::Command::new("/bin/true")
        .env("LD_PRELOAD", &cuda)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.is_empty(), "{said}");
}
