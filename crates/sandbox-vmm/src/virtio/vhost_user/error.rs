//! Why a session with a back end cannot begin, or ended.

use std::io;

/// Why a session with a back end cannot begin, or ended.
#[derive(Debug, thiserror::Error)]
pub enum FrontEndError {
    /// A request was refused, or the answer is none.
    #[error("the vhost-user back end did not {action}")]
    Refused {
        /// What was asked.
        action: &'static str,
        /// What it said.
        source: vhost::Error,
    },
    /// It speaks only of devices older than VirtIO 1.0.
    #[error("the vhost-user back end does not offer VIRTIO_F_VERSION_1 (features {features:#x})")]
    Legacy {
        /// What it offers.
        features: u64,
    },
    /// The device has more queues than it serves.
    #[error("the vhost-user back end serves {has} queues, and the device has {needs}")]
    TooFewQueues {
        /// How many it serves.
        has: u64,
        /// How many it would have to.
        needs: usize,
    },
    /// The connection ended.
    #[error("the vhost-user back end is gone")]
    Gone,
    /// A descriptor of our own failed.
    #[error("cannot {action}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
