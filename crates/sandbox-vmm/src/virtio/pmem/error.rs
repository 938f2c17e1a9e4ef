//! What can go wrong with a persistent memory device.

use std::io;

use crate::virtio::chain::ChainError;

/// Why a request is not done, or the device cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PmemError {
    /// The chain is no request.
    #[error("malformed request")]
    Malformed(#[from] ChainError),
    /// The place for the answer is not in guest memory.
    #[error("the place for the answer is not in guest memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
    /// The driver broke the ring; the device needs a reset.
    #[error("the driver broke the ring")]
    Ring(#[source] virtio_queue::Error),
    /// The driver cannot be interrupted.
    #[error("cannot interrupt the driver")]
    Interrupt(#[source] io::Error),
}
