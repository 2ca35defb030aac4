//! Rule list to device program. What the kernel then takes is printed by the test
//! `creation_is_quick` of cell_cgroup: a loop here would measure how fast the kernel frees old
//! groups and programs, not how fast it makes one.

use criterion::{Criterion, criterion_group, criterion_main};
use gpucell::cgroup::{self, ALL, DEFAULT_RULES, DeviceRule, Kind, READ, Table, WRITE};
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

criterion_group!(benches, compile);
criterion_main!(benches);
