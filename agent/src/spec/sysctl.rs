//! The kernel parameters of a spec: which of them are the container's own, and which are the guest's as a whole.
//!
//! | parameter | where it is set |
//! | --- | --- |
//! | of the container's ipc and uts namespaces | in them, by libcontainer |
//! | `user.max_*` of a container with users of its own | in its user namespace, by libcontainer |
//! | `net.*` | in the guest's network namespace, by the agent |
//! | [`WHOLE_GUEST`] | in the guest's kernel, by the agent: all containers of the pod see it |
//! | any other | refused |
//!
//! The kernel is the pod's own, but the agent runs in it too. What is refused could have programs run in its namespaces
//! (`kernel.core_pattern`, `kernel.modprobe`, `fs.binfmt_misc`), open what the agent has closed (`kernel.io_uring_disabled`), or
//! weaken what stands between it and the containers (`kernel.kptr_restrict`, `vm.mmap_min_addr`, `fs.protected_*`,
//! `fs.suid_dumpable`).

use std::collections::HashMap;

use oci_spec::runtime::Linux;

use super::SpecError;

/// What each container has of its own (ipc_namespaces(7), uts_namespaces(7)).
const CONTAINERS: [&str; 10] = [
    "fs.mqueue.",
    "kernel.domainname",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];
/// What may be set for the guest as a whole: sizes, limits and policies. What ends in `.`, `-` or `_` stands for all that begin so.
const WHOLE_GUEST: [&str; 22] = [
    "vm.",
    "user.max_",
    "fs.aio-max-nr",
    "fs.epoll.",
    "fs.fanotify.",
    "fs.file-max",
    "fs.inotify.",
    "fs.lease-break-time",
    "fs.leases-enable",
    "fs.mount-max",
    "fs.nr_open",
    "fs.pipe-",
    "kernel.core_uses_pid",
    "kernel.hung_task_",
    "kernel.keys.",
    "kernel.numa_balancing",
    "kernel.pid_max",
    "kernel.printk",
    "kernel.pty.",
    "kernel.sched_",
    "kernel.threads-max",
    "kernel.timer_migration",
];
/// But not this: how far up the kernel's own null pointers are out of reach.
const KEPT: &str = "vm.mmap_min_addr";

/// Whether `name` is in the list, or begins as one that stands for many.
fn is_among(list: &[&str], name: &str) -> bool {
    list.iter().any(|known| {
        let stands_for_many = known.ends_with(['.', '-', '_']);
        *known == name || (stands_for_many && name.starts_with(known))
    })
}

/// Takes the parameters out that are not the container's own, in the order of their names.
pub(super) fn take(linux: &mut Linux, own_users: bool) -> Result<Vec<(String, String)>, SpecError> {
    let mut own = HashMap::new();
    let mut guests = Vec::new();
    for (key, value) in linux.sysctl().clone().unwrap_or_default() {
        // Either separates the parts of a name (sysctl(8)).
        let name = key.replace('/', ".");
        let of_own_users = own_users && is_among(&["user.max_"], &name);
        if is_among(&CONTAINERS, &name) || of_own_users {
            own.insert(key, value);
        } else if name.starts_with("net.") || (is_among(&WHOLE_GUEST, &name) && name != KEPT) {
            guests.push((key, value));
        } else {
            return Err(SpecError::Sysctl { key });
        }
    }
    linux.set_sysctl((!own.is_empty()).then_some(own));
    guests.sort();
    Ok(guests)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn taken(key: &str, own_users: bool) -> Result<(usize, usize), SpecError> {
        let mut linux: Linux = serde_json::from_value(json!({"sysctl": {key: "1"}})).unwrap();
        let guests = take(&mut linux, own_users)?;
        let own = linux.sysctl().as_ref().map_or(0, HashMap::len);
        Ok((own, guests.len()))
    }

    #[test]
    fn parameter_is_the_containers_the_guests_or_refused() {
        for key in [
            "kernel.shmmax",
            "kernel/sem",
            "fs.mqueue.msg_max",
            "kernel.domainname",
        ] {
            assert_eq!(taken(key, false).unwrap(), (1, 0), "{key}");
        }
        let users = "user.max_user_namespaces";
        assert_eq!(taken(users, true).unwrap(), (1, 0));
        for key in [
            users,
            "net.core.somaxconn",
            "net/ipv4/conf/eth0.1/forwarding",
            "vm.max_map_count",
            "vm/overcommit_memory",
            "fs.file-max",
            "fs.inotify.max_user_watches",
            "fs.pipe-max-size",
            "kernel.pid_max",
        ] {
            assert_eq!(taken(key, false).unwrap(), (0, 1), "{key}");
        }
        for key in [
            "kernel.io_uring_disabled",
            "kernel.core_pattern",
            "kernel.core_pipe_limit",
            "kernel/core_pattern",
            "kernel.modprobe",
            "kernel.hotplug",
            "kernel.poweroff_cmd",
            "kernel.panic_on_oops",
            "kernel.kptr_restrict",
            "kernel.unprivileged_bpf_disabled",
            "kernel.yama.ptrace_scope",
            "kernel.hostname",
            "kernel.shmmaxx",
            "kernel.pid_max2",
            "vm.mmap_min_addr",
            "vm/mmap_min_addr",
            "fs.binfmt_misc.register",
            "fs.suid_dumpable",
            "fs.protected_symlinks",
            "debug.exception-trace",
            "",
        ] {
            let error = taken(key, false).unwrap_err().to_string();
            assert!(error.contains(&format!("{key:?}")), "{error}");
        }
    }
}
