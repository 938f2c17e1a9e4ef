//! What the CRI plugin says of a pod that is made through the sandbox service: `runtime.v1.PodSandboxConfig`, in
//! `CreateSandboxRequest.options`.
//!
//! With its own pods (`sandboxer = "podsandbox"`) containerd makes a specification of the sandbox container from it, and files
//! that it mounts into every container. Here that is left to the shim:
//!
//! | member | becomes |
//! | --- | --- |
//! | `linux.resources` | the annotations by which a pod's machine is sized ([`super::size`]) |
//! | `linux.cgroup_parent` | `linux.cgroupsPath` of the holder: the pod's control group on the host |
//! | `linux.sysctls` | `linux.sysctl` of the holder, and containerd's two defaults for pods with a network |
//! | `annotations` | those that may change the pod's machine, as far as the configuration allows |
//! | `hostname` | the holder's, and `/etc/hostname` |
//! | `dns_config` | `/etc/resolv.conf`; the host's where there is none |
//!
//! `/etc/hosts` has localhost only, not the host's names. The files are in the sandbox's bundle; every container that has no mount
//! there gets a copy of its own.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use sandbox_protocol::extensions::COPY_OPTION;
use sandbox_runtime::config::ANNOTATION_PREFIX;
use serde_json::{Value, json};

use super::size;

sandbox_protocol::generated! {
    mod messages = "pod_config.rs";
}

use messages::{LinuxContainerResources, PodSandboxConfig};

/// What the options' type ends with.
const OPTIONS_TYPE: &str = "runtime.v1.PodSandboxConfig";
/// `NamespaceMode.NODE`.
const OF_THE_NODE: i32 = 2;

/// The files, in the bundle and in a container.
const FILES: [(&str, &str); 3] = [
    ("hostname", "/etc/hostname"),
    ("hosts", "/etc/hosts"),
    ("resolv.conf", "/etc/resolv.conf"),
];
const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
/// The host's, for pods that say nothing of DNS.
const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// What containerd sets where a pod has a network of its own (its `enable_unprivileged_ports` and `enable_unprivileged_icmp`, which
/// are on by default since 2.0).
const NETWORK_SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// Options that are no pod's.
#[derive(Debug, thiserror::Error)]
#[error("`options` is no {OPTIONS_TYPE}")]
pub(crate) struct PodConfigError(#[source] protobuf::Error);

/// A pod, as the CRI plugin was asked for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodConfig(PodSandboxConfig);

impl PodConfig {
    /// The pod that the options describe; `None` when they are another client's.
    ///
    /// # Errors
    /// [`PodConfigError`] when they say that they do, and do not.
    pub(crate) fn of_options(options: Option<&Any>) -> Result<Option<Self>, PodConfigError> {
        let is_pod = |any: &&Any| any.type_url.rsplit('/').next() == Some(OPTIONS_TYPE);
        options
            .filter(is_pod)
            .map(|any| PodSandboxConfig::parse_from_bytes(&any.value).map(Self))
            .transpose()
            .map_err(PodConfigError)
    }

    /// The annotations of the holder: those that size its machine, and those that change it.
    pub(crate) fn annotations(&self) -> impl Iterator<Item = (String, String)> {
        let limits = self.0.linux.resources.as_ref().map(limits);
        let overrides = self.0.annotations.iter();
        let overrides = overrides.filter(|(name, _)| name.starts_with(ANNOTATION_PREFIX));
        let overrides = overrides.map(|(name, value)| (name.clone(), value.clone()));
        limits.into_iter().flatten().chain(overrides)
    }

    /// Puts what it says into the holder's specification; the sandbox is called `id`.
    pub(crate) fn apply(&self, id: &str, spec: &mut Value) {
        let config = &self.0;
        if !config.hostname.is_empty() {
            spec["hostname"] = config.hostname.as_str().into();
        }
        let parent = config.linux.cgroup_parent.as_str();
        if !parent.is_empty() {
            spec["linux"]["cgroupsPath"] = cgroups_path(parent, id).into();
        }
        let mut sysctls: HashMap<&str, &str> = HashMap::new();
        let options = &config.linux.security_context.namespace_options;
        if options.network != OF_THE_NODE {
            sysctls.extend(NETWORK_SYSCTLS);
        }
        let own = config.linux.sysctls.iter();
        sysctls.extend(own.map(|(name, value)| (name.as_str(), value.as_str())));
        spec["linux"]["sysctl"] = json!(sysctls);
    }

    /// Writes the files of the pod's containers into the sandbox's bundle.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn write_files(&self, bundle: &Path) -> io::Result<()> {
        let resolv_conf = match self.0.dns_config.as_ref() {
            Some(_) => self.resolv_conf().into_bytes(),
            // A host without one has a pod without one.
            None => fs::read(HOST_RESOLV_CONF).unwrap_or_default(),
        };
        let hostname = match self.0.hostname.as_str() {
            "" => String::new(),
            name => format!("{name}\n"),
        };
        let contents = [hostname.as_bytes(), HOSTS.as_bytes(), &resolv_conf];
        for ((name, _), content) in FILES.into_iter().zip(contents) {
            if !content.is_empty() {
                fs::write(bundle.join(name), content)?;
            }
        }
        Ok(())
    }

    /// resolv.conf(5).
    fn resolv_conf(&self) -> String {
        let dns = &self.0.dns_config;
        let servers = dns
            .servers
            .iter()
            .map(|server| ("nameserver", server.clone()));
        let joined = |words: &[String]| (!words.is_empty()).then(|| words.join(" "));
        let searches = joined(&dns.searches).map(|all| ("search", all));
        let options = joined(&dns.options).map(|all| ("options", all));
        let lines = searches.into_iter().chain(servers).chain(options);
        lines
            .map(|(word, rest)| format!("{word} {rest}\n"))
            .collect()
    }
}

fn limits(resources: &LinuxContainerResources) -> [(String, String); 3] {
    [
        (size::POD_MEMORY, resources.memory_limit_in_bytes),
        (size::POD_QUOTA, resources.cpu_quota),
        (size::POD_PERIOD, resources.cpu_period),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_string()))
}

/// Below a slice of systemd's it is a scope, by runc's name for one; else a folder of the parent.
fn cgroups_path(parent: &str, id: &str) -> String {
    match parent.rsplit('/').next() {
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}"),
        _ => format!("{}/{id}", parent.trim_end_matches('/')),
    }
}

/// Gives a container the files that are in its sandbox's `bundle`, where it has nothing mounted.
pub(crate) fn mount_files(spec: &mut Value, bundle: &Path) {
    let mode = match spec["root"]["readonly"].as_bool() {
        Some(true) => "ro",
        _ => "rw",
    };
    for (name, destination) in FILES {
        let source = bundle.join(name);
        if source.is_file() && !has_mount(spec, destination) {
            add_mount(spec, destination, &source, &["rbind", mode, COPY_OPTION]);
        }
    }
}

/// Whether something is mounted there in a container.
pub(crate) fn has_mount(spec: &Value, destination: &str) -> bool {
    let mounts = spec["mounts"].as_array();
    mounts
        .into_iter()
        .flatten()
        .any(|mount| mount["destination"] == destination)
}

/// Adds a bind mount.
pub(crate) fn add_mount(spec: &mut Value, destination: &str, source: &Path, options: &[&str]) {
    let mount =
        json!({"destination": destination, "type": "bind", "source": source, "options": options});
    match spec["mounts"].as_array_mut() {
        Some(mounts) => mounts.push(mount),
        None => spec["mounts"] = json!([mount]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use messages::{DNSConfig, LinuxPodSandboxConfig};
    use protobuf::MessageField;

    fn config() -> PodSandboxConfig {
        PodSandboxConfig {
            hostname: "web".to_owned(),
            annotations: [
                ("dev.sandbox.config.vcpus".to_owned(), "2".to_owned()),
                ("dev.sandbox.program".to_owned(), "init".to_owned()),
            ]
            .into(),
            dns_config: MessageField::some(DNSConfig {
                servers: vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()],
                searches: vec!["a.svc".to_owned(), "svc".to_owned()],
                options: vec!["ndots:5".to_owned()],
                ..Default::default()
            }),
            linux: MessageField::some(LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/pod1".to_owned(),
                sysctls: [("net.ipv4.ping_group_range".to_owned(), "1 0".to_owned())].into(),
                resources: MessageField::some(LinuxContainerResources {
                    memory_limit_in_bytes: 1 << 28,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn options_of_a_pod_are_read_and_those_of_others_left() {
        let of = |type_url: &str, value: Vec<u8>| {
            let any = Any {
                type_url: type_url.to_owned(),
                value,
                ..Default::default()
            };
            PodConfig::of_options(Some(&any))
        };
        let bytes = config().write_to_bytes().unwrap();
        for prefix in ["", "type.googleapis.com/"] {
            let read = of(&format!("{prefix}{OPTIONS_TYPE}"), bytes.clone());
            assert_eq!(read.unwrap().unwrap().0, config());
        }
        assert!(of("other.Options", vec![0xff]).unwrap().is_none());
        assert!(of(OPTIONS_TYPE, vec![0xff]).is_err());
        assert!(PodConfig::of_options(None).unwrap().is_none());
    }

    #[test]
    fn pods_limits_and_overrides_become_annotations_and_nothing_else_does() {
        let all: HashMap<_, _> = PodConfig(config()).annotations().collect();
        assert_eq!(all[size::POD_MEMORY], (1 << 28).to_string());
        assert_eq!(all["dev.sandbox.config.vcpus"], "2");
        assert_eq!(all.len(), 4, "{all:?}");
        assert_eq!(PodConfig::default().annotations().count(), 0);
    }

    #[test]
    fn holder_gets_name_group_and_sysctls() {
        let mut spec = json!({"linux": {}});
        let mut config = config();
        PodConfig(config.clone()).apply("p1", &mut spec);
        assert_eq!(spec["hostname"], "web");
        assert_eq!(spec["linux"]["cgroupsPath"], "/kubepods/pod1/p1");
        let sysctls = &spec["linux"]["sysctl"];
        assert_eq!(sysctls["net.ipv4.ping_group_range"], "1 0");
        assert_eq!(sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
        let linux = config.linux.mut_or_insert_default();
        linux.cgroup_parent = "/a.slice/a-b.slice".to_owned();
        linux.sysctls.clear();
        let context = linux.security_context.mut_or_insert_default();
        context.namespace_options.mut_or_insert_default().network = OF_THE_NODE;
        PodConfig(config).apply("p1", &mut spec);
        assert_eq!(spec["linux"]["cgroupsPath"], "a-b.slice:cri-containerd:p1");
        assert_eq!(spec["linux"]["sysctl"], json!({}));
    }

    #[test]
    fn files_are_mounted_where_nothing_else_is() {
        let bundle = tempfile::tempdir().unwrap();
        PodConfig(config()).write_files(bundle.path()).unwrap();
        let read = |name: &str| fs::read_to_string(bundle.path().join(name)).unwrap();
        assert_eq!(read("hostname"), "web\n");
        assert!(read("hosts").starts_with("127.0.0.1\tlocalhost\n"));
        assert_eq!(
            read("resolv.conf"),
            "search a.svc svc\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n"
        );
        let mut spec =
            json!({"root": {"readonly": true}, "mounts": [{"destination": "/etc/hosts"}]});
        mount_files(&mut spec, bundle.path());
        let mounts = spec["mounts"].as_array().unwrap();
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[1]["destination"], "/etc/hostname");
        assert_eq!(mounts[2]["options"], json!(["rbind", "ro", COPY_OPTION]));
        let mut spec = json!({});
        mount_files(&mut spec, bundle.path());
        assert_eq!(spec["mounts"].as_array().unwrap().len(), 3);
    }
}
