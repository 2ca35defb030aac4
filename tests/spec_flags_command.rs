//! What the flags make of the command, the files of /etc, named volumes and thread pools.

mod flag_host;

use std::path::Path;

use flag_host::{Fake, bundle, flags};
use gpucell::cli::flags::{Context, High, raise, thread_warning};
use gpucell::spec::edit::{Change, apply};
use oci_spec::runtime::Spec;
use serde_json::json;

fn raised(host: &Fake, line: &str, command: &[&str], entrypoint: Option<&[&str]>) -> High {
    let words: Vec<&str> = line.split_whitespace().collect();
    let owned = |s: &[&str]| s.iter().map(|w| (*w).to_owned()).collect::<Vec<String>>();
    let entrypoint = entrypoint.map(owned);
    raise(
        &flags(&words),
        &Context {
            spec: &bundle(host),
            id: "cell1",
            command: &owned(command),
            entrypoint: entrypoint.as_deref(),
            dir: Path::new("/run/cell1"),
        },
        host,
    )
    .unwrap()
}

fn spec_of(host: &Fake, line: &str, command: &[&str], entrypoint: Option<&[&str]>) -> Spec {
    let mut spec = bundle(host);
    apply(&mut spec, &raised(host, line, command, entrypoint).edits).unwrap();
    spec
}

/// Entrypoint and command as Docker joins them.
#[test]
fn commands() {
    let host = Fake::default();
    let args = |line: &str, command: &[&str], entrypoint: Option<&[&str]>| {
        let spec = spec_of(&host, line, command, entrypoint);
        spec.process().clone().unwrap().args().clone().unwrap()
    };
    // (flags, command, entrypoint of the image) → args
    type Row<'a> = (&'a str, &'a [&'a str], Option<&'a [&'a str]>, &'a [&'a str]);
    let rows: &[Row] = &[
        ("", &[], None, &["sh"]),
        ("", &["ls", "-l"], None, &["ls", "-l"]),
        ("", &["-l"], Some(&["ls"]), &["ls", "-l"]),
        ("", &[], Some(&["ls"]), &["sh"]), // the bundle's args are entrypoint and command already
        ("", &["x"], Some(&[]), &["x"]),
        ("--entrypoint cat", &["f"], Some(&["ls"]), &["cat", "f"]),
        ("--entrypoint cat", &[], Some(&["ls"]), &["cat"]),
        ("--entrypoint=", &["f"], Some(&["ls"]), &["f"]),
        ("--entrypoint cat", &["f"], None, &["cat", "f"]),
        ("--init", &["ls"], None, &["/dev/gpucell-init", "--", "ls"]),
    ];
    for (line, command, entrypoint, want) in rows {
        assert_eq!(
            args(line, command, *entrypoint),
            *want,
            "{line} {command:?}"
        );
    }
}

#[test]
fn no_command_at_all() {
    let err = raise(
        &flags(&["--entrypoint="]),
        &Context {
            spec: &bundle(&Fake::default()),
            id: "cell1",
            command: &[],
            entrypoint: None,
            dir: Path::new("/run/cell1"),
        },
        &Fake::default(),
    );
    assert_eq!(err.unwrap_err().to_string(), "no command specified");
}

#[test]
fn an_image_gets_a_hostname_variable() {
    let spec = spec_of(&Fake::default(), "", &[], Some(&[]));
    let env = spec.process().clone().unwrap().env().clone().unwrap();
    assert!(env.contains(&"HOSTNAME=cellhost".to_owned()), "{env:?}");
}

fn etc() -> Fake {
    Fake {
        etc: true,
        ..Fake::default()
    }
}

fn text<'a>(high: &'a High, name: &str) -> Option<&'a str> {
    let file = high.files.iter().find(|f| f.name == name)?;
    Some(&file.text)
}

#[test]
fn etc_files_with_the_hosts_network() {
    let high = raised(&etc(), "", &[], None);
    assert_eq!(
        text(&high, "hosts").unwrap(),
        "127.0.0.1 localhost\n10.0.0.9 server # hal\n127.0.1.1\tcellhost\n"
    );
    assert_eq!(
        text(&high, "resolv.conf").unwrap(),
        "nameserver 10.0.0.1\nsearch lab\noptions ndots:2"
    );
    assert_eq!(text(&high, "hostname").unwrap(), "cellhost\n");
    let mounts: Vec<String> = high.edits.iter().map(|e| e.change.to_string()).collect();
    assert_eq!(
        mounts,
        [
            "+ mount /etc/resolv.conf bind from /run/cell1/resolv.conf bind,rprivate",
            "+ mount /etc/hosts bind from /run/cell1/hosts bind,rprivate",
            "+ mount /etc/hostname bind from /run/cell1/hostname bind,rprivate",
        ]
    );
}

#[test]
fn etc_files_without_network() {
    let line = "--network none --hostname box --add-host db:10.1.1.1 --add-host six=::1";
    let hosts = raised(&etc(), line, &[], None);
    let hosts = text(&hosts, "hosts").unwrap();
    assert!(hosts.starts_with("127.0.0.1\tlocalhost\n"), "{hosts}");
    assert!(
        hosts.ends_with("127.0.0.1\tbox\n10.1.1.1\tdb\n::1\tsix\n"),
        "{hosts}"
    );
}

#[test]
fn dns_flags_replace_their_part() {
    let line = "--dns 9.9.9.9 --dns 1.1.1.1 --dns-option rotate";
    let high = raised(&etc(), line, &[], None);
    assert_eq!(
        text(&high, "resolv.conf").unwrap(),
        "search lab\nnameserver 9.9.9.9\nnameserver 1.1.1.1\noptions rotate\n"
    );
    let none = raised(&etc(), "--dns-search .", &[], None);
    assert_eq!(
        text(&none, "resolv.conf").unwrap(),
        "nameserver 10.0.0.1\noptions ndots:2\n"
    );
}

#[test]
fn etc_files_of_the_user_stay() {
    let high = raised(&etc(), "-v /data:/etc/hosts", &[], None);
    assert_eq!(text(&high, "hosts"), None);
    assert!(text(&high, "resolv.conf").is_some());
    assert_eq!(raised(&etc(), "-v /data:/etc", &[], None).files, []);
    assert_eq!(raised(&Fake::default(), "", &[], None).files, []);
}

#[test]
fn a_cell_without_a_name_of_its_own_takes_the_id() {
    let mut spec = bundle(&Fake::default());
    spec.set_hostname(None);
    let name = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ctx = Context {
            spec: &spec,
            id: "cell1",
            command: &[],
            entrypoint: None,
            dir: Path::new("/run/cell1"),
        };
        let high = raise(&flags(&words), &ctx, &Fake::default()).unwrap();
        let found = high.edits.into_iter().find_map(|e| match e.change {
            Change::Hostname(name) => name,
            _ => None,
        });
        found.unwrap_or_default()
    };
    assert_eq!(name("--network none"), "cell1");
    assert_eq!(name(""), "hal"); // the host's network: the host's name, as in Docker
    assert_eq!(name("--hostname box"), "box");
}

#[test]
fn volumes_are_named_once() {
    let high = raised(
        &Fake::default(),
        "-v models:/m --mount src=out,dst=/out,volume-nocopy",
        &[],
        None,
    );
    let volumes: Vec<(&str, bool)> = high
        .volumes
        .iter()
        .map(|v| (v.path.to_str().unwrap(), v.copy))
        .collect();
    assert_eq!(
        volumes,
        [("/volumes/models", true), ("/volumes/out", false)]
    );
}

/// The mapping of an id-mapped mount as data: the id on disk is `containerID`.
#[test]
fn idmap_as_data() {
    let line = "-u aiuser -v /home/me/sub:/work:idmap";
    let spec = serde_json::to_value(spec_of(&Fake::default(), line, &[], None)).unwrap();
    assert_eq!(
        spec["mounts"],
        json!([{
            "destination": "/work", "type": "bind", "source": "/home/me/sub",
            "options": ["rbind", "rprivate", "idmap"],
            "uidMappings": [{"hostID": 1000, "containerID": 500, "size": 1}],
            "gidMappings": [{"hostID": 1001, "containerID": 501, "size": 1}]
        }])
    );
}

/// With a user namespace the id that shows is the host's id of the cell's user.
#[test]
fn idmap_through_a_user_namespace() {
    let mut spec = bundle(&Fake::default());
    let mut linux = spec.linux().clone().unwrap();
    let maps =
        || serde_json::from_value(json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]));
    linux
        .set_uid_mappings(maps().unwrap())
        .set_gid_mappings(maps().unwrap());
    spec.set_linux(Some(linux));
    let ctx = Context {
        spec: &spec,
        id: "cell1",
        command: &[],
        entrypoint: None,
        dir: Path::new("/run/cell1"),
    };
    let words = ["-u", "1000:100", "-v", "/home/me/sub:/work:idmap"];
    let high = raise(&flags(&words), &ctx, &Fake::default()).unwrap();
    let line = high.edits.iter().map(|e| e.change.to_string());
    let line = line.filter(|l| l.contains("idmap")).collect::<String>();
    assert!(
        line.ends_with("uid 500 shown as 101000 gid 501 shown as 100100"),
        "{line}"
    );
}

#[test]
fn thread_pools_are_warned_of() {
    let warning = |cpus: u32, line: &str| {
        let host = Fake {
            cpus,
            ..Fake::default()
        };
        thread_warning(&spec_of(&host, line, &[], None), &host)
    };
    assert_eq!(
        warning(64, "--cpus 2").unwrap(),
        "the program sees 64 CPUs and may use the time of 2.00: size its thread pools, as with \
         -e OMP_NUM_THREADS=2, or bind it with --cpuset-cpus 0-1"
    );
    assert!(
        warning(4, "--cpu-quota 150000")
            .unwrap()
            .contains("OMP_NUM_THREADS=2")
    );
    assert_eq!(warning(2, "--cpus 2"), None);
    assert_eq!(warning(4, "--cpus 2 --cpuset-cpus 1,3"), None);
    assert_eq!(warning(4, "--cpus 2 -e OMP_NUM_THREADS=2"), None);
    assert_eq!(warning(4, ""), None);
    assert_eq!(warning(4, "--cpu-quota -1"), None);
}
