//! New limits for a running container: what the machine can come to give.

use oci_spec::runtime::LinuxResources;
use sandbox_runtime::cgroup::Places;
use sandbox_types::{MemMib, VcpuCount};
use serde_json::Value;

use super::size::LimitSum;
use super::{SpecError, parse, places, size};

/// What the document is that has them.
const WHAT: &str = "the new limits";

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
    /// More memory than there is, with the other containers of the pod.
    #[error(
        "the `memory.limit` of the pod's containers would be {wanted_mib} MiB together, more than the sandbox's machine can have while it runs ({machine_mib} MiB): lower another's first, start the pod with larger limits, or raise `max_memory_mib` (under `qemu` a machine does not grow)"
    )]
    PodMemory {
        /// What they would be.
        wanted_mib: u64,
        /// What the machine can have.
        machine_mib: u32,
    },
    /// More processors than there are, with the other containers of the pod.
    #[error(
        "the `cpu.quota` of the pod's containers would be {wanted} processors together, more than the sandbox's machine can have while it runs ({machine}): lower another's first, start the pod with larger limits, or raise `max_vcpus`"
    )]
    PodCpus {
        /// What they would be, rounded up.
        wanted: u64,
        /// What the machine can have.
        machine: u8,
    },
}

/// Where on the host a container is to run that was to run at `before`, with the limits in `json`. What they do not name stays.
///
/// # Errors
/// [`SpecError`] names the field.
pub(crate) fn places(json: &[u8], before: &Places, host: &Places) -> Result<Places, SpecError> {
    let resources: LinuxResources = parse(json, WHAT)?;
    let named = places::of(Some(&resources))?;
    places::check(&named, host)?;
    Ok(Places {
        cpus: named.cpus.or_else(|| before.cpus.clone()),
        mems: named.mems.or_else(|| before.mems.clone()),
    })
}

/// The limits in `json` for one container among others of a pod ([`check::drop_places`](super::check::drop_places)).
///
/// # Errors
/// [`SpecError`] names the field.
pub(crate) fn of_member(json: &[u8]) -> Result<Vec<u8>, SpecError> {
    let mut resources: Value = parse(json, WHAT)?;
    super::check::drop_places(&mut resources);
    serde_json::to_vec(&resources).map_err(|source| SpecError::Malformed {
        what: WHAT.to_owned(),
        field: String::new(),
        source,
    })
}

/// Checks a change of what the limits of a pod's containers add up to. One that is too much already may stay so, and be lowered.
///
/// # Errors
/// [`SpecError::Update`].
pub(crate) fn check_sum(
    before: LimitSum,
    after: LimitSum,
    memory: MemMib,
    vcpus: VcpuCount,
) -> Result<(), SpecError> {
    let wanted_mib = after.memory_mib();
    if wanted_mib > before.memory_mib() && wanted_mib > u64::from(memory.get()) {
        return Err(UpdateError::PodMemory {
            wanted_mib,
            machine_mib: memory.get(),
        }
        .into());
    }
    let wanted = after.vcpus();
    if wanted > before.vcpus() && wanted > u64::from(vcpus.get()) {
        return Err(UpdateError::PodCpus {
            wanted,
            machine: vcpus.get(),
        }
        .into());
    }
    Ok(())
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
    let resources: LinuxResources = parse(json, WHAT)?;
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
    fn processors_of_the_host_are_no_limit_of_one_container_among_others() {
        let json = br#"{"cpu":{"cpus":"0-1","shares":10}}"#;
        assert_eq!(of_member(json).unwrap(), br#"{"cpu":{"shares":10}}"#);
        assert!(of_member(b"{").is_err());
    }

    #[test]
    fn places_that_are_not_named_stay_and_those_that_the_host_has_not_are_refused() {
        let list = |text: &str| Some(text.parse().unwrap());
        let of = |cpus: &str, mems: &str| Places {
            cpus: list(cpus),
            mems: list(mems),
        };
        let host = of("0-7", "0-1");
        let places = |json: &str| places(json.as_bytes(), &of("0-1", "0"), &host);
        assert_eq!(places(r#"{"cpu":{"cpus":"2-3"}}"#).unwrap(), of("2-3", "0"));
        assert_eq!(places(r#"{"cpu":{"mems":"1"}}"#).unwrap(), of("0-1", "1"));
        // As engines write what they do not change.
        for nothing in ["{}", r#"{"cpu":{"cpus":"","mems":"","shares":10}}"#] {
            assert_eq!(places(nothing).unwrap(), of("0-1", "0"), "{nothing}");
        }
        for (json, part) in [
            (r#"{"cpu":{"cpus":"7-8"}}"#, "cpu.cpus` is 7-8"),
            (r#"{"cpu":{"cpus":"1-"}}"#, "cpu.cpus` is no list"),
            (r#"{"cpu":{"cpus":1}}"#, "`cpu.cpus`"),
        ] {
            let error = places(json).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn limits_that_are_too_much_together_may_not_be_raised() {
        let sum = |memory_mib: u64, quota: u64| {
            let json = format!(
                r#"{{"memory":{{"limit":{}}},"cpu":{{"quota":{quota},"period":100000}}}}"#,
                memory_mib << 20
            );
            let resources: LinuxResources = serde_json::from_str(&json).unwrap();
            let other = r#"{"memory":{"limit":134217728},"cpu":{"quota":100000}}"#;
            let other: LinuxResources = serde_json::from_str(other).unwrap();
            LimitSum::of([Some(&resources), Some(&other)].map(size::Demand::of))
        };
        let check = |before, after| {
            let memory = MemMib::new(256).unwrap();
            check_sum(before, after, memory, VcpuCount::new(2).unwrap())
        };
        check(sum(64, 50_000), sum(128, 100_000)).unwrap();
        for (after, part) in [
            (sum(129, 50_000), "257 MiB"),
            (sum(64, 100_001), "3 processors"),
        ] {
            let error = check(sum(64, 50_000), after).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        check(sum(500, 400_000), sum(400, 400_000)).unwrap();
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
