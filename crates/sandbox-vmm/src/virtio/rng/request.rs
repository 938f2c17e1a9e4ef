//! Descriptor chains as requests for entropy (VirtIO 1.3, 5.4.6): device-writable buffers and nothing else.

use std::collections::VecDeque;

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use super::error::RngError;
use crate::virtio::chain::{ChainError, Segment, Segments};

/// The most bytes that one request gets. The driver is told how many it got, and may ask again.
pub(crate) const MAX_REQUEST_BYTES: u32 = 64 * 1024;

/// A request for random bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Where they go: together at most [`MAX_REQUEST_BYTES`], and at least one.
    pub segments: VecDeque<Segment>,
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// [`RngError::Malformed`] without a buffer to fill.
    pub(crate) fn parse(chain: DescriptorChain<&GuestMemoryMmap>) -> Result<Self, RngError> {
        let mut segments = Segments::copy(chain)?.writable;
        let mut left = MAX_REQUEST_BYTES;
        for segment in &mut segments {
            segment.length = segment.length.min(left);
            left -= segment.length;
        }
        segments.retain(|segment| segment.length > 0);
        if segments.is_empty() {
            return Err(ChainError::WritableTooShort.into());
        }
        Ok(Self { segments })
    }
}
