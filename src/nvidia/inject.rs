//! What a creation adds for GPUs: from what is asked for to container edits.
//!
//! Owns the order of things: who asks ([`super::select`]), what the host has ([`super::cache`]), whether the
//! requirements hold ([`super::require`]), and which edits follow. It must not change the host, but for
//! [`Injection::make_nodes`] and what discovery keeps, nor anything in the image.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, LinuxNamespaceType, Mount, Spec};

use super::cache::Driver;
use super::cdi;
use super::config::Config;
use super::files::{Place, gpu_edits, switch_edits};
use super::hook::Work;
use super::inventory::{Chosen, Host, Inventory};
use super::monitor::{Nvml, Told};
use super::nodes::{self, Node};
use super::require::{self, Facts, Requirement, Version};
use super::select::{self, Asked, CdiName, Flag, Gpus, Request};
use super::work;
use crate::spec::edit::{Change, ContainerEdits, Edit};
use crate::sys::fd;
use crate::{Error, Result};

/// What the user asks for beside the configuration.
#[derive(Debug, Default)]
pub struct Wish {
    /// `--gpus`.
    pub flag: Option<Flag>,
    /// `--device vendor/class=name`.
    pub cdi: Vec<CdiName>,
    /// The configuration held NVIDIA's own hook ([`take_hook`]): its environment is the user's word.
    pub hook: bool,
    /// Our configuration file, where it isn't the one that [`Config::load`] finds by itself.
    pub config: Option<PathBuf>,
}

/// The cell that gets them.
#[derive(Debug)]
pub struct Cell<'a> {
    /// Its root, or the shared directory below its writable layer.
    pub rootfs: &'a Path,
    /// The runtime's state root, where discovery is kept; none: nothing is.
    pub state: Option<&'a Path>,
    /// The runtime has no privileges: nodes are bound, ids can't be mapped.
    pub rootless: bool,
}

/// What is added.
#[derive(Debug, Default)]
pub struct Injection {
    /// To be applied in this order.
    pub edits: Vec<Edit>,
    /// For the log.
    pub warnings: Vec<String>,
    /// The driver, where its files are given.
    pub driver: Option<Driver>,
    /// The host's nodes that the cell binds, with where they are.
    bound: Option<(Host, Vec<Node>)>,
}

impl Injection {
    /// Makes the host's nodes that are to be bound and aren't there. A cell that makes its own nodes
    /// needs none of them.
    ///
    /// # Errors
    /// A node is missing and can't be made.
    pub fn make_nodes(&self) -> Result<()> {
        let Some((host, list)) = &self.bound else {
            return Ok(());
        };
        match nodes::make_missing(host, list)?.first() {
            None => Ok(()),
            Some(path) => Err(Error::unsupported(
                format!("device {}", path.display()),
                "the node is missing on this host and this user can't make it (run nvidia-modprobe, \
                 or gpucell doctor as root)",
            )),
        }
    }
}

/// Takes NVIDIA's runtime hook out of a configuration: dockerd puts it there for `--gpus` where it knows no
/// CDI. Its work is [`edits`]'. True when there was one.
#[allow(deprecated)] // prestart is where it stands
pub fn take_hook(spec: &mut Spec) -> bool {
    let Some(hooks) = spec.hooks_mut() else {
        return false;
    };
    let mut found = false;
    let mut take = |list: &mut Option<Vec<Hook>>| {
        if let Some(list) = list {
            let before = list.len();
            list.retain(|h| !is_runtime_hook(h));
            found |= list.len() != before;
        }
    };
    take(hooks.prestart_mut());
    take(hooks.create_runtime_mut());
    found
}

/// The program by its name, with the verb that injects (NVIDIA Container Toolkit,
/// `cmd/nvidia-container-runtime-hook`).
fn is_runtime_hook(hook: &Hook) -> bool {
    let name = hook.path().file_name().and_then(|n| n.to_str());
    let ours = matches!(
        name,
        Some("nvidia-container-runtime-hook" | "nvidia-container-toolkit")
    );
    let verb = hook.args().as_ref().and_then(|a| a.last());
    ours && verb.is_some_and(|v| v == "prestart")
}

/// Could the configuration ask for a GPU? A cell without one must not even pay for reading our
/// configuration file.
fn may_ask(spec: &Spec) -> bool {
    let process = spec.process().as_ref();
    let env = process.and_then(|p| p.env().as_ref());
    let by_env = env.is_some_and(|env| {
        let mut names = env.iter();
        names.any(|e| e.starts_with("NVIDIA_VISIBLE_DEVICES=") || e.starts_with("CUDA_VERSION="))
    });
    let annotations = spec.annotations().as_ref();
    let by_annotation =
        || annotations.is_some_and(|all| all.keys().any(|k| k.starts_with(cdi::ANNOTATION_PREFIX)));
    let mounts = spec.mounts().as_ref();
    let by_mount = || {
        mounts.is_some_and(|all| {
            let mut places = all.iter().map(|m| m.destination());
            places.any(|at| at.starts_with(select::MOUNTS))
        })
    };
    by_env || by_annotation() || by_mount()
}

/// The edits that give a cell what it is asked to have. Nothing asked: nothing is read.
///
/// # Errors
/// As [`select::asked`], [`Driver::discover`], [`require::check`], [`cdi::resolve`]: a GPU, file or node
/// that is asked for and can't be given.
pub fn edits(spec: &Spec, wish: Wish, cell: &Cell) -> Result<Injection> {
    let explicit = wish.flag.is_some() || wish.hook;
    if !explicit && wish.cdi.is_empty() && !may_ask(spec) {
        return Ok(Injection::default());
    }
    let config = Config::load(wish.config.as_deref())?;
    let asked = match &wish.flag {
        Some(flag) => flag.asked(spec, &config)?,
        None => select::asked(spec, &config)?,
    };
    let mut out = Injection::default();
    if let Some(flag) = &wish.flag {
        let reason = match &asked {
            Asked::Driver(request) => request.reason.clone(),
            _ => "--gpus".to_owned(),
        };
        let pairs = flag.environment().into_iter();
        out.edits
            .extend(pairs.map(|(k, v)| Edit::new(&reason, Change::Env(format!("{k}={v}")))));
    }
    // CDI names stand before the environment, and beside `--gpus`.
    let mut names = wish.cdi;
    match asked {
        Asked::Nothing => {}
        Asked::Ignored(warning) => out.warnings.push(warning),
        Asked::Cdi(cdi) => {
            unmount(&mut out.edits, &cdi.mounts);
            if !cdi.requirements.is_empty() {
                let driver = Driver::discover(&Host::from(&config), cell.state)?;
                driver_meets(&cdi.requirements, &driver.inventory)?;
            }
            names.splice(0..0, cdi.names);
        }
        Asked::Driver(_) if !explicit && !names.is_empty() => {}
        Asked::Driver(request) => out.driver(spec, &request, explicit, &config, cell)?,
    }
    out.cdi(names, &config)?;
    if !cell.rootless {
        cdi::map_ids(&mut out.edits, spec);
    }
    if cell.rootless || new_user_namespace(spec) {
        bind_elsewhere(&mut out.edits)?;
    }
    Ok(out)
}

/// Where nodes can't be made the engine binds the host's of the same path. One that lies elsewhere on
/// the host (a driver in a container has a /dev of its own) becomes a bind mount, with its rule.
fn bind_elsewhere(edits: &mut Vec<Edit>) -> Result<()> {
    let mut rules = Vec::new();
    for edit in &mut *edits {
        let Change::Device(node) = &edit.change else {
            continue;
        };
        let Some(host) = node.host_path.clone().filter(|h| *h != node.path) else {
            continue;
        };
        let rule = node.rule()?;
        rules.extend(rule.map(|r| Edit::new(&edit.reason, Change::DeviceRule(r))));
        let mut mount = Mount::default();
        let options = ["bind", "rprivate", "nosuid", "noexec"].map(str::to_owned);
        mount
            .set_destination(node.path.clone())
            .set_source(Some(host))
            .set_typ(Some("bind".to_owned()))
            .set_options(Some(options.to_vec()));
        edit.change = Change::Mount(mount);
    }
    edits.append(&mut rules);
    Ok(())
}

fn unmount(edits: &mut Vec<Edit>, mounts: &[PathBuf]) {
    let edit = |path: &PathBuf| {
        let reason = "the mount names a device, it is not one";
        Edit::new(reason, Change::Unmount(path.clone()))
    };
    edits.extend(mounts.iter().map(edit));
}

impl Injection {
    fn cdi(&mut self, names: Vec<CdiName>, config: &Config) -> Result<()> {
        let mut list: Vec<String> = Vec::new();
        for CdiName { name, .. } in names {
            if !list.contains(&name) {
                list.push(name);
            }
        }
        if list.is_empty() {
            return Ok(());
        }
        let found = cdi::resolve(&list, &config.cdi_dirs)?;
        self.edits.extend(found.edits);
        self.warnings.extend(found.warnings);
        Ok(())
    }

    fn driver(
        &mut self,
        spec: &Spec,
        request: &Request,
        explicit: bool,
        config: &Config,
        cell: &Cell,
    ) -> Result<()> {
        let host = Host::from(config);
        // CUDA images say `all` of themselves; on a machine without the driver they run as under any
        // other runtime. What somebody asked for by name is refused.
        let by_image = !explicit && request.gpus == Gpus::All && request.mounts.is_empty();
        if by_image && !host.driver_proc().join("version").exists() {
            self.warnings.push(format!(
                "{}: no NVIDIA driver is loaded, so the cell gets no GPU",
                request.reason
            ));
            return Ok(());
        }
        let driver = Driver::discover(&host, cell.state)?;
        let inv = &driver.inventory;
        let nvml = Nvml::new(config, &driver);
        let chosen = choose(inv, &request.gpus, &nvml)?;
        meets(&request.requirements, inv, &chosen, &nvml)?;

        let place = place(cell.rootfs)?;
        let caps = request.capabilities;
        let mut all = vec![driver.files.common_edits(inv, caps, &place)?];
        for one in &chosen {
            all.push(gpu_edits(inv, one, caps, &place)?);
        }
        all.push(switch_edits(inv, request, &place)?);
        all.extend(hidden(inv, &chosen));
        unmount(&mut self.edits, &request.mounts);
        for edits in all {
            self.edits.extend(edits.into_edits(&request.reason)?);
        }
        if cell.rootless || new_user_namespace(spec) {
            let mut nodes = nodes::control(inv, caps)?;
            for one in &chosen {
                nodes.extend(nodes::gpu_nodes(inv, one)?);
            }
            self.bound = Some((host, nodes));
        }
        self.driver = Some(driver);
        Ok(())
    }
}

fn new_user_namespace(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let all = linux.and_then(|l| l.namespaces().as_ref());
    all.is_some_and(|all| all.iter().any(|n| n.typ() == LinuxNamespaceType::User))
}

/// The devices of a request, each once.
fn choose(inv: &Inventory, gpus: &Gpus, nvml: &Nvml) -> Result<Vec<Chosen>> {
    let list = match gpus {
        Gpus::None => return Ok(Vec::new()),
        Gpus::All => return inv.all(),
        Gpus::Count(count) => (0..*count).map(select::GpuId::Index).collect(),
        Gpus::List(list) => list.clone(),
    };
    let mut chosen: Vec<Chosen> = Vec::new();
    for id in &list {
        let one = match id.needs_nvml() {
            true => inv.resolve_told(id, nvml.told()?)?,
            false => inv.resolve(id)?,
        };
        if !chosen.contains(&one) {
            chosen.push(one);
        }
    }
    Ok(chosen)
}

/// The folders of other GPUs in /proc/driver/nvidia/gpus stay hidden.
fn hidden(inv: &Inventory, chosen: &[Chosen]) -> Option<ContainerEdits> {
    let mine = |bus: &String| chosen.iter().any(|c| c.gpu.bus == *bus);
    let all = || inv.gpus.iter().map(|g| g.bus.clone());
    let kept: Vec<String> = all().filter(mine).collect();
    (kept.len() < inv.gpus.len()).then(|| ContainerEdits {
        hooks: vec![Work::OnlyGpus(kept).to_hook()],
        ..ContainerEdits::default()
    })
}

fn versions(inv: &Inventory) -> Result<(Option<Version>, Version)> {
    let cuda = inv.cuda.as_deref().map(Version::parse).transpose()?;
    Ok((cuda, Version::parse(&inv.driver)?))
}

fn driver_meets(requirements: &[Requirement], inv: &Inventory) -> Result<()> {
    let (cuda, driver) = versions(inv)?;
    require::check_driver(requirements, cuda.as_ref(), &driver)
}

/// Architecture and brand are not in procfs: NVML is asked when a requirement hangs on them.
fn meets(
    requirements: &[Requirement],
    inv: &Inventory,
    chosen: &[Chosen],
    nvml: &Nvml,
) -> Result<()> {
    if requirements.is_empty() {
        return Ok(());
    }
    if chosen.is_empty() {
        return driver_meets(requirements, inv);
    }
    let (cuda, driver) = versions(inv)?;
    let told = |chosen: &Chosen, told: Option<&Told>| {
        let gpu = told.and_then(|t| t.of(&chosen.gpu));
        let arch = gpu.and_then(|g| g.arch.as_deref());
        let arch = arch.map(Version::parse).transpose()?;
        let brand = gpu.and_then(|g| g.brand.clone());
        Ok((format!("GPU {}", chosen.gpu.index), arch, brand))
    };
    let check = |from: Option<&Told>| -> Result<()> {
        let known: Vec<_> = chosen
            .iter()
            .map(|c| told(c, from))
            .collect::<Result<_>>()?;
        let facts = known.iter().map(|(label, arch, brand)| Facts {
            label,
            cuda: cuda.as_ref(),
            driver: &driver,
            arch: arch.as_ref(),
            brand: brand.as_deref(),
        });
        require::check(requirements, &facts.collect::<Vec<_>>())
    };
    match check(None) {
        Err(e) if require::about_gpus(requirements) => match nvml.told() {
            Ok(told) => check(Some(told)),
            // Its absence is worth a word, but not the reason.
            Err(why) => Err(Error::msg(format!("{e} ({why})"))),
        },
        other => other,
    }
}

#[cfg(target_arch = "x86_64")]
const MULTIARCH: (&str, &str) = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/i386-linux-gnu");
#[cfg(target_arch = "aarch64")]
const MULTIARCH: (&str, &str) = ("/usr/lib/aarch64-linux-gnu", "/usr/lib/arm-linux-gnueabihf");

/// Where the image's distribution looks for libraries: Debian's has folders by architecture, the others'
/// are /usr/lib64 and /usr/lib (libnvidia-container, `src/nvc_container.c`).
fn place(rootfs: &Path) -> Result<Place> {
    let root = work::hold(rootfs)?;
    let debian = fd::open_in_root(root.as_fd(), c"/etc/debian_version", libc::O_PATH).is_ok();
    let (lib, lib32) = match debian {
        true => MULTIARCH,
        false => ("/usr/lib64", "/usr/lib"),
    };
    Ok(Place::Image {
        lib_dir: lib.into(),
        lib32_dir: Some(lib32.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Spec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_cell_that_asks_for_nothing_is_left_alone() {
        let rows = [
            (
                r#"{"ociVersion":"1.2.0","process":{"cwd":"/","user":{"uid":0,"gid":0},"env":["PATH=/bin","NVIDIA_REQUIRE_CUDA=x"]}}"#,
                false,
            ),
            (
                r#"{"ociVersion":"1.2.0","process":{"cwd":"/","user":{"uid":0,"gid":0},"env":["NVIDIA_VISIBLE_DEVICES="]}}"#,
                true,
            ),
            (
                r#"{"ociVersion":"1.2.0","process":{"cwd":"/","user":{"uid":0,"gid":0},"env":["CUDA_VERSION=12.4"]}}"#,
                true,
            ),
            (
                r#"{"ociVersion":"1.2.0","annotations":{"cdi.k8s.io/a":"x/y=z"}}"#,
                true,
            ),
            (
                r#"{"ociVersion":"1.2.0","mounts":[{"destination":"/var/run/nvidia-container-devices/0","source":"/dev/null"}]}"#,
                true,
            ),
            (r#"{"ociVersion":"1.2.0"}"#, false),
        ];
        for (text, asks) in rows {
            assert_eq!(may_ask(&spec(text)), asks, "{text}");
        }
    }

    #[test]
    fn nvidias_hook_is_taken_out() {
        let rows = [
            (
                r#"{"path":"/usr/bin/nvidia-container-runtime-hook","args":["nvidia-container-runtime-hook","prestart"]}"#,
                true,
            ),
            (
                r#"{"path":"/opt/x/nvidia-container-toolkit","args":["a","-config","/c","prestart"]}"#,
                true,
            ),
            (
                r#"{"path":"/usr/bin/nvidia-container-runtime-hook","args":["x","poststop"]}"#,
                false,
            ),
            (
                r#"{"path":"/usr/bin/other","args":["nvidia-container-runtime-hook","prestart"]}"#,
                false,
            ),
        ];
        for (hook, taken) in rows {
            let text = format!(
                r#"{{"ociVersion":"1.2.0","hooks":{{"prestart":[{hook},{{"path":"/bin/true"}}]}}}}"#
            );
            let mut spec = spec(&text);
            assert_eq!(take_hook(&mut spec), taken, "{hook}");
            #[allow(deprecated)]
            let left = spec
                .hooks()
                .as_ref()
                .unwrap()
                .prestart()
                .as_ref()
                .unwrap()
                .len();
            assert_eq!(left, 2 - usize::from(taken), "{hook}");
        }
        assert!(!take_hook(&mut spec(r#"{"ociVersion":"1.2.0"}"#)));
    }
}
