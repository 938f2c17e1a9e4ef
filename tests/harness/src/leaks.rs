//! The leak check: what a test must not leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::wait_until;
use crate::world::DYING;

/// The environment variable by which every process of a world is known, down to the last grandchild.
pub const WORLD_VARIABLE: &str = "SANDBOX_TEST_WORLD";

/// A process that belongs to a world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its command line, joined by spaces.
    pub command: String,
}

/// The processes whose environment or command line names this world; zombies and we ourselves do not count.
#[must_use]
pub fn processes(world: &Path) -> Vec<Process> {
    let mark = world.as_os_str().as_encoded_bytes();
    let ours = i32::try_from(std::process::id()).unwrap_or(0);
    let Ok(folder) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    folder
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            if pid == ours {
                return None;
            }
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let named = |bytes: &[u8]| bytes.windows(mark.len()).any(|window| window == mark);
            if command.is_empty() || !(named(&command) || named(&environment)) {
                return None;
            }
            let command = String::from_utf8_lossy(&command)
                .replace('\0', " ")
                .trim()
                .to_owned();
            Some(Process { pid, command })
        })
        .collect()
}

/// Kills the processes of this world.
pub fn kill_all(world: &Path) {
    for process in processes(world) {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
}

fn lines_naming(file: &str, world: &Path) -> Vec<String> {
    let world = world.to_string_lossy();
    fs::read_to_string(file)
        .unwrap_or_default()
        .lines()
        .filter(|line| line.contains(world.as_ref()))
        .map(str::to_owned)
        .collect()
}

fn files_below(folder: &Path, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        found.push(entry.path().display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files_below(&entry.path(), found);
        }
    }
}

/// Names that exist once for the whole machine, by which a before and an after are compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    network_devices: BTreeSet<String>,
    network_namespaces: BTreeSet<String>,
    cgroups: BTreeSet<String>,
}

fn names(folder: &str) -> BTreeSet<String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

const CGROUPS: &str = "/sys/fs/cgroup";

/// The control groups of a group.
fn groups_in(group: &str) -> Vec<String> {
    names(group)
        .into_iter()
        .map(|name| format!("{group}/{name}"))
        .filter(|path| Path::new(path).join("cgroup.procs").exists())
        .collect()
}

/// What the machine has now.
#[must_use]
pub fn machine() -> Machine {
    // With version 1 the hierarchies are mounted below.
    let mut cgroups = groups_in(CGROUPS);
    if !Path::new(CGROUPS).join("cgroup.procs").exists() {
        let below: Vec<String> = cgroups.iter().flat_map(|root| groups_in(root)).collect();
        cgroups.extend(below);
    }
    Machine {
        network_devices: names("/sys/class/net"),
        network_namespaces: names("/run/netns"),
        cgroups: cgroups.into_iter().collect(),
    }
}

impl Machine {
    /// What the machine has now that this had not, once it stays: the kernel and what was killed take a while to clear away.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let _ = wait_until("that nothing is left", DYING, || {
            left = self.added_in(&machine());
            left.is_empty().then_some(())
        });
        left
    }

    /// What `now` has that this had not.
    fn added_in(&self, now: &Self) -> Vec<String> {
        let added = |what: &str, before: &BTreeSet<String>, after: &BTreeSet<String>| {
            after
                .difference(before)
                .map(|name| format!("{what} {name}"))
                .collect::<Vec<_>>()
        };
        let mut all = added(
            "network device",
            &self.network_devices,
            &now.network_devices,
        );
        all.extend(added(
            "network namespace",
            &self.network_namespaces,
            &now.network_namespaces,
        ));
        all.extend(added("cgroup", &self.cgroups, &now.cgroups));
        all
    }
}

/// Everything of a world that is still there, of processes, mounts, sockets, and files in `empty`, the folders
/// that must have nothing in them.
#[must_use]
pub fn left_behind(world: &Path, empty: &[&Path]) -> Vec<String> {
    let mut left: Vec<String> = processes(world)
        .into_iter()
        .map(|process| format!("process {}: {}", process.pid, process.command))
        .collect();
    left.extend(
        lines_naming("/proc/self/mountinfo", world)
            .into_iter()
            .map(|line| format!("mount {line}")),
    );
    left.extend(
        lines_naming("/proc/net/unix", world)
            .into_iter()
            .map(|line| format!("socket {line}")),
    );
    for folder in empty {
        let mut files = Vec::new();
        files_below(folder, &mut files);
        left.extend(files.into_iter().map(|file| format!("file {file}")));
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn process_of_a_world_is_found_by_its_environment() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("cat")
            .env(WORLD_VARIABLE, folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let found = wait_until("cat", DYING, || processes(folder.path()).into_iter().next());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.unwrap().command, "cat");
        assert!(processes(folder.path()).is_empty());
    }

    #[test]
    fn file_in_a_folder_that_must_be_empty_is_found() {
        let folder = tempfile::tempdir().unwrap();
        assert!(left_behind(folder.path(), &[folder.path()]).is_empty());
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/b"), "").unwrap();
        assert_eq!(left_behind(folder.path(), &[folder.path()]).len(), 2);
    }
}
