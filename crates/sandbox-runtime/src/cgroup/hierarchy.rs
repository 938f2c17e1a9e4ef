//! Which hierarchies of control groups the host has (cgroups(7)).

use std::fs;
use std::path::{Path, PathBuf};

use crate::cleanup::unescape_path;

/// How a hierarchy is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// One of several, each with its controllers.
    V1,
    /// The unified one; a group hands its controllers down by `cgroup.subtree_control`.
    V2,
}

/// A mounted hierarchy with at least one controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    /// Where it is mounted.
    pub(super) mount: PathBuf,
    /// The group that this process is in, below the mount.
    pub(super) home: PathBuf,
    pub(super) controllers: Vec<String>,
}

impl Hierarchy {
    /// Those that this process sees.
    pub(super) fn mounted() -> Vec<Self> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let found = find(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
        found
            .into_iter()
            .filter_map(Self::with_controllers)
            .collect()
    }

    /// Version 2 says in its root which controllers it has; without one there is nothing that it could do.
    fn with_controllers(mut self) -> Option<Self> {
        if self.version == Version::V2 {
            let text = fs::read_to_string(self.mount.join("cgroup.controllers")).ok()?;
            self.controllers = text.split_whitespace().map(str::to_owned).collect();
        }
        (!self.controllers.is_empty()).then_some(self)
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|one| one == controller)
    }
}

/// Brings together what `/proc/PID/cgroup` (cgroups(7)) and `/proc/PID/mountinfo` (proc_pid_mountinfo(5)) say. Hierarchies
/// without controllers (`name=systemd`) are whoever's who made them.
fn find(memberships: &str, mounts: &str) -> Vec<Hierarchy> {
    memberships
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, Path::new(fields.next()?));
            let controllers: Vec<String> = controllers
                .split(',')
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect();
            let version = match controllers.is_empty() {
                true => Version::V2,
                false => Version::V1,
            };
            if controllers.iter().any(|name| name.starts_with("name=")) {
                return None;
            }
            let (mount, home) = mounts
                .lines()
                .find_map(|mount| matching(mount, version, &controllers, path))?;
            Some(Hierarchy {
                version,
                mount,
                home,
                controllers,
            })
        })
        .collect()
}

/// Where a line of mountinfo mounts this hierarchy, and where `path` is below that.
fn matching(
    line: &str,
    version: Version,
    controllers: &[String],
    path: &Path,
) -> Option<(PathBuf, PathBuf)> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(3);
    let (root, mount) = (front.next()?, front.next()?);
    let mut back = back.split(' ');
    let kind = back.next()?;
    let options: Vec<&str> = back.nth(1)?.split(',').collect();
    let is_it = match version {
        Version::V1 => {
            kind == "cgroup"
                && controllers
                    .iter()
                    .all(|one| options.contains(&one.as_str()))
        }
        Version::V2 => kind == "cgroup2",
    };
    // A mount of only a part, in which we are not, is of no use to leave to.
    let home = path.strip_prefix(unescape_path(root)).ok()?;
    is_it.then(|| (unescape_path(mount), home.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let memberships =
            "9:name=systemd:/a\n4:cpu,cpuacct:/x/y\n3:memory:/docker/c/in\n2:pids:/\n0::/u\n";
        let mounts = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 /docker/c /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
35 31 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
";
        let found = find(memberships, mounts);
        let places: Vec<_> = found
            .iter()
            .map(|one| {
                (
                    one.version,
                    one.mount.to_str().unwrap(),
                    one.home.to_str().unwrap(),
                )
            })
            .collect();
        // The one that is mounted nowhere and the one without controllers are left out.
        assert_eq!(
            places,
            [
                (Version::V1, "/sys/fs/cgroup/cpu,cpuacct", "x/y"),
                (Version::V1, "/sys/fs/cgroup/my memory", "in"),
                (Version::V2, "/sys/fs/cgroup/unified", "u"),
            ]
        );
        assert!(found[0].has("cpuacct") && !found[0].has("memory"));
    }

    #[test]
    fn version_two_without_controllers_is_left_out() {
        let mount = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy {
            version: Version::V2,
            mount: mount.path().to_owned(),
            home: PathBuf::new(),
            controllers: Vec::new(),
        };
        let file = mount.path().join("cgroup.controllers");
        assert_eq!(hierarchy.clone().with_controllers(), None);
        fs::write(&file, "\n").unwrap();
        assert_eq!(hierarchy.clone().with_controllers(), None);
        fs::write(&file, "cpu memory\n").unwrap();
        assert!(hierarchy.with_controllers().unwrap().has("memory"));
    }
}
