//! From the guest image on the kernel's root disk to the same image as persistent memory, which all guests of a host have in common: what
//! is read of it is no memory of this guest's.
//!
//! The kernel cannot begin there: it looks at such devices beside everything else, and for a root that is not there yet it could only look
//! again after a while. Here it can be waited for.

use std::ffi::CStr;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};
use sandbox_protocol::agent::PmemRange;
use sandbox_protocol::{ROOT_PARTITION, ROOT_VARIABLE};
use sandbox_types::WithCauses;

use crate::mount::pmem::{Partition, PmemError};

/// Where the agent is in the image.
const AGENT: &str = "/sbin/sandbox-agent";
/// Folders of the image in which nothing is yet.
const NEW_ROOT: &str = "/run";
const SYS: &str = "/sys";
/// What is read are the pages of the device.
const OPTIONS: &CStr = c"dax=always";

/// Why the root stays where it is.
#[derive(Debug, thiserror::Error)]
enum RootError {
    /// The host says it in another form.
    #[error("{ROOT_VARIABLE} is {0:?}, not OFFSET+BYTES")]
    Place(String),
    /// The image is not there.
    #[error(transparent)]
    Pmem(#[from] PmemError),
    /// A step that the kernel refused.
    #[error("cannot {what}")]
    Step {
        /// What was tried.
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> RootError {
    move |source| RootError::Step {
        what,
        source: source.into(),
    }
}

/// Becomes the agent of the image in memory, if the host says where that is. Returns where it does not, or where it cannot be done: the
/// root on the disk is as good, but takes more of the guest's memory.
pub(crate) fn become_agent_in_memory() {
    let Some(place) = std::env::var_os(ROOT_VARIABLE) else {
        return;
    };
    let error = match go_over(&place.to_string_lossy()) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    crate::log!(
        "the guest image is read from its disk: {}",
        WithCauses(&error)
    );
}

fn go_over(place: &str) -> Result<std::convert::Infallible, RootError> {
    let range = parse(place).ok_or_else(|| RootError::Place(place.to_owned()))?;
    mount("sysfs", SYS, "sysfs", MountFlags::empty(), None).map_err(failed("mount sysfs"))?;
    let partition = Partition::make(&range);
    unmount(SYS, UnmountFlags::DETACH).map_err(failed("unmount sysfs"))?;
    let partition = partition?;
    let image = partition.node();
    mount(image, NEW_ROOT, "erofs", MountFlags::RDONLY, OPTIONS)
        .map_err(failed("mount the guest image as memory"))?;
    // With the devices, which the kernel has mounted in the old one, of which nothing stays (pivot_root(2), `pivot_root(".", ".")`).
    mount_move("/dev", "/run/dev")
        .and_then(|()| rustix::process::chdir(NEW_ROOT))
        .and_then(|()| rustix::process::pivot_root(".", "."))
        .and_then(|()| unmount(".", UnmountFlags::DETACH))
        .and_then(|()| rustix::process::chdir("/"))
        .map_err(failed("make the image in memory the root"))?;
    let error = Command::new(AGENT).env_remove(ROOT_VARIABLE).exec();
    Err(failed("execute the agent of the image in memory")(error))
}

fn parse(place: &str) -> Option<PmemRange> {
    let (offset, bytes) = place.split_once('+')?;
    Some(PmemRange {
        partition: ROOT_PARTITION,
        offset: offset.parse().ok()?,
        bytes: bytes.parse().ok()?,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_is_two_numbers() {
        let range = parse("2097152+7000064").unwrap();
        assert_eq!(
            (range.partition, range.offset, range.bytes),
            (1, 2 << 20, 7_000_064)
        );
        for text in ["", "1", "1+", "+1", "1+2+3", "-1+2", "a+b"] {
            assert!(parse(text).is_none(), "{text}");
        }
    }
}
