//! New limits for a running container: what the machine can come to give.

use oci_spec::runtime::LinuxResources;
use sandbox_types::{MemMib, VcpuCount};

use super::{SpecError, parse, size};

/// Limits that the machine cannot give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpdateError {
    /// More memory than there is.
    #[error(
        "`memory.limit` of {wanted} bytes is more than the sandbox's machine can have while it runs ({machine_mib} MiB): start the container with a larger limit, or raise `max_memory_mib` (under `qemu` a machine does not grow)"
    )]
    Memory {
        /// What was asked for.
        wanted: u64,
        /// What the machine can have.
        machine_mib: u32,
    },
    /// More processors than there are.
    #[error(
        "`cpu.quota` of {wanted} processors is more than the sandbox's machine can have while it runs ({machine}): start the container with a larger limit, or raise `max_vcpus`"
    )]
    Cpus {
        /// What was asked for, rounded up.
        wanted: u64,
        /// What the machine can have.
        machine: u8,
    },
}

/// Reads the limits in `json` (`linux.resources` of the OCI runtime spec), and checks them against what the machine can have.
///
/// # Errors
/// [`SpecError`] names the field.
pub(crate) fn check(
    json: &[u8],
    memory: MemMib,
    vcpus: VcpuCount,
) -> Result<LinuxResources, SpecError> {
    let resources: LinuxResources = parse(json, "the new limits")?;
    if let Some(wanted) = size::memory_limit(Some(&resources))
        && wanted > u64::from(memory.get()) << 20
    {
        return Err(UpdateError::Memory {
            wanted,
            machine_mib: memory.get(),
        }
        .into());
    }
    if let Some(wanted) = size::cpus(Some(&resources))
        && wanted > u64::from(vcpus.get())
    {
        return Err(UpdateError::Cpus {
            wanted,
            machine: vcpus.get(),
        }
        .into());
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(json: &str) -> Result<LinuxResources, SpecError> {
        let memory = MemMib::new(256).unwrap();
        check(json.as_bytes(), memory, VcpuCount::new(2).unwrap())
    }

    #[test]
    fn limits_within_the_machine_are_taken() {
        for json in [
            "{}",
            r#"{"memory":{"limit":268435456}}"#,
            r#"{"memory":{"limit":-1},"cpu":{"quota":-1}}"#,
            r#"{"cpu":{"quota":200000,"period":100000,"shares":10}}"#,
            r#"{"pids":{"limit":5}}"#,
        ] {
            checked(json).unwrap();
        }
    }

    #[test]
    fn limits_beyond_the_machine_are_refused_and_say_so() {
        for (json, part) in [
            (r#"{"memory":{"limit":268435457}}"#, "256 MiB"),
            (
                r#"{"cpu":{"quota":200001,"period":100000}}"#,
                "3 processors",
            ),
        ] {
            let error = checked(json).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let error = checked(r#"{"memory":{"limit":"much"}}"#).unwrap_err();
        assert!(error.to_string().contains("`memory.limit`"), "{error}");
    }
}
