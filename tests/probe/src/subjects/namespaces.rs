//! Which namespaces, and what each of them holds.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use serde_json::{Map, Value, json};

use crate::look;

/// Numbers that the kernel gives to the namespaces it boots with (`include/linux/proc_ns.h`). Those of the other
/// kinds are not fixed.
const FIRST: &[(&str, u64)] = &[
    ("ipc", 0xEFFF_FFFF),
    ("uts", 0xEFFF_FFFE),
    ("user", 0xEFFF_FFFD),
    ("pid", 0xEFFF_FFFC),
    ("cgroup", 0xEFFF_FFFB),
    ("time", 0xEFFF_FFFA),
];

const KINDS: &[&str] = &[
    "cgroup",
    "ipc",
    "mnt",
    "net",
    "pid",
    "pid_for_children",
    "time",
    "time_for_children",
    "user",
    "uts",
];

/// Each namespace: its number, and whether it is the kernel's first one, where that can be known.
pub(crate) fn look() -> Value {
    let seen: Map<String, Value> = KINDS
        .iter()
        .map(|kind| {
            let value = match fs::metadata(format!("/proc/self/ns/{kind}")) {
                Ok(metadata) => {
                    let first = FIRST
                        .iter()
                        .find(|(name, _)| Some(*name) == kind.split("_for_children").next());
                    json!({
                        "number": metadata.ino(),
                        "is_first": first.map(|(_, number)| *number == metadata.ino()),
                    })
                }
                Err(error) => look::io_error(&error),
            };
            ((*kind).to_owned(), value)
        })
        .collect();
    let mut seen = Value::Object(seen);
    seen["time_offsets"] = look::lines("/proc/self/timens_offsets");
    seen["cgroup_path"] = look::lines("/proc/self/cgroup");
    seen
}

/// The UTS namespace's names.
pub(crate) fn names() -> Value {
    match nix::sys::utsname::uname() {
        Ok(names) => json!({
            "host": names.nodename().to_string_lossy(),
            "domain": names.domainname().to_string_lossy(),
            "system": names.sysname().to_string_lossy(),
            "machine": names.machine().to_string_lossy(),
        }),
        Err(errno) => look::error(errno),
    }
}

/// Kernel parameters that belong to a namespace.
pub(crate) fn sysctl() -> Value {
    const NAMES: &[&str] = &[
        "fs/mqueue/msg_default",
        "fs/mqueue/msg_max",
        "fs/mqueue/msgsize_max",
        "fs/mqueue/queues_max",
        "kernel/auto_msgmni",
        "kernel/domainname",
        "kernel/hostname",
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shm_rmid_forced",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
        "net/core/somaxconn",
        "net/ipv4/conf/all/forwarding",
        "net/ipv4/ip_default_ttl",
        "net/ipv4/ip_forward",
        "net/ipv4/ip_local_port_range",
        "net/ipv4/ip_unprivileged_port_start",
        "net/ipv4/ping_group_range",
        "net/ipv4/tcp_syncookies",
    ];
    let read = |name: &&str| {
        let value = match look::text(format!("/proc/sys/{name}")) {
            Value::String(text) => text.split_whitespace().collect::<Vec<_>>().join(" ").into(),
            error => error,
        };
        (name.replace('/', "."), value)
    };
    Value::Object(NAMES.iter().map(read).collect())
}
