//! What a container was made with, in docker's words (`ContainerJSON` of its engine API), as `settings.json` in its
//! folder. `inspect` shows it; `stop` asks it for the signal; nothing in it changes but by `update`.

use std::collections::BTreeMap;
use std::path::Path;

use sandbox_runtime::config::Config as RuntimeConfig;
use sandbox_types::MachineSizeError;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::network::NetworkPlan;
use crate::spec::{self, Request, SpecError};
use crate::state_file::{self, StateFileError};
use crate::values::CPU_PERIOD_US;
use crate::values::mounts::Source;

/// Its name in the container's folder.
const FILE: &str = "settings.json";

/// Why the settings cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error(transparent)]
    File(#[from] StateFileError),
    #[error("the machine cannot have the size that the configuration asks for")]
    Size(#[from] MachineSizeError),
    #[error(transparent)]
    Spec(#[from] SpecError),
}

/// Everything that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Settings {
    pub(crate) config: Config,
    pub(crate) host_config: HostConfig,
    pub(crate) mounts: Vec<MountPoint>,
    /// The names of those of its volumes that nobody named.
    #[serde(default)]
    pub(crate) anonymous_volumes: Vec<String>,
    pub(crate) sandbox: Machine,
}

/// The container as a program sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Config {
    pub(crate) hostname: String,
    pub(crate) domainname: String,
    pub(crate) user: String,
    pub(crate) attach_stdin: bool,
    pub(crate) attach_stdout: bool,
    pub(crate) attach_stderr: bool,
    pub(crate) exposed_ports: BTreeMap<String, Value>,
    pub(crate) tty: bool,
    pub(crate) open_stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) env: Vec<String>,
    pub(crate) cmd: Option<Vec<String>>,
    pub(crate) image: String,
    pub(crate) volumes: Option<BTreeMap<String, Value>>,
    pub(crate) working_dir: String,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) labels: BTreeMap<String, String>,
    /// A number or a name, as the options or the image have it.
    pub(crate) stop_signal: Option<String>,
    /// Seconds; -1 for ever.
    pub(crate) stop_timeout: Option<i64>,
}

/// The container as its machine sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct HostConfig {
    pub(crate) binds: Vec<String>,
    #[serde(rename = "ContainerIDFile")]
    pub(crate) container_id_file: String,
    pub(crate) network_mode: String,
    pub(crate) port_bindings: BTreeMap<String, Value>,
    pub(crate) restart_policy: RestartPolicy,
    pub(crate) auto_remove: bool,
    pub(crate) cap_add: Vec<String>,
    pub(crate) cap_drop: Vec<String>,
    pub(crate) cgroupns_mode: String,
    pub(crate) dns: Vec<String>,
    pub(crate) dns_options: Vec<String>,
    pub(crate) dns_search: Vec<String>,
    pub(crate) extra_hosts: Vec<String>,
    pub(crate) group_add: Vec<String>,
    pub(crate) ipc_mode: String,
    pub(crate) oom_score_adj: i32,
    pub(crate) pid_mode: String,
    pub(crate) privileged: bool,
    pub(crate) readonly_rootfs: bool,
    pub(crate) security_opt: Vec<String>,
    pub(crate) tmpfs: BTreeMap<String, String>,
    #[serde(rename = "UTSMode")]
    pub(crate) uts_mode: String,
    pub(crate) userns_mode: String,
    pub(crate) shm_size: u64,
    pub(crate) sysctls: BTreeMap<String, String>,
    pub(crate) runtime: String,
    pub(crate) init: bool,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) cpu_shares: u64,
    pub(crate) memory: u64,
    pub(crate) memory_reservation: u64,
    pub(crate) memory_swap: i64,
    pub(crate) nano_cpus: i64,
    pub(crate) cpuset_cpus: String,
    pub(crate) devices: Vec<DeviceMapping>,
    pub(crate) oom_kill_disable: bool,
    pub(crate) pids_limit: Option<i64>,
    #[serde(default)]
    pub(crate) storage_opt: BTreeMap<String, String>,
    pub(crate) ulimits: Vec<UlimitSetting>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
}

/// When it is started again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RestartPolicy {
    pub(crate) name: String,
    pub(crate) maximum_retry_count: u32,
}

/// A device of `--device`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DeviceMapping {
    pub(crate) path_on_host: String,
    pub(crate) path_in_container: String,
    pub(crate) cgroup_permissions: String,
}

/// A limit of `--ulimit`; -1 for none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct UlimitSetting {
    pub(crate) name: String,
    pub(crate) hard: i64,
    pub(crate) soft: i64,
}

/// A mount of `-v`, `--mount` or `--tmpfs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct MountPoint {
    #[serde(rename = "Type")]
    pub(crate) kind: String,
    /// The volume's, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    pub(crate) source: String,
    /// Who keeps the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) driver: Option<String>,
    pub(crate) destination: String,
    pub(crate) mode: String,
    #[serde(rename = "RW")]
    pub(crate) writable: bool,
    pub(crate) propagation: String,
}

/// The virtual machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Machine {
    /// `kvm` or `qemu`.
    pub(crate) driver: String,
    /// The guest kernel's file.
    pub(crate) kernel: String,
    /// Bytes.
    pub(crate) memory: u64,
    pub(crate) vcpus: u8,
}

/// What the options of `run` and `create` say beside those of the container.
pub(crate) struct Attachment<'a> {
    pub(crate) interactive: bool,
    pub(crate) tty: bool,
    pub(crate) detached: bool,
    pub(crate) remove: bool,
    pub(crate) cidfile: Option<&'a Path>,
    pub(crate) network: Option<&'a NetworkPlan>,
}

impl Settings {
    /// Notes what a container is made with. `runtime` is its effective configuration.
    pub(crate) fn new(
        request: &Request<'_>,
        made: &oci_spec::runtime::Spec,
        attachment: &Attachment<'_>,
        runtime: &RuntimeConfig,
    ) -> Result<Self, SettingsError> {
        Ok(Self {
            config: config(request, made, attachment)?,
            host_config: host_config(request, made, attachment),
            mounts: mount_points(request),
            anonymous_volumes: anonymous(request)
                .map(|(name, _)| name.to_owned())
                .collect(),
            sandbox: machine(request, runtime)?,
        })
    }

    /// Writes them into the container's folder.
    pub(crate) fn save(&self, folder: &Path) -> Result<(), SettingsError> {
        let text = serde_json::to_vec_pretty(self);
        Ok(state_file::write(&folder.join(FILE), text)?)
    }

    /// Reads them from the container's folder.
    pub(crate) fn load(folder: &Path) -> Result<Self, SettingsError> {
        let remedy = "remove the container with `sandboxctl rm -f`";
        Ok(state_file::read(&folder.join(FILE), remedy)?)
    }
}

fn config(
    request: &Request<'_>,
    made: &oci_spec::runtime::Spec,
    attachment: &Attachment<'_>,
) -> Result<Config, SettingsError> {
    let options = request.options;
    let (entrypoint, command) = spec::command(request);
    let process = made.process().clone().unwrap_or_default();
    let user = match &options.user {
        Some(user) => user.to_string(),
        None => request.image.user().clone().unwrap_or_default(),
    };
    let empty = |names: &Option<Vec<String>>| -> BTreeMap<String, Value> {
        names
            .iter()
            .flatten()
            .map(|name| (name.clone(), Value::Object(serde_json::Map::new())))
            .collect()
    };
    let mut volumes = empty(request.image.volumes());
    for (_, place) in anonymous(request) {
        volumes
            .entry(place.to_owned())
            .or_insert_with(|| Value::Object(serde_json::Map::new()));
    }
    Ok(Config {
        hostname: request.hostname().to_owned(),
        domainname: options.domainname.clone().unwrap_or_default(),
        user,
        attach_stdin: attachment.interactive && !attachment.detached,
        attach_stdout: !attachment.detached,
        attach_stderr: !attachment.detached,
        exposed_ports: empty(request.image.exposed_ports()),
        tty: attachment.tty,
        open_stdin: attachment.interactive,
        stdin_once: attachment.interactive && !attachment.detached,
        env: process.env().clone().unwrap_or_default(),
        cmd: (!command.is_empty()).then_some(command),
        image: request.image_name.to_owned(),
        volumes: (!volumes.is_empty()).then_some(volumes),
        working_dir: process.cwd().display().to_string(),
        entrypoint: (!entrypoint.is_empty()).then_some(entrypoint),
        labels: spec::labels(request.image, options)?,
        stop_signal: match options.stop_signal {
            Some(number) => Some(number.to_string()),
            None => request.image.stop_signal().clone(),
        },
        stop_timeout: options.stop_timeout,
    })
}

fn host_config(
    request: &Request<'_>,
    made: &oci_spec::runtime::Spec,
    attachment: &Attachment<'_>,
) -> HostConfig {
    let options = request.options;
    let texts = |paths: &Option<Vec<String>>| paths.clone().unwrap_or_default();
    let linux = made.linux().clone().unwrap_or_default();
    HostConfig {
        binds: options
            .volume
            .iter()
            .filter(|bind| !matches!(bind.source, Source::Anonymous(_)))
            .map(ToString::to_string)
            .collect(),
        container_id_file: attachment
            .cidfile
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
        network_mode: attachment
            .network
            .map_or("none", |plan| plan.name.as_str())
            .to_owned(),
        port_bindings: attachment
            .network
            .map(|plan| crate::network::attach::port_bindings(&plan.ports))
            .unwrap_or_default(),
        restart_policy: RestartPolicy {
            name: "no".to_owned(),
            maximum_retry_count: 0,
        },
        auto_remove: attachment.remove,
        cap_add: options.cap_add.clone(),
        cap_drop: options.cap_drop.clone(),
        cgroupns_mode: "private".to_owned(),
        dns: options.dns.iter().map(ToString::to_string).collect(),
        dns_options: options.dns_option.clone(),
        dns_search: options.dns_search.clone(),
        extra_hosts: options
            .add_host
            .iter()
            .map(|entry| format!("{}:{}", entry.name, entry.address))
            .collect(),
        group_add: options.group_add.clone(),
        ipc_mode: options.ipc.map_or("private", |ipc| ipc.word()).to_owned(),
        oom_score_adj: options.oom_score_adj.unwrap_or(0),
        pid_mode: String::new(),
        privileged: options.privileged,
        readonly_rootfs: options.read_only,
        security_opt: options.security_opt.clone(),
        tmpfs: options
            .tmpfs
            .iter()
            .map(|tmpfs| (tmpfs.target.clone(), tmpfs.options.join(",")))
            .collect(),
        uts_mode: String::new(),
        userns_mode: String::new(),
        shm_size: options.shm_size.unwrap_or(spec::SHM_BYTES),
        sysctls: options.sysctl.iter().cloned().collect(),
        runtime: "io.containerd.sandbox.v2".to_owned(),
        init: options.init,
        annotations: options.annotation.iter().cloned().collect(),
        cpu_shares: options.cpu_shares.unwrap_or(0),
        memory: options.memory.unwrap_or(0),
        memory_reservation: options.memory_reservation.unwrap_or(0),
        memory_swap: spec::swap(options).unwrap_or(0),
        nano_cpus: options.cpus.map_or(0, nano_cpus),
        cpuset_cpus: options
            .cpuset_cpus
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        devices: options
            .device
            .iter()
            .map(|device| DeviceMapping {
                path_on_host: device.source.clone(),
                path_in_container: device.path.clone(),
                cgroup_permissions: device.access.clone(),
            })
            .collect(),
        oom_kill_disable: false,
        pids_limit: options.pids_limit.filter(|limit| *limit > 0),
        storage_opt: spec::storage_bytes(options)
            .map(|bytes| ("size".to_owned(), bytes.to_string()))
            .into_iter()
            .collect(),
        ulimits: options
            .ulimit
            .iter()
            .map(|limit| UlimitSetting {
                name: limit.name().to_owned(),
                hard: i64::try_from(limit.hard).unwrap_or(-1),
                soft: i64::try_from(limit.soft).unwrap_or(-1),
            })
            .collect(),
        masked_paths: texts(linux.masked_paths()),
        readonly_paths: texts(linux.readonly_paths()),
    }
}

/// docker's unit of a quota: billionths of a processor.
pub(crate) fn nano_cpus(quota: i64) -> i64 {
    let period = i64::try_from(CPU_PERIOD_US).unwrap_or(i64::MAX);
    quota.saturating_mul(1_000_000_000 / period)
}

/// The quota that docker has in this unit.
pub(crate) fn quota(nano_cpus: i64) -> i64 {
    let period = i64::try_from(CPU_PERIOD_US).unwrap_or(i64::MAX);
    nano_cpus / (1_000_000_000 / period)
}

/// The volumes that nobody named: their names, and where they are.
fn anonymous<'a>(request: &'a Request<'_>) -> impl Iterator<Item = (&'a str, &'a str)> {
    spec::binds(request.options).filter_map(|bind| match &bind.source {
        Source::Anonymous(name) => Some((name.as_str(), bind.target.as_str())),
        _ => None,
    })
}

fn mount_points(request: &Request<'_>) -> Vec<MountPoint> {
    let binds = spec::binds(request.options).map(|bind| {
        let (kind, name, source, propagation) = match &bind.source {
            Source::Host(path) => ("bind", None, path.clone(), "rprivate"),
            Source::Volume(name) | Source::Anonymous(name) => {
                let data = request.volumes.data(name);
                ("volume", Some(name.to_string()), data, "")
            }
        };
        MountPoint {
            kind: kind.to_owned(),
            driver: name.as_ref().map(|_| "local".to_owned()),
            name,
            source: source.display().to_string(),
            destination: bind.target.clone(),
            mode: if bind.read_only { "ro" } else { "" }.to_owned(),
            writable: !bind.read_only,
            propagation: propagation.to_owned(),
        }
    });
    let memory = spec::tmpfs(request.options).map(|tmpfs| MountPoint {
        kind: "tmpfs".to_owned(),
        name: None,
        driver: None,
        source: String::new(),
        destination: tmpfs.target.clone(),
        mode: tmpfs.options.join(","),
        writable: !tmpfs.options.iter().any(|option| option == "ro"),
        propagation: String::new(),
    });
    binds.chain(memory).collect()
}

fn machine(request: &Request<'_>, runtime: &RuntimeConfig) -> Result<Machine, SettingsError> {
    let options = request.options;
    let memory = match options.memory {
        Some(limit) => spec::machine_memory(limit, runtime.memory_overhead_mib)?,
        None => runtime.memory()?,
    };
    let vcpus = spec::vcpus(options)?.unwrap_or(runtime.vcpus);
    Ok(Machine {
        driver: serde_json::to_value(runtime.hypervisor)
            .ok()
            .and_then(|name| name.as_str().map(str::to_owned))
            .unwrap_or_default(),
        kernel: runtime
            .kernel_path()
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
        memory: u64::from(memory.get()) << 20,
        vcpus,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::ContainerOptions;
    use crate::values::{self, mounts};

    fn settings(options: &ContainerOptions) -> Settings {
        let image = oci_spec::image::ConfigBuilder::default()
            .entrypoint(vec!["/entry".to_owned()])
            .cmd(vec!["default".to_owned()])
            .user("app")
            .stop_signal("SIGQUIT")
            .exposed_ports(vec!["80/tcp".to_owned()])
            .build()
            .unwrap();
        let request = Request {
            id: "0123456789abcdef",
            bundle: Path::new("/bundle"),
            image_name: "demo",
            image: &image,
            options,
            command: &[],
            terminal: None,
            volumes: &crate::volume::Volumes::below(Path::new("/root")),
            network: None,
            caller_variable: &|_| None,
        };
        let spec = oci_spec::runtime::Spec::default();
        let attachment = Attachment {
            interactive: true,
            tty: false,
            detached: true,
            remove: false,
            cidfile: None,
            network: None,
        };
        Settings::new(&request, &spec, &attachment, &RuntimeConfig::default()).unwrap()
    }

    #[test]
    fn settings_have_dockers_words() {
        let folder = tempfile::tempdir().unwrap();
        let kept = settings(&ContainerOptions {
            memory: Some(64 << 20),
            cpus: Some(150_000),
            ulimit: vec![values::ulimit("nofile=5:-1").unwrap()],
            volume: vec![mounts::volume("/a:/b:ro").unwrap()],
            ..ContainerOptions::default()
        });
        kept.save(folder.path()).unwrap();
        let read = Settings::load(folder.path()).unwrap();
        assert_eq!(read, kept);
        let json = serde_json::to_value(read).unwrap();
        assert_eq!(json["Config"]["Entrypoint"][0], "/entry");
        assert_eq!(json["Config"]["Cmd"][0], "default");
        assert_eq!(json["Config"]["User"], "app");
        assert_eq!(json["Config"]["StopSignal"], "SIGQUIT");
        assert!(json["Config"]["ExposedPorts"]["80/tcp"].is_object());
        assert_eq!(json["HostConfig"]["NanoCpus"], 1_500_000_000);
        assert_eq!(json["HostConfig"]["MemorySwap"], 128 << 20);
        assert_eq!(json["HostConfig"]["Binds"][0], "/a:/b:ro");
        assert_eq!(json["HostConfig"]["Ulimits"][0]["Hard"], -1);
        assert_eq!(json["HostConfig"]["UTSMode"], "");
        assert_eq!(json["Mounts"][0]["RW"], false);
        assert_eq!(json["Sandbox"]["Vcpus"], 2);
    }

    #[test]
    fn damaged_settings_are_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            Settings::load(folder.path()),
            Err(SettingsError::File(StateFileError::Io { .. }))
        ));
        fs::write(folder.path().join(FILE), "{").unwrap();
        let error = Settings::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("settings.json"), "{error}");
    }
}
