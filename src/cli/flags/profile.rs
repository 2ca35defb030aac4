//! Docker's seccomp profile files to the runtime-spec's `linux.seccomp`.
//!
//! A profile is that section plus conditions: an architecture map, and for each rule the capabilities,
//! architectures and kernel it holds for (moby `profiles/seccomp`, `setupSeccomp`). A plain OCI section
//! is such a profile without conditions.

use std::path::PathBuf;

use oci_spec::runtime::{
    Arch, Capabilities, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSyscallBuilder,
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<PathBuf>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Go's name of the architecture we run on, and libseccomp's.
#[cfg(target_arch = "x86_64")]
const NATIVE: (&str, Arch) = ("amd64", Arch::ScmpArchX86_64);
#[cfg(target_arch = "aarch64")]
const NATIVE: (&str, Arch) = ("arm64", Arch::ScmpArchAarch64);

/// Reads a profile for a process with these bounding capabilities on this kernel.
///
/// # Errors
/// What is wrong with the text, in words.
pub(super) fn parse(
    json: &str,
    caps: &Capabilities,
    kernel: (u32, u32),
) -> Result<LinuxSeccomp, String> {
    let mut de = serde_json::Deserializer::from_str(json);
    let profile: Profile =
        serde_path_to_error::deserialize(&mut de).map_err(|e| format!("decoding: {e}"))?;
    let mut out = LinuxSeccomp::default();
    out.set_default_action(profile.default_action)
        .set_default_errno_ret(profile.default_errno_ret)
        .set_flags(profile.flags)
        .set_listener_path(profile.listener_path)
        .set_listener_metadata(profile.listener_metadata)
        .set_architectures(architectures(profile.architectures, profile.arch_map)?);
    let mut rules = Vec::new();
    for rule in profile.syscalls.unwrap_or_default() {
        if !rule.includes.met(caps, kernel)? || rule.excludes.hit(caps, kernel)? {
            continue;
        }
        let names = match (rule.name, rule.names) {
            (Some(_), Some(_)) => {
                return Err(
                    "'name' and 'names' were specified in the seccomp profile, use either 'name' \
                     or 'names'"
                        .to_owned(),
                );
            }
            (Some(name), None) => vec![name],
            (None, names) => names.unwrap_or_default(),
        };
        let mut built = LinuxSyscallBuilder::default()
            .names(names)
            .action(rule.action);
        if let Some(errno) = rule.errno_ret {
            built = built.errno_ret(errno);
        }
        if let Some(args) = rule.args.filter(|a| !a.is_empty()) {
            built = built.args(args);
        }
        rules.push(built.build().map_err(|e| e.to_string())?);
    }
    out.set_syscalls(Some(rules));
    Ok(out)
}

fn architectures(
    plain: Option<Vec<Arch>>,
    map: Option<Vec<ArchMap>>,
) -> Result<Option<Vec<Arch>>, String> {
    let map = map.unwrap_or_default();
    if map.is_empty() {
        return Ok(plain);
    }
    if plain.is_some_and(|p| !p.is_empty()) {
        return Err(
            "'architectures' and 'archMap' were specified in the seccomp profile, use \
                    either 'architectures' or 'archMap'"
                .to_owned(),
        );
    }
    let native = map.into_iter().find(|m| m.architecture == NATIVE.1);
    Ok(native.map(|m| {
        let mut all = vec![m.architecture];
        all.extend(m.sub_architectures.unwrap_or_default());
        all
    }))
}

impl Condition {
    /// Whether all that is asked for holds (`includes`).
    fn met(&self, caps: &Capabilities, kernel: (u32, u32)) -> Result<bool, String> {
        let arch = self.arches.as_ref().filter(|a| !a.is_empty());
        let arch = arch.is_none_or(|a| a.iter().any(|a| a == NATIVE.0));
        let caps = self.caps.iter().flatten().all(|c| has(caps, c));
        Ok(arch && caps && self.kernel(kernel)?.unwrap_or(true))
    }

    /// Whether any of it holds (`excludes`).
    fn hit(&self, caps: &Capabilities, kernel: (u32, u32)) -> Result<bool, String> {
        let arch = self.arches.iter().flatten().any(|a| a == NATIVE.0);
        let cap = self.caps.iter().flatten().any(|c| has(caps, c));
        Ok(arch || cap || self.kernel(kernel)?.unwrap_or(false))
    }

    fn kernel(&self, running: (u32, u32)) -> Result<Option<bool>, String> {
        let Some(text) = self.min_kernel.as_deref().filter(|t| !t.is_empty()) else {
            return Ok(None);
        };
        let parsed = text
            .split_once('.')
            .and_then(|(a, b)| Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?)));
        let least = parsed.ok_or_else(|| format!("invalid kernel version: {text:?}"))?;
        Ok(Some(running >= least))
    }
}

fn has(caps: &Capabilities, name: &str) -> bool {
    name.strip_prefix("CAP_")
        .and_then(|bare| bare.parse().ok())
        .is_some_and(|cap| caps.contains(&cap))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Capability;

    const PROFILE: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64",
             "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
        ],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "x"},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]},
             "args": [{"index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"name": "modify_ldt", "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["mips"]}}
        ]
    }"#;

    fn names(caps: &[Capability], kernel: (u32, u32)) -> Vec<String> {
        let caps = caps.iter().copied().collect();
        let out = parse(PROFILE, &caps, kernel).unwrap();
        let rules = out.syscalls().clone().unwrap();
        rules.iter().flat_map(|r| r.names().clone()).collect()
    }

    #[test]
    fn conditions() {
        assert_eq!(names(&[], (6, 1)), ["read", "ptrace", "clone", "clone3"]);
        assert_eq!(names(&[], (4, 7)), ["read", "clone", "clone3"]);
        assert_eq!(
            names(&[Capability::SysAdmin], (5, 0)),
            ["read", "ptrace", "mount", "clone3"]
        );
    }

    #[test]
    fn values_are_kept() {
        let out = parse(PROFILE, &Capabilities::new(), (6, 1)).unwrap();
        assert_eq!(out.default_errno_ret(), Some(1));
        let rules = out.syscalls().clone().unwrap();
        assert_eq!(rules[3].errno_ret(), Some(38));
        assert_eq!(rules[2].args().as_ref().unwrap().len(), 1);
        let arches = out.architectures().clone().unwrap();
        assert_eq!(arches[0], NATIVE.1);
    }

    #[test]
    fn a_plain_section_is_a_profile() {
        let json = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"]}"#;
        let out = parse(json, &Capabilities::new(), (6, 1)).unwrap();
        assert_eq!(out.architectures(), &Some(vec![Arch::ScmpArchX86]));
    }

    #[test]
    fn errors_say_where() {
        for (json, want) in [
            ("{}", "defaultAction"),
            (r#"{"defaultAction": "NO"}"#, "defaultAction"),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[1]}]}"#,
                "syscalls[0].names[0]",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"],"action":"SCMP_ACT_KILL"}]}"#,
                "'name' and 'names'",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","action":"SCMP_ACT_KILL","includes":{"minKernel":"x"}}]}"#,
                "invalid kernel version",
            ),
        ] {
            let err = parse(json, &Capabilities::new(), (6, 1)).unwrap_err();
            assert!(err.contains(want), "{json}: {err}");
        }
    }
}
