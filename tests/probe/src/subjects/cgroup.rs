//! What the container's control group says, where it is mounted.

use std::path::Path;

use serde_json::{Map, Value};

use crate::look;

const ROOT: &str = "/sys/fs/cgroup";

/// Files of a cgroup (cgroup v2, `Documentation/admin-guide/cgroup-v2.rst`) that say what it may use.
const FILES: &[&str] = &[
    "cgroup.controllers",
    "cgroup.freeze",
    "cgroup.max.depth",
    "cgroup.max.descendants",
    "cgroup.subtree_control",
    "cgroup.type",
    "cpu.idle",
    "cpu.max",
    "cpu.max.burst",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.cpus.effective",
    "cpuset.mems",
    "hugetlb.2MB.max",
    "hugetlb.2MB.rsvd.max",
    "io.max",
    "io.weight",
    "memory.high",
    "memory.low",
    "memory.max",
    "memory.min",
    "memory.oom.group",
    "memory.swap.high",
    "memory.swap.max",
    "pids.max",
];

/// Each file's content.
pub(crate) fn look() -> Value {
    let read = |name: &&str| ((*name).to_owned(), look::text(Path::new(ROOT).join(name)));
    let files: Map<String, Value> = FILES.iter().map(read).collect();
    Value::Object(files)
}
