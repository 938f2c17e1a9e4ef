//! The bundle's `config.json`: read within bounds, and the size of the machine that it asks for.

pub(crate) mod binds;
pub(crate) mod check;
mod devices;
pub(crate) mod disks;
pub(crate) mod memory_volumes;
mod objects;
pub(crate) mod places;
pub(crate) mod pod_config;
pub(crate) mod role;
pub(crate) mod size;
pub(crate) mod update;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount, Process, Spec};
use sandbox_protocol::bundle::SPEC_FILE;
use sandbox_protocol::extensions::COPY_OPTION;
use sandbox_runtime::Config;
use sandbox_runtime::cgroup::{CgroupPath, CgroupPathError, Places};
use sandbox_runtime::network::PodNetwork;
use sandbox_types::{MachineSizeError, MemMib, VcpuCount};
use serde_json::Value;

use check::{HostNamespaceError, Namespaces, Shared};
use devices::DeviceError;
use places::PlaceError;
use role::{Role, RoleError};
use size::{Demand, PodLimitError};
use update::UpdateError;

/// The largest `config.json`, in bytes: it travels in one ttrpc message.
const MAX_SPEC_BYTES: u64 = 2 * 1024 * 1024;

/// Where a container is told of the servers that its names come from (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why a specification cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is too large.
    #[error("{} is larger than {MAX_SPEC_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is not a specification.
    #[error("{what} is not valid at `{field}`")]
    Malformed {
        /// The file, or the exec's process.
        what: String,
        /// The path of the field.
        field: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// An object is written as an array.
    #[error("{what} is not valid at `{field}`: it is an array, and has to be an object")]
    NotObject {
        /// The file, or the exec's process.
        what: String,
        /// The path of the field.
        field: String,
    },
    /// It has no process to run.
    #[error("{} has no `process.args`: there is nothing to run", path.display())]
    NoProcess {
        /// The file.
        path: PathBuf,
    },
    /// It cannot run where it is to.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It wants to join a namespace of the host.
    #[error(transparent)]
    HostNamespace(#[from] HostNamespaceError),
    /// It wants a device of the host.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It wants a control group where none can be.
    #[error(transparent)]
    Cgroup(#[from] CgroupPathError),
    /// It does not say which pod it is of.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// What it says of the pod's size is no number.
    #[error(transparent)]
    PodLimit(#[from] PodLimitError),
    /// New limits that the machine cannot give.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// No machine is that big or small.
    #[error("the limits in `linux.resources` cannot size a machine")]
    Size(#[from] MachineSizeError),
}

/// The document, and what it says.
fn parse_object<T>(bytes: &[u8], what: &str) -> Result<(T, Value), SpecError>
where
    T: serde::de::DeserializeOwned + serde::Serialize,
{
    let read: T = parse(bytes, what)?;
    let document: Value = parse(bytes, what)?;
    match objects::misplaced(&read, &document) {
        None => Ok((read, document)),
        Some(field) => Err(SpecError::NotObject {
            what: what.to_owned(),
            field,
        }),
    }
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, SpecError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| SpecError::Malformed {
        what: what.to_owned(),
        field: error.path().to_string(),
        source: error.into_inner(),
    })
}

/// A file of JSON that is not too large.
fn read_bounded(path: &Path) -> Result<Vec<u8>, SpecError> {
    let mut json = Vec::new();
    let read = |source| SpecError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(read)?;
    file.take(MAX_SPEC_BYTES + 1)
        .read_to_end(&mut json)
        .map_err(read)?;
    if json.len() as u64 > MAX_SPEC_BYTES {
        return Err(SpecError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(json)
}

/// The specification of a bundle: as it is on disk, for the agent, and parsed.
pub(crate) struct BundleSpec {
    /// `config.json` as it is, to be changed and passed on.
    pub(crate) value: Value,
    /// What it says.
    pub(crate) spec: Spec,
}

impl BundleSpec {
    /// Reads `config.json` of a bundle.
    ///
    /// # Errors
    /// [`SpecError`] names the file and the field.
    pub(crate) fn read(bundle: &Path) -> Result<Self, SpecError> {
        let path = bundle.join(SPEC_FILE);
        Self::from_json(read_bounded(&path)?, &path)
    }

    /// A specification that was read from `path`.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub(crate) fn from_json(json: Vec<u8>, path: &Path) -> Result<Self, SpecError> {
        let name = path.display().to_string();
        let (spec, value): (Spec, Value) = parse_object(&json, &name)?;
        let has_arguments = spec
            .process()
            .as_ref()
            .and_then(|process| process.args().as_ref())
            .is_some_and(|arguments| !arguments.is_empty());
        if !has_arguments {
            return Err(SpecError::NoProcess {
                path: path.to_owned(),
            });
        }
        Ok(Self { value, spec })
    }

    /// The specification for the agent.
    ///
    /// # Errors
    /// [`SpecError::Malformed`], which does not happen: it was read from JSON.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>, SpecError> {
        serde_json::to_vec(&self.value).map_err(|source| SpecError::Malformed {
            what: "the specification".to_owned(),
            field: String::new(),
            source,
        })
    }

    fn resources(&self) -> Option<&LinuxResources> {
        self.spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.resources().as_ref())
    }

    /// What the container is in its pod.
    ///
    /// # Errors
    /// [`SpecError`] names the annotation.
    pub(crate) fn role(&self) -> Result<Role, SpecError> {
        Ok(Role::of(self.spec.annotations().as_ref())?)
    }

    /// The size of the machine for the container, or for the pod of which it is the sandbox ([`size`]).
    ///
    /// # Errors
    /// When no machine has that size, the list of processors is none, or an annotation is no number.
    pub(crate) fn machine(
        &self,
        role: &Role,
        config: &Config,
    ) -> Result<(MemMib, VcpuCount), SpecError> {
        let of_pod;
        let resources = if *role == Role::Sandbox {
            of_pod = size::of_pod(self.spec.annotations().as_ref())?;
            Some(&of_pod)
        } else {
            self.resources()
        };
        let listed = places::of(resources)?.cpus;
        let listed = listed.map(|list| list.count().into());
        Ok((
            size::memory(resources, config)?,
            size::vcpus(resources, listed, config)?,
        ))
    }

    /// How soon its processes are to be killed when the host runs out of memory (`process.oomScoreAdj`).
    pub(crate) fn oom_score(&self) -> Option<i32> {
        let process = self.spec.process().as_ref();
        process.and_then(|process| process.oom_score_adj())
    }

    /// Where on the host the container is to run.
    ///
    /// # Errors
    /// [`SpecError::Place`] unless the host has all of it.
    pub(crate) fn places(&self) -> Result<Places, SpecError> {
        let places = places::of(self.resources())?;
        // Most name nothing: the host is not looked at for them.
        if places != Places::default() {
            places::check(&places, &Places::of_host())?;
        }
        Ok(places)
    }

    /// What the container may use.
    pub(crate) fn demand(&self) -> Demand {
        Demand::of(self.resources())
    }

    /// The root on the host, where no mounts say what it is (OCI runtime spec, "Root": relative to the bundle).
    pub(crate) fn root(&self, bundle: &Path) -> PathBuf {
        let root = self.spec.root().as_ref().map(|root| root.path().as_path());
        bundle.join(root.unwrap_or(Path::new("rootfs")))
    }

    /// The network namespace on the host: the one that the caller made for the pod, or one that it wants to fill.
    pub(crate) fn network(&self) -> Option<PodNetwork> {
        let namespaces = self.spec.linux().as_ref()?.namespaces().as_ref()?;
        let of_kind = |namespace: &&LinuxNamespace| namespace.typ() == LinuxNamespaceType::Network;
        match namespaces.iter().find(of_kind)?.path() {
            Some(path) if !path.as_os_str().is_empty() => Some(PodNetwork::At(path.clone())),
            _ => self.is_filled_late().then_some(PodNetwork::New),
        }
    }

    /// Whether the caller looks for the new network namespace of the container's process, to put a network into it. None says
    /// so: nerdctl does it in a hook; Docker between create and start, and gives the container the host's file with the
    /// servers that its names come from. `ctr` has neither, and the container no network.
    fn is_filled_late(&self) -> bool {
        let hooks = self.spec.hooks().as_ref();
        let has_hooks = hooks.is_some_and(|hooks| {
            let lists = [hooks.prestart(), hooks.create_runtime()];
            lists.into_iter().flatten().any(|list| !list.is_empty())
        });
        let mounts = self.spec.mounts().iter().flatten();
        let is_resolv_conf = |mount: &Mount| {
            let options = mount.options().iter().flatten();
            mount.destination() == Path::new(RESOLV_CONF)
                && mount.typ().as_deref() == Some("bind")
                && !options.into_iter().any(|option| option == COPY_OPTION)
        };
        has_hooks || mounts.into_iter().any(is_resolv_conf)
    }

    /// Where the pod's control group on the host is to be, when that is said.
    ///
    /// # Errors
    /// [`SpecError::Cgroup`].
    pub(crate) fn cgroup(&self) -> Result<Option<CgroupPath>, SpecError> {
        let linux = self.spec.linux().as_ref();
        let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
        match path.map(Path::to_string_lossy) {
            None => Ok(None),
            Some(text) if text.is_empty() => Ok(None),
            Some(text) => Ok(Some(CgroupPath::parse(&text)?)),
        }
    }

    /// Takes out what cannot hold for one container among others of a pod.
    pub(crate) fn adapt_to_pod(&mut self) {
        if let Some(resources) = self.value.pointer_mut("/linux/resources") {
            check::drop_places(resources);
        }
    }

    /// Takes out, or refuses, what means the host ([`check`], [`devices`]). Returns the namespaces of the pod that it joins.
    ///
    /// # Errors
    /// [`SpecError`] names the field.
    pub(crate) fn adapt(&mut self, namespaces: &mut Namespaces) -> Result<Shared, SpecError> {
        let shared = namespaces.resolve(&self.value)?;
        devices::check(&mut self.value)?;
        if let Some(process) = self.value.get_mut("process") {
            check::drop_default_profile(process);
            check::drop_labels(process);
        }
        if let Some(linux) = self.value.get_mut("linux") {
            check::drop_labels(linux);
        }
        Ok(shared)
    }
}

/// Checks the process of an exec, and sets its terminal as the call says.
///
/// # Errors
/// [`SpecError::Malformed`] names the field.
pub(crate) fn exec_process(json: &[u8], terminal: bool) -> Result<Vec<u8>, SpecError> {
    let what = "the exec's process";
    let (_, mut process): (Process, Value) = parse_object(json, what)?;
    check::drop_default_profile(&mut process);
    check::drop_labels(&mut process);
    process["terminal"] = terminal.into();
    serde_json::to_vec(&process).map_err(|source| SpecError::Malformed {
        what: what.to_owned(),
        field: "process".to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(json: &str) -> Result<BundleSpec, SpecError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), json).unwrap();
        BundleSpec::read(folder.path())
    }

    #[test]
    fn malformed_spec_is_refused_with_the_field() {
        let error = bundle(
            r#"{"ociVersion":"1.0.2","process":{"args":7,"cwd":"/","user":{"uid":0,"gid":0}}}"#,
        )
        .err()
        .unwrap();
        assert!(error.to_string().contains("`process.args`"), "{error}");
        let error = bundle(r#"{"ociVersion":"1.0.2","root":{"path":"r"}}"#)
            .err()
            .unwrap();
        assert!(matches!(error, SpecError::NoProcess { .. }), "{error}");
    }

    #[test]
    fn array_for_an_object_is_refused_with_the_field() {
        let error = bundle(
            r#"{"ociVersion":"1.0.2","root":{"path":"r"},"mounts":[["/d","bind","/etc",["bind"],null,null]],
            "process":{"args":["a"],"cwd":"/","user":{"uid":0,"gid":0}}}"#,
        )
        .err()
        .unwrap();
        assert!(error.to_string().contains("`mounts[0]`"), "{error}");
        let process = br#"[false,null,{"uid":0,"gid":0},["sh"],null,null,"/"]"#;
        assert!(exec_process(process, true).is_err());
    }

    #[test]
    fn control_group_is_the_hosts_where_one_is_named() {
        let of = |linux: &str| {
            let json = format!(
                r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}},"linux":{linux},
                "process":{{"args":["a"],"cwd":"/","user":{{"uid":0,"gid":0}}}}}}"#
            );
            bundle(&json).unwrap().cgroup()
        };
        assert_eq!(of("{}").unwrap(), None);
        assert_eq!(of(r#"{"cgroupsPath":""}"#).unwrap(), None);
        let path = of(r#"{"cgroupsPath":"/default/c1"}"#).unwrap().unwrap();
        assert_eq!(path.to_string(), "/default/c1");
        assert!(of(r#"{"cgroupsPath":"/../c1"}"#).is_err());
    }

    fn with(more: &str) -> BundleSpec {
        let json = format!(
            r#"{{"ociVersion":"1.0.2",{more},"process":{{"args":["a"],"cwd":"/","user":{{"uid":0,"gid":0}}}}}}"#
        );
        bundle(&json).unwrap()
    }

    #[test]
    fn network_namespace_is_the_callers_or_a_new_one_for_who_fills_it() {
        let new = r#""linux":{"namespaces":[{"type":"network"}]}"#;
        let resolv_conf = |options: &str| {
            format!(
                r#"{new},"mounts":[{{"destination":"/etc/resolv.conf","type":"bind","source":"/f","options":[{options}]}}]"#
            )
        };
        let network = |more: &str| with(more).network();
        assert_eq!(
            network(r#""linux":{"namespaces":[{"type":"mount"}]}"#),
            None
        );
        assert_eq!(
            network(r#""linux":{"namespaces":[{"type":"network","path":"/run/netns/a"}]}"#),
            Some(PodNetwork::At("/run/netns/a".into()))
        );
        assert_eq!(network(new), None);
        assert_eq!(network(&resolv_conf(r#""rbind""#)), Some(PodNetwork::New));
        assert_eq!(network(&resolv_conf(r#""x-sandbox.copy""#)), None);
        for (kind, wanted) in [
            ("createRuntime", Some(PodNetwork::New)),
            ("prestart", Some(PodNetwork::New)),
            ("poststop", None),
        ] {
            let hooks = format!(r#"{new},"hooks":{{"{kind}":[{{"path":"/bin/true"}}]}}"#);
            assert_eq!(network(&hooks), wanted, "{kind}");
        }
    }

    #[test]
    fn root_is_where_the_specification_says() {
        let root =
            |text: &str| with(&format!(r#""root":{{"path":"{text}"}}"#)).root(Path::new("/b"));
        assert_eq!(root("rootfs"), Path::new("/b/rootfs"));
        assert_eq!(root("/srv/merged"), Path::new("/srv/merged"));
        assert_eq!(
            with(r#""hostname":"a""#).root(Path::new("/b")),
            Path::new("/b/rootfs")
        );
    }

    #[test]
    fn labels_of_a_host_with_selinux_do_not_reach_the_agent() {
        let mut spec =
            with(r#""linux":{"mountLabel":"u:object_r:f:s0","namespaces":[{"type":"pid"}]}"#);
        spec.value["process"]["selinuxLabel"] = "u:r:t:s0".into();
        spec.adapt(&mut Namespaces::default()).unwrap();
        let sent = String::from_utf8(spec.to_json().unwrap()).unwrap();
        assert!(!sent.contains("Label"), "{sent}");
    }

    #[test]
    fn exec_keeps_what_it_says_and_gets_the_calls_terminal() {
        let json = br#"{"args":["sh"],"cwd":"/x","user":{"uid":7,"gid":8},"terminal":false,"noNewPrivileges":true,
            "apparmorProfile":"docker-default","selinuxLabel":"u:r:t:s0","capabilities":{"bounding":["CAP_KILL"]}}"#;
        let process: Value = serde_json::from_slice(&exec_process(json, true).unwrap()).unwrap();
        assert_eq!(
            process,
            serde_json::json!({"args":["sh"],"cwd":"/x","user":{"uid":7,"gid":8},"terminal":true,"noNewPrivileges":true,
                "capabilities":{"bounding":["CAP_KILL"]}})
        );
    }
}
