//! What can go wrong with a persistent memory device.

use crate::virtio::chain::ChainError;

/// Why a request is not done.
#[derive(Debug, thiserror::Error)]
pub enum PmemError {
    /// The chain is no request.
    #[error("malformed request")]
    Malformed(#[from] ChainError),
    /// The place for the answer is not in guest memory.
    #[error("the place for the answer is not in guest memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
}
