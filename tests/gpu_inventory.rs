//! The inventory, the driver's files, device nodes and the discovery cache, on a driver that isn't there.
//! What needs real device nodes needs root, and says so.

mod fakes;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fakes::{CAPS, Fake, LIB, LIB32, LIBRARIES, UVM, VERSION};
use gpucell::nvidia::cache::Driver;
use gpucell::nvidia::capabilities::Capabilities;
use gpucell::nvidia::files::{self, Place, gpu_edits, nodes_edits, switch_edits};
use gpucell::nvidia::inventory::{Chosen, Inventory};
use gpucell::nvidia::nodes::{self, State};
use gpucell::nvidia::select::{GpuId, Gpus, Request};
use gpucell::spec::edit::ContainerEdits;

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("not root: device nodes are not tested");
    }
    root
}

fn image() -> Place {
    Place::Image {
        lib_dir: "/usr/lib64".into(),
        lib32_dir: Some("/usr/lib".into()),
    }
}

fn caps(text: &str) -> Capabilities {
    Capabilities::parse(text).unwrap()
}

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

fn links(edits: &ContainerEdits) -> Vec<&str> {
    let mut links = Vec::new();
    for hook in edits
        .hooks
        .iter()
        .filter(|h| h.args[1] == "create-symlinks")
    {
        links.extend(
            hook.args
                .iter()
                .filter(|a| a.contains("::"))
                .map(|a| a.as_str()),
        );
    }
    links
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
    assert_eq!(
        mount.options,
        ["ro", "nosuid", "nodev", "rbind", "rprivate"]
    );
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

fn chosen(fake: &Fake, name: &str) -> (Inventory, Chosen) {
    let inv = Inventory::read(&fake.host()).unwrap();
    let one = inv.resolve(&GpuId::parse(name).unwrap()).unwrap();
    (inv, one)
}

#[test]
fn drm_nodes_for_graphics() {
    let fake = Fake::new(2);
    let (inv, gpu) = chosen(&fake, "1");
    let plain = gpu_edits(&inv, &gpu, caps("compute"), &image()).unwrap();
    assert_eq!(plain.device_nodes.len(), 1);
    assert!(plain.hooks.is_empty());
    let edits = gpu_edits(&inv, &gpu, caps("graphics"), &image()).unwrap();
    let paths: Vec<_> = edits
        .device_nodes
        .iter()
        .map(|n| n.path.to_str().unwrap())
        .collect();
    assert_eq!(
        paths,
        ["/dev/nvidia0", "/dev/dri/card2", "/dev/dri/renderD129"]
    );
    assert_eq!(edits.device_nodes[2].major, Some(226));
    assert_eq!(
        links(&edits),
        [
            "../card2::/dev/dri/by-path/pci-0000:1f:00.0-card",
            "../renderD129::/dev/dri/by-path/pci-0000:1f:00.0-render"
        ]
    );
}

#[test]
fn numbers_are_the_drivers() {
    if !root() {
        return;
    }
    let fake = Fake::new(1);
    let inv = Inventory::read(&fake.host()).unwrap();
    let all = nodes::control(&inv, Capabilities::ALL).unwrap();
    let paths: Vec<_> = all.iter().map(|n| n.path.to_str().unwrap()).collect();
    assert_eq!(
        paths,
        [
            "/dev/nvidiactl",
            "/dev/nvidia-uvm",
            "/dev/nvidia-uvm-tools",
            "/dev/nvidia-modeset"
        ]
    );
    assert!(
        all.iter()
            .all(|n| matches!(n.state().unwrap(), State::Here { mode: 0o666, .. }))
    );
    // nvidia-uvm is loaded again and gets another major: the node in /dev is old.
    fake.set_uvm(510);
    let inv = Inventory::read(&fake.host()).unwrap();
    let all = nodes::control(&inv, caps("compute")).unwrap();
    assert_eq!(
        all[1].state().unwrap(),
        State::Stale {
            major: UVM as u32,
            minor: 0
        }
    );
    let edits = nodes_edits(&all, &image()).unwrap();
    assert_eq!(edits.device_nodes[1].major, Some(510));
    // A CDI file leaves the numbers to its reader, but not when he would find wrong ones.
    let cdi = nodes_edits(&all, &Place::Host).unwrap();
    assert_eq!(
        (cdi.device_nodes[0].major, cdi.device_nodes[1].major),
        (None, Some(510))
    );
    assert_eq!(
        nodes::make_missing(&fake.host(), &all).unwrap(),
        [PathBuf::new(); 0]
    );
    assert!(
        all.iter()
            .all(|n| matches!(n.state().unwrap(), State::Here { .. }))
    );
}

#[test]
fn missing_nodes_are_made() {
    if !root() {
        return;
    }
    let fake = Fake::new(1);
    fake.mig(0, 1, 0);
    let (inv, part) = chosen(&fake, "0:0");
    fs::remove_dir_all(fake.path().join("dev")).unwrap();
    fs::create_dir(fake.path().join("dev")).unwrap();
    fake.put(
        "proc/driver/nvidia/params",
        "ModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 44\nDeviceFileMode: 432\n",
    );
    let mut all = nodes::control(&inv, caps("compute")).unwrap();
    all.extend(nodes::gpu_nodes(&inv, &part).unwrap());
    assert!(nodes::make_missing(&fake.host(), &all).unwrap().is_empty());
    for node in &all {
        let meta = fs::symlink_metadata(&node.host).unwrap();
        assert!(meta.file_type().is_char_device());
        assert_eq!(
            meta.rdev(),
            nix::sys::stat::makedev(node.major.into(), node.minor.into())
        );
        let (gid, mode) = if node.capability {
            (0, 0o444)
        } else {
            (44, 0o660)
        };
        assert_eq!(
            (meta.gid(), meta.permissions().mode() & 0o7777),
            (gid, mode)
        );
    }
    assert_eq!(
        fs::read_dir(fake.path().join("dev")).unwrap().count(),
        5,
        "no temporary file"
    );
    // Not everybody may open them: the cell's process joins the group, once.
    let edits = nodes_edits(&all, &image()).unwrap();
    assert_eq!(edits.additional_gids, [44]);
    assert_eq!(edits.device_nodes[0].file_mode, Some(0o660));
    assert_eq!(edits.device_nodes[0].permissions.as_deref(), Some("rw"));

    // The administrator makes his nodes himself.
    fs::remove_file(&all[0].host).unwrap();
    fake.put("proc/driver/nvidia/params", "ModifyDeviceFiles: 0\n");
    assert_eq!(
        nodes::make_missing(&fake.host(), &all).unwrap(),
        [all[0].host.clone()]
    );
    // Something else of that name is not ours to remove.
    fake.put("proc/driver/nvidia/params", "ModifyDeviceFiles: 1\n");
    fs::write(&all[0].host, "").unwrap();
    assert!(nodes::make_missing(&fake.host(), &all).is_err());
}

fn request() -> Request {
    Request {
        gpus: Gpus::None,
        capabilities: Capabilities::NONE,
        requirements: Vec::new(),
        mig_config: false,
        mig_monitor: false,
        imex: Vec::new(),
        gds: false,
        mofed: false,
        gdrcopy: false,
        nvswitch: false,
        mounts: Vec::new(),
        reason: "test".into(),
    }
}

#[test]
fn switches() {
    let fake = Fake::new(1);
    let inv = Inventory::read(&fake.host()).unwrap();
    let with = |change: &dyn Fn(&mut Request)| {
        let mut request = request();
        change(&mut request);
        switch_edits(&inv, &request, &image())
    };
    assert_eq!(with(&|_| {}).unwrap(), ContainerEdits::default());
    let edits = with(&|r| r.imex = vec![0, 7]).unwrap();
    assert_eq!(
        edits.device_nodes[1].path,
        Path::new("/dev/nvidia-caps-imex-channels/channel7")
    );
    assert_eq!(edits.device_nodes[1].minor, Some(7));
    assert!(with(&|r| r.imex = vec![1 << 20]).is_err());
    // What is switched on and not there is an error.
    let on: [(&dyn Fn(&mut Request), &str); 4] = [
        (&|r| r.gds = true, "GPUDirect Storage"),
        (&|r| r.mofed = true, "OFED"),
        (&|r| r.gdrcopy = true, "GDRCopy"),
        (&|r| r.nvswitch = true, "NVSwitch"),
    ];
    for (switch, what) in on {
        let error = with(switch).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    if !root() {
        return;
    }
    for (name, minor) in [
        ("nvidia-fs0", 0),
        ("nvidia-fs1", 1),
        ("infiniband/uverbs0", 2),
        ("infiniband/rdma_cm", 3),
        ("gdrdrv", 4),
        ("nvidia-nvswitch0", 5),
        ("nvidia-nvswitchctl", 6),
    ] {
        fake.node(name, 510, minor, 0o666);
    }
    fake.put("driver/etc/cufile.json", "{}");
    let counts: Vec<_> = on
        .iter()
        .map(|(s, _)| with(*s).unwrap().device_nodes.len())
        .collect();
    assert_eq!(counts, [2, 2, 1, 2]);
    let edits = with(&|r| r.gds = true).unwrap();
    assert_eq!(
        edits.mounts[0].container_path,
        Path::new("/etc/cufile.json")
    );
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
    // Just made: it may still change within the same tick.
    let (first, _) = discover(&fake, &state);
    settle();
    assert!(discover(&fake, &state).1);
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
    let evil = String::from_utf8(good.clone())
        .unwrap()
        .replace("/usr/bin/nvidia-smi", "/usr/bin/nvidia-evil");
    assert_ne!(evil.as_bytes(), good);
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
    for rubbish in ["", "{", "[]", "null", &evil[..evil.len() / 2]] {
        fs::write(&file, rubbish).unwrap();
        assert!(smi(&discover(&fake, &state).0), "{rubbish:.20}");
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

/// `gpucell gpu …` on the fake host.
fn gpucell(fake: &Fake, args: &[&str]) -> (i32, String, String) {
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_gpucell"))
        .env("GPUCELL_CONFIG", fake.config())
        .arg("--root")
        .arg(fake.path().join("state"))
        .args(args)
        .output()
        .unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (
        done.status.code().unwrap(),
        text(done.stdout),
        text(done.stderr),
    )
}

#[test]
fn the_list_says_who_has_what() {
    let fake = Fake::new(2);
    fake.mig(1, 2, 0);
    let cap = fake.cap(1, 2, Some(0));
    // Two cells as the store keeps them; both are alive as long as we are.
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let start = stat
        .rsplit(") ")
        .next()
        .unwrap()
        .split(' ')
        .nth(19)
        .unwrap();
    for (id, devices) in [
        (
            "whole",
            r#"[{"path":"/dev/nvidia1","type":"c","major":195,"minor":1}]"#.to_owned(),
        ),
        (
            "part",
            format!(
                r#"[{{"path":"/dev/nvidia0","type":"c","major":195,"minor":0}},
                    {{"path":"/dev/nvidia-caps/nvidia-cap{cap}","type":"c","major":{CAPS},"minor":{cap}}}]"#
            ),
        ),
    ] {
        let pid = std::process::id();
        fake.put(
            format!("state/{id}/state.json"),
            format!(
                r#"{{"ociVersion":"1.3.0","id":"{id}","pid":{pid},"startTime":{start},"bundle":"/b",
                "rootfs":"/r","created":"2026-01-01T00:00:00Z","owner":0,"cgroup":{},
                "driver":"cgroupfs","ownPidNs":true}}"#,
                serde_json::to_string(&gpucell::cgroup::CgroupState::default()).unwrap()
            ),
        );
        fake.put(
            format!("state/{id}/config.json"),
            format!(r#"{{"linux":{{"devices":{devices}}}}}"#),
        );
    }
    let (code, out, err) = gpucell(&fake, &["gpu", "list", "--format", "json"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let list: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(list["driver"], VERSION);
    assert_eq!(list["gpus"][0]["cells"], serde_json::json!(["whole"]));
    assert_eq!(list["gpus"][0]["minor"], 1);
    assert_eq!(list["gpus"][1]["mig"][0]["name"], "1:0");
    assert_eq!(
        list["gpus"][1]["mig"][0]["cells"],
        serde_json::json!(["part"])
    );

    let (_, out, _) = gpucell(&fake, &["gpu", "list"]);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 1 + 3 + 1, "{out}");
    assert!(lines[1].starts_with("0      NVIDIA A100-SXM4-40GB") && lines[1].ends_with("whole"));
    assert!(lines[4].contains("CUDA 12.4"));

    let (code, out, _) = gpucell(&fake, &["gpu", "show", "1:0"]);
    assert_eq!(code, 0);
    assert!(
        out.contains(&format!("/dev/nvidia-caps/nvidia-cap{cap} {CAPS}:{cap}")),
        "{out}"
    );
    assert!(out.contains("part"));
    let (code, _, err) = gpucell(&fake, &["gpu", "show", "7"]);
    assert!(code == 1 && err.contains("doesn't exist"), "{err}");
}
