//! From the mounts of a Create request to devices, shares and steps in the guest.

use std::path::{Path, PathBuf};

use containerd_shim_protos::api::Mount;
use sandbox_protocol::agent;
use sandbox_types::ContainerId;

use crate::driver::Driver;
use crate::sandbox::{BlockDevice, Share};

/// A mount to make on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMount {
    /// `overlay` or `bind`.
    pub fstype: String,
    /// Source, as in mount(8).
    pub source: String,
    /// Options, as in fstab.
    pub options: Vec<String>,
    /// Where, on the host.
    pub target: PathBuf,
}

/// How a container's root is put together.
#[derive(Debug, Clone, PartialEq)]
pub struct RootfsPlan {
    /// Disks to attach.
    pub block: Vec<BlockDevice>,
    /// Directories to share.
    pub shares: Vec<Share>,
    /// To mount on the host, before sharing.
    pub host_mounts: Vec<HostMount>,
    /// Steps for the agent, in order.
    pub guest_mounts: Vec<agent::Mount>,
    /// The root in the guest.
    pub root_path: String,
}

/// Names devices, and counts them against what a machine has.
#[derive(Debug, Clone)]
pub struct DeviceAllocator {
    blocks: usize,
    shares: usize,
    limit: usize,
}

impl DeviceAllocator {
    /// An empty machine of that driver.
    #[must_use]
    pub fn new(driver: Driver) -> Self {
        let _ = driver;
        Self {
            blocks: 0,
            shares: 0,
            limit: 14,
        }
    }
}

/// Why mounts cannot become a root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootfsError {}

/// Plans the root of `container` from `mounts`.
///
/// # Errors
/// [`RootfsError`] names the mount and what is wrong with it.
pub fn plan_rootfs(
    container: &ContainerId,
    mounts: &[Mount],
    next_device: &mut DeviceAllocator,
    bundle: &Path,
) -> Result<RootfsPlan, RootfsError> {
    let _ = (
        container,
        mounts,
        next_device.blocks,
        next_device.shares,
        next_device.limit,
        bundle,
    );
    unimplemented!()
}
