//! On which processors and memory nodes of the host a sandbox runs (cpuset(7); kernel `Documentation/admin-guide/cgroup-v2.rst`, "Cpuset").
//!
//! A group without a list has those of the group above, in version 2. Once it has one and a process, it cannot be without again (`ENOSPC`,
//! `kernel/cgroup/cpuset.c`), and so gets a list of all that there can be, of which the groups above leave what they have. In version 1 a group
//! always has a list, and gets that of the group above.

use std::fs;
use std::path::Path;

use sandbox_types::CpusetList;

use super::hierarchy::Version;
use super::{CgroupError, Group, refused, set};

/// Where the kernel lists processors and memory nodes (kernel `Documentation/ABI/stable/sysfs-devices-system-cpu`, `sysfs-devices-node`).
const DEVICES: &str = "/sys/devices/system";

/// On which of the host's processors and memory nodes something may run: all of them where there is no list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// Processors.
    pub cpus: Option<CpusetList>,
    /// Memory nodes.
    pub mems: Option<CpusetList>,
}

impl Places {
    /// Those that the host has and uses. There is no list where the kernel tells none.
    #[must_use]
    pub fn of_host() -> Self {
        Self {
            cpus: listed(Path::new(DEVICES), "cpu/online"),
            mems: listed(Path::new(DEVICES), "node/has_memory"),
        }
    }

    /// All that either of the two may use.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let union = |one: &Option<CpusetList>, other: &Option<CpusetList>| {
            Some(one.as_ref()?.union(other.as_ref()?))
        };
        Self {
            cpus: union(&self.cpus, &other.cpus),
            mems: union(&self.mems, &other.mems),
        }
    }

    /// By the names of a group's files, each with where the kernel lists all that the host can ever have.
    fn files(&self) -> [(&'static str, Option<&CpusetList>, &'static str); 2] {
        let [cpus, mems] = super::CPUSET_FILES;
        [
            (cpus, self.cpus.as_ref(), "cpu/possible"),
            (mems, self.mems.as_ref(), "node/possible"),
        ]
    }
}

fn listed(devices: &Path, name: &str) -> Option<CpusetList> {
    fs::read_to_string(devices.join(name)).ok()?.parse().ok()
}

impl Group {
    /// Has whatever is in it run there, in a hierarchy of this version with the controller.
    pub(super) fn place(&self, version: Version, places: &Places) -> Result<(), CgroupError> {
        let folder = self.folder();
        for (name, list, possible) in places.files() {
            let file = folder.join(name);
            let read = |path: &Path| fs::read_to_string(path).map_err(refused("read", path));
            match (version, list) {
                (_, Some(list)) => set(&file, list.as_str())?,
                (Version::V1, None) => {
                    let above = folder.parent().unwrap_or(&self.mount);
                    set(&file, read(&above.join(name))?.trim())?;
                }
                // The file is not there either where the controller was not handed down.
                (Version::V2, None) if read(&file).is_ok_and(|list| !list.trim().is_empty()) => {
                    if let Some(all) = listed(Path::new(DEVICES), possible) {
                        set(&file, all.as_str())?;
                    }
                }
                (Version::V2, None) => {}
            }
        }
        Ok(())
    }
}
