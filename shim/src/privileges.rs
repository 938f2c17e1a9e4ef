//! What the server keeps of root.
//!
//! It keeps the capabilities that it needs as long as it serves, and has no others from its first instruction as a server on. The
//! programs that it starts have what root has, since programs of the host are among them that count on it: hooks and loggers. What
//! runs and serves the guest gives it up itself, in its jail. So the bounding set stays: it is not against who can have the server execute a program.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities,
};

use crate::error::ShimError;

/// Each is needed while a container may still be added to the pod, or in the end.
const KEPT: CapabilitySet = CapabilitySet::empty()
    // Sockets are given to the sandbox's user, and their mode is set then.
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::FOWNER)
    // Bundles, fifos and folders to share belong to whoever made them.
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    // Overlays of the host's are mounted by us, and overlayfs copies files up, and changes them, with what the mounter has
    // (Documentation/filesystems/overlayfs.rst, "Permission model"). Without the one, whatever changes a file with file capabilities is
    // refused; without the other, the set-group-ID bit is lost of files of other groups than root. Not MKNOD: whiteouts take none
    // (Linux 5.8), and a device node that is copied up would have the mode and owner of the guest's choice on the host's disk.
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::FSETID)
    // What runs the guest is another user's.
    .union(CapabilitySet::KILL)
    // Taps and traffic control of the pod's network, which may be there at Start only and are cleared away in the end.
    .union(CapabilitySet::NET_ADMIN)
    // Shares of later containers, namespaces for processes and networks, groups' marks, the lookup program of loopback connections.
    .union(CapabilitySet::SYS_ADMIN)
    // A network namespace may be named by a process, which has more capabilities than we (`/proc/PID/ns/net`).
    .union(CapabilitySet::SYS_PTRACE);

/// Gives up the rest, for this thread and those that it makes: to be called before there are others.
///
/// # Errors
/// [`ShimError::System`].
pub(crate) fn drop_what_is_not_needed() -> Result<(), ShimError> {
    let drop = || -> Result<(), Errno> {
        clear_ambient_capability_set()?;
        let kept = capabilities(None)?.permitted & KEPT;
        set_capabilities(
            None,
            CapabilitySets {
                effective: kept,
                permitted: kept,
                inheritable: CapabilitySet::empty(),
            },
        )
    };
    drop().map_err(|errno| ShimError::System {
        what: "give up the capabilities that are not needed".to_owned(),
        source: errno.into(),
    })
}
