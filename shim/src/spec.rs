//! The bundle's `config.json`: read within bounds, and the size of the machine that it asks for.

pub(crate) mod binds;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Process, Spec};
use sandbox_runtime::Config;
use sandbox_types::{MachineSizeError, MemMib, VcpuCount};
use serde_json::Value;

/// The largest `config.json`, in bytes: it travels in one ttrpc message.
const MAX_SPEC_BYTES: u64 = 2 * 1024 * 1024;

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
    /// It has no process to run.
    #[error("{} has no `process.args`: there is nothing to run", path.display())]
    NoProcess {
        /// The file.
        path: PathBuf,
    },
    /// No machine is that big or small.
    #[error("the limits in `linux.resources` cannot size a machine")]
    Size(#[from] MachineSizeError),
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, SpecError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| SpecError::Malformed {
        what: what.to_owned(),
        field: error.path().to_string(),
        source: error.into_inner(),
    })
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
        let path = bundle.join("config.json");
        let mut json = Vec::new();
        let read = |source| SpecError::Read {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(read)?;
        file.take(MAX_SPEC_BYTES + 1)
            .read_to_end(&mut json)
            .map_err(read)?;
        if json.len() as u64 > MAX_SPEC_BYTES {
            return Err(SpecError::TooLarge { path });
        }
        let spec: Spec = parse(&json, &path.display().to_string())?;
        let has_arguments = spec
            .process()
            .as_ref()
            .and_then(|process| process.args().as_ref())
            .is_some_and(|arguments| !arguments.is_empty());
        if !has_arguments {
            return Err(SpecError::NoProcess { path });
        }
        let value = parse(&json, &path.display().to_string())?;
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

    /// Memory of the machine: the container's limit and the configured overhead, or the configured default.
    ///
    /// # Errors
    /// When no machine has that much.
    pub(crate) fn memory(&self, config: &Config) -> Result<MemMib, MachineSizeError> {
        let limit = self
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.resources().as_ref())
            .and_then(|resources| resources.memory().as_ref())
            .and_then(oci_spec::runtime::LinuxMemory::limit)
            .and_then(|limit| u64::try_from(limit).ok())
            .filter(|limit| *limit > 0);
        match limit {
            Some(limit) => {
                let mib = limit.div_ceil(1 << 20) + u64::from(config.memory_overhead_mib);
                MemMib::new(mib.max(u64::from(MemMib::MIN.get())))
            }
            None => config.memory(),
        }
    }

    /// vCPUs of the machine: the container's CPU limit rounded up, or the configured default.
    ///
    /// # Errors
    /// When no machine has that many.
    pub(crate) fn vcpus(&self, config: &Config) -> Result<VcpuCount, MachineSizeError> {
        let cpu = self
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.resources().as_ref())
            .and_then(|resources| resources.cpu().as_ref());
        let quota = cpu
            .and_then(oci_spec::runtime::LinuxCpu::quota)
            .and_then(|quota| u64::try_from(quota).ok())
            .filter(|quota| *quota > 0);
        // 100 ms is the kernel's default period (cgroup v2, cpu.max).
        let period = cpu
            .and_then(oci_spec::runtime::LinuxCpu::period)
            .filter(|period| *period > 0)
            .unwrap_or(100_000);
        match quota {
            Some(quota) => VcpuCount::new(quota.div_ceil(period)),
            None => config.vcpu_count(),
        }
    }
}

/// Checks the process of an exec, and sets its terminal as the call says.
///
/// # Errors
/// [`SpecError::Malformed`] names the field.
pub(crate) fn exec_process(json: &[u8], terminal: bool) -> Result<Vec<u8>, SpecError> {
    let what = "the exec's process";
    let mut process: Process = parse(json, what)?;
    process.set_terminal(Some(terminal));
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

    fn with_resources(resources: &str) -> BundleSpec {
        bundle(&format!(
            r#"{{"ociVersion":"1.0.2","process":{{"args":["sh"],"cwd":"/","user":{{"uid":0,"gid":0}}}},
                "root":{{"path":"rootfs"}},"linux":{{"resources":{resources}}}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn machine_is_limit_plus_overhead_and_cpus_rounded_up() {
        let config = Config::default();
        let spec = with_resources(
            r#"{"memory":{"limit":268435457},"cpu":{"quota":150000,"period":100000}}"#,
        );
        assert_eq!(
            spec.memory(&config).unwrap().get(),
            257 + config.memory_overhead_mib
        );
        assert_eq!(spec.vcpus(&config).unwrap().get(), 2);
        let spec = with_resources(r#"{"memory":{"limit":-1},"cpu":{"quota":-1}}"#);
        assert_eq!(spec.memory(&config).unwrap().get(), config.memory_mib);
        assert_eq!(spec.vcpus(&config).unwrap().get(), config.vcpus);
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
}
