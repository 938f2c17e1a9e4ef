//! From the OCI runtime spec that the caller wrote for a host to one that holds in the guest.
//!
//! What is changed and why:
//!
//! | member | what happens |
//! | --- | --- |
//! | `root.path` | the path that the host gave beside the spec |
//! | `root.readonly` | taken out: the executor does it, once the process's folder is there |
//! | `process.user.username` | docker's `USER[:GROUP]`: the helper looks it up in the container (see [`crate::users`]) |
//! | `process.rlimits`, `.capabilities`, `linux.seccomp` | taken out: [`Confinement`] is applied by the agent's own executor, for added processes too |
//! | `process.apparmorProfile`, `.selinuxLabel`, `.execCPUAffinity`, `linux.mountLabel`, `.intelRdt`, `.netDevices`, `.memoryPolicy` | refused: not in the guest |
//! | `hooks` | `startContainer` runs in the container, by the executor; `createContainer` is refused; the others are the host's |
//! | `linux.cgroupsPath` | a cgroup of our own |
//! | `linux.namespaces` | paths are of the host: a new namespace instead, or that of the container that the host names beside the spec. Network: dropped, the guest's is the pod's. pid, mount and cgroup are always new, so that no container shares them with the agent |
//! | `linux.resources` | taken out: the agent makes the control group (see [`crate::cgroup`]) |
//! | `linux.readonlyPaths` | taken out: the executor does it, as libcontainer would make them `nosuid`, `nodev` and `noexec` too |
//! | `linux.rootfsPropagation` | `rslave` becomes `slave`, and so on |
//! | `linux.sysctl` | what is not the container's own is set by the agent, or refused (see [`sysctl`]) |
//! | `mounts` | a bind of a host path is refused; below the agent's folder it is a share. Propagation is set by the executor; what libcontainer would pass over is refused. A bind with `x-sandbox.fill` is filled first (see [`crate::fill`]). With users of its own, a container's `/sys` is a bind of the guest's |

mod mounts;
mod seccomp;
mod sysctl;

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Hook, Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, LinuxResources, LinuxSeccomp, PosixRlimit, Process, Spec,
};
use sandbox_protocol::GUEST_RUN_DIR;
use serde::{Deserialize, Serialize};

pub(crate) use self::mounts::{MountPropagation, Propagation, is_bind};
use crate::cgroup::{Limits, ResourceError};
use crate::fill::Fill;
use crate::guest_path::{GuestPath, GuestPathError};
use crate::programs::Program;

/// Why a spec cannot be run in the guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// Not such an object.
    #[error("the OCI runtime spec cannot be read")]
    Json(#[from] serde_json::Error),
    /// Something that is required is missing.
    #[error("the OCI runtime spec has no {member}")]
    Missing {
        /// Which member.
        member: &'static str,
    },
    /// The root is outside the agent's folder.
    #[error(transparent)]
    Root(#[from] GuestPathError),
    /// A bind of a folder that the guest does not have.
    #[error(
        "mount {destination} binds {source_path:?}, a path of the host that is not shared with the guest"
    )]
    HostBind {
        /// Where it was to appear.
        destination: String,
        /// The path on the host.
        source_path: String,
    },
    /// Nothing in the guest could honour it.
    #[error(
        "{member} is {value:?}: the guest has no such thing, so it cannot be honoured; leave it out"
    )]
    NotInGuest {
        /// Which member.
        member: &'static str,
        /// What it is.
        value: String,
    },
    /// A mount asks for what cannot be done here.
    #[error("mount {destination}: {what} cannot be honoured in a guest")]
    Mount {
        /// Where it was to appear.
        destination: String,
        /// What it asks for.
        what: String,
    },
    /// A program of the host's that would run in the container's namespaces.
    #[error(
        "createContainer hooks cannot run: they are programs of the host for a container that is in a guest; use createRuntime or startContainer"
    )]
    CreateContainerHook,
    /// A deny list names a system call that libseccomp does not know, so it would not be denied.
    #[error("the seccomp profile denies system call {name:?}, which is not known here")]
    UnknownSyscall {
        /// Its name.
        name: String,
    },
    /// The profile wants a supervisor.
    #[error(
        "the seccomp profile uses SCMP_ACT_NOTIFY; no supervisor can be reached from the guest"
    )]
    SeccompNotify,
    /// A kernel parameter by which a container could reach the agent, or one that is not known here.
    #[error(
        "the kernel parameter {key:?} cannot be set: it is neither the container's own nor among those of the guest's kernel \
         that may be (net., vm., user.max_, and limits of fs. and kernel.)"
    )]
    Sysctl {
        /// As the spec has it.
        key: String,
    },
    /// A limit cannot be honoured.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// The builder refused a value.
    #[error("the OCI runtime spec cannot be adapted")]
    Oci(#[from] oci_spec::OciSpecError),
}

/// What the agent's executor applies to a process just before it runs its program.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Confinement {
    /// System call filter of the container; every one of its processes gets it.
    pub(crate) seccomp: Option<LinuxSeccomp>,
    /// Capabilities of this process; sets that are not there are empty.
    pub(crate) capabilities: Option<LinuxCapabilities>,
    /// What runs instead of the command, if it is one of the agent's own programs.
    pub(crate) program: Option<Program>,
    /// Limits of this process: applied last, because the agent's code needs more than some allow.
    pub(crate) rlimits: Vec<PosixRlimit>,
    /// Propagation of the container's mounts; empty for added processes.
    pub(crate) propagation: Vec<MountPropagation>,
    /// Folders below `/dev` that libcontainer makes for devices, with no umask.
    pub(crate) device_folders: Vec<PathBuf>,
    /// Programs to run in the container before its own.
    pub(crate) hooks: Option<StartHooks>,
    /// The folder that the container's first process begins in, which is made if it is not there; none for added
    /// processes, whose folder must be there.
    pub(crate) folder: Option<PathBuf>,
    /// The container's root is to be read-only from then on.
    pub(crate) root_read_only: bool,
    /// Places in the container that are to be read-only, and else as they are.
    pub(crate) read_only: Vec<PathBuf>,
}

/// `startContainer` hooks: programs of the container's, run with what its own program will be confined to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StartHooks {
    /// In their order.
    pub(crate) hooks: Vec<Hook>,
    /// The state that they read, without the pid (OCI runtime spec, "State").
    pub(crate) state: serde_json::Value,
}

/// A container's spec, ready for libcontainer.
#[derive(Debug)]
pub(crate) struct GuestSpec {
    /// For `config.json`.
    pub(crate) spec: Spec,
    /// Volumes that get what the root has at their place.
    pub(crate) fills: Vec<Fill>,
    /// For the executor.
    pub(crate) confinement: Confinement,
    /// Kernel parameters that are not the container's own, for the agent to set.
    pub(crate) guest_sysctl: Vec<(String, String)>,
    /// For the container's control group.
    pub(crate) limits: Limits,
    /// Device rules, in their order.
    pub(crate) devices: Vec<LinuxDeviceCgroup>,
    /// Its pid namespace is another container's.
    pub(crate) shares_pids: bool,
}

/// Where the guest puts a container.
#[derive(Debug)]
pub(crate) struct Placement<'a> {
    /// Its name.
    pub(crate) id: &'a str,
    /// Its root.
    pub(crate) root_path: &'a str,
    /// Its control group.
    pub(crate) cgroups_path: &'a str,
    /// Its first process has a terminal.
    pub(crate) terminal: bool,
    /// Namespaces of other containers that it joins.
    pub(crate) shared: &'a [(LinuxNamespaceType, PathBuf)],
}

/// Adapts the spec of a new container.
pub(crate) fn adapt(spec_json: &[u8], placement: &Placement<'_>) -> Result<GuestSpec, SpecError> {
    let mut spec: Spec = serde_json::from_slice(spec_json)?;
    let root_path = GuestPath::new(placement.root_path)?;
    let mut root = spec.root().clone().unwrap_or_default();
    root.set_path(root_path.as_path().to_owned());
    let read_only = root.readonly() == Some(true);
    root.set_readonly(Some(false));
    spec.set_root(Some(root));
    let linux = spec.linux().clone();
    let mut linux = linux.ok_or(SpecError::Missing { member: "linux" })?;
    let own_users = is_of(&linux, LinuxNamespaceType::User)
        || placement
            .shared
            .iter()
            .any(|(kind, _)| *kind == LinuxNamespaceType::User);
    let taken = mounts::adapt(&mut spec, own_users)?;
    let hooks = take_hooks(&mut spec, placement)?;

    let process = spec.process().clone();
    let mut process = process.ok_or(SpecError::Missing { member: "process" })?;
    let mut confinement = adapt_process(&mut process, placement.terminal)?;
    confinement.folder = take_folder(&mut process);
    confinement.root_read_only = read_only;
    spec.set_process(Some(process));

    check_linux(&linux)?;
    let seccomp = linux.seccomp().clone();
    if let Some(profile) = &seccomp {
        seccomp::check(profile)?;
    }
    linux
        .set_seccomp(None)
        .set_cgroups_path(Some(PathBuf::from(placement.cgroups_path)))
        .set_mount_label(None);
    adapt_namespaces(&mut linux, placement.shared)?;
    mounts::adapt_root(&mut linux);
    let resources = linux.resources().clone().unwrap_or_default();
    let limits = Limits::new(&resources, processors())?;
    let devices = resources.devices().clone().unwrap_or_default();
    linux.set_resources(None);
    let device_folders = device_folders(&linux);
    let read_only = linux.readonly_paths().clone().unwrap_or_default();
    linux.set_readonly_paths(None);
    let guest_sysctl = sysctl::take(&mut linux, own_users)?;
    spec.set_linux(Some(linux));

    confinement.seccomp = seccomp;
    confinement.propagation = taken.propagation;
    confinement.device_folders = device_folders;
    confinement.read_only = read_only.into_iter().map(PathBuf::from).collect();
    confinement.hooks = hooks;
    Ok(GuestSpec {
        spec,
        fills: taken.fills,
        confinement,
        guest_sysctl,
        limits,
        devices,
        shares_pids: placement
            .shared
            .iter()
            .any(|(kind, _)| *kind == LinuxNamespaceType::Pid),
    })
}

/// Takes the folder out that the process begins in: libcontainer enters it before anybody could make it.
fn take_folder(process: &mut Process) -> Option<PathBuf> {
    let folder = process.cwd().clone();
    process.set_cwd("/".into());
    (!folder.as_os_str().is_empty()).then_some(folder)
}

/// The folders between `/dev` and the devices, which are made with them.
fn device_folders(linux: &Linux) -> Vec<PathBuf> {
    let between = |path: &PathBuf| {
        let above: Vec<PathBuf> = path.ancestors().skip(1).map(Path::to_owned).collect();
        let above = above.into_iter();
        above.take_while(|folder| folder.starts_with("/dev") && folder != Path::new("/dev"))
    };
    let devices = linux.devices().iter().flatten();
    let mut folders: Vec<PathBuf> = devices
        .flat_map(|device| between(device.path()).collect::<Vec<_>>())
        .collect();
    folders.sort();
    folders.dedup();
    folders
}

fn is_of(linux: &Linux, kind: LinuxNamespaceType) -> bool {
    let mut namespaces = linux.namespaces().iter().flatten();
    namespaces.any(|namespace| namespace.typ() == kind)
}

fn not_in_guest(member: &'static str, value: &str, nothing: &[&str]) -> Result<(), SpecError> {
    match value.is_empty() || nothing.contains(&value) {
        true => Ok(()),
        false => Err(SpecError::NotInGuest {
            member,
            value: value.to_owned(),
        }),
    }
}

/// Refuses what the guest has nothing for.
fn check_linux(linux: &Linux) -> Result<(), SpecError> {
    let label = linux.mount_label().as_deref().unwrap_or_default();
    not_in_guest("linux.mountLabel", label, &[])?;
    if linux.intel_rdt().is_some() {
        not_in_guest("linux.intelRdt", "set", &[])?;
    }
    if linux
        .net_devices()
        .as_ref()
        .is_some_and(|devices| !devices.is_empty())
    {
        not_in_guest("linux.netDevices", "set", &[])?;
    }
    if linux.memory_policy().is_some() {
        not_in_guest("linux.memoryPolicy", "set", &[])?;
    }
    Ok(())
}

/// Takes the hooks out that run in the container; those of the host are its own.
fn take_hooks(spec: &mut Spec, placement: &Placement<'_>) -> Result<Option<StartHooks>, SpecError> {
    let Some(hooks) = spec.hooks().clone() else {
        return Ok(None);
    };
    spec.set_hooks(None);
    let some = |hooks: &Option<Vec<Hook>>| hooks.as_ref().is_some_and(|hooks| !hooks.is_empty());
    if some(hooks.create_container()) {
        return Err(SpecError::CreateContainerHook);
    }
    if !some(hooks.start_container()) {
        return Ok(None);
    }
    let state = serde_json::json!({
        "ociVersion": spec.version(),
        "id": placement.id,
        "status": "created",
        "bundle": placement.root_path,
        "annotations": spec.annotations().clone().unwrap_or_default(),
    });
    Ok(Some(StartHooks {
        hooks: hooks.start_container().clone().unwrap_or_default(),
        state,
    }))
}

/// Adapts the `process` object of a process to be added to a container.
pub(crate) fn adapt_added_process(
    process_json: &[u8],
    terminal: bool,
) -> Result<(Process, Confinement), SpecError> {
    let mut process: Process = serde_json::from_slice(process_json)?;
    let confinement = adapt_process(&mut process, terminal)?;
    Ok((process, confinement))
}

/// Adapts a process; what the executor applies is taken out.
fn adapt_process(process: &mut Process, terminal: bool) -> Result<Confinement, SpecError> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(SpecError::Missing {
            member: "process.args",
        });
    }
    let profile = process.apparmor_profile().as_deref().unwrap_or_default();
    not_in_guest("process.apparmorProfile", profile, &["unconfined"])?;
    let label = process.selinux_label().as_deref().unwrap_or_default();
    not_in_guest("process.selinuxLabel", label, &[])?;
    if process.exec_cpu_affinity().is_some() {
        not_in_guest("process.execCPUAffinity", "set", &[])?;
    }
    let confinement = Confinement {
        capabilities: process.capabilities().clone(),
        rlimits: process.rlimits().clone().unwrap_or_default(),
        ..Confinement::default()
    };
    process
        .set_capabilities(None)
        .set_rlimits(None)
        .set_terminal(Some(terminal))
        .set_apparmor_profile(None)
        .set_selinux_label(None);
    // libcontainer would look an absent HOME up with getpwuid, after the change of root, and so load name
    // service modules of the container's into a process that has all privileges. The executor looks it up.
    let env = process.env().clone().unwrap_or_default();
    let env = match env.iter().any(|entry| is_set(entry, "HOME=")) {
        true => env,
        false => std::iter::once(HOME_UNKNOWN.to_owned())
            .chain(env.into_iter().filter(|entry| entry != "HOME="))
            .collect(),
    };
    process.set_env(Some(env));
    Ok(confinement)
}

/// In the place of a `HOME` that the spec does not have, for the executor to fill in.
pub(crate) const HOME_UNKNOWN: &str = "HOME=\u{1}";

fn is_set(entry: &str, prefix: &str) -> bool {
    entry.len() > prefix.len() && entry.starts_with(prefix)
}

fn adapt_namespaces(
    linux: &mut Linux,
    shared: &[(LinuxNamespaceType, PathBuf)],
) -> Result<(), SpecError> {
    let mut types: Vec<LinuxNamespaceType> = Vec::new();
    let wanted = linux
        .namespaces()
        .iter()
        .flatten()
        .map(LinuxNamespace::typ)
        .chain(shared.iter().map(|(kind, _)| *kind))
        .chain([
            LinuxNamespaceType::Pid,
            LinuxNamespaceType::Mount,
            LinuxNamespaceType::Cgroup,
        ]);
    for kind in wanted {
        if kind != LinuxNamespaceType::Network && !types.contains(&kind) {
            types.push(kind);
        }
    }
    let namespaces = types
        .into_iter()
        .map(|kind| {
            let namespace = LinuxNamespaceBuilder::default().typ(kind);
            match shared.iter().find(|(shared, _)| *shared == kind) {
                Some((_, path)) => namespace.path(path.clone()).build(),
                None => namespace.build(),
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    linux.set_namespaces(Some(namespaces));
    Ok(())
}

/// The guest's processors.
fn processors() -> usize {
    let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
    online
        .ok()
        .flatten()
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(1)
}

/// The limits of `linux.resources`, and its device rules if it has some.
pub(crate) fn resources(
    resources_json: &[u8],
) -> Result<(Limits, Option<Vec<LinuxDeviceCgroup>>), SpecError> {
    let resources: LinuxResources = serde_json::from_slice(resources_json)?;
    let limits = Limits::new(&resources, processors())?;
    let devices = resources.devices().clone();
    Ok((limits, devices.filter(|devices| !devices.is_empty())))
}

/// The agent's own folder of everything that is not a container's file system.
pub(crate) fn agent_folder() -> PathBuf {
    Path::new(GUEST_RUN_DIR).join("agent")
}

#[cfg(test)]
mod tests;
