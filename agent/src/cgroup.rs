//! The containers' control groups (kernel `Documentation/admin-guide/cgroup-v2.rst`).
//!
//! ```text
//! /sys/fs/cgroup/agent          the agent and its helpers
//! /sys/fs/cgroup/sandbox/<id>   a container
//! ```

mod devices;
mod resources;
mod stats;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::LinuxDeviceCgroup;
use rustix::fs::inotify;
use sandbox_types::ContainerId;
use tokio::io::unix::AsyncFd;

use self::devices::DeviceError;
pub(crate) use self::resources::{Limits, ResourceError};
pub(crate) use self::stats::{Values, add_interfaces, read};

/// Where the hierarchy is mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// Parent of the containers' groups.
const PARENT: &str = "sandbox";
/// How deep below a container's group its own subgroups are looked at.
const MAX_DEPTH: usize = 32;
/// The most processes that are listed.
const MAX_PIDS: usize = 32_768;
/// How long the kernel may take to freeze or empty a group.
const SETTLE: Duration = Duration::from_secs(10);

/// Why something could not be done with a group.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// A file of the group could not be read or written.
    #[error("cannot access {path}")]
    File {
        /// Which file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The group did not come into the state in time.
    #[error("control group {path} did not become {state:?} within {SETTLE:?}")]
    Unsettled {
        /// Which group.
        path: PathBuf,
        /// The line of `cgroup.events` that was waited for.
        state: &'static str,
    },
    /// A limit could not be set.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// The device rules could not be set.
    #[error(transparent)]
    Devices(#[from] DeviceError),
}

/// One container's group.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The group of container `id`.
    pub(crate) fn of(id: &ContainerId) -> Self {
        Self {
            path: Path::new(ROOT).join(PARENT).join(id.as_str()),
        }
    }

    /// The parent of all containers' groups.
    pub(crate) fn all() -> Self {
        Self {
            path: Path::new(ROOT).join(PARENT),
        }
    }

    /// As the OCI runtime spec's `linux.cgroupsPath` has it.
    pub(crate) fn spec_path(id: &ContainerId) -> String {
        format!("/{PARENT}/{id}")
    }

    /// Makes the group, with these limits and device rules.
    pub(crate) fn create(
        &self,
        limits: &Limits,
        devices: &[LinuxDeviceCgroup],
    ) -> Result<(), CgroupError> {
        fs::create_dir_all(&self.path).map_err(|source| CgroupError::File {
            path: self.path.clone(),
            source,
        })?;
        devices::apply(&self.path, devices)?;
        self.limit(limits)
    }

    /// Changes its limits.
    pub(crate) fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        Ok(limits.apply(&self.path)?)
    }

    /// What it says of itself.
    pub(crate) fn values(&self) -> Values {
        stats::of_group(&self.path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), CgroupError> {
        let path = self.file(name);
        fs::write(&path, text).map_err(|source| CgroupError::File { path, source })
    }

    /// Kills every process; no error if there is no such group.
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        match self.write("cgroup.kill", "1") {
            Err(CgroupError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            result => result,
        }
    }

    /// Freezes or thaws it, and waits until that is so. One that does not freeze runs on.
    pub(crate) async fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        if !frozen {
            self.write("cgroup.freeze", "0")?;
            return self.settled("frozen 0").await;
        }
        self.write("cgroup.freeze", "1")?;
        let settled = self.settled("frozen 1").await;
        if settled.is_err() {
            // What can be frozen of it is; the first error says more than this one's.
            let _ = self.write("cgroup.freeze", "0");
        }
        settled
    }

    /// Waits until no process is left.
    pub(crate) async fn empty(&self) -> Result<(), CgroupError> {
        match self.settled("populated 0").await {
            Err(CgroupError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            result => result,
        }
    }

    async fn settled(&self, state: &'static str) -> Result<(), CgroupError> {
        let path = self.file("cgroup.events");
        let failed = |source| CgroupError::File {
            path: path.clone(),
            source,
        };
        let changes = FileChanges::new(&path).map_err(failed)?;
        let wait = async {
            loop {
                let events = fs::read_to_string(&path).map_err(failed)?;
                if events.lines().any(|line| line == state) {
                    return Ok(());
                }
                changes.next().await.map_err(failed)?;
            }
        };
        match tokio::time::timeout(SETTLE, wait).await {
            Ok(result) => result,
            Err(_) => Err(CgroupError::Unsettled {
                path: self.path.clone(),
                state,
            }),
        }
    }

    /// Every process in it and below.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        collect_pids(&self.path, MAX_DEPTH, &mut pids);
        pids.sort_unstable();
        pids
    }

    /// Removes it and what is below.
    pub(crate) fn remove(&self) -> Result<(), CgroupError> {
        remove_tree(&self.path, MAX_DEPTH)
    }

    /// How often the kernel has killed a process in it for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        fs::read_to_string(self.file("memory.events")).map_or(0, |text| count(&text, "oom_kill"))
    }

    /// Changes of what [`Self::oom_kills`] counts.
    pub(crate) fn memory_events(&self) -> io::Result<FileChanges> {
        FileChanges::new(&self.file("memory.events"))
    }
}

fn count(events: &str, key: &str) -> u64 {
    events
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0)
}

fn subgroups(path: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

fn collect_pids(path: &Path, depth: usize, pids: &mut Vec<u32>) {
    // Not readable in a threaded group, whose processes its domain lists.
    let listed = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let room = MAX_PIDS.saturating_sub(pids.len());
    pids.extend(
        listed
            .lines()
            .filter_map(|line| line.parse::<u32>().ok())
            .take(room),
    );
    if let Some(depth) = depth.checked_sub(1) {
        for group in subgroups(path) {
            collect_pids(&group, depth, pids);
        }
    }
}

fn remove_tree(path: &Path, depth: usize) -> Result<(), CgroupError> {
    if let Some(depth) = depth.checked_sub(1) {
        for group in subgroups(path) {
            remove_tree(&group, depth)?;
        }
    }
    match fs::remove_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CgroupError::File {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Tells when a file of the hierarchy has changed.
#[derive(Debug)]
pub(crate) struct FileChanges {
    inotify: AsyncFd<OwnedFd>,
}

impl FileChanges {
    fn new(path: &Path) -> io::Result<Self> {
        let inotify =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, path, inotify::WatchFlags::MODIFY)?;
        Ok(Self {
            inotify: crate::sys::watched(inotify)?,
        })
    }

    /// Until the file changes, or has changed since the last call.
    pub(crate) async fn next(&self) -> io::Result<()> {
        let mut buffer = [0u8; 1024];
        loop {
            let mut guard = self.inotify.readable().await?;
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer)?)) {
                Ok(read) => return read.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kills_are_told_from_other_events() {
        let events = "low 0\nhigh 3\nmax 21\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(count(events, "oom_kill"), 1);
        assert_eq!(count("", "oom_kill"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn group_that_does_not_freeze_is_thawed() {
        let folder = tempfile::tempdir().unwrap();
        let group = Cgroup {
            path: folder.path().to_owned(),
        };
        for events in [None, Some("frozen 0\n"), Some("frozen 1\n")] {
            if let Some(events) = events {
                fs::write(group.file("cgroup.events"), events).unwrap();
            }
            let froze = events == Some("frozen 1\n");
            assert_eq!(group.freeze(true).await.is_ok(), froze);
            let written = fs::read_to_string(group.file("cgroup.freeze")).unwrap();
            assert_eq!(written, if froze { "1" } else { "0" });
        }
    }
}
