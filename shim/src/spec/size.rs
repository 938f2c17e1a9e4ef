//! The size of the machine that a container's limits ask for.
//!
//! Memory is the limit plus a stated overhead for the guest's kernel and agent; the guest has no swap, so
//! `memory.swap` adds nothing. vCPUs are the CPU quota rounded up, but no more than `cpu.cpus` has processors; without
//! a quota as many as `cpu.cpus` has. What is not limited has the configured size.
//!
//! Containers without a limit have together what a machine without any has, beside the limits of the others.
//!
//! A pod's machine is sized by the sum of its containers' limits, which the CRI says in annotations of the sandbox
//! ([`of_pod`]), CRI-O in one that is JSON; the sandbox's own limits are those of a process that does nothing. When containers are added later, or their limits
//! change, the machine grows to the sum of what its containers have then ([`Demand`]).

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};
use sandbox_runtime::Config;
use sandbox_types::{MachineSizeError, MemMib, VcpuCount};
use serde::Deserialize;

/// The kernel's period of a CPU quota, in microseconds (cgroup v2, cpu.max).
const DEFAULT_PERIOD: u64 = 100_000;
/// A whole processor.
const MICROCPUS: u64 = 1_000_000;

/// The sum of the containers' memory limits, in bytes (containerd `internal/cri/annotations`, as all of these).
pub(super) const POD_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
/// The sum of their CPU quotas, in microseconds of each period.
pub(super) const POD_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
/// The period, in microseconds.
pub(super) const POD_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// CRI-O's: the CRI's `LinuxContainerResources` in JSON. The second name is that of its versions before 1.35.
const CRIO_RESOURCES: [&str; 2] = [
    "pod-linux-resources.crio.io",
    "io.kubernetes.cri-o.PodLinuxResources",
];

/// What of them sizes a machine, in the units of the annotations above.
#[derive(Debug, Default, Deserialize)]
struct CrioResources {
    memory_limit_in_bytes: Option<i64>,
    cpu_quota: Option<i64>,
    cpu_period: Option<i64>,
}

/// An annotation that says no limit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodLimitError {
    /// It is no number.
    #[error("`annotations[{key:?}]` is {value:?}, which is no number")]
    Number {
        /// The annotation.
        key: &'static str,
        /// What it says.
        value: String,
    },
    /// It is not what CRI-O writes.
    #[error("`annotations[{key:?}]` has no limits of a pod")]
    Resources {
        /// The annotation.
        key: &'static str,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

/// What CRI-O says, `null` where kubelet told it nothing.
fn of_crio(annotations: Option<&HashMap<String, String>>) -> Result<CrioResources, PodLimitError> {
    let get = |key: &'static str| Some((key, annotations?.get(key)?));
    match CRIO_RESOURCES.into_iter().find_map(get) {
        None => Ok(CrioResources::default()),
        Some((key, json)) => serde_json::from_str::<Option<CrioResources>>(json)
            .map(Option::unwrap_or_default)
            .map_err(|source| PodLimitError::Resources { key, source }),
    }
}

/// The limits of a pod, by the annotations of its sandbox. Shares weigh pods against each other and size nothing.
///
/// # Errors
/// [`PodLimitError`] names the annotation.
pub(super) fn of_pod(
    annotations: Option<&HashMap<String, String>>,
) -> Result<LinuxResources, PodLimitError> {
    let number = |key: &'static str| -> Result<Option<i64>, PodLimitError> {
        let value = annotations.and_then(|all| all.get(key));
        value
            .map(|value| {
                value.parse().map_err(|_| PodLimitError::Number {
                    key,
                    value: value.clone(),
                })
            })
            .transpose()
    };
    let crio = of_crio(annotations)?;
    let mut memory = LinuxMemory::default();
    memory.set_limit(number(POD_MEMORY)?.or(crio.memory_limit_in_bytes));
    let mut cpu = LinuxCpu::default();
    cpu.set_quota(number(POD_QUOTA)?.or(crio.cpu_quota));
    let period = number(POD_PERIOD)?.or(crio.cpu_period);
    cpu.set_period(period.and_then(|period| u64::try_from(period).ok()));
    let mut resources = LinuxResources::default();
    resources.set_memory(Some(memory)).set_cpu(Some(cpu));
    Ok(resources)
}

/// The memory limit in bytes, when there is one.
pub(super) fn memory_limit(resources: Option<&LinuxResources>) -> Option<u64> {
    resources
        .and_then(|resources| resources.memory().as_ref())
        .and_then(LinuxMemory::limit)
        .and_then(|limit| u64::try_from(limit).ok())
        .filter(|limit| *limit > 0)
}

/// The CPU quota in processors, rounded up, when there is one.
pub(super) fn cpus(resources: Option<&LinuxResources>) -> Option<u64> {
    Some(microcpus(resources)?.div_ceil(MICROCPUS))
}

/// What a container may use, as far as it counts for the size of its machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Bytes.
    memory: Option<u64>,
    /// Millionths of a processor.
    microcpus: Option<u64>,
}

impl Demand {
    /// That of a container with these limits.
    pub(crate) fn of(resources: Option<&LinuxResources>) -> Self {
        Self::default().updated(resources)
    }

    /// That of this one when its limits are changed to these. What they do not name stays; what is negative, or 0, is no limit.
    pub(crate) fn updated(self, resources: Option<&LinuxResources>) -> Self {
        let memory = resources.and_then(|resources| resources.memory().as_ref());
        let cpu = resources.and_then(|resources| resources.cpu().as_ref());
        Self {
            memory: match memory.and_then(LinuxMemory::limit) {
                Some(_) => memory_limit(resources),
                None => self.memory,
            },
            microcpus: match cpu.and_then(LinuxCpu::quota) {
                Some(_) => microcpus(resources),
                None => self.microcpus,
            },
        }
    }

    /// The machine for containers with these: memory in MiB, with the overhead, and vCPUs. 0 is any, for no containers.
    pub(crate) fn sum(demands: impl IntoIterator<Item = Self>, config: &Config) -> (u64, u64) {
        let mut limits = LimitSum::default();
        let (mut any_memory, mut any_cpu) = (false, false);
        for demand in demands {
            limits.add(demand);
            any_memory |= demand.memory.is_none();
            any_cpu |= demand.microcpus.is_none();
        }
        let overhead = u64::from(config.memory_overhead_mib);
        let unlimited = u64::from(config.memory_mib);
        let memory = match (limits.memory_mib(), any_memory) {
            (0, false) => 0,
            (0, true) => unlimited,
            (mib, false) => mib + overhead,
            (mib, true) => mib + unlimited.max(overhead),
        };
        let vcpus = match any_cpu {
            false => limits.vcpus(),
            true => limits.vcpus() + u64::from(config.vcpus),
        };
        (memory, vcpus)
    }
}

/// What the limits of containers add up to; those without one add nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LimitSum {
    /// Bytes.
    memory: u64,
    /// Millionths of a processor.
    microcpus: u64,
}

impl LimitSum {
    /// That of containers with these.
    pub(crate) fn of(demands: impl IntoIterator<Item = Demand>) -> Self {
        let mut sum = Self::default();
        demands.into_iter().for_each(|demand| sum.add(demand));
        sum
    }

    fn add(&mut self, demand: Demand) {
        self.memory = self.memory.saturating_add(demand.memory.unwrap_or(0));
        self.microcpus = self.microcpus.saturating_add(demand.microcpus.unwrap_or(0));
    }

    /// Memory, rounded up.
    pub(super) fn memory_mib(self) -> u64 {
        self.memory.div_ceil(1 << 20)
    }

    /// Processors, rounded up.
    pub(super) fn vcpus(self) -> u64 {
        self.microcpus.div_ceil(MICROCPUS)
    }
}

/// The CPU quota in millionths of a processor, when there is one.
fn microcpus(resources: Option<&LinuxResources>) -> Option<u64> {
    let cpu = resources?.cpu().as_ref()?;
    let quota = u64::try_from(cpu.quota()?)
        .ok()
        .filter(|quota| *quota > 0)?;
    let period = cpu.period().filter(|period| *period > 0);
    let period = period.unwrap_or(DEFAULT_PERIOD);
    Some(quota.saturating_mul(MICROCPUS).div_ceil(period))
}

/// Memory of the machine.
///
/// # Errors
/// When no machine has that much.
pub(super) fn memory(
    resources: Option<&LinuxResources>,
    config: &Config,
) -> Result<MemMib, MachineSizeError> {
    match memory_limit(resources) {
        Some(limit) => {
            let mib = limit.div_ceil(1 << 20) + u64::from(config.memory_overhead_mib);
            MemMib::new(mib.max(u64::from(MemMib::MIN.get())))
        }
        None => config.memory(),
    }
}

/// vCPUs of the machine, by the quota and how many processors a list names.
///
/// # Errors
/// When no machine has that many.
pub(super) fn vcpus(
    resources: Option<&LinuxResources>,
    listed: Option<u64>,
    config: &Config,
) -> Result<VcpuCount, MachineSizeError> {
    match (cpus(resources), listed) {
        (Some(quota), Some(listed)) => VcpuCount::new(quota.min(listed)),
        (Some(count), None) | (None, Some(count)) => VcpuCount::new(count),
        (None, None) => config.vcpu_count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::places;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn machine_is_limit_plus_overhead_and_cpus_rounded_up() {
        let config = Config::default();
        let limits = resources(
            r#"{"memory":{"limit":268435457,"swap":1073741824},"cpu":{"quota":150000,"period":100000}}"#,
        );
        assert_eq!(
            memory(Some(&limits), &config).unwrap().get(),
            257 + config.memory_overhead_mib
        );
        assert_eq!(vcpus(Some(&limits), None, &config).unwrap().get(), 2);
        let none = resources(r#"{"memory":{"limit":-1},"cpu":{"quota":-1}}"#);
        assert_eq!(
            memory(Some(&none), &config).unwrap().get(),
            config.memory_mib
        );
        assert_eq!(
            vcpus(Some(&none), None, &config).unwrap().get(),
            config.vcpus
        );
    }

    #[test]
    fn pod_is_sized_by_its_annotations_where_they_say_something() {
        let of = |annotations: &[(&str, &str)]| {
            let all: HashMap<_, _> = annotations
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
            of_pod(Some(&all))
        };
        let config = Config::default();
        let limits = of(&[
            (POD_MEMORY, "268435456"),
            (POD_QUOTA, "250000"),
            (POD_PERIOD, "100000"),
        ])
        .unwrap();
        assert_eq!(
            memory(Some(&limits), &config).unwrap().get(),
            256 + config.memory_overhead_mib
        );
        assert_eq!(vcpus(Some(&limits), None, &config).unwrap().get(), 3);
        // What the CRI plugin writes for a pod without limits.
        let none = of(&[(POD_MEMORY, "0"), (POD_QUOTA, "0"), (POD_PERIOD, "0")]).unwrap();
        assert_eq!(memory(Some(&none), &config), config.memory());
        assert_eq!(vcpus(Some(&none), None, &config), config.vcpu_count());
        let error = of(&[(POD_MEMORY, "much")]).unwrap_err().to_string();
        assert!(error.contains(POD_MEMORY), "{error}");
        // As CRI-O writes them: the CRI's message in Go's JSON, which leaves out what is zero.
        for key in CRIO_RESOURCES {
            let json = r#"{"cpu_period":100000,"cpu_quota":150000,"memory_limit_in_bytes":268435456,"unified":{}}"#;
            let limits = of(&[(key, json)]).unwrap();
            assert_eq!(
                memory(Some(&limits), &config).unwrap().get(),
                256 + config.memory_overhead_mib
            );
            assert_eq!(vcpus(Some(&limits), None, &config).unwrap().get(), 2);
            for nothing in ["null", "{}"] {
                let none = of(&[(key, nothing)]).unwrap();
                assert_eq!(memory(Some(&none), &config), config.memory());
            }
            let error = of(&[(key, r#"{"cpu_quota":"x"}"#)])
                .unwrap_err()
                .to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn demands_add_up_and_what_is_not_named_stays() {
        let config = Config::default();
        let of = |json| Demand::of(Some(&resources(json)));
        let one = of(r#"{"memory":{"limit":268435457},"cpu":{"quota":150000,"period":100000}}"#);
        let other = of(r#"{"memory":{"limit":1048576},"cpu":{"quota":25000,"period":50000}}"#);
        let overhead = u64::from(config.memory_overhead_mib);
        assert_eq!(Demand::sum([one], &config), (257 + overhead, 2));
        // Rounded up once, not each.
        assert_eq!(Demand::sum([one, other], &config), (258 + overhead, 2));
        let none = Demand::of(Some(&resources("{}")));
        assert_eq!((Demand::of(None), none), Default::default());
        assert_eq!(Demand::sum([], &config), (0, 0));
        // As many as there are of those without limits have what a machine without any has, beside the others.
        let (mib, vcpus) = (u64::from(config.memory_mib), u64::from(config.vcpus));
        assert_eq!(Demand::sum([none], &config), (mib, vcpus));
        assert_eq!(Demand::sum([none, none], &config), (mib, vcpus));
        assert_eq!(
            Demand::sum([none, one, none], &config),
            (257 + mib, 2 + vcpus)
        );
        let memory_alone = of(r#"{"memory":{"limit":1048576}}"#);
        assert_eq!(
            Demand::sum([one, memory_alone], &config),
            (258 + overhead, 2 + vcpus)
        );
        let change = resources(r#"{"memory":{"limit":536870912}}"#);
        assert_eq!(
            Demand::sum([one.updated(Some(&change))], &config),
            (512 + overhead, 2)
        );
        let change = resources(r#"{"memory":{"limit":-1},"cpu":{"quota":-1}}"#);
        assert_eq!(
            Demand::sum([one.updated(Some(&change))], &config),
            (mib, vcpus)
        );
    }

    #[test]
    fn cpu_list_bounds_the_quota_or_stands_for_it() {
        let config = Config::default();
        let of = |json| {
            let limits = resources(json);
            let listed = places::of(Some(&limits)).unwrap().cpus;
            let listed = listed.map(|list| list.count().into());
            vcpus(Some(&limits), listed, &config).unwrap().get()
        };
        assert_eq!(of(r#"{"cpu":{"cpus":"0-2"}}"#), 3);
        assert_eq!(of(r#"{"cpu":{"cpus":"1","quota":400000}}"#), 1);
        assert_eq!(of(r#"{"cpu":{"cpus":"0-3","quota":150000}}"#), 2);
        assert_eq!(of(r#"{"cpu":{"cpus":"0-2,1,2\n"}}"#), 3);
        for blank in [r#"{"cpu":{"cpus":""}}"#, r#"{"cpu":{"cpus":"\n"}}"#] {
            assert_eq!(of(blank), config.vcpus);
        }
    }
}
