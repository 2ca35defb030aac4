//! The pure parts of a start, which run before any process exists.
//!
//! `cargo bench --bench pure` (a group alone: `cargo bench --bench pure -- seccomp`).

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;

use gpucell::process::seccomp;
use gpucell::spec::{check, load};

/// dockerd's configuration with its default seccomp profile.
const DOCKER: &[u8] = include_bytes!("../tests/fixtures/docker-config.json");
/// `runc spec`.
const MINIMAL: &[u8] = include_bytes!("../tests/fixtures/runc-spec.json");

/// config.json to a checked Spec.
fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    group.bench_function("minimal", |b| {
        b.iter(|| load::parse(black_box(MINIMAL)).expect("parse"));
    });
    group.bench_function("docker", |b| {
        b.iter(|| load::parse(black_box(DOCKER)).expect("parse"));
    });
    let docker = load::parse(DOCKER).expect("parse").spec;
    group.bench_function("check docker", |b| {
        b.iter(|| check::check(black_box(&docker)).expect("check"));
    });
    group.finish();
}

/// Docker's profile to a BPF program.
fn seccomp(c: &mut Criterion) {
    let spec = load::parse(DOCKER).expect("parse").spec;
    let profile = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
    let profile = profile.expect("a profile");
    let mut group = c.benchmark_group("seccomp");
    group.bench_function("docker", |b| {
        b.iter(|| seccomp::compile(black_box(profile)).expect("compile"));
    });
    group.finish();
}

criterion_group!(benches, parse, seccomp);
criterion_main!(benches);
