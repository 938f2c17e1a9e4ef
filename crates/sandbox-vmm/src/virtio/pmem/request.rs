//! Descriptor chains as requests of a persistent memory device (VirtIO 1.3, 5.19.6): a type of four bytes, and four bytes for the
//! result.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::error::PmemError;
use crate::virtio::chain::{ChainError, Segments};

/// `VIRTIO_PMEM_REQ_TYPE_FLUSH`: what was written is to become durable.
pub const FLUSH: u32 = 0;
/// Bytes of `virtio_pmem_req`.
const REQUEST_BYTES: usize = 4;
/// Bytes of `virtio_pmem_resp`.
pub(crate) const RESPONSE_BYTES: u32 = 4;

/// A request with a place for its result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// What the driver wants.
    pub kind: u32,
    /// Where the result goes, in one piece.
    pub response: GuestAddress,
}

impl Request {
    /// Reads a request. Bytes beyond the two structures are passed over.
    ///
    /// # Errors
    /// [`PmemError::Malformed`] without a whole request, or without room for the whole response in one descriptor.
    pub(crate) fn parse(
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Result<Self, PmemError> {
        let mut segments = Segments::copy(chain)?;
        let mut kind = [0; REQUEST_BYTES];
        segments.take_readable(memory, &mut kind)?;
        let response = segments
            .writable
            .front()
            .filter(|segment| segment.length >= RESPONSE_BYTES)
            .ok_or(ChainError::WritableTooShort)?;
        Ok(Self {
            kind: u32::from_le_bytes(kind),
            response: response.address,
        })
    }

    /// 0 for a flush, for which there is nothing to do; -1, failure, for what the device does not have (5.19.7).
    #[must_use]
    pub(crate) fn result(&self) -> u32 {
        match self.kind {
            FLUSH => 0,
            _ => u32::MAX,
        }
    }
}
