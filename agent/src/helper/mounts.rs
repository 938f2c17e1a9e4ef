//! What is done to a container's mounts once all of them are there, in its own mount namespace.

use std::path::Path;

use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::spec::{MountPropagation, Propagation};

/// Sets the propagation of a mount.
pub(super) fn propagate(mount: &MountPropagation) -> Result<(), Errno> {
    let mut flags = match mount.kind {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Shared => MountPropagationFlags::SHARED,
        Propagation::Unbindable => MountPropagationFlags::UNBINDABLE,
    };
    if mount.recursive {
        flags |= MountPropagationFlags::REC;
    }
    rustix::mount::mount_change(&mount.destination, flags)
}

/// Covers a place with itself, read-only; nothing is done where there is no such place.
pub(super) fn cover_read_only(place: &Path) -> Result<(), Errno> {
    match rustix::mount::mount_bind_recursive(place, place) {
        Ok(()) => make_read_only(place),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Makes a mount read-only. What else it is stays; the kernel keeps by itself when times of access are written (mount(2),
/// "Remounting an existing mount").
pub(super) fn make_read_only(place: &Path) -> Result<(), Errno> {
    let now = rustix::fs::statvfs(place)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    for (has, flag) in [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    ] {
        if now.contains(has) {
            flags |= flag;
        }
    }
    rustix::mount::mount_remount(place, flags, "")
}
