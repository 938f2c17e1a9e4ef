//! What of a specification means the host, and so cannot hold in a guest.
//!
//! | member | what happens |
//! | --- | --- |
//! | `linux.namespaces[].path` of type `network` | the pod's network, which is joined with its first container |
//! | `linux.namespaces[].path` of type `pid`, `ipc`, `uts` or `user` that is the pod's | shared with the pod's sandbox, in the guest |
//! | any other `linux.namespaces[].path` | refused |
//! | `linux.cgroupsPath` of the pod's first container | the pod's control group on the host |
//! | `process.apparmorProfile` that an engine adds by itself | dropped, which the log says: the guest's kernel has no AppArmor |
//! | `linux.resources.cpu.cpus`, `.mems` of one of a pod's containers | dropped from what the guest gets: they are where on the host the machine runs ([`super::places`]) |
//! | `network`, `pid` or `ipc` missing from `linux.namespaces` of a pod's sandbox | the log says that the pod has them not of the host |
//! | any other profile | the agent's to refuse |
//! | `linux.mountLabel`, `process.selinuxLabel` | dropped, which the log says: on a host with SELinux engines give every container one, and the guest's kernel has none |
//! | `hooks` | [`crate::hooks`] |

use serde_json::Value;

/// Something of the host's that the specification asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`linux.namespaces[{index}].path` is {path:?}: a {kind} namespace of the host cannot be joined from a virtual machine; leave the path out for one of the container's own"
)]
pub(crate) struct HostNamespaceError {
    index: usize,
    kind: String,
    path: String,
}

/// Whether an engine asks for this profile by itself, on hosts that have AppArmor.
fn is_default_profile(name: &str) -> bool {
    matches!(
        name,
        "docker-default" | "cri-containerd.apparmor.d" | "crio-default" | "nerdctl-default"
    ) || name.starts_with("containers-default-")
}

/// Drops the profile that nobody asked for from a `process` object.
pub(crate) fn drop_default_profile(process: &mut Value) {
    let name = process.get("apparmorProfile").and_then(Value::as_str);
    if let Some(name) = name.filter(|name| is_default_profile(name)) {
        tracing::info!(
            "the AppArmor profile {name:?}, which engines ask for by themselves, is dropped: the sandbox's kernel has no AppArmor"
        );
        if let Some(members) = process.as_object_mut() {
            members.remove("apparmorProfile");
        }
    }
}

/// Drops the labels of SELinux from an object: `mountLabel` from `linux`, `selinuxLabel` from `process`. Whoever asked for one cannot be
/// told from engines, which make one up for each container.
pub(crate) fn drop_labels(object: &mut Value) {
    let Some(members) = object.as_object_mut() else {
        return;
    };
    for member in ["mountLabel", "selinuxLabel"] {
        let dropped = members.remove(member);
        if let Some(label) = dropped.as_ref().and_then(Value::as_str)
            && !label.is_empty()
        {
            tracing::info!(
                "the SELinux label {label:?} is dropped: the sandbox's kernel has no SELinux"
            );
        }
    }
}

/// Namespaces in which a pod is together with its host, by what Kubernetes calls that.
const OF_THE_HOST: [(&str, &str, &str); 3] = [
    (
        "network",
        "hostNetwork",
        "it has a loopback device and no other network",
    ),
    ("pid", "hostPID", "it sees the virtual machine's processes"),
    (
        "ipc",
        "hostIPC",
        "it has the virtual machine's shared memory",
    ),
];

/// What the sandbox container of a pod asks to have of its host's, which a virtual machine cannot give: an engine leaves the namespace out
/// then. With what the pod has instead.
pub(crate) fn of_the_host(spec: &Value) -> Vec<(&'static str, &'static str)> {
    let listed = |kind: &str| {
        let namespaces = spec.pointer("/linux/namespaces").and_then(Value::as_array);
        let mut namespaces = namespaces.into_iter().flatten();
        namespaces.any(|namespace| namespace.get("type").and_then(Value::as_str) == Some(kind))
    };
    let missing = OF_THE_HOST.into_iter().filter(|(kind, ..)| !listed(kind));
    missing.map(|(_, name, instead)| (name, instead)).collect()
}

/// Drops the lists of processors and memory nodes from the limits of one container among others. They are of the host's, and in the
/// guest the agent could but give each of them the same first processors; the quotas hold.
pub(crate) fn drop_places(resources: &mut Value) {
    if let Some(cpu) = resources.get_mut("cpu").and_then(Value::as_object_mut) {
        cpu.remove("cpus");
        cpu.remove("mems");
    }
}

/// The namespaces that a container shares with its pod's sandbox, by their kind (OCI runtime spec, "Namespaces").
pub(crate) type Shared = Vec<&'static str>;

/// Kinds that the containers of a pod can share, with the name of their file in `/proc/<pid>/ns`.
const SHAREABLE: [(&str, &str); 4] = [
    ("pid", "pid"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("user", "user"),
];

/// By which paths the namespaces of a pod are known on the host, where none of them exists.
#[derive(Debug, Clone, Default)]
pub(crate) struct Namespaces {
    /// What the pod's sandbox was given: CRI-O makes the namespaces of a pod itself and names them to all of it.
    pinned: Vec<(&'static str, String)>,
    /// The process that the pod's sandbox is said to be: containerd names its `/proc/<pid>/ns`.
    pid: u32,
    what: Kind,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    /// Of one container, which has nobody to share with.
    #[default]
    Alone,
    /// Of a pod whose sandbox is being made: paths are those of the pod from now on.
    Beginning,
    /// Of a pod that has its sandbox.
    Begun,
}

impl Namespaces {
    /// Those of a pod that begins.
    pub(crate) fn of_pod() -> Self {
        Self {
            what: Kind::Beginning,
            ..Self::default()
        }
    }

    /// The sandbox runs, and is known as this process.
    pub(crate) fn begin(&mut self, pid: u32) {
        self.pid = pid;
        self.what = Kind::Begun;
    }

    /// Checks the namespaces of a specification. Returns those that are shared with the pod's sandbox.
    ///
    /// # Errors
    /// [`HostNamespaceError`] names the one that cannot be had.
    pub(crate) fn resolve(&mut self, spec: &Value) -> Result<Shared, HostNamespaceError> {
        let namespaces = spec
            .pointer("/linux/namespaces")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let mut shared = Vec::new();
        for (index, namespace) in namespaces.enumerate() {
            let text = |member| namespace.get(member).and_then(Value::as_str).unwrap_or("");
            let (kind, path) = (text("type"), text("path"));
            if path.is_empty() || kind == "network" {
                continue;
            }
            let shareable = SHAREABLE.into_iter().find(|(name, _)| *name == kind);
            match shareable {
                Some((kind, _)) if self.what == Kind::Beginning => {
                    self.pinned.push((kind, path.to_owned()));
                }
                Some((kind, file))
                    if self.what == Kind::Begun && self.is_ours(kind, file, path) =>
                {
                    shared.push(kind);
                }
                _ => {
                    return Err(HostNamespaceError {
                        index,
                        kind: kind.to_owned(),
                        path: path.to_owned(),
                    });
                }
            }
        }
        Ok(shared)
    }

    fn is_ours(&self, kind: &str, file: &str, path: &str) -> bool {
        path == format!("/proc/{}/ns/{file}", self.pid)
            || self.pinned.iter().any(|(k, p)| *k == kind && p == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn namespace_of_the_host_is_refused_by_its_field_except_the_network() {
        let spec = |kind: &str| json!({"linux": {"namespaces": [{"type": "mount"}, {"type": kind, "path": "/proc/1/ns/x"}]}});
        let mut namespaces = Namespaces::default();
        assert!(namespaces.resolve(&spec("network")).unwrap().is_empty());
        for kind in ["pid", "ipc", "uts", "user", "cgroup", "mount", "time"] {
            let error = namespaces.resolve(&spec(kind)).unwrap_err().to_string();
            assert!(error.starts_with("`linux.namespaces[1].path`"), "{error}");
            assert!(error.contains(kind), "{error}");
        }
    }

    fn joining(paths: &[(&str, &str)]) -> Value {
        let list: Vec<Value> = paths
            .iter()
            .map(|(kind, path)| json!({"type": kind, "path": path}))
            .collect();
        json!({"linux": {"namespaces": list}})
    }

    #[test]
    fn namespaces_of_the_pod_are_shared_as_each_engine_names_them() {
        let mut pod = Namespaces::of_pod();
        // CRI-O names paths to the sandbox already, containerd none.
        let own = pod
            .resolve(&joining(&[("ipc", "/var/run/ipcns/1")]))
            .unwrap();
        assert!(own.is_empty());
        pod.begin(7);
        for (kind, path) in [
            ("ipc", "/var/run/ipcns/1"),
            ("ipc", "/proc/7/ns/ipc"),
            ("uts", "/proc/7/ns/uts"),
            ("pid", "/proc/7/ns/pid"),
        ] {
            assert_eq!(pod.resolve(&joining(&[(kind, path)])).unwrap(), [kind]);
        }
        for (kind, path) in [
            ("ipc", "/proc/1/ns/ipc"),
            ("uts", "/proc/7/ns/ipc"),
            ("uts", "/var/run/ipcns/1"),
            ("mount", "/proc/7/ns/mnt"),
            ("cgroup", "/proc/7/ns/cgroup"),
        ] {
            assert!(
                pod.resolve(&joining(&[(kind, path)])).is_err(),
                "{kind} {path}"
            );
        }
    }

    #[test]
    fn what_a_pod_asks_for_of_its_host_is_told_by_its_name() {
        let of = |kinds: &[&str]| {
            let list: Vec<Value> = kinds.iter().map(|kind| json!({"type": kind})).collect();
            let told = of_the_host(&json!({"linux": {"namespaces": list}}));
            told.iter().map(|(name, _)| *name).collect::<Vec<_>>()
        };
        assert!(of(&["pid", "ipc", "uts", "network"]).is_empty());
        assert_eq!(of(&["pid", "ipc"]), ["hostNetwork"]);
        assert_eq!(of(&["network"]), ["hostPID", "hostIPC"]);
    }

    #[test]
    fn places_of_one_container_among_others_are_dropped_and_its_quota_stays() {
        let mut resources = json!({"cpu": {"cpus": "4-5", "mems": "0", "quota": 200_000}});
        drop_places(&mut resources);
        assert_eq!(resources, json!({"cpu": {"quota": 200_000}}));
        let mut none = json!({"memory": {"limit": 1}});
        drop_places(&mut none);
        assert_eq!(none, json!({"memory": {"limit": 1}}));
    }

    #[test]
    fn labels_are_dropped_and_nothing_else() {
        let mut process =
            json!({"selinuxLabel": "system_u:system_r:container_t:s0:c1,c2", "cwd": "/"});
        drop_labels(&mut process);
        assert_eq!(process, json!({"cwd": "/"}));
        let mut linux =
            json!({"mountLabel": "system_u:object_r:container_file_t:s0", "sysctl": {}});
        drop_labels(&mut linux);
        assert_eq!(linux, json!({"sysctl": {}}));
        let mut none = json!(null);
        drop_labels(&mut none);
        assert_eq!(none, json!(null));
    }

    #[test]
    fn only_profiles_that_engines_add_are_dropped() {
        for (name, dropped) in [
            ("docker-default", true),
            ("cri-containerd.apparmor.d", true),
            ("containers-default-0.57.4", true),
            ("mine", false),
            ("unconfined", false),
        ] {
            let mut process = json!({"apparmorProfile": name});
            drop_default_profile(&mut process);
            assert_eq!(process.get("apparmorProfile").is_none(), dropped, "{name}");
        }
    }
}
