//! Why the vsock device cannot go on.

use std::io;
use std::path::PathBuf;

/// Why the vsock device cannot be made, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// `<path>_<port>` would not fit in a `sockaddr_un`.
    #[error(
        "the vsock path {path:?} has {length} bytes; at most {limit} leave room for `_<port>` in a Unix socket's address"
    )]
    PathTooLong {
        /// The prefix.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
        /// The most it may have.
        limit: usize,
    },
    /// A system call on one of the device's own descriptors failed.
    #[error("vsock: cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The driver broke a ring; the device needs a reset (VirtIO 1.3, 2.1.2).
    #[error("the driver broke the {queue} ring")]
    CorruptRing {
        /// `rx` or `tx`.
        queue: &'static str,
        /// How.
        source: virtio_queue::Error,
    },
}

impl VsockError {
    /// For `map_err` on calls on the device's own descriptors.
    pub(crate) fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            action,
            source: source.into(),
        }
    }

    /// For `map_err` on ring accesses.
    pub(crate) fn ring(queue: &'static str) -> impl FnOnce(virtio_queue::Error) -> Self {
        move |source| Self::CorruptRing { queue, source }
    }
}
