//! A driver that isn't there: a driver root with libraries of every capability, the procfs, sysfs and
//! device folder of a host with NVIDIA GPUs, all below one folder.
//!
//! The libraries are real ELF files (a dynamic loader takes them), written here byte by byte: no compiler
//! is needed. Device nodes have real numbers and are made when we may.
//!
//! The standard library alone, so that `rustc` makes a program of it (fake_driver.rs) where there is no
//! cargo run.
#![allow(dead_code)] // each program uses some of it

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub const VERSION: &str = "550.163.01";
pub const UVM: u64 = 511;
pub const CAPS: u64 = 237;
pub const IMEX: u64 = 234;

#[cfg(target_arch = "x86_64")]
pub const LIB: &str = "/usr/lib/x86_64-linux-gnu";
#[cfg(target_arch = "aarch64")]
pub const LIB: &str = "/usr/lib/aarch64-linux-gnu";
#[cfg(target_arch = "x86_64")]
pub const LIB32: &str = "/usr/lib/i386-linux-gnu";
#[cfg(target_arch = "aarch64")]
pub const LIB32: &str = "/usr/lib/arm-linux-gnueabihf";

/// (stem, SONAME's version) of the libraries with the driver's version.
pub const LIBRARIES: [(&str, &str); 36] = [
    // utility
    ("libnvidia-ml", "1"),
    ("libnvidia-cfg", "1"),
    ("libnvidia-nscq", "2"),
    // compute
    ("libcuda", "1"),
    ("libcudadebugger", "1"),
    ("libnvidia-opencl", "1"),
    ("libnvidia-gpucomp", VERSION),
    ("libnvidia-ptxjitcompiler", "1"),
    ("libnvidia-fatbinaryloader", VERSION),
    ("libnvidia-allocator", "1"),
    ("libnvidia-compiler", VERSION),
    ("libnvidia-pkcs11", VERSION),
    ("libnvidia-pkcs11-openssl3", VERSION),
    ("libnvidia-nvvm", "4"),
    ("libnvidia-tileiras", VERSION),
    // video
    ("libvdpau_nvidia", "1"),
    ("libnvidia-encode", "1"),
    ("libnvidia-opticalflow", "1"),
    ("libnvcuvid", "1"),
    // ngx
    ("libnvidia-ngx", "1"),
    // graphics
    ("libnvidia-eglcore", VERSION),
    ("libnvidia-glcore", VERSION),
    ("libnvidia-tls", VERSION),
    ("libnvidia-glsi", VERSION),
    ("libnvidia-fbc", "1"),
    ("libnvidia-ifr", "1"),
    ("libnvidia-rtcore", VERSION),
    ("libnvidia-glvkspirv", VERSION),
    ("libnvidia-cbl", VERSION),
    ("libnvoptix", "1"),
    ("libGLX_nvidia", "0"),
    ("libEGL_nvidia", "0"),
    ("libGLESv2_nvidia", "2"),
    ("libGLESv1_CM_nvidia", "1"),
    ("libnvidia-vulkan-producer", VERSION),
    // in no list
    ("libnvidia-brandnew", "1"),
];

/// Libraries with versions of their own: (file, SONAME).
pub const OWN: [(&str, &str); 4] = [
    ("libnvidia-egl-gbm.so.1.1.1", "libnvidia-egl-gbm.so.1"),
    (
        "libnvidia-egl-wayland.so.1.1.13",
        "libnvidia-egl-wayland.so.1",
    ),
    ("libnvidia-egl-xcb.so.1.0.1", "libnvidia-egl-xcb.so.1"),
    ("libnvidia-egl-xlib.so.1.0.1", "libnvidia-egl-xlib.so.1"),
];

pub const BINARIES: [&str; 6] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nv-fabricmanager",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
];

/// The 32-bit ones, as Debian packages them.
pub const LIBRARIES32: [(&str, &str); 3] = [
    ("libcuda", "1"),
    ("libnvidia-ml", "1"),
    ("libnvidia-glcore", VERSION),
];

/// A host with GPUs, below a folder.
pub struct Tree {
    dir: PathBuf,
    gpus: u32,
}

impl Tree {
    /// Lays down a host with this many GPUs in an empty folder. Minor numbers run against the bus order,
    /// as they may.
    pub fn lay(dir: PathBuf, gpus: u32) -> Tree {
        let tree = Tree { dir, gpus };
        tree.driver_root();
        tree.procfs();
        tree.sysfs();
        tree.nodes();
        tree
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    pub fn root(&self) -> PathBuf {
        self.path().join("driver")
    }

    /// A configuration file that makes the program see this host: for `GPUCELL_CONFIG`.
    pub fn config(&self) -> PathBuf {
        let path = self.path().join("config.toml");
        let text = format!(
            "[nvidia]\ndriver-root = {:?}\nproc-root = {:?}\ndev-root = {:?}\n",
            self.root(),
            self.path().join("proc"),
            self.path().join("dev")
        );
        fs::write(&path, text).expect("config.toml");
        path
    }

    pub fn bus(index: u32) -> String {
        format!("0000:{:02x}:00.0", 0x0f + index * 0x10)
    }

    pub fn uuid(index: u32) -> String {
        format!("GPU-edfee158-11c1-52b8-0517-92f30e7fac{index:02x}")
    }

    pub fn minor(&self, index: u32) -> u32 {
        self.gpus - 1 - index
    }

    /// Writes a file below the folder.
    pub fn put(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        fs::write(&path, content).expect("a file");
        path
    }

    /// Adds a library to the driver root, with the link of its SONAME beside it, as ldconfig makes it.
    pub fn library(&self, dir: &str, file: &str, soname: &str, bits64: bool) -> PathBuf {
        let path = self.put(format!("driver{dir}/{file}"), shared_object(soname, bits64));
        if soname != file {
            let _ = symlink(file, path.with_file_name(soname));
        }
        path
    }

    fn driver_root(&self) {
        for (stem, major) in LIBRARIES {
            let dir = match stem {
                "libvdpau_nvidia" => format!("{LIB}/vdpau"),
                _ => LIB.to_owned(),
            };
            let (file, soname) = (format!("{stem}.so.{VERSION}"), format!("{stem}.so.{major}"));
            self.library(&dir, &file, &soname, true);
        }
        for (stem, major) in LIBRARIES32 {
            let (file, soname) = (format!("{stem}.so.{VERSION}"), format!("{stem}.so.{major}"));
            self.library(LIB32, &file, &soname, false);
        }
        for (file, soname) in OWN {
            self.library(LIB, file, soname, true);
        }
        // What isn't the driver's.
        self.library(LIB, "libz.so.1.3", "libz.so.1", true);
        self.library(LIB, "libcuda.so.535.1.1", "libcuda.so.1", true);
        self.library(
            LIB,
            "libnvidia-container.so.1.17.0",
            "libnvidia-container.so.1",
            true,
        );
        for name in BINARIES {
            let path = self.put(format!("driver/usr/bin/{name}"), "#!/bin/false\n");
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        for name in ["gsp_ga10x.bin", "gsp_tu10x.bin"] {
            self.put(format!("driver/lib/firmware/nvidia/{VERSION}/{name}"), name);
        }
        for name in [
            "usr/share/glvnd/egl_vendor.d/10_nvidia.json",
            "usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
            "usr/share/nvidia/nvoptix.bin",
            "etc/vulkan/icd.d/nvidia_icd.json",
            "etc/OpenCL/vendors/nvidia.icd",
            "usr/share/X11/xorg.conf.d/nvidia-drm-outputclass.conf",
        ] {
            self.put(Path::new("driver").join(name), "{}\n");
        }
        self.put("driver/usr/lib/xorg/modules/drivers/nvidia_drv.so", "x");
        self.put(
            format!("driver{LIB}/nvidia/xorg/libglxserver_nvidia.so.{VERSION}"),
            "x",
        );
        for name in ["run/nvidia-persistenced", "tmp/nvidia-mps", "etc"] {
            fs::create_dir_all(self.root().join(name)).expect("folders");
        }
        UnixListener::bind(self.root().join("run/nvidia-persistenced/socket")).expect("a socket");
    }

    fn procfs(&self) {
        self.put("proc/sys/kernel/random/boot_id", "8f2c6a0e-0001\n");
        self.set_version(VERSION);
        self.set_uvm(UVM);
        self.put(
            "proc/driver/nvidia/params",
            "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileUID: 0\n\
             DeviceFileGID: 0\nDeviceFileMode: 438\n",
        );
        for index in 0..self.gpus {
            self.set_gpu(index, &Tree::uuid(index), self.minor(index));
        }
        self.put(
            "proc/driver/nvidia/capabilities/mig/config",
            "DeviceFileMinor: 1\nDeviceFileMode: 256\nDeviceFileModify: 1\n",
        );
        let mut minors = "config 1\nmonitor 2\n".to_owned();
        let mut next = 3;
        for gpu in 0..self.gpus {
            for gi in 0..15 {
                minors += &format!("gpu{gpu}/gi{gi}/access {next}\n");
                next += 1;
                for ci in 0..8 {
                    minors += &format!("gpu{gpu}/gi{gi}/ci{ci}/access {next}\n");
                    next += 1;
                }
            }
        }
        self.put("proc/driver/nvidia-caps/mig-minors", minors);
    }

    /// The kernel module's version, as after an upgrade.
    pub fn set_version(&self, version: &str) {
        self.put(
            "proc/driver/nvidia/version",
            format!(
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Tue Apr  8 12:41:17 UTC 2025\n\
                 GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
            ),
        );
    }

    /// The major number of nvidia-uvm; 0: the module isn't loaded.
    pub fn set_uvm(&self, major: u64) {
        let uvm = match major {
            0 => String::new(),
            n => format!("{n} nvidia-uvm\n"),
        };
        self.put(
            "proc/devices",
            format!(
                "Character devices:\n  1 mem\n195 nvidia\n195 nvidia-modeset\n195 nvidiactl\n\
                 {IMEX} nvidia-caps-imex-channels\n{CAPS} nvidia-caps\n{uvm}\nBlock devices:\n  7 loop\n"
            ),
        );
    }

    /// A GPU as procfs shows it.
    pub fn set_gpu(&self, index: u32, uuid: &str, minor: u32) {
        let bus = Tree::bus(index);
        self.put(
            format!("proc/driver/nvidia/gpus/{bus}/information"),
            format!(
                "Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 17{index}\nGPU UUID: \t {uuid}\n\
                 Video BIOS: \t 92.00.45.00.06\nBus Type: \t PCIe\nDMA Size: \t 47 bits\n\
                 DMA Mask: \t 0x7fffffffffff\nBus Location: \t {bus}\nDevice Minor: \t {minor}\n\
                 GPU Firmware: \t {VERSION}\nGPU Excluded:\t No\n"
            ),
        );
    }

    /// A MIG device on the GPU with this index.
    pub fn mig(&self, index: u32, gi: u32, ci: u32) {
        let gpu = self.minor(index);
        let dir = format!("proc/driver/nvidia/capabilities/gpu{gpu}/mig/gi{gi}");
        let text = "DeviceFileMinor: 0\nDeviceFileMode: 292\nDeviceFileModify: 1\n";
        self.put(format!("{dir}/access"), text);
        self.put(format!("{dir}/ci{ci}/access"), text);
    }

    /// The minor number of a capability, as `procfs` numbers them.
    pub fn cap(&self, index: u32, gi: u32, ci: Option<u32>) -> u32 {
        let first = 3 + self.minor(index) * 15 * 9 + gi * 9;
        first + ci.map_or(0, |ci| 1 + ci)
    }

    fn sysfs(&self) {
        for index in 0..self.gpus {
            let drm = format!("sys/bus/pci/devices/{}/drm", Tree::bus(index));
            self.put(
                format!("{drm}/card{}/dev", index + 1),
                format!("226:{}\n", index + 1),
            );
            self.put(
                format!("{drm}/renderD{}/dev", 128 + index),
                format!("226:{}\n", 128 + index),
            );
        }
        self.put("sys/module/nvidia_modeset/refcnt", "1\n");
        self.put("sys/module/firmware_class/parameters/path", "\n");
    }

    /// Makes a node below the fake /dev; false when we may not.
    pub fn node(&self, name: &str, major: u64, minor: u64, mode: u32) -> bool {
        let path = self.path().join("dev").join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => panic!("{}: {e}", path.display()),
            _ => {}
        }
        // mknod(1): std can't, and unsafe code is for src/sys.
        Command::new("mknod")
            .args(["-m", &format!("{mode:o}")])
            .arg(&path)
            .args(["c", &major.to_string(), &minor.to_string()])
            .stderr(Stdio::null())
            .status()
            .expect("mknod")
            .success()
    }

    fn nodes(&self) {
        fs::create_dir_all(self.path().join("dev")).expect("folders");
        for index in 0..self.gpus {
            let minor = self.minor(index);
            self.node(&format!("nvidia{minor}"), 195, minor.into(), 0o666);
            let (card, render) = (index + 1, 128 + index);
            self.node(&format!("dri/card{card}"), 226, card.into(), 0o660);
            self.node(&format!("dri/renderD{render}"), 226, render.into(), 0o666);
        }
        self.node("nvidiactl", 195, 255, 0o666);
        self.node("nvidia-modeset", 195, 254, 0o666);
        self.node("nvidia-uvm", UVM, 0, 0o666);
        self.node("nvidia-uvm-tools", UVM, 1, 0o666);
    }
}

/// A shared library with a SONAME and nothing in it, as elf(5) has it: header, two segments (all of it,
/// and the dynamic section), an empty symbol table and its hash table, strings.
pub fn shared_object(soname: &str, bits64: bool) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    let machine: u16 = if bits64 { 62 } else { 3 };
    #[cfg(target_arch = "aarch64")]
    let machine: u16 = if bits64 { 183 } else { 40 };
    let word = if bits64 { 8 } else { 4 };
    let (header, segment, symbol): (usize, usize, usize) =
        if bits64 { (64, 56, 24) } else { (52, 32, 16) };
    let mut strings = vec![0];
    strings.extend(soname.as_bytes());
    strings.push(0);
    let at_hash = (header + 2 * segment).next_multiple_of(8);
    let at_symbols = at_hash + 16;
    let at_strings = at_symbols + symbol;
    let at_dynamic = (at_strings + strings.len()).next_multiple_of(8);
    // DT_SONAME, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_NULL.
    let dynamic = [
        (14, 1),
        (4, at_hash),
        (5, at_strings),
        (6, at_symbols),
        (10, strings.len()),
        (11, symbol),
        (0, 0),
    ];
    let end = at_dynamic + dynamic.len() * 2 * word;

    let mut out = Vec::new();
    let put = |out: &mut Vec<u8>, value: usize, size: usize| {
        out.extend(&(value as u64).to_le_bytes()[..size]);
    };
    out.extend(b"\x7fELF");
    out.extend([if bits64 { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    put(&mut out, 3, 2); // ET_DYN
    put(&mut out, machine.into(), 2);
    put(&mut out, 1, 4);
    put(&mut out, 0, word); // no entry point
    put(&mut out, header, word); // segments
    put(&mut out, 0, word); // no sections
    put(&mut out, 0, 4);
    for size in [header, segment, 2, 0, 0, 0] {
        put(&mut out, size, 2);
    }
    let mut program = |kind: usize, at: usize, len: usize, align: usize| {
        const RW: usize = 6;
        put(&mut out, kind, 4);
        if bits64 {
            put(&mut out, RW, 4);
        }
        for value in [at, at, at, len, len] {
            put(&mut out, value, word);
        }
        if !bits64 {
            put(&mut out, RW, 4);
        }
        put(&mut out, align, word);
    };
    program(1, 0, end, 0x1000); // PT_LOAD
    program(2, at_dynamic, end - at_dynamic, 8); // PT_DYNAMIC
    out.resize(at_hash, 0);
    for value in [1, 1, 0, 0] {
        put(&mut out, value, 4); // one bucket, one chain, both empty
    }
    out.resize(at_strings, 0);
    out.extend(&strings);
    out.resize(at_dynamic, 0);
    for (tag, value) in dynamic {
        put(&mut out, tag, word);
        put(&mut out, value, word);
    }
    out
}
