//! Which GPUs a configuration asks for, as a table. Pure: no host, no driver, no root.
//!
//! A row is: its name; what is given, one word or assignment an item; what comes of it. Given are
//! `KEY=VALUE` (the environment, in order), `privileged`, `mount PATH` (of /dev/null, under
//! /var/run/nvidia-container-devices unless absolute), `bind SOURCE PATH`, `annotation KEY VALUE`,
//! `gpus VALUE` (a `--gpus`), and `config LINE` (of `[nvidia]`). What comes is written by `said`: only what
//! differs from the default (capabilities compute,utility; nothing else asked).

mod rows;

use std::path::Path;

use gpucell::nvidia::config::Config;
use gpucell::nvidia::select::{Asked, Gpus, asked, from_flag};
use oci_spec::runtime::Spec;
use serde_json::{Map, Value, json};

type Row = (&'static str, &'static [&'static str], &'static str);

const ROOT: &str = "/var/run/nvidia-container-devices";
const GPU: &str = "GPU-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f";

/// The configuration, the administrator's file and the flags of a row.
fn given(items: &[&str]) -> (Spec, Config, Vec<String>) {
    let (mut env, mut mounts, mut flags) = (Vec::new(), Vec::new(), Vec::new());
    let (mut annotations, mut file) = (Map::new(), String::from("[nvidia]\n"));
    let mut bounding = vec!["CAP_CHOWN"];
    let mut bind = |source: &str, path: &str| {
        mounts.push(
            json!({"destination": path, "type": "bind", "source": source, "options": ["bind"]}),
        );
    };
    for item in items {
        let (word, rest) = item.split_once(' ').unwrap_or((item, ""));
        match word {
            "privileged" => bounding.push("CAP_SYS_ADMIN"),
            "mount" if rest.starts_with('/') => bind("/dev/null", rest),
            "mount" => bind("/dev/null", &format!("{ROOT}/{rest}")),
            "bind" => {
                let (source, path) = rest.split_once(' ').unwrap();
                bind(source, path);
            }
            "annotation" => {
                let (key, value) = rest.split_once(' ').unwrap_or((rest, ""));
                annotations.insert(key.into(), Value::from(value));
            }
            "gpus" => flags.push(rest.to_string()),
            "config" => file.push_str(&format!("{rest}\n")),
            _ => env.push(*item),
        }
    }
    let spec = json!({
        "ociVersion": "1.3.0",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["x"], "env": env,
            "capabilities": {"bounding": bounding},
        },
        "mounts": mounts,
        "annotations": annotations,
    });
    let config = Config::parse(&file, Path::new("config.toml")).unwrap();
    (serde_json::from_value(spec).unwrap(), config, flags)
}

/// What comes of a row, in words.
fn said(items: &[&str]) -> String {
    let (spec, config, flags) = given(items);
    let result = if flags.is_empty() {
        asked(&spec, &config)
    } else {
        from_flag(&flags, &config).and_then(|flag| flag.asked(&spec, &config))
    };
    match result {
        Err(e) => format!("error: {e}"),
        Ok(Asked::Nothing) => "nothing".into(),
        Ok(Asked::Ignored(why)) => format!("ignored: {why}"),
        Ok(Asked::Cdi(cdi)) => {
            let mut text = String::from("cdi");
            cdi.names
                .iter()
                .for_each(|n| text += &format!(" {}", n.name));
            cdi.requirements
                .iter()
                .for_each(|r| text += &format!(" <{r}>"));
            cdi.mounts
                .iter()
                .for_each(|m| text += &format!(" -{}", m.display()));
            text
        }
        Ok(Asked::Driver(request)) => {
            let mut text = match &request.gpus {
                Gpus::None => "none".into(),
                Gpus::All => "all".into(),
                Gpus::Count(count) => format!("first {count}"),
                Gpus::List(ids) => {
                    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
                    format!("gpus {}", ids.join(","))
                }
            };
            if request.capabilities.to_string() != "compute,utility" {
                text += &format!(" [{}]", request.capabilities);
            }
            request
                .requirements
                .iter()
                .for_each(|r| text += &format!(" <{r}>"));
            for (on, name) in [
                (request.mig_config, "mig-config"),
                (request.mig_monitor, "mig-monitor"),
                (request.gds, "gds"),
                (request.mofed, "mofed"),
                (request.gdrcopy, "gdrcopy"),
                (request.nvswitch, "nvswitch"),
            ] {
                text += &if on {
                    format!(" {name}")
                } else {
                    String::new()
                };
            }
            request
                .imex
                .iter()
                .for_each(|c| text += &format!(" imex{c}"));
            request
                .mounts
                .iter()
                .for_each(|m| text += &format!(" -{}", m.display()));
            text
        }
    }
}

/// Runs rows. An expected text that ends in `…` is only the start.
fn check(rows: &[Row]) {
    let mut wrong = Vec::new();
    for (name, items, want) in rows {
        let has = said(items).replace(GPU, "GPU-u").replace(ROOT, "ROOT");
        let right = match want.strip_suffix('…') {
            Some(start) => has.starts_with(start),
            None => has == *want,
        };
        if !right {
            wrong.push(format!(
                "{name}\n  given {items:?}\n  want  {want}\n  has   {has}"
            ));
        }
    }
    rows::none_is(&wrong);
}

#[test]
#[rustfmt::skip] // a row a line
fn environment() {
    check(&[
        ("no variable", &[], "nothing"),
        ("empty", &["NVIDIA_VISIBLE_DEVICES="], "nothing"),
        ("blank", &["NVIDIA_VISIBLE_DEVICES= "], "nothing"),
        ("only commas", &["NVIDIA_VISIBLE_DEVICES=, ,"], "nothing"),
        ("void", &["NVIDIA_VISIBLE_DEVICES=void"], "nothing"),
        ("void first", &["NVIDIA_VISIBLE_DEVICES=void,0"], "nothing"),
        ("void last", &["NVIDIA_VISIBLE_DEVICES=0,void"], "nothing"),
        ("void after all", &["NVIDIA_VISIBLE_DEVICES=all,void"], "nothing"),
        ("void beside nonsense", &["NVIDIA_VISIBLE_DEVICES=foo, void"], "nothing"),
        ("all", &["NVIDIA_VISIBLE_DEVICES=all"], "all"),
        ("ALL", &["NVIDIA_VISIBLE_DEVICES=ALL"], "all"),
        ("all with blanks", &["NVIDIA_VISIBLE_DEVICES= all "], "all"),
        ("all wins over an index", &["NVIDIA_VISIBLE_DEVICES=0,all"], "all"),
        ("all wins over nonsense", &["NVIDIA_VISIBLE_DEVICES=foo,all"], "all"),
        ("all before none", &["NVIDIA_VISIBLE_DEVICES=all,none"], "all"),
        ("none", &["NVIDIA_VISIBLE_DEVICES=none"], "none"),
        ("none before all", &["NVIDIA_VISIBLE_DEVICES=none,all"], "none"),
        ("none after an index", &["NVIDIA_VISIBLE_DEVICES=0,none"], "none"),
        ("index", &["NVIDIA_VISIBLE_DEVICES=0"], "gpus 0"),
        ("index 10", &["NVIDIA_VISIBLE_DEVICES=10"], "gpus 10"),
        ("indices in order", &["NVIDIA_VISIBLE_DEVICES=3,1"], "gpus 3,1"),
        ("blanks and empty items", &["NVIDIA_VISIBLE_DEVICES= 1 ,, 0,"], "gpus 1,0"),
        ("an index twice", &["NVIDIA_VISIBLE_DEVICES=1,1,0"], "gpus 1,0"),
        ("an index with zeros", &["NVIDIA_VISIBLE_DEVICES=01,1"], "gpus 1"),
        ("UUID", &["NVIDIA_VISIBLE_DEVICES=GPU-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f"], "gpus GPU-u"),
        ("UUID of another case, twice", &["NVIDIA_VISIBLE_DEVICES=gpu-0A1B2C3D-0a1b-0a1b-0a1b-0a1b2c3d4e5f,GPU-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f"],
            "gpus GPU-u"),
        ("a UUID's start is none", &["NVIDIA_VISIBLE_DEVICES=GPU-0a1b2c3d"],
            "error: NVIDIA_VISIBLE_DEVICES=GPU-0a1b2c3d: unknown device \"GPU-0a1b2c3d\"…"),
        ("GPU:MIG", &["NVIDIA_VISIBLE_DEVICES=0:1"], "gpus 0:1"),
        ("GPU and its MIG device", &["NVIDIA_VISIBLE_DEVICES=0,0:0"], "gpus 0,0:0"),
        ("MIG UUID", &["NVIDIA_VISIBLE_DEVICES=mig-0A1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f"],
            "gpus MIG-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f"),
        ("MIG UUID of old drivers", &["NVIDIA_VISIBLE_DEVICES=MIG-GPU-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f/5/0"],
            "gpus MIG-GPU-u/5/0"),
        ("MIG UUID of old drivers, cut", &["NVIDIA_VISIBLE_DEVICES=MIG-GPU-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f/5"],
            "error: NVIDIA_VISIBLE_DEVICES=…"),
        ("bus id", &["NVIDIA_VISIBLE_DEVICES=0000:01:00.0"], "gpus 0000:01:00.0"),
        ("bus id as nvidia-smi writes it", &["NVIDIA_VISIBLE_DEVICES=00000000:C1:00.0"], "gpus 0000:c1:00.0"),
        ("bus id, short", &["NVIDIA_VISIBLE_DEVICES=0:1:0.0"], "gpus 0000:01:00.0"),
        ("bus id, wide domain", &["NVIDIA_VISIBLE_DEVICES=10000:01:00.0"], "gpus 10000:01:00.0"),
        ("bus id without domain", &["NVIDIA_VISIBLE_DEVICES=01:00.0"], "error: …"),
        ("bus id without function", &["NVIDIA_VISIBLE_DEVICES=0000:01:00"], "error: …"),
        ("bus id, no such device", &["NVIDIA_VISIBLE_DEVICES=0000:01:20.0"], "error: …"),
        ("bus id, no such function", &["NVIDIA_VISIBLE_DEVICES=0000:01:00.8"], "error: …"),
        ("negative", &["NVIDIA_VISIBLE_DEVICES=-1"], "error: NVIDIA_VISIBLE_DEVICES=-1: unknown device \"-1\"…"),
        ("plus", &["NVIDIA_VISIBLE_DEVICES=+1"], "error: …"),
        ("too large", &["NVIDIA_VISIBLE_DEVICES=4294967296"], "error: …"),
        ("hexadecimal", &["NVIDIA_VISIBLE_DEVICES=0x1"], "error: …"),
        ("a word", &["NVIDIA_VISIBLE_DEVICES=0,tesla"],
            "error: NVIDIA_VISIBLE_DEVICES=0,tesla: unknown device \"tesla\"…"),
        ("NONE is no word", &["NVIDIA_VISIBLE_DEVICES=NONE"], "error: …"),
        ("a range", &["NVIDIA_VISIBLE_DEVICES=0-3"], "error: …"),
        ("control characters are escaped in the error", &["NVIDIA_VISIBLE_DEVICES=\u{1b}[2J\nx"],
            "error: NVIDIA_VISIBLE_DEVICES=\\u{1b}[2J\\nx: unknown device \"\\u{1b}[2J\\nx\"…"),
        ("the last of two counts", &["NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_VISIBLE_DEVICES=1"], "gpus 1"),
        ("an empty last one counts too", &["NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_VISIBLE_DEVICES="], "nothing"),
        ("a name without a value is no variable", &["NVIDIA_VISIBLE_DEVICES"], "nothing"),
        ("another case is another variable", &["nvidia_visible_devices=all"], "nothing"),
    ]);
}

#[test]
#[rustfmt::skip] // a row a line
fn who_may_ask_by_environment() {
    const NO: &str = "config accept-environment-unprivileged = false";
    check(&[
        ("not an unprivileged cell", &[NO, "NVIDIA_VISIBLE_DEVICES=all"],
            "ignored: NVIDIA_VISIBLE_DEVICES=all is ignored: …"),
        ("a privileged one", &[NO, "privileged", "NVIDIA_VISIBLE_DEVICES=all"], "all"),
        ("nothing is asked", &[NO, "NVIDIA_VISIBLE_DEVICES=void"], "nothing"),
        ("nonsense is not read", &[NO, "NVIDIA_VISIBLE_DEVICES=tesla"], "ignored: …"),
        ("nor a legacy image's wish", &[NO, "CUDA_VERSION=9.0"],
            "ignored: CUDA_VERSION=9.0 (legacy image) is ignored…"),
        ("annotations may", &[NO, "annotation cdi.k8s.io/a nvidia.com/gpu=0"], "cdi nvidia.com/gpu=0"),
        ("a flag may", &[NO, "gpus all"], "all"),
        ("mounts may, with capabilities of the environment, without its channels and switches", &[NO, "config accept-mounts = true", "mount 0", "NVIDIA_DRIVER_CAPABILITIES=video", "NVIDIA_IMEX_CHANNELS=1", "NVIDIA_GDS=enabled"],
            "gpus 0 [video] -ROOT/0"),
    ]);
}

#[test]
#[rustfmt::skip] // a row a line
fn mounts() {
    const YES: &str = "config accept-mounts = true";
    check(&[
        ("off by default", &["mount all"], "nothing"),
        ("off: the environment counts", &["mount all", "NVIDIA_VISIBLE_DEVICES=0"], "gpus 0"),
        ("all", &[YES, "mount all"], "all -ROOT/all"),
        ("none", &[YES, "mount none"], "none -ROOT/none"),
        ("void", &[YES, "mount void", "NVIDIA_VISIBLE_DEVICES=0"], "nothing"),
        ("void behind a device", &[YES, "mount 0", "mount void"], "nothing"),
        ("two", &[YES, "mount 0", "mount 1"], "gpus 0,1 -ROOT/0 -ROOT/1"),
        ("before the environment", &[YES, "mount 0", "NVIDIA_VISIBLE_DEVICES=all"], "gpus 0 -ROOT/0"),
        ("none there: the environment", &[YES, "NVIDIA_VISIBLE_DEVICES=all"], "all"),
        ("UUID", &[YES, "mount GPU-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f"], "gpus GPU-u -ROOT/GPU-u"),
        ("MIG UUID of old drivers, a path of its own", &[YES, "mount MIG-GPU-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f/1/0"],
            "gpus MIG-GPU-u/1/0 -ROOT/MIG-GPU-u/1/0"),
        ("no device", &[YES, "mount tesla"], "error: mount ROOT/tesla: unknown device…"),
        ("another source", &[YES, "bind /dev/zero /var/run/nvidia-container-devices/0"], "nothing"),
        ("the source is cleaned", &[YES, "bind /dev//./null /var/run/nvidia-container-devices/0"], "gpus 0 -ROOT/0"),
        ("the destination is cleaned, and reported as written", &[YES, "mount /var/lib/../run//nvidia-container-devices/0/"],
            "gpus 0 -/var/lib/../run//nvidia-container-devices/0/"),
        ("the folder itself", &[YES, "mount /var/run/nvidia-container-devices"], "nothing"),
        ("a folder with a longer name", &[YES, "mount /var/run/nvidia-container-devices-x/0"], "nothing"),
        ("out of the folder", &[YES, "mount ../0"], "nothing"),
        ("CDI by path", &[YES, "mount cdi/nvidia.com/gpu/0"], "cdi nvidia.com/gpu=0 -ROOT/cdi/nvidia.com/gpu/0"),
        ("CDI by name", &[YES, "mount cdi/nvidia.com/gpu=all"],
            "cdi nvidia.com/gpu=all -ROOT/cdi/nvidia.com/gpu=all"),
        ("CDI of discovery", &[YES, "mount cdi/runtime.nvidia.com/gpu/1"],
            "gpus 1 -ROOT/cdi/runtime.nvidia.com/gpu/1"),
        ("CDI without a device", &[YES, "mount cdi/nvidia.com/gpu"],
            "error: config.json: mounts[0].destination: \"nvidia.com/gpu\" names no CDI device"),
        ("CDI beside an index", &[YES, "mount cdi/nvidia.com/gpu/0", "mount 1"], "error: mount ROOT/1: …"),
        ("IMEX alone asks for no GPU", &[YES, "mount imex/3"], "nothing"),
        ("IMEX beside a GPU", &[YES, "mount 0", "mount imex/3"], "gpus 0 imex3 -ROOT/0 -ROOT/imex/3"),
        ("IMEX beside the environment, whose channels then don't count", &[YES, "mount imex/3", "NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_IMEX_CHANNELS=4"],
            "gpus 0 imex3 -ROOT/imex/3"),
        ("no IMEX channel", &[YES, "mount 0", "mount imex/1048576"],
            "error: config.json: mounts[1].destination: \"1048576\" is no IMEX channel (0 to 1048575)"),
        ("IMEX channels of a mount don't count when mounts don't", &["mount imex/3", "NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_IMEX_CHANNELS=4"],
            "gpus 0 imex4"),
    ]);
}

#[test]
#[rustfmt::skip] // a row a line
fn cdi_names() {
    check(&[
        ("annotation", &["annotation cdi.k8s.io/x nvidia.com/gpu=0"], "cdi nvidia.com/gpu=0"),
        ("annotation of the device plugin", &["annotation cdi.k8s.io/nvidia-device-plugin_1 k8s.device-plugin.nvidia.com/gpu=0"],
            "cdi k8s.device-plugin.nvidia.com/gpu=0"),
        ("a list, then another key, in the keys' order, each once", &["annotation cdi.k8s.io/b nvidia.com/gpu=2,acme.org/net=eth1", "annotation cdi.k8s.io/a nvidia.com/gpu=1, nvidia.com/gpu=2"],
            "cdi nvidia.com/gpu=1 nvidia.com/gpu=2 acme.org/net=eth1"),
        ("another annotation", &["annotation example.com/x nvidia.com/gpu=0"], "nothing"),
        ("a key that is the prefix but for its slash", &["annotation cdi.k8s.io x"], "nothing"),
        ("a key that holds the prefix further on", &["annotation other/cdi.k8s.io/ x"], "nothing"),
        ("a list that ends with a comma", &["annotation cdi.k8s.io/k nvidia.com/gpu=0,"],
            "error: config.json: annotations[\"cdi.k8s.io/k\"]: \"\"…"),
        ("before mounts, which go too, and the environment", &["annotation cdi.k8s.io/x nvidia.com/gpu=0", "config accept-mounts = true", "mount 1", "NVIDIA_VISIBLE_DEVICES=all"],
            "cdi nvidia.com/gpu=0 -ROOT/1"),
        ("an index in an annotation", &["annotation cdi.k8s.io/x 0"],
            "error: config.json: annotations[\"cdi.k8s.io/x\"]: \"0\" is not a CDI name (vendor/class=name)"),
        ("an empty annotation", &["annotation cdi.k8s.io/x"],
            "error: config.json: annotations[\"cdi.k8s.io/x\"]: \"\"…"),
        ("void in an annotation", &["annotation cdi.k8s.io/x void"], "error: …"),
        ("no class", &["annotation cdi.k8s.io/x nvidia.com=0"], "error: …"),
        ("no name", &["annotation cdi.k8s.io/x nvidia.com/gpu="], "error: …"),
        ("vendor starts with a digit", &["annotation cdi.k8s.io/x 3com.com/gpu=0"], "error: …"),
        ("class ends with a dash", &["annotation cdi.k8s.io/x nvidia.com/gpu-=0"], "error: …"),
        ("class with a slash", &["annotation cdi.k8s.io/x nvidia.com/gpu/x=0"], "error: …"),
        ("name with a slash", &["annotation cdi.k8s.io/x nvidia.com/gpu=../0"], "error: …"),
        ("name with colons", &["annotation cdi.k8s.io/x nvidia.com/gpu=0:1"], "cdi nvidia.com/gpu=0:1"),
        ("in the environment", &["NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=0"], "cdi nvidia.com/gpu=0"),
        ("two in the environment", &["NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=0, nvidia.com/gpu=1"],
            "cdi nvidia.com/gpu=0 nvidia.com/gpu=1"),
        ("beside an index", &["NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=0,1"],
            "error: NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=0,1: 1 can't be asked for together with the CDI device nvidia.com/gpu=0"),
        ("beside all, which wins", &["NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=0,all"], "all"),
        ("not quite a name", &["NVIDIA_VISIBLE_DEVICES=gpu=0"],
            "error: NVIDIA_VISIBLE_DEVICES=gpu=0: \"gpu=0\" is not a CDI name…"),
        ("discovery, index", &["NVIDIA_VISIBLE_DEVICES=runtime.nvidia.com/gpu=1"], "gpus 1"),
        ("discovery, all", &["NVIDIA_VISIBLE_DEVICES=runtime.nvidia.com/gpu=all"], "all"),
        ("discovery, none", &["NVIDIA_VISIBLE_DEVICES=runtime.nvidia.com/gpu=none"], "none"),
        ("discovery beside an index", &["NVIDIA_VISIBLE_DEVICES=runtime.nvidia.com/gpu=1,0"], "gpus 1,0"),
        ("discovery, no device", &["NVIDIA_VISIBLE_DEVICES=runtime.nvidia.com/gpu=tesla"], "error: …"),
        ("discovery beside a file's device", &["annotation cdi.k8s.io/x runtime.nvidia.com/gpu=1,nvidia.com/gpu=0"],
            "error: annotation cdi.k8s.io/x: runtime.nvidia.com/gpu=1 can't be asked for together with the CDI device nvidia.com/gpu=0"),
        ("discovery by annotation, with its capabilities and requirements", &["annotation cdi.k8s.io/x runtime.nvidia.com/gpu=0", "NVIDIA_DRIVER_CAPABILITIES=utility", "NVIDIA_REQUIRE_CUDA=cuda>=12.0"],
            "gpus 0 [utility] <NVIDIA_REQUIRE_CUDA: cuda>=12.0>"),
        ("NVIDIA's devices keep the requirements", &["NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=0", "NVIDIA_REQUIRE_CUDA=cuda>=12.0"],
            "cdi nvidia.com/gpu=0 <NVIDIA_REQUIRE_CUDA: cuda>=12.0>"),
        ("the plugin's too", &["annotation cdi.k8s.io/x k8s.device-plugin.nvidia.com/gpu=0", "NVIDIA_REQUIRE_CUDA=cuda>=12.0"],
            "cdi k8s.device-plugin.nvidia.com/gpu=0 <NVIDIA_REQUIRE_CUDA: cuda>=12.0>"),
        ("other vendors' don't", &["annotation cdi.k8s.io/x notnvidia.com/net=0", "NVIDIA_REQUIRE_CUDA=cuda>=12.0", "NVIDIA_DRIVER_CAPABILITIES=x"],
            "cdi notnvidia.com/net=0"),
        ("NVIDIA's devices need allowed capabilities", &["annotation cdi.k8s.io/x nvidia.com/gpu=0", "config driver-capabilities = [\"utility\"]", "NVIDIA_DRIVER_CAPABILITIES=compute"],
            "error: NVIDIA_DRIVER_CAPABILITIES: driver capabilities compute are not allowed here (allowed: utility)"),
    ]);
}

#[test]
#[rustfmt::skip] // a row a line
fn capabilities() {
    const ALL: &str = "NVIDIA_VISIBLE_DEVICES=all";
    const FEW: &str = "config driver-capabilities = [\"utility\", \"video\"]";
    const EACH: &str = "all [compat32,compute,display,graphics,ngx,utility,video]";
    check(&[
        ("unset", &[ALL], "all"),
        ("empty", &[ALL, "NVIDIA_DRIVER_CAPABILITIES="], "all"),
        ("only commas", &[ALL, "NVIDIA_DRIVER_CAPABILITIES= ,"], "all"),
        ("one", &[ALL, "NVIDIA_DRIVER_CAPABILITIES=compute"], "all [compute]"),
        ("blanks", &[ALL, "NVIDIA_DRIVER_CAPABILITIES= video , utility,"], "all [utility,video]"),
        ("all", &[ALL, "NVIDIA_DRIVER_CAPABILITIES=all"], EACH),
        ("all beside one", &[ALL, "NVIDIA_DRIVER_CAPABILITIES=compute,all"], EACH),
        ("each by name", &[ALL,
            "NVIDIA_DRIVER_CAPABILITIES=ngx,compat32,graphics,utility,video,display,compute"], EACH),
        ("unknown", &[ALL, "NVIDIA_DRIVER_CAPABILITIES=compute,cuda"],
            "error: NVIDIA_DRIVER_CAPABILITIES: unknown driver capability \"cuda\" (known: …"),
        ("unknown beside all", &[ALL, "NVIDIA_DRIVER_CAPABILITIES=all,cuda"], "error: …"),
        ("another case", &[ALL, "NVIDIA_DRIVER_CAPABILITIES=Compute"], "error: …"),
        ("unknown, but no GPU", &["NVIDIA_DRIVER_CAPABILITIES=cuda"], "nothing"),
        ("allowed", &[ALL, FEW, "NVIDIA_DRIVER_CAPABILITIES=video"], "all [video]"),
        ("not allowed", &[ALL, FEW, "NVIDIA_DRIVER_CAPABILITIES=video,compute,ngx"],
            "error: NVIDIA_DRIVER_CAPABILITIES: driver capabilities compute,ngx are not allowed here (allowed: utility,video)"),
        ("all, cut down", &[ALL, FEW, "NVIDIA_DRIVER_CAPABILITIES=all"], "all [utility,video]"),
        ("the default, cut down", &[ALL, FEW], "all [utility]"),
        ("none allowed", &[ALL, "config driver-capabilities = []"], "all [none]"),
    ]);
}

#[test]
#[rustfmt::skip] // a row a line
fn legacy_images() {
    const EACH: &str =
        "all [compat32,compute,display,graphics,ngx,utility,video] <CUDA_VERSION: cuda>=9.0>";
    check(&[
        ("unset: all, of everything", &["CUDA_VERSION=9.0.176"], EACH),
        ("no CUDA_VERSION", &["CUDA_VERSION="], "nothing"),
        ("a newer image", &["CUDA_VERSION=9.0.176", "NVIDIA_REQUIRE_CUDA=cuda>=9.0"], "nothing"),
        ("an empty requirement is none", &["CUDA_VERSION=9.0.176", "NVIDIA_REQUIRE_CUDA="], EACH),
        ("set but empty", &["CUDA_VERSION=9.0.176", "NVIDIA_VISIBLE_DEVICES="], "nothing"),
        ("void", &["CUDA_VERSION=9.0.176", "NVIDIA_VISIBLE_DEVICES=void"], "nothing"),
        ("one GPU", &["CUDA_VERSION=9.0.176", "NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_DRIVER_CAPABILITIES=compute"],
            "gpus 0 [compute] <CUDA_VERSION: cuda>=9.0>"),
        ("capabilities set but empty", &["CUDA_VERSION=9.0.176", "NVIDIA_DRIVER_CAPABILITIES="],
            "all <CUDA_VERSION: cuda>=9.0>"),
        ("everything means everything allowed", &["CUDA_VERSION=9.0.176", "config driver-capabilities = [\"utility\", \"ngx\"]"],
            "all [ngx,utility] <CUDA_VERSION: cuda>=9.0>"),
        ("one number", &["CUDA_VERSION=10", "NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_DRIVER_CAPABILITIES=video"],
            "gpus 0 [video] <CUDA_VERSION: cuda>=10.0>"),
        ("a semantic version", &["CUDA_VERSION=v8.1.2-rc+x", "NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_DRIVER_CAPABILITIES=video"],
            "gpus 0 [video] <CUDA_VERSION: cuda>=8.1>"),
        ("no version", &["CUDA_VERSION=latest"],
            "error: CUDA_VERSION: \"latest\" is not a version of dotted numbers"),
        ("no version, no GPU", &["CUDA_VERSION=latest", "NVIDIA_VISIBLE_DEVICES=void"], "nothing"),
        ("no version, not required", &["CUDA_VERSION=latest", "NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_DRIVER_CAPABILITIES=video", "NVIDIA_DISABLE_REQUIRE=1"],
            "gpus 0 [video]"),
        ("a flag on a legacy image", &["CUDA_VERSION=9.0.176", "gpus 1,capabilities=utility"],
            "first 1 [utility] <CUDA_VERSION: cuda>=9.0>"),
    ]);
}

#[test]
#[rustfmt::skip] // a row a line
fn requirement_variables() {
    const ALL: &str = "NVIDIA_VISIBLE_DEVICES=all";
    const CUDA: &str = "NVIDIA_REQUIRE_CUDA=cuda>=12.4 brand=tesla,driver>=470";
    check(&[
        ("one", &[ALL, CUDA], "all <NVIDIA_REQUIRE_CUDA: cuda>=12.4 brand=tesla,driver>=470>"),
        ("all count, in order", &[ALL, "NVIDIA_REQUIRE_DRIVER=driver>=550", "NVIDIA_REQUIRE_X=arch>=8.0"],
            "all <NVIDIA_REQUIRE_DRIVER: driver>=550> <NVIDIA_REQUIRE_X: arch>=8.0>"),
        ("the last of two", &[ALL, CUDA, "NVIDIA_REQUIRE_CUDA=cuda>=11"], "all <NVIDIA_REQUIRE_CUDA: cuda>=11>"),
        ("JetPack's is none", &[ALL, "NVIDIA_REQUIRE_JETPACK=csv-mounts=all"], "all"),
        ("nor its others", &[ALL, "NVIDIA_REQUIRE_JETPACK_HOST_MOUNTS=base-only"], "all"),
        ("blank", &[ALL, "NVIDIA_REQUIRE_X= "], "all"),
        ("disabled by 1", &[ALL, CUDA, "NVIDIA_DISABLE_REQUIRE=1"], "all"),
        ("disabled by true", &[ALL, CUDA, "NVIDIA_DISABLE_REQUIRE=true"], "all"),
        ("disabled by T", &[ALL, CUDA, "NVIDIA_DISABLE_REQUIRE=T"], "all"),
        ("disabled: nonsense isn't read", &[ALL, "NVIDIA_REQUIRE_CUDA=nonsense", "NVIDIA_DISABLE_REQUIRE=TRUE"],
            "all"),
        ("not disabled by 0", &[ALL, CUDA, "NVIDIA_DISABLE_REQUIRE=0"], "all <…"),
        ("not disabled by nothing", &[ALL, CUDA, "NVIDIA_DISABLE_REQUIRE="], "all <…"),
        ("yes is no boolean", &[ALL, CUDA, "NVIDIA_DISABLE_REQUIRE=yes"], "all <…"),
        ("nonsense", &[ALL, "NVIDIA_REQUIRE_CUDA=cuda>=9.0 nonsense"],
            "error: NVIDIA_REQUIRE_CUDA: invalid expression \"nonsense\": no comparison…"),
        ("nonsense, no GPU", &["NVIDIA_REQUIRE_CUDA=nonsense"], "nothing"),
    ]);
}

#[test]
#[rustfmt::skip] // a row a line
fn mig_imex_and_switches() {
    const ALL: &str = "NVIDIA_VISIBLE_DEVICES=all";
    check(&[
        ("MIG config", &["privileged", ALL, "NVIDIA_MIG_CONFIG_DEVICES=all"], "all mig-config"),
        ("MIG monitor", &["privileged", ALL, "NVIDIA_MIG_MONITOR_DEVICES=all"], "all mig-monitor"),
        ("both, on one GPU", &["privileged", "NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_MIG_CONFIG_DEVICES=all,", "NVIDIA_MIG_MONITOR_DEVICES= ALL"],
            "gpus 0 mig-config mig-monitor"),
        ("empty", &[ALL, "NVIDIA_MIG_CONFIG_DEVICES="], "all"),
        ("config, unprivileged", &[ALL, "NVIDIA_MIG_CONFIG_DEVICES=all"],
            "error: NVIDIA_MIG_CONFIG_DEVICES=\"all\": only for a privileged cell…"),
        ("monitor, unprivileged", &[ALL, "NVIDIA_MIG_MONITOR_DEVICES=0"],
            "error: NVIDIA_MIG_MONITOR_DEVICES=\"0\": only for a privileged cell…"),
        ("only all", &["privileged", ALL, "NVIDIA_MIG_CONFIG_DEVICES=0"],
            "error: NVIDIA_MIG_CONFIG_DEVICES: \"0\": only 'all' devices are currently supported"),
        ("not beside a MIG device", &["privileged", "NVIDIA_VISIBLE_DEVICES=0:0", "NVIDIA_MIG_CONFIG_DEVICES=all"],
            "error: NVIDIA_MIG_CONFIG_DEVICES: not together with single MIG devices (NVIDIA_VISIBLE_DEVICES=0:0)"),
        ("no GPU", &["NVIDIA_MIG_CONFIG_DEVICES=all"], "nothing"),
        ("IMEX", &[ALL, "NVIDIA_IMEX_CHANNELS=0, 5,0"], "all imex0 imex5"),
        ("IMEX, the last", &[ALL, "NVIDIA_IMEX_CHANNELS=1048575"], "all imex1048575"),
        ("IMEX, one more", &[ALL, "NVIDIA_IMEX_CHANNELS=1048576"],
            "error: NVIDIA_IMEX_CHANNELS: \"1048576\" is no IMEX channel (0 to 1048575)"),
        ("IMEX, no number", &[ALL, "NVIDIA_IMEX_CHANNELS=-1"], "error: NVIDIA_IMEX_CHANNELS: \"-1\"…"),
        ("IMEX, all", &[ALL, "NVIDIA_IMEX_CHANNELS=all"], "error: NVIDIA_IMEX_CHANNELS: \"all\"…"),
        ("IMEX, void", &[ALL, "NVIDIA_IMEX_CHANNELS=1,void"], "all"),
        ("IMEX, none", &[ALL, "NVIDIA_IMEX_CHANNELS=none"], "all"),
        ("IMEX, empty", &[ALL, "NVIDIA_IMEX_CHANNELS="], "all"),
        ("IMEX alone", &["NVIDIA_IMEX_CHANNELS=0"], "nothing"),
        ("GPUDirect Storage", &[ALL, "NVIDIA_GDS=enabled"], "all gds"),
        ("MOFED", &[ALL, "NVIDIA_MOFED=enabled"], "all mofed"),
        ("GDRCopy", &[ALL, "NVIDIA_GDRCOPY=enabled"], "all gdrcopy"),
        ("NVSwitch", &[ALL, "NVIDIA_NVSWITCH=enabled"], "all nvswitch"),
        ("only that word", &[ALL, "NVIDIA_GDS=true", "NVIDIA_MOFED=1", "NVIDIA_GDRCOPY=Enabled"], "all"),
        ("a switch alone", &["NVIDIA_GDS=enabled"], "nothing"),
    ]);
}

#[test]
#[rustfmt::skip] // a row a line
fn flag() {
    check(&[
        ("all", &["gpus all"], "all"),
        ("a number", &["gpus 2"], "first 2"),
        ("a number, signed", &["gpus +2"], "first 2"),
        ("negative is all", &["gpus -1"], "all"),
        ("0 is no GPU, whatever the image says", &["gpus 0", "NVIDIA_VISIBLE_DEVICES=all"], "nothing"),
        ("count=", &["gpus count=3"], "first 3"),
        ("count=all", &["gpus count=all"], "all"),
        ("device=", &["gpus device=1"], "gpus 1"),
        ("device= in quotes", &["gpus \"device=0,2\""], "gpus 0,2"),
        ("device= without quotes", &["gpus device=0,2"], "gpus 0,2"),
        ("device= by UUID", &["gpus device=GPU-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f"], "gpus GPU-u"),
        ("device= of MIG", &["gpus \"device=0:0,0:1\""], "gpus 0:0,0:1"),
        ("device=all", &["gpus device=all"], "all"),
        ("device=none", &["gpus device=none"], "none"),
        ("device= with void", &["gpus \"device=0,void\"", "NVIDIA_VISIBLE_DEVICES=all"], "nothing"),
        ("device= by CDI name", &["gpus device=nvidia.com/gpu=0"], "cdi nvidia.com/gpu=0"),
        ("device= of discovery", &["gpus device=runtime.nvidia.com/gpu=0"], "gpus 0"),
        ("before the environment", &["gpus device=1", "NVIDIA_VISIBLE_DEVICES=all"], "gpus 1"),
        ("before annotations", &["gpus 1", "annotation cdi.k8s.io/x nvidia.com/gpu=0"], "first 1"),
        ("capabilities=", &["gpus all,capabilities=video"], "all [video]"),
        ("capabilities= in quotes", &["gpus all,\"capabilities=utility,graphics\""], "all [graphics,utility]"),
        ("capabilities alone: one GPU, as Docker", &["gpus capabilities=ngx"], "first 1 [ngx]"),
        ("gpu is no capability of the driver", &["gpus all,\"capabilities=gpu,nvidia\"", "NVIDIA_DRIVER_CAPABILITIES=video"],
            "all [video]"),
        ("the flag's before the image's", &["gpus all,capabilities=utility", "NVIDIA_DRIVER_CAPABILITIES=cuda"],
            "all [utility]"),
        ("the image's without the flag's", &["gpus all", "NVIDIA_DRIVER_CAPABILITIES=video"], "all [video]"),
        ("capabilities=all, cut down", &["gpus all,capabilities=all", "config driver-capabilities = [\"ngx\"]"],
            "all [ngx]"),
        ("not allowed", &["gpus all,capabilities=video", "config driver-capabilities = [\"ngx\"]"],
            "error: driver capabilities video are not allowed here (allowed: ngx)"),
        ("driver=nvidia", &["gpus all,driver=nvidia"], "all"),
        ("driver=cdi", &["gpus driver=cdi,\"device=acme.org/x=1,nvidia.com/gpu=0\""],
            "cdi acme.org/x=1 nvidia.com/gpu=0"),
        ("options are nobody's", &["gpus all,\"options=a=b,c\""], "all"),
        ("the image's requirements", &["gpus all", "NVIDIA_REQUIRE_CUDA=cuda>=12"],
            "all <NVIDIA_REQUIRE_CUDA: cuda>=12>"),
        ("two flags add up", &["gpus 2", "gpus device=1,3"], "gpus 0,1,3"),
        ("two counts are the larger", &["gpus 2", "gpus 3"], "first 3"),
        ("all wins", &["gpus device=1", "gpus all"], "all"),
        ("capabilities add up", &["gpus 1,capabilities=video", "gpus 1,capabilities=ngx"], "first 1 [ngx,video]"),
        ("CDI names add up", &["gpus device=nvidia.com/gpu=0", "gpus \"device=nvidia.com/gpu=0,nvidia.com/gpu=1\""],
            "cdi nvidia.com/gpu=0 nvidia.com/gpu=1"),
    ]);
}

#[test]
#[rustfmt::skip] // a row a line
fn flag_refused_in_dockers_words() {
    check(&[
        ("empty", &["gpus "], "error: invalid argument \"\" for \"--gpus\" flag: EOF"),
        ("a word", &["gpus some"],
            "error: invalid argument \"some\" for \"--gpus\" flag: invalid count (some): value must be either \"all\" or an integer: invalid syntax"),
        ("a fraction", &["gpus 1.5"],
            "error: invalid argument \"1.5\" for \"--gpus\" flag: invalid count (1.5): value must be either \"all\" or an integer: invalid syntax"),
        ("too large", &["gpus count=9223372036854775808"],
            "error: invalid argument \"count=9223372036854775808\" for \"--gpus\" flag: invalid count (9223372036854775808): value must be either \"all\" or an integer: value out of range"),
        ("more than a driver can have", &["gpus 255"], "error: --gpus 255: a host has at most 254 GPUs"),
        ("a comma at the end", &["gpus all,"],
            "error: invalid argument \"all,\" for \"--gpus\" flag: invalid count (): value must be either \"all\" or an integer: invalid syntax"),
        ("twice", &["gpus device=0,device=1"],
            "error: invalid argument \"device=0,device=1\" for \"--gpus\" flag: gpu request key 'device' can be specified only once"),
        ("a number is a count", &["gpus 1,count=2"],
            "error: invalid argument \"1,count=2\" for \"--gpus\" flag: gpu request key 'count' can be specified only once"),
        ("unknown key", &["gpus all,id=0"],
            "error: invalid argument \"all,id=0\" for \"--gpus\" flag: unexpected key 'id' in 'id=0'"),
        ("count and device", &["gpus count=1,device=0"],
            "error: cannot set both Count and DeviceIDs on device request"),
        ("all and device", &["gpus all,device=0"], "error: cannot set both Count and DeviceIDs on device request"),
        ("device, then all", &["gpus device=0,all"], "error: cannot set both Count and DeviceIDs on device request"),
        ("no device", &["gpus device="], "error: --gpus device=: no device is named"),
        ("unknown device", &["gpus device=tesla"], "error: --gpus device=tesla: unknown device \"tesla\"…"),
        ("unknown capability", &["gpus all,capabilities=cuda"],
            "error: could not select device driver \"\" with capabilities: [[cuda gpu]]"),
        ("no capability", &["gpus all,capabilities="],
            "error: could not select device driver \"\" with capabilities: [[ gpu]]"),
        ("another driver", &["gpus all,driver=amd,\"capabilities=utility,compute\""],
            "error: could not select device driver \"amd\" with capabilities: [[utility compute gpu]]"),
        ("CDI with a count", &["gpus all,driver=cdi"], "error: unexpected count in CDI device request"),
        ("CDI with options", &["gpus driver=cdi,device=acme.org/x=1,options=a"],
            "error: unexpected options in CDI device request"),
        ("CDI by index", &["gpus driver=cdi,device=0"],
            "error: CDI device injection failed: unqualified device \"0\""),
        ("CDI beside others", &["gpus device=nvidia.com/gpu=0", "gpus 1"],
            "error: --gpus device=nvidia.com/gpu=0: other GPUs can't be asked for together with the CDI device nvidia.com/gpu=0"),
        ("a quote in a field", &["gpus device=\"0\""],
            "error: invalid argument \"device=\\\"0\\\"\" for \"--gpus\" flag: parse error on line 1, column 8: bare \" in non-quoted field"),
        ("text after a quoted field", &["gpus \"all\"x"],
            "error: invalid argument \"\\\"all\\\"x\" for \"--gpus\" flag: parse error on line 1, column 5: extraneous or missing \" in quoted-field"),
        ("a quote that stays open", &["gpus \"device=0"],
            "error: invalid argument \"\\\"device=0\" for \"--gpus\" flag: parse error on line 1, column 10: extraneous or missing \" in quoted-field"),
        ("a doubled quote", &["gpus \"a\"\"b\""],
            "error: invalid argument \"\\\"a\\\"\\\"b\\\"\" for \"--gpus\" flag: invalid count (a\"b)…"),
        ("a line end", &["gpus all\n"],
            "error: invalid argument \"all\\n\" for \"--gpus\" flag: a line end in the value"),
        ("bad options", &["gpus all,\"options=a\"\"b\""],
            "error: invalid argument \"all,\\\"options=a\\\"\\\"b\\\"\" for \"--gpus\" flag: failed to read gpu options: parse error on line 1, column 2: bare \" in non-quoted field"),
        ("a second flag that is wrong", &["gpus all", "gpus x"],
            "error: invalid argument \"x\" for \"--gpus\" flag: …"),
    ]);
}

/// The variables Docker would set for a flag: the cell's programs may read them.
#[test]
fn flag_environment() {
    let rows: &[(&str, &str)] = &[
        ("all", "NVIDIA_VISIBLE_DEVICES=all"),
        ("3", "NVIDIA_VISIBLE_DEVICES=0,1,2"),
        ("0", "NVIDIA_VISIBLE_DEVICES=void"),
        ("device=none", "NVIDIA_VISIBLE_DEVICES=none"),
        ("\"device=2,0:1\"", "NVIDIA_VISIBLE_DEVICES=2,0:1"),
        (
            "all,\"capabilities=utility,gpu\"",
            "NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=utility",
        ),
        ("device=nvidia.com/gpu=0", ""),
    ];
    for (value, want) in rows {
        let flag = from_flag(&[value.to_string()], &Config::default()).unwrap();
        let has: Vec<String> = flag
            .environment()
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(has.join(" "), *want, "--gpus {value}");
    }
}

/// A request says where it comes from.
#[test]
fn reasons() {
    let rows: &[(&[&str], &str)] = &[
        (
            &["NVIDIA_VISIBLE_DEVICES=0, 1"],
            "NVIDIA_VISIBLE_DEVICES=0, 1",
        ),
        (&["CUDA_VERSION=9.0"], "CUDA_VERSION=9.0 (legacy image)"),
        (
            &["config accept-mounts = true", "mount 0"],
            "mounts under /var/run/nvidia-container-devices",
        ),
        (
            &["annotation cdi.k8s.io/x runtime.nvidia.com/gpu=0"],
            "annotation cdi.k8s.io/x",
        ),
        (&["gpus 1", "gpus device=2"], "--gpus 1 --gpus device=2"),
    ];
    for (items, want) in rows {
        let (spec, config, flags) = given(items);
        let asked = match flags.is_empty() {
            true => asked(&spec, &config),
            false => from_flag(&flags, &config).and_then(|f| f.asked(&spec, &config)),
        };
        let Ok(Asked::Driver(request)) = asked else {
            panic!("{items:?}: {asked:?}");
        };
        assert_eq!(request.reason, *want);
    }
}

/// Whatever a value holds, it is read or refused, in one line.
#[test]
fn no_value_panics() {
    let pieces = [
        "all",
        "none",
        "void",
        "0",
        "GPU-",
        "MIG-",
        "MIG-GPU-",
        ":",
        "/",
        "=",
        ",",
        "\"",
        " ",
        "\n",
        "nvidia.com/gpu=",
        "runtime.nvidia.com/gpu=",
        "device=",
        "count=",
        "capabilities=",
        "é",
        "€",
        "\u{1b}",
        ">=",
        "cuda",
        "brand",
        ".",
        "99999999999999999999",
        "-",
    ];
    let mut seed = 7_u64;
    let mut next = |below: usize| {
        // A linear congruential generator (Knuth's MMIX): the same values each time.
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    let names = [
        "NVIDIA_VISIBLE_DEVICES=",
        "NVIDIA_IMEX_CHANNELS=",
        "NVIDIA_REQUIRE_CUDA=",
        "NVIDIA_DRIVER_CAPABILITIES=",
        "NVIDIA_MIG_CONFIG_DEVICES=",
        "CUDA_VERSION=",
        "mount ",
        "annotation cdi.k8s.io/x ",
        "gpus ",
    ];
    for _ in 0..20_000 {
        let text: String = (0..next(6)).map(|_| pieces[next(pieces.len())]).collect();
        let item = format!("{}{text}", names[next(names.len())]);
        let all = "NVIDIA_VISIBLE_DEVICES=all";
        let said = said(&["config accept-mounts = true", "privileged", all, &item]);
        assert!(
            !said.contains('\n') || !said.starts_with("error"),
            "{item:?}: {said}"
        );
    }
}
