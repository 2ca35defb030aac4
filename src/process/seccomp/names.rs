//! What the profile's words mean to the kernel, as tables: the compiler looks things up in them and
//! `features` lists them.

use oci_spec::runtime::{
    Arch as SpecArch, LinuxSeccompAction as Action, LinuxSeccompFilterFlag as Flag,
    LinuxSeccompOperator as Op,
};

use super::arch::Arch;
use super::rules::Op2;

/// SECCOMP_RET_* of each action, without its data (include/uapi/linux/seccomp.h).
pub(crate) const ACTIONS: [(Action, u32); 9] = [
    (Action::ScmpActAllow, 0x7fff_0000),
    (Action::ScmpActErrno, 0x0005_0000),
    (Action::ScmpActKill, 0),
    (Action::ScmpActKillProcess, 0x8000_0000),
    (Action::ScmpActKillThread, 0),
    (Action::ScmpActLog, 0x7ffc_0000),
    (Action::ScmpActNotify, 0x7fc0_0000),
    (Action::ScmpActTrace, 0x7ff0_0000),
    (Action::ScmpActTrap, 0x0003_0000),
];

/// The comparisons.
pub(crate) const OPERATORS: [(Op, Op2); 7] = [
    (Op::ScmpCmpEq, Op2::Eq),
    (Op::ScmpCmpGe, Op2::Ge),
    (Op::ScmpCmpGt, Op2::Gt),
    (Op::ScmpCmpLe, Op2::Le),
    (Op::ScmpCmpLt, Op2::Lt),
    (Op::ScmpCmpMaskedEq, Op2::Masked),
    (Op::ScmpCmpNe, Op2::Ne),
];

/// The architectures that have a table of system calls. Others may be listed in a profile; no host that
/// this runs on executes their programs.
pub(crate) const ARCHS: [(SpecArch, Arch); 5] = [
    (SpecArch::ScmpArchAarch64, Arch::Aarch64),
    (SpecArch::ScmpArchArm, Arch::Arm),
    (SpecArch::ScmpArchX32, Arch::X32),
    (SpecArch::ScmpArchX86, Arch::X86),
    (SpecArch::ScmpArchX86_64, Arch::X86_64),
];

/// SECCOMP_FILTER_FLAG_* of each flag.
pub(crate) const FLAGS: [(Flag, u32); 4] = [
    (
        Flag::SeccompFilterFlagLog,
        libc::SECCOMP_FILTER_FLAG_LOG as u32,
    ),
    (
        Flag::SeccompFilterFlagSpecAllow,
        libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32,
    ),
    (
        Flag::SeccompFilterFlagTsync,
        libc::SECCOMP_FILTER_FLAG_TSYNC as u32,
    ),
    (
        Flag::SeccompFilterFlagWaitKillableRecv,
        libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV as u32,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;

    /// Every word that the configuration may have is in its table.
    fn all<T: DeserializeOwned + PartialEq>(words: &[&str], table: &[T]) {
        assert_eq!(words.len(), table.len());
        for word in words {
            let value: T = serde_json::from_value(serde_json::json!(word)).unwrap();
            assert!(table.contains(&value), "{word}");
        }
    }

    #[test]
    fn nothing_is_left_out() {
        all(
            &[
                "SCMP_ACT_KILL",
                "SCMP_ACT_KILL_PROCESS",
                "SCMP_ACT_KILL_THREAD",
                "SCMP_ACT_TRAP",
                "SCMP_ACT_ERRNO",
                "SCMP_ACT_TRACE",
                "SCMP_ACT_ALLOW",
                "SCMP_ACT_LOG",
                "SCMP_ACT_NOTIFY",
            ],
            &ACTIONS.map(|a| a.0),
        );
        all(
            &[
                "SCMP_CMP_NE",
                "SCMP_CMP_LT",
                "SCMP_CMP_LE",
                "SCMP_CMP_EQ",
                "SCMP_CMP_GE",
                "SCMP_CMP_GT",
                "SCMP_CMP_MASKED_EQ",
            ],
            &OPERATORS.map(|o| o.0),
        );
        all(
            &[
                "SECCOMP_FILTER_FLAG_TSYNC",
                "SECCOMP_FILTER_FLAG_LOG",
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
            ],
            &FLAGS.map(|f| f.0),
        );
        assert!(Arch::ALL.iter().all(|a| ARCHS.iter().any(|(_, b)| a == b)));
    }
}
