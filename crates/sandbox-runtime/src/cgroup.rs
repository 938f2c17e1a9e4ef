//! The sandbox's control group on the host, in every hierarchy with controllers (cgroups(7); kernel
//! `Documentation/admin-guide/cgroup-v1`, `cgroup-v2.rst`).
//!
//! It is made where the first container's specification says ([`CgroupPath`]). The shim goes into it before it starts
//! anything, so that whatever runs and serves the guest is in it from the beginning, and the guest's memory is charged to
//! it; in the end the shim goes back to where it came from, because a group with a process in it cannot be removed.
//! Groups above it that are missing are made too, and marked, so that the last sandbox in them removes them.
//!
//! Whatever is wrong with the host's control groups costs the group, or a part of it, and a line of warning; nothing else
//! depends on it. A group that is there already is somebody else's and left alone. A slice is systemd's
//! to make: without it there is no group, and systemd is not told of the scope.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;
use sandbox_types::{MemMib, VcpuCount};
use serde::{Deserialize, Serialize};

use crate::cleanup::{CleanupError, Record};
use crate::config::Config;

mod hierarchy;
mod path;
mod places;

use hierarchy::{Hierarchy, Version};
pub use path::{CgroupPath, CgroupPathError};
pub use places::Places;

/// Processes and threads of a sandbox on the host. Its user may have 1024 ([`crate::jail`]), the shim some 600, and the rest is
/// for virtiofsd, hooks and loggers.
const MAX_PIDS: u64 = 4096;
/// Processor time is given out for each of these, in microseconds: the kernel's default (`cpu.max`).
const CPU_PERIOD_US: u64 = 100_000;
/// How long a group may stay busy after its processes were killed.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Until it is tried again; version 1 tells nobody when a group gets empty.
const REMOVE_PAUSE: Duration = Duration::from_millis(5);
/// How often a group above ours may be removed by another sandbox just after we found or made it.
const MAKE_ATTEMPTS: u32 = 100;
/// Who made a group above ours (xattr(7)).
const MARK: &str = "trusted.sandbox";
/// What a group of version 2 is to have from those above it.
const HANDED_DOWN: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];
/// What a new group of version 1 has to be given before anything can be in it.
const CPUSET_FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Why there is no control group, or why it is still there.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The kernel refused.
    #[error("cannot {action} {}", path.display())]
    Refused {
        /// What was tried.
        action: &'static str,
        /// With which group or file of one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is there, and not ours.
    #[error("the control group {} is there already", path.display())]
    Taken {
        /// Where.
        path: PathBuf,
    },
    /// Processors or memory nodes were named, and none can be.
    #[error("none of the sandbox's control groups on the host has `cpuset`")]
    NoCpuset,
}

fn refused(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Refused {
        action,
        path,
        source,
    }
}

/// Sets a file of a group, which the kernel has made.
fn set(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(refused("write", path))
}

/// What a sandbox may have on the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// In bytes.
    memory: Option<u64>,
    /// Processor time, in microseconds of each [`CPU_PERIOD_US`].
    cpu_quota_us: Option<u64>,
}

impl Limits {
    /// For a machine of this size; memory and processor time are only limited where an overhead is configured. Time is by the machine's
    /// processors and not by the containers' limits: those may change while it runs, up to its processors, and are the guest's.
    pub(crate) fn new(memory: MemMib, vcpus: VcpuCount, config: &Config) -> Self {
        let bytes = |mib: u64| mib.saturating_mul(1 << 20);
        let quota = |percent: u32| {
            let percent = u64::from(vcpus.get()) * 100 + u64::from(percent);
            percent.saturating_mul(CPU_PERIOD_US / 100)
        };
        let memory_overhead = config.sandbox_memory_overhead_mib;
        Self {
            memory: memory_overhead.map(|mib| bytes(u64::from(memory.get()) + u64::from(mib))),
            cpu_quota_us: config.sandbox_cpu_overhead_percent.map(quota),
        }
    }

    /// The files of a group that hold them, in the order in which they are to be written.
    fn files(self, hierarchy: &Hierarchy) -> Vec<(&'static str, String)> {
        let mut files = Vec::new();
        if hierarchy.has("pids") {
            files.push(("pids.max", MAX_PIDS.to_string()));
        }
        if let (true, Some(bytes)) = (hierarchy.has("memory"), self.memory) {
            let name = match hierarchy.version {
                Version::V1 => "memory.limit_in_bytes",
                Version::V2 => "memory.max",
            };
            files.push((name, bytes.to_string()));
        }
        if let (true, Some(quota)) = (hierarchy.has("cpu"), self.cpu_quota_us) {
            match hierarchy.version {
                Version::V1 => files.extend([
                    ("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
                    ("cpu.cfs_quota_us", quota.to_string()),
                ]),
                Version::V2 => files.push(("cpu.max", format!("{quota} {CPU_PERIOD_US}"))),
            }
        }
        files
    }
}

/// The group of a sandbox in one hierarchy, as it is on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    /// Where the hierarchy is mounted; the paths are below it.
    mount: PathBuf,
    path: PathBuf,
    /// Groups above it that were not there, from the top.
    made: Vec<PathBuf>,
    /// Where the shim was before.
    home: PathBuf,
}

/// A path and those above it, from the top, without the root.
fn lineage(path: &Path) -> Vec<&Path> {
    let mut all: Vec<&Path> = path
        .ancestors()
        .filter(|one| !one.as_os_str().is_empty())
        .collect();
    all.reverse();
    all
}

fn procs(group: &Path) -> PathBuf {
    group.join("cgroup.procs")
}

impl Group {
    /// None where a slice that it is to be in is missing.
    fn plan(path: &CgroupPath, hierarchy: &Hierarchy) -> Option<Self> {
        let is_missing = |group: &Path| !hierarchy.mount.join(group).is_dir();
        let made: Vec<PathBuf> = lineage(path.folder())
            .into_iter()
            .filter(|group| is_missing(group))
            .map(Path::to_owned)
            .collect();
        (made.is_empty() || !path.is_of_systemd()).then(|| Self {
            mount: hierarchy.mount.clone(),
            path: path.path(),
            made,
            home: hierarchy.home.clone(),
        })
    }

    fn folder(&self) -> PathBuf {
        self.mount.join(&self.path)
    }

    /// Makes it, and what is missing above it.
    fn make(&self, hierarchy: &Hierarchy) -> Result<(), CgroupError> {
        let mut attempt = 1;
        loop {
            match self.try_make(hierarchy) {
                Err(CgroupError::Refused { source, .. })
                    if attempt < MAKE_ATTEMPTS && !self.folder().exists() && is_gone(&source) =>
                {
                    attempt += 1;
                }
                made => return made,
            }
        }
    }

    fn try_make(&self, hierarchy: &Hierarchy) -> Result<(), CgroupError> {
        let mut above = self.mount.clone();
        for path in lineage(&self.path) {
            if hierarchy.version == Version::V2 {
                hand_down(&above);
            }
            let group = self.mount.join(path);
            let is_ours = path == self.path;
            match fs::create_dir(&group) {
                Ok(()) if !is_ours => mark(&group),
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_ours => {
                    return Err(CgroupError::Taken { path: group });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(refused("make the control group", &group)(error)),
            }
            if hierarchy.version == Version::V1 && hierarchy.has("cpuset") {
                fill_cpuset(&above, &group)?;
            }
            above = group;
        }
        Ok(())
    }

    fn limit(&self, hierarchy: &Hierarchy, limits: Limits) -> Result<(), CgroupError> {
        for (name, value) in limits.files(hierarchy) {
            set(&self.folder().join(name), &value)?;
        }
        Ok(())
    }

    /// Puts this process into it, with all its threads.
    fn enter(&self) -> Result<(), CgroupError> {
        set(&procs(&self.folder()), "0")
    }

    /// Removes it, and what was made above it and is empty now. What still lives in it goes where the shim came from: the
    /// shim itself, and what hooks and loggers left. Blocks until processes that die have left.
    pub(crate) fn remove(&self) -> Result<(), CgroupError> {
        let folder = self.folder();
        let deadline = Instant::now() + REMOVE_TIMEOUT;
        loop {
            self.vacate();
            match fs::remove_dir(&folder) {
                Err(error) if is_busy(&error) && Instant::now() < deadline => {
                    std::thread::sleep(REMOVE_PAUSE);
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(refused("remove the control group", &folder)(error));
                }
                _ => break,
            }
        }
        self.remove_above();
        Ok(())
    }

    /// Whatever is in the way there, such as another sandbox, has it from now on.
    fn remove_above(&self) {
        let above = self.path.parent().unwrap_or(Path::new(""));
        for path in lineage(above).into_iter().rev() {
            let group = self.mount.join(path);
            if !self.made.iter().any(|made| made == path) && !is_marked(&group) {
                return;
            }
            match fs::remove_dir(&group) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return,
                _ => {}
            }
        }
    }

    fn vacate(&self) {
        let listed = fs::read_to_string(procs(&self.folder())).unwrap_or_default();
        for pid in listed.split_whitespace() {
            // Zero is of a process namespace that we do not see, and would mean ourselves.
            if pid == "0" {
                continue;
            }
            // The shim's group may be gone, or have become one that may hold no processes.
            for home in self.home.ancestors() {
                match set(&procs(&self.mount.join(home)), pid) {
                    Err(CgroupError::Refused { source, .. }) if !is_ended(&source) => {}
                    _ => break,
                }
            }
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}

fn is_busy(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty
    )
}

/// Of a process.
fn is_ended(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// Where attributes cannot be kept, only who made the group knows.
fn mark(group: &Path) {
    if let Err(error) = rustix::fs::setxattr(group, MARK, b"1", XattrFlags::empty()) {
        tracing::debug!(%error, "cannot mark {}", group.display());
    }
}

fn is_marked(group: &Path) -> bool {
    let mut value = [0; 8];
    rustix::fs::getxattr(group, MARK, &mut value[..]).is_ok()
}

/// Hands the controllers of `group` down to those in it, each that can be: processes may be in the way, and then
/// the groups below do without.
fn hand_down(group: &Path) {
    let words = |name| fs::read_to_string(group.join(name)).unwrap_or_default();
    let (has, hands) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
    for controller in HANDED_DOWN {
        let is_in = |text: &str| text.split_whitespace().any(|one| one == controller);
        if is_in(&has)
            && !is_in(&hands)
            && let Err(error) = set(
                &group.join("cgroup.subtree_control"),
                &format!("+{controller}"),
            )
        {
            let error: &dyn std::error::Error = &error;
            tracing::debug!(error, "{controller} is not handed down");
        }
    }
}

fn fill_cpuset(above: &Path, group: &Path) -> Result<(), CgroupError> {
    for name in CPUSET_FILES {
        let file = group.join(name);
        let read = |path: &Path| fs::read_to_string(path).map_err(refused("read", path));
        if read(&file)?.trim().is_empty() {
            set(&file, read(&above.join(name))?.trim())?;
        }
    }
    Ok(())
}

/// What came of the attempt to have a group in every hierarchy.
#[derive(Debug, Default)]
struct Attempt {
    /// Where this process is in one now.
    groups: Vec<Group>,
    /// Where there is none, or one that does not limit all that it should.
    problems: Vec<CgroupError>,
}

impl Attempt {
    /// All that has been made is removed again when one of the groups is somebody else's.
    fn make(planned: &[(Hierarchy, Group)], limits: Limits, places: &Places) -> Self {
        let mut attempt = Self::default();
        for (hierarchy, group) in planned {
            let made = group.make(hierarchy);
            if let Err(error @ CgroupError::Taken { .. }) = made {
                group.remove_above();
                let made = std::mem::take(&mut attempt.groups);
                attempt.problems = vec![error];
                attempt.drop_groups(made);
                return attempt;
            }
            let limited = made.and_then(|()| {
                let limited = group.limit(hierarchy, limits);
                group.enter().map(|()| limited)
            });
            match limited {
                Ok(limited) => {
                    attempt.groups.push(group.clone());
                    attempt.problems.extend(limited.err());
                }
                Err(error) => {
                    attempt.problems.push(error);
                    attempt.drop_groups(vec![group.clone()]);
                }
            }
        }
        let entered = planned
            .iter()
            .filter(|(_, group)| attempt.groups.contains(group));
        let entered: Vec<_> = entered.cloned().collect();
        attempt.problems.extend(place_all(&entered, places).err());
        attempt
    }

    /// What cannot be removed stays on record.
    fn drop_groups(&mut self, groups: Vec<Group>) {
        for group in groups {
            if let Err(error) = group.remove() {
                self.problems.push(error);
                self.groups.push(group);
            }
        }
    }
}

/// The versions of the hierarchies in which a sandbox can have a group.
pub(crate) fn versions() -> Vec<&'static str> {
    let mounted = Hierarchy::mounted();
    [(Version::V1, "1"), (Version::V2, "2")]
        .into_iter()
        .filter(|(version, _)| mounted.iter().any(|one| one.version == *version))
        .map(|(_, name)| name)
        .collect()
}

/// Makes the sandbox's group and puts this process into it. It is on record before.
///
/// # Errors
/// Only when it cannot be recorded.
pub(crate) fn enter(
    path: &CgroupPath,
    limits: Limits,
    places: &Places,
    dir: &Path,
) -> Result<(), CleanupError> {
    let planned: Vec<(Hierarchy, Group)> = Hierarchy::mounted()
        .into_iter()
        .filter_map(|hierarchy| Some((hierarchy.clone(), Group::plan(path, &hierarchy)?)))
        .collect();
    let mut folders = planned.iter().map(|(_, group)| group.folder());
    // What is somebody else's does not get on record.
    if let Some(path_taken) = folders.find(|folder| folder.exists()) {
        let attempt = Attempt {
            groups: Vec::new(),
            problems: vec![CgroupError::Taken { path: path_taken }],
        };
        warn(path, &attempt);
        return Ok(());
    }
    let on_record: Vec<Group> = planned.iter().map(|(_, group)| group.clone()).collect();
    Record::set_cgroup(dir, &on_record)?;
    let attempt = Attempt::make(&planned, limits, places);
    if attempt.groups != on_record {
        Record::set_cgroup(dir, &attempt.groups)?;
    }
    warn(path, &attempt);
    Ok(())
}

/// The groups on record in `dir`, with their hierarchies.
fn recorded(dir: &Path) -> Vec<(Hierarchy, Group)> {
    let groups = Record::cgroup(dir);
    if groups.is_empty() {
        return Vec::new();
    }
    let of_hierarchy = |hierarchy: Hierarchy| {
        let mut here = groups.iter().filter(|group| group.mount == hierarchy.mount);
        Some((hierarchy.clone(), here.next()?.clone()))
    };
    let mounted = Hierarchy::mounted().into_iter();
    mounted.filter_map(of_hierarchy).collect()
}

/// Raises the limits of the sandbox's group, which is on record in `dir`. One that cannot be raised is warned of: the sandbox goes on
/// within what it has.
pub(crate) fn raise(dir: &Path, limits: Limits) {
    for (hierarchy, group) in recorded(dir) {
        if let Err(error) = group.limit(&hierarchy, limits) {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "the sandbox's limits on the host are as they were");
        }
    }
}

/// Has whatever is in the sandbox's group, which is on record in `dir`, run there. Blocks while memory moves to other nodes.
///
/// # Errors
/// When it runs where it did before, or only in part there.
pub(crate) fn place(dir: &Path, places: &Places) -> Result<(), CgroupError> {
    place_all(&recorded(dir), places)
}

fn place_all(groups: &[(Hierarchy, Group)], places: &Places) -> Result<(), CgroupError> {
    let mut with: Vec<_> = groups.iter().collect();
    with.retain(|(hierarchy, _)| hierarchy.has("cpuset"));
    if with.is_empty() && *places != Places::default() {
        return Err(CgroupError::NoCpuset);
    }
    with.into_iter()
        .try_for_each(|(hierarchy, group)| group.place(hierarchy.version, places))
}

fn warn(path: &CgroupPath, attempt: &Attempt) {
    let error = attempt
        .problems
        .first()
        .map(|error| error as &dyn std::error::Error);
    if attempt.groups.is_empty() {
        tracing::warn!(
            error,
            "the sandbox has no control group on the host: {path} cannot be had{}",
            if path.is_of_systemd() {
                " (it takes that the slice is there)"
            } else {
                ""
            }
        );
    } else if error.is_some() {
        tracing::warn!(
            error,
            "the sandbox's control group {path} is not in every hierarchy, or does not limit all that it should"
        );
    }
}

#[cfg(test)]
mod tests;
