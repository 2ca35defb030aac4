use super::*;
use crate::cgroup::DEFAULT_RULES;
use crate::cgroup::limits::lower;
use oci_spec::runtime::LinuxResources;

fn of(json: &str) -> Vec<Property> {
    let res: LinuxResources = serde_json::from_str(json).unwrap();
    let (new, _) = lower(&res, &|_| false, &|_, _| None).unwrap();
    limits(&new.list, true)
}

fn get<'a>(list: &'a [Property], name: &str) -> Option<&'a Value> {
    list.iter().find(|p| p.name == name).map(|p| &p.value)
}

#[track_caller]
fn same(json: &str, want: &[(&str, Value)]) {
    let mut got: Vec<(String, Value)> = of(json).into_iter().map(|p| (p.name, p.value)).collect();
    got.sort_by(|a, b| a.0.cmp(&b.0));
    let want: Vec<(String, Value)> = want
        .iter()
        .map(|(n, v)| ((*n).to_owned(), v.clone()))
        .collect();
    assert_eq!(got, want, "{json}");
}

fn bytes(list: &[u8]) -> Value {
    Value::Array("y".into(), list.iter().map(|&b| Value::Byte(b)).collect())
}

#[test]
fn limits_are_properties() {
    use Value::U64;
    same("{}", &[]);
    same(
        r#"{"memory":{"limit":67108864,"swap":100663296,"reservation":1048576},"pids":{"limit":9}}"#,
        &[
            ("MemoryLow", U64(1 << 20)),
            ("MemoryMax", U64(64 << 20)),
            ("MemorySwapMax", U64(32 << 20)),
            ("TasksMax", U64(9)),
        ],
    );
    same(
        r#"{"memory":{"limit":-1},"pids":{"limit":-1}}"#,
        &[
            ("MemoryMax", U64(INFINITY)),
            ("MemorySwapMax", U64(INFINITY)),
            ("TasksMax", U64(INFINITY)),
        ],
    );
    same(
        r#"{"cpu":{"quota":50000,"period":100000,"cpus":"0-2,9","mems":"0"}}"#,
        &[
            ("AllowedCPUs", bytes(&[7, 2])),
            ("AllowedMemoryNodes", bytes(&[1])),
            ("CPUQuotaPerSecUSec", U64(500_000)),
            ("CPUQuotaPeriodUSec", U64(100_000)),
        ],
    );
    same(
        r#"{"cpu":{"quota":-1}}"#,
        &[
            ("CPUQuotaPerSecUSec", U64(INFINITY)),
            ("CPUQuotaPeriodUSec", U64(100_000)),
        ],
    );
    same(r#"{"cpu":{"shares":1024}}"#, &[("CPUWeight", U64(100))]);
    same(r#"{"cpu":{"idle":1}}"#, &[("CPUWeight", U64(0))]);
    same(
        r#"{"cpu":{"idle":0,"shares":1024}}"#,
        &[("CPUWeight", U64(100))],
    );
}

#[test]
fn quotas_are_rounded_up_to_percents() {
    assert_eq!(per_second(50_000, 100_000), 500_000);
    assert_eq!(per_second(50_001, 100_000), 510_000);
    assert_eq!(per_second(1000, 100_000), 10_000);
    assert_eq!(per_second(1000, 1_000_000), 10_000);
    assert_eq!(per_second(u64::MAX, 1), u64::MAX);
}

#[test]
fn block_devices_are_named_by_number() {
    let line = |path: &str, n| Value::Struct(vec![Value::text(path), Value::U64(n)]);
    let list = |lines: Vec<Value>| Value::Array("(st)".into(), lines);
    let got = of(r#"{"blockIO":{"weight":100,
        "weightDevice":[{"major":8,"minor":0,"weight":10}],
        "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1},{"major":8,"minor":16,"rate":0}],
        "throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":5}]}}"#);
    // io.weight, not the BFQ scheduler's scale.
    let weight = crate::cgroup::limits::convert::blkio_to_io_weight(100);
    assert_eq!(get(&got, "IOWeight"), Some(&Value::U64(weight)));
    assert!(matches!(get(&got, "IODeviceWeight"), Some(Value::Array(_, l)) if l.len() == 1));
    assert_eq!(
        get(&got, "IOReadBandwidthMax"),
        Some(&list(vec![
            line("/dev/block/8:0", 1),
            line("/dev/block/8:16", INFINITY)
        ]))
    );
    assert_eq!(
        get(&got, "IOWriteIOPSMax"),
        Some(&list(vec![line("/dev/block/8:0", 5)]))
    );
    let got = of(r#"{"unified":{"io.max":"8:0 rbps=7 wbps=max"}}"#);
    assert_eq!(
        get(&got, "IOReadBandwidthMax"),
        Some(&list(vec![line("/dev/block/8:0", 7)]))
    );
    assert!(get(&got, "IOWriteBandwidthMax").is_some());
}

#[test]
fn unified_files_have_properties_too() {
    use Value::U64;
    same(
        r#"{"unified":{"memory.high":"max","memory.min":"4096","cpu.max":"max","cpu.weight":"7",
            "cpuset.cpus":"1","pids.max":"3","io.weight":"default 50","memory.oom.group":"1","misc.max":"x 1"}}"#,
        &[
            ("AllowedCPUs", bytes(&[2])),
            ("CPUQuotaPerSecUSec", U64(INFINITY)),
            ("CPUWeight", U64(7)),
            ("IOWeight", U64(50)),
            ("MemoryHigh", U64(INFINITY)),
            ("MemoryMin", U64(4096)),
            ("TasksMax", U64(3)),
        ],
    );
    // What systemd can't say stays a matter of the file.
    same(
        r#"{"unified":{"memory.max":"1G","cpuset.cpus":"0-99999","io.max":"x rbps=1"}}"#,
        &[],
    );
    let res: LinuxResources = serde_json::from_str(r#"{"cpu":{"idle":1}}"#).unwrap();
    let (new, _) = lower(&res, &|_| false, &|_, _| None).unwrap();
    assert!(wants_idle(&new.list));
    assert_eq!(limits(&new.list, false), []);
}

fn allowed(rules: &[DeviceRule]) -> Vec<String> {
    let list = devices(rules);
    assert_eq!(list[0].value, Value::text("strict"));
    assert_eq!(list[1].value, Value::Array("(ss)".into(), vec![]));
    let Value::Array(of, lines) = &list[2].value else {
        panic!("{list:?}");
    };
    assert_eq!(of, "(ss)");
    let text = |v: &Value| match v {
        Value::Text(s) => s.clone(),
        v => panic!("{v:?}"),
    };
    lines
        .iter()
        .map(|l| match l {
            Value::Struct(two) => format!("{} {}", text(&two[0]), text(&two[1])),
            v => panic!("{v:?}"),
        })
        .collect()
}

#[test]
fn systemd_allows_at_least_what_the_list_does() {
    let rule = |allow, kind, major, minor, access| DeviceRule {
        allow,
        kind,
        major,
        minor,
        access,
    };
    let mut rules = vec![
        rule(true, Kind::Char, Some(9), Some(9), ALL),
        rule(false, Kind::All, None, None, ALL),
        rule(true, Kind::Char, Some(195), None, READ | WRITE),
        rule(true, Kind::Block, Some(8), Some(1), READ),
        rule(true, Kind::All, Some(7), Some(7), READ),
        rule(false, Kind::Char, Some(195), Some(3), ALL),
        rule(true, Kind::Char, None, Some(4), WRITE),
    ];
    assert_eq!(
        allowed(&rules),
        [
            "char-195 rw",
            "/dev/block/8:1 r",
            "/dev/block/7:7 r",
            "/dev/char/7:7 r",
            "char-* w"
        ]
    );
    rules.truncate(2);
    rules.extend_from_slice(&DEFAULT_RULES);
    let list = allowed(&rules);
    assert!(list.contains(&"char-* m".to_owned()), "{list:?}");
    assert!(list.contains(&"/dev/char/1:3 rwm".to_owned()), "{list:?}");
    assert!(list.contains(&"char-136 rwm".to_owned()), "{list:?}");
    // A list that starts by allowing all, which systemd can't take anything from.
    let open = [
        rule(true, Kind::All, None, None, ALL),
        rule(false, Kind::Char, Some(10), Some(200), ALL),
    ];
    assert_eq!(allowed(&open), ["block-* rwm", "char-* rwm"]);
}
