//! The record of what a sandbox made on the host, and its removal when the shim itself could not.
//!
//! A sandbox's folder holds `processes.json`, written as each process is spawned, `mounts.json`, written before a mount is
//! made, `network.json`, written before something of a network namespace is changed, and `cgroup.json`, written before a
//! control group is made. A process is named by its number **and** its start time (`/proc/PID/stat`, field 22), so a
//! number that the kernel has given to another process since is never killed. Each process leads a process
//! group; while a member of it lives the kernel does not give the number away, so the members are found by it.
//!
//! Only one at a time clears a folder away, its server among them (`claim`). Where the engine does not ask for it, the next server that is
//! started does ([`orphans`]).

mod claim;
mod sweep;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sandbox_network::{JoinRecord, NetworkError};
use sandbox_types::SandboxId;
use serde::{Deserialize, Serialize};

use crate::cgroup::{CgroupError, Group};
use crate::config::Config;
use crate::console::Console;
use crate::files::write_atomically;
use crate::process::ProcessStat;
use crate::share::unmount;

pub(crate) use claim::Attempt;
pub use claim::FolderClaim;
pub use sweep::{Orphan, SweepNote, is_served, orphans, release_socket};

const PROCESSES_FILE: &str = "processes.json";
const MOUNTS_FILE: &str = "mounts.json";
const NETWORK_FILE: &str = "network.json";
const CGROUP_FILE: &str = "cgroup.json";
/// How long killed processes may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Something of a sandbox could not be recorded or removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The record could not be read or written.
    #[error("cannot {action} the record {}", path.display())]
    Record {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A process did not end.
    #[error("{name} (process {pid}) did not end within {} s of SIGKILL", KILL_TIMEOUT.as_secs())]
    Process {
        /// Its name.
        name: String,
        /// Its number.
        pid: u32,
    },
    /// The removal waits for something, such as a file system that does not answer.
    #[error("{} is still being removed after {} s", path.display(), limit.as_secs())]
    Unfinished {
        /// The sandbox's folder.
        path: PathBuf,
        /// How long that was waited for.
        limit: Duration,
    },
    /// A mount could not be undone.
    #[error("cannot unmount {}", path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A network namespace could not be left as it was.
    #[error("cannot undo what was done to the pod's network namespace")]
    Network(#[source] NetworkError),
    /// A control group could not be removed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Something that is not on record is mounted in the folder; removing the folder would remove what it shows.
    #[error("{} is mounted but not on record; unmount it", path.display())]
    Mounted {
        /// Where.
        path: PathBuf,
    },
    /// The folder could not be removed.
    #[error("cannot remove {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names of the processes that were killed.
    pub processes: Vec<String>,
    /// Mounts that were undone.
    pub mounts: Vec<PathBuf>,
}

/// A process that belongs to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RecordedProcess {
    name: String,
    pid: u32,
    /// In clock ticks after boot.
    start_time: u64,
}

/// The record of one sandbox, kept in its folder.
#[derive(Debug)]
pub(crate) struct Record {
    dir: PathBuf,
    processes: Vec<RecordedProcess>,
    mounts: Vec<PathBuf>,
}

impl Record {
    /// An empty record for the folder `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            processes: Vec::new(),
            mounts: Vec::new(),
        }
    }

    /// Adds a process that has just been spawned.
    pub(crate) fn add_process(&mut self, name: &str, pid: u32) -> Result<(), CleanupError> {
        // One that has ended already has no start time, and needs no killing.
        if let Ok(stat) = ProcessStat::read(pid) {
            self.processes.push(RecordedProcess {
                name: name.to_owned(),
                pid,
                start_time: stat.start_time,
            });
            write_record(&self.dir.join(PROCESSES_FILE), &self.processes)?;
        }
        Ok(())
    }

    /// Notes what is about to be done to the network namespace; replaces what was noted before.
    pub(crate) fn set_network(dir: &Path, network: &JoinRecord) -> Result<(), CleanupError> {
        write_record(&dir.join(NETWORK_FILE), &Some(network))
    }

    /// Notes the control groups that are about to be made; replaces what was noted before.
    pub(crate) fn set_cgroup(dir: &Path, groups: &[Group]) -> Result<(), CleanupError> {
        write_record(&dir.join(CGROUP_FILE), &groups)
    }

    /// The control groups on record; none where that cannot be read.
    pub(crate) fn cgroup(dir: &Path) -> Vec<Group> {
        read_record(&dir.join(CGROUP_FILE)).unwrap_or_default()
    }

    /// Adds a mount that is about to be made.
    pub(crate) fn add_mount(&mut self, target: &Path) -> Result<(), CleanupError> {
        self.mounts.push(target.to_owned());
        write_record(&self.dir.join(MOUNTS_FILE), &self.mounts)
    }
}

fn write_record(path: &Path, record: &impl Serialize) -> Result<(), CleanupError> {
    serde_json::to_vec(record)
        .map_err(io::Error::from)
        .and_then(|json| write_atomically(path, &json))
        .map_err(|source| CleanupError::Record {
            action: "write",
            path: path.to_owned(),
            source,
        })
}

fn read_record<T: Default + serde::de::DeserializeOwned>(path: &Path) -> Result<T, CleanupError> {
    match std::fs::read(path) {
        Ok(json) => serde_json::from_slice(&json).map_err(io::Error::from),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(e) => Err(e),
    }
    .map_err(|source| CleanupError::Record {
        action: "read",
        path: path.to_owned(),
        source,
    })
}

/// The last lines of the console that a sandbox left in its folder; for the caller of a shim that was killed, before
/// [`remove_sandbox`]. Empty when there is none.
#[must_use]
pub fn console_tail(config: &Config, namespace: &str, id: &SandboxId) -> Vec<String> {
    Console::open(&config.sandbox_dir(namespace, id))
        .map(|console| console.tail())
        .unwrap_or_default()
}

/// Kills the recorded processes of a sandbox, undoes its mounts, and removes its control group and its folder. Nothing to remove is
/// no error. For `shim delete`, after the shim has ended. Blocks until the processes are gone, and before for a while if somebody else clears the
/// sandbox away, or its shim has not ended after all.
///
/// # Errors
/// [`CleanupError`] names the first thing that is left; everything else is removed all the same.
pub fn remove_sandbox(
    config: &Config,
    namespace: &str,
    id: &SandboxId,
) -> Result<Removed, CleanupError> {
    let dir = config.sandbox_dir(namespace, id);
    // Without it too: who calls this knows better than a shim that hangs.
    let _claim = FolderClaim::of_left(&dir);
    remove_dir(&dir)
}

/// As [`remove_sandbox`], of the folder `dir`, which is claimed.
pub(crate) fn remove_dir(dir: &Path) -> Result<Removed, CleanupError> {
    let mut removed = Removed::default();
    let mut first_error = None;
    let processes: Vec<RecordedProcess> =
        keep_first_error(read_record(&dir.join(PROCESSES_FILE)), &mut first_error);
    let deadline = Instant::now() + KILL_TIMEOUT;
    for process in &processes {
        match kill_process(process, deadline) {
            Ok(true) => removed.processes.push(process.name.clone()),
            Ok(false) => {}
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    let network: Option<JoinRecord> =
        keep_first_error(read_record(&dir.join(NETWORK_FILE)), &mut first_error);
    if let Some(Err(error)) = network.as_ref().map(sandbox_network::undo) {
        first_error.get_or_insert(CleanupError::Network(error));
    }
    let mounts: Vec<PathBuf> =
        keep_first_error(read_record(&dir.join(MOUNTS_FILE)), &mut first_error);
    for path in mounts.into_iter().rev() {
        match unmount(&path) {
            Ok(true) => removed.mounts.push(path),
            Ok(false) => {}
            Err(source) => {
                first_error.get_or_insert(CleanupError::Mount { path, source });
            }
        }
    }
    let groups: Vec<Group> =
        keep_first_error(read_record(&dir.join(CGROUP_FILE)), &mut first_error);
    for group in groups {
        if let Err(error) = group.remove() {
            first_error.get_or_insert(error.into());
        }
    }
    if let Some(error) = first_error {
        // The record stays, for another try.
        return Err(error);
    }
    if let Some(path) = mounts_below(dir).into_iter().next() {
        return Err(CleanupError::Mounted { path });
    }
    match std::fs::remove_dir_all(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CleanupError::Folder {
            path: dir.to_owned(),
            source,
        }),
        _ => Ok(removed),
    }
}

/// The mount points at or below `dir`, in the order in which they were mounted (proc_pid_mountinfo(5)). Links on the way to `dir` are followed, so that
/// it is no path in which a guest writes.
pub(crate) fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let Ok(dir) = std::fs::canonicalize(dir) else {
        return Vec::new();
    };
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(unescape_path)
        .filter(|path| path.starts_with(&dir))
        .collect()
}

/// The root of what is mounted at `path`, in its own file system: of the mount on top (proc_pid_mountinfo(5)). `path` must lead over no link.
pub fn mount_root(path: &Path) -> Option<PathBuf> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    root_in(&table, path)
}

fn root_in(table: &[u8], path: &Path) -> Option<PathBuf> {
    let mut lines = table.rsplit(|&byte| byte == b'\n');
    lines.find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ').skip(3).map(unescape_path);
        let root = fields.next()?;
        (fields.next()? == path).then_some(root)
    })
}

/// A path of mountinfo's.
pub(crate) fn unescape_path(field: impl AsRef<[u8]>) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field.as_ref())))
}

/// Undoes mountinfo's escapes: a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

fn keep_first_error<T: Default>(
    result: Result<T, CleanupError>,
    first_error: &mut Option<CleanupError>,
) -> T {
    result.unwrap_or_else(|error| {
        first_error.get_or_insert(error);
        T::default()
    })
}

/// Whether a process of the sandbox in `dir` is alive.
pub(crate) fn has_live_process(dir: &Path) -> bool {
    let processes: Vec<RecordedProcess> =
        read_record(&dir.join(PROCESSES_FILE)).unwrap_or_default();
    processes.iter().any(|process| {
        ProcessStat::read(process.pid)
            .is_ok_and(|stat| stat.start_time == process.start_time && !stat.is_zombie())
    })
}

/// The processes that run and serve the sandbox in `dir`.
pub(crate) fn live_processes(dir: &Path) -> Vec<u32> {
    let processes: Vec<RecordedProcess> =
        read_record(&dir.join(PROCESSES_FILE)).unwrap_or_default();
    let live = processes.iter().filter(|process| {
        ProcessStat::read(process.pid).is_ok_and(|stat| stat.start_time == process.start_time)
    });
    live.map(|process| process.pid).collect()
}

/// Kills a recorded process and its group, if they are still ours, and waits for their end. Says whether anything
/// was killed.
fn kill_process(process: &RecordedProcess, deadline: Instant) -> Result<bool, CleanupError> {
    match ProcessStat::read(process.pid) {
        Ok(stat) if stat.start_time != process.start_time => return Ok(false),
        _ => {}
    }
    let mut killed = false;
    for pid in group_members(process.pid) {
        let Some(pidfd) = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        else {
            continue;
        };
        // Looked at again now that the descriptor pins it.
        let still_ours = ProcessStat::read(pid).is_ok_and(|stat| {
            stat.group == process.pid
                && (pid != process.pid || stat.start_time == process.start_time)
        });
        if !still_ours || pidfd_send_signal(&pidfd, Signal::KILL).is_err() {
            continue;
        }
        killed = true;
        if !wait_for_end(&pidfd, deadline) {
            return Err(CleanupError::Process {
                name: process.name.clone(),
                pid,
            });
        }
    }
    Ok(killed)
}

fn group_members(group: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| {
            ProcessStat::read(pid).is_ok_and(|stat| stat.group == group && !stat.is_zombie())
        })
        .collect()
}

/// Whether the process ended before the deadline.
fn wait_for_end(pidfd: &OwnedFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    fn sleeper() -> Child {
        Command::new("sleep")
            .arg("1000")
            .process_group(0)
            .spawn()
            .unwrap()
    }

    #[test]
    fn remove_kills_recorded_processes_and_removes_the_folder() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("box");
        std::fs::create_dir(&dir).unwrap();
        let mut child = sleeper();
        let mut record = Record::new(&dir);
        record.add_process("sleep", child.id()).unwrap();
        assert!(has_live_process(&dir));
        let removed = remove_dir(&dir).unwrap();
        assert_eq!(removed.processes, ["sleep"]);
        assert!(!dir.exists());
        assert!(!child.wait().unwrap().success());
        assert_eq!(remove_dir(&dir).unwrap(), Removed::default());
    }

    #[test]
    fn remove_leaves_a_process_whose_start_time_differs() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("box");
        std::fs::create_dir(&dir).unwrap();
        let mut child = sleeper();
        let mut record = Record::new(&dir);
        record.add_process("sleep", child.id()).unwrap();
        record.processes[0].start_time += 1;
        write_record(&dir.join(PROCESSES_FILE), &record.processes).unwrap();
        assert!(!has_live_process(&dir));
        assert_eq!(remove_dir(&dir).unwrap(), Removed::default());
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn remove_reaches_what_a_dead_leader_left_in_its_group() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("box");
        std::fs::create_dir(&dir).unwrap();
        let mut leader = Command::new("sh")
            .arg("-c")
            .arg("sleep 1000 & read line")
            .stdin(std::process::Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut record = Record::new(&dir);
        record.add_process("sh", leader.id()).unwrap();
        drop(leader.stdin.take());
        leader.wait().unwrap();
        let member = group_members(leader.id());
        assert_eq!(member.len(), 1);
        assert_eq!(remove_dir(&dir).unwrap().processes, ["sh"]);
        assert!(group_members(leader.id()).is_empty());
    }

    #[test]
    fn escaped_mount_points_are_read() {
        assert_eq!(unescape(br"/a\040b\134c\9"), br"/a b\c\9");
        assert_eq!(
            mounts_below(Path::new("/proc")).first(),
            Some(&"/proc".into())
        );
    }

    #[test]
    fn root_of_a_mount_is_that_of_the_one_on_top() {
        let table = br"28 1 8:1 / / rw - ext4 /dev/sda1 rw
60 28 0:50 / /v rw - tmpfs tmpfs rw
61 28 0:50 /a\040b /s rw shared:1 - tmpfs tmpfs rw
62 61 0:50 /c /s rw - tmpfs tmpfs rw
";
        let root = |path: &str| root_in(table, Path::new(path));
        assert_eq!(root("/v"), Some("/".into()));
        assert_eq!(root("/s"), Some("/c".into()));
        assert_eq!(root("/s/c"), None);
        let below = table.strip_suffix(b"62 61 0:50 /c /s rw - tmpfs tmpfs rw\n");
        assert_eq!(
            root_in(below.unwrap(), Path::new("/s")),
            Some("/a b".into())
        );
    }

    #[test]
    fn record_that_cannot_be_read_keeps_the_folder() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("box");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join(MOUNTS_FILE), "not json").unwrap();
        assert!(matches!(
            remove_dir(&dir),
            Err(CleanupError::Record { action: "read", .. })
        ));
        assert!(dir.exists());
    }
}
