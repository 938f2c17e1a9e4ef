//! The control group that an added process begins in.
//!
//! A group that hands controllers on to groups below it takes no processes itself (kernel
//! `Documentation/admin-guide/cgroup-v2.rst`, "No Internal Process Constraint"). systemd and container engines do so with the
//! group of the container that they run in. A process is then added where the container's first one is, as runc does.
//!
//! The container names those groups and may remove them at any time. What is found is only used where it is the name of a
//! group below the container's own; where that goes away meanwhile the process is not added, or in a new group of that name.

use std::fs;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Spec;
use sandbox_protocol::bundle::SPEC_FILE;

use crate::cgroup;

/// Components of the path of a container's own group: the root, the parent of all, itself.
const OWN_DEPTH: usize = 3;

/// The group of process `first` below that of the container in `folder`, if an added process has to begin there.
pub(super) fn of(first: i32, folder: &Path) -> Option<String> {
    let listing = fs::read(format!("/proc/{first}/cgroup")).ok()?;
    let group = group(&listing)?;
    // Most containers have no groups: their spec is not read for this.
    group.components().nth(OWN_DEPTH)?;
    let spec = Spec::load(folder.join(SPEC_FILE)).ok()?;
    let own = spec.linux().as_ref()?.cgroups_path().clone()?;
    let rest = below(&group, &own)?;
    let own = Path::new(cgroup::ROOT).join(own.strip_prefix("/").ok()?);
    let handed_on = fs::read_to_string(own.join("cgroup.subtree_control")).ok()?;
    (!handed_on.trim().is_empty() && own.join(&rest).is_dir()).then_some(rest)
}

/// The path in the unified hierarchy (cgroups(7), `/proc/pid/cgroup`). No name of a group has a line's end in it. One that is
/// not UTF-8 cannot be told to libcontainer.
fn group(listing: &[u8]) -> Option<PathBuf> {
    let mut lines = listing.split(|byte| *byte == b'\n');
    let path = lines.find_map(|line| line.strip_prefix(b"0::"))?;
    Some(PathBuf::from(std::str::from_utf8(path).ok()?))
}

fn below(group: &Path, own: &Path) -> Option<String> {
    let rest = group.strip_prefix(own).ok()?;
    let plain = rest
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    let rest = rest.to_str()?;
    (plain && !rest.is_empty()).then(|| rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(listing: &[u8]) -> Option<String> {
        below(&group(listing)?, Path::new("/sandbox/a"))
    }

    #[test]
    fn group_of_the_first_process_is_taken_below_the_containers_own() {
        for (listing, expected) in [
            (&b"0::/sandbox/a/init.scope\n"[..], Some("init.scope")),
            (b"1:cpu:/x\n0::/sandbox/a/b/c d\n", Some("b/c d")),
            (b"0::/sandbox/a\n", None),
            (b"0::/sandbox/ab/c\n", None),
            (b"0::/sandbox/a/../b\n", None),
            (b"0::/\n", None),
            (b"0::/sandbox/a/\xff\n", None),
            (b"1:cpu:/sandbox/a/b\n", None),
            (b"", None),
        ] {
            assert_eq!(found(listing).as_deref(), expected, "{listing:?}");
        }
    }
}
