//! The device program against the plain definition of a rule list, in an interpreter that is
//! not ours (rbpf). The kernel's own verdict is in tests/cell_cgroup.rs.

use super::*;
use crate::cgroup::device::{DEFAULT_RULES, DeviceRule, Kind, MKNOD, READ, WRITE, evaluate};

const MAJORS: [u32; 8] = [0, 1, 5, 10, 136, 195, 2048, 4095];
const MINORS: [u32; 8] = [0, 1, 2, 3, 200, 255, 0x8_0000, 0xf_ffff];

fn rule(allow: bool, kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> DeviceRule {
    DeviceRule {
        allow,
        kind,
        major,
        minor,
        access,
    }
}

/// The program's bytes, as the kernel gets them.
fn bytes(program: &[Insn]) -> Vec<u8> {
    let one = |i: &Insn| {
        let mut b = vec![i.code, i.regs];
        b.extend(i.off.to_le_bytes());
        b.extend(i.imm.to_le_bytes());
        b
    };
    program.iter().flat_map(one).collect()
}

fn run(vm: &rbpf::EbpfVmRaw, kind: Kind, major: u32, minor: u32, access: u8) -> bool {
    let kind = if kind == Kind::Block { 1 } else { 2 };
    let mut ctx = [0u8; 12];
    let words = [(u32::from(access) << 16) | kind, major, minor];
    for (place, word) in ctx.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    match vm.execute_program(&mut ctx).expect("program ends") {
        0 => false,
        1 => true,
        n => panic!("verdict {n}"),
    }
}

/// Compares table and program with the definition, over every kind of access.
fn check(rules: &[DeviceRule]) {
    let table = Table::new(rules);
    let program = bytes(&compile(&table).unwrap());
    let vm = rbpf::EbpfVmRaw::new(Some(&program)).expect("valid program");
    for kind in [Kind::Block, Kind::Char] {
        let t = if kind == Kind::Block {
            &table.blocks
        } else {
            &table.chars
        };
        for major in MAJORS {
            for minor in MINORS {
                let granted = evaluate(rules, kind, Some(major), Some(minor));
                let at = format!("{kind:?} {major}:{minor} of {rules:?}");
                assert_eq!(t.look_up(major, minor), granted, "table at {at}");
                for access in 1..=ALL {
                    let want = access & !granted == 0;
                    let got = run(&vm, kind, major, minor, access);
                    assert_eq!(got, want, "access {access} to {at}");
                }
            }
        }
    }
    let all = MAJORS.iter().all(|&major| {
        MINORS.iter().all(|&minor| {
            [Kind::Block, Kind::Char]
                .iter()
                .all(|&k| evaluate(rules, k, Some(major), Some(minor)) == ALL)
        })
    });
    assert!(!table.allows_all() || all, "{rules:?}");
}

/// Small generator with a fixed seed: the same lists on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }

    fn rule(&mut self) -> DeviceRule {
        let kind = [Kind::All, Kind::Block, Kind::Char][self.below(3)];
        let major = (self.below(3) > 0).then(|| MAJORS[self.below(MAJORS.len())]);
        let minor = (self.below(3) > 0).then(|| MINORS[self.below(MINORS.len())]);
        rule(
            self.below(2) == 0,
            kind,
            major,
            minor,
            1 + self.below(7) as u8,
        )
    }
}

#[test]
fn known_lists() {
    let deny_all = rule(false, Kind::All, None, None, ALL);
    check(&[]);
    check(&DEFAULT_RULES);
    check(&[deny_all]);
    check(&[rule(true, Kind::All, None, None, ALL)]);
    let mut docker = vec![deny_all];
    docker.extend(DEFAULT_RULES);
    docker.push(rule(true, Kind::Char, Some(195), Some(255), READ | WRITE));
    docker.push(rule(false, Kind::Char, Some(10), Some(200), ALL));
    check(&docker);
    // Denying one kind of access stops an open that asks for it and another.
    let no_write = [
        rule(true, Kind::All, None, None, ALL),
        rule(false, Kind::Char, Some(1), Some(3), WRITE),
    ];
    check(&no_write);
    assert_eq!(
        evaluate(&no_write, Kind::Char, Some(1), Some(3)),
        READ | MKNOD
    );
    // Numbers that no device has.
    check(&[rule(true, Kind::Char, Some(4096), None, ALL)]);
    check(&[rule(true, Kind::Char, Some(0), Some(1 << 20), ALL)]);
    check(&[rule(false, Kind::All, Some(u32::MAX), Some(u32::MAX), ALL)]);
}

#[test]
fn random_lists() {
    let mut random = Random(7);
    for length in 1..=120 {
        let rules: Vec<_> = (0..1 + length % 13).map(|_| random.rule()).collect();
        check(&rules);
    }
}

#[test]
fn one_jump_a_rule() {
    let mut rules = DEFAULT_RULES.to_vec();
    let base = compile(&Table::new(&rules)).unwrap().len();
    for minor in 0..6 {
        rules.push(rule(true, Kind::Char, Some(195), Some(minor), READ | WRITE));
    }
    let more = compile(&Table::new(&rules)).unwrap().len();
    // Six compares; their access, read-write and (by default) mknod, is full and shares an exit.
    assert_eq!(more - base, 6);
    assert!(base <= 30, "{base} instructions for the default rules");
}

#[test]
fn a_list_without_effect_is_no_program() {
    assert!(Table::new(&[rule(true, Kind::All, None, None, ALL)]).allows_all());
    assert!(!Table::new(&DEFAULT_RULES).allows_all());
    let none = compile(&Table::new(&[])).unwrap();
    assert!(none.len() <= 10);
}

#[test]
fn too_many_devices_are_refused() {
    let table = Table {
        chars: KindTable {
            exact: (0..40_000).map(|n| (n >> 12, n & 0xfff, ALL)).collect(),
            ..KindTable::default()
        },
        ..Table::default()
    };
    assert!(compile(&table).is_err());
}

#[test]
fn a_table_ahead_only_adds() {
    let old = [
        rule(true, Kind::All, None, None, MKNOD),
        rule(true, Kind::Char, Some(1), Some(3), ALL),
        rule(true, Kind::Char, Some(195), Some(255), READ),
    ];
    let ahead = [
        rule(true, Kind::Char, Some(195), Some(0), READ | WRITE),
        rule(true, Kind::Char, Some(195), Some(255), READ | WRITE),
        rule(true, Kind::Block, Some(5), None, READ),
    ];
    let old_program = compile(&Table::new(&old)).unwrap();
    let program = bytes(&assemble(&Table::new(&ahead), &old_program).unwrap());
    let vm = rbpf::EbpfVmRaw::new(Some(&program)).expect("valid program");
    for kind in [Kind::Block, Kind::Char] {
        for (major, minor) in MAJORS.into_iter().flat_map(|a| MINORS.map(|i| (a, i))) {
            for access in 1..=ALL {
                let by = |rules: &[DeviceRule]| {
                    access & !evaluate(rules, kind, Some(major), Some(minor)) == 0
                };
                let got = run(&vm, kind, major, minor, access);
                assert_eq!(
                    got,
                    by(&ahead) || by(&old),
                    "{kind:?} {major}:{minor} {access}"
                );
            }
        }
    }
}
