//! The leak check: what a test must not leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

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

/// The mount points at and below a world's folder, outermost first.
#[must_use]
pub fn mounts_below(world: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // proc_pid_mountinfo(5).
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|point| point.starts_with(world))
        .collect()
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

/// What a run left on the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left {
    /// What carries the marks of this run.
    pub ours: Vec<String>,
    /// What came meanwhile and may be anybody's: of another run, or of other containers on this machine.
    pub others: Vec<String>,
}

/// What the names of network devices begin with that the product makes: bridges and taps.
const DEVICES: [&str; 2] = ["sb-", "sbtap"];
/// What the names of network namespaces and control groups begin with that tests make. A process id follows.
const WITH_PROCESS: [&str; 2] = ["sbtest-", "sandbox-test-"];
/// What the names of control groups begin with that the product makes without saying for whom.
const GROUPS: [&str; 2] = ["sandboxctl", "isolation-"];

/// The process that a network namespace or control group is named after.
pub(crate) fn process_in(name: &str) -> Option<u32> {
    let rest = WITH_PROCESS
        .iter()
        .find_map(|mark| name.strip_prefix(mark))?;
    rest.split('-').next()?.parse().ok()
}

/// Whether a process is in a control group, or in one below it.
fn is_in_use(group: &Path) -> bool {
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    !processes.trim().is_empty()
        || groups_in(&group.to_string_lossy())
            .iter()
            .any(|below| is_in_use(Path::new(below)))
}

/// Whether a control group is this run's. One without a process's id in its name is another's if something runs in it: the
/// processes of a world are looked for by [`left_behind`].
fn is_our_group(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    match process_in(name) {
        Some(process) => process == std::process::id(),
        None => GROUPS.iter().any(|mark| name.starts_with(mark)) && !is_in_use(Path::new(path)),
    }
}

impl Machine {
    /// The names of its network namespaces.
    pub(crate) fn network_namespaces(&self) -> impl Iterator<Item = &str> {
        self.network_namespaces.iter().map(String::as_str)
    }

    /// The paths of its control groups, those of the first level.
    pub(crate) fn cgroups(&self) -> impl Iterator<Item = &str> {
        self.cgroups.iter().map(String::as_str)
    }

    /// What the machine has now that this had not, once it stays: the kernel and what was killed take a while to clear away.
    #[must_use]
    pub fn left(&self) -> Left {
        let mut left = Left::default();
        let _ = wait_until("that nothing is left", DYING, || {
            left = self.added_in(&machine());
            left.ours.is_empty().then_some(())
        });
        left
    }

    /// What `now` has that this had not.
    fn added_in(&self, now: &Self) -> Left {
        let mut left = Left::default();
        let mut add = |what: &str,
                       before: &BTreeSet<String>,
                       after: &BTreeSet<String>,
                       is_ours: &dyn Fn(&str) -> bool| {
            for name in after.difference(before) {
                let all = if is_ours(name) {
                    &mut left.ours
                } else {
                    &mut left.others
                };
                all.push(format!("{what} {name}"));
            }
        };
        add(
            "network device",
            &self.network_devices,
            &now.network_devices,
            &|name| DEVICES.iter().any(|mark| name.starts_with(mark)),
        );
        add(
            "network namespace",
            &self.network_namespaces,
            &now.network_namespaces,
            &|name| process_in(name) == Some(std::process::id()),
        );
        add("cgroup", &self.cgroups, &now.cgroups, &is_our_group);
        left
    }
}

impl Left {
    /// A line for each of ours and one for the others, for `cargo xtask test`'s closing list.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let ours = self.ours.iter().map(|what| format!("left behind: {what}"));
        let others = (!self.others.is_empty()).then(|| {
            format!(
                "came meanwhile, from somebody else: {}",
                self.others.join(", ")
            )
        });
        ours.chain(others).collect()
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

    #[test]
    fn what_others_make_meanwhile_is_not_ours() {
        let ours = std::process::id();
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let namespaces = [format!("sbtest-{ours}-0-net"), "sbtest-1-0-net".to_owned()];
        let now = Machine {
            network_devices: set(&["lo", "sb-0123456789", "veth1234"]),
            network_namespaces: set(&[&namespaces[0], &namespaces[1], "cni-1"]),
            // One that is not there has no process in it.
            cgroups: set(&["/none/sandboxctl", "/none/docker"]),
        };
        let before = Machine {
            network_devices: set(&["lo"]),
            ..Machine::default()
        };
        let left = before.added_in(&now);
        assert_eq!(
            left.ours,
            [
                "network device sb-0123456789",
                &format!("network namespace {}", namespaces[0]),
                "cgroup /none/sandboxctl",
            ]
        );
        assert_eq!(
            left.others,
            [
                "network device veth1234",
                "network namespace cni-1",
                "network namespace sbtest-1-0-net",
                "cgroup /none/docker",
            ]
        );
    }
}
