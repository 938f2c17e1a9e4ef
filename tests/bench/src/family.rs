//! The processes that exist because of a lab's containers, and what each is for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use sandbox_harness::leaks::{self, Process};

use crate::lab::Lab;
use crate::smaps::Owner;

/// Whether there is such a process.
pub(crate) fn is_there(pid: i32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

/// The processes of the lab, and what they started: a container under runc has an environment of its own.
pub(crate) fn family(lab: &Lab) -> Vec<Process> {
    let mut known = leaks::processes(lab.world().path());
    let ours = i32::try_from(std::process::id()).unwrap_or(0);
    let pids = || {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
    };
    let parents: BTreeMap<i32, i32> = pids()
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, parent(&stat)?))
        })
        .collect();
    let members: BTreeSet<i32> = known.iter().map(|one| one.pid).collect();
    for pid in parents.keys().filter(|pid| !members.contains(pid)) {
        let mut ancestor = *pid;
        while let Some(above) = parents.get(&ancestor) {
            if *above == ours {
                break;
            }
            if members.contains(above) {
                let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command).replace('\0', " ");
                // A kernel thread or a process that is gone has none.
                if !command.trim().is_empty() {
                    known.push(Process {
                        pid: *pid,
                        command: command.trim().to_owned(),
                    });
                }
                break;
            }
            ancestor = *above;
        }
    }
    known
}

/// The parent in `/proc/<pid>/stat`: the second field behind the name, which is in brackets.
fn parent(stat: &str) -> Option<i32> {
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// What a process is for.
pub(crate) fn role(command: &str) -> (&'static str, Owner) {
    let program = command.split(' ').next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    match name {
        "sandbox-vmm" if command.contains("vsock-backend") => ("vsock device", Owner::Machine),
        "sandbox-vmm" => ("monitor", Owner::Machine),
        "qemu-system-x86_64" => ("QEMU", Owner::Machine),
        "virtiofsd" => ("virtiofsd", Owner::Machine),
        "sandboxctl" => ("attendant", Owner::Plain),
        _ if name.starts_with("containerd-shim-") => ("shim", Owner::Plain),
        _ => ("container's processes", Owner::Plain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_is_told_by_program() {
        let of = |command: &str| role(command).0;
        assert_eq!(of("/x/sandbox-vmm run --config-fd 3"), "monitor");
        assert_eq!(of("/x/sandbox-vmm vsock-backend --cid 3"), "vsock device");
        assert_eq!(of("/x/containerd-shim-sandbox-v2 -id a"), "shim");
        assert_eq!(of("/usr/bin/containerd-shim-runc-v2 -id a"), "shim");
        assert_eq!(of("sleep 100000"), "container's processes");
        assert_eq!(of("/x/sandboxctl attend abc"), "attendant");
    }

    #[test]
    fn parent_is_found_behind_a_name_with_brackets() {
        assert_eq!(parent("12 (a) b) S 7 12 12 0"), Some(7));
        assert_eq!(parent("12 (a"), None);
    }
}
