//! Which pod a container belongs to, as its engine says it in the annotations.
//!
//! | engine | annotation of the kind | annotation of the pod |
//! | --- | --- | --- |
//! | containerd's CRI plugin | `io.kubernetes.cri.container-type` | `io.kubernetes.cri.sandbox-id` |
//! | CRI-O | `io.kubernetes.cri-o.ContainerType` | `io.kubernetes.cri-o.SandboxID` |
//!
//! The kind is `sandbox` (the pod's first container, which holds its namespaces and does nothing) or `container`.
//! `ctr`, `nerdctl`, Docker and `sandboxctl` set neither: their containers are pods of their own.

use std::collections::HashMap;
use std::path::Path;

use sandbox_protocol::bundle::SPEC_FILE;
use sandbox_types::{IdError, SandboxId};
use serde::Deserialize;

use super::{SpecError, parse, read_bounded};

/// Kind and pod, of containerd's CRI plugin.
const CONTAINERD: (&str, &str) = (
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri.sandbox-id",
);
/// Kind and pod, of CRI-O.
const CRI_O: (&str, &str) = (
    "io.kubernetes.cri-o.ContainerType",
    "io.kubernetes.cri-o.SandboxID",
);
/// Each engine that has pods. The first that says a kind is the container's.
const ENGINES: [(&str, &str); 2] = [CONTAINERD, CRI_O];

/// Whether CRI-O made a container of these annotations.
pub(crate) fn is_of_crio(annotations: Option<&HashMap<String, String>>) -> bool {
    annotations.is_some_and(|all| all.contains_key(CRI_O.0) && !all.contains_key(CONTAINERD.0))
}

/// What a container is in its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// All of it.
    Alone,
    /// The one that the pod begins and ends with.
    Sandbox,
    /// One of many, in the pod of this name.
    Member(SandboxId),
}

/// Annotations that contradict themselves.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RoleError {
    /// The kind is unknown.
    #[error("`annotations[{key:?}]` is {value:?}; it can be \"sandbox\" or \"container\"")]
    Kind {
        /// The annotation.
        key: &'static str,
        /// What it says.
        value: String,
    },
    /// A container of a pod, but of which?
    #[error("`annotations[{key:?}]` is missing; it names the pod of a container")]
    NoPod {
        /// The annotation.
        key: &'static str,
    },
    /// The pod's name is none.
    #[error("`annotations[{key:?}]` does not name a pod")]
    Pod {
        /// The annotation.
        key: &'static str,
        /// Why not.
        #[source]
        source: IdError,
    },
}

impl Role {
    /// By the annotations of a specification.
    ///
    /// # Errors
    /// [`RoleError`] names the annotation.
    pub(crate) fn of(annotations: Option<&HashMap<String, String>>) -> Result<Self, RoleError> {
        let get = |key: &str| annotations.and_then(|all| all.get(key));
        for (kind, pod) in ENGINES {
            match get(kind).map(String::as_str) {
                None => {}
                Some("sandbox") => return Ok(Self::Sandbox),
                Some("container") => {
                    let name = get(pod).ok_or(RoleError::NoPod { key: pod })?;
                    let id = SandboxId::new(name.as_str())
                        .map_err(|source| RoleError::Pod { key: pod, source })?;
                    return Ok(Self::Member(id));
                }
                Some(value) => {
                    return Err(RoleError::Kind {
                        key: kind,
                        value: value.to_owned(),
                    });
                }
            }
        }
        Ok(Self::Alone)
    }

    /// By the specification in a bundle; a bundle that has none (yet) is that of a pod.
    ///
    /// # Errors
    /// [`SpecError`] names the field.
    pub(crate) fn of_bundle(bundle: &Path) -> Result<Self, SpecError> {
        #[derive(Deserialize)]
        struct Annotated {
            annotations: Option<HashMap<String, String>>,
        }
        let path = bundle.join(SPEC_FILE);
        if !path.exists() {
            return Ok(Self::Alone);
        }
        let spec: Annotated = parse(&read_bounded(&path)?, &path.display().to_string())?;
        Ok(Self::of(spec.annotations.as_ref())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(annotations: &[(&str, &str)]) -> Result<Role, RoleError> {
        let all = annotations
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()));
        Role::of(Some(&all.collect()))
    }

    #[test]
    fn role_is_told_by_the_annotations_of_each_engine() {
        let member = || Role::Member(SandboxId::new("pod1").unwrap());
        for (kind, pod) in ENGINES {
            // CRI-O and containerd name the pod in its sandbox too.
            assert_eq!(
                of(&[(kind, "sandbox"), (pod, "pod1")]).unwrap(),
                Role::Sandbox
            );
            assert_eq!(of(&[(kind, "container"), (pod, "pod1")]).unwrap(), member());
        }
        assert_eq!(of(&[]).unwrap(), Role::Alone);
        assert_eq!(
            of(&[("io.kubernetes.cri.sandbox-id", "x")]).unwrap(),
            Role::Alone
        );
        assert_eq!(Role::of(None).unwrap(), Role::Alone);
    }

    #[test]
    fn annotations_that_contradict_themselves_are_named() {
        let [(kind, pod), _] = ENGINES;
        for (annotations, named) in [
            (vec![(kind, "pause")], kind),
            (vec![(kind, "container")], pod),
            (vec![(kind, "container"), (pod, "../x")], pod),
        ] {
            let error = of(&annotations).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn bundle_without_a_specification_is_a_pod_of_its_own() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(Role::of_bundle(bundle.path()).unwrap(), Role::Alone);
        let config = bundle.path().join("config.json");
        std::fs::write(
            &config,
            r#"{"annotations":{"io.kubernetes.cri.container-type":"sandbox"}}"#,
        )
        .unwrap();
        assert_eq!(Role::of_bundle(bundle.path()).unwrap(), Role::Sandbox);
        std::fs::write(&config, r#"{"annotations":{"a":7}}"#).unwrap();
        let error = Role::of_bundle(bundle.path()).unwrap_err().to_string();
        assert!(error.contains("annotations.a"), "{error}");
    }
}
