//! Rule list to device program: the pure part, and (as root, with a cgroup2 mount) what the
//! kernel then takes to load and attach it.

use criterion::{Criterion, criterion_group, criterion_main};
use gpucell::cgroup::{
    self, ALL, DEFAULT_RULES, DeviceRule, Driver, Host, Kind, Mode, READ, Request, Table, WRITE,
};
use std::hint::black_box;

/// Docker's list: deny all, what every cell has, and six GPU nodes.
fn docker_gpu() -> Vec<DeviceRule> {
    let rule = |allow, kind, major, minor, access| DeviceRule {
        allow,
        kind,
        major,
        minor,
        access,
    };
    let mut rules = vec![rule(false, Kind::All, None, None, ALL)];
    rules.extend(DEFAULT_RULES);
    rules.push(rule(false, Kind::Char, Some(10), Some(200), ALL));
    for (major, minor) in [
        (195, 0),
        (195, 1),
        (195, 254),
        (195, 255),
        (511, 0),
        (511, 1),
    ] {
        rules.push(rule(
            true,
            Kind::Char,
            Some(major),
            Some(minor),
            READ | WRITE,
        ));
    }
    rules.extend(DEFAULT_RULES);
    rules
}

fn compile(c: &mut Criterion) {
    let rules = docker_gpu();
    c.bench_function("device filter: rules to program", |b| {
        b.iter(|| cgroup::compile_filter(&Table::new(black_box(&rules))))
    });
}

fn create(c: &mut Criterion) {
    let host = match Host::detect() {
        Ok(h) if h.v2.is_some() && nix::unistd::geteuid().is_root() => Host {
            mode: Mode::V2,
            v1: Vec::new(),
            ..h
        },
        _ => return,
    };
    let rules = docker_gpu();
    let request = Request {
        id: "test-bench",
        cgroups_path: None,
        resources: None,
        extra_devices: &rules,
        driver: Driver::Cgroupfs,
        rootless: false,
    };
    c.bench_function("v2 group with device filter: make and remove", |b| {
        b.iter(|| {
            let plan = cgroup::plan_on(&request, &host).expect("plan");
            let made = plan.create().expect("create");
            made.state().remove().expect("remove");
        })
    });
}

criterion_group!(benches, compile, create);
criterion_main!(benches);
