//! What `config.json` may hold although oci-spec's types refuse it.
//!
//! Works on the parsed tree, only after the direct parse failed ([`super::load::parse`]). Each
//! rule names its source. Rules either lose nothing (other spelling, Go's `null` for an empty
//! slice) or leave a warning. Nothing is tolerated that the specification calls an error.

use std::fmt;

use oci_spec::runtime::Capability;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Parses any JSON text into a tree, refusing an object that names a property twice.
///
/// serde_json's own tree keeps the last of two in silence, and so do other readers of the same
/// file, or they keep the first: what one reader checked the other would not run.
pub(super) fn tree(json: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice::<Unique>(json).map(|u| u.0)
}

/// A tree in which no object has two properties of one name.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(UniqueVisitor).map(Unique)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Unique(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if members.contains_key(&key) {
                return Err(serde::de::Error::custom(format!(
                    "property `{key}` is given twice"
                )));
            }
            let Unique(value) = map.next_value()?;
            members.insert(key, value);
        }
        Ok(Value::Object(members))
    }
}

/// Brings the tree into the form that oci-spec's types accept.
pub(super) fn tolerate(tree: &mut Value, warnings: &mut Vec<String>) {
    drop_nulls(tree);
    let Some(top) = tree.as_object_mut() else {
        return;
    };
    // Sections of other platforms, and two properties that oci-spec once invented: nothing
    // reads them on Linux, so their content must not fail the configuration.
    for name in [
        "solaris",
        "windows",
        "vm",
        "zos",
        "uidMappings",
        "gidMappings",
    ] {
        top.shift_remove(name);
    }
    if let Some(process) = top.get_mut("process").and_then(Value::as_object_mut) {
        tolerate_process(process, warnings);
    }
    let linux = top.get_mut("linux").and_then(Value::as_object_mut);
    if let Some(resources) = linux
        .and_then(|l| l.get_mut("resources"))
        .and_then(Value::as_object_mut)
    {
        tolerate_resources(resources);
    }
}

/// Go's encoder writes `null` for a nil slice, map or pointer, and its decoder takes `null` for
/// "not given"; serde takes it only where the type is an `Option`.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, v| !v.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn tolerate_process(process: &mut Map<String, Value>, warnings: &mut Vec<String>) {
    // All of `user` has a zero value: root. Callers that mean root leave it out.
    process
        .entry("user")
        .or_insert_with(|| Value::Object(Map::new()));

    // config.md, `process.capabilities`: "Any value which cannot be mapped to a relevant kernel
    // interface, or cannot be granted otherwise, MUST be logged as a warning by the runtime.
    // Runtimes SHOULD NOT fail if the container configuration requests capabilities that cannot
    // be granted."
    if let Some(sets) = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut)
    {
        for (set, names) in sets.iter_mut() {
            if let Some(names) = names.as_array_mut() {
                names.retain(|name| {
                    let unknown = name
                        .as_str()
                        .filter(|_| serde_json::from_value::<Capability>(name.clone()).is_err());
                    if let Some(text) = unknown {
                        warnings.push(format!(
                            "process.capabilities.{set}: unknown capability {text:?} is ignored"
                        ));
                    }
                    unknown.is_none()
                });
            }
        }
    }

    // oci-spec spells two flags otherwise than config.md's list does.
    if let Some(flags) = process
        .get_mut("scheduler")
        .and_then(|s| s.get_mut("flags"))
        .and_then(Value::as_array_mut)
    {
        for flag in flags {
            let theirs = match flag.as_str() {
                Some("SCHED_FLAG_RESET_ON_FORK") => "SCHED_RESET_ON_FORK",
                Some("SCHED_FLAG_DL_OVERRUN") => "SCHED_FLAG_D_L_OVERRUN",
                _ => continue,
            };
            *flag = Value::from(theirs);
        }
    }

    // schema/config-schema.json allows blanks and the empty string (cpuset(7) lists).
    if let Some(affinity) = process
        .get_mut("execCPUAffinity")
        .and_then(Value::as_object_mut)
    {
        affinity.retain(|_, list| {
            if let Some(text) = list.as_str() {
                *list = Value::from(text.replace(' ', ""));
            }
            list.as_str() != Some("")
        });
    }
}

fn tolerate_resources(resources: &mut Map<String, Value>) {
    // `type` is a string in the Go types, where "" is the zero value (all devices).
    if let Some(rules) = resources.get_mut("devices").and_then(Value::as_array_mut) {
        for rule in rules.iter_mut().filter_map(Value::as_object_mut) {
            if rule.get("type").and_then(Value::as_str) == Some("") {
                rule.shift_remove("type");
            }
        }
    }
    // config-linux.md has hugepage limits as uint64, oci-spec as i64. The kernel counts them in
    // pages below 2^63 bytes, so that a larger one is the largest.
    if let Some(limits) = resources
        .get_mut("hugepageLimits")
        .and_then(Value::as_array_mut)
    {
        for limit in limits.iter_mut().filter_map(|l| l.get_mut("limit")) {
            if limit.as_u64().is_some_and(|n| i64::try_from(n).is_err()) {
                *limit = Value::from(i64::MAX);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::parse;
    use oci_spec::runtime::{Capability, LinuxSchedulerFlag};

    fn with(rest: &str) -> String {
        format!("{{\"ociVersion\":\"1.3.0\",{rest}}}")
    }

    #[test]
    fn unknown_capabilities_warn_and_the_others_stay() {
        let l = parse(
            with(
                r#""process":{"cwd":"/","user":{"uid":1},"capabilities":{
                   "bounding":["CAP_KILL","CAP_FROM_2040"],"effective":["CAP_KILL"]}}"#,
            )
            .as_bytes(),
        )
        .unwrap();
        assert_eq!(l.warnings.len(), 1);
        assert!(l.warnings[0].contains("bounding") && l.warnings[0].contains("CAP_FROM_2040"));
        let caps = l.spec.process().as_ref().unwrap().capabilities().clone();
        let bounding = caps.unwrap().bounding().clone().unwrap();
        assert_eq!(bounding.into_iter().collect::<Vec<_>>(), [Capability::Kill]);
    }

    #[test]
    fn go_nulls_count_as_not_given() {
        let l = parse(
            with(
                r#""mounts":null,"hooks":null,"process":{"cwd":"/","args":null,"user":{"uid":null}},
                   "linux":{"resources":{"devices":[{"allow":true,"type":"","major":null}],
                   "hugepageLimits":[{"pageSize":"2MB","limit":18446744073709551615}]}}"#,
            )
            .as_bytes(),
        )
        .unwrap();
        assert!(l.warnings.is_empty());
        let r = l
            .spec
            .linux()
            .as_ref()
            .unwrap()
            .resources()
            .clone()
            .unwrap();
        assert_eq!(r.devices().as_ref().unwrap()[0].typ(), None);
        assert_eq!(r.hugepage_limits().as_ref().unwrap()[0].limit(), i64::MAX);
    }

    #[test]
    fn the_specs_spelling_of_scheduler_flags_and_lists() {
        let l = parse(
            with(
                r#""process":{"cwd":"/","scheduler":{"policy":"SCHED_DEADLINE","flags":
                   ["SCHED_FLAG_RESET_ON_FORK","SCHED_FLAG_DL_OVERRUN","SCHED_FLAG_RECLAIM"]},
                   "execCPUAffinity":{"initial":"","final":"0-1, 3"}}"#,
            )
            .as_bytes(),
        )
        .unwrap();
        let p = l.spec.process().clone().unwrap();
        assert_eq!(
            p.scheduler().as_ref().unwrap().flags().as_deref().unwrap(),
            [
                LinuxSchedulerFlag::SchedResetOnFork,
                LinuxSchedulerFlag::SchedFlagDLOverrun,
                LinuxSchedulerFlag::SchedFlagReclaim
            ]
        );
        let affinity = p.exec_cpu_affinity().clone().unwrap();
        assert_eq!(affinity.initial(), &None);
        assert_eq!(affinity.cpu_affinity_final().as_deref(), Some("0-1,3"));
    }

    #[test]
    fn other_platforms_and_unknown_properties_are_ignored() {
        for text in [
            r#""windows":{"nothing":"right"}"#,
            r#""vm":7"#,
            r#""inventedIn2040":{"a":[1]}"#,
            r#""linux":{"invented":true,"namespaces":[{"type":"pid","color":"red"}]}"#,
        ] {
            assert!(parse(with(text).as_bytes()).unwrap().warnings.is_empty());
        }
    }
}
