//! What can go wrong with an entropy device.

use std::io;

use crate::virtio::chain::ChainError;

/// Why a request is not done, or the device cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RngError {
    /// The chain is no request for entropy.
    #[error("malformed request")]
    Malformed(#[from] ChainError),
    /// The buffer is not in guest memory.
    #[error("the buffer is not in guest memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
    /// The host has no random bytes.
    #[error("getrandom")]
    Host(#[source] io::Error),
    /// The driver broke the ring; the device needs a reset.
    #[error("the driver broke the ring")]
    Ring(#[source] virtio_queue::Error),
    /// The driver cannot be interrupted.
    #[error("cannot interrupt the driver")]
    Interrupt(#[source] io::Error),
}
