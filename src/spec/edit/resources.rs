//! The edits of `linux.resources`: fields that are set replace, all others stay.
//!
//! It must not check values: flags and `spec/check` do.

use std::collections::HashMap;

use oci_spec::runtime::{
    Linux, LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources, LinuxThrottleDevice,
};

use super::{Change, Throttle};

/// `linux.resources`, made when missing.
pub(super) fn resources(linux: &mut Linux) -> &mut LinuxResources {
    linux
        .resources_mut()
        .get_or_insert_with(LinuxResources::default)
}

/// Applies one resource edit; any other change is none of this module's.
pub(super) fn apply(linux: &mut Linux, change: &Change) {
    let res = resources(linux);
    match change {
        Change::Memory(new) => {
            let all = res.memory_mut().get_or_insert_with(LinuxMemory::default);
            *all = merge_memory(all, new);
        }
        Change::Cpu(new) => {
            let all = res.cpu_mut().get_or_insert_with(LinuxCpu::default);
            *all = merge_cpu(all, new);
        }
        Change::Pids(limit) => {
            let mut pids = LinuxPids::default();
            pids.set_limit(*limit);
            res.set_pids(Some(pids));
        }
        Change::BlkioWeight(weight) => {
            block_io(res).set_weight(Some(*weight));
        }
        Change::BlkioWeightDevice(device) => {
            let io = block_io(res);
            let mut list = io.weight_device().clone().unwrap_or_default();
            list.retain(|d| (d.major(), d.minor()) != (device.major(), device.minor()));
            list.push(*device);
            io.set_weight_device(Some(list));
        }
        Change::Throttle { which, device } => throttle(block_io(res), *which, *device),
        Change::Hugepage(limit) => {
            let list = res.hugepage_limits_mut().get_or_insert_with(Vec::new);
            list.retain(|l| l.page_size() != limit.page_size());
            list.push(limit.clone());
        }
        Change::Unified { key, value } => {
            res.unified_mut()
                .get_or_insert_with(HashMap::new)
                .insert(key.clone(), value.clone());
        }
        _ => {}
    }
}

fn block_io(res: &mut LinuxResources) -> &mut LinuxBlockIo {
    res.block_io_mut().get_or_insert_with(LinuxBlockIo::default)
}

fn throttle(io: &mut LinuxBlockIo, which: Throttle, device: LinuxThrottleDevice) {
    let old = match which {
        Throttle::ReadBps => io.throttle_read_bps_device(),
        Throttle::WriteBps => io.throttle_write_bps_device(),
        Throttle::ReadIops => io.throttle_read_iops_device(),
        Throttle::WriteIops => io.throttle_write_iops_device(),
    };
    let mut list = old.clone().unwrap_or_default();
    list.retain(|d| (d.major(), d.minor()) != (device.major(), device.minor()));
    list.push(device);
    match which {
        Throttle::ReadBps => io.set_throttle_read_bps_device(Some(list)),
        Throttle::WriteBps => io.set_throttle_write_bps_device(Some(list)),
        Throttle::ReadIops => io.set_throttle_read_iops_device(Some(list)),
        Throttle::WriteIops => io.set_throttle_write_iops_device(Some(list)),
    };
}

#[allow(deprecated)] // kernel memory: kept as the bundle has it
fn merge_memory(old: &LinuxMemory, new: &LinuxMemory) -> LinuxMemory {
    let mut out = *old;
    out.set_limit(new.limit().or(old.limit()))
        .set_reservation(new.reservation().or(old.reservation()))
        .set_swap(new.swap().or(old.swap()))
        .set_kernel(new.kernel().or(old.kernel()))
        .set_kernel_tcp(new.kernel_tcp().or(old.kernel_tcp()))
        .set_swappiness(new.swappiness().or(old.swappiness()))
        .set_disable_oom_killer(new.disable_oom_killer().or(old.disable_oom_killer()))
        .set_use_hierarchy(new.use_hierarchy().or(old.use_hierarchy()))
        .set_check_before_update(new.check_before_update().or(old.check_before_update()));
    out
}

fn merge_cpu(old: &LinuxCpu, new: &LinuxCpu) -> LinuxCpu {
    let mut out = old.clone();
    out.set_shares(new.shares().or(old.shares()))
        .set_quota(new.quota().or(old.quota()))
        .set_idle(new.idle().or(old.idle()))
        .set_burst(new.burst().or(old.burst()))
        .set_period(new.period().or(old.period()))
        .set_realtime_runtime(new.realtime_runtime().or(old.realtime_runtime()))
        .set_realtime_period(new.realtime_period().or(old.realtime_period()))
        .set_cpus(new.cpus().clone().or_else(|| old.cpus().clone()))
        .set_mems(new.mems().clone().or_else(|| old.mems().clone()));
    out
}
