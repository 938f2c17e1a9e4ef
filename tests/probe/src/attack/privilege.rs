//! What a process may do, and may become.

use std::fs::{self, File};

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Map, Value, json};

use super::{Attempt, raw, text};
use crate::look;

pub(super) const ALL: &[Attempt] = &[
    ("capabilities", capabilities),
    ("user_namespace", user_namespace),
    ("system_calls", system_calls),
    ("join_namespaces", join_namespaces),
    ("host_name", host_name),
    ("confinement", confinement),
];

/// The sets of capabilities, and what else holds a process back.
fn capabilities(_: &Value) -> Value {
    json!({
        "effective": look::status("CapEff"),
        "bounding": look::status("CapBnd"),
        "filter": look::status("Seccomp"),
    })
}

/// Makes a user namespace.
fn user_namespace(_: &Value) -> Value {
    let made = unshare(CloneFlags::CLONE_NEWUSER);
    json!({ "made": look::outcome(made), "capabilities": look::status("CapEff") })
}

/// Flags of clone(2) for a user namespace, and for the caller's own root and working directory, which no process there may have.
const NEW_USERS_AND_OLD_FILES: libc::c_long = 0x1000_0200;

/// Calls that docker's default profile refuses, each in a form that does nothing when it is let through.
fn system_calls(_: &Value) -> Value {
    let mut seen = Map::new();
    let calls: [(&str, libc::c_long, [libc::c_long; 5]); 9] = [
        // A keyring that is not there: ENOKEY when it is let through.
        ("keyctl", libc::SYS_keyctl, [0, -4, 0, 0, 0]),
        // A map of nothing: EINVAL.
        ("bpf", libc::SYS_bpf, [0, 0, 0, 0, 0]),
        (
            "perf_event_open",
            libc::SYS_perf_event_open,
            [0, 0, -1, -1, 0],
        ),
        ("userfaultfd", libc::SYS_userfaultfd, [-1, 0, 0, 0, 0]),
        ("kexec_load", libc::SYS_kexec_load, [0, 17, 0, -1, 0]),
        ("init_module", libc::SYS_init_module, [0, 0, 0, 0, 0]),
        ("mount", libc::SYS_mount, [0, 0, 0, 0, 0]),
        ("setns", libc::SYS_setns, [-1, 0, 0, 0, 0]),
        // A profile lets clone(2) through but for some flags. These contradict each other: EINVAL.
        (
            "clone",
            libc::SYS_clone,
            [NEW_USERS_AND_OLD_FILES, 0, 0, 0, 0],
        ),
    ];
    for (name, call, arguments) in calls {
        let outcome = raw::by_numbers(call, arguments);
        let text = match outcome {
            Ok(_) => "ok".to_owned(),
            Err(errno) => format!("{errno:?}"),
        };
        let refused = matches!(outcome, Err(Errno::EPERM | Errno::ENOSYS));
        seen.insert(
            name.to_owned(),
            json!({ "outcome": text, "refused": refused }),
        );
    }
    json!({ "calls": seen })
}

/// Joins the mount namespace of every process it sees, and reads `path` there.
fn join_namespaces(params: &Value) -> Value {
    let path = text(params, "path");
    let own = fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
    let mut joined = 0u64;
    let mut last = Value::Null;
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in processes {
        let file = entry.path().join("ns/mnt");
        if fs::read_link(&file).is_ok_and(|namespace| namespace == own) {
            continue;
        }
        let Ok(namespace) = File::open(&file) else {
            continue;
        };
        match setns(&namespace, CloneFlags::CLONE_NEWNS) {
            Ok(()) => {
                joined += 1;
                if let Ok(found) = fs::read_to_string(path) {
                    return json!({ "joined": joined, "found": found });
                }
            }
            Err(errno) => last = look::error(errno),
        }
    }
    json!({ "joined": joined, "last": last })
}

/// The name of the machine, and the domain's.
fn host_name(_: &Value) -> Value {
    json!({
        "name": look::text("/proc/sys/kernel/hostname"),
        "domain": look::text("/proc/sys/kernel/domainname"),
    })
}

/// What this process is confined to: capabilities, filter, control group, namespaces.
fn confinement(_: &Value) -> Value {
    let namespaces = fs::read_dir("/proc/self/ns")
        .into_iter()
        .flatten()
        .flatten();
    let namespaces: Map<String, Value> = namespaces
        .map(|entry| {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, target.to_string_lossy().into())
        })
        .collect();
    json!({
        "effective": look::status("CapEff"),
        "bounding": look::status("CapBnd"),
        "filter": look::status("Seccomp"),
        "no_new_privileges": look::status("NoNewPrivs"),
        "control_group": look::lines("/proc/self/cgroup"),
        "namespaces": namespaces,
    })
}
