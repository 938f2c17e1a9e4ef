//! The configuration file, and where its defaults come from.
//!
//! TOML, every key optional, unknown keys refused. It is read from the path in `SANDBOX_CONFIG`, else from
//! [`DEFAULT_PATH`] if that exists, else there are only defaults. Files that are part of the installation are
//! looked up beside the running program: in a checkout `target/release/<program>` finds
//! `target/artifacts/`, an installed `<prefix>/bin/<program>` finds `<prefix>/lib/sandbox/`.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox_types::monitor::DiskLimits;
use sandbox_types::{MachineSizeError, MemMib, SandboxId, VcpuCount};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

mod overrides;

pub use overrides::{ANNOTATION_PREFIX, OVERRIDABLE, OverrideError, OverrideProblem};

/// Names the configuration file to read.
pub const CONFIG_ENV: &str = "SANDBOX_CONFIG";
/// Read when [`CONFIG_ENV`] is not set.
pub(crate) const DEFAULT_PATH: &str = "/etc/sandbox/config.toml";
/// The longest path a Unix socket can be bound to: `sun_path` without its final zero (unix(7)).
pub(crate) const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Which hypervisor to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hypervisor {
    /// `kvm` where the host can really run a guest, else `qemu` where emulation is allowed.
    #[default]
    Auto,
    /// Our monitor on KVM, or an error.
    Kvm,
    /// QEMU's emulation.
    Qemu,
}

/// Numbers of users, which are also numbers of groups, that belong to no account of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserRange {
    /// The lowest.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl UserRange {
    /// Whether root is not in it, and every number of it is one that a user can have.
    fn is_usable(self) -> bool {
        // The last is -1, which means nobody in particular (setresuid(2)).
        self.first > 0 && self.count > 0 && self.first.checked_add(self.count).is_some()
    }
}

impl Default for UserRange {
    /// Far above what accounts, containers and user namespaces are commonly given.
    fn default() -> Self {
        Self {
            first: 1_900_000_000,
            count: 65_536,
        }
    }
}

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, or a key is unknown or of the wrong type.
    #[error("the configuration {} is not valid", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where, and what was expected.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is outside its bounds.
    #[error("the configuration {} asks for a machine that cannot be made", path.display())]
    Size {
        /// Which file.
        path: PathBuf,
        /// Which bound.
        #[source]
        source: MachineSizeError,
    },
    /// A key that no pod can be allowed to set.
    #[error("the configuration {} lists {key:?} in `pod_overrides`; pods can be allowed to set {}", path.display(), OVERRIDABLE.join(", "))]
    NotOverridable {
        /// Which file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A range that holds no user, or root.
    #[error(
        "the configuration {} has `jail_users` of {count} from {first}; it must have at least one user, not root (0), and end before 4294967295", path.display()
    )]
    Users {
        /// Which file.
        path: PathBuf,
        /// The first of the range.
        first: u32,
        /// How many it has.
        count: u32,
    },
    /// A file of the installation is nowhere.
    #[error(
        "{what} was not found: tried {}; build it (`make`) or name it with `{key}` in the configuration",
        tried.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    Missing {
        /// What, for a person.
        what: &'static str,
        /// The configuration key that names it.
        key: &'static str,
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
    /// A socket's path does not fit into a socket address.
    #[error(
        "the socket path {} has {} bytes, a Unix socket address holds {MAX_SOCKET_PATH_BYTES}; use a shorter `run_dir`",
        path.display(),
        path.as_os_str().len()
    )]
    SocketPath {
        /// The path.
        path: PathBuf,
    },
}

/// What is said about one registry of images. For `sandboxctl`; the shim pulls nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Addresses (`https://host[:port][/path]`) that are asked first, in this order.
    pub mirrors: Vec<String>,
    /// Whether it is spoken to without TLS. Default: only on a loopback address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plain_http: Option<bool>,
    /// A PEM file of the certificate authorities that are believed instead of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which hypervisor: `auto`, `kvm` or `qemu`.
    pub hypervisor: Hypervisor,
    /// Whether `auto` may fall back to emulation, which is slow and no hardware boundary.
    pub allow_emulation: bool,
    /// The guest kernel, an uncompressed ELF image. Default: the artifact `vmlinux`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The guest's root file system with the agent. Default: the artifact `rootfs.erofs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// The monitor. Default: `sandbox-vmm` beside the running program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor: Option<PathBuf>,
    /// QEMU. Default: `qemu-system-x86_64` on `PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qemu: Option<PathBuf>,
    /// The virtio-fs server. Default: the artifact `virtiofsd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtiofsd: Option<PathBuf>,
    /// A sparse, formatted, empty ext4 image that writable layers are copied from. Default: the artifact `scratch.ext4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch: Option<PathBuf>,
    /// Guest memory where the container's limit says nothing, in MiB.
    pub memory_mib: u32,
    /// Added to a container's memory limit for the guest kernel and the agent, in MiB.
    pub memory_overhead_mib: u32,
    /// When set, all that runs a sandbox may have this much more memory of the host's than its guest has, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_memory_overhead_mib: Option<u32>,
    /// When set, all that runs a sandbox may have this much more processor time than its guest has processors, in hundredths of
    /// one processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_cpu_overhead_percent: Option<u32>,
    /// Whether a guest under `kvm` gets image layers, and its own image, as memory that it shares with the host and all other guests.
    pub image_dax: bool,
    /// Whether pages that the guest frees go back to the host.
    pub free_page_reporting: bool,
    /// vCPUs where the container's limit says nothing.
    pub vcpus: u8,
    /// What a machine under `kvm` may grow to while it runs, in MiB; one that begins with as much or more does not grow.
    pub max_memory_mib: u32,
    /// How many vCPUs a machine may come to use while it runs; never more than the host has processors.
    pub max_vcpus: u8,
    /// When set, all disks of a sandbox together read and write no more than this, in bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes_per_second: Option<NonZeroU64>,
    /// When set, they do no more requests than this in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_operations_per_second: Option<NonZeroU64>,
    /// When set, each network device of a sandbox sends no more than this, and receives no more, in bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_bytes_per_second: Option<NonZeroU64>,
    /// Where the folders of running sandboxes are.
    pub run_dir: PathBuf,
    /// Where the shim's task sockets are.
    pub socket_dir: PathBuf,
    /// How long a guest may take until its agent is ready, in seconds.
    pub boot_timeout_s: u32,
    /// Appended to the guest kernel's command line.
    pub kernel_arguments: String,
    /// Whether the processes that run the guest are jailed.
    pub jail: bool,
    /// Whether what serves shared folders may open files by handles, which takes `CAP_DAC_READ_SEARCH`.
    pub share_file_handles: bool,
    /// When set, the shim keeps a JSON array of timeline marks here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeline: Option<PathBuf>,
    /// Which of the other keys a pod's annotations may set ([`OVERRIDABLE`]).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pod_overrides: Vec<String>,
    /// Patterns of the paths that they may name; `*` stands for any text within a component.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pod_override_paths: Vec<String>,
    /// The users that jailed processes run as, one for each sandbox.
    pub jail_users: UserRange,
    /// Whether what layers came as is kept beside what they became, so that images can be pushed and saved.
    pub keep_layer_blobs: bool,
    /// Whether `sandboxctl` has guests hold what they read of an image to its hash tree.
    pub layer_verity: bool,
    /// Registries of images, by their name in image names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub registries: BTreeMap<String, RegistryConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hypervisor: Hypervisor::Auto,
            allow_emulation: false,
            kernel: None,
            image: None,
            monitor: None,
            qemu: None,
            virtiofsd: None,
            scratch: None,
            memory_mib: 512,
            memory_overhead_mib: 96,
            sandbox_memory_overhead_mib: None,
            sandbox_cpu_overhead_percent: None,
            image_dax: true,
            free_page_reporting: true,
            vcpus: 1,
            max_memory_mib: 16 * 1024,
            max_vcpus: 4,
            disk_bytes_per_second: None,
            disk_operations_per_second: None,
            network_bytes_per_second: None,
            run_dir: PathBuf::from("/run/sandbox"),
            socket_dir: PathBuf::from("/run/containerd/s"),
            boot_timeout_s: 60,
            kernel_arguments: String::new(),
            jail: true,
            share_file_handles: true,
            timeline: None,
            jail_users: UserRange::default(),
            pod_overrides: Vec::new(),
            pod_override_paths: Vec::new(),
            keep_layer_blobs: true,
            layer_verity: false,
            registries: BTreeMap::new(),
        }
    }
}

impl Config {
    /// The configuration that the environment names.
    ///
    /// # Errors
    /// [`ConfigError`] when a file that is there cannot be used.
    pub fn load() -> Result<Self, ConfigError> {
        match std::env::var_os(CONFIG_ENV) {
            Some(path) => Self::from_file(Path::new(&path)),
            None => match Self::from_file(Path::new(DEFAULT_PATH)) {
                Err(ConfigError::Read { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    Ok(Self::default())
                }
                other => other,
            },
        }
    }

    /// The configuration in `path`.
    ///
    /// # Errors
    /// [`ConfigError`] when it cannot be read, is not valid, or a size is out of bounds.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        config.check(path)?;
        Ok(config)
    }

    /// Checks what its types do not; `path` is where it comes from.
    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let size_error = |source| ConfigError::Size {
            path: path.to_owned(),
            source,
        };
        self.memory().map_err(size_error)?;
        self.vcpu_count().map_err(size_error)?;
        MemMib::new(self.max_memory_mib.into()).map_err(size_error)?;
        VcpuCount::new(self.max_vcpus.into()).map_err(size_error)?;
        if !self.jail_users.is_usable() {
            return Err(ConfigError::Users {
                path: path.to_owned(),
                first: self.jail_users.first,
                count: self.jail_users.count,
            });
        }
        let wrong = self
            .pod_overrides
            .iter()
            .find(|key| !OVERRIDABLE.contains(&key.as_str()));
        if let Some(key) = wrong {
            return Err(ConfigError::NotOverridable {
                path: path.to_owned(),
                key: key.clone(),
            });
        }
        Ok(())
    }

    /// The configuration as the text of a configuration file.
    ///
    /// # Errors
    /// When a path is not UTF-8, which TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    /// `memory_mib`, checked.
    ///
    /// # Errors
    /// Outside the bounds of a machine.
    pub fn memory(&self) -> Result<MemMib, MachineSizeError> {
        MemMib::new(u64::from(self.memory_mib))
    }

    /// `vcpus`, checked.
    ///
    /// # Errors
    /// Outside the bounds of a machine.
    pub fn vcpu_count(&self) -> Result<VcpuCount, MachineSizeError> {
        VcpuCount::new(u64::from(self.vcpus))
    }

    /// How fast the disks are served.
    #[must_use]
    pub fn disk_limits(&self) -> DiskLimits {
        DiskLimits {
            bytes_per_second: self.disk_bytes_per_second,
            operations_per_second: self.disk_operations_per_second,
        }
    }

    /// `boot_timeout_s` as a duration.
    #[must_use]
    pub(crate) fn boot_timeout(&self) -> Duration {
        Duration::from_secs(u64::from(self.boot_timeout_s))
    }

    /// The guest kernel.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] with the places tried.
    pub fn kernel_path(&self) -> Result<PathBuf, ConfigError> {
        artifact(
            self.kernel.as_ref(),
            "the guest kernel",
            "kernel",
            "vmlinux",
        )
    }

    /// The guest's root file system.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] with the places tried.
    pub fn image_path(&self) -> Result<PathBuf, ConfigError> {
        artifact(
            self.image.as_ref(),
            "the guest image",
            "image",
            "rootfs.erofs",
        )
    }

    /// The virtio-fs server.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] with the places tried.
    pub fn virtiofsd_path(&self) -> Result<PathBuf, ConfigError> {
        artifact(
            self.virtiofsd.as_ref(),
            "the virtio-fs server",
            "virtiofsd",
            "virtiofsd",
        )
    }

    /// The template of writable layers.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] with the places tried.
    pub fn scratch_path(&self) -> Result<PathBuf, ConfigError> {
        artifact(
            self.scratch.as_ref(),
            "the writable layer's template",
            "scratch",
            "scratch.ext4",
        )
    }

    /// The monitor.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] with the places tried.
    pub fn monitor_path(&self) -> Result<PathBuf, ConfigError> {
        let candidates = sibling_candidates("sandbox-vmm");
        find(self.monitor.as_ref(), "the monitor", "monitor", candidates)
    }

    /// QEMU.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] with the places tried.
    pub fn qemu_path(&self) -> Result<PathBuf, ConfigError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates = std::env::split_paths(&path)
            .map(|dir| dir.join("qemu-system-x86_64"))
            .collect();
        find(self.qemu.as_ref(), "QEMU", "qemu", candidates)
    }

    /// The folder of one sandbox: `<run_dir>/<first 16 hex digits of sha256(namespace/id)>`, short enough for
    /// socket paths whatever the identifier.
    #[must_use]
    pub fn sandbox_dir(&self, namespace: &str, id: &SandboxId) -> PathBuf {
        let digest = Sha256::digest(format!("{namespace}/{id}"));
        let mut name = hex::encode(digest);
        name.truncate(16);
        self.run_dir.join(name)
    }
}

/// `path`, if a Unix socket can be bound to it.
///
/// # Errors
/// [`ConfigError::SocketPath`] when it is longer than [`MAX_SOCKET_PATH_BYTES`].
pub(crate) fn check_socket_path(path: &Path) -> Result<(), ConfigError> {
    if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
        return Err(ConfigError::SocketPath {
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// A program of this installation (`sandbox-vmm`, `containerd-shim-sandbox-v2`): beside the running program, else
/// in `../lib/sandbox/` from there.
///
/// # Errors
/// [`ConfigError::Missing`] with the places tried.
pub fn sibling_program(name: &'static str) -> Result<PathBuf, ConfigError> {
    find(None, name, "PATH", sibling_candidates(name))
}

fn program_dir() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_owned))
        .unwrap_or_default()
}

fn sibling_candidates(name: &str) -> Vec<PathBuf> {
    let dir = program_dir();
    // A test binary runs in `target/release/deps`, its siblings are one up.
    let up = dir.parent().map(Path::to_owned).unwrap_or_default();
    let mut candidates = vec![dir.join(name)];
    if dir.file_name().is_some_and(|last| last == "deps") {
        candidates.push(up.join(name));
    }
    candidates.push(up.join("lib/sandbox").join(name));
    candidates
}

fn artifact(
    configured: Option<&PathBuf>,
    what: &'static str,
    key: &'static str,
    name: &str,
) -> Result<PathBuf, ConfigError> {
    let dir = program_dir();
    let up = dir.parent().map(Path::to_owned).unwrap_or_default();
    let mut candidates = vec![up.join("artifacts").join(name)];
    if dir.file_name().is_some_and(|last| last == "deps")
        && let Some(target) = up.parent()
    {
        candidates.push(target.join("artifacts").join(name));
    }
    candidates.push(up.join("lib/sandbox").join(name));
    find(configured, what, key, candidates)
}

fn find(
    configured: Option<&PathBuf>,
    what: &'static str,
    key: &'static str,
    candidates: Vec<PathBuf>,
) -> Result<PathBuf, ConfigError> {
    let tried = match configured {
        Some(path) => vec![path.clone()],
        None => candidates,
    };
    match tried.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(ConfigError::Missing { what, key, tried }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        Config::from_file(&path)
    }

    #[test]
    fn config_empty_is_default() {
        assert_eq!(load("").unwrap(), Config::default());
    }

    #[test]
    fn config_unknown_key_is_refused_by_name() {
        let error = load("hypervizor = \"kvm\"").unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("hypervizor"), "{source}");
    }

    #[test]
    fn config_size_out_of_bounds_is_refused() {
        assert!(matches!(
            load("memory_mib = 1"),
            Err(ConfigError::Size { .. })
        ));
        assert!(matches!(load("vcpus = 0"), Err(ConfigError::Size { .. })));
    }

    #[test]
    fn config_limit_of_nothing_is_refused_and_others_are_taken() {
        for key in [
            "disk_bytes_per_second",
            "disk_operations_per_second",
            "network_bytes_per_second",
        ] {
            for value in ["0", "-1", "\"much\""] {
                let refused = load(&format!("{key} = {value}"));
                assert!(
                    matches!(refused, Err(ConfigError::Parse { .. })),
                    "{key} = {value}"
                );
            }
        }
        let config = load("disk_bytes_per_second = 1000\nnetwork_bytes_per_second = 5").unwrap();
        assert_eq!(config.disk_limits().bytes_per_second, NonZeroU64::new(1000));
        assert_eq!(config.disk_limits().operations_per_second, None);
        assert_eq!(config.network_bytes_per_second, NonZeroU64::new(5));
    }

    #[test]
    fn config_users_without_one_or_with_root_are_refused() {
        for (first, count) in [(0, 5), (5, 0), (u32::MAX, 1), (u32::MAX - 1, 2)] {
            let text = format!("jail_users = {{ first = {first}, count = {count} }}");
            assert!(
                matches!(load(&text), Err(ConfigError::Users { .. })),
                "{text}"
            );
        }
        let last = format!("jail_users = {{ first = {}, count = 1 }}", u32::MAX - 1);
        assert!(load(&last).is_ok());
    }

    #[test]
    fn config_written_is_read_back() {
        let config = Config {
            jail_users: UserRange { first: 7, count: 9 },
            hypervisor: Hypervisor::Qemu,
            allow_emulation: true,
            free_page_reporting: false,
            kernel: Some("/k".into()),
            timeline: Some("/t".into()),
            ..Config::default()
        };
        assert_eq!(load(&config.to_toml().unwrap()).unwrap(), config);
    }

    #[test]
    fn sandbox_dir_is_the_same_short_name_for_the_longest_identifier() {
        let config = Config::default();
        let id = SandboxId::new("a".repeat(76)).unwrap();
        let dir = config.sandbox_dir("default", &id);
        assert_eq!(dir, config.sandbox_dir("default", &id));
        assert_ne!(dir, config.sandbox_dir("other", &id));
        assert!(check_socket_path(&crate::vsock::event_socket(&crate::vsock::ports(&dir))).is_ok());
    }

    #[test]
    fn socket_path_too_long_is_refused() {
        assert!(check_socket_path(Path::new(&"a".repeat(107))).is_ok());
        assert!(check_socket_path(Path::new(&"a".repeat(108))).is_err());
    }

    #[test]
    fn artifact_configured_but_absent_names_the_path_and_the_key() {
        let config = Config {
            kernel: Some("/nonexistent/vmlinux".into()),
            ..Config::default()
        };
        let message = config.kernel_path().unwrap_err().to_string();
        assert!(message.contains("/nonexistent/vmlinux"), "{message}");
        assert!(message.contains("`kernel`"), "{message}");
    }
}
