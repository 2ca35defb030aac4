//! How the child says what went wrong: a fixed-size message that needs no allocation, and its
//! translation into an [`Error`] by the parent, who holds the same Plan.

use crate::Error;
use crate::plan::Plan;
use nix::errno::Errno;
use std::ffi::CString;
use std::io;

/// Defines [`Stage`] and the list of all, for decoding.
macro_rules! stages {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// A step of the child. `index` of a [`Fault`] says which element of the Plan's list it was at.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Stage {
            $($(#[$doc])+ $name,)+
        }

        /// In the order of their numbers.
        const ALL: &[Stage] = &[$(Stage::$name),+];
    };
}

stages! {
    /// Talking to the parent.
    Sync,
    /// PR_SET_PDEATHSIG, setsid, fds.
    Prepare,
    /// Writing into a v1 `tasks` file.
    JoinCgroup,
    /// setns.
    JoinNamespace,
    /// unshare.
    Unshare,
    /// Becoming root of the user namespace.
    UserNamespace,
    /// keyctl.
    Keyring,
    /// Bringing `lo` up.
    Loopback,
    /// sethostname.
    Hostname,
    /// setdomainname.
    Domainname,
    /// Opening /proc or /dev of the host.
    HostFiles,
    /// Propagation of /.
    Propagation,
    /// Cloning and attaching the root.
    Root,
    /// Opening the source of a mount.
    MountSource,
    /// Making the file system.
    MountMake,
    /// Making or opening the mount point.
    MountTarget,
    /// The target lies inside procfs.
    MountInProc,
    /// The source of a bind onto /proc is no procfs.
    MountNotProc,
    /// Setting attributes.
    MountAttr,
    /// Attaching.
    MountAttach,
    /// tmpcopyup.
    CopyUp,
    /// cgroup mount.
    MountCgroup,
    /// mknod or bind of a node.
    Node,
    /// symlink.
    Link,
    /// A link, file or mode that a recognised hook asked for.
    InRoot,
    /// Opening the terminal.
    Console,
    /// Working directory.
    Cwd,
    /// Writing a kernel parameter.
    Sysctl,
    /// LSM label.
    Label,
    /// createContainer hook.
    CreateHook,
    /// startContainer hook.
    StartHook,
    /// Masked path.
    Mask,
    /// Read-only path.
    Readonly,
    /// pivot_root.
    Pivot,
    /// Read-only root.
    ReadonlyRoot,
    /// setrlimit.
    Rlimit,
    /// oom_score_adj.
    OomScore,
    /// Scheduler.
    Scheduler,
    /// CPU affinity.
    Affinity,
    /// I/O priority.
    IoPriority,
    /// Memory policy.
    MemPolicy,
    /// Personality.
    Personality,
    /// setgroups.
    Groups,
    /// setresgid.
    Gid,
    /// setresuid.
    Uid,
    /// Capabilities.
    Caps,
    /// no_new_privs.
    NoNewPrivs,
    /// seccomp.
    Seccomp,
    /// args[0] was not found.
    Lookup,
    /// execve.
    Exec,
    /// Standard streams.
    Stdio,
}

/// A failed step.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Which step.
    pub stage: Stage,
    /// Element of the list the step walks.
    pub index: u32,
    /// Its errno. For hooks: the exit code + 1000, or 2000 + signal.
    pub errno: i32,
    /// More from the kernel (fsopen's log), NUL-padded.
    pub detail: [u8; DETAIL],
}

/// Bytes of kernel text kept.
pub const DETAIL: usize = 108;

/// Size of an encoded fault.
pub const WIRE: usize = 12 + DETAIL;

/// Offset of exit codes of hooks in [`Fault::errno`].
pub const HOOK_EXIT: i32 = 1000;
/// Offset of signals of hooks in [`Fault::errno`].
pub const HOOK_SIGNAL: i32 = 2000;
/// A hook that ran into its timeout.
pub const HOOK_TIMEOUT: i32 = 3000;

/// Result of a child's step.
pub type Step<T = ()> = Result<T, Fault>;

impl Fault {
    /// A fault without kernel text.
    pub fn new(stage: Stage, index: usize, errno: Errno) -> Self {
        Fault {
            stage,
            index: index as u32,
            errno: errno as i32,
            detail: [0; DETAIL],
        }
    }

    /// Fixed-size encoding; `kind` is the message kind of the protocol.
    pub fn encode(&self, kind: u32) -> [u8; WIRE] {
        let mut out = [0; WIRE];
        out[0..4].copy_from_slice(&kind.to_ne_bytes());
        out[4..6].copy_from_slice(&(self.stage as u16).to_ne_bytes());
        out[6..8].copy_from_slice(&(self.index as u16).to_ne_bytes());
        out[8..12].copy_from_slice(&self.errno.to_ne_bytes());
        out[12..].copy_from_slice(&self.detail);
        out
    }

    /// Inverse of [`Fault::encode`]; none when it is not a fault.
    pub fn decode(wire: &[u8]) -> Option<Fault> {
        let wire: &[u8; WIRE] = wire.try_into().ok()?;
        let number = u16::from_ne_bytes([wire[4], wire[5]]);
        Some(Fault {
            stage: Stage::from_number(number)?,
            index: u16::from_ne_bytes([wire[6], wire[7]]).into(),
            errno: i32::from_ne_bytes([wire[8], wire[9], wire[10], wire[11]]),
            detail: wire[12..].try_into().ok()?,
        })
    }

    /// The message for people.
    pub fn explain(&self, plan: &Plan) -> Error {
        let (step, object) = self.words(plan);
        let detail: Vec<u8> = self
            .detail
            .iter()
            .copied()
            .take_while(|b| *b != 0)
            .collect();
        let detail = String::from_utf8_lossy(&detail);
        let detail = detail.trim();
        let object = if detail.is_empty() {
            object
        } else {
            format!("{object} ({detail})")
        };
        match (self.stage, self.errno) {
            (Stage::Lookup | Stage::Exec, e) => not_executed(&text(plan.process.args.first()), e),
            (Stage::MountInProc, _) => Error::config(
                object,
                "the mount point is inside /proc, which cannot be mounted over",
            ),
            (Stage::MountNotProc, _) => {
                Error::config(object, "only a proc file system can be bound onto /proc")
            }
            (Stage::CreateHook | Stage::StartHook, e @ HOOK_EXIT..) => {
                Error::msg(format!("{step} {object}: {}", hook_words(e)))
            }
            (_, e) => Error::step(step, object, io::Error::from_raw_os_error(e)),
        }
    }

    fn words(&self, plan: &Plan) -> (&'static str, String) {
        use Stage::*;
        let i = self.index as usize;
        let mount = || match plan.mounts.get(i) {
            Some(m) => format!("mounts[{}] {}", m.index, m.target.to_string_lossy()),
            None => format!("mounts[{i}]"),
        };
        let p = &plan.process;
        match self.stage {
            Sync => ("talk to the runtime", "(socket)".into()),
            Prepare => ("prepare the process", String::new()),
            Stdio => ("set up", format!("standard stream {i}")),
            JoinCgroup => ("join cgroup", format!("hierarchy {i}")),
            JoinNamespace => (
                "join namespace",
                plan.namespaces.join.get(i).map_or(String::new(), |(k, p)| {
                    format!("{} {}", k.file(), p.to_string_lossy())
                }),
            ),
            Unshare => ("make namespace", "cgroup".into()),
            UserNamespace => ("become root of", "the user namespace".into()),
            Keyring => ("join session keyring", text(p.keyring.as_ref())),
            Loopback => ("bring up interface", "lo".into()),
            Hostname => (
                "set hostname",
                String::from_utf8_lossy(plan.hostname.as_deref().unwrap_or_default()).into(),
            ),
            Domainname => (
                "set domainname",
                String::from_utf8_lossy(plan.domainname.as_deref().unwrap_or_default()).into(),
            ),
            HostFiles => (
                "open",
                ["/proc", "/dev/null"].get(i).unwrap_or(&"?").to_string(),
            ),
            Propagation => ("set propagation of", "/".into()),
            Root => ("attach root", plan.root.path.to_string_lossy().into()),
            MountSource => (
                "open the source of",
                match plan.mounts.get(i).map(|m| &m.what) {
                    Some(crate::plan::MountWhat::Bind { source, .. }) => {
                        format!("{}: {}", mount(), source.to_string_lossy())
                    }
                    _ => mount(),
                },
            ),
            MountMake => ("mount", mount()),
            MountTarget => ("make the mount point of", mount()),
            MountInProc | MountNotProc => ("mount", mount()),
            MountAttr => ("set mount options of", mount()),
            MountAttach => ("attach", mount()),
            CopyUp => ("copy the directory under", mount()),
            MountCgroup => ("mount cgroups at", mount()),
            Node => ("make device", text(plan.dev.nodes.get(i).map(|n| &n.path))),
            Link => ("make link", text(plan.dev.links.get(i).map(|l| &l.0))),
            InRoot => in_root(plan.in_root.steps.get(i)),
            Console => ("set up", "the terminal".into()),
            Cwd => ("enter working directory", p.cwd.to_string_lossy().into()),
            Sysctl => (
                "write kernel parameter",
                text(plan.sysctls.get(i).map(|s| &s.0)),
            ),
            Label => (
                "set LSM label",
                String::from_utf8_lossy(
                    p.apparmor
                        .as_deref()
                        .or(p.selinux.as_deref())
                        .unwrap_or_default(),
                )
                .into(),
            ),
            CreateHook => ("hook", hook(plan.create_container.get(i))),
            StartHook => ("hook", hook(plan.start_container.get(i))),
            Mask => ("mask", text(plan.masked.get(i))),
            Readonly => ("make read-only", text(plan.readonly.get(i))),
            Pivot => ("change root to", plan.root.path.to_string_lossy().into()),
            ReadonlyRoot => ("make read-only", "/".into()),
            Rlimit => (
                "set resource limit",
                p.rlimits.get(i).map_or(String::new(), |(r, s, h)| {
                    format!("number {r} to soft {s}, hard {h}")
                }),
            ),
            OomScore => (
                "set oom_score_adj to",
                String::from_utf8_lossy(p.oom_score_adj.as_deref().unwrap_or_default()).into(),
            ),
            Scheduler => ("set scheduler", format!("{:?}", p.scheduler)),
            Affinity => ("set CPU affinity", "execCPUAffinity.final".into()),
            IoPriority => ("set I/O priority", format!("{:?}", p.io_priority)),
            MemPolicy => ("set memory policy", format!("{:?}", p.mempolicy)),
            Personality => ("set personality", format!("{:?}", p.personality)),
            Groups => ("set supplementary groups", format!("{:?}", p.groups)),
            Gid => ("set group id", p.gid.to_string()),
            Uid => ("set user id", p.uid.to_string()),
            Caps => ("set capabilities", format!("{:x?}", p.caps)),
            NoNewPrivs => ("set", "no_new_privs".into()),
            Seccomp => (
                "install seccomp filter",
                format!(
                    "{} instructions",
                    plan.seccomp.as_ref().map_or(0, |s| s.insns.len())
                ),
            ),
            Lookup | Exec => ("exec", text(p.args.first())),
        }
    }
}

/// Why a program can't be executed, in the words that callers match, with the shell's exit code.
pub fn not_executed(program: &str, errno: i32) -> Error {
    let why = match Errno::from_raw(errno) {
        Errno::ENOENT if !program.contains('/') => "executable file not found in $PATH".to_owned(),
        Errno::ENOENT => "no such file or directory".to_owned(),
        Errno::EACCES => "permission denied".to_owned(),
        Errno::EISDIR => "is a directory".to_owned(),
        Errno::ENOTDIR => "not a directory".to_owned(),
        Errno::ENOEXEC => "exec format error".to_owned(),
        other => other.desc().to_lowercase(),
    };
    Error::Exec {
        text: format!("exec: {program:?}: {why}"),
        code: match errno {
            libc::ENOENT | libc::ENOTDIR => 127,
            _ => 126,
        },
    }
}

/// How a hook failed, from the code in [`Fault::errno`].
pub fn hook_words(code: i32) -> String {
    match code {
        HOOK_TIMEOUT.. => "killed: it ran into its timeout".to_owned(),
        s @ HOOK_SIGNAL.. => format!("killed by signal {}", s - HOOK_SIGNAL),
        c @ HOOK_EXIT.. => format!("exit status {}", c - HOOK_EXIT),
        e => Errno::from_raw(e).desc().to_owned(),
    }
}

fn hook(h: Option<&crate::plan::HookPlan>) -> String {
    h.map_or(String::new(), |h| {
        format!("{} {}", h.at, h.path.to_string_lossy())
    })
}

/// A step in the root, in words.
fn in_root(step: Option<&crate::plan::InRoot>) -> (&'static str, String) {
    use crate::plan::InRoot::*;
    let (verb, at) = match step {
        Some(Symlink { at, .. }) => ("make link", at),
        Some(File { at, .. }) => ("write", at),
        Some(Mode { at, .. }) => ("set the mode of", at),
        Some(Only { path, .. }) => return ("hide parts of", text(Some(path))),
        None => return ("change", "the root".into()),
    };
    let within = at.within.as_ref().map_or(String::new(), |w| text(Some(w)));
    (verb, within + &text(Some(&at.path)))
}

fn text(s: Option<&CString>) -> String {
    s.map_or(String::new(), |s| s.to_string_lossy().into_owned())
}

impl Stage {
    fn from_number(n: u16) -> Option<Stage> {
        ALL.get(usize::from(n)).copied()
    }
}

/// Shortens `op.map_err(|e| Fault::new(stage, index, e))`.
pub trait At<T> {
    /// Names the step a raw result belongs to.
    fn at(self, stage: Stage, index: usize) -> Step<T>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, stage: Stage, index: usize) -> Step<T> {
        self.map_err(|e| Fault::new(stage, index, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_survives_the_wire() {
        for (i, stage) in ALL.iter().copied().enumerate() {
            let mut fault = Fault::new(stage, i, Errno::EPERM);
            fault.detail[0] = b'x';
            let got = Fault::decode(&fault.encode(7)).unwrap();
            assert_eq!(
                (got.stage, got.index, got.errno),
                (stage, i as u32, libc::EPERM)
            );
            assert_eq!(got.detail, fault.detail);
        }
        assert!(Stage::from_number(ALL.len() as u16).is_none());
        assert!(Fault::decode(b"short").is_none());
    }
}
