//! Device nodes on a driver that isn't there. What needs real ones needs root, and says so.

mod fakes;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use fakes::{Fake, UVM, caps, image, links};
use gpucell::nvidia::capabilities::Capabilities;
use gpucell::nvidia::files::{Place, gpu_edits, nodes_edits, switch_edits};
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
    assert!(nodes::make_missing(&fake.host(), &all).unwrap().is_empty());
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
    type Switch<'a> = (&'a dyn Fn(&mut Request), &'a str);
    let on: [Switch; 4] = [
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
