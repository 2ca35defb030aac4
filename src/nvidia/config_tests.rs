//! The configuration file: values, defaults, and where a mistake is said to be.

use super::*;

fn parse(text: &str) -> Result<Config> {
    Config::parse(text, Path::new("/etc/x.toml"))
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config.source.as_deref(), Some(Path::new("/etc/x.toml")));
    assert_eq!(
        config,
        Config {
            source: Some("/etc/x.toml".into()),
            driver_root: "/".into(),
            proc_root: "/proc".into(),
            dev_root: "/dev".into(),
            accept_environment_unprivileged: true,
            accept_mounts: false,
            capabilities: Capabilities::ALL,
            cdi_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            monitor: "/usr/libexec/gpucell/gpucell-monitor".into(),
        }
    );
    assert_eq!(parse("[nvidia]\n").unwrap(), config);
}

#[test]
fn every_key() {
    let config = parse(
        "[nvidia]\n\
         driver-root = \"/run/nvidia/driver\"\n\
         proc-root = \"/fake/proc\"\n\
         dev-root = \"/fake/dev\"\n\
         accept-environment-unprivileged = false\n\
         accept-mounts = true\n\
         driver-capabilities = [\"utility\", \"video\"]\n\
         cdi-dirs = [\"/srv/cdi\"]\n\
         monitor = \"/opt/monitor\"\n",
    )
    .unwrap();
    assert_eq!(
        config,
        Config {
            source: Some("/etc/x.toml".into()),
            driver_root: "/run/nvidia/driver".into(),
            proc_root: "/fake/proc".into(),
            dev_root: "/fake/dev".into(),
            accept_environment_unprivileged: false,
            accept_mounts: true,
            capabilities: Capabilities::UTILITY | Capabilities::VIDEO,
            cdi_dirs: vec!["/srv/cdi".into()],
            monitor: "/opt/monitor".into(),
        }
    );
    // What is printed says the same.
    let printed = config.to_toml().unwrap();
    assert!(
        printed.starts_with("# from \"/etc/x.toml\"\n[nvidia]\n"),
        "{printed}"
    );
    assert_eq!(parse(&printed).unwrap(), config);
}

#[test]
fn printed_defaults_name_the_missing_file() {
    let printed = Config::default().to_toml().unwrap();
    assert!(
        printed.starts_with("# defaults: there is no /etc/gpucell/config.toml\n"),
        "{printed}"
    );
    let read = parse(&printed).unwrap();
    assert_eq!(
        Config {
            source: None,
            ..read
        },
        Config::default()
    );
}

#[test]
fn lists() {
    let capabilities = |list: &str| {
        parse(&format!("nvidia.driver-capabilities = {list}"))
            .unwrap()
            .capabilities
    };
    assert_eq!(capabilities("[]"), Capabilities::NONE);
    assert_eq!(capabilities("[\"all\"]"), Capabilities::ALL);
    assert_eq!(capabilities("[\"ngx\"]"), Capabilities::NGX);
    assert!(parse("nvidia.cdi-dirs = []").unwrap().cdi_dirs.is_empty());
}

/// One row: the text, where the mistake is, and a part of what is said.
#[test]
fn mistakes_are_named_with_their_line() {
    let rows: &[(&str, &str, &str)] = &[
        ("[nvidia]\ndriver-rot = \"/\"\n", "line 2", "driver-rot"),
        ("\n\n[amd]\n", "line 3", "amd"),
        ("[nvidia]\n\naccept-mounts = 1\n", "line 3", "boolean"),
        ("[nvidia]\naccept-mounts = \"yes\"\n", "line 2", "boolean"),
        ("[nvidia]\ndriver-root = \"opt\"\n", "line 2", "absolute"),
        ("[nvidia]\nproc-root = \"\"\n", "line 2", "absolute"),
        ("[nvidia]\ndev-root = \"/a\\u0000\"\n", "line 2", "NUL"),
        ("[nvidia]\ncdi-dirs = \"/etc/cdi\"\n", "line 2", "sequence"),
        ("[nvidia]\ncdi-dirs = [\n\"/a\",\n\"b\"]\n", "line", "\"b\""),
        (
            "[nvidia]\ndriver-capabilities = [\"cuda\"]\n",
            "line 2",
            "unknown driver capability \"cuda\"",
        ),
        ("[nvidia]\n[nvidia]\n", "line 2", "duplicate"),
        (
            "[nvidia]\naccept-mounts = true\naccept-mounts = true\n",
            "line 3",
            "duplicate",
        ),
        ("[nvidia\n", "line 1", "]"),
        ("nvidia = 1\n", "line 1", "struct"),
    ];
    for (text, line, part) in rows {
        let said = parse(text).expect_err(text).to_string();
        assert!(
            said.starts_with(&format!("/etc/x.toml {line}")),
            "{text:?}: {said}"
        );
        assert!(said.contains(part), "{text:?}: {said}");
        assert!(!said.contains('\n'), "{text:?}: {said}");
    }
}

#[test]
fn a_named_file_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let said = Config::load(Some(&file)).unwrap_err();
    assert_eq!(said.errno(), Some(libc::ENOENT));
    assert!(said.to_string().contains("config.toml"), "{said}");
    std::fs::write(&file, "nvidia.accept-mounts = true").unwrap();
    let config = Config::load(Some(&file)).unwrap();
    assert!(config.accept_mounts);
    assert_eq!(config.source, Some(file.clone()));
    std::fs::write(&file, vec![b'\n'; MAX_SIZE as usize + 1]).unwrap();
    assert_eq!(
        Config::load(Some(&file)).unwrap_err().errno(),
        Some(libc::EFBIG)
    );
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    assert!(Config::load(Some(&file)).is_err());
    assert_eq!(
        Config::load(Some(dir.path())).unwrap_err().errno(),
        Some(libc::EISDIR)
    );
}
