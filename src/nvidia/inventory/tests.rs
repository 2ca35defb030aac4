use super::*;

const A100: &str = "Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 171\nGPU UUID: \t \
    GPU-EDFEE158-11c1-52b8-0517-92f30e7fac88\nVideo BIOS: \t 92.00.45.00.06\nBus Type: \t PCIe\n\
    DMA Mask: \t 0x7fffffffffff\nBus Location: \t 0000:0F:00.0\nDevice Minor: \t 2\n\
    GPU Excluded:\t No\n";

#[test]
fn versions() {
    for (text, found) in [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.309.01  Fri Oct  3 2025\nGCC version: 12.2\n",
            Some("535.309.01"),
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (x@y)  1.2\n",
            Some("570.86.15"),
        ),
        ("NVRM version: NVIDIA UNIX\nGCC version: gcc 12.2.0\n", None),
        ("NVRM version: 550./../../etc\n", None),
        ("", None),
    ] {
        assert_eq!(procfs::version(text), found, "{text}");
    }
    for bad in ["550", "550.", ".1", "1..2", "550.1a", "9999999.1"] {
        assert!(!is_version(bad), "{bad}");
    }
}

#[test]
fn a_gpu() {
    let (order, gpu) = procfs::gpu(A100, "0000:0f:00.0").unwrap().unwrap();
    assert_eq!(order, (0, 0x0f, 0, 0));
    assert_eq!(gpu.minor, 2);
    assert_eq!(gpu.bus, "0000:0f:00.0");
    assert_eq!(gpu.model.as_deref(), Some("NVIDIA A100-SXM4-40GB"));
    // What the inventory holds is what a user's name is read to.
    let id = GpuId::parse("GPU-edfee158-11C1-52b8-0517-92f30e7fac88").unwrap();
    assert_eq!(id, GpuId::Uuid(gpu.uuid.unwrap()));
    assert_eq!(GpuId::parse("0:f:0.0").unwrap(), GpuId::Bus(gpu.bus));
}

#[test]
fn odd_information() {
    let sleeping = A100.replace(
        "GPU-EDFEE158-11c1-52b8-0517-92f30e7fac88",
        "GPU-????????-????-????-????-????????????",
    );
    let (_, gpu) = procfs::gpu(&sleeping, "x").unwrap().unwrap();
    assert_eq!(gpu.uuid, None);
    let excluded = A100.replace("No\n", "Yes\n");
    assert_eq!(procfs::gpu(&excluded, "x"), Ok(None));
    // Without the line, the directory's name says it.
    let (_, gpu) = procfs::gpu("Device Minor: 1", "0001:02:1f.7")
        .unwrap()
        .unwrap();
    assert_eq!(gpu.bus, "0001:02:1f.7");
    for (text, why) in [
        ("", "Device Minor"),
        ("Device Minor: -1", "-1"),
        ("Device Minor: 255", "255"),
        ("Device Minor: 99999999999", "99999999999"),
        ("::::\nDevice Minor: 0\nBus Location: ../../x", "../../x"),
        ("Device Minor: 0\nBus Location: 0:1:20.0", "0:1:20.0"),
        ("Device Minor: 0\nBus Location: 0:1:1.8", "0:1:1.8"),
        ("Device Minor: 0\nBus Location: +0:1:1.0", "+0:1:1.0"),
    ] {
        let error = procfs::gpu(text, "no").unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn major_numbers() {
    let new = "Character devices:\n  1 mem\n195 nvidia\n195 nvidia-modeset\n195 nvidiactl\n\
        234 nvidia-caps-imex-channels\n237 nvidia-caps\nodd line here\n511 nvidia-uvm\n\n\
        Block devices:\n  7 loop\n  9 nvidia-uvm\n";
    assert_eq!(
        procfs::majors(new),
        Majors {
            nvidia: Some(195),
            uvm: Some(511),
            caps: Some(237),
            imex: Some(234)
        }
    );
    let old = procfs::majors("Character devices:\n195 nvidia-frontend\n");
    assert_eq!((old.nvidia, old.uvm), (Some(195), None));
    assert_eq!(procfs::majors(""), Majors::default());
}

#[test]
fn params() {
    let made = Params::parse(
        "DeviceFileUID: 0\nDeviceFileGID: 44\nDeviceFileMode: 432\nModifyDeviceFiles: 0\n",
    );
    assert_eq!(
        made,
        Params {
            uid: 0,
            gid: 44,
            mode: 0o660,
            modify: false
        }
    );
    let none = Params::parse("RegistryDwords: \"\"\nDeviceFileMode: x\n");
    assert_eq!((none.mode, none.gid, none.modify), (0o666, 0, true));
}

#[test]
fn who_has_another_kind_of_driver_is_told_so() {
    let rows = [
        (None, "modprobe nvidia"),
        (Some(("dev/dxg", "")), "--mode=wsl"),
        (Some(("etc/nv_tegra_release", "# R36")), "--mode=csv"),
        (Some(("sys/devices/soc0/family", "Tegra\n")), "--mode=csv"),
        (
            Some(("sys/devices/soc0/family", "Snapdragon\n")),
            "modprobe nvidia",
        ),
    ];
    for (file, words) in rows {
        let dir = tempfile::tempdir().unwrap();
        if let Some((path, content)) = file {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let host = Host {
            driver_root: dir.path().into(),
            proc: dir.path().join("proc"),
            dev: dir.path().join("dev"),
            sys: dir.path().join("sys"),
        };
        let why = Inventory::read(&host).unwrap_err().to_string();
        assert!(why.contains(words), "{file:?}: {why}");
        assert!(why.contains("driver/nvidia/version"), "{why}");
    }
}
