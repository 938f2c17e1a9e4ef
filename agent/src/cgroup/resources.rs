//! From `linux.resources` of the OCI runtime spec to files of a control group.
//!
//! | member | file, and what differs from a host |
//! | --- | --- |
//! | `memory.limit`, `.reservation`, `.swap` | `memory.max`, `memory.low`, `memory.swap.max` |
//! | `cpu.shares` | `cpu.weight`, as 1 + (shares - 2) * 9999 / 262142 |
//! | `cpu.quota`, `.period`, `.burst`, `.idle` | `cpu.max`, `cpu.max.burst`, `cpu.idle` |
//! | `cpu.cpus` | the list is of the host's processors, which the guest does not see: as *many* of the guest's as the list names, in `cpuset.cpus` |
//! | `cpu.mems` | of the host's memory nodes; the guest has one, and all is in it |
//! | `pids.limit` | `pids.max` |
//! | `blockIO.throttle*Device` | `io.max`; the numbers are those of the guest's devices |
//! | `hugepageLimits` | `hugetlb.<size>.max` and `.rsvd.max` |
//! | `unified` | the files that it names, after all others |
//! | `devices` | not here: see [`super::devices`] |
//!
//! A number below zero means no limit, zero that nothing was said, as in runc. What has no counterpart here is refused
//! by its name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources, LinuxThrottleDevice,
};
use sandbox_types::{CpusetList, CpusetListError};

/// Why limits cannot be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResourceError {
    /// Nothing here could honour it.
    #[error("linux.resources.{field} cannot be honoured: {reason}")]
    Unsupported {
        /// Its name in the spec.
        field: String,
        /// Why not.
        reason: &'static str,
    },
    /// It makes no sense.
    #[error("linux.resources.{field} is {value}: {reason}")]
    Invalid {
        /// Its name in the spec.
        field: String,
        /// What it is.
        value: String,
        /// What it should be.
        reason: &'static str,
    },
    /// It is no list of processors or memory nodes.
    #[error("linux.resources.{field} is no list of numbers")]
    List {
        /// Its name in the spec.
        field: &'static str,
        #[source]
        source: CpusetListError,
    },
    /// The kernel refused it.
    #[error("linux.resources.{field}: cannot write {value:?} to {path}")]
    Refused {
        /// Its name in the spec.
        field: String,
        /// What was to be written.
        value: String,
        /// Where.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What is written to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Text(String),
    /// A new second word beside the first one that the file has.
    Period(u64),
}

/// One file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    field: String,
    file: String,
    value: Value,
}

/// Limits, ready to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    settings: Vec<Setting>,
    /// Refuse a memory limit that is used up already.
    check_memory: Option<u64>,
}

fn unsupported<T>(field: &str, reason: &'static str) -> Result<T, ResourceError> {
    Err(ResourceError::Unsupported {
        field: field.to_owned(),
        reason,
    })
}

fn invalid<T>(field: &str, value: impl ToString, reason: &'static str) -> Result<T, ResourceError> {
    Err(ResourceError::Invalid {
        field: field.to_owned(),
        value: value.to_string(),
        reason,
    })
}

/// A limit where a number below zero is none and zero says nothing.
fn limit(number: Option<i64>) -> Option<String> {
    match number {
        None | Some(0) => None,
        Some(number) if number < 0 => Some("max".to_owned()),
        Some(number) => Some(number.to_string()),
    }
}

impl Limits {
    /// Reads `resources` for a guest with that many processors.
    pub(crate) fn new(
        resources: &LinuxResources,
        processors: usize,
    ) -> Result<Self, ResourceError> {
        let mut limits = Self::default();
        if let Some(memory) = resources.memory() {
            limits.memory(memory)?;
        }
        if let Some(cpu) = resources.cpu() {
            limits.cpu(cpu, processors)?;
        }
        if let Some(pids) = resources.pids() {
            limits.set_some("pids.limit", "pids.max", limit(Some(pids.limit())));
        }
        if let Some(block_io) = resources.block_io() {
            limits.block_io(block_io)?;
        }
        for hugepages in resources.hugepage_limits().iter().flatten() {
            limits.hugepages(hugepages)?;
        }
        if let Some(network) = resources.network() {
            if network.class_id().is_some_and(|class| class != 0) {
                return unsupported("network.classID", "it is of control groups v1");
            }
            if network.priorities().as_ref().is_some_and(|p| !p.is_empty()) {
                return unsupported("network.priorities", "it is of control groups v1");
            }
        }
        if resources
            .rdma()
            .as_ref()
            .is_some_and(|rdma| !rdma.is_empty())
        {
            return unsupported("rdma", "the guest has no such devices");
        }
        let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
        unified.sort();
        for (file, value) in unified {
            let field = format!("unified.{file}");
            if !file.contains('.') || file.starts_with('.') || file.contains('/') {
                return invalid(&field, value, "the key is no file of a control group");
            }
            limits.set(&field, file, value.clone());
        }
        Ok(limits)
    }

    fn set(&mut self, field: &str, file: &str, value: impl Into<String>) {
        self.settings.push(Setting {
            field: field.to_owned(),
            file: file.to_owned(),
            value: Value::Text(value.into()),
        });
    }

    fn set_some(&mut self, field: &str, file: &str, value: Option<String>) {
        if let Some(value) = value {
            self.set(field, file, value);
        }
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<(), ResourceError> {
        let asked = |number: Option<i64>| number.is_some_and(|number| number > 0);
        if asked(memory.kernel()) {
            return unsupported("memory.kernel", "the kernel has no such limit any more");
        }
        if asked(memory.kernel_tcp()) {
            return unsupported("memory.kernelTCP", "it is of control groups v1");
        }
        if memory.swappiness().is_some() {
            return unsupported("memory.swappiness", "it is of control groups v1");
        }
        if memory.disable_oom_killer() == Some(true) {
            return unsupported("memory.disableOOMKiller", "it is of control groups v1");
        }
        let most = memory.limit().filter(|&limit| limit != 0);
        self.set_some("memory.limit", "memory.max", limit(most));
        self.set_some(
            "memory.reservation",
            "memory.low",
            limit(memory.reservation()),
        );
        let swap = match (memory.swap(), most) {
            (None | Some(0), Some(most)) if most < 0 => Some("max".to_owned()),
            (None | Some(0), _) => None,
            (Some(swap), _) if swap < 0 => Some("max".to_owned()),
            (Some(swap), Some(most)) if most > 0 && swap >= most => {
                Some(swap.abs_diff(most).to_string())
            }
            (Some(swap), _) => {
                return invalid(
                    "memory.swap",
                    swap,
                    "it is memory and swap together, so at least memory.limit, which must be there",
                );
            }
        };
        self.set_some("memory.swap", "memory.swap.max", swap);
        if memory.check_before_update() == Some(true) {
            self.check_memory = most.and_then(|most| u64::try_from(most).ok());
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu, processors: usize) -> Result<(), ResourceError> {
        if cpu.realtime_runtime().is_some_and(|runtime| runtime > 0) {
            return unsupported("cpu.realtimeRuntime", "it is of control groups v1");
        }
        if cpu.realtime_period().is_some_and(|period| period > 0) {
            return unsupported("cpu.realtimePeriod", "it is of control groups v1");
        }
        if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
            self.set("cpu.shares", "cpu.weight", weight(shares).to_string());
        }
        let period = cpu.period().filter(|&period| period != 0);
        match (limit(cpu.quota()), period) {
            (Some(quota), Some(period)) => {
                self.set("cpu.quota", "cpu.max", format!("{quota} {period}"));
            }
            (Some(quota), None) => self.set("cpu.quota", "cpu.max", quota),
            (None, Some(period)) => self.settings.push(Setting {
                field: "cpu.period".to_owned(),
                file: "cpu.max".to_owned(),
                value: Value::Period(period),
            }),
            (None, None) => {}
        }
        if let Some(burst) = cpu.burst() {
            self.set("cpu.burst", "cpu.max.burst", burst.to_string());
        }
        if let Some(idle) = cpu.idle() {
            self.set("cpu.idle", "cpu.idle", idle.to_string());
        }
        if let Some(list) = list("cpu.cpus", cpu.cpus().as_deref())? {
            let count = usize::from(list.count()).min(processors.max(1));
            let last = count.saturating_sub(1);
            self.set("cpu.cpus", "cpuset.cpus", format!("0-{last}"));
        }
        list("cpu.mems", cpu.mems().as_deref())?;
        Ok(())
    }

    fn block_io(&mut self, block_io: &LinuxBlockIo) -> Result<(), ResourceError> {
        let no_weights = "the guest's disks have no scheduler that knows weights";
        for (field, weight) in [
            ("blockIO.weight", block_io.weight()),
            ("blockIO.leafWeight", block_io.leaf_weight()),
        ] {
            if weight.is_some_and(|weight| weight != 0) {
                return unsupported(field, no_weights);
            }
        }
        let weighted = block_io.weight_device().as_ref();
        if weighted.is_some_and(|devices| !devices.is_empty()) {
            return unsupported("blockIO.weightDevice", no_weights);
        }
        let mut throttle = |field: &str, key: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
            for device in devices.iter().flatten() {
                let (major, minor) = (device.major(), device.minor());
                let value = match device.rate() {
                    0 => format!("{major}:{minor} {key}=max"),
                    rate => format!("{major}:{minor} {key}={rate}"),
                };
                self.set(field, "io.max", value);
            }
        };
        throttle(
            "blockIO.throttleReadBpsDevice",
            "rbps",
            block_io.throttle_read_bps_device(),
        );
        throttle(
            "blockIO.throttleWriteBpsDevice",
            "wbps",
            block_io.throttle_write_bps_device(),
        );
        throttle(
            "blockIO.throttleReadIOPSDevice",
            "riops",
            block_io.throttle_read_iops_device(),
        );
        throttle(
            "blockIO.throttleWriteIOPSDevice",
            "wiops",
            block_io.throttle_write_iops_device(),
        );
        Ok(())
    }

    fn hugepages(&mut self, hugepages: &LinuxHugepageLimit) -> Result<(), ResourceError> {
        let size = hugepages.page_size();
        let field = format!("hugepageLimits.{size}");
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return invalid(&field, size, "a page size is written as \"2MB\"");
        }
        let most = hugepages.limit().to_string();
        self.set(&field, &format!("hugetlb.{size}.max"), most.clone());
        self.set(&field, &format!("hugetlb.{size}.rsvd.max"), most);
        Ok(())
    }

    /// Writes them to the group at `path`.
    pub(crate) fn apply(&self, path: &Path) -> Result<(), ResourceError> {
        if let Some(most) = self.check_memory {
            let used = fs::read_to_string(path.join("memory.current")).ok();
            let used = used.and_then(|text| text.trim().parse::<u64>().ok());
            if used.is_some_and(|used| used > most) {
                return invalid(
                    "memory.limit",
                    most,
                    "more is in use, and checkBeforeUpdate says to leave it then",
                );
            }
        }
        for setting in &self.settings {
            let path = path.join(&setting.file);
            let value = match &setting.value {
                Value::Text(text) => text.clone(),
                Value::Period(period) => {
                    let now = fs::read_to_string(&path).unwrap_or_default();
                    format!("{} {period}", now.split(' ').next().unwrap_or("max"))
                }
            };
            fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
                .map_err(|source| ResourceError::Refused {
                    field: setting.field.clone(),
                    value,
                    path,
                    source,
                })?;
        }
        Ok(())
    }
}

/// The weight of control groups v2, 1 to 10,000, for the shares of v1, 2 to 262,144.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9_999 / 262_142
}

/// The list in this member, if there is one.
fn list(field: &'static str, text: Option<&str>) -> Result<Option<CpusetList>, ResourceError> {
    CpusetList::optional(text).map_err(|source| ResourceError::List { field, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    fn limits(resources: Json) -> Result<Vec<(String, String)>, ResourceError> {
        let resources = serde_json::from_value(resources).unwrap();
        let limits = Limits::new(&resources, 2)?;
        Ok(limits
            .settings
            .into_iter()
            .map(|setting| match setting.value {
                Value::Text(text) => (setting.file, text),
                Value::Period(period) => (setting.file, format!("* {period}")),
            })
            .collect())
    }

    fn one(resources: Json) -> (String, String) {
        let all = limits(resources).unwrap();
        assert_eq!(all.len(), 1, "{all:?}");
        all.into_iter().next().unwrap()
    }

    fn refusal(resources: Json) -> String {
        limits(resources).unwrap_err().to_string()
    }

    #[test]
    fn memory_limits_become_those_of_control_groups_v2() {
        let all = limits(json!({"memory": {"limit": 1000, "reservation": 500, "swap": 1500}}));
        let expected = [
            ("memory.max", "1000"),
            ("memory.low", "500"),
            ("memory.swap.max", "500"),
        ];
        assert_eq!(
            all.unwrap(),
            expected.map(|(file, value)| (file.to_owned(), value.to_owned()))
        );
        assert!(
            limits(json!({"memory": {"limit": 0, "swap": 0}}))
                .unwrap()
                .is_empty()
        );
        let unlimited = limits(json!({"memory": {"limit": -1, "swap": -1}})).unwrap();
        assert!(unlimited.iter().all(|(_, value)| value == "max"));
        for memory in [json!({"swap": 5}), json!({"limit": 6, "swap": 5})] {
            assert!(refusal(json!({"memory": memory})).contains("memory.swap"));
        }
    }

    #[test]
    fn shares_become_a_weight() {
        for (shares, weight) in [
            (2, "1"),
            (1024, "39"),
            (262_144, "10000"),
            (999_999, "10000"),
        ] {
            let (file, value) = one(json!({"cpu": {"shares": shares}}));
            assert_eq!((file.as_str(), value.as_str()), ("cpu.weight", weight));
        }
    }

    #[test]
    fn quota_and_period_are_one_file() {
        let of = |cpu: Json| one(json!({"cpu": cpu})).1;
        assert_eq!(of(json!({"quota": 5, "period": 10})), "5 10");
        assert_eq!(of(json!({"quota": -1, "period": 10})), "max 10");
        assert_eq!(of(json!({"quota": 5})), "5");
        assert_eq!(of(json!({"period": 10})), "* 10");
    }

    #[test]
    fn processor_list_of_the_host_is_as_many_of_the_guests() {
        let of = |list: &str| one(json!({"cpu": {"cpus": list, "mems": "0-1"}}));
        assert_eq!(of("7"), ("cpuset.cpus".to_owned(), "0-0".to_owned()));
        assert_eq!(of("4,6").1, "0-1");
        assert_eq!(of("0-99").1, "0-1");
        assert!(
            limits(json!({"cpu": {"cpus": "", "mems": "\n"}}))
                .unwrap()
                .is_empty()
        );
        for (field, cpu) in [
            ("cpu.cpus", json!({"cpus": "3-1"})),
            ("cpu.mems", json!({"cpus": "0", "mems": "x"})),
        ] {
            assert!(refusal(json!({"cpu": cpu})).contains(field));
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_its_name() {
        for (resources, name) in [
            (
                json!({"cpu": {"realtimeRuntime": 1}}),
                "cpu.realtimeRuntime",
            ),
            (json!({"memory": {"swappiness": 0}}), "memory.swappiness"),
            (
                json!({"memory": {"disableOOMKiller": true}}),
                "memory.disableOOMKiller",
            ),
            (json!({"memory": {"kernel": 1}}), "memory.kernel"),
            (json!({"blockIO": {"weight": 100}}), "blockIO.weight"),
            (json!({"network": {"classID": 1}}), "network.classID"),
            (json!({"rdma": {"x": {"hcaHandles": 1}}}), "rdma"),
            (json!({"unified": {"../x.y": "1"}}), "unified"),
            (
                json!({"hugepageLimits": [{"pageSize": "../2", "limit": 1}]}),
                "hugepageLimits",
            ),
        ] {
            let text = refusal(resources);
            assert!(text.contains(name), "{text}");
        }
        let nothing =
            json!({"memory": {"disableOOMKiller": false}, "network": {}, "blockIO": {"weight": 0}});
        assert!(limits(nothing).unwrap().is_empty());
    }

    #[test]
    fn unified_comes_last() {
        let all = limits(json!({"unified": {"memory.high": "5"}, "pids": {"limit": 3}})).unwrap();
        assert_eq!(all.last().unwrap().0, "memory.high");
    }
}
