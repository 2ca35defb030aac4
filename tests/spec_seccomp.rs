//! Our seccomp filters answer as libseccomp's do, call by call.
//!
//! Both programs run in a classic-BPF interpreter over every call number, each architecture and
//! boundary values of the arguments: for Docker's profile, podman's shape and generated profiles.
//! What differs on purpose (ENOSYS for calls newer than the profile) is left out of the
//! comparison by its definition, and tested on its own.

mod seccomp_oracle;

use std::collections::BTreeSet;

use gpucell::process::seccomp::{Arch, X32_BIT, compile_for};
use oci_spec::runtime::LinuxSeccomp;
use seccomp_oracle::{Data, Generator, agree, docker, oracle, parse, run};
use serde_json::json;

/// What an ENOSYS answer looks like.
const ENOSYS: u32 = 0x0005_0000 | 38;

#[test]
fn name_tables_are_libseccomps() {
    use libseccomp::{ScmpArch, ScmpSyscall};
    let mut compared = 0;
    for (ours, theirs) in [
        (Arch::X86_64, ScmpArch::X8664),
        (Arch::X86, ScmpArch::X86),
        (Arch::X32, ScmpArch::X32),
        (Arch::Aarch64, ScmpArch::Aarch64),
        (Arch::Arm, ScmpArch::Arm),
    ] {
        for n in (0..1100).chain(0x0f_0000..0x0f_0010) {
            let number = if ours == Arch::X32 { n | X32_BIT } else { n };
            let Ok(name) = ScmpSyscall::from_raw_syscall(number as i32).get_name_by_arch(theirs)
            else {
                continue;
            };
            let call = ours.call(&name);
            assert_eq!(
                call.and_then(|c| c.direct),
                Some(number),
                "{ours:?} {number} {name}"
            );
            compared += 1;
        }
    }
    // The other way round it can't be asked: our tables are newer.
    assert!(compared > 1800, "{compared}");
}

#[test]
fn dockers_profile() {
    let n = agree("docker", &docker(), Arch::X86_64).unwrap();
    assert!(n.libseccomp > 10_000 && n.written == 0, "{n:?}");
}

#[test]
fn dockers_profile_on_arm() {
    let mut profile = docker();
    profile.set_architectures(
        parse(&json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
        }))
        .architectures()
        .clone(),
    );
    agree("docker on arm", &profile, Arch::Aarch64).unwrap();
}

/// Newer profiles of Docker list the address families instead of excluding one.
#[test]
fn dockers_newer_profile() {
    let mut json = serde_json::to_value(docker()).unwrap();
    let rules = json["syscalls"].as_array_mut().unwrap();
    rules.retain(|r| r["names"] != json!(["socket"]));
    rules.push(json!({"names": ["socket"], "action": "SCMP_ACT_ALLOW",
                      "args": [{"index": 0, "value": 12, "op": "SCMP_CMP_LT"}]}));
    for family in (13..=18)
        .chain([21, 22, 24])
        .chain(26..=33)
        .chain([35, 36, 39])
        .chain(41..=45)
    {
        rules.push(json!({"names": ["socket"], "action": "SCMP_ACT_ALLOW",
                          "args": [{"index": 0, "value": family, "op": "SCMP_CMP_EQ"}]}));
    }
    agree("docker, newer", &parse(&json), Arch::X86_64).unwrap();
}

/// podman's and CRI-O's profile: ENOSYS by default, EPERM for what is known and refused, and
/// overlapping conditions with different actions.
#[test]
fn podmans_shape() {
    let mut json = serde_json::to_value(docker()).unwrap();
    json["defaultErrnoRet"] = json!(38);
    let rules = json["syscalls"].as_array_mut().unwrap();
    rules.retain(|r| r["names"] != json!(["socket"]));
    let eq = |index: u64, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let ne = |index: u64, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_NE"});
    for (args, action, errno) in [
        (json!([eq(0, 16), eq(2, 9)]), "SCMP_ACT_ERRNO", Some(22)),
        (json!([ne(2, 9)]), "SCMP_ACT_ALLOW", None),
        (json!([ne(0, 16)]), "SCMP_ACT_ALLOW", None),
        (json!([ne(2, 9)]), "SCMP_ACT_ALLOW", None),
    ] {
        let mut rule = json!({"names": ["socket"], "action": action, "args": args});
        if let Some(errno) = errno {
            rule["errnoRet"] = json!(errno);
        }
        rules.push(rule);
    }
    rules.push(
        json!({"names": ["bdflush", "kexec_load", "bpf", "perf_event_open", "chroot"],
                      "action": "SCMP_ACT_ERRNO", "errnoRet": 1}),
    );
    agree("podman", &parse(&json), Arch::X86_64).unwrap();
}

#[test]
fn generated_profiles() {
    let (mut profiles, mut libseccomp, mut written, mut refused) = (0, 0, 0, 0);
    for seed in 0..400 {
        let profile = Generator::new(seed).profile();
        let host = if seed % 4 == 3 {
            Arch::Aarch64
        } else {
            Arch::X86_64
        };
        match agree(&format!("seed {seed}"), &profile, host) {
            Some(n) => {
                profiles += 1;
                libseccomp += n.libseccomp;
                written += n.written;
            }
            None => refused += 1,
        }
    }
    println!(
        "{profiles} profiles: {libseccomp} answers compared with libseccomp, {written} with the \
         rules as written; {refused} profiles refused by libseccomp"
    );
    assert!(profiles >= 250, "{profiles}");
    assert!(libseccomp > 1_000_000 && written > 100_000);
}

#[test]
fn contradictions_are_refused_by_both() {
    let json = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["dup"], "action": "SCMP_ACT_KILL",
         "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
        {"names": ["dup"], "action": "SCMP_ACT_LOG",
         "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]});
    assert!(agree("contradiction", &parse(&json), Arch::X86_64).is_none());
}

/// The stub that makes C libraries fall back: above the newest call that the profile names.
#[test]
fn calls_newer_than_the_profile_get_enosys() {
    let profile = docker();
    let program = compile_for(&profile, Arch::X86_64).unwrap();
    let eperm = 0x0005_0000 | 1;
    for (arch, offset) in [(Arch::X86_64, 0), (Arch::X86, 0), (Arch::X32, X32_BIT)] {
        // x32 has numbers of its own at the end.
        let newest = match arch {
            Arch::X32 => "pwritev2",
            _ => "removexattrat",
        };
        let newest = arch.call(newest).and_then(|c| c.direct).unwrap();
        let answer = |nr: u32| run(&program.insns, &Data::new(arch, nr, [0; 6]));
        assert_eq!(answer(newest), 0x7fff_0000, "{arch:?}");
        for nr in [newest + 1, newest + 2, offset + 1000, offset + 0x0fff_ffff] {
            assert_eq!(answer(nr), ENOSYS, "{arch:?} {nr:#x}");
        }
        // Older calls that the profile leaves out are refused as it says.
        let mount = arch.call("mount").and_then(|c| c.direct).unwrap();
        assert_eq!(answer(mount), eperm, "{arch:?}");
    }
    // Where the default lets calls through there is no stub.
    for default in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"] {
        let json = json!({"defaultAction": default, "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_KILL_PROCESS"}]});
        let program = compile_for(&parse(&json), Arch::X86_64).unwrap();
        assert_ne!(
            run(&program.insns, &Data::new(Arch::X86_64, 5000, [0; 6])),
            ENOSYS
        );
    }
}

/// The figure that performance depends on: the kernel translates every instruction at each start.
#[test]
fn dockers_program_is_small() {
    let ours = compile_for(&docker(), Arch::X86_64).unwrap().insns.len();
    let theirs = oracle(&docker(), Arch::X86_64).unwrap().len();
    println!("ours {ours} instructions, libseccomp's {theirs}");
    assert!(ours <= 350, "{ours} (libseccomp: {theirs})");
    assert!(theirs > 2 * ours);
}

/// 4096 instructions are what the kernel takes; an error says so before it does.
#[test]
fn programs_of_any_size_are_right_or_refused() {
    let profile = |n: u32| {
        let rules: Vec<_> = (0..n)
            .map(|i| {
                json!({"names": ["dup"], "action": "SCMP_ACT_ERRNO", "errnoRet": i % 4000,
                       "args": [{"index": 0, "value": i * 3, "op": "SCMP_CMP_EQ"}]})
            })
            .collect();
        parse(&json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))
    };
    for n in [1, 100, 255, 256, 257, 700, 1300] {
        let program = compile_for(&profile(n), Arch::X86_64).unwrap();
        let dup = Arch::X86_64.call("dup").and_then(|c| c.direct).unwrap();
        for i in (0..n).step_by(7).chain([n - 1]) {
            for (arg, expected) in [(i * 3, 0x0005_0000 | i), (i * 3 + 1, 0x7fff_0000)] {
                let data = Data::new(Arch::X86_64, dup, [u64::from(arg), 0, 0, 0, 0, 0]);
                assert_eq!(run(&program.insns, &data), expected, "{n} {i}");
            }
        }
    }
    let e = compile_for(&profile(2600), Arch::X86_64).unwrap_err();
    assert!(e.to_string().contains("4096"), "{e}");
}

#[test]
fn every_jump_stays_inside_and_goes_forward() {
    let mut profiles: Vec<LinuxSeccomp> = (0..100).map(|s| Generator::new(s).profile()).collect();
    profiles.push(docker());
    for profile in &profiles {
        let Ok(program) = compile_for(profile, Arch::X86_64) else {
            continue;
        };
        let mut reached: BTreeSet<usize> = BTreeSet::from([0]);
        for (pc, i) in program.insns.iter().enumerate() {
            if !reached.contains(&pc) {
                continue;
            }
            let next: Vec<usize> = match i.code & 7 {
                6 => vec![],
                5 if i.code == 5 => vec![pc + 1 + i.k as usize],
                5 => vec![pc + 1 + usize::from(i.jt), pc + 1 + usize::from(i.jf)],
                _ => vec![pc + 1],
            };
            for n in next {
                assert!(n < program.insns.len());
                reached.insert(n);
            }
        }
    }
}
