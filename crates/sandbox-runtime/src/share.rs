//! What a guest sees of the host's file system: one folder per sandbox, served by one virtiofsd.
//!
//! ```text
//! <sandbox's folder>/shared       a tmpfs of the sandbox's own
//!   entries                       where entries are mounted
//!     <container>/root            the container's root, when it is a folder of the host
//!     <container>/layers/<n>      a layer that no device was left for
//!     <container>/mounts/<n>      what bind mount n of the spec names: a folder or a file
//!   served                        the same for virtiofsd, read-only: the guest changes no name around the entries
//! ```
//!
//! Every entry is a mount. It is made as a detached tree, given its flags (read-only where that is asked for, always
//! without set-user-ID bits and devices) and its propagation, and only then attached, so that it is never there without
//! them. What is read-only is so for virtiofsd too, whatever the guest does. The entries take no part in the propagation
//! of their sources' mounts, so undoing them undoes nothing of the host's. Everything hangs on the tmpfs, which is on record
//! before it is mounted: one unmount takes all away.
//!
//! The containers of a pod come and go while the machine runs. virtiofsd has its own mount namespace, made before; the
//! folder of entries is therefore *shared* in a group of its own, of which what is served, here and in virtiofsd's namespace, is a slave: what is
//! mounted or undone in it later, with the flags that it has, is mounted or undone for virtiofsd too, and nothing ever comes back from there. Were
//! something of the tree the guest's all the same, the runtime follows no link in it (`below`).

use std::path::{Path, PathBuf};

use sandbox_protocol::{GUEST_RUN_DIR, agent};
use sandbox_types::ContainerId;

use crate::rootfs::{DeviceAllocator, RootfsError};

mod below;
mod mount;

pub use mount::{ShareError, ShareMountError, ShareProblem, is_read_only};
pub(crate) use mount::{ShareMounts, unmount};

/// Does what may wait for a file system of the host's, beside the runtime's own thread, on which everything else is done.
pub(crate) async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is ending, and this with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// By what the guest mounts the folder.
pub(crate) const TAG: &str = "host";
/// Name of the folder in the sandbox's own.
pub(crate) const FOLDER: &str = "shared";
/// Name of the folder of entries in that.
const ENTRIES: &str = "entries";
/// Name of what virtiofsd serves, beside it.
const SERVED: &str = "served";

/// Something of the host that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedEntry {
    /// Where, below the shared folder; without `..`.
    pub(crate) path: PathBuf,
    /// Which field of the caller's request asked for it, for errors.
    pub(crate) field: String,
    /// What.
    pub(crate) source: SharedSource,
    /// Nothing can be written through it, on the host's side.
    pub(crate) read_only: bool,
}

impl SharedEntry {
    /// What it shows.
    #[must_use]
    pub fn source(&self) -> &SharedSource {
        &self.source
    }

    /// Whether nothing can be written through it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }
}

/// What of the host an entry shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SharedSource {
    /// A folder or a regular file.
    Path {
        /// Which.
        path: PathBuf,
        /// With what is mounted below it.
        recursive: bool,
        /// Mounts that appear below it on the host later appear in it.
        follows_host: bool,
    },
    /// An overlay of folders, with mount(8) options.
    Overlay {
        /// The options, as in fstab.
        options: Vec<String>,
    },
}

/// The shared entries of one container.
#[derive(Debug)]
pub struct SharePlan {
    container: ContainerId,
    entries: Vec<SharedEntry>,
}

impl SharePlan {
    /// With no entry.
    #[must_use]
    pub fn new(container: &ContainerId) -> Self {
        Self {
            container: container.clone(),
            entries: Vec::new(),
        }
    }

    /// Where the guest mounts the shared folder for this container.
    fn mount_point(&self) -> String {
        format!("{GUEST_RUN_DIR}/containers/{}/shared", self.container)
    }

    /// Adds the entry `name`; returns its path in the guest. `field` is the one of the caller's request.
    ///
    /// # Errors
    /// [`RootfsError::TooManyDevices`] when the first entry finds no room for the device.
    pub fn add(
        &mut self,
        name: &str,
        field: String,
        source: SharedSource,
        read_only: bool,
        devices: &mut DeviceAllocator,
    ) -> Result<String, RootfsError> {
        devices.take_share()?;
        self.entries.push(SharedEntry {
            path: Path::new(self.container.as_str()).join(name),
            field,
            source,
            read_only,
        });
        Ok(format!("{}/{}/{name}", self.mount_point(), self.container))
    }

    /// The agent's first step, when anything is shared.
    #[must_use]
    pub fn guest_mount(&self) -> Option<agent::Mount> {
        if self.entries.is_empty() {
            return None;
        }
        let mut step = agent::Mount {
            fstype: "virtiofs".to_owned(),
            target: self.mount_point(),
            ..Default::default()
        };
        step.set_share_tag(TAG.to_owned());
        Some(step)
    }

    /// The entries, in the order in which they were added.
    #[must_use]
    pub fn into_entries(self) -> Vec<SharedEntry> {
        self.entries
    }

    /// The entries, in the order in which they were added.
    #[must_use]
    pub fn entries(&self) -> &[SharedEntry] {
        &self.entries
    }
}
