//! The NVIDIA driver: module, libraries and device nodes that fit together.

use super::super::look::{Look, Nvidia};
use super::super::{Check, State};
use super::ok;
use crate::nvidia::nodes::State as Node;

const AREA: &str = "gpu";

pub(super) fn checks(look: &dyn Look, out: &mut Vec<Check>) {
    let driver = |found: &str| ok(AREA, "nvidia driver", found);
    match look.nvidia() {
        Some(Ok(nvidia)) => judge(&nvidia, out),
        Some(Err(e)) => out.push(driver(&e.to_string()).worse(
            State::Missing,
            "GPU cells are refused; see /proc/driver/nvidia and `gpucell config`",
        )),
        None if look.exists("/dev/dxg") => out.push(driver("WSL2 (/dev/dxg)").worse(
            State::Missing,
            "cells get no GPU by gpucell's own discovery on WSL2; use a CDI file of nvidia-ctk",
        )),
        None => out.push(driver("not loaded").worse(
            State::Missing,
            "only for GPU cells: install the NVIDIA driver, then modprobe nvidia",
        )),
    }
}

fn judge(nvidia: &Nvidia, out: &mut Vec<Check>) {
    let version = match &nvidia.cuda {
        Some(cuda) => format!("{}, CUDA {cuda}", nvidia.driver),
        None => nvidia.driver.clone(),
    };
    out.push(ok(AREA, "nvidia driver", version));

    let gpus = ok(AREA, "gpus", nvidia.gpus.to_string());
    out.push(if nvidia.gpus == 0 {
        gpus.worse(
            State::Missing,
            "the driver found none: dmesg | grep -i nvrm",
        )
    } else if nvidia.sleeping > 0 {
        gpus.worse(
            State::Degraded,
            "the UUID of some is not known until they are used: start nvidia-persistenced",
        )
    } else {
        gpus
    });

    let others: Vec<&str> = nvidia
        .libraries
        .iter()
        .map(String::as_str)
        .filter(|v| *v != nvidia.driver)
        .collect();
    let fits = others.len() < nvidia.libraries.len();
    let check = ok(AREA, "driver libraries", nvidia.libraries.join(", "));
    out.push(match (fits, others.is_empty()) {
        (true, true) => check,
        (true, false) => check.worse(
            State::Degraded,
            format!(
                "remove those of {}: a loader may take the wrong one on the host",
                others.join(", ")
            ),
        ),
        (false, false) => check.worse(
            State::Missing,
            format!(
                "the loaded module is {}: reboot, or unload and load the nvidia modules",
                nvidia.driver
            ),
        ),
        (false, true) => ok(AREA, "driver libraries", "none found").worse(
            State::Missing,
            format!(
                "install libcuda and libnvidia-ml of {}, or name their root in config.toml",
                nvidia.driver
            ),
        ),
    });

    if !nvidia.uvm {
        out.push(ok(AREA, "nvidia-uvm", "not loaded").worse(
            State::Missing,
            "CUDA cells are refused: modprobe nvidia-uvm",
        ));
    }
    for (node, state) in &nvidia.nodes {
        out.push(device(node.host.display().to_string(), *state));
    }
    for (path, version) in nvidia.cdi.iter() {
        let check = ok(
            AREA,
            path.display().to_string(),
            format!("for driver {version}"),
        );
        out.push(if *version == nvidia.driver {
            check
        } else {
            check.worse(
                State::Degraded,
                format!("stale: write it anew for driver {}", nvidia.driver),
            )
        });
    }
}

fn device(path: String, state: Node) -> Check {
    let check = |found: String| ok(AREA, path.clone(), found);
    match state {
        Node::Here { mode, .. } => check(format!("mode {mode:04o}")),
        Node::Missing => check("not there".into()).worse(
            State::Degraded,
            "made when a cell of root needs it; for rootless cells: nvidia-modprobe -c 0 -u",
        ),
        Node::Stale { major, minor } => check(format!("old, {major}:{minor}")).worse(
            State::Degraded,
            "made anew when a cell of root needs it; else remove it and run nvidia-modprobe -c 0 -u",
        ),
        Node::Other => check("not a device".into())
            .worse(State::Missing, "remove it, GPU cells are refused"),
    }
}
