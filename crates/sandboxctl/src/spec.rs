//! The OCI runtime configuration of a container: the image's configuration, the options of `run`, and
//! docker's defaults where neither says anything.
//!
//! Pure: what it needs of the caller's surroundings (environment, terminal) is handed in.

mod defaults;
mod files;
mod mounts;
mod process;
mod seccomp;
mod security;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::image::Config as ImageConfig;
use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxCpuBuilder, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType,
    LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, RootBuilder, Spec,
    SpecBuilder,
};
use sandbox_protocol::extensions::{PROGRAM_ANNOTATION, PROGRAM_INIT};

use sandbox_types::{CpusetList, MachineSizeError, MemMib};

use crate::cli::ContainerOptions;
use crate::names;
use crate::values;
use crate::values::device::{Device, KNOWN};
use crate::values::mounts::MountError;
use crate::values::{CPU_PERIOD_US, ValueError};
use crate::volume::{VolumeError, Volumes};
pub(crate) use defaults::SHM_BYTES;
pub(crate) use files::{files, name_servers_are_the_hosts_own};
pub(crate) use mounts::{add_image_volumes, binds, make_sources, tmpfs};
pub(crate) use process::{all_capabilities, command, exec_environment, exec_user};
use security::Seccomp;

/// The version of the OCI runtime spec that configurations are written in.
pub(crate) const OCI_VERSION: &str = "1.1.0";

/// Why no configuration can be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// A volume cannot be made.
    #[error(transparent)]
    Volume(#[from] Box<VolumeError>),
    /// There is nothing to run.
    #[error("image {image} names no command to run; give one after the image's name")]
    NoCommand { image: String },
    /// No such capability.
    #[error(
        "there is no capability called {name:?}; see capabilities(7), such as NET_ADMIN, or write ALL"
    )]
    Capability { name: String },
    /// The image names its user in no known way.
    #[error("the image's own user does not read as one; give another with --user")]
    ImageUser(#[source] ValueError),
    /// A security option that is not known.
    #[error(
        "--security-opt {option:?} is not known; there are no-new-privileges[=true|false], seccomp=builtin|unconfined|FILE, systempaths=unconfined, apparmor=unconfined and label=disable"
    )]
    SecurityOption { option: String },
    /// A module that the guest's kernel does not have.
    #[error(
        "--security-opt {option:?}: the guest's kernel has no AppArmor and no SELinux; leave the option out, the virtual machine confines the container"
    )]
    NoSuchModule { option: String },
    /// A seccomp profile cannot be used.
    #[error(transparent)]
    Seccomp(#[from] seccomp::SeccompError),
    /// A relative working directory in the image.
    #[error("the image's working directory is wrong; give one with --workdir")]
    ImageWorkdir(#[source] ValueError),
    /// An environment file cannot be read.
    #[error("cannot read the environment file {}", path.display())]
    EnvironmentFile {
        path: PathBuf,
        source: std::io::Error,
    },
    /// A line of an environment file is wrong.
    #[error("the environment file {} has a wrong line", path.display())]
    EnvironmentLine { path: PathBuf, source: ValueError },
    /// A label file cannot be read.
    #[error("cannot read the label file {}", path.display())]
    LabelFile {
        path: PathBuf,
        source: std::io::Error,
    },
    /// A line of a label file is wrong.
    #[error("the label file {} has a wrong line", path.display())]
    LabelLine { path: PathBuf, source: ValueError },
    /// A mount cannot be made.
    #[error("cannot mount what the options ask for")]
    Mount(#[source] MountError),
    /// The image keeps data where nothing can be mounted.
    #[error("the image's own volume cannot be mounted")]
    ImageVolume(#[source] MountError),
    /// A folder of the host's is not there.
    #[error(
        "cannot give the container {}; `-v` makes a missing folder, `--mount` does not",
        path.display()
    )]
    BindSource {
        path: PathBuf,
        source: std::io::Error,
    },
    /// A disk with nothing on it that the guest could mount.
    #[error(
        "{} has neither an ext4 nor an EROFS file system; make one (`mkfs.ext4 FILE`), or say which it has with fstype=",
        path.display()
    )]
    NoFileSystem { path: PathBuf },
    /// Swap without memory.
    #[error("--memory-swap says how much memory and swap there is together; give --memory as well")]
    SwapAlone,
    /// Less of both than of one.
    #[error(
        "--memory-swap is less than --memory, but it counts memory and swap together; give at least {memory} bytes, or -1"
    )]
    SwapBelowMemory { memory: u64 },
    /// A reservation above the limit.
    #[error("--memory-reservation is above --memory; what is kept cannot be more than the limit")]
    ReservationAboveMemory,
    /// More processors are listed than there are.
    #[error(
        "--cpuset-cpus {list} needs {needed} processors, and --cpus gives the virtual machine {given}; leave --cpus out, or list no more than that"
    )]
    CpuList { list: String, needed: u8, given: u8 },
    /// The parts do not make a configuration.
    #[error("cannot put the container's OCI configuration together")]
    Build(#[from] OciSpecError),
}

/// What a configuration is made from.
pub(crate) struct Request<'a> {
    /// The container's identifier.
    pub(crate) id: &'a str,
    /// The folder in which its files will be.
    pub(crate) bundle: &'a Path,
    /// The image's name, for messages.
    pub(crate) image_name: &'a str,
    /// The image's own configuration.
    pub(crate) image: &'a ImageConfig,
    /// The options of `run`.
    pub(crate) options: &'a ContainerOptions,
    /// The command after the image's name.
    pub(crate) command: &'a [String],
    /// The terminal's columns and rows, when the container gets one.
    pub(crate) terminal: Option<(u16, u16)>,
    /// The volumes.
    pub(crate) volumes: &'a Volumes,
    /// The network namespace that will be there, and what this host's resolver is configured with; none without a network.
    pub(crate) network: Option<RequestedNetwork<'a>>,
    /// The caller's environment.
    pub(crate) caller_variable: &'a dyn Fn(&str) -> Option<String>,
}

/// What a configuration needs to know of the container's network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestedNetwork<'a> {
    pub(crate) namespace: &'a Path,
    /// `resolv.conf` of this host.
    pub(crate) resolver: &'a str,
}

impl Request<'_> {
    /// The host name that the container sees.
    pub(crate) fn hostname(&self) -> &str {
        match &self.options.hostname {
            Some(name) => name,
            None => names::short(self.id),
        }
    }
}

/// Makes the configuration.
pub(crate) fn generate(request: &Request<'_>) -> Result<Spec, SpecError> {
    let options = request.options;
    let mut spec = SpecBuilder::default()
        .version(OCI_VERSION)
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(options.read_only)
                .build()?,
        )
        .mounts(mounts::mounts(request)?)
        .process(process::generate(request)?)
        .hostname(request.hostname())
        .linux(linux(request)?)
        .build()?;
    if let Some(name) = &options.domainname {
        spec.set_domainname(Some(name.clone()));
    }
    let mut annotations: HashMap<_, _> = options.annotation.iter().cloned().collect();
    if options.init {
        annotations.insert(PROGRAM_ANNOTATION.to_owned(), PROGRAM_INIT.to_owned());
    }
    if !annotations.is_empty() {
        spec.set_annotations(Some(annotations));
    }
    mounts::check_sources(options)?;
    Ok(spec)
}

/// The container's labels: the image's, below those of files, below those of options (docker).
pub(crate) fn labels(
    image: &ImageConfig,
    options: &ContainerOptions,
) -> Result<BTreeMap<String, String>, SpecError> {
    let mut labels: BTreeMap<String, String> = image
        .labels()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    for path in &options.label_file {
        let text = std::fs::read_to_string(path).map_err(|source| SpecError::LabelFile {
            path: path.clone(),
            source,
        })?;
        labels.extend(
            values::label_file(&text).map_err(|source| SpecError::LabelLine {
                path: path.clone(),
                source,
            })?,
        );
    }
    labels.extend(options.label.iter().cloned());
    Ok(labels)
}

/// How many processors the virtual machine has by the options, as the shim sizes it: as many as the list of them names,
/// whatever their numbers are, else as the limit is, rounded up. `None` leaves it to the configuration.
pub(crate) fn vcpus(options: &ContainerOptions) -> Result<Option<u8>, SpecError> {
    Limits::of(options).vcpus()
}

/// Limits that have to go together: of the options, or of a container that was given others since.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits<'a> {
    /// In bytes.
    pub(crate) memory: Option<u64>,
    /// Of memory and swap together, in bytes; -1 is none.
    pub(crate) memory_swap: Option<i64>,
    /// In bytes.
    pub(crate) memory_reservation: Option<u64>,
    /// Microseconds in each [`CPU_PERIOD_US`].
    pub(crate) cpus: Option<i64>,
    pub(crate) cpuset_cpus: Option<&'a CpusetList>,
}

impl<'a> Limits<'a> {
    fn of(options: &'a ContainerOptions) -> Self {
        Self {
            memory: options.memory,
            memory_swap: options.memory_swap,
            memory_reservation: options.memory_reservation,
            cpus: options.cpus,
            cpuset_cpus: options.cpuset_cpus.as_ref(),
        }
    }

    /// Refuses those that contradict each other.
    pub(crate) fn check(&self) -> Result<(), SpecError> {
        self.check_memory()?;
        self.vcpus().map(drop)
    }

    fn vcpus(&self) -> Result<Option<u8>, SpecError> {
        let given = self.cpus.map(|quota| {
            u8::try_from(quota.unsigned_abs().div_ceil(CPU_PERIOD_US)).unwrap_or(u8::MAX)
        });
        let Some(list) = self.cpuset_cpus else {
            return Ok(given);
        };
        let needed = u8::try_from(list.count()).unwrap_or(u8::MAX);
        match given {
            Some(given) if given < needed => Err(SpecError::CpuList {
                list: list.to_string(),
                needed,
                given,
            }),
            _ => Ok(Some(needed)),
        }
    }

    fn check_memory(&self) -> Result<(), SpecError> {
        match (self.memory_swap, self.memory) {
            (Some(swap), None) if swap != 0 => return Err(SpecError::SwapAlone),
            (Some(swap), Some(memory)) if swap > 0 && swap.unsigned_abs() < memory => {
                return Err(SpecError::SwapBelowMemory { memory });
            }
            _ => {}
        }
        match (self.memory_reservation, self.memory) {
            (Some(kept), Some(memory)) if kept > memory => Err(SpecError::ReservationAboveMemory),
            _ => Ok(()),
        }
    }
}

/// The memory of a machine for a container with this limit.
pub(crate) fn machine_memory(
    limit_bytes: u64,
    overhead_mib: u32,
) -> Result<MemMib, MachineSizeError> {
    MemMib::new(
        limit_bytes
            .div_ceil(1 << 20)
            .saturating_add(overhead_mib.into()),
    )
}

fn linux(request: &Request<'_>) -> Result<Linux, SpecError> {
    let options = request.options;
    let security = security::options(options)?;
    let sysctl: HashMap<_, _> = options.sysctl.iter().cloned().collect();
    let mut linux = LinuxBuilder::default()
        .namespaces(defaults::namespaces(
            request.network.map(|network| network.namespace),
        )?)
        .cgroups_path(Path::new("/sandboxctl").join(request.id))
        .resources(resources(options)?)
        .sysctl(sysctl)
        .build()?;
    if !options.privileged && !security.system_paths {
        linux
            .set_masked_paths(Some(defaults::MASKED_PATHS.map(str::to_owned).to_vec()))
            .set_readonly_paths(Some(defaults::READONLY_PATHS.map(str::to_owned).to_vec()));
    } else {
        linux.set_masked_paths(None).set_readonly_paths(None);
    }
    let devices = devices(options)?;
    linux.set_devices((!devices.is_empty()).then_some(devices));
    let held = process::capability_set(options)?;
    linux.set_seccomp(match security.seccomp {
        None if options.privileged => None,
        Some(Seccomp::Unconfined) => None,
        None | Some(Seccomp::Builtin) => Some(seccomp::builtin(&held)?),
        Some(Seccomp::File(path)) => Some(seccomp::from_file(&path, &held)?),
    });
    Ok(linux)
}

/// The device nodes beside those that every container has.
fn devices(options: &ContainerOptions) -> Result<Vec<LinuxDevice>, SpecError> {
    let all = KNOWN
        .iter()
        .filter(|_| options.privileged)
        .map(|device| (device.path, *device));
    let asked = options
        .device
        .iter()
        .filter_map(|device| Some((device.path.as_str(), device.guest?)));
    let mut made: Vec<LinuxDevice> = Vec::new();
    for (path, device) in all.chain(asked) {
        if made.iter().any(|other| other.path() == Path::new(path)) {
            continue;
        }
        made.push(
            LinuxDeviceBuilder::default()
                .path(path)
                .typ(LinuxDeviceType::C)
                .major(device.major)
                .minor(device.minor)
                .file_mode(device.mode)
                .uid(0_u32)
                .gid(0_u32)
                .build()?,
        );
    }
    Ok(made)
}

/// The limits that the container's cgroup gets, after which the virtual machine is sized as well.
fn resources(options: &ContainerOptions) -> Result<LinuxResources, SpecError> {
    let asked: Vec<&Device> = options.device.iter().collect();
    let mut resources = LinuxResourcesBuilder::default()
        .devices(if options.privileged {
            defaults::all_devices()?
        } else {
            defaults::device_rules(&asked)?
        })
        .build()?;
    let bytes = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    Limits::of(options).check_memory()?;
    if options.memory.is_some() || options.memory_reservation.is_some() {
        let mut memory = LinuxMemoryBuilder::default().build()?;
        memory
            .set_limit(options.memory.map(bytes))
            .set_reservation(options.memory_reservation.map(bytes))
            .set_swap(swap(options));
        resources.set_memory(Some(memory));
    }
    if options.cpus.is_some() || options.cpu_shares.is_some() || options.cpuset_cpus.is_some() {
        let mut cpu = LinuxCpuBuilder::default().build()?;
        cpu.set_shares(options.cpu_shares);
        if let Some(quota) = options.cpus {
            cpu.set_quota(Some(quota));
            cpu.set_period(Some(CPU_PERIOD_US));
        }
        cpu.set_cpus(options.cpuset_cpus.as_ref().map(ToString::to_string));
        resources.set_cpu(Some(cpu));
    }
    // docker takes 0 and -1 for no limit.
    if let Some(limit) = options.pids_limit.filter(|limit| *limit > 0) {
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(limit).build()?));
    }
    Ok(resources)
}

/// The size of the writable layer, where one was chosen.
pub(crate) fn storage_bytes(options: &ContainerOptions) -> Option<u64> {
    options.storage_size.or(options.storage_opt)
}

/// Memory and swap together: as much swap as memory where nothing is said (docker).
pub(crate) fn swap(options: &ContainerOptions) -> Option<i64> {
    let memory = options.memory?;
    match options.memory_swap {
        None | Some(0) => i64::try_from(memory.saturating_mul(2)).ok(),
        given => given,
    }
}

#[cfg(test)]
mod tests;
