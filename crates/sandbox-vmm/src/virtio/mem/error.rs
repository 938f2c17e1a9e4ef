//! What can go wrong with a memory device.

use std::io;

use crate::virtio::chain::ChainError;

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
pub enum MemError {
    /// The chain is no request.
    #[error("malformed request")]
    Malformed(#[from] ChainError),
    /// The place for the answer is not in guest memory.
    #[error("the place for the answer is not in guest memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
}

/// Why blocks do not become what the driver wants them to be. The answer says so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RefusedError {
    /// They are none.
    #[error("{count} blocks from {address:#x} on are not blocks of the device")]
    Range {
        /// Where they would begin.
        address: u64,
        /// How many there would be.
        count: u16,
    },
    /// They are it already, or some of them.
    #[error("{count} blocks from {address:#x} on are not all in the other state")]
    State {
        /// Where they begin.
        address: u64,
        /// How many there are.
        count: u16,
    },
    /// The guest would have more than it is to have.
    #[error("{plugged:#x} bytes are more than the {requested:#x} that the guest is to have")]
    TooMuch {
        /// What it would have.
        plugged: u64,
        /// What it is to have.
        requested: u64,
    },
    /// A request that there is none of.
    #[error("there is no request {kind}")]
    Unknown {
        /// Its number.
        kind: u16,
    },
    /// The host refused.
    #[error("the host does not change the memory")]
    Host(#[source] io::Error),
}
