//! NVIDIA's hooks as values: what `nvidia-cdi-hook X` and `nvidia-ctk hook X` would do.
//!
//! A hook of the configuration that [`Work::recognise`] knows is never executed: [`super::work`] lowers
//! it to steps on the root's descriptor. Our own injection is written with the same hooks
//! ([`Work::to_hook`]), so that `explain`, `cdi generate` and the engine share one vocabulary.
//!
//! The arguments are read as the toolkit's own command line reads them (`nvidia-cdi-hook --help`,
//! toolkit 1.10 to 1.20): one or two dashes, `--flag value` or `--flag=value`, lists by repetition or
//! with commas. It must not look at the host or at the root.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Hook;

use crate::spec::edit::EditHook;
use crate::{Error, Result};

/// Where NVIDIA's packages put the hook program.
const PROGRAM: &str = "/usr/bin/nvidia-cdi-hook";

/// Where the image's own newer driver libraries are, when the hook doesn't say otherwise.
const COMPAT_ROOT: &str = "/usr/local/cuda/compat";

/// The application profile that [`Work::ApplicationProfile`] writes, in the cell.
pub const PROFILE_PATH: &str = "/etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf";

/// The work of one hook.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Work {
    /// `create-symlinks --link TARGET::LINK…`: (what the link says, where it is).
    Symlinks(Vec<(PathBuf, PathBuf)>),
    /// `update-ldcache --folder DIR…`: the image's ld.so.cache with the libraries of these folders of
    /// the cell, and the links that SONAMEs ask for.
    LdCache(Vec<PathBuf>),
    /// `enable-cuda-compat --host-driver-version V`: the image's own newer libcuda comes first when
    /// the driver can work with it.
    CudaCompat {
        /// The host's driver version, as `550.163.01`.
        host_driver: String,
    },
    /// `disable-device-node-modification`: /proc/driver/nvidia/params says `ModifyDeviceFiles: 0`.
    KeepDeviceNodes,
    /// `update-application-profile`: EGL and Vulkan see the cell's GPUs only. The content of
    /// [`PROFILE_PATH`] is [`application_profile`] of the minor numbers of the cell's /dev/nvidiaN.
    ApplicationProfile,
    /// `show-gpus --gpu BUS…`: /proc/driver/nvidia/gpus shows these GPUs only. Ours alone: NVIDIA's legacy
    /// hook hides the others without a word for it, and their program would refuse it.
    OnlyGpus(Vec<String>),
    /// `chmod --mode M --path P…` (deprecated). A path that isn't there is no error.
    Chmod {
        /// Permission bits.
        mode: u32,
        /// In the cell.
        paths: Vec<PathBuf>,
    },
}

impl Work {
    /// The work of a hook of the configuration, if it is one of NVIDIA's whose work is known.
    ///
    /// The program is known by the name of its file, wherever it is: `nvidia-cdi-hook X` (1.16 and
    /// later), `nvidia-ctk hook X` (1.10 and later) and `nvidia-ctk-hook X`. `None` is any other
    /// program, a subcommand that isn't known, and what only the program itself can do: lists in
    /// Tegra's CSV files (`--csv-filename`, up to 1.16), another container's state
    /// (`--container-spec FILE`), and CUDA compatibility by CUDA version alone or in another folder.
    ///
    /// # Errors
    /// A known subcommand with a flag it doesn't have, without a flag it needs, or with a value that
    /// can't be read.
    pub fn recognise(hook: &Hook) -> Result<Option<Work>> {
        let mut words = match hook.path().file_name().and_then(OsStr::to_str) {
            Some("nvidia-cdi-hook" | "nvidia-ctk-hook") => vec!["hook"],
            Some("nvidia-ctk") => Vec::new(),
            _ => return Ok(None),
        };
        // The first argument is the program's name (execve(2)).
        let args = hook.args().as_deref().unwrap_or_default();
        words.extend(args.iter().skip(1).map(String::as_str));
        let mut words = words.into_iter().filter(|w| !is_verbosity(w));
        if words.next() != Some("hook") {
            return Ok(None);
        }
        let Some(name) = words.next() else {
            return Ok(None);
        };
        let Some(known) = KNOWN.iter().find(|known| known.name == name) else {
            return Ok(None);
        };
        let fail =
            |why: String| Error::msg(format!("hook {} {name}: {why}", hook.path().display()));
        let flags = Flags::read(words, known.flags).map_err(fail)?;
        (known.work)(&flags).map_err(fail)
    }

    /// The hook that says this work, a `createContainer` hook as `nvidia-ctk cdi generate` writes it.
    ///
    /// The program's command line has no quoting: of a path with a comma or `::` comes a hook that
    /// [`Work::recognise`] and the program refuse.
    pub fn to_hook(&self) -> EditHook {
        let (name, rest) = match self {
            Work::Symlinks(links) => {
                let link = |(to, at): &(PathBuf, PathBuf)| format!("{}::{}", text(to), text(at));
                (
                    "create-symlinks",
                    repeated("--link", links.iter().map(link)),
                )
            }
            Work::LdCache(folders) => (
                "update-ldcache",
                repeated("--folder", folders.iter().map(|f| text(f))),
            ),
            Work::CudaCompat { host_driver } => (
                "enable-cuda-compat",
                vec![format!("--host-driver-version={host_driver}")],
            ),
            Work::KeepDeviceNodes => ("disable-device-node-modification", Vec::new()),
            Work::ApplicationProfile => ("update-application-profile", Vec::new()),
            Work::OnlyGpus(list) => ("show-gpus", repeated("--gpu", list.iter().cloned())),
            Work::Chmod { mode, paths } => {
                let mut rest = vec!["--mode".to_owned(), format!("{mode:o}")];
                rest.extend(repeated("--path", paths.iter().map(|p| text(p))));
                ("chmod", rest)
            }
        };
        let mut args = vec!["nvidia-cdi-hook".to_owned(), name.to_owned()];
        args.extend(rest);
        EditHook {
            hook_name: "createContainer".to_owned(),
            path: PROGRAM.into(),
            args,
            env: Vec::new(),
            timeout: None,
        }
    }
}

/// The application profile that shows EGL and Vulkan only the GPUs of these minor numbers: the driver
/// reads a bit mask (`EGLVisibleDGPUDevices`). `None` when no minor fits the mask's 64 bits: then there
/// is nothing to restrict and no file is written, as upstream does.
pub fn application_profile(minors: impl IntoIterator<Item = u32>) -> Option<String> {
    let mask = minors
        .into_iter()
        .filter_map(|minor| 1u64.checked_shl(minor))
        .fold(0, |mask, bit| mask | bit);
    (mask != 0).then(|| {
        format!(
            "{{\"profiles\":[{{\"name\":\"_container_\",\"settings\":\
             [\"EGLVisibleDGPUDevices\",0x{mask:x}]}}],\"rules\":\
             [{{\"pattern\":[],\"profile\":\"_container_\"}}]}}"
        )
    })
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn repeated(flag: &str, values: impl Iterator<Item = String>) -> Vec<String> {
    values.flat_map(|v| [flag.to_owned(), v]).collect()
}

/// `--debug`, `-d` and `--quiet` stand before or behind the first words and change only messages.
fn is_verbosity(word: &str) -> bool {
    let Some(name) = flag_name(word) else {
        return false;
    };
    let name = name.split_once('=').map_or(name, |(name, _)| name);
    matches!(name, "debug" | "d" | "quiet")
}

/// What stands behind one or two dashes; `None` for a word that is no flag.
fn flag_name(word: &str) -> Option<&str> {
    let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    (!name.is_empty()).then_some(name)
}

/// A subcommand: its name, its flags, and how its work is read from them.
struct Known {
    name: &'static str,
    flags: &'static [&'static str],
    work: fn(&Flags) -> Result<Option<Work>, String>,
}

const KNOWN: [Known; 7] = [
    Known {
        name: "create-symlinks",
        flags: &["link", "csv-filename", "host-driver-root"],
        work: symlinks,
    },
    Known {
        name: "update-ldcache",
        flags: &["folder", "ldconfig-path"],
        work: ldcache,
    },
    Known {
        name: "enable-cuda-compat",
        flags: &[
            "host-driver-version",
            "host-cuda-version",
            "cuda-compat-container-root",
        ],
        work: compat,
    },
    Known {
        name: "disable-device-node-modification",
        flags: &[],
        work: |flags| Ok(flags.here(Work::KeepDeviceNodes)),
    },
    Known {
        name: "update-application-profile",
        flags: &[],
        work: |flags| Ok(flags.here(Work::ApplicationProfile)),
    },
    Known {
        name: "show-gpus",
        flags: &["gpu"],
        work: only_gpus,
    },
    Known {
        name: "chmod",
        flags: &["mode", "path"],
        work: chmod,
    },
];

/// The flags of one command line with their values, in order.
struct Flags<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Flags<'a> {
    fn read(words: impl Iterator<Item = &'a str>, known: &[&str]) -> Result<Self, String> {
        let mut all = Vec::new();
        let mut words = words;
        while let Some(word) = words.next() {
            let Some(flag) = flag_name(word) else {
                return Err(format!("unexpected argument {word:?}"));
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (flag, None),
            };
            if name != "container-spec" && !known.contains(&name) {
                return Err(format!("unknown flag --{}", name.escape_debug()));
            }
            let Some(value) = value.or_else(|| words.next()) else {
                return Err(format!("--{name} needs a value"));
            };
            if value.contains('\0') {
                return Err(format!("--{name} {value:?} holds a NUL byte"));
            }
            all.push((name, value));
        }
        Ok(Flags(all))
    }

    /// The last value of a flag, as the toolkit's parser keeps it.
    fn last(&self, name: &str) -> Option<&'a str> {
        let mut all = self.0.iter().rev();
        all.find(|(n, _)| *n == name).map(|(_, value)| *value)
    }

    /// All values of a list flag. The toolkit's parser splits each at commas.
    fn list(&self, name: &'static str) -> impl Iterator<Item = &'a str> {
        let of_name = self.0.iter().filter(move |(n, _)| *n == name);
        of_name.flat_map(|(_, value)| value.split(','))
    }

    /// `work`, unless another container's state is named: standard input is this one's.
    fn here(&self, work: Work) -> Option<Work> {
        matches!(self.last("container-spec"), None | Some("" | "-")).then_some(work)
    }
}

/// A path of the cell: upstream joins it to the root, so a relative one starts there too.
fn in_cell(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

fn symlinks(flags: &Flags) -> Result<Option<Work>, String> {
    if flags.last("csv-filename").is_some() {
        return Ok(None);
    }
    let mut links = Vec::new();
    let mut seen = HashSet::new();
    for value in flags.list("link") {
        let (to, at) = match value.split("::").collect::<Vec<_>>()[..] {
            [to, at] if !to.is_empty() && !at.is_empty() => (to, in_cell(at)),
            _ => return Err(format!("--link {value:?} is not TARGET::LINK")),
        };
        if seen.insert((to, at.clone().into_os_string())) {
            links.push((PathBuf::from(to), at));
        }
    }
    Ok(flags.here(Work::Symlinks(links)))
}

fn ldcache(flags: &Flags) -> Result<Option<Work>, String> {
    let mut folders = Vec::new();
    for folder in flags.list("folder") {
        // ldconfig(8) ignores a relative folder of its configuration.
        if !folder.starts_with('/') {
            return Err(format!("--folder {folder:?} is not an absolute path"));
        }
        let folder = PathBuf::from(folder);
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    Ok(flags.here(Work::LdCache(folders)))
}

fn compat(flags: &Flags) -> Result<Option<Work>, String> {
    if flags
        .last("cuda-compat-container-root")
        .is_some_and(|root| root != COMPAT_ROOT)
    {
        return Ok(None);
    }
    // The CUDA version only counts when there is no driver version.
    let Some(version) = flags.last("host-driver-version").filter(|v| !v.is_empty()) else {
        return Ok(None);
    };
    let dotted = version
        .split('.')
        .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    if !dotted {
        return Err(format!(
            "--host-driver-version {version:?} is not a version such as 550.163.01"
        ));
    }
    Ok(flags.here(Work::CudaCompat {
        host_driver: version.to_owned(),
    }))
}

fn only_gpus(flags: &Flags) -> Result<Option<Work>, String> {
    let list: Vec<String> = flags.list("gpu").map(str::to_owned).collect();
    let bus = |name: &String| !name.is_empty() && !name.contains('/') && !name.starts_with('.');
    if let Some(bad) = list.iter().find(|name| !bus(name)) {
        return Err(format!(
            "--gpu {bad:?} is not a bus address such as 0000:01:00.0"
        ));
    }
    Ok(flags.here(Work::OnlyGpus(list)))
}

fn chmod(flags: &Flags) -> Result<Option<Work>, String> {
    let text = flags.last("mode").unwrap_or_default();
    let mode = u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777 && !text.starts_with('+'))
        .ok_or_else(|| format!("--mode {text:?} is not an octal mode such as 755"))?;
    let mut paths = Vec::new();
    for path in flags.list("path") {
        if path.trim().is_empty() {
            return Err("--path is empty".to_owned());
        }
        paths.push(in_cell(path));
    }
    Ok(flags.here(Work::Chmod { mode, paths }))
}

#[cfg(test)]
#[path = "hook_tests.rs"]
mod tests;
