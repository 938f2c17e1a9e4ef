//! What can go wrong with a balloon device.

use std::io;

use crate::memory::RangeError;
use crate::virtio::QueueError;
use crate::virtio::chain::ChainError;

/// Why a request is not done, or the device cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BalloonError {
    /// The chain is no list of pages.
    #[error("malformed request")]
    Malformed(#[from] ChainError),
    /// Not whole pages of guest memory.
    #[error("malformed request")]
    Range(#[from] RangeError),
    /// More page numbers than one request may have.
    #[error("{bytes} bytes of page numbers in one request")]
    TooMany {
        /// How long the list is.
        bytes: u64,
    },
    /// The host keeps the pages.
    #[error("the host does not take the pages back")]
    Host(#[source] io::Error),
    /// The queue cannot be served any more.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The thread cannot remind itself of what it has left.
    #[error("cannot go on later")]
    Later(#[source] io::Error),
}
