//! What can go wrong with an entropy device.

use std::io;

use crate::virtio::chain::ChainError;

/// Why a request is not done.
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
}
