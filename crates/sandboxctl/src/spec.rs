//! The OCI runtime configuration of a container: the image's configuration, the options of `run`, and
//! docker's defaults where neither says anything.
//!
//! Pure: what it needs of the caller's surroundings (environment, terminal) is handed in.

mod defaults;
mod process;
mod seccomp;
mod security;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::image::Config as ImageConfig;
use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder, Mount, RootBuilder, Spec, SpecBuilder,
};

use crate::cli::ContainerOptions;
use crate::names;
use crate::values::{CPU_PERIOD_US, ValueError};
use security::Seccomp;

/// Why no configuration can be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// There is nothing to run.
    #[error("image {image} names no command to run; give one after the image's name")]
    NoCommand { image: String },
    /// No such capability.
    #[error(
        "there is no capability called {name:?}; see capabilities(7), such as NET_ADMIN, or write ALL"
    )]
    Capability { name: String },
    /// A user that only the image's passwd file knows.
    #[error(
        "{source_of_user} names the user or group {user:?}, and names cannot be looked up in the image yet; give numbers with --user UID:GID"
    )]
    UserName {
        source_of_user: &'static str,
        user: String,
    },
    /// The image names its user in no known way.
    #[error("the image's own user does not read as one; give numbers with --user UID:GID")]
    ImageUser(#[source] ValueError),
    /// A security option that is not known.
    #[error(
        "--security-opt {option:?} is not known; there are no-new-privileges[=true|false] and seccomp=builtin|unconfined|FILE"
    )]
    SecurityOption { option: String },
    /// A module that the guest's kernel does not have.
    #[error("--security-opt {option:?}: the guest's kernel has no AppArmor and no SELinux")]
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
    /// The parts do not make a configuration.
    #[error("cannot put the container's OCI configuration together")]
    Build(#[from] OciSpecError),
}

/// What a configuration is made from.
pub(crate) struct Request<'a> {
    /// The container's identifier.
    pub(crate) id: &'a str,
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
    /// The caller's environment.
    pub(crate) caller_variable: &'a dyn Fn(&str) -> Option<String>,
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
        .version("1.1.0")
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(options.read_only)
                .build()?,
        )
        .mounts(mounts(options)?)
        .process(process::generate(request)?)
        .hostname(request.hostname())
        .linux(linux(request)?)
        .build()?;
    if let Some(name) = &options.domainname {
        spec.set_domainname(Some(name.clone()));
    }
    if !options.annotation.is_empty() {
        let annotations: HashMap<_, _> = options.annotation.iter().cloned().collect();
        spec.set_annotations(Some(annotations));
    }
    Ok(spec)
}

/// docker's mounts, and each tmpfs in place of the default mount at the same path or after them all.
fn mounts(options: &ContainerOptions) -> Result<Vec<Mount>, SpecError> {
    let mut mounts = defaults::mounts(options.shm_size)?;
    for tmpfs in &options.tmpfs {
        let options: Vec<&str> = tmpfs.options.iter().map(String::as_str).collect();
        let mount = defaults::mount(&tmpfs.target, "tmpfs", "tmpfs", &options)?;
        mounts.retain(|other| other.destination() != mount.destination());
        mounts.push(mount);
    }
    Ok(mounts)
}

fn linux(request: &Request<'_>) -> Result<Linux, SpecError> {
    let sysctl: HashMap<_, _> = request.options.sysctl.iter().cloned().collect();
    let mut linux = LinuxBuilder::default()
        .namespaces(defaults::namespaces()?)
        .cgroups_path(Path::new("/sandboxctl").join(request.id))
        .masked_paths(defaults::MASKED_PATHS.map(str::to_owned))
        .readonly_paths(defaults::READONLY_PATHS.map(str::to_owned))
        .resources(resources(request.options)?)
        .sysctl(sysctl)
        .build()?;
    linux.set_seccomp(match security::options(request.options)?.seccomp {
        Seccomp::Unconfined => None,
        Seccomp::Builtin => Some(seccomp::builtin(&process::capability_set(
            request.options,
        )?)?),
        Seccomp::File(path) => {
            let held = process::capability_set(request.options)?;
            Some(seccomp::from_file(&path, &held)?)
        }
    });
    Ok(linux)
}

/// The limits that the container's cgroup gets, after which the virtual machine is sized as well.
fn resources(options: &ContainerOptions) -> Result<LinuxResources, SpecError> {
    let mut resources = LinuxResourcesBuilder::default()
        .devices(defaults::device_rules()?)
        .build()?;
    let bytes = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    if options.memory.is_some() || options.memory_reservation.is_some() {
        let mut memory = LinuxMemoryBuilder::default().build()?;
        memory.set_limit(options.memory.map(bytes));
        memory.set_reservation(options.memory_reservation.map(bytes));
        resources.set_memory(Some(memory));
    }
    if options.cpus.is_some() || options.cpu_shares.is_some() {
        let mut cpu = LinuxCpuBuilder::default().build()?;
        cpu.set_shares(options.cpu_shares);
        if let Some(quota) = options.cpus {
            cpu.set_quota(Some(quota));
            cpu.set_period(Some(CPU_PERIOD_US));
        }
        resources.set_cpu(Some(cpu));
    }
    // docker takes 0 and -1 for no limit.
    if let Some(limit) = options.pids_limit.filter(|limit| *limit > 0) {
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(limit).build()?));
    }
    Ok(resources)
}

#[cfg(test)]
mod tests;
