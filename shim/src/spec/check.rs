//! What of a specification means the host, and so cannot hold in a guest.
//!
//! | member | what happens |
//! | --- | --- |
//! | `linux.namespaces[].path` of type `network` | the pod's network, which is joined |
//! | `linux.namespaces[].path` of any other type | refused |
//! | `process.apparmorProfile` that an engine adds by itself | dropped, which the log says: the guest's kernel has no AppArmor |
//! | any other profile or label | the agent's to refuse |
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

/// Checks the namespaces of a specification.
///
/// # Errors
/// [`HostNamespaceError`] names the one that cannot be had.
pub(crate) fn namespaces(spec: &Value) -> Result<(), HostNamespaceError> {
    let namespaces = spec
        .pointer("/linux/namespaces")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    for (index, namespace) in namespaces.enumerate() {
        let text = |member| namespace.get(member).and_then(Value::as_str).unwrap_or("");
        match (text("type"), text("path")) {
            (_, "") | ("network", _) => {}
            (kind, path) => {
                return Err(HostNamespaceError {
                    index,
                    kind: kind.to_owned(),
                    path: path.to_owned(),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn namespace_of_the_host_is_refused_by_its_field_except_the_network() {
        let spec = |kind: &str| json!({"linux": {"namespaces": [{"type": "mount"}, {"type": kind, "path": "/proc/1/ns/x"}]}});
        namespaces(&spec("network")).unwrap();
        for kind in ["pid", "ipc", "uts", "user", "cgroup", "mount", "time"] {
            let error = namespaces(&spec(kind)).unwrap_err().to_string();
            assert!(error.starts_with("`linux.namespaces[1].path`"), "{error}");
            assert!(error.contains(kind), "{error}");
        }
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
