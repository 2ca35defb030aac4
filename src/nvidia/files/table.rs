//! Which file of the driver belongs to which capability. Pure data and its lookup.

use serde::{Deserialize, Serialize};

use super::super::capabilities::Capabilities;
use super::super::inventory::is_version;

/// Files that come together.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Group {
    /// Firmware.
    Always,
    /// NVML and its tools.
    Utility,
    /// CUDA and OpenCL.
    Compute,
    /// Video codecs.
    Video,
    /// NGX.
    Ngx,
    /// OpenGL, Vulkan, their windows.
    Graphics,
    /// Needed by CUDA and by graphics.
    Shared,
    /// Part of the driver, in no published list.
    Other,
}

impl Group {
    /// Do these capabilities ask for the group?
    pub fn asked(self, caps: Capabilities) -> bool {
        let any = |list: &[Capabilities]| list.iter().any(|c| caps.contains(*c));
        match self {
            Group::Always => true,
            Group::Utility => any(&[Capabilities::UTILITY]),
            Group::Compute => any(&[Capabilities::COMPUTE, Capabilities::VIDEO]),
            Group::Video => any(&[Capabilities::VIDEO]),
            Group::Ngx => any(&[Capabilities::NGX]),
            Group::Graphics => any(&[Capabilities::GRAPHICS, Capabilities::DISPLAY]),
            Group::Shared => any(&[
                Capabilities::COMPUTE,
                Capabilities::VIDEO,
                Capabilities::GRAPHICS,
                Capabilities::DISPLAY,
            ]),
            Group::Other => caps.contains(Capabilities::ALL),
        }
    }
}

/// Libraries named `<stem>.so.<driver version>` (libnvidia-container, `nvc_info.c`; NVIDIA Container
/// Toolkit, `internal/discover/graphics.go`). libnvidia-allocator is what GBM loads, and
/// libnvidia-gpucomp what the OpenGL, Vulkan and CUDA libraries compile with.
const LIBRARIES: [(Group, &[&str]); 6] = [
    (
        Group::Utility,
        &["libnvidia-ml", "libnvidia-cfg", "libnvidia-nscq"],
    ),
    (
        Group::Compute,
        &[
            "libcuda",
            "libcudadebugger",
            "libnvidia-opencl",
            "libnvidia-ptxjitcompiler",
            "libnvidia-fatbinaryloader",
            "libnvidia-compiler",
            "libnvidia-pkcs11",
            "libnvidia-pkcs11-openssl3",
            "libnvidia-nvvm",
            "libnvidia-tileiras",
        ],
    ),
    (
        Group::Video,
        &[
            "libvdpau_nvidia",
            "libnvidia-encode",
            "libnvidia-opticalflow",
            "libnvcuvid",
        ],
    ),
    (Group::Ngx, &["libnvidia-ngx"]),
    (
        Group::Graphics,
        &[
            "libnvidia-eglcore",
            "libnvidia-glcore",
            "libnvidia-tls",
            "libnvidia-glsi",
            "libnvidia-fbc",
            "libnvidia-ifr",
            "libnvidia-rtcore",
            "libnvidia-glvkspirv",
            "libnvidia-cbl",
            "libnvidia-vulkan-producer",
            "libnvoptix",
            "libGLX_nvidia",
            "libEGL_nvidia",
            "libGLESv2_nvidia",
            "libGLESv1_CM_nvidia",
        ],
    ),
    (Group::Shared, &["libnvidia-allocator", "libnvidia-gpucomp"]),
];

/// Libraries with a version of their own.
const OWN_VERSION: [(&str, Group); 6] = [
    ("libnvidia-egl-gbm", Group::Graphics),
    ("libnvidia-egl-wayland", Group::Graphics),
    ("libnvidia-egl-wayland2", Group::Graphics),
    ("libnvidia-egl-xcb", Group::Graphics),
    ("libnvidia-egl-xlib", Group::Graphics),
    ("libnvidia-nvvm70", Group::Compute),
];

/// The group of a library by its file name; `None`: not the driver's, or of another version.
pub(super) fn library(name: &str, driver: &str) -> Option<Group> {
    // Cheap first: a library directory has thousands of others.
    if !name.starts_with("lib") {
        return None;
    }
    let (stem, version) = name.split_once(".so.")?;
    if version == driver {
        let known = LIBRARIES
            .iter()
            .find(|(_, stems)| stems.contains(&stem))
            .map(|(group, _)| *group);
        let ours = stem.starts_with("libnvidia-") || stem.ends_with("_nvidia");
        // The toolkit's own library is no part of the driver.
        let other = || (ours && stem != "libnvidia-container").then_some(Group::Other);
        return known.or_else(other);
    }
    let (_, group) = OWN_VERSION.iter().find(|(own, _)| *own == stem)?;
    // libnvidia-egl-gbm.so.1 is a link to the file libnvidia-egl-gbm.so.1.1.0; NVVM's has one number.
    let full =
        is_version(version) || (stem == "libnvidia-nvvm70" && version.parse::<u32>().is_ok());
    full.then_some(*group)
}

/// Does this name in ld.so.cache tell where the driver's libraries are?
pub(super) fn marks_directory(soname: &[u8]) -> bool {
    [
        &b"libcuda.so."[..],
        b"libnvidia-",
        b"libGLX_nvidia.so.",
        b"libEGL_nvidia.so.",
        b"libnvcuvid.so.",
        b"libvdpau_nvidia.so",
    ]
    .iter()
    .any(|mark| soname.starts_with(mark))
        && !soname.starts_with(b"libnvidia-container")
}

/// Programs.
pub(super) const BINARIES: [(&str, Group); 6] = [
    ("nvidia-smi", Group::Utility),
    ("nvidia-debugdump", Group::Utility),
    ("nvidia-persistenced", Group::Utility),
    ("nv-fabricmanager", Group::Utility),
    ("nvidia-cuda-mps-control", Group::Compute),
    ("nvidia-cuda-mps-server", Group::Compute),
];

/// Configuration files of graphics: path below a configuration directory, and the directory where the
/// loaders of a cell look for it.
pub(super) const CONFIGS: [(&str, &str); 15] = [
    ("glvnd/egl_vendor.d/10_nvidia.json", "/usr/share"),
    (
        "egl/egl_external_platform.d/15_nvidia_gbm.json",
        "/usr/share",
    ),
    (
        "egl/egl_external_platform.d/10_nvidia_wayland.json",
        "/usr/share",
    ),
    (
        "egl/egl_external_platform.d/09_nvidia_wayland2.json",
        "/usr/share",
    ),
    (
        "egl/egl_external_platform.d/20_nvidia_xcb.json",
        "/usr/share",
    ),
    (
        "egl/egl_external_platform.d/20_nvidia_xlib.json",
        "/usr/share",
    ),
    ("nvidia/nvoptix.bin", "/usr/share"),
    ("X11/xorg.conf.d/10-nvidia.conf", "/usr/share"),
    ("X11/xorg.conf.d/nvidia-drm-outputclass.conf", "/usr/share"),
    ("OpenCL/vendors/nvidia.icd", "/etc"),
    ("vulkan/icd.d/nvidia_icd.json", "/etc"),
    ("vulkan/icd.d/nvidia_icd.x86_64.json", "/etc"),
    ("vulkan/icd.d/nvidia_icd.aarch64.json", "/etc"),
    ("vulkan/icd.d/nvidia_layers.json", "/etc"),
    ("vulkan/implicit_layer.d/nvidia_layers.json", "/etc"),
];

/// Xorg modules, `%` is the driver's version.
pub(super) const XORG: [&str; 2] = ["nvidia_drv.so", "libglxserver_nvidia.so.%"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let v = "550.163.01";
        for (name, group) in [
            ("libcuda.so.550.163.01", Some(Group::Compute)),
            ("libnvidia-ml.so.550.163.01", Some(Group::Utility)),
            ("libnvidia-allocator.so.550.163.01", Some(Group::Shared)),
            ("libnvidia-egl-gbm.so.1.1.0", Some(Group::Graphics)),
            ("libnvidia-nvvm70.so.4", Some(Group::Compute)),
            ("libnvidia-something-new.so.550.163.01", Some(Group::Other)),
            ("libGLfuture_nvidia.so.550.163.01", Some(Group::Other)),
            // Another driver's, links, other people's.
            ("libcuda.so.550.54.14", None),
            ("libcuda.so.1", None),
            ("libcuda.so", None),
            ("libnvidia-egl-gbm.so.1", None),
            ("libnvidia-container.so.550.163.01", None),
            ("libc.so.6", None),
            ("libx.so.550.163.01", None),
            ("", None),
        ] {
            assert_eq!(library(name, v), group, "{name}");
        }
    }

    /// nvidia.md §2, row by row.
    #[test]
    fn groups() {
        use Capabilities as C;
        for (group, asked_by) in [
            (Group::Utility, vec![C::UTILITY]),
            (Group::Compute, vec![C::COMPUTE, C::VIDEO]),
            (Group::Video, vec![C::VIDEO]),
            (Group::Ngx, vec![C::NGX]),
            (Group::Graphics, vec![C::GRAPHICS, C::DISPLAY]),
            (
                Group::Shared,
                vec![C::COMPUTE, C::VIDEO, C::GRAPHICS, C::DISPLAY],
            ),
            (Group::Other, vec![]),
        ] {
            for one in [
                C::UTILITY,
                C::COMPUTE,
                C::VIDEO,
                C::NGX,
                C::GRAPHICS,
                C::DISPLAY,
                C::COMPAT32,
            ] {
                assert_eq!(group.asked(one), asked_by.contains(&one), "{group:?} {one}");
            }
            assert!(group.asked(C::ALL));
            assert!(!group.asked(C::NONE));
        }
        assert!(Group::Always.asked(C::NONE));
    }
}
