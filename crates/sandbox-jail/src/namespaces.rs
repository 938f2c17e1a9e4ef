//! Namespaces of the process's own (namespaces(7)).
//!
//! That of processes is not made here: it is whoever forks that makes it, for the process that is forked.

use nix::sched::CloneFlags;

use crate::JailError;
use crate::enter::process;

/// The host's name is not for the jail.
const HOST_NAME: &[u8] = b"sandbox";

/// Leaves the namespaces of System V objects and message queues, of the host's name and of control groups and, as is asked
/// for, of mounts and of the network too.
///
/// # Errors
/// [`JailError::Namespaces`].
pub fn unshare(mounts: bool, network: bool) -> Result<(), JailError> {
    let mut flags =
        CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWCGROUP;
    let mut names = "ipc, uts, cgroup";
    if mounts {
        flags |= CloneFlags::CLONE_NEWNS;
        names = "ipc, uts, cgroup, mount";
    }
    if network {
        flags |= CloneFlags::CLONE_NEWNET;
        names = "ipc, uts, cgroup, mount, network";
    }
    nix::sched::unshare(flags).map_err(|errno| JailError::Namespaces {
        names,
        source: errno.into(),
    })?;
    rustix::system::sethostname(HOST_NAME).map_err(process("the name of its host"))
}
