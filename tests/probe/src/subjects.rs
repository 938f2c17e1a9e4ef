//! What can be looked at, by name.

mod cgroup;
mod devices;
mod identity;
mod mounts;
mod namespaces;
mod network;
mod process;
mod scheduling;
mod terminal;

use serde_json::Value;

/// A subject's name, and how to look at it.
type Subject = (&'static str, fn() -> Value);

/// Every subject.
pub(crate) const ALL: &[Subject] = &[
    ("identity", identity::look),
    ("limits", identity::limits),
    ("process", process::look),
    ("signals", process::signals),
    ("descriptors", process::descriptors),
    ("names", namespaces::names),
    ("namespaces", namespaces::look),
    ("sysctl", namespaces::sysctl),
    ("mounts", mounts::look),
    ("paths", mounts::paths),
    ("writable", mounts::writable),
    ("devices", devices::look),
    ("device_rules", devices::rules),
    ("cgroup", cgroup::look),
    ("terminal", terminal::look),
    ("scheduling", scheduling::look),
    ("network", network::look),
];
