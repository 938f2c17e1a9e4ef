//! From the OCI runtime spec that the caller wrote for a host to one that holds in the guest.
//!
//! What is changed and why:
//!
//! | member | what happens |
//! | --- | --- |
//! | `root.path` | the path that the host gave beside the spec |
//! | `hooks` | dropped: they are programs of the host, run there |
//! | `linux.cgroupsPath` | a cgroup of our own |
//! | `linux.namespaces` | paths are of the host: a new namespace instead, or that of the container that the host names beside the spec. Network: dropped, the guest's is the pod's. pid, mount and cgroup are always new, so that no container shares them with the agent |
//! | `linux.resources` | taken out: the agent makes the control group (see [`crate::cgroup`]) |
//! | `linux.sysctl` | `net.*` is set in the guest's network namespace by the agent |
//! | `linux.seccomp`, `process.capabilities` | taken out: [`Confinement`] is applied by the agent's own executor, for added processes too |
//! | `linux.intelRdt`, `linux.mountLabel`, `process.apparmorProfile`, `process.selinuxLabel` | dropped: not in the guest |
//! | `mounts` | a bind of a host path is refused; below the agent's directory it is a share |

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use libseccomp::ScmpSyscall;
use oci_spec::runtime::{
    Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, LinuxResources, LinuxSeccomp, LinuxSeccompAction, Process, Spec,
};
use sandbox_protocol::GUEST_RUN_DIR;
use serde::{Deserialize, Serialize};

use crate::cgroup::{Limits, ResourceError};
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
    /// The root is outside the agent's directory.
    #[error(transparent)]
    Root(#[from] GuestPathError),
    /// A bind of a directory that the guest does not have.
    #[error(
        "mount {destination} binds {source_path:?}, a path of the host that is not shared with the guest"
    )]
    HostBind {
        /// Where it was to appear.
        destination: String,
        /// The path on the host.
        source_path: String,
    },
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
}

/// A container's spec, ready for libcontainer.
#[derive(Debug)]
pub(crate) struct GuestSpec {
    /// For `config.json`.
    pub(crate) spec: Spec,
    /// For the executor.
    pub(crate) confinement: Confinement,
    /// `net.*` parameters for the guest's network namespace.
    pub(crate) network_sysctl: Vec<(String, String)>,
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
    spec.set_root(Some(root));
    spec.set_hooks(None);
    check_mounts(&spec)?;

    let process = spec.process().clone();
    let mut process = process.ok_or(SpecError::Missing { member: "process" })?;
    let capabilities = adapt_process(&mut process, placement.terminal)?;
    spec.set_process(Some(process));

    let linux = spec.linux().clone();
    let mut linux = linux.ok_or(SpecError::Missing { member: "linux" })?;
    let seccomp = linux.seccomp().clone();
    if let Some(profile) = &seccomp {
        check_seccomp(profile)?;
    }
    linux
        .set_seccomp(None)
        .set_cgroups_path(Some(PathBuf::from(placement.cgroups_path)))
        .set_intel_rdt(None)
        .set_mount_label(None);
    adapt_namespaces(&mut linux, placement.shared)?;
    let resources = linux.resources().clone().unwrap_or_default();
    let limits = Limits::new(&resources, processors())?;
    let devices = resources.devices().clone().unwrap_or_default();
    linux.set_resources(None);
    let network_sysctl = take_network_sysctl(&mut linux);
    spec.set_linux(Some(linux));

    Ok(GuestSpec {
        spec,
        confinement: Confinement {
            seccomp,
            capabilities,
            program: None,
        },
        network_sysctl,
        limits,
        devices,
        shares_pids: placement
            .shared
            .iter()
            .any(|(kind, _)| *kind == LinuxNamespaceType::Pid),
    })
}

/// Adapts the `process` object of a process to be added to a container; its capabilities are taken out.
pub(crate) fn adapt_added_process(
    process_json: &[u8],
    terminal: bool,
) -> Result<(Process, Option<LinuxCapabilities>), SpecError> {
    let mut process: Process = serde_json::from_slice(process_json)?;
    let capabilities = adapt_process(&mut process, terminal)?;
    Ok((process, capabilities))
}

fn adapt_process(
    process: &mut Process,
    terminal: bool,
) -> Result<Option<LinuxCapabilities>, SpecError> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(SpecError::Missing {
            member: "process.args",
        });
    }
    let capabilities = process.capabilities().clone();
    process
        .set_capabilities(None)
        .set_terminal(Some(terminal))
        .set_apparmor_profile(None)
        .set_selinux_label(None)
        .set_exec_cpu_affinity(None);
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
    Ok(capabilities)
}

/// In the place of a `HOME` that the spec does not have, for the executor to fill in.
pub(crate) const HOME_UNKNOWN: &str = "HOME=\u{1}";

fn is_set(entry: &str, prefix: &str) -> bool {
    entry.len() > prefix.len() && entry.starts_with(prefix)
}

fn check_mounts(spec: &Spec) -> Result<(), SpecError> {
    for mount in spec.mounts().iter().flatten() {
        let options = mount.options().as_deref().unwrap_or_default();
        let bind = mount.typ().as_deref() == Some("bind")
            || options.iter().any(|word| word == "bind" || word == "rbind");
        let shared = mount
            .source()
            .as_deref()
            .and_then(Path::to_str)
            .is_some_and(|path| GuestPath::new(path).is_ok());
        if bind && !shared {
            return Err(SpecError::HostBind {
                destination: mount.destination().display().to_string(),
                source_path: mount
                    .source()
                    .as_deref()
                    .unwrap_or(Path::new(""))
                    .display()
                    .to_string(),
            });
        }
    }
    Ok(())
}

fn check_seccomp(profile: &LinuxSeccomp) -> Result<(), SpecError> {
    let allows = |action| {
        matches!(
            action,
            LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog
        )
    };
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(SpecError::SeccompNotify);
    }
    for rule in profile.syscalls().iter().flatten() {
        if rule.action() == LinuxSeccompAction::ScmpActNotify {
            return Err(SpecError::SeccompNotify);
        }
        // Unknown names are skipped when the filter is made. In an allow list that denies them; in a deny list
        // it would let them through.
        if allows(profile.default_action()) && !allows(rule.action()) {
            for name in rule.names() {
                if ScmpSyscall::from_name(name).is_err() {
                    return Err(SpecError::UnknownSyscall { name: name.clone() });
                }
            }
        }
    }
    Ok(())
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
    linux.set_net_devices(None);
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

fn take_network_sysctl(linux: &mut Linux) -> Vec<(String, String)> {
    let (network, others): (HashMap<_, _>, HashMap<_, _>) = linux
        .sysctl()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .partition(|(key, _)| key.replace('/', ".").starts_with("net."));
    linux.set_sysctl((!others.is_empty()).then_some(others));
    let mut network: Vec<_> = network.into_iter().collect();
    network.sort();
    network
}

/// The agent's own directory of everything that is not a container's file system.
pub(crate) fn agent_dir() -> PathBuf {
    Path::new(GUEST_RUN_DIR).join("agent")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const ROOT: &str = "/run/sandbox/containers/a/rootfs";

    fn spec(change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut spec = json!({
            "ociVersion": "1.1.0",
            "root": {"path": "rootfs", "readonly": true},
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["sh"],
                "env": ["PATH=/bin"],
                "cwd": "/",
                "capabilities": {"bounding": ["CAP_KILL"]},
                "apparmorProfile": "default",
            },
            "hooks": {"prestart": [{"path": "/bin/hook"}]},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": "/kubepods/x",
                "namespaces": [
                    {"type": "pid", "path": "/proc/1/ns/pid"},
                    {"type": "network", "path": "/var/run/netns/x"},
                    {"type": "ipc"},
                ],
                "sysctl": {"net.ipv4.ping_group_range": "0 1", "kernel.shmmax": "1"},
            },
        });
        change(&mut spec);
        serde_json::to_vec(&spec).unwrap()
    }

    fn adapted(change: impl FnOnce(&mut Value)) -> Result<GuestSpec, SpecError> {
        let placement = Placement {
            root_path: ROOT,
            cgroups_path: "/sandbox/a",
            terminal: false,
            shared: &[],
        };
        adapt(&spec(change), &placement)
    }

    #[test]
    fn spec_of_a_host_becomes_one_for_the_guest() {
        let guest = adapted(|_| {}).unwrap();
        assert_eq!(guest.spec.root().as_ref().unwrap().path(), Path::new(ROOT));
        assert_eq!(guest.spec.root().as_ref().unwrap().readonly(), Some(true));
        assert!(guest.spec.hooks().is_none());
        let linux = guest.spec.linux().as_ref().unwrap();
        assert_eq!(
            linux.cgroups_path().as_deref(),
            Some(Path::new("/sandbox/a"))
        );
        assert_eq!(
            guest.network_sysctl,
            [("net.ipv4.ping_group_range".to_owned(), "0 1".to_owned())]
        );
        assert_eq!(linux.sysctl().as_ref().unwrap().len(), 1);
        let process = guest.spec.process().as_ref().unwrap();
        assert!(process.apparmor_profile().is_none());
        assert!(process.capabilities().is_none());
        assert!(guest.confinement.capabilities.is_some());
    }

    #[test]
    fn container_never_shares_the_agents_processes_or_mounts() {
        let guest = adapted(|spec| spec["linux"]["namespaces"] = json!([])).unwrap();
        let linux = guest.spec.linux().as_ref().unwrap();
        let namespaces = linux.namespaces().as_ref().unwrap();
        let types: Vec<_> = namespaces.iter().map(LinuxNamespace::typ).collect();
        assert_eq!(
            types,
            [
                LinuxNamespaceType::Pid,
                LinuxNamespaceType::Mount,
                LinuxNamespaceType::Cgroup
            ]
        );
    }

    #[test]
    fn namespace_path_of_the_host_becomes_a_new_namespace() {
        let guest = adapted(|_| {}).unwrap();
        let linux = guest.spec.linux().as_ref().unwrap();
        let namespaces = linux.namespaces().as_ref().unwrap();
        assert!(namespaces.iter().all(|ns| ns.path().is_none()));
        assert!(
            namespaces
                .iter()
                .all(|ns| ns.typ() != LinuxNamespaceType::Network)
        );
    }

    #[test]
    fn namespace_of_another_container_is_joined() {
        let placement = Placement {
            root_path: ROOT,
            cgroups_path: "/sandbox/a",
            terminal: false,
            shared: &[(LinuxNamespaceType::Pid, "/proc/7/ns/pid".into())],
        };
        let guest = adapt(&spec(|_| {}), &placement).unwrap();
        let linux = guest.spec.linux().as_ref().unwrap();
        let namespaces = linux.namespaces().clone().unwrap();
        let joined: Vec<_> = namespaces
            .iter()
            .filter_map(|ns| ns.path().clone())
            .collect();
        assert_eq!(joined, [Path::new("/proc/7/ns/pid")]);
        assert!(guest.shares_pids);
    }

    #[test]
    fn resources_are_for_the_agent_alone() {
        let memory = json!({"memory": {"limit": 1}, "devices": [{"allow": true, "access": "rwm"}]});
        let guest = adapted(|spec| spec["linux"]["resources"] = memory).unwrap();
        let linux = guest.spec.linux().as_ref().unwrap();
        assert!(linux.resources().is_none());
        assert_ne!(guest.limits, Limits::default());
        assert_eq!(guest.devices.len(), 1);
    }

    #[test]
    fn bind_of_a_host_path_is_refused_and_named() {
        for change in [
            json!({"destination": "/data", "type": "bind", "source": "/srv"}),
            json!({"destination": "/data", "source": "/srv", "options": ["rbind"]}),
            json!({"destination": "/data", "type": "bind", "source": "/run/sandbox/../../x"}),
        ] {
            let error = adapted(|spec| spec["mounts"] = json!([change])).unwrap_err();
            assert!(error.to_string().contains("/data"), "{error}");
        }
    }

    #[test]
    fn bind_of_a_share_is_taken() {
        let share =
            json!({"destination": "/data", "type": "bind", "source": "/run/sandbox/shares/1"});
        assert!(adapted(|spec| spec["mounts"] = json!([share])).is_ok());
    }

    #[test]
    fn deny_list_with_an_unknown_call_is_refused() {
        let profile = |default: &str, action: &str| json!({"defaultAction": default, "syscalls": [{"names": ["no_such_call"], "action": action}]});
        let with = |profile| adapted(|spec| spec["linux"]["seccomp"] = profile);
        assert!(matches!(
            with(profile("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO")),
            Err(SpecError::UnknownSyscall { .. })
        ));
        assert!(with(profile("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW")).is_ok());
        assert!(matches!(
            with(profile("SCMP_ACT_ERRNO", "SCMP_ACT_NOTIFY")),
            Err(SpecError::SeccompNotify)
        ));
    }

    #[test]
    fn home_that_is_absent_or_empty_is_left_to_the_executor() {
        for env in [json!(["PATH=/bin"]), json!(["HOME="])] {
            let guest = adapted(|spec| spec["process"]["env"] = env).unwrap();
            let process = guest.spec.process().as_ref().unwrap();
            assert_eq!(process.env().as_ref().unwrap()[0], HOME_UNKNOWN);
        }
        let guest = adapted(|spec| spec["process"]["env"] = json!(["HOME=/h"])).unwrap();
        let process = guest.spec.process().as_ref().unwrap();
        assert_eq!(process.env().as_ref().unwrap(), &["HOME=/h"]);
    }
}
