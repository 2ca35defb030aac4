//! Parts of the host handed to a cell: network interfaces and resctrl groups.
//!
//! libcontainer carries out both; here is the order of things and what `delete` must undo.

use crate::plan::Plan;
use crate::sys::clone;
use crate::{Error, Result};
use libcontainer::network::address::AddressClient;
use libcontainer::network::link::LinkClient;
use libcontainer::network::network_device;
use libcontainer::network::wrapper::create_network_client;
use libcontainer::process::intel_rdt;
use oci_spec::runtime::LinuxIntelRdt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

/// The child must wait for the parent before it goes on.
pub fn any(plan: &Plan) -> bool {
    !plan.net_devices.is_empty() || plan.intel_rdt.is_some()
}

/// Moves the interfaces of `linux.netDevices` into the network namespace of `pid`, under their
/// new names, with their permanent global addresses, and brings them up.
///
/// When the namespace ends, the kernel moves physical interfaces back (runtime-spec,
/// config-linux, Namespace lifecycle).
pub fn move_interfaces(plan: &Plan, pid: i32) -> Result<()> {
    if plan.net_devices.is_empty() {
        return Ok(());
    }
    let open = |path: String| File::open(&path).map_err(|e| Error::step("open namespace", path, e));
    let inside = open(format!("/proc/{pid}/ns/net"))?;
    let outside = open("/proc/self/ns/net".to_owned())?;
    for (name, device) in &plan.net_devices {
        let fail = |e: libcontainer::network::NetworkError| {
            Error::step("move network interface", name.clone(), io::Error::other(e))
        };
        let new_name = network_device::resolve_device_name(device, name);
        let addresses = network_device::dev_change_net_namespace(name, inside.as_raw_fd(), device)
            .map_err(fail)?;
        let enter = |ns: &File| {
            clone::setns(ns.as_fd(), libc::CLONE_NEWNET)
                .map_err(|e| Error::step("join namespace", "net", e))
        };
        enter(&inside)?;
        let done = (|| {
            let mut links = LinkClient::new(create_network_client())?;
            let index = links.get_by_name(new_name)?.header.index;
            let mut client = AddressClient::new(create_network_client())?;
            network_device::setup_addresses_in_network_namespace(
                &addresses,
                index,
                new_name,
                &mut client,
            )?;
            links.set_up(index)
        })();
        enter(&outside)?;
        done.map_err(fail)?;
    }
    Ok(())
}

/// Refuses interfaces without a namespace to move them to, and resctrl where it isn't mounted.
pub fn refuse(plan: &Plan) -> Result<()> {
    use crate::plan::Kind;
    let ns = &plan.namespaces;
    if let Some((name, _)) = plan.net_devices.first()
        && !ns.makes(Kind::Network)
        && ns.joins(Kind::Network).is_none()
    {
        return Err(Error::config(
            format!("linux.netDevices.{name}"),
            "needs a network namespace of the cell's own",
        ));
    }
    if plan.intel_rdt.is_some() {
        resctrl()?;
    }
    Ok(())
}

/// Where the resctrl file system is mounted.
pub fn resctrl() -> Result<PathBuf> {
    intel_rdt::find_resctrl_mount_point().map_err(|_| {
        Error::unsupported(
            "linux.intelRdt",
            "no resctrl file system is mounted (mount -t resctrl resctrl /sys/fs/resctrl, on a \
             CPU that has it)",
        )
    })
}

/// The resctrl directories that the cell will make: to be saved before, and removed by `delete`.
pub fn resctrl_made(rdt: Option<&LinuxIntelRdt>, id: &str) -> Result<Vec<PathBuf>> {
    let Some(rdt) = rdt else {
        return Ok(Vec::new());
    };
    let group = super::schemata::group(&resctrl()?, rdt, id);
    let mut made = Vec::new();
    if rdt.enable_monitoring().unwrap_or(false) {
        made.push(group.join("mon_groups").join(id));
    }
    // A group that was there before belongs to somebody else.
    if !group.exists() {
        made.push(group);
    }
    Ok(made)
}

/// Makes or joins the resctrl group.
pub fn join_resctrl(plan: &Plan, id: &str, pid: i32) -> Result<()> {
    let Some(rdt) = &plan.intel_rdt else {
        return Ok(());
    };
    intel_rdt::setup_intel_rdt(Some(id), &libcontainer_nix::unistd::Pid::from_raw(pid), rdt)
        .map(|_| ())
        .map_err(|e| Error::step("join resctrl group of", id.to_owned(), io::Error::other(e)))
}

/// Removes resctrl directories (rmdir(2): their files are the kernel's).
pub fn leave_resctrl(made: &[PathBuf]) -> Result<()> {
    for dir in made {
        match fs::remove_dir(dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::step("remove", dir.display().to_string(), e));
            }
            _ => {}
        }
    }
    Ok(())
}
